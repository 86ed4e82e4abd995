"""Risk measures of the scenarios' values: conditional value at risk, and percentiles."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from torchimpt.checks import InputError
from torchimpt.objectives.modes.weights import Weighted


@dataclass(frozen=True, kw_only=True)
class CVaR(Weighted):
    """The mean of the worst scenarios, which have `1 - level` of the probability: conditional value at risk.

    On scenarios of probabilities `p` it is (Rockafellar and Uryasev, J Risk 2(3):21, 2000)

        CVaR(f) = min_t t + 1/(1 - a) sum_k p_k max(0, f_k - t) = max_q q'f,    0 <= q_k <= p_k / (1 - a),  sum_k q_k = 1

    and has a kink where values tie. The smooth form is the maximum over the same `q` of

        F = q'f + e/2 (p'f) (1 - (1 - a) sum_k q_k^2 / p_k),    which lies between CVaR and CVaR + e/2 p'f <= (1 + e/2) CVaR

    convex, never falling with any value, and proportional to their scale. `level` 0 would be the mean, 1 the maximum.

    Attributes
    ----------
    level
        `a`, between 0 and 1: 0.9 is the mean of the worst tenth. Scenarios count in part at its border.
    smoothing
        `e`, zero or more; 0: CVaR itself.
    """

    level: float
    smoothing: float = 0.1

    name: ClassVar[str] = "cvar"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.level < 1:
            raise InputError(f"mode {self.name}: level must lie between 0 and 1, 0.9 for the mean of the worst tenth, got {self.level:g}")
        _check_smoothing(self)

    def exact(self) -> CVaR:
        """CVaR."""
        return replace(self, smoothing=0.0)

    def combine(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """F, and `q` with what smoothing adds."""
        value, shares = worst_sum(values, self.probabilities(values), 1.0 - self.level, self.smoothing)
        return value / (1.0 - self.level), shares / (1.0 - self.level)


@dataclass(frozen=True, kw_only=True)
class Percentile(Weighted):
    """A percentile of the scenarios' values: with `percent = 90`, what 90 % of the scenarios' probability do not exceed (value at risk).

    Its gradient jumps from scenario to scenario. Optimized is the mean between the percentiles `percent -/+ window_percent / 2` (range
    value at risk: Cont, Deguest and Scandolo, Quant Finance 10:593, 2010), which lies between the two, as a difference of two smooth sums
    of worst values as `CVaR` has; smoothing adds or takes at most `12.5 smoothing / window_percent` times the scenarios' mean. Not convex.

    Attributes
    ----------
    percent
        Between 0 and 100.
    window_percent
        Of probability; where it reaches past 0 or 100, what is inside counts. 0: the percentile itself.
    smoothing
        As of `CVaR`.
    """

    percent: float
    window_percent: float = 10.0
    smoothing: float = 0.05

    name: ClassVar[str] = "percentile"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.percent < 100:
            raise InputError(f"mode {self.name}: percent must lie between 0 and 100, got {self.percent:g}")
        if not 0 <= self.window_percent <= 100:
            raise InputError(f"mode {self.name}: window_percent must be 0 to 100, got {self.window_percent:g}")
        _check_smoothing(self)

    def exact(self) -> Percentile:
        """The percentile."""
        return replace(self, window_percent=0.0, smoothing=0.0)

    def combine(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of the window, and its derivative."""
        p = self.probabilities(values)
        if self.window_percent == 0:
            order = values.argsort()
            # 0.9 of ten equal scenarios is the ninth, whatever their probabilities' sum is rounded to
            at = order[int((p[order].cumsum(0) < self.percent / 100.0 - 1e-12).sum().clamp_max(len(values) - 1))]
            shares = torch.zeros_like(values)
            shares[at] = 1.0
            return values[at], shares
        low, high = (min(max((self.percent + side * self.window_percent / 2.0) / 100.0, 0.0), 1.0) for side in (-1, 1))
        (more, of_more), (less, of_less) = (worst_sum(values, p, 1.0 - level, self.smoothing) for level in (low, high))
        return (more - less) / (high - low), (of_more - of_less) / (high - low)


def _check_smoothing(mode: CVaR | Percentile) -> None:
    if not mode.smoothing >= 0:
        raise InputError(f"mode {mode.name}: smoothing must be zero (none) or more, got {mode.smoothing:g}")


def worst_sum(values: Tensor, p: Tensor, tail: float, smoothing: float) -> tuple[Tensor, Tensor]:
    """`tail` times the mean of the worst values with the probability `tail`, smooth, and its derivative by each value.

    With `m = e p'f` it is `sum_k p_k c_k f_k + m/2 (tail - sum_k p_k c_k^2)`, where `c_k = clip((f_k - t) / m, 0, 1)` and `t` such that
    `sum_k p_k c_k = tail`: the maximum over all such `c`, which is why `c` need not be derived.

    Parameters
    ----------
    values, p
        `(n_scenarios,)`, zero or more; `p` of sum 1.
    tail
        0 to 1.
    smoothing
        `e`.
    """
    mean = p.dot(values)
    width = smoothing * float(mean)
    if width > 0:
        edges = torch.cat((values, values - width)).sort().values
        taken = ((values - edges.unsqueeze(-1)) / width).clamp(0, 1) @ p
        # the share falls from 1 to 0 in straight pieces between the edges
        last = int((taken >= tail).sum().clamp(1, len(edges) - 1)) - 1
        fall = taken[last] - taken[last + 1]
        part = ((taken[last] - tail) / fall).clamp(0, 1) if bool(fall > 0) else torch.zeros_like(fall)
        level = edges[last] + part * (edges[last + 1] - edges[last])
        c = ((values - level) / width).clamp(0, 1)
    else:
        order = values.argsort(descending=True)
        own = p[order]
        counted = torch.minimum((tail - (own.cumsum(0) - own)).clamp_min(0), own)
        c = torch.zeros_like(values)
        c[order] = torch.where(own > 0, counted / own.clamp_min(torch.finfo(own.dtype).tiny), 0.0)
    left = 0.5 * smoothing * (tail - p.dot(c.square()))
    return p.dot(c * values) + left * mean, p * (c + left)
