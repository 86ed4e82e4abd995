"""Spots on their way: those of the placed spots that are kept, where they are, and what they weigh."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchimpt.spots import Spots


@dataclass(frozen=True)
class MovingSpots:
    """Spots that are kept, moved and weighted, as part of the spots that were placed.

    Attributes
    ----------
    index
        `(n,)` int64, ascending: which of the placed spots these are.
    home
        `(n, 2)`, where they were placed, mm; the weighted mean of these places for spots that were merged.
    position, weight
        `(n, 2)` mm and `(n,)` 10^6 protons.
    """

    index: Tensor
    home: Tensor
    position: Tensor
    weight: Tensor

    @classmethod
    def start(cls, spots: Spots) -> MovingSpots:
        """All spots, where they are."""
        position = spots.position.detach().clone()
        return cls(torch.arange(spots.n_spots, device=position.device), position.clone(), position, spots.weight.detach().clone())

    @property
    def n_spots(self) -> int:
        """Number of spots."""
        return self.index.numel()

    def keep(self, mask: Tensor) -> MovingSpots:
        """The spots of a mask `(n,)`."""
        return MovingSpots(self.index[mask], self.home[mask], self.position[mask], self.weight[mask])

    def spots(self, placed: Spots) -> Spots:
        """As `Spots`, from those that were placed."""
        mask = torch.zeros(placed.n_spots, dtype=torch.bool, device=self.index.device)
        mask[self.index] = True
        return placed.subset(mask).at(self.position, self.weight)

    def moved(self) -> Tensor:
        """Distance of each spot from home `(n,)`, mm."""
        return (self.position - self.home).norm(dim=1)

    def state_dict(self) -> dict[str, Tensor]:
        """The four tensors, copied."""
        return {name: getattr(self, name).clone() for name in ("index", "home", "position", "weight")}
