"""The sum over scenarios, their mean, and the nominal one alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from torchimpt.objectives.mode import OverValues
from torchimpt.objectives.modes.weights import Weighted


@dataclass(frozen=True)
class Sum(Weighted):
    """`F = sum_k p_k f_k(D^k)` (Xu et al. 2020, Eq. 4; their weights are "usually equal to 1")."""

    name: ClassVar[str] = "sum"
    couples: ClassVar[bool] = False

    def combine(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """`p' f`, and `p`."""
        p = self.given(values)
        return (values.sum() if self.weights is None else p.dot(values)), p


@dataclass(frozen=True)
class Expected(Weighted):
    """`F = sum_k p_k f_k / sum_k p_k`, the expected value where the weights are probabilities (Unkelbach et al., Med Phys 36:149, 2009).

    Of random scenarios, which are drawn from their distribution, the mean.
    """

    name: ClassVar[str] = "expected"
    couples: ClassVar[bool] = False

    def combine(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """`p' f`, and `p`, of sum 1."""
        p = self.probabilities(values)
        return p.dot(values), p


@dataclass(frozen=True)
class Nominal(OverValues):
    """`F = f_1`: the first scenario, the nominal one; the others are reported, not optimized."""

    name: ClassVar[str] = "nominal"
    couples: ClassVar[bool] = False
    nominal_only: ClassVar[bool] = True

    def combine(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """`f_1`, and a one for it."""
        shares = torch.zeros_like(values)
        shares[0] = 1.0
        return values[0], shares
