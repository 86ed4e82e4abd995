"""The beam's spread in air, against the distance from the isocentre, by energy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from torchimpt.checks import InputError, finite

NARROWEST, WIDEST = 1.0, 300.0
"""Sigmas lie between these, mm: no scanned proton beam is thinner than 1 mm in air, and the widest halo has some 30 mm. A table beyond is
in other units, centimetres or micrometres."""


Values = TypeVar("Values", float, np.ndarray, torch.Tensor)


def drift(size: Values, divergence: Values, correlation: Values, distance: Values) -> Values:
    """Variance of a drifting beam, mm^2, `s^2 + 2 rho s s' d + s'^2 d^2` along one direction (the Courant-Snyder invariants of a drift).

    Parameters
    ----------
    size, divergence, correlation
        Standard deviations of position s, mm, and angle s', rad, and their correlation rho, on a plane.
    distance
        d downstream of that plane, mm; negative upstream of it. Shapes broadcast.
    """
    return size**2 + 2.0 * correlation * size * divergence * distance + (divergence * distance) ** 2


@dataclass(frozen=True, eq=False)
class Optics:
    """In-air standard deviation of a spot on planes `Zg`, linear in energy between the tabulated ones.

    Attributes
    ----------
    energy
        `(n_energies,)`, MeV, ascending.
    start, step
        Planes at `Zg = start + j step`, mm, towards the source; zero is the isocentre.
    sigma
        `(n_energies, n_planes)`, mm, along the beam's x. Beyond the outer planes their values hold.
    sigma_y
        The same along its y; None where spots are round.
    """

    energy: torch.Tensor
    start: float
    step: float
    sigma: torch.Tensor
    sigma_y: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if bool((self.energy.diff() <= 0).any()):
            raise InputError("a machine's energies must ascend, each once; check its tables for a repeated energy")
        for sigma in (self.sigma,) if self.sigma_y is None else (self.sigma, self.sigma_y):
            finite("a machine's sigmas in air", sigma)
            if sigma.shape != self.sigma.shape:
                raise InputError(f"a machine's sigmas in air must have one shape, got {tuple(self.sigma.shape)} and {tuple(sigma.shape)}")
            if float(sigma.min()) < NARROWEST or float(sigma.max()) > WIDEST:
                raise InputError(
                    f"a machine's sigmas in air must lie between {NARROWEST:g} and {WIDEST:g} mm, got {float(sigma.min()):.4g} to "
                    f"{float(sigma.max()):.4g}; check their unit"
                )

    def variance(self, energy: torch.Tensor) -> torch.Tensor:
        """In-air variance along x `(n_layers, n_planes)`, mm^2, at energies `(n_layers,)`, MeV; beyond the ends the end energies hold."""
        return self._variance(self.sigma, energy)

    def variance_y(self, energy: torch.Tensor) -> torch.Tensor | None:
        """The same along y; None where spots are round."""
        return None if self.sigma_y is None else self._variance(self.sigma_y, energy)

    def _variance(self, sigma: torch.Tensor, energy: torch.Tensor) -> torch.Tensor:
        if len(self.energy) == 1:
            return (sigma**2).expand(len(energy), -1).clone()
        index = (torch.searchsorted(self.energy, energy, right=True) - 1).clamp(0, len(self.energy) - 2)
        weight = ((energy - self.energy[index]) / (self.energy[index + 1] - self.energy[index])).clamp(0.0, 1.0)[:, None]
        return ((1.0 - weight) * sigma[index] + weight * sigma[index + 1]) ** 2
