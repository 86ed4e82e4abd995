"""Minimax: the worst scenario of all terms together, or of each term by itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from torchimpt.checks import InputError
from torchimpt.objectives.mode import OverValues


@dataclass(frozen=True)
class Composite(OverValues):
    """The worst scenario's total: `F = max_k f_k`, as the p-norm `(sum_k f_k^p)^(1/p)`.

    (Fredriksson, Forsgren and Hardemark, Minimax optimization for handling range and setup uncertainties in proton therapy, Med Phys, 2011;
    report TRITA-MAT-2010-OS2 of KTH.) With K scenarios `max f <= F <= K^(1/p) max f`, and so is the worst
    scenario of the plan with the least F at most `K^(1/p)` times that of the best plan there is: for `p = 20` and nine scenarios 12 % of an
    objective that is a square, 6 % of dose deviations; no more is left to the sum than that. Values are zero or more.

    Attributes
    ----------
    power
        `p`, at least 1 (the sum); infinite: the maximum itself, whose gradient is that of the worst scenario (the mean of those that tie).
    """

    power: float = 20.0

    name: ClassVar[str] = "composite"

    def __post_init__(self) -> None:
        if not self.power >= 1:
            raise InputError(f"mode {self.name}: power must be 1 (the sum) or more, 20 is usual, got {self.power:g}")

    def exact(self) -> Composite:
        """The maximum."""
        return type(self)(math.inf)

    def combine(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """`|f|_p`, and `(f_k / |f|_p)^(p-1)`."""
        worst = values.max()
        if math.isinf(self.power):
            at = (values == worst).to(values)
            return worst, at / at.sum()
        if not bool(worst > 0):
            # the norm has no gradient there; any share between 0 and 1 is one of its subgradients
            return torch.zeros_like(worst), torch.ones_like(values) * len(values) ** (1.0 / self.power - 1.0)
        ratio = values.clamp_min(0) / worst
        norm = ratio.pow(self.power).sum().pow(1.0 / self.power)
        return worst * norm, (ratio / norm).pow(self.power - 1.0)


@dataclass(frozen=True)
class Objectivewise(Composite):
    """The worst scenario of each term: `F = sum_i max_k f_ik`, each maximum as the p-norm of `Composite`.

    (Chen et al., Including robustness in multi-criteria optimization for intensity-modulated proton therapy, Phys Med Biol, 2012.) Never
    less than the composite's, as terms may have their worst in different scenarios.
    """

    name: ClassVar[str] = "objectivewise"
    apart: ClassVar[bool] = True
    couples: ClassVar[bool] = False
