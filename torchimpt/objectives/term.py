"""What a term of the planning objective is: one goal for one ROI, with value and gradient side by side.

A term sees the doses of its own ROI only, `(..., n_voxels)`: leading dimensions are scenarios. Where the ROI is seen at points of different
volume, each counts as its volume `v_i`, in voxels: sums are `sum_i v_i (...)`, means and shares those of the volume. Sums are not divided
by the voxel count here; `Objective` does that. They accumulate in float64 whatever the dose's dtype, because a plan's last per cent is lost
in the rounding of float32 sums.
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
from torchimpt.sums import total


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


def times(values: Tensor, volume: Tensor | None) -> Tensor:
    """Values times their volumes, where these are not one each."""
    return values if volume is None else values * volume


def plus(values: Tensor, shift: Tensor | None) -> Tensor:
    """Values and their shifts, where there are any."""
    return values if shift is None else values + shift
