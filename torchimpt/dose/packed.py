"""Influence matrices of 16-bit entries in groups: some 2.7 bytes an entry, one copy for the products both ways.

Each beam has its voxels in an order in which those that a spot reaches come in runs (`Entries.order`). So no entry needs a column, only
each run a start and a length; runs begin anywhere, and are `LANES` entries long or a multiple, with zeros in small gaps and at the end.
The order is cut into blocks of `BLOCK` voxels, a block's runs are stored spot by spot, and both products read all of it from front to end:

    A w      each block adds up  w_s phi(., s)  in its own piece of the dose, one thread's own
    A^T r    each block's piece of r, times its groups: a sum for each spot that reaches it, and then the sum of those

An entry is rounded to 12 bits of mantissa, relative to itself by `ROUNDING` at most, and is zero where it is below `SMALLEST` of its
spot's largest. Entries are positive, and so are weights: no dose is wrong by more than

    |D'_v - D_v| <= ROUNDING D_v + SMALLEST sum_s w_s max_v phi(v, s),

and both products read the same entries, so that the gradient is exactly that of the rounded dose. Single precision, on the CPU.
`benchmarks/memory.py` prints what it comes to, and against what else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from torchimpt.dose.packed_loops import add_blocks, add_few, dot_blocks, gather_spots, gather_voxels, take
from torchimpt.loops import use_torch_threads

BLOCK = 1024
"""Voxels of a block: its piece of the dose stays in the first-level cache."""

ROUNDING = 2.0**-12
"""Largest relative error of an entry: half a step of its mantissa."""

SMALLEST = 2.0**-29
"""Share of a spot's largest entry below which its entries are stored as zero."""

ENTRY_BYTES = 3.0
"""Bytes of an entry, at most about: two of the entry, a quarter for where its group begins, and zeros in groups."""

_LIFT = np.float32(2.0**64)
"""Residuals are multiplied by it, lest their products with codes, 2^-126 to 2^-95, fall below the smallest float32."""


@dataclass(frozen=True)
class PackedMatrix:
    """A scenario's influence matrix in 16-bit groups, a linear map.

    Attributes
    ----------
    shape
        `(n_voxels, n_spots)`.
    n_nonzeros
        Entries of `A` before they were packed.
    voxel
        What each place of the beams' orders, one beam after the other, is in the dose vector.
    place
        `(n_beams, n_voxels)`: where each voxel is in that order; -1 for none.
    block, segment, spot, group, starts, codes
        As in `torchimpt.dose.packed_loops.add_blocks`.
    scale
        `(n_spots,)`: what a code stands for, over the float32 that it decodes to.
    turns
        The blocks in an order of which threads take contiguous shares.
    """

    shape: tuple[int, int]
    n_nonzeros: int
    voxel: np.ndarray
    place: np.ndarray
    block: np.ndarray
    segment: np.ndarray
    spot: np.ndarray
    group: np.ndarray
    starts: np.ndarray
    codes: np.ndarray
    scale: np.ndarray
    turns: np.ndarray

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return torch.device("cpu")

    @property
    def n_bytes(self) -> int:
        """Memory."""
        return sum(part.nbytes for part in vars(self).values() if isinstance(part, np.ndarray))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """`A w`: dose `(n_voxels,)`, Gy; spots of weight zero cost next to nothing."""
        use_torch_threads()
        ordered, dose = np.empty(len(self.voxel), np.float32), np.empty(self.shape[0], np.float32)
        factor = weight.detach().numpy() * self.scale
        add_blocks(ordered, self.turns, self.block, self.segment, self.spot, self.group, self.starts, self.codes, factor)
        gather_voxels(dose, self.place, ordered)
        return torch.from_numpy(dose)

    def adjoint(self, residual: torch.Tensor) -> torch.Tensor:
        """`A^T r`: gradient `(n_spots,)` for `r = dF/dD`."""
        use_torch_threads()
        ordered, found = np.empty(len(self.voxel), np.float32), np.empty(len(self.spot), np.float32)
        take(ordered, self.voxel, residual.detach().contiguous().numpy(), _LIFT)
        dot_blocks(found, self.turns, self.block, self.segment, self.group, self.starts, self.codes, ordered)
        gradient = np.zeros(self.shape[1], np.float32)
        gather_spots(gradient, self.spot, found, self.scale / _LIFT)
        return torch.from_numpy(gradient)

    def columns(self, spots: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        """`A[:, spots] change` `(n_voxels,)`."""
        dose, factor = np.zeros(self.shape[0], np.float32), np.zeros(self.shape[1], np.float32)
        factor[spots.numpy()] = change.detach().numpy() * self.scale[spots.numpy()]
        add_few(dose, self.voxel, self.block, self.segment, self.spot, self.group, self.starts, self.codes, factor)
        return torch.from_numpy(dose)

    @property
    def T(self) -> Transposed:
        """The map from residuals to weights."""
        return Transposed(self)

    def __matmul__(self, x: torch.Tensor) -> torch.Tensor:
        """`A x`, or `A X` `(n_voxels, k)` for `X` `(n_spots, k)`: one product after the other, each a third of an exact matrix's."""
        return each_column(self.forward, x)


class Transposed:
    """`A^T` of a map with `adjoint`, for products `@`."""

    def __init__(self, whole: Adjoint) -> None:
        self._whole = whole

    def __matmul__(self, r: torch.Tensor) -> torch.Tensor:
        """`A^T r`, or `A^T R` `(n_spots, k)` for `R` `(n_voxels, k)`."""
        return each_column(self._whole.adjoint, r)


class Adjoint(Protocol):
    """What has an adjoint."""

    def adjoint(self, residual: torch.Tensor) -> torch.Tensor:
        """`A^T r`."""
        ...


def each_column(product: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """A product with a vector, or with each column of a matrix."""
    return product(x) if x.dim() == 1 else torch.stack([product(column.contiguous()) for column in x.T], dim=1)
