"""The beam's spread in air, against the distance from the isocentre, by energy."""

from __future__ import annotations

from dataclasses import dataclass

import torch


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

    def variance(self, energy: torch.Tensor) -> torch.Tensor:
        """In-air variance `(n_layers, n_planes)`, mm^2, at energies `(n_layers,)`, MeV; the end energies hold beyond the ends."""
        if len(self.energy) == 1:
            return (self.sigma**2).expand(len(energy), -1).clone()
        index = (torch.searchsorted(self.energy, energy, right=True) - 1).clamp(0, len(self.energy) - 2)
        weight = ((energy - self.energy[index]) / (self.energy[index + 1] - self.energy[index])).clamp(0.0, 1.0)[:, None]
        return ((1.0 - weight) * self.sigma[index] + weight * self.sigma[index + 1]) ** 2
