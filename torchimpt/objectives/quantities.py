"""What terms may ask about besides a constant multiple of the dose: functions of physical dose D and LETd x dose LD, voxel by voxel.

    letd_dose   LD, Gy keV/um
    letd        LD / max(D, D0), keV/um: LETd where there is dose; below D0 it falls to zero with the dose, so that nothing is divided by
                next to nothing, and a voxel that gets no dose has no LETd
    a model     RBE-weighted dose, Gy(RBE), of a key of `RBE_MODELS`

Each has its value and, beside it, the hand-derived gradients by D and by LD; doses are `(..., n_voxels)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from torchimpt.checks import InputError
from torchimpt.physics.rbe import RBE_MODELS, RBEModel


class LETQuantity(Protocol):
    """A function of dose and LETd x dose."""

    unit: ClassVar[str]

    def value(self, dose: Tensor, letd_dose: Tensor) -> Tensor:
        """In the doses' shape and dtype; differentiable."""
        ...

    def pull(self, dose: Tensor, letd_dose: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """`dF/dD` and `dF/dLD` for `residual = dF/dQ`."""
        ...

    def typical(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Typical sizes of `dQ/dD` and `dQ/dLD` `(n_voxels,)`, for the scale of variables only."""
        ...


@dataclass(frozen=True)
class LETdDose:
    """LETd x dose."""

    unit: ClassVar[str] = "Gy keV/µm"

    def value(self, dose: Tensor, letd_dose: Tensor) -> Tensor:
        """`LD`."""
        return letd_dose

    def pull(self, dose: Tensor, letd_dose: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Nothing, and `r`."""
        return torch.zeros_like(residual), residual

    def typical(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """0 and 1."""
        return torch.zeros_like(like), torch.ones_like(like)


@dataclass(frozen=True)
class LETd:
    """Dose-averaged LET.

    Attributes
    ----------
    least
        `D0`, Gy of the course, physical dose, positive.
    """

    least: float

    unit: ClassVar[str] = "keV/µm"

    def __post_init__(self) -> None:
        if not self.least > 0:
            raise InputError(f"the dose below which LETd fades must be positive, got {self.least:g} Gy")

    def value(self, dose: Tensor, letd_dose: Tensor) -> Tensor:
        """`LD / max(D, D0)`."""
        return letd_dose / dose.clamp_min(self.least)

    def pull(self, dose: Tensor, letd_dose: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """`-r LD / D^2` where `D > D0`, else 0; `r / max(D, D0)`."""
        by_letd = residual / dose.clamp_min(self.least)
        by_dose = torch.where(dose > self.least, -by_letd * letd_dose / dose.clamp_min(self.least), 0.0)
        return by_dose, by_letd

    def typical(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Those of a voxel with 10 D0, whose LETd of 2 keV/um a spot of another LETd changes."""
        by_letd = torch.full_like(like, 0.1 / self.least)
        return 2.0 * by_letd, by_letd


@dataclass(frozen=True)
class VariableRBE:
    """RBE-weighted dose of a model.

    Attributes
    ----------
    model
        An entry of `RBE_MODELS`.
    alpha_beta
        Gy, `(n_voxels,)` or one number.
    fractions
        Of the course.
    """

    model: RBEModel
    alpha_beta: Tensor | float
    fractions: int

    unit: ClassVar[str] = "Gy"

    def _alpha_beta(self, like: Tensor) -> Tensor:
        return torch.as_tensor(self.alpha_beta).to(like)

    def value(self, dose: Tensor, letd_dose: Tensor) -> Tensor:
        """`RBEModel.weighted`."""
        return self.model.weighted(dose, letd_dose, self._alpha_beta(dose), self.fractions)

    def pull(self, dose: Tensor, letd_dose: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """`r` times `RBEModel.partials`."""
        by_dose, by_letd = self.model.partials(dose, letd_dose, self._alpha_beta(dose), self.fractions)
        return residual * by_dose, residual * by_letd

    def typical(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """1.1, and what LETd adds."""
        return torch.full_like(like, 1.1), torch.full_like(like, 0.02)


UNITS: dict[str, str] = {"dose": "Gy", "letd": LETd.unit, "letd_dose": LETdDose.unit, **dict.fromkeys(RBE_MODELS, VariableRBE.unit)}
"""The quantities that terms and goals may name, with their units: `"dose"` is the dose as the case weights it, the name of an RBE model the
dose weighted by that model whatever the case's."""
