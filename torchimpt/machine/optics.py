"""The beam's spread in air, against the distance from the isocentre, by energy."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from torchimpt.checks import InputError, finite

NARROWEST, WIDEST = 0.1, 300.0
"""Sigmas lie between these, mm: no scanned proton beam is thinner than 1 mm in air, and the widest halo has some 30 mm. A table beyond is
in other units."""


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
        `(n_energies, n_planes)`, mm. Beyond the outer planes their values hold.
    """

    energy: torch.Tensor
    start: float
    step: float
    sigma: torch.Tensor

    def __post_init__(self) -> None:
        finite("a machine's sigmas in air", self.sigma)
        if bool((self.energy.diff() <= 0).any()):
            raise InputError("a machine's energies must ascend, each once; check its tables for a repeated energy")
        if float(self.sigma.min()) < NARROWEST or float(self.sigma.max()) > WIDEST:
            raise InputError(
                f"a machine's sigmas in air must lie between {NARROWEST:g} and {WIDEST:g} mm, got {float(self.sigma.min()):.4g} to "
                f"{float(self.sigma.max()):.4g}; check their unit"
            )

    def variance(self, energy: torch.Tensor) -> torch.Tensor:
        """In-air variance `(n_layers, n_planes)`, mm^2, at energies `(n_layers,)`, MeV; the end energies hold beyond the ends."""
        if len(self.energy) == 1:
            return (self.sigma**2).expand(len(energy), -1).clone()
        index = (torch.searchsorted(self.energy, energy, right=True) - 1).clamp(0, len(self.energy) - 2)
        weight = ((energy - self.energy[index]) / (self.energy[index + 1] - self.energy[index])).clamp(0.0, 1.0)[:, None]
        return ((1.0 - weight) * self.sigma[index] + weight * self.sigma[index + 1]) ** 2
