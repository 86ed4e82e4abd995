"""Objectives of large ROIs on sampled voxels: which, how many each stands for, and whether the whole grid agrees.

A `max_dose` on the body asks about tens of times more voxels than all other objectives, of which few are ever too hot. Its sum

    sum_v H(D_v - p) (D_v - p)^2   is taken as   sum_{v in sample} (1 / pi_v) H(D_v - p) (D_v - p)^2

over voxels that come into the sample with the probability `pi_v`: an unbiased estimate (Horvitz and Thompson, J Am Stat Assoc 47:663,
1952). The first iterations do without these objectives; then the plan's doses in the body say how likely a voxel is to become hot. Hot
ones and nearly hot ones all come into the sample (`pi_v = 1`), of cooler ones a share that falls with the dose, drawn at random in strata.
When the solver has stopped, the doses of all scenarios are computed again; where the objective on all voxels and on the sample disagree,
hot voxels that were missed are added and the optimization goes on. (Martin et al., Phys Med Biol 52:7211, 2007, draw other voxels in each
iteration; here the draw stays, because the solvers want one function, and grows by what it has missed.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from torchimpt.dose.body import BodyDoses
from torchimpt.dose.joined import JoinedLinear, joined
from torchimpt.dose.linear import LinearDose
from torchimpt.dose.scenarios import ScenarioDoses
from torchimpt.objectives import BoundObjective, Objective, RobustObjective, Split, Term
from torchimpt.patient import Patient
from torchimpt.points import Points, together, voxel_points
from torchimpt.processes import ALONE, Team
from torchimpt.schemes.moving import MovingSpots
from torchimpt.spots import Spots

FIRST = 20
"""Weight iterations before the first look at the body: doses are within some Gy of the plan's by then."""

ROUNDS = 3
"""Most rounds of further optimization after looks that disagree."""

AGREE = 0.01
"""Relative difference between the objective on the sample and on all voxels that is good enough."""

HOT = 0.97
"""Share of an objective's dose level from which on a voxel counts as hot: what is there may be above it some iterations later."""

STRATA = ((0.9, 0.25), (0.7, 0.05), (0.0, 0.001))
"""Cooler voxels: from which share of the lowest level on, and which share of them is drawn."""


@dataclass(frozen=True)
class Whole:
    """A plan on all voxels.

    Attributes
    ----------
    seen
        Its doses.
    value, exact, terms, violations
        The objective, what it is a smooth form of, rows of `RobustObjective.terms`, and what `Constraints.violations` gives.
    """

    seen: BodyDoses
    value: float
    exact: float
    terms: list[dict]
    violations: Tensor


