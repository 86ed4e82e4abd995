"""Objectives of large ROIs on sampled voxels: which, how many each stands for, and whether the whole grid agrees.

A `max_dose` on the body asks about tens of times more voxels than all other objectives, of which few are ever too hot. Its sum

    sum_v H(D_v - p) (D_v - p)^2   is taken as   sum_{v in sample} (1 / pi_v) H(D_v - p) (D_v - p)^2

over voxels that are drawn with the probability `pi_v`, independent of the dose: an unbiased estimate (Horvitz and Thompson, J Am Stat
Assoc 47:663, 1952). After some iterations, and when the solver has stopped, the doses of all scenarios are computed on the whole grid,
matrix-free and in one pass; voxels that are found hot, or nearly so, have `pi_v = 1` from then on, so that the estimate's variance is that
of the few hot voxels that have been missed. (Martin et al., Phys Med Biol 52:7211, 2007, draw other voxels in each iteration; "Efficient
Radiation Treatment Planning based on Voxel Importance", arXiv 2405.03880, 2024, draws once, by an importance known beforehand. Here the
draw stays, because the solvers want one function, and grows by what it has missed.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from torchimpt.dose.joined import JoinedDose, joined
from torchimpt.dose.scenarios import LinearDose, ScenarioDoses, scenario_doses
from torchimpt.dose.sweep import sweep
from torchimpt.machine import Machine
from torchimpt.objectives import BoundObjective, MaxDose, Objective, RobustObjective, Term
from torchimpt.patient import Patient
from torchimpt.scenarios import Scenario
from torchimpt.schemes.moving import MovingSpots
from torchimpt.spots import Spots

LOOKS = (30, 90)
"""Weight iterations before quick looks at the whole grid, of 300: doses are within some Gy of the plan's by then."""

ROUNDS = 3
"""Most rounds of further optimization after looks that disagree."""

AGREE = 0.01
"""Relative difference between the objective on the sample and on the whole grid that is good enough."""

_SHARE = 0.03
"""Voxels to draw, as a share of those that are needed anyway."""
_NEAR = 6.0
"""Distance from the targets, mm, from which on voxels are drawn more seldom: with its third power, as a shell's volume grows with the
second."""
_HOT = 0.97
"""Share of a term's dose level from which on a voxel counts as hot: what is there may be above it some iterations later."""
_WARM = 0.5
"""Share of the lowest level that a voxel must have in the nominal scenario to be looked at in the others, at a quick look."""


@dataclass(frozen=True)
class Whole:
    """A plan on the whole grid.

    Attributes
    ----------
    voxels
        Flat grid indices `(n,)`.
    doses
        Physical, `(n_scenarios, n)`, Gy, on the CPU.
    value
        The objective.
    terms
        Rows of `RobustObjective.terms`.
    """

    voxels: Tensor
    doses: Tensor
    value: float
    terms: list[dict]


