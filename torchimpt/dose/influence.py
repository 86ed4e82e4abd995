"""Influence matrices: dose per unit weight, voxel x spot, A and A^T both stored as int32 CSR.

`D = A w` and `dF/dw = A^T r` then are two products at memory bandwidth. Both are stored because a product with a transposed
CSR view is two hundred times slower, and indices are int32 because MKL's int64 path is three to five times slower (physics page,
"Facts measured once"). The entries are `phi(v, s)` of the dose model inside the cut-off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from torchimpt.checks import InputError
from torchimpt.dose import csr
from torchimpt.dose.autograd import Product
from torchimpt.dose.device_matrix import SORT_BYTES, device_rows, on_device
from torchimpt.dose.model import NO_MATRIX, SpotRows, Tables
from torchimpt.dose.operator import DoseOperator
from torchimpt.dose.packed import ENTRY_BYTES, PackedMatrix
from torchimpt.dose.packing import pack
from torchimpt.dose.shares import shares
from torchimpt.memory import check_memory

ADVICE = 'use [dose] engine = "matrix_free", a coarser grid_mm, a larger spacing_mm or a smaller cutoff_sigma'


@dataclass(frozen=True)
class InfluenceMatrix:
    """A scenario's influence matrix, a linear map.

    Attributes
    ----------
    matrix
        `A` `(n_voxels, n_spots)`.
    transpose
        `A^T` `(n_spots, n_voxels)`, the rows of which are all stored.
    """

    matrix: csr.Rows
    transpose: csr.Rows

    @property
    def shape(self) -> tuple[int, int]:
        """`(n_voxels, n_spots)`."""
        return self.matrix.shape

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.matrix.entries.device

    @property
    def T(self) -> InfluenceMatrix:
        """The map from residuals to weights."""
        return InfluenceMatrix(self.transpose, self.matrix)

    @property
    def n_nonzeros(self) -> int:
        """Stored entries of `A`."""
        return self.matrix.n_nonzeros

    @property
    def n_bytes(self) -> int:
        """Memory of both matrices."""
        return self.matrix.n_bytes + self.transpose.n_bytes

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """`A w`: dose `(n_voxels,)`, Gy."""
        return self.matrix.product(weight.detach().contiguous())

    def adjoint(self, residual: torch.Tensor) -> torch.Tensor:
        """`A^T r`: gradient `(n_spots,)` for `r = dF/dD`."""
        return self.transpose.product(residual.detach().contiguous())

    def __matmul__(self, x: torch.Tensor) -> torch.Tensor:
        """`A x` for `x` `(n_spots,)`, or `A X` `(n_voxels, k)` for `X` `(n_spots, k)` at much less than `k` products' cost; `A.T @ R`
        likewise.
        """
        return self.forward(x) if x.dim() == 1 else self.matrix.products(x.detach())

    def columns(self, spots: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        """`A[:, spots] change` `(n_voxels,)`, reading only those columns (rows of `A^T`)."""
        return self.transpose.sum_of_rows(spots, change)

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        """`A w`, differentiable: backward is the product with `A^T`."""
        return Product.apply(weight, self)

    def half(self) -> InfluenceMatrix:
        """The same matrix on a GPU with values of 16 bits."""
        return InfluenceMatrix(self.matrix.half(), self.transpose.half())

    def to(self, device: torch.device | str) -> InfluenceMatrix:
        """The same matrix on another device."""
        return InfluenceMatrix(self.matrix.to(device), self.transpose.to(device))


def influence_matrices(operators: Sequence[DoseOperator], position: torch.Tensor) -> list[InfluenceMatrix]:
    """One matrix per scenario, for spots that stay at `position` `(n_spots, 2)`.

    The first scenario's entries are counted before anything is allocated, and the others taken to have about as many; a set of matrices
    that would not fit, on the device where it stays or in the host's memory where it is put together, is an error that says how large it
    would be. So is any matrix of more than 2^31 - 1 entries.
    """
    position = position.detach().cpu()
    n_nonzeros = int(entry_counts(operators[0], position).sum())
    _check_entries(n_nonzeros, operators[0])
    for share in shares([operator.device for operator in operators]):
        own = operators[share.begin : share.end]
        what = f"the influence matrices ({len(own)} scenarios, {len(own) * n_nonzeros:.3g} entries)"
        for device, size in memory_needed(n_nonzeros, own).items():
            check_memory(what, size, device, ADVICE)
    return [_matrix(operator, position) for operator in operators]


def compressed_matrices(operators: Sequence[DoseOperator], position: torch.Tensor) -> list[PackedMatrix]:
    """The same in 16-bit groups, `torchimpt.dose.packed`: a sixth of the memory. For tables of float32 on the CPU.

    A set that would not fit is an error before it is built, as for `influence_matrices`; there is no limit to the entries of a matrix.
    """
    first = operators[0].tables[0]
    if first.dtype != torch.float32 or first.device.type != "cpu":
        kind = f"{str(first.dtype).removeprefix('torch.')} on {first.device.type}"
        raise InputError(f'engine "compressed" is for float32 on the CPU, the dose tables are {kind}; use [dose] engine = "matrix"')
    position = position.detach().cpu()
    counts = entry_counts(operators[0], position)
    size = len(operators) * ENTRY_BYTES * int(counts.sum())
    check_memory(f"the compressed influence matrices ({len(operators)} scenarios)", size, first.device, ADVICE)
    return [pack(operator, position, counts) for operator in operators]


def entry_counts(operator: DoseOperator, position: torch.Tensor) -> torch.Tensor:
    """Entries of each spot's column `(n_spots,)`, int64, to within a few: to know a matrix's size before it is built."""
    counts = torch.zeros(operator.n_spots, dtype=torch.int64)
    for tables, layer, begin, end in operator.beams():
        if tables.entries is None:
            raise InputError(NO_MATRIX)
        counts[begin:end] = tables.entries.count(layer, position[begin:end], operator.cutoff)
    return counts


def _matrix(operator: DoseOperator, position: torch.Tensor) -> InfluenceMatrix:
    """The matrix of one scenario; `position` on the CPU."""
    if on_device(operator):
        found = InfluenceMatrix(*device_rows(operator, position))
        _check_entries(found.n_nonzeros, operator)
        return found
    rows: list[SpotRows] = []
    done, first = 0, operator.tables[0]
    for tables, layer, begin, end in operator.beams():
        entries = tables.entries
        if entries is None:
            raise InputError(NO_MATRIX)
        rows += [csr.no_rows(begin - done), *entries.rows(layer, position[begin:end], operator.cutoff, operator.n_voxels)]
        done = end
    rows.append(csr.no_rows(operator.n_spots - done))
    _check_entries(sum(len(part.values) for part in rows), operator)
    return InfluenceMatrix(*csr.both_ways(rows, (operator.n_voxels, operator.n_spots), first.dtype)).to(first.device)


def memory_needed(n_nonzeros: int, operators: Sequence[DoseOperator]) -> dict[str, int]:
    """Bytes by device, at most, of one matrix of `n_nonzeros` entries per operator, while the last of them is put together.

    That is done on the CPU, whose arrays are those that stay; for another device they are copied, and so are the tables of one beam.
    """
    first, one = operators[0].tables[0], matrix_bytes(n_nonzeros, operators[0])
    rows = n_nonzeros * _pair_bytes(first)  # that a matrix is made from; a chunk's candidates need no more, and are gone by then
    if first.device.type == "cpu":
        return {"cpu": len(operators) * one + rows}
    if on_device(operators[0]):
        return {str(first.device): len(operators) * one + n_nonzeros * SORT_BYTES}
    copied = max(tables.n_bytes for operator in operators for tables in operator.tables)
    return {str(first.device): len(operators) * one, "cpu": one + rows + copied}


def matrix_bytes(n_nonzeros: int, operator: DoseOperator) -> int:
    """Of a matrix of so many entries, at most."""
    n_rows = operator.n_voxels + operator.n_spots
    return (2 * n_nonzeros + csr.LEAST * n_rows) * _pair_bytes(operator.tables[0]) + 8 * n_rows


def _pair_bytes(tables: Tables) -> int:
    """A value and its int32 column."""
    return torch.finfo(tables.dtype).bits // 8 + 4


def _check_entries(n_nonzeros: int, operator: DoseOperator) -> None:
    if n_nonzeros > csr.MAX_NONZEROS:
        raise InputError(
            f"the influence matrix of the scenario '{operator.scenario.name}' would have {n_nonzeros:.3g} entries, more than int32 rows "
            f"hold (2.1e9); {ADVICE}"
        )
