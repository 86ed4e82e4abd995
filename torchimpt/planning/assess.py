"""Doses of a finished plan: nominal on the whole body and the ROIs, every scenario on the ROIs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from torchimpt.case import Case
from torchimpt.checks import InputError, finite
from torchimpt.dose.body import body_doses
from torchimpt.evaluate.dvh import RoiDose
from torchimpt.evaluate.goals import check_goals
from torchimpt.evaluate.hottest import hottest_outside_targets
from torchimpt.machine import Machine
from torchimpt.objectives import LETd
from torchimpt.patient import Patient
from torchimpt.planning.letd import least_dose, weighted
from torchimpt.planning.load import Compute, check_shifts, dose_options
from torchimpt.planning.look import Look, Tables, case_targets, look
from torchimpt.points import Points
from torchimpt.processes import ALONE, Team
from torchimpt.scenarios import NOMINAL, Scenario
from torchimpt.spots import Spots
from torchimpt.watch import Progress

HIGHEST = 1e6
"""No dose of a plan is higher, Gy: the weights behind it are in other units."""


@dataclass(frozen=True)
class Assessment:
    """What a plan does.

    Attributes
    ----------
    dose
        Nominal dose `(z, y, x)`, Gy, of the body and of all ROIs; 0 elsewhere.
    points
        Where ROIs were looked at.
    doses
        `{scenario: (n_points,)}`, Gy, at these points, nominal first.
    roi_doses
        `{scenario: {roi: doses}}`, Gy, nominal first, with the volumes of its points; of the body's voxels, too, where that was asked for.
    voxels, voxel_doses
        Flat grid indices `(m,)` of the voxels that every scenario was looked at in, and `{scenario: (m,)}`, Gy, nominal first.
    scenario_doses
        `{scenario: (z, y, x)}` where whole doses were asked for, else empty.
    beam_doses
        `{beam: (z, y, x)}`, nominal, Gy, of each beam alone, where the case asks for them, else empty.
    goals
        Rows of `check_goals`.
    discarded_fraction
        Share of the nominal integral dose that the lateral cut-off puts elsewhere (`DoseOperator.discarded_fraction`).
    hottest
        From `hottest_outside_targets`.
    letd, roi_letd
        Nominal LETd `(z, y, x)`, keV/um, where `dose` is, of a voxel the mean LETd x dose over the mean dose; and as
        `roi_doses`, at the same points. None and empty where it was not asked for.
    """

    dose: torch.Tensor
    points: Points
    doses: dict[str, torch.Tensor]
    roi_doses: dict[str, dict[str, RoiDose]]
    voxels: torch.Tensor
    voxel_doses: dict[str, torch.Tensor]
    scenario_doses: dict[str, torch.Tensor]
    beam_doses: dict[int, torch.Tensor]
    goals: list[dict]
    discarded_fraction: float
    hottest: dict[str, Any]
    letd: torch.Tensor | None = None
    roi_letd: dict[str, dict[str, RoiDose]] = field(default_factory=dict)


def _sound(dose: torch.Tensor, name: str) -> torch.Tensor:
    """The dose, or an error where it is none that a plan can have."""
    finite(f"the dose in the scenario {name}", dose)
    if dose.numel() and float(dose.max()) > HIGHEST:
        raise InputError(
            f"the dose in the scenario {name} reaches {float(dose.max()):.3g} Gy; check the weights, which are in 10^6 protons"
        )
    return dose


def assess(
    case: Case,
    patient: Patient,
    machine: Machine,
    spots: Spots,
    scenarios: Sequence[Scenario],
    compute: Compute,
    progress: Progress,
    *,
    whole: bool = False,
    team: Team = ALONE,
) -> Assessment:
    """Compute a plan's doses without matrices, and check the case's goals.

    ROIs are looked at on points of their own, with the dose that the model computes there, inside the body or not, in every scenario: other
    points than the optimizer saw. The nominal dose is computed besides at every voxel of the body, and the other scenarios' wherever it may
    get hot outside the targets. Doses of voxels are means over them, so that they add up to what the patient gets. All of the external ROI
    is part of the scenarios' tables only where it is told (`asked_voxels`): it has ten times the voxels of all others. Among several
    processes this is for the one that leads; the others `help_assess` at the same time.
    """
    ordered = _ordered(scenarios)
    check_shifts(ordered, patient.grid)
    seen = look(case, patient, machine, spots, ordered, compute, progress, whole, team)
    shape = patient.grid.shape
    dose = _sound(seen.nominal(), NOMINAL.name).reshape(shape)
    doses, on_voxels = ({name: _sound(one, name) for name, one in part.items()} for part in (seen.on_points(), seen.on_voxels()))
    tables = seen.tables()
    goals = _goals(case, seen, tables, on_voxels if seen.everywhere else None)
    on_grid = ((name, dose if name == NOMINAL.name else seen.whole(one).reshape(shape)) for name, one in on_voxels.items())
    hottest = hottest_outside_targets(patient, on_grid, case_targets(case, patient), case.highest_prescription())
    full = {name: seen.whole(one).reshape(shape) for name, one in on_voxels.items()} if whole else {}
    by_beam = beam_doses(case, patient, machine, spots, compute) if case.output.beams_dose else {}
    assessment = Assessment(
        dose, seen.points, doses, tables, seen.body.voxels, on_voxels, full, by_beam, goals, seen.body.discarded_fraction, hottest
    )
    body = seen.body
    if body.nominal_letd_dose is None:
        return assessment
    letd = seen.whole(LETd(least_dose(case)).value(body.nominal, body.nominal_letd_dose), body.body)
    return replace(assessment, letd=letd.to(body.nominal.dtype).reshape(shape), roi_letd=seen.tables("letd"))


def help_assess(
    case: Case,
    patient: Patient,
    machine: Machine,
    spots: Spots,
    scenarios: Sequence[Scenario],
    compute: Compute,
    *,
    whole: bool = False,
    team: Team,
) -> None:
    """The part of `assess` that falls to a process which does not lead: its scenarios' doses."""
    ordered = _ordered(scenarios)
    check_shifts(ordered, patient.grid)
    look(case, patient, machine, spots, ordered, compute, Progress(enabled=False), whole, team)


