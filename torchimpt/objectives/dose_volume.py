"""Dose-volume goals: a share of the ROI may violate the level."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from torchimpt.checks import InputError
from torchimpt.objectives.selection import excused_ray, excused_value_and_grad
from torchimpt.objectives.term import Term, plus
from torchimpt.sums import total


def _double(volume: Tensor | None) -> Tensor | None:
    return None if volume is None else volume.double()


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
        excess = plus(self.side * (dose - self.dose), shift).clamp_min(0)
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
        excess = plus(self.side * (dose - self.dose), shift).clamp_min(0)
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
