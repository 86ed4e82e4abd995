"""Doses of a plan where they matter: nominal in the whole body, in every scenario at chosen voxels and wherever it may get hot.

A body has tens of times the voxels of the ROIs, and most of what its doses cost is tracing and tabulating, once per scenario. A scenario
moves the dose by a few mm, so that tissue which gets little in the nominal scenario, with nothing warm beside it, is not hot in any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import max_pool3d

from torchimpt.dose.scenarios import scenario_operators
from torchimpt.geometry import Grid
from torchimpt.machine import Machine
from torchimpt.patient import Patient
from torchimpt.physics.stopping import relative_stopping_power
from torchimpt.processes import ALONE, Team
from torchimpt.quantities import Quantity
from torchimpt.scenarios import NOMINAL, Scenario
from torchimpt.spots import Spots

WARM = 0.5
"""Share of a dose level that tissue must have in the nominal scenario, or beside it, to be looked at in the others."""


@dataclass(frozen=True)
class BodyDoses:
    """A plan's physical doses, Gy, on the CPU.

    Attributes
    ----------
    body, nominal
        Flat grid indices `(n,)`, ascending, of the body and all ROIs; the nominal dose there.
    voxels, doses
        Those of them that are looked at in every scenario `(m,)`, ascending, and `(n_scenarios, m)`; of this process's scenarios.
    discarded_fraction
        Share of the nominal integral dose that the lateral cut-off puts elsewhere; NaN where it was not asked for.
    nominal_letd_dose, letd_doses
        LETd x dose, Gy keV/um, in the shapes of `nominal` and `doses`; None where it was not asked for.
    """

    body: torch.Tensor
    nominal: torch.Tensor
    voxels: torch.Tensor
    doses: torch.Tensor
    discarded_fraction: float
    nominal_letd_dose: torch.Tensor | None = None
    letd_doses: torch.Tensor | None = None


def body_doses(
    patient: Patient,
    machine: Machine,
    spots: Spots,
    scenarios: Sequence[Scenario],
    *,
    asked: torch.Tensor,
    level: float,
    leave: torch.Tensor | None = None,
    quantity: Quantity,
    discarded: bool = False,
    letd: bool = False,
    team: Team = ALONE,
    done: Callable[[], object] = lambda: None,
    **options: Any,
) -> BodyDoses:
    """Compute a plan's doses, matrix-free, scenario by scenario.

    Parameters
    ----------
    patient, machine, spots, scenarios
        As for `scenario_doses`; spots without weight cost nothing.
    asked
        Flat mask `(n_grid,)` of voxels to look at in every scenario.
    level
        Gy, in the `quantity`: what is `WARM` of it or more in the nominal scenario is looked at in all, with what lies within a
        scenario's reach of it.
    leave
        Flat mask `(n_grid,)` of voxels that are not looked at for that.
    discarded
        Whether to measure `discarded_fraction`.
    letd
        Whether to compute LETd x dose, too.
    team
        Processes that the scenarios, the nominal one first, are shared out among.
    done
        Called after each scenario.
    options
        `cutoff`, `dtype`, `device`, `model`, `backend` and `means` of `scenario_doses`.
    """
    spots = spots.weighted()
    position, weight = spots.position.detach(), spots.weight.detach()
    options["rsp"] = relative_stopping_power(patient.traced, machine)  # once for all pieces and scenarios
    body = patient.body_and_rois.flatten().nonzero().flatten()
    like, fraction = torch.zeros(len(body), dtype=weight.dtype), torch.nan
    if team.leads:
        like, fraction = _nominal(patient, machine, spots, body, discarded, options)
    nominal = team.of(0, lambda: like, like)
    done()
    others = [k for k, s in enumerate(scenarios) if not s.is_nominal]
    grid = torch.zeros(patient.grid.n_voxels, dtype=nominal.dtype)
    grid[body] = quantity.value(nominal)
    looked_at = asked.clone()
    if others:
        warm = beside(grid >= WARM * level, patient.grid, max(reach(scenarios[k]) for k in others))
        looked_at |= warm if leave is None else warm & ~leave
    place = looked_at[body]
    voxels = body[place]
    own = team.own(range(len(scenarios)))
    doses = nominal[place].repeat(len(own), 1)
    others = [k for k in others if k in own] if len(voxels) else []
    operators = scenario_operators(patient, machine, spots, voxels, [scenarios[k] for k in others], **options)
    for k in others:
        doses[k - own[0]] = next(operators).dose(position, weight).cpu()  # no name holds a scenario's tables while the next are made
        done()
    if not letd:
        return BodyDoses(body, nominal, voxels, doses, fraction)

    def letd_dose(where: torch.Tensor, some: Sequence[Scenario]) -> list[torch.Tensor]:
        found = scenario_operators(patient, machine, spots, where, some, amplitude="letd_dose", **options)
        return [operator.dose(position, weight).cpu() for operator in found]

    letd_options = {**options, "amplitude": "letd_dose"}
    whole = team.of(0, lambda: _nominal(patient, machine, spots, body, False, letd_options)[0], nominal)
    letd_doses = whole[place].repeat(len(own), 1)
    for k, row in zip(others, letd_dose(voxels, [scenarios[k] for k in others]) if others else (), strict=True):
        letd_doses[k - own[0]] = row
    return BodyDoses(body, nominal, voxels, doses, fraction, whole, letd_doses)


def _nominal(
    patient: Patient, machine: Machine, spots: Spots, voxels: torch.Tensor, discarded: bool, options: dict[str, Any]
) -> tuple[torch.Tensor, float]:
    """Nominal dose `(n,)` on the CPU and, where asked for, the discarded fraction; tables of `_CHUNK` voxels at a time."""
    position, weight = spots.position.detach(), spots.weight.detach()
    parts, moved, integral = [], 0.0, 0.0
    for some in voxels.split(_CHUNK):
        operator = next(scenario_operators(patient, machine, spots, some, (NOMINAL,), **options))
        parts.append(operator.dose(position, weight).cpu())
        if discarded:
            here = operator.discarded(position, weight)
            moved, integral = moved + here[0], integral + here[1]
        del operator
    fraction = (moved / integral if integral > 0 else 0.0) if discarded else torch.nan
    return torch.cat(parts) if parts else torch.zeros(0, dtype=weight.dtype), fraction


_CHUNK = 1 << 17
"""Voxels tabulated at once: 50 MB a beam for fifty energy layers in float32."""

_DEPTH = 200.0
"""Depth that a range error counts for, mm of water: that of the deepest targets in a head; in lung half of it, as water, is as far."""


def reach(scenario: Scenario) -> float:
    """How far a scenario may move the dose, mm."""
    return sum(x * x for x in scenario.shift) ** 0.5 + abs(scenario.range_scale - 1.0) * _DEPTH


def beside(mask: torch.Tensor, grid: Grid, distance: float) -> torch.Tensor:
    """Flat mask `(n_grid,)` of the box of `distance` mm, rounded up to voxels, around every voxel of a flat mask."""
    wide = mask.reshape(1, 1, *grid.shape).float()
    for axis, spacing in enumerate(reversed(grid.spacing)):
        half = [0, 0, 0]
        half[axis] = int(-(-distance // spacing))
        wide = max_pool3d(wide, [2 * h + 1 for h in half], stride=1, padding=half)
    return wide.flatten() > 0
