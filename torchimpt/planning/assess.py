"""Doses of a finished plan: nominal on the whole body and the ROIs, every scenario on the ROIs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from torchimpt.case import Case
from torchimpt.checks import InputError, finite
from torchimpt.dose.body import BodyDoses, body_doses
from torchimpt.evaluate.goals import check_goals
from torchimpt.evaluate.hottest import hottest_outside_targets
from torchimpt.evaluate.tables import roi_doses
from torchimpt.machine import Machine
from torchimpt.objectives import LETd, MaxDose
from torchimpt.patient import Patient
from torchimpt.planning.letd import least_dose, quantity, weighted
from torchimpt.planning.load import Compute
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
    roi_doses
        `{scenario: {roi: (n_roi,)}}`, Gy, nominal first.
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
        Nominal LETd `(z, y, x)`, keV/um, where `dose` is; and as `roi_doses`. None and empty where it was not asked for.
    """

    dose: torch.Tensor
    roi_doses: dict[str, dict[str, torch.Tensor]]
    scenario_doses: dict[str, torch.Tensor]
    beam_doses: dict[int, torch.Tensor]
    goals: list[dict]
    discarded_fraction: float
    hottest: dict[str, Any]
    letd: torch.Tensor | None = None
    roi_letd: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)


def _sound(dose: torch.Tensor, name: str) -> torch.Tensor:
    """The dose, or an error where it is none that a plan can have."""
    finite(f"the dose in the scenario {name}", dose)
    if float(dose.max()) > HIGHEST:
        raise InputError(
            f"the dose in the scenario {name} reaches {float(dose.max()):.3g} Gy; check the weights, which are in 10^6 protons"
        )
    return dose


def asked_voxels(case: Case, patient: Patient, whole: bool = False) -> torch.Tensor:
    """Mask `(z, y, x)` of the voxels whose doses are told in every scenario: of all ROIs but the body, which is told only where a goal
    or an objective other than `max_dose` is about it, where there is no other ROI, or when the `whole` is asked for.
    """
    rois = [name for name, roi in patient.rois.items() if roi.role != "external" and bool(roi.mask.any())]
    body = "" if patient.external is None else patient.external.name
    told = any(goal.roi == body or goal.metric == "ci" for goal in case.goal)
    told = told or any(term.roi == body and not isinstance(term, MaxDose) for term in case.terms())
    if whole or told or not body or not rois:
        return patient.body_and_rois
    return patient.union(rois)


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
    seen: BodyDoses | None = None,
) -> Assessment:
    """Compute a plan's doses without matrices, and check the case's goals.

    Every ROI's voxels have the dose that the model computes there, inside the body or not, in the nominal scenario as in all others and as
    the optimizer sees them; the nominal dose besides at every voxel of the body, and the other scenarios' wherever it may get hot.
    All of the external ROI is part of the scenarios' tables only where it is told (`asked_voxels`): it has ten times the voxels of all
    others. `seen` are doses of these spots in these scenarios that are known already.
    """
    prescription = case.highest_prescription()
    level = torch.inf if prescription is None else prescription
    # nominal first, and where it is not among the scenarios it is still what goals compare with
    ordered = (NOMINAL, *(s for s in scenarios if not s.is_nominal))
    if seen is None or whole or tuple(scenarios) != ordered or (case.tells_letd and seen.letd_doses is None):
        with progress.stage("Dose in every scenario", total=len(ordered)) as stage:
            seen = body_doses(
                patient, machine, spots.to(compute.device), ordered, asked=asked_voxels(case, patient, whole).flatten(),
                level=level, quantity=case.quantity(), discarded=True, letd=case.tells_letd, done=stage.advance,
                cutoff=case.dose.cutoff_sigma,
                dtype=spots.weight.dtype, device=compute.device, model=case.dose.model,
            )  # fmt: skip
    inside, mask = (torch.zeros(patient.grid.n_voxels, dtype=dtype) for dtype in (seen.nominal.dtype, torch.bool))
    inside[seen.body] = _sound(weighted(case, patient, seen.nominal, seen.nominal_letd_dose, seen.body), NOMINAL.name)
    mask[seen.voxels] = True
    own = weighted(case, patient, seen.doses, seen.letd_doses, seen.voxels)
    doses = {scenario.name: _sound(dose, scenario.name) for scenario, dose in zip(ordered, own, strict=True)}
    everywhere = bool(mask[seen.body].all())
    viewed = patient if everywhere else replace(patient, rois={n: r for n, r in patient.rois.items() if r.role != "external"})
    tables = roi_doses(viewed, doses, seen.voxels)
    goals = _goals(case, patient, viewed, [scenario.name for scenario in ordered], seen, tables, doses if everywhere else None)
    targets = [*dict.fromkeys((*case.prescriptions(), *(case.spots.targets if case.spots else ())))] or patient.targets

    def whole_grid(dose: torch.Tensor) -> torch.Tensor:
        return torch.zeros(patient.grid.n_voxels, dtype=dose.dtype).index_put_((seen.voxels,), dose).reshape(patient.grid.shape)

    dose = inside.reshape(patient.grid.shape)
    on_grid = ((name, dose if name == NOMINAL.name else whole_grid(one)) for name, one in doses.items())
    hottest = hottest_outside_targets(patient, on_grid, targets, prescription)
    full = {name: whole_grid(one) for name, one in doses.items()} if whole else {}
    by_beam = _beam_doses(case, patient, machine, spots, compute) if case.output.beams_dose else {}
    if seen.letd_doses is None or seen.nominal_letd_dose is None:
        return Assessment(dose, tables, full, by_beam, goals, seen.discarded_fraction, hottest)
    letd = torch.zeros(patient.grid.n_voxels, dtype=seen.nominal.dtype)
    letd[seen.body] = LETd(least_dose(case)).value(seen.nominal, seen.nominal_letd_dose)
    roi_letd = _tables(case, patient, viewed, [scenario.name for scenario in ordered], seen, "letd")
    on_letd_grid = letd.reshape(patient.grid.shape)
    return Assessment(dose, tables, full, by_beam, goals, seen.discarded_fraction, hottest, on_letd_grid, roi_letd)


