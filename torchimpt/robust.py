"""Robust objective: the sum of one objective over the doses of all scenarios.

    F = sum_k p_k F_k(D^k),    p_k = 1 unless given        (Xu et al. 2020, Eq. 4; their weights are "usually equal to 1")

Doses are stacked, `(n_scenarios, n_voxels)`, Gy, in the order of the scenarios.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchimpt.bound import BoundObjective, Ray
from torchimpt.checks import InputError
from torchimpt.terms import as_loss


class RobustObjective:
    """Sum of a bound objective over scenarios.

    Parameters
    ----------
    bound
        The objective that every scenario gets.
    weights
        `p_k` of each scenario; all 1 when left out. Zero or more, at least one positive.
    """

    def __init__(self, bound: BoundObjective, weights: Sequence[float] | Tensor | None = None) -> None:
        self.bound = bound
        self.weights = None if weights is None else torch.as_tensor(weights, dtype=torch.float64).cpu()
        if self.weights is not None:
            good = self.weights.dim() == 1 and bool(torch.isfinite(self.weights).all()) and bool((self.weights >= 0).all())
            if not (good and bool((self.weights > 0).any())):
                raise InputError(f"scenario weights must be zero or more, one for each scenario, not all zero, got {weights}")

    def _share(self, doses: Tensor) -> Tensor:
        if doses.dim() != 2:
            raise InputError(f"doses must be stacked as (n_scenarios, n_voxels), got the shape {tuple(doses.shape)}")
        if self.weights is None:
            return torch.ones(len(doses), dtype=torch.float64, device=doses.device)
        if len(self.weights) != len(doses):
            raise InputError(f"there are {len(self.weights)} scenario weights and {len(doses)} doses; give one weight for each scenario")
        return self.weights.to(doses.device)

    def value(self, doses: Tensor) -> Tensor:
        """F, float64 `()`, Gy^2."""
        return self._share(doses).dot(self.bound.value(doses))

    def value_and_grad(self, doses: Tensor) -> tuple[Tensor, Tensor]:
        """F (float64 `()`), and `dF/dD` in the doses' shape and dtype."""
        share = self._share(doses)
        values, grads = self.bound.value_and_grad(doses)
        return share.dot(values), grads.mul_(share.to(grads.dtype).unsqueeze(-1))

    def __call__(self, doses: Tensor) -> Tensor:
        """F as a torch loss; its backward is the hand-derived gradient."""
        return as_loss(self.value_and_grad, doses)

    def along(self, doses: Tensor, rates: Tensor) -> Ray:
        """F on the ray of doses `doses + l rates`: calling it with `l` gives value and slope."""
        return self.bound.along(doses, rates, self._share(doses))

    def terms(self, doses: Tensor) -> list[dict]:
        """Share of every term in every scenario: `scenario` (its index), `roi`, `kind`, `value` (with `p_k` in it)."""
        share = self._share(doses).tolist()
        return [
            {"scenario": k, **term, "value": share[k] * term["value"]} for k, dose in enumerate(doses) for term in self.bound.terms(dose)
        ]
