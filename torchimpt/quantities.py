"""What stands between physical dose and what is asked of it: a quantity, as a function of the doses, with its derivative.

Objectives, goals and reports see the quantity; dose models, matrices and scenarios know the physical dose alone. The first is the
RBE-weighted dose of a constant factor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from torchimpt.checks import InputError


class Quantity(Protocol):
    """A function of physical doses `D`, Gy, any shape, entry by entry."""

    linear: bool
    """Whether `value(D + l R) = value(D) + l value(R)`: along a ray of doses an objective then keeps its exact form."""

    def value(self, dose: torch.Tensor) -> torch.Tensor:
        """The quantity at these doses, in their shape and dtype; differentiable."""
        ...

    def pull(self, dose: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """`dF/dD` for `residual = dF/dQ`, in its shape."""
        ...

    def slope(self, dose: torch.Tensor) -> torch.Tensor:
        """`dQ/dD` at these doses, in their shape."""
        ...


@dataclass(frozen=True)
class ConstantRBE:
    """`Q = RBE D`, Gy(RBE): a constant factor; 1 leaves the physical dose.

    Attributes
    ----------
    factor
        RBE, positive; 1.1 is the clinical convention (ICRU Report 78).

    Examples
    --------
    >>> round(float(ConstantRBE(1.1).value(torch.tensor(2.0))), 6)
    2.2
    """

    factor: float = 1.1

    linear = True

    def __post_init__(self) -> None:
        if not 0 < self.factor <= 10:
            raise InputError(f"rbe must be a positive factor near 1, got {self.factor}")

    def value(self, dose: torch.Tensor) -> torch.Tensor:
        """`RBE D`."""
        return dose if self.factor == 1.0 else self.factor * dose

    def pull(self, dose: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """`RBE r`."""
        return residual if self.factor == 1.0 else self.factor * residual

    def slope(self, dose: torch.Tensor) -> torch.Tensor:
        """RBE, everywhere."""
        return torch.full_like(dose, self.factor)


PHYSICAL = ConstantRBE(1.0)
"""The dose itself, Gy."""
