"""Modes that look at each voxel's doses in all scenarios; entry `v` of the dose vectors is the same piece of tissue in each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from torchimpt.checks import InputError
from torchimpt.objectives.mode import PerScenario, Ray, RobustMode, sum_over_all
from torchimpt.processes import ALONE, Team
from torchimpt.sums import total


@dataclass(frozen=True)
class Voxelwise(RobustMode):
    """Terms at the worst dose of each voxel, as commercial systems have it.

        F = sum_under f_i(min_k D_k) + sum_over f_j(max_k D_k),    min and max voxel by voxel

    (Pflugfelder, Wilkens and Oelfke, Phys Med Biol 53:1689, 2008.) Terms of under-dose are `min_dose`,
    `min_dvh` and the lower side of `uniform`; terms of over-dose are `max_dose`, `max_dvh`, `mean_dose`, `gEUD` and the upper side of
    `uniform`. For the nominal dose in one of them, give that objective the mode `nominal`. The worst doses are of no scenario: F is never
    below `Objectivewise`'s of single-sided terms.

    Maxima are smooth, `T log sum_k exp(D_k / T)`, and above the largest dose by at most `T log K`: 0.22 Gy for 0.1 Gy and nine scenarios;
    minima likewise, below.

    Attributes
    ----------
    smoothing_gy
        `T`, Gy (of other quantities than dose in their unit), zero or more; 0: maxima and minima themselves.
    """

    smoothing_gy: float = 0.1

    name: ClassVar[str] = "voxelwise"
    shared: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.smoothing_gy >= 0:
            raise InputError(f"mode {self.name}: smoothing_gy must be zero (none) or more, got {self.smoothing_gy:g}")

    def exact(self) -> Voxelwise:
        """Maxima and minima."""
        return Voxelwise(0.0)

    def worst(self, doses: Tensor, side: float, team: Team = ALONE) -> tuple[Tensor, Tensor]:
        """The largest (`side` 1) or least (-1) dose of each voxel `(n_voxels,)`, and its derivative by each scenario's, of sum 1."""
        if self.smoothing_gy == 0:
            found, at = (side * doses).max(0)
            top = team.largest(found)
            # of scenarios that tie, the first one's
            here = torch.tensor(list(team.own(range(team.count(len(doses))))), device=at.device)[at].double()
            first = -team.largest(torch.where(found == top, -here, -torch.inf))
            return side * top, torch.zeros_like(doses).scatter_(0, at.unsqueeze(0), (here == first).to(doses).unsqueeze(0))
        scaled = (side / self.smoothing_gy) * doses
        top = team.largest(scaled.amax(0))
        share = scaled.sub_(top).exp_()
        whole = team.sum(share)
        return (side * self.smoothing_gy) * (top + whole.log()), share.div_(whole)

    def value_and_grad(self, objective: PerScenario, doses: Tensor) -> tuple[Tensor, Tensor]:
        """F, and `dF/dD_kv = f'(worst_v) dworst_v/dD_kv`."""
        value, grad = doses.new_zeros((), dtype=torch.float64), torch.zeros_like(doses)
        for terms, side in zip(objective.sides, (-1.0, 1.0), strict=True):
            if terms is not None:
                dose, by_scenario = self.worst(doses, side, objective.team)
                more, slope = terms.value_and_grad(dose)
                value, grad = value + more, grad.addcmul_(by_scenario, slope)
        return value, grad

    def along(self, objective: PerScenario, doses: Tensor, rates: Tensor) -> Ray:
        """F on a ray; worst doses do not follow it, and are taken anew at each length."""

        def restricted(length: float) -> tuple[float, float]:
            value, grad = self.value_and_grad(objective, torch.add(doses, rates, alpha=length))
            return float(value), sum_over_all(objective.team, grad.double() * rates)

        return restricted

    def shares(self, objective: PerScenario, doses: Tensor) -> Tensor:
        """Each term's value, parted among the scenarios by how much of its gradient their doses have."""
        columns = []
        for single in objective.singles:
            column = torch.zeros(len(doses), dtype=torch.float64, device=doses.device)
            for terms, side in zip(single.sides, (-1.0, 1.0), strict=True):
                if terms is not None:
                    dose, by_scenario = self.worst(doses, side, objective.team)
                    value, slope = terms.value_and_grad(dose)
                    weight = total(by_scenario * slope.abs())
                    column += value * weight / objective.team.gather(weight).sum().clamp_min(torch.finfo(torch.float64).tiny)
            columns.append(column)
        return torch.stack(columns, dim=-1)


@dataclass(frozen=True)
class VoxelwiseInvariant(RobustMode):
    """Terms at the expected dose, and a price on what any voxel's dose varies by from scenario to scenario.

        F = f(E D) + c sum_v w_v Var_k(D_kv),    E and Var over the scenarios, each of probability 1/K; w_v the weights of the terms at v

    (Cristoforetti et al., arXiv:2510.12519, who give each ROI's mean variance such a price. No paper or program is known that has a mode of
    this name; matRad's `VWWC_INV`, for inverse, is another thing: targets at the largest dose of each voxel, organs at the least.) With
    `c = 1` and `uniform` terms it is `expected`, exactly:
    `E (d - p)^2 = (E d - p)^2 + Var d`. Of other terms, voxels pay for their variance whether or not the dose violates its level: for doses
    that errors do not change. Convex, and exact on a ray.

    Attributes
    ----------
    variance
        `c`, zero or more.
    """

    variance: float = 1.0

    name: ClassVar[str] = "voxelwise_invariant"
    shared: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.variance >= 0:
            raise InputError(f"mode {self.name}: variance must be zero or more, got {self.variance:g}")

    def value_and_grad(self, objective: PerScenario, doses: Tensor) -> tuple[Tensor, Tensor]:
        """F, and `(f'(E D) + 2 c w (D_k - E D)) / K`."""
        count = objective.team.count(len(doses))
        mean = objective.team.sum(doses).div_(count)
        value, slope = objective.value_and_grad(mean)
        away = doses - mean
        pull = away * (self.variance * objective.curvature(mean))
        spread = sum_over_all(objective.team, pull * away) / count
        return value + spread, pull.mul_(2.0).add_(slope).div_(count)

    def along(self, objective: PerScenario, doses: Tensor, rates: Tensor) -> Ray:
        """F on a ray, on which the mean dose is a ray and the variance a parabola."""
        team, count = objective.team, objective.team.count(len(doses))
        mean, rise = team.sum(doses).div_(count), team.sum(rates).div_(count)
        line = objective.along(mean, rise)
        start, change = (doses - mean).double(), (rates - rise).double()
        gain = self.variance * objective.curvature(mean).double() / count
        a, b, c = (sum_over_all(team, gain * x * y) for x, y in ((start, start), (start, change), (change, change)))

        def restricted(length: float) -> tuple[float, float]:
            value, slope = line(length)
            return float(value) + a + length * (2.0 * b + length * c), float(slope) + 2.0 * (b + length * c)

        return restricted

    def shares(self, objective: PerScenario, doses: Tensor) -> Tensor:
        """Of each scenario a K-th of the terms at the expected dose, and what it adds to the variance."""
        count = objective.team.count(len(doses))
        mean = objective.team.sum(doses).div_(count)
        away = (doses - mean).double().square()
        spread = [total(away * single.curvature(mean)) for single in objective.singles]
        return (objective.by_term(mean) + self.variance * torch.stack(spread, dim=-1)) / count