class Sampling:
    """The sample and what it makes of the problem: doses, their linear map, and the objective, at `voxels`.

    Parameters
    ----------
    patient, machine, spots, scenarios
        As placed, and what is planned for.
    objective, bind
        What is asked, and what makes it an objective over scenarios.
    whole
        Flat grid indices of all voxels to look at; those of the objective are among them.
    above
        See `Objective.sampled`.
    engine
        Of the linear map.
    seed
        Of the draw.
    options
        `cutoff`, `dtype` and `device` of the doses.
    """

    def __init__(
        self,
        patient: Patient,
        machine: Machine,
        spots: Spots,
        scenarios: Sequence[Scenario],
        objective: Objective,
        bind: Callable[[BoundObjective], RobustObjective],
        *,
        whole: Tensor,
        above: int,
        engine: str,
        seed: int,
        **options: Any,
    ) -> None:
        self._patient, self._machine, self._spots, self._scenarios = patient, machine, spots, tuple(scenarios)
        self._terms, self._bind, self._engine, self._options = objective, bind, engine, options
        self._whole = whole
        needed, pool = objective.sampled(patient, above)
        pool_voxels = pool.nonzero().flatten()
        chance = _chances(patient, pool_voxels, _SHARE * int(needed.sum()))
        drawn = torch.rand(len(chance), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) < chance
        voxels = torch.cat((needed.nonzero().flatten(), pool_voxels[drawn]))
        order = voxels.argsort()
        self.n_pool = len(pool_voxels) + int(needed.sum())
        self.voxels = voxels[order]
        self.stands_for = torch.cat((torch.ones(int(needed.sum()), dtype=torch.float64), 1.0 / chance[drawn]))[order]
        self._pool = pool
        self._parts: list[tuple[ScenarioDoses, LinearDose]] = []
        self._add(self.voxels)

    def _add(self, voxels: Tensor) -> None:
        """Tabulate doses at further voxels, and bind the objective to all."""
        if len(voxels):
            doses = scenario_doses(self._patient, self._machine, self._spots, voxels, self._scenarios, **self._options)
            self._parts.append((doses, doses.at(self._spots.position, self._engine)))
        self.doses = joined([doses for doses, _ in self._parts])
        maps = [linear for _, linear in self._parts]
        self.linear = maps[0] if len(maps) == 1 else JoinedDose(maps, [doses.n_voxels for doses, _ in self._parts])
        self.objective = self._bind(self._terms.on(self._patient, self.voxels, self.stands_for))

    def look(self, spots: MovingSpots) -> Whole:
        """The plan on the whole grid."""
        doses = sweep(self._patient, self._machine, spots.spots(self._spots), self._whole, self._scenarios, **self._options)
        objective = self._bind(self._terms.on(self._patient, self._whole))
        return Whole(self._whole, doses, float(objective.value(doses)), objective.terms(doses))

    def hot(self, voxels: Tensor, doses: Tensor) -> Tensor:
        """Flat grid indices of those of the voxels that are of sampled ROIs and hot in any scenario, from all their doses; ascending."""
        hottest = torch.zeros(self._patient.grid.n_voxels, dtype=doses.dtype)
        hottest[voxels] = self.objective.quantity.value(doses).amax(0)
        hot = torch.zeros_like(self._pool)
        for term in self._limits():
            hot |= self._patient.roi(term.roi).mask.flatten() & (hottest > _HOT * term.dose)
        return (hot & self._pool).nonzero().flatten()

    def _limits(self) -> list[Term]:
        return [term for term in self._terms.terms if isinstance(term, MaxDose) and term.weight > 0]

    def glance(self, spots: MovingSpots) -> Tensor:
        """What `hot` would find, but for voxels that are hot in some scenario and have not half of the level in the nominal one."""
        placed = spots.spots(self._spots)
        first = sweep(self._patient, self._machine, placed, self._whole, self._scenarios[:1], **self._options)
        level = min((term.dose for term in self._limits()), default=torch.inf)
        warm = self.objective.quantity.value(first[0]) > _WARM * level
        voxels = self._whole[warm]
        others = sweep(self._patient, self._machine, placed, voxels, self._scenarios[1:], **self._options)
        return self.hot(voxels, torch.cat((first[:, warm], others)))

    def take(self, hot: Tensor) -> None:
        """Make sure of these voxels: those of the sample stand for themselves from now on, the others come into it."""
        grid = torch.zeros(self._patient.grid.n_voxels, dtype=torch.bool)
        grid[hot] = True
        self.stands_for = torch.where(grid[self.voxels], 1.0, self.stands_for)
        grid[self.voxels] = False
        more = grid.nonzero().flatten()
        self.voxels = torch.cat((self.voxels, more))
        self.stands_for = torch.cat((self.stands_for, torch.ones(len(more), dtype=torch.float64)))
        self._add(more)


def _chances(patient: Patient, voxels: Tensor, count: float) -> Tensor:
    """Probability `(n,)` of each voxel to be drawn, `count` in sum where there are so many: like `1 / (1 + (d / near)^3)` of its distance
    from the targets.
    """
    shape = torch.ones(len(voxels), dtype=torch.float64)
    target = torch.stack([torch.zeros(patient.grid.shape, dtype=torch.bool), *(patient.roi(name).mask for name in patient.targets)]).any(0)
    if bool(target.any()):
        distance = torch.from_numpy(distance_transform_edt((~target).numpy(), sampling=patient.grid.spacing[::-1])).flatten()[voxels]
        shape = 1.0 / (1.0 + (distance / _NEAR) ** 3)
    count, factor = min(count, float(len(voxels))), 1.0
    for _ in range(50):  # certain ones leave more for the others
        chance = (factor * shape).clamp(max=1.0)
        factor *= count / max(float(chance.sum()), 1e-12)
    return chance
