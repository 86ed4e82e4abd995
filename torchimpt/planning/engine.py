"""Two engines, one use: doses of all scenarios from weights, and the weights' gradient back from residuals.

`MatrixEngine` multiplies with stored influence matrices; `MatrixFreeEngine` computes every pair anew and stores none. Both give the
same numbers; the first is faster per product once it is built, the second needs little memory and follows spots that move.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from torchimpt.dose.influence import InfluenceMatrix
from torchimpt.dose.operator import DoseOperator


class Engine(Protocol):
    """Linear maps between weights `(n_spots,)` and the scenarios' doses `(n_scenarios, n_voxels)`."""

    n_bytes: int
    n_nonzeros: int

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """`D^k = A^k w` for every scenario."""
        ...

    def adjoint(self, residual: torch.Tensor) -> torch.Tensor:
        """`sum_k A^k' r^k`."""
        ...

    def forward_some(self, spots: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        """`A^k[:, spots] change` for every scenario, at a cost in proportion to their number."""
        ...


class MatrixEngine:
    """Products with one influence matrix per scenario."""

    def __init__(self, matrices: Sequence[InfluenceMatrix]) -> None:
        self.matrices = tuple(matrices)
        self.n_bytes = sum(m.n_bytes for m in self.matrices)
        self.n_nonzeros = sum(m.n_nonzeros for m in self.matrices)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """`D^k = A^k w` for every scenario."""
        return torch.stack([m.matvec(weight) for m in self.matrices])

    def adjoint(self, residual: torch.Tensor) -> torch.Tensor:
        """`sum_k A^k' r^k`."""
        total = self.matrices[0].rmatvec(residual[0])
        for matrix, row in zip(self.matrices[1:], residual[1:], strict=True):
            total += matrix.rmatvec(row)
        return total

    def forward_some(self, spots: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        """`A^k[:, spots] change` for every scenario."""
        zero = change.new_zeros(self.matrices[0].shape[0])
        return torch.stack([m.add_columns(zero, spots, change) for m in self.matrices])


class MatrixFreeEngine:
    """The pair kernel at fixed positions, nothing stored but the operators' tables."""

    n_nonzeros = 0

    def __init__(self, operators: Sequence[DoseOperator], position: torch.Tensor) -> None:
        self.operators, self.position = tuple(operators), position.detach()
        self.n_bytes = sum(o.n_bytes for o in self.operators)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """`D^k = A^k w` for every scenario."""
        return torch.stack([o.dose(self.position, weight) for o in self.operators])

    def adjoint(self, residual: torch.Tensor) -> torch.Tensor:
        """`sum_k A^k' r^k`."""
        weight = residual.new_zeros(self.position.shape[0])
        total = weight.clone()
        for operator, row in zip(self.operators, residual, strict=True):
            total += operator.gradient(row, self.position, weight, move=False)[0]
        return total

    def forward_some(self, spots: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        """`A^k[:, spots] change` for every scenario: spots of weight zero cost nothing."""
        return self.forward(torch.zeros_like(self.position[:, 0]).index_copy(0, spots, change))


class AutogradEngine:
    """The adjoint by torch's autograd through the plain dense formula, on request: for comparison, not for speed."""

    n_nonzeros = 0

    def __init__(self, operators: Sequence[DoseOperator], position: torch.Tensor) -> None:
        self.operators, self.position = tuple(operators), position.detach()
        self.n_bytes = sum(o.n_bytes for o in self.operators)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """`D^k = A^k w` for every scenario."""
        from torchimpt.dose.dense import dense_dose

        return torch.stack([dense_dose(o, self.position, weight) for o in self.operators])

    def adjoint(self, residual: torch.Tensor) -> torch.Tensor:
        """`sum_k A^k' r^k`, as the gradient of `sum_k r^k' A^k w`."""
        weight = residual.new_zeros(self.position.shape[0], requires_grad=True)
        return torch.autograd.grad((self.forward(weight) * residual).sum(), weight)[0]

    def forward_some(self, spots: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        """`A^k[:, spots] change` for every scenario."""
        return self.forward(torch.zeros_like(self.position[:, 0]).index_copy(0, spots, change))
