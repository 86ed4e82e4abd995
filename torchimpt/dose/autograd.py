"""Autograd Functions around the dose operators: they save, call and return. No physics here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from torchimpt.dose.influence import InfluenceMatrix
    from torchimpt.dose.operator import DoseOperator


class PencilBeam(torch.autograd.Function):
    """Matrix-free dose; backward is the hand-derived gradient for weight, x and y in one pass."""

    @staticmethod
    def forward(ctx, position: torch.Tensor, weight: torch.Tensor, operator: DoseOperator) -> torch.Tensor:
        """Dose `(n_voxels,)`."""
        ctx.save_for_backward(position, weight)
        ctx.operator = operator
        return operator.dose(position, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, residual: torch.Tensor) -> tuple:
        """Gradients for position and weight."""
        position, weight = ctx.saved_tensors
        g_weight, g_position = ctx.operator.gradient(residual, position, weight, move=ctx.needs_input_grad[0])
        return g_position, g_weight, None


class SparseProduct(torch.autograd.Function):
    """`A w` with a stored influence matrix; backward is the product with `A^T`."""

    @staticmethod
    def forward(ctx, weight: torch.Tensor, matrix: InfluenceMatrix) -> torch.Tensor:
        """Dose `(n_voxels,)`."""
        ctx.matrix = matrix
        return matrix.matvec(weight)

    @staticmethod
    def backward(ctx, residual: torch.Tensor) -> tuple:
        """`A^T r`, itself differentiable: the operator is linear."""
        return ctx.matrix.adjoint(residual), None
