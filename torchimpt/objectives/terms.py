"""The goals of a planning objective, one small class each; those of dose and volume are in `dose_volume`.

Every term is `weight * sum_v H(d_v - p) (d_v - p)^2` over the voxels of one ROI (Xu et al. 2020, Eq. 1), where `p` is the dose level, Gy,
and `H` selects the voxels that violate it; `term` says what all have in common. A further term is a class and its place in `KINDS`; its
parameters are keys of the case file's `[[objective]]` by their names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from torchimpt.checks import InputError
from torchimpt.objectives.dose_volume import MaxDVH, MinDVH
from torchimpt.objectives.term import Term, plus, times
from torchimpt.sums import mean, total


def _count(dose: Tensor, volume: Tensor | None) -> float:
    """Voxels of the ROI."""
    return dose.shape[-1] if volume is None else float(total(volume))


def _mean(values: Tensor, volume: Tensor | None) -> Tensor:
    """Mean over the volume `(...)`, float64."""
    return mean(values) if volume is None else total(values * volume) / total(volume)


class _Hinge(Term):
    """`weight * sum_v sum_sign max(0, sign (d_v - p))^2`; once differentiable where `d_v = p`."""

    def excess(self, dose: Tensor, volume: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        return plus(self._side * (dose - self.dose), shift).clamp_min(0)

    def violation(self, dose: Tensor, volume: Tensor | None = None) -> Tensor:
        return (self._side * (dose - self.dose)).amax(-1)

    @property
    def _side(self) -> float:
        (sign,) = self.signs  # two are two constraints
        return sign

    def value_and_grad(self, dose: Tensor, volume: Tensor | None = None, shift: Tensor | None = None) -> tuple[Tensor, Tensor]:
        value, grad = dose.new_zeros((), dtype=torch.float64), torch.zeros_like(dose)
        for sign in self.signs:
            excess = plus(sign * (dose - self.dose), shift).clamp_min(0)
            pull = times(excess, volume)
            value = value + self.weight * total(pull * excess)
            grad.add_(pull, alpha=2 * self.weight * sign)
        return value, grad


@dataclass(frozen=True)
class MinDose(_Hinge):
    """No voxel below `dose`: `weight * sum_v max(0, p - d_v)^2`.

    >>> value, gradient = MinDose("PTV", 70.0, weight=10.0).value_and_grad(torch.tensor([68.0, 71.0]))
    >>> float(value), gradient.tolist()
    (40.0, [-40.0, 0.0])
    """

    kind: ClassVar[str] = "min_dose"
    prescribes: ClassVar[bool] = True
    signs: ClassVar[tuple[float, ...]] = (-1.0,)


@dataclass(frozen=True)
class MaxDose(_Hinge):
    """No voxel above `dose`: `weight * sum_v max(0, d_v - p)^2`."""

    kind: ClassVar[str] = "max_dose"
    signs: ClassVar[tuple[float, ...]] = (1.0,)


@dataclass(frozen=True)
class UniformDose(_Hinge):
    """Every voxel at `dose`: `weight * sum_v (d_v - p)^2`."""

    kind: ClassVar[str] = "uniform"
    prescribes: ClassVar[bool] = True
    signs: ClassVar[tuple[float, ...]] = (-1.0, 1.0)


class _Number(Term):
    """`weight * n max(0, m(d) - p)^2` of one number `m` of the ROI's doses, so that dividing by the voxel count `n` leaves the square."""

    side: ClassVar[float | None] = 1.0

    def number(self, dose: Tensor, volume: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`m` `(...)`, float64, and `n dm/dd`, in a shape that broadcasts to the doses'."""
        raise NotImplementedError(f"{type(self).__name__} must define number")

    def excess(self, dose: Tensor, volume: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        return plus((self.number(dose, volume)[0] - self.dose).unsqueeze(-1), shift).clamp_min(0)

    def violation(self, dose: Tensor, volume: Tensor | None = None) -> Tensor:
        return self.number(dose, volume)[0] - self.dose

    def value_and_grad(self, dose: Tensor, volume: Tensor | None = None, shift: Tensor | None = None) -> tuple[Tensor, Tensor]:
        number, slope = self.number(dose, volume)
        excess = plus((number - self.dose).unsqueeze(-1), shift).clamp_min(0)
        value = self.weight * _count(dose, volume) * excess.squeeze(-1).square()
        return value, (2 * self.weight * excess * slope).to(dose.dtype).expand_as(dose).clone()


@dataclass(frozen=True)
class MeanDose(_Number):
    """Mean dose at most `dose`: `weight * n max(0, mean(d) - p)^2`."""

    kind: ClassVar[str] = "mean_dose"

    def along(
        self, dose: Tensor, rate: Tensor, volume: Tensor | None = None, shift: Tensor | None = None
    ) -> Callable[[float], tuple[Tensor, Tensor]]:
        start, gain, weight = _mean(dose, volume), _mean(rate, volume), self.weight * _count(dose, volume)
        start = plus(start, None if shift is None else shift.squeeze(-1))

        def restricted(length: float) -> tuple[Tensor, Tensor]:
            excess = (start + length * gain - self.dose).clamp_min(0)
            return weight * excess.square(), 2 * weight * excess * gain

        return restricted

    def number(self, dose: Tensor, volume: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The mean, and ones or the volumes."""
        return _mean(dose, volume), dose.new_ones(()) if volume is None else volume


def _power(log: Tensor, exponent: float) -> Tensor:
    """`x^exponent` of `log x`, `0^0 = 1`: torch's power rounds otherwise at the end of a thread's share."""
    return log.mul(exponent).exp_() if exponent else torch.ones_like(log)


@dataclass(frozen=True)
class GEUD(_Number):
    """Generalized equivalent uniform dose at most `dose`: `weight * n max(0, gEUD - p)^2`, `gEUD = (mean d_v^a)^(1/a)`, `a >= 1`.

    Source: Niemierko, Med Phys 26:1100, 1999. `a = 1` is the mean, a large `a` the maximum. For the cold spots of a target (negative
    `a`, singular at zero dose) use `MinDose` or `MinDVH`. Doses below zero count as zero.
    """

    a: float = field(kw_only=True)

    kind: ClassVar[str] = "gEUD"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.a <= 100:
            raise InputError(
                f"objective {self.kind} of '{self.roi}': a must be 1 (mean) to 100 (maximum), got {self.a}; "
                "for under-dose use min_dose or min_dvh"
            )

    def number(self, dose: Tensor, volume: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The gEUD, and `n` times its derivative."""
        n, above = _count(dose, volume), dose.double().clamp_min(0)
        # Powers of doses relative to the hottest voxel: d^a alone overflows from a = 20 on in float32.
        top = above.amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        log_ratio = (above / top).log_()
        share = _mean(_power(log_ratio, self.a), volume).unsqueeze(-1)
        geud = top * share.pow(1 / self.a)
        least = 1.0 if volume is None else float(volume.min())  # the hottest voxel's own share, where all doses are zero
        slope = _power(log_ratio, self.a - 1) * share.clamp_min(least / n).pow(1 / self.a - 1)
        return geud.squeeze(-1), times(slope, volume)


KINDS: dict[str, type[Term]] = {term.kind: term for term in (MinDose, MaxDose, MinDVH, MaxDVH, MeanDose, UniformDose, GEUD)}
"""Every term by its name in a case file."""
