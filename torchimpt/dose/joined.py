"""Doses of one set of spots at voxels that were added: operators and linear maps joined end to end, nothing computed again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from torchimpt.dose.linear import LinearDose
from torchimpt.dose.model import Partials
from torchimpt.dose.operator import DoseOperator
from torchimpt.dose.scenarios import ScenarioDoses
from torchimpt.scenarios import Scenario


@dataclass(frozen=True)
class JoinedOperator:
    """One scenario's operators at several sets of voxels as one, whose dose vector is theirs one after the other.

    Methods do what those of `DoseOperator` of the same name do.

    Attributes
    ----------
    parts
        Of the same scenario and spots; at least one.
    """

    parts: tuple[DoseOperator, ...]

    @property
    def scenario(self) -> Scenario:
        """What was tabulated."""
        return self.parts[0].scenario

    @property
    def device(self) -> torch.device:
        """Where the tables are."""
        return self.parts[0].device

    @property
    def n_voxels(self) -> int:
        """Size of the dose vector."""
        return sum(part.n_voxels for part in self.parts)

    @property
    def n_spots(self) -> int:
        """Size of the weight vector."""
        return self.parts[0].n_spots

    @property
    def n_bytes(self) -> int:
        """Memory of all tables."""
        return sum(part.n_bytes for part in self.parts)

    def dose(self, position: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The parts' doses one after the other."""
        return torch.cat([part.dose(position, weight) for part in self.parts])

    def dense_dose(self, position: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Likewise, with every pair stored."""
        return torch.cat([part.dense_dose(position, weight) for part in self.parts])

    def gradient(self, residual: torch.Tensor, position: torch.Tensor, weight: torch.Tensor, move: bool = True) -> Partials:
        """The sum of the parts' gradients."""
        pieces = residual.split([part.n_voxels for part in self.parts])
        found = [part.gradient(piece, position, weight, move) for part, piece in zip(self.parts, pieces, strict=True)]
        ways = [partials.position for partials in found if partials.position is not None]
        return Partials(torch.stack([partials.weight for partials in found]).sum(0), torch.stack(ways).sum(0) if ways else None)

    def subset(self, index: torch.Tensor) -> JoinedOperator:
        """Of the spots `index`."""
        return JoinedOperator(tuple(part.subset(index) for part in self.parts))

    def squared(self) -> JoinedOperator:
        """With `phi^2` in the place of `phi`."""
        return JoinedOperator(tuple(part.squared() for part in self.parts))

    def spot_sigma(self) -> torch.Tensor:
        """That of the first part: voxels that are added do not change how large a spot is taken to be."""
        return self.parts[0].spot_sigma()


class JoinedLinear:
    """Linear maps of the same weights at several sets of voxels as one, whose doses are theirs one after the other.

    Parameters
    ----------
    parts
        The maps.
    n_voxels
        Size of each one's dose vector.
    """

    def __init__(self, parts: Sequence[LinearDose], n_voxels: Sequence[int]) -> None:
        self.parts, self._sizes = tuple(parts), list(n_voxels)
        self.n_bytes = sum(part.n_bytes for part in parts)
        self.n_nonzeros = sum(part.n_nonzeros for part in parts)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """`D^k = A^k w` for every scenario."""
        return torch.cat([part.forward(weight) for part in self.parts], dim=1)

    def adjoint(self, residual: torch.Tensor) -> torch.Tensor:
        """`sum_k A^k' r^k`."""
        pieces = residual.split(self._sizes, dim=1)
        return torch.stack([part.adjoint(piece) for part, piece in zip(self.parts, pieces, strict=True)]).sum(0)

    def columns(self, spots: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        """`A^k[:, spots] change` for every scenario."""
        return torch.cat([part.columns(spots, change) for part in self.parts], dim=1)

    def release(self) -> None:
        """Give the memory of all back."""
        for part in self.parts:
            part.release()


class SomeSpots:
    """A linear map of the spots `index` `(n_kept,)` among `n_spots`, by that of all of them."""

    def __init__(self, whole: LinearDose, index: torch.Tensor, n_spots: int) -> None:
        self.whole, self._index, self._n_spots = whole, index, n_spots
        self.n_bytes, self.n_nonzeros = whole.n_bytes, whole.n_nonzeros

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """`D^k = A^k w` for every scenario."""
        return self.whole.forward(weight.new_zeros(self._n_spots).index_copy_(0, self._index, weight))

    def adjoint(self, residual: torch.Tensor) -> torch.Tensor:
        """`sum_k A^k' r^k`."""
        return self.whole.adjoint(residual)[self._index]

    def columns(self, spots: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        """`A^k[:, spots] change` for every scenario."""
        return self.whole.columns(self._index[spots], change)

    def release(self) -> None:
        """Give the whole map's memory back."""
        self.whole.release()


def joined(parts: Sequence[ScenarioDoses]) -> ScenarioDoses:
    """Doses of the same spots and scenarios at several sets of voxels as one, with the first one's way to the gradient."""
    if len(parts) == 1:
        return parts[0]
    operators: list[Any] = [JoinedOperator(tuple(group)) for group in zip(*parts, strict=True)]  # each does what an operator does
    return parts[0].like(operators)
