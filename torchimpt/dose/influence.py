"""Influence matrices: dose per unit weight, voxel x spot, A and A^T both stored as int32 CSR.

`D = A w` and `dF/dw = A^T r` then are two products at memory bandwidth. Both are stored because a product with a transposed
CSR view is two hundred times slower, and indices are int32 because MKL's int64 path is three to five times slower (physics page,
"Facts measured once"). The entries are `phi(v, s)` of `torchimpt.dose.kernel` inside the cut-off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from torchimpt.checks import InputError
from torchimpt.dose import assemble
from torchimpt.dose.autograd import SparseProduct
from torchimpt.dose.operator import DoseOperator
from torchimpt.memory import available_memory

MAX_NONZEROS = 2**31 - 1
"""An int32 row pointer holds no more; torch's CSR overflows silently past it."""


@dataclass(frozen=True)
class InfluenceMatrix:
    """A scenario's influence matrix.

    Attributes
    ----------
    forward
        `A` `(n_voxels, n_spots)`, torch sparse CSR, int32 indices.
    transposed
        `A^T` `(n_spots, n_voxels)`, likewise.
    """

    forward: torch.Tensor
    transposed: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """`(n_voxels, n_spots)`."""
        return tuple(self.forward.shape)

    @property
    def n_nonzeros(self) -> int:
        """Stored entries of `A`."""
        return self.forward.values().numel()

    @property
    def n_bytes(self) -> int:
        """Memory of both matrices."""
        parts = [t for m in (self.forward, self.transposed) for t in (m.values(), m.col_indices(), m.crow_indices())]
        return sum(t.numel() * t.element_size() for t in parts)

    def matvec(self, weight: torch.Tensor) -> torch.Tensor:
        """`A w`: dose `(n_voxels,)`, Gy."""
        return torch.mv(self.forward, weight.detach())

    def rmatvec(self, residual: torch.Tensor) -> torch.Tensor:
        """`A^T r`: gradient `(n_spots,)` for `r = dF/dD`."""
        return torch.mv(self.transposed, residual.detach().contiguous())

    def adjoint(self, residual: torch.Tensor) -> torch.Tensor:
        """`A^T r`, differentiable."""
        return SparseProduct.apply(residual, InfluenceMatrix(self.transposed, self.forward))

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        """`A w`, differentiable: backward is the product with `A^T`."""
        return SparseProduct.apply(weight, self)

    def add_columns(self, dose: torch.Tensor, spots: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        """`dose + A[:, spots] change`, reading only those columns (rows of `A^T`)."""
        matrix = self.transposed
        if dose.device.type == "cpu":
            total = dose.clone()
            parts = (matrix.crow_indices(), matrix.col_indices(), matrix.values(), spots, change)
            assemble.add_rows(total.numpy(), *(t.contiguous().numpy() for t in parts))
            return total
        start, end = (matrix.crow_indices()[spots + i].long() for i in (0, 1))
        count = end - start
        entry = torch.repeat_interleave(start - (count.cumsum(0) - count), count) + torch.arange(int(count.sum()), device=dose.device)
        values = matrix.values()[entry] * torch.repeat_interleave(change, count)
        return dose.index_add(0, matrix.col_indices()[entry], values)

    def to(self, device: torch.device | str) -> InfluenceMatrix:
        """The same matrix on another device."""
        return InfluenceMatrix(self.forward.to(device), self.transposed.to(device))


def influence_matrices(operators: Sequence[DoseOperator], position: torch.Tensor) -> list[InfluenceMatrix]:
    """One matrix per scenario, for spots that stay at `position` `(n_spots, 2)`.

    The first scenario's entries are counted before anything is allocated, and the others taken to have as many; a set of matrices that
    would not fit in this machine's memory, or one of more than 2^31 - 1 entries, is an error that says how large it would be.
    """
    if operators[0].backend == "sub_spots":
        raise InputError("sub-spots have no influence matrix; build its operators without sub_spots, or use the operators matrix-free")
    position = position.detach().cpu()
    _check_size(int(assemble.count(operators[0], position).sum()), operators)
    device = operators[0].tables[0].p.device
    return [InfluenceMatrix(*assemble.fill(operator, position)).to(device) for operator in operators]


def _check_size(n_nonzeros: int, operators: Sequence[DoseOperator]) -> None:
    first, n_scenarios = operators[0], len(operators)
    advice = 'use [dose] engine = "matrix_free", a coarser grid_mm, a larger spacing_mm or a smaller cutoff_sigma'
    if n_nonzeros > MAX_NONZEROS:
        raise InputError(f"one influence matrix would have {n_nonzeros:.3g} entries, more than int32 rows hold (2.1e9); {advice}")
    item = first.tables[0].p.element_size() + 4
    size = n_scenarios * (2 * n_nonzeros * item + 4 * (first.n_voxels + first.n_spots + 2))
    free = available_memory(first.tables[0].p.device)
    if size > free:
        raise InputError(
            f"the influence matrices would take {size / 1e9:.1f} GB ({n_scenarios} scenarios, {n_scenarios * n_nonzeros:.3g} entries), "
            f"{free / 1e9:.1f} GB are free; {advice}"
        )
