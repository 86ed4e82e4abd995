"""Search directions within bounds: which components are free, and the conjugate direction among them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchimpt.optim import beta as beta_rules
from torchimpt.sums import total


@dataclass(frozen=True)
class Bounds:
    """`lower <= x <= upper`, each a number or a tensor `(n,)`; infinite where there is none."""

    lower: float | Tensor
    upper: float | Tensor

    def clamp(self, x: Tensor) -> Tensor:
        """The point within the bounds that is nearest to `x`."""
        return torch.minimum(torch.maximum(x, self._like(self.lower, x)), self._like(self.upper, x))

    def free(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Components `(n,)` that can move downhill: all but those at a bound that the gradient pushes against."""
        return ~((x <= self.lower) & (gradient > 0) | (x >= self.upper) & (gradient < 0))

    def pointing_out(self, x: Tensor, direction: Tensor) -> Tensor:
        """Components `(n,)` at a bound that the direction would leave."""
        return (x <= self.lower) & (direction < 0) | (x >= self.upper) & (direction > 0)

    @staticmethod
    def _like(bound: float | Tensor, x: Tensor) -> Tensor:
        return torch.as_tensor(bound, dtype=x.dtype, device=x.device)


def dot(a: Tensor, b: Tensor) -> float:
    """`a' b`, accumulated in float64; the number of threads changes no bit."""
    return float(total(a.double() * b))


@dataclass(frozen=True)
class Direction:
    """A search direction.

    Attributes
    ----------
    vector
        `d (n,)`.
    slope
        `g' d`.
    beta
        The factor on the previous direction; 0 for steepest descent, None for methods that have none.
    """

    vector: Tensor
    slope: float
    beta: float | None


def steepest(gradient: Tensor, metric: Tensor | None) -> Tensor:
    """`-M g`."""
    return -gradient if metric is None else -metric * gradient


def conjugate(gradient: Tensor, gradient_old: Tensor, old: Tensor, rule: str, metric: Tensor | None) -> tuple[Tensor, float]:
    """`-M g + beta d_{k-1}` (Xu et al. 2020, Eq. 7, second line), and `beta`.

    Parameters
    ----------
    gradient, gradient_old
        `g_k` and `g_{k-1}`, `(n,)`.
    old
        `d_{k-1}`, `(n,)`.
    rule
        Name of the beta rule.
    metric
        Diagonal `(n,)` of `M`; the identity when None.
    """
    downhill, downhill_old = steepest(gradient, metric), steepest(gradient_old, metric)
    change = gradient - gradient_old
    products = beta_rules.Products(
        gg=-dot(gradient, downhill),
        gg_old=-dot(gradient_old, downhill_old),
        gy=-dot(change, downhill),
        dy=dot(old, change),
    )
    factor = beta_rules.rule(rule)(products)
    return torch.add(downhill, old, alpha=factor), factor