def _ordered(scenarios: Sequence[Scenario]) -> tuple[Scenario, ...]:
    """Nominal first: where it is not among the scenarios it is still what goals compare with."""
    return (NOMINAL, *(s for s in scenarios if not s.is_nominal))


def _goals(case: Case, seen: Look, tables: Tables, body: Mapping[str, torch.Tensor] | None) -> list[dict]:
    """Rows of `check_goals` in the case's order, each goal on the tables of its own quantity."""
    goals = case.goals()
    of_dose = iter(check_goals([g for g in goals if g.quantity == "dose"], tables, prescriptions=case.prescriptions(), body=body))
    others = {name: seen.tables(name) for name in dict.fromkeys(g.quantity for g in goals if g.quantity != "dose")}
    return [next(of_dose) if goal.quantity == "dose" else check_goals([goal], others[goal.quantity])[0] for goal in goals]


def beam_doses(case: Case, patient: Patient, machine: Machine, spots: Spots, compute: Compute) -> dict[int, torch.Tensor]:
    """Each beam's nominal dose `(z, y, x)`, Gy, where the plan's is known; 0 everywhere for a beam without spots.

    A quantity that is not linear in the dose is that of the beam alone, so that the beams' need not sum up to the plan's.
    """
    nowhere = torch.zeros(patient.grid.n_voxels, dtype=torch.bool)
    found = {}
    for beam in range(len(spots.beams)):
        dose = torch.zeros(patient.grid.n_voxels, dtype=spots.weight.dtype)
        mine = spots.beam == beam
        if bool(mine.any()):
            seen = body_doses(
                patient, machine, spots.subset(mine).to(compute.device), (NOMINAL,), asked=nowhere, level=torch.inf,
                quantity=case.quantity(), letd=isinstance(case.dose.rbe, str), means=True,
                **dose_options(case, compute.device, spots.weight.dtype),
            )  # fmt: skip
            dose[seen.body] = weighted(case, patient, seen.nominal, seen.nominal_letd_dose, seen.body)
        found[beam] = dose.reshape(patient.grid.shape)
    return found