class Sampling:
    """The sample and what it makes of the problem: doses, their linear map, and the objective, at `points`.

    Parameters
    ----------
    patient
        On the dose grid.
    objective, split, bind
        What is asked, of which voxels, and what makes it an objective over scenarios.
    needed
        Points of all that is not sampled.
    tabulate
        Doses of the placed spots at points, and their linear map.
    look
        Doses of any spots in the body.
    seed
        Of the draw.
    team
        Processes that the scenarios are shared out among.

    Attributes
    ----------
    points
        Those needed, and after them middles of voxels, with the number of voxels that each stands for.
    doses, linear, objective
        At these points.
    """

    def __init__(
        self,
        patient: Patient,
        objective: Objective,
        split: Split,
        bind: Callable[[BoundObjective], RobustObjective],
        *,
        needed: Points,
        tabulate: Callable[[Points], tuple[ScenarioDoses, LinearDose]],
        look: Callable[[Spots], BodyDoses],
        seed: int,
        team: Team = ALONE,
    ) -> None:
        self._team = team
        self._patient, self._terms, self._split, self._bind = patient, objective, split, bind
        self._needed, self._tabulate, self._look, self._seed = needed, tabulate, look, seed
        self._counts = [
            float(mask.sum()) if term in split.limits else None
            for term, mask in zip(objective.terms, objective.masks(patient), strict=True)
        ]
        self._voxels, self._stands_for = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64)
        self._parts: list[tuple[ScenarioDoses, LinearDose]] = []
        self.objective: RobustObjective
        self._add(needed)

    @property
    def limits(self) -> tuple[Term, ...]:
        """The terms that are sampled."""
        return self._split.limits

    @property
    def n_all(self) -> int:
        """How many points and voxels the objective asks about."""
        return len(self._needed) + int(self._split.pool.sum())

    def look(self, spots: Spots) -> BodyDoses:
        """The plan's doses in the body."""
        return self._look(spots)

    def judge(self, seen: BodyDoses, spots: MovingSpots) -> Whole:
        """The objective on all voxels: what was not looked at in every scenario is cold, and adds nothing."""
        here = self._split.pool[seen.voxels]
        points = together((self._needed, voxel_points(self._patient, seen.voxels[here])))
        doses = self._parts[0][0].subset(spots.index).dose(spots.position, spots.weight)
        doses = torch.cat((doses.cpu(), seen.doses[:, here].to(doses.dtype)), dim=1)
        objective = self._bound(points)
        held = objective.constraints
        value = float(objective.value(doses)) - held.value(doses)
        exact = float(objective.exact_value(doses)) if objective.smoothed else value
        return Whole(seen, value, exact, objective.terms(doses), held.violations(doses))

    def _bound(self, points: Points) -> RobustObjective:
        return self._bind(self._terms.at(points, points.volume, self._counts))

    def choose(self, seen: BodyDoses, draw: bool = False) -> dict[str, Tensor]:
        """What to `take`, from a plan's doses: all hot voxels; with `draw`, of the cooler ones those that the strata draw.

        `voxels`, flat grid indices `(n,)`, ascending; `stands_for` `(n,)`, how many voxels each stands for.
        """
        top = torch.zeros(self._patient.grid.n_voxels, dtype=seen.doses.dtype)
        top[seen.body] = self.objective.quantity.value(seen.nominal)
        top[seen.voxels] = self._team.largest(self.objective.quantity.value(seen.doses).amax(0))
        stands_for = torch.zeros(len(top), dtype=torch.float64)
        pool, limits = self._split.pool, self.limits
        hot = torch.zeros_like(pool)
        for term in limits:
            hot |= pool & self._patient.roi(term.roi).mask.flatten() & (top > HOT * term.dose)
        stands_for[hot] = 1.0
        level, left = min((term.dose for term in limits), default=0.0), pool & ~hot
        generator = torch.Generator().manual_seed(self._seed)
        for lowest, share in STRATA if draw else ():
            stratum = (left & (top >= lowest * level)).nonzero().flatten()
            left[stratum] = False
            count = -int(-share * len(stratum) // 1)
            stands_for[stratum[torch.randperm(len(stratum), generator=generator)[:count]]] = len(stratum) / max(count, 1)
        found = stands_for.nonzero().flatten()
        return {"voxels": found, "stands_for": stands_for[found]}

    def take(self, voxels: Tensor, stands_for: Tensor) -> None:
        """Bring voxels into the sample; those that it has already stand for the smaller number from now on."""
        grid = torch.full((self._patient.grid.n_voxels,), torch.inf, dtype=torch.float64)
        grid[voxels] = stands_for
        self._stands_for = torch.minimum(self._stands_for, grid[self._voxels])
        grid[self._voxels] = torch.inf
        more = grid.isfinite().nonzero().flatten()
        self._voxels, self._stands_for = torch.cat((self._voxels, more)), torch.cat((self._stands_for, grid[more]))
        self._add(voxel_points(self._patient, more))

    def _add(self, points: Points) -> None:
        """Tabulate doses at further points, and bind the objective to all; constraints keep the multipliers of the points before."""
        held = self.objective.constraints.state_dict() if self._parts else None
        if len(points):
            self._parts.append(self._tabulate(points))
        self.points = together((self._needed, voxel_points(self._patient, self._voxels, self._stands_for)))
        self.doses = joined([doses for doses, _ in self._parts])
        maps = [linear for _, linear in self._parts]
        self.linear = maps[0] if len(maps) == 1 else JoinedLinear(maps, [doses.n_voxels for doses, _ in self._parts])
        self.objective = self._bound(self.points)
        if held is not None:
            self.objective.constraints.load_state_dict(held)
