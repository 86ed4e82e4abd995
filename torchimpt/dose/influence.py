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
from torchimpt.dose.operator import DoseOperator
from torchimpt.memory import available_memory

MAX_NONZEROS = 2**31 - 1
"""An int32 row pointer holds no more; torch's CSR overflows silently past it."""


NO_MATRIX = (
    "this dose model has no influence matrix; take dose model 'pencil_beam', or compute matrix-free, [dose] engine = \"matrix_free\""
)


@dataclass(frozen=True)
class InfluenceMatrix:
    """A scenario's influence matrix, a linear map.

    Attributes
    ----------
    matrix
        `A` `(n_voxels, n_spots)`, torch sparse CSR, int32 indices.
    transpose
        `A^T` `(n_spots, n_voxels)`, likewise.
    """

    matrix: torch.Tensor
    transpose: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """`(n_voxels, n_spots)`."""
        rows, columns = self.matrix.shape
        return rows, columns

    @property
    def T(self) -> InfluenceMatrix:
        """The map from residuals to weights."""
        return InfluenceMatrix(self.transpose, self.matrix)

    @property
    def n_nonzeros(self) -> int:
        """Stored entries of `A`."""
        return self.matrix.values().numel()

    @property
    def n_bytes(self) -> int:
        """Memory of both matrices."""
        parts = [t for m in (self.matrix, self.transpose) for t in (m.values(), m.col_indices(), m.crow_indices())]
        return sum(t.numel() * t.element_size() for t in parts)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """`A w`: dose `(n_voxels,)`, Gy."""
        return torch.mv(self.matrix, weight.detach().contiguous())

    def adjoint(self, residual: torch.Tensor) -> torch.Tensor:
        """`A^T r`: gradient `(n_spots,)` for `r = dF/dD`."""
        return torch.mv(self.transpose, residual.detach().contiguous())

    def columns(self, spots: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        """`A[:, spots] change` `(n_voxels,)`, reading only those columns (rows of `A^T`)."""
        total = change.new_zeros(self.shape[0])
        matrix = self.transpose
        if change.device.type == "cpu":
            parts = (matrix.crow_indices(), matrix.col_indices(), matrix.values(), spots, change)
            csr.add_rows(total.numpy(), *(t.contiguous().numpy() for t in parts))
            return total
        start, end = (matrix.crow_indices()[spots + i].long() for i in (0, 1))
        count = end - start
        entry = torch.repeat_interleave(start - (count.cumsum(0) - count), count) + torch.arange(int(count.sum()), device=change.device)
        values = matrix.values()[entry] * torch.repeat_interleave(change, count)
        return total.index_add(0, matrix.col_indices()[entry], values)

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        """`A w`, differentiable: backward is the product with `A^T`."""
        return Product.apply(weight, self)

    def to(self, device: torch.device | str) -> InfluenceMatrix:
        """The same matrix on another device."""
        return InfluenceMatrix(self.matrix.to(device), self.transpose.to(device))


def influence_matrices(operators: Sequence[DoseOperator], position: torch.Tensor) -> list[InfluenceMatrix]:
    """One matrix per scenario, for spots that stay at `position` `(n_spots, 2)`.

    The first scenario's entries are counted before anything is allocated, and the others taken to have as many; a set of matrices that
    would not fit in this machine's memory, or one of more than 2^31 - 1 entries, is an error that says how large it would be.
    """
    position = position.detach().cpu()
    _check_size(int(entry_counts(operators[0], position).sum()), operators)
    return [_matrix(operator, position) for operator in operators]


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
    rows, done, first = [], 0, operator.tables[0]
    for tables, layer, begin, end in operator.beams():
        entries = tables.entries
        if entries is None:
            raise InputError(NO_MATRIX)
        rows += [csr.no_rows(begin - done), *entries.rows(layer, position[begin:end], operator.cutoff, operator.n_voxels)]
        done = end
    rows.append(csr.no_rows(operator.n_spots - done))
    return InfluenceMatrix(*csr.both_ways(rows, (operator.n_voxels, operator.n_spots), first.dtype)).to(first.device)


def _check_size(n_nonzeros: int, operators: Sequence[DoseOperator]) -> None:
    first, n_scenarios = operators[0], len(operators)
    advice = 'use [dose] engine = "matrix_free", a coarser grid_mm, a larger spacing_mm or a smaller cutoff_sigma'
    if n_nonzeros > MAX_NONZEROS:
        raise InputError(f"one influence matrix would have {n_nonzeros:.3g} entries, more than int32 rows hold (2.1e9); {advice}")
    item = torch.finfo(first.tables[0].dtype).bits // 8 + 4
    size = n_scenarios * (2 * n_nonzeros * item + 4 * (first.n_voxels + first.n_spots + 2))
    free = available_memory(first.tables[0].device)
    if size > free:
        raise InputError(
            f"the influence matrices would take {size / 1e9:.1f} GB ({n_scenarios} scenarios, {n_scenarios * n_nonzeros:.3g} entries), "
            f"{free / 1e9:.1f} GB are free; {advice}"
        )
