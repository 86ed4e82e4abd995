"""The sum over scenarios."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from torchimpt.checks import InputError
from torchimpt.objectives.mode import OverValues


@dataclass(frozen=True)
class Sum(OverValues):
    """`F = sum_k p_k F_k(D^k)` (Xu et al. 2020, Eq. 4; their weights are "usually equal to 1").

    Attributes
    ----------
    weights
        `p_k` of each scenario, zero or more, at least one positive; all 1 when left out.
    """

    weights: Sequence[float] | None = None

    name: ClassVar[str] = "sum"

    def __post_init__(self) -> None:
        if self.weights is None:
            return
        p = torch.as_tensor(self.weights, dtype=torch.float64)
        if not (p.dim() == 1 and bool(torch.isfinite(p).all()) and bool((p >= 0).all()) and bool((p > 0).any())):
            raise InputError(f"scenario weights must be zero or more, one for each scenario, not all zero, got {self.weights}")
        object.__setattr__(self, "weights", tuple(p.tolist()))

    def combine(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """`p' f`, and `p`."""
        if self.weights is None:
            return values.sum(), torch.ones_like(values)
        if len(self.weights) != len(values):
            raise InputError(f"there are {len(self.weights)} scenario weights and {len(values)} doses; give one weight for each scenario")
        p = torch.tensor(self.weights, dtype=values.dtype, device=values.device)
        return p.dot(values), p
