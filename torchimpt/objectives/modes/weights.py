"""Weights of scenarios, which several modes take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchimpt.checks import InputError
from torchimpt.objectives.mode import OverValues


@dataclass(frozen=True)
class Weighted(OverValues):
    """A mode in which scenarios count differently.

    Attributes
    ----------
    weights
        `p_k` of each scenario, the nominal one first, zero or more, at least one positive; all alike when left out.
    """

    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.weights is None:
            return
        p = torch.as_tensor(self.weights, dtype=torch.float64)
        if not (p.dim() == 1 and bool(torch.isfinite(p).all()) and bool((p >= 0).all()) and bool((p > 0).any())):
            raise InputError(f"scenario weights must be zero or more, one for each scenario, not all zero, got {self.weights}")
        object.__setattr__(self, "weights", tuple(p.tolist()))

    def check(self, n_scenarios: int) -> None:
        """Raise where there are more weights or fewer."""
        if self.weights is not None and len(self.weights) != n_scenarios:
            raise InputError(f"there are {len(self.weights)} scenario weights and {n_scenarios} scenarios; give one weight for each")

    def given(self, values: Tensor) -> Tensor:
        """The weights as they are `(n_scenarios,)`, or ones, beside the scenarios' values."""
        self.check(len(values))
        return torch.ones_like(values) if self.weights is None else torch.tensor(self.weights, dtype=values.dtype, device=values.device)

    def probabilities(self, values: Tensor) -> Tensor:
        """The weights, of sum 1."""
        given = self.given(values)
        return given / given.sum()
