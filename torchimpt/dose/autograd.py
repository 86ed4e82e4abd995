"""Autograd Functions around dose operators and linear maps: they save, call and return. No physics here."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch.autograd.function import once_differentiable

from torchimpt.dose.model import Partials


class Operator(Protocol):
    """Dose of spots, and its hand-derived gradient."""

    def dose(self, position: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Dose `(n_voxels,)`."""
        ...

    def gradient(self, residual: torch.Tensor, position: torch.Tensor, weight: torch.Tensor, move: bool = True) -> Partials:
        """Gradients for weight and position."""
        ...


class Matrix(Protocol):
    """A linear map and its transpose."""

    @property
    def T(self) -> Matrix:
        """The transpose."""
        ...

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The product."""
        ...


class SpotDose(torch.autograd.Function):
    """Matrix-free dose; backward is the hand-derived gradient for weight, x and y in one pass."""

    @staticmethod
    def forward(ctx: Any, position: torch.Tensor, weight: torch.Tensor, operator: Operator) -> torch.Tensor:
        """Dose `(n_voxels,)`."""
        ctx.save_for_backward(position, weight)
        ctx.operator = operator
        return operator.dose(position, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, residual: torch.Tensor) -> tuple:
        """Gradients for position and weight."""
        position, weight = ctx.saved_tensors
        partials = ctx.operator.gradient(residual, position, weight, move=ctx.needs_input_grad[0])
        return partials.position, partials.weight, None


class Product(torch.autograd.Function):
    """`A x`; backward is the product with `A^T`, itself differentiable: the map is linear."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, matrix: Matrix) -> torch.Tensor:
        """The product."""
        ctx.matrix = matrix
        return matrix.forward(x)

    @staticmethod
    def backward(ctx: Any, residual: torch.Tensor) -> tuple:
        """`A^T r`."""
        return Product.apply(residual, ctx.matrix.T), None
