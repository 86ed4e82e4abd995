"""Terms of the planning objective: one small class a goal, value and gradient side by side.

Every term is `weight * sum_v H(d_v - p) (d_v - p)^2` over the voxels of one ROI (Xu et al. 2020, Eq. 1), where `p` is the dose level, Gy,
and `H` selects the voxels that violate it. A term sees the doses of its own ROI only, `(..., n_voxels)`: leading dimensions are scenarios.
Where the ROI is seen at points of different volume, each counts as its volume `v_i`, in voxels: sums are `sum_i v_i (...)`, means and
shares those of the volume.
Sums are not divided by the voxel count here; `Objective` does that. They accumulate in float64 whatever the dose's dtype, because a
plan's last per cent is lost in the rounding of float32 sums. A further term is a class here and its place in `KINDS`; its parameters are
keys of the case file's `[[objective]]` by their names.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchimpt.checks import InputError
from torchimpt.objectives.mode import RobustMode
from torchimpt.objectives.selection import excused_ray, excused_value_and_grad
from torchimpt.sums import mean, total


class _HandDerived(torch.autograd.Function):
    """Lend a `value_and_grad` function to autograd (first order)."""

    @staticmethod
    def forward(ctx: Any, dose: Tensor, value_and_grad: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        value, grad = value_and_grad(dose)
        ctx.save_for_backward(grad)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None]:
        (grad,) = ctx.saved_tensors
        return outer.to(grad.dtype).reshape(outer.shape + (1,) * (grad.dim() - outer.dim())) * grad, None


def as_loss(value_and_grad: Callable[[Tensor], tuple[Tensor, Tensor]], dose: Tensor) -> Tensor:
    """The value at `dose` as a torch loss whose backward is the hand-derived gradient."""
    return _HandDerived.apply(dose, value_and_grad)


@dataclass(frozen=True)
class Term:
    """One goal for one ROI.

    Attributes
    ----------
    roi
        Name of the ROI.
    dose
        Dose level `p`, Gy (total course, RBE-weighted).
    weight
        Importance `rho` of Xu et al. 2020, Eq. 1.
    mode
        What becomes of this term's values in the scenarios; None for the plan's mode.
    quantity
        What it asks about: `"dose"`, or another one's name, whose unit `dose` then is in (`torchimpt.objectives.quantities`).
    constraint
        Whether it has to hold, in every scenario or, with the mode `Nominal`, in the nominal one (`torchimpt.objectives.constraints`). The
        weight then is the least penalty to start with.
    """

    roi: str
    dose: float
    weight: float = 1.0
    mode: RobustMode | None = field(default=None, kw_only=True)
    quantity: str = field(default="dose", kw_only=True)
    constraint: bool = field(default=False, kw_only=True)

    kind: ClassVar[str] = ""
    signs: ClassVar[tuple[float, ...]] = ()
    """Of a sum of squared hinges `max(0, sign (d_v - p))^2`: its signs. Empty for every other form."""
    side: ClassVar[float | None] = None
    """Of every form but hinges: 1 where less dose is better, of over-dose; -1 where more is, of under-dose. None: not told."""
    prescribes: ClassVar[bool] = False
    """Whether `dose` is what a target is to get."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.dose) and self.dose >= 0):
            raise InputError(f"objective {self.kind} of '{self.roi}': dose must be zero or more Gy, got {self.dose}")
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise InputError(f"objective {self.kind} of '{self.roi}': weight must be zero or more, got {self.weight}")
        if self.constraint and not self.weight > 0:
            raise InputError(
                f"objective {self.kind} of '{self.roi}': the weight of a constraint is the penalty that it starts with, and must be "
                "positive; leave it out, or take the objective out"
            )
        if self.constraint and self.mode is not None and not self.mode.nominal_only:
            raise InputError(
                f"objective {self.kind} of '{self.roi}': a constraint holds in every scenario, and has no mode '{self.mode.name}'; leave "
                "mode out, or give 'nominal' for the nominal scenario alone"
            )

    def excess(self, dose: Tensor, volume: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """What the term squares, zero or more, Gy: of each voxel `(..., n_voxels)`, or of one number `(..., 1)`.

        Parameters
        ----------
        dose, volume
            As in `value_and_grad`.
        shift
            Added to the violations before they are cut at zero, Gy, in the result's shape; None: nothing.
        """
        raise InputError(
            f"objective {self.kind} of '{self.roi}' cannot be a constraint: its class does not say `excess` and `violation`; take "
            "constraint out"
        )

    def violation(self, dose: Tensor, volume: Tensor | None = None) -> Tensor:
        """How far the dose is beyond the level where it must not be, at most, Gy `(...)`; negative by how far it is inside."""
        raise NotImplementedError(f"{type(self).__name__} must define violation")

    def value_and_grad(self, dose: Tensor, volume: Tensor | None = None, shift: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Value and its gradient with respect to the ROI's doses.

        Parameters
        ----------
        dose
            Gy, `(..., n_voxels)`.
        volume
            `(n_voxels,)`, in voxels, positive, in the dose's dtype: what each dose stands for; None: one voxel each.
        shift
            As in `excess`: of a constraint; None: nothing.

        Returns
        -------
        tuple
            Value `(...)`, float64, Gy^2; gradient `(..., n_voxels)` in the dose's dtype, Gy.
        """
        raise NotImplementedError(f"{type(self).__name__} must define value_and_grad")

    def along(
        self, dose: Tensor, rate: Tensor, volume: Tensor | None = None, shift: Tensor | None = None
    ) -> Callable[[float], tuple[Tensor, Tensor]]:
        """Value and slope `(n_scenarios,)` on the ray `dose + l rate`, `(n_scenarios, n_voxels)` each, as a function of `l >= 0`."""
        start, gain = dose.double(), rate.double()
        given = {name: more.double() for name, more in (("volume", volume), ("shift", shift)) if more is not None}

        def restricted(length: float) -> tuple[Tensor, Tensor]:
            value, grad = self.value_and_grad(torch.add(start, gain, alpha=length), **given)
            return value, total(grad * gain)

        return restricted

    def __call__(self, dose: Tensor) -> Tensor:
        """The value `(...)` as a torch loss of the ROI's doses `(..., n_voxels)`."""
        return as_loss(self.value_and_grad, dose)


def _times(values: Tensor, volume: Tensor | None) -> Tensor:
    return values if volume is None else values * volume


def _double(volume: Tensor | None) -> Tensor | None:
    return None if volume is None else volume.double()


def _count(dose: Tensor, volume: Tensor | None) -> float:
    """Voxels of the ROI."""
    return dose.shape[-1] if volume is None else float(total(volume))


def _mean(values: Tensor, volume: Tensor | None) -> Tensor:
    """Mean over the volume `(...)`, float64."""
    return mean(values) if volume is None else total(values * volume) / total(volume)


def _plus(values: Tensor, shift: Tensor | None) -> Tensor:
    return values if shift is None else values + shift


class _Hinge(Term):
    """`weight * sum_v sum_sign max(0, sign (d_v - p))^2`; once differentiable where `d_v = p`."""

    def excess(self, dose: Tensor, volume: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        return _plus(self._side * (dose - self.dose), shift).clamp_min(0)

    def violation(self, dose: Tensor, volume: Tensor | None = None) -> Tensor:
        return (self._side * (dose - self.dose)).amax(-1)

    @property
    def _side(self) -> float:
        (sign,) = self.signs  # two are two constraints
        return sign

    def value_and_grad(self, dose: Tensor, volume: Tensor | None = None, shift: Tensor | None = None) -> tuple[Tensor, Tensor]:
        value, grad = dose.new_zeros((), dtype=torch.float64), torch.zeros_like(dose)
        for sign in self.signs:
            excess = _plus(sign * (dose - self.dose), shift).clamp_min(0)
            pull = _times(excess, volume)
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


_NOTHING = 1e-9
"""Of a voxel: what rounding of the sum of volumes may leave of one that is excused."""


@dataclass(frozen=True)
class _DoseVolume(Term):
    """`weight * sum` of the squared violations, without the largest ones, which may be `excused_percent` of the volume.

    The violators are sorted and the mildest are kept: those that a small change of dose would satisfy (Xu et al. 2020, section 2.1;
    Spirou and Chui, Med Phys 25:321, 1998). As a minimum over what is excused it is continuous and not convex; where two voxels tie at the
    border, the gradient is that of one of the choices. Of voxels a whole number is excused; of points with their volumes the share
    itself, so that the one at the border counts with a part of its volume.
    """

    volume_percent: float = field(kw_only=True)

    side: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.volume_percent <= 100:
            raise InputError(f"objective {self.kind} of '{self.roi}': volume_percent must be 0 to 100, got {self.volume_percent}")

    @property
    def excused_percent(self) -> float:
        """How much of the volume may violate the level."""
        raise NotImplementedError(f"{type(self).__name__} must define excused_percent")

    def excused(self, n_voxels: float) -> int:
        """How many of `n_voxels` may violate the level, whole ones."""
        # 0.07 * 100 is 7.000000000000001 and 0.29 * 100 is 28.999999999999996: neither may gain or lose a voxel.
        return math.floor(self.excused_percent / 100 * n_voxels + 1e-9)

    def excess(self, dose: Tensor, volume: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """Of each voxel; zero where it is excused: those with the largest violations, shifted ones where there is a shift."""
        excess = _plus(self.side * (dose - self.dose), shift).clamp_min(0)
        return excess.masked_fill_(self._counted(excess, volume) <= _NOTHING, 0.0)

    def _counted(self, excess: Tensor, volume: Tensor | None) -> Tensor:
        """The volume of each violation that is not excused, `(..., n_voxels)`."""
        if volume is None:
            excused = excess.topk(self.excused(excess.shape[-1]), dim=-1, sorted=False).indices
            return torch.ones_like(excess).scatter_(-1, excused, 0.0)
        order = excess.argsort(dim=-1, descending=True, stable=True)
        own = volume.double()[order]
        left = torch.minimum((own.cumsum(-1) - self._allowed(excess, volume)).clamp_min(0), own)
        return torch.zeros_like(excess).scatter_(-1, order, left.to(excess))

    def violation(self, dose: Tensor, volume: Tensor | None = None) -> Tensor:
        """Of the voxel next to those that are excused; minus infinity where all are."""
        beyond = self.side * (dose - self.dose)
        if volume is None:
            count = self.excused(dose.shape[-1]) + 1
            return beyond.topk(count, dim=-1).values[..., -1] if count <= dose.shape[-1] else beyond.new_full(dose.shape[:-1], -math.inf)
        return beyond.masked_fill(self._counted(beyond, volume) <= _NOTHING, -math.inf).amax(-1)

    def _allowed(self, dose: Tensor, volume: Tensor | None) -> float:
        """The volume that may be excused."""
        return self.excused(dose.shape[-1]) if volume is None else self.excused_percent / 100 * float(total(volume))

    def _shifted(self, dose: Tensor, shift: Tensor | None) -> Tensor:
        """Doses that violate the level by the shift more."""
        return dose if shift is None else dose + self.side * shift

    def along(
        self, dose: Tensor, rate: Tensor, volume: Tensor | None = None, shift: Tensor | None = None
    ) -> Callable[[float], tuple[Tensor, Tensor]]:
        if dose.device.type != "cpu":
            return super().along(dose, rate, volume, shift)
        ray = excused_ray(self._shifted(dose, shift), rate, self.side, self.dose, _double(volume), self._allowed(dose, volume))

        def restricted(length: float) -> tuple[Tensor, Tensor]:
            value, slope = ray(length)
            return self.weight * value, self.weight * slope

        return restricted

    def value_and_grad(self, dose: Tensor, volume: Tensor | None = None, shift: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if dose.device.type == "cpu":
            seen = self._shifted(dose, shift)
            value, grad = excused_value_and_grad(seen, self.side, self.dose, _double(volume), self._allowed(dose, volume))
            return self.weight * value, grad.mul_(self.weight)
        excess = _plus(self.side * (dose - self.dose), shift).clamp_min(0)
        pull = self._counted(excess, volume) * excess
        return self.weight * total(pull * excess), 2 * self.weight * self.side * pull


@dataclass(frozen=True)
class MaxDVH(_DoseVolume):
    """`D_q < p`: at most `volume_percent` of the ROI above `dose`."""

    kind: ClassVar[str] = "max_dvh"
    side: ClassVar[float] = 1.0

    @property
    def excused_percent(self) -> float:
        return self.volume_percent


@dataclass(frozen=True)
class MinDVH(_DoseVolume):
    """`D_q > p`: at least `volume_percent` of the ROI above `dose`."""

    kind: ClassVar[str] = "min_dvh"
    prescribes: ClassVar[bool] = True
    side: ClassVar[float] = -1.0

    @property
    def excused_percent(self) -> float:
        return 100 - self.volume_percent


class _Number(Term):
    """`weight * n max(0, m(d) - p)^2` of one number `m` of the ROI's doses, so that dividing by the voxel count `n` leaves the square."""

    side: ClassVar[float | None] = 1.0

    def number(self, dose: Tensor, volume: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`m` `(...)`, float64, and `n dm/dd`, in a shape that broadcasts to the doses'."""
        raise NotImplementedError(f"{type(self).__name__} must define number")

    def excess(self, dose: Tensor, volume: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        return _plus((self.number(dose, volume)[0] - self.dose).unsqueeze(-1), shift).clamp_min(0)

    def violation(self, dose: Tensor, volume: Tensor | None = None) -> Tensor:
        return self.number(dose, volume)[0] - self.dose

    def value_and_grad(self, dose: Tensor, volume: Tensor | None = None, shift: Tensor | None = None) -> tuple[Tensor, Tensor]:
        number, slope = self.number(dose, volume)
        excess = _plus((number - self.dose).unsqueeze(-1), shift).clamp_min(0)
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
        start = _plus(start, None if shift is None else shift.squeeze(-1))

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
        return geud.squeeze(-1), _times(slope, volume)


KINDS: dict[str, type[Term]] = {term.kind: term for term in (MinDose, MaxDose, MinDVH, MaxDVH, MeanDose, UniformDose, GEUD)}
"""Every term by its name in a case file."""