def _tables(
    case: Case, patient: Patient, viewed: Patient, names: Sequence[str], seen: BodyDoses, name: str
) -> dict[str, dict[str, torch.Tensor]]:
    """`{scenario: {roi: (n_roi,)}}` of a quantity that needs LETd, in its unit."""
    assert seen.letd_doses is not None  # asked for by `Case.tells_letd`
    values = quantity(case, name, patient, seen.voxels).value(seen.doses, seen.letd_doses)
    return roi_doses(viewed, dict(zip(names, values, strict=True)), seen.voxels)


def _goals(
    case: Case,
    patient: Patient,
    viewed: Patient,
    names: Sequence[str],
    seen: BodyDoses,
    tables: dict[str, dict[str, torch.Tensor]],
    body: dict[str, torch.Tensor] | None,
) -> list[dict]:
    """Rows of `check_goals` in the case's order, each goal on the tables of its own quantity."""
    goals = case.goals()
    of_dose = iter(check_goals([g for g in goals if g.quantity == "dose"], tables, prescriptions=case.prescriptions(), body=body))
    others = {g.quantity: _tables(case, patient, viewed, names, seen, g.quantity) for g in goals if g.quantity != "dose"}
    return [next(of_dose) if goal.quantity == "dose" else check_goals([goal], others[goal.quantity])[0] for goal in goals]


def _beam_doses(case: Case, patient: Patient, machine: Machine, spots: Spots, compute: Compute) -> dict[int, torch.Tensor]:
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
                quantity=case.quantity(), letd=isinstance(case.dose.rbe, str),
                cutoff=case.dose.cutoff_sigma, dtype=spots.weight.dtype, device=compute.device,
                model=case.dose.model,
            )  # fmt: skip
            dose[seen.body] = weighted(case, patient, seen.nominal, seen.nominal_letd_dose, seen.body)
        found[beam] = dose.reshape(patient.grid.shape)
    return found
