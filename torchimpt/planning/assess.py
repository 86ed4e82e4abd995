"""Doses of a finished plan: nominal on the whole body and the ROIs, every scenario on the ROIs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from torchimpt.case import Case
from torchimpt.checks import InputError, finite
from torchimpt.dose.body import body_doses
from torchimpt.dose.looks import look_points
from torchimpt.dose.scenarios import scenario_operators
from torchimpt.evaluate.dvh import RoiDose
from torchimpt.evaluate.goals import check_goals
from torchimpt.evaluate.hottest import hottest_outside_targets
from torchimpt.evaluate.tables import point_doses, roi_doses
from torchimpt.machine import Machine
from torchimpt.objectives import LETd, MaxDose
from torchimpt.patient import Patient
from torchimpt.planning.letd import least_dose, quantity, weighted
from torchimpt.planning.load import Compute
from torchimpt.points import Points, voxel_points
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


def asked_voxels(case: Case, patient: Patient, whole: bool = False) -> torch.Tensor:
    """Mask `(z, y, x)` of the voxels of the dose grid that are told in every scenario: of the body, where a goal or an objective other than
    `max_dose` is about it, where there is no other ROI, or when the `whole` is asked for; else none, as ROIs are looked at on points.
    """
    body = "" if patient.external is None else patient.external.name
    told = any(goal.roi == body or goal.metric == "ci" for goal in case.goal)
    told = told or any(term.roi == body and not isinstance(term, MaxDose) for term in case.terms())
    return patient.body_and_rois if whole or told or not _organs(patient) else torch.zeros(patient.grid.shape, dtype=torch.bool)


def _organs(patient: Patient) -> list[str]:
    """ROIs with voxels, but the body."""
    return [name for name, roi in patient.rois.items() if roi.role != "external" and bool(roi.mask.any())]


def case_targets(case: Case, patient: Patient) -> list[str]:
    """ROIs that the case prescribes dose to or covers with spots; the patient's targets where there is none."""
    return [*dict.fromkeys((*case.prescriptions(), *(case.spots.targets if case.spots else ())))] or [*patient.targets]


def targets_mask(case: Case, patient: Patient) -> torch.Tensor:
    """Mask `(z, y, x)` of `case_targets`; empty where there is none."""
    targets = [name for name in case_targets(case, patient) if bool(patient.roi(name).mask.any())]
    return patient.union(targets) if targets else torch.zeros(patient.grid.shape, dtype=torch.bool)


def case_points(case: Case, patient: Patient, machine: Machine, spots: Spots, rois: Sequence[str], n_scenarios: int, seed: int) -> Points:
    """Points in ROIs as the case asks for them, finer in its targets."""
    targets = [name for name in case_targets(case, patient) if bool(patient.roi(name).mask.any())]
    return look_points(patient, machine, spots, rois, targets, spacing=case.dose.target_grid_mm, n_scenarios=n_scenarios, seed=seed)


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
) -> Assessment:
    """Compute a plan's doses without matrices, and check the case's goals.

    ROIs are looked at on points of their own, with the dose that the model computes there, inside the body or not, in every scenario: other
    points than the optimizer saw. The nominal dose is computed besides at every voxel of the body, and the other scenarios' wherever it may
    get hot outside the targets. Doses of voxels are means over them, so that they add up to what the
    patient gets. All of the external ROI is part of the scenarios' tables only where it is told (`asked_voxels`): it has ten times the
    voxels of all others.
    """
    prescription = case.highest_prescription()
    level = torch.inf if prescription is None else prescription
    # nominal first, and where it is not among the scenarios it is still what goals compare with
    ordered = (NOMINAL, *(s for s in scenarios if not s.is_nominal))
    options: dict[str, Any] = {
        "cutoff": case.dose.cutoff_sigma, "dtype": spots.weight.dtype, "device": compute.device, "model": case.dose.model,
    }  # fmt: skip
    shield, here = targets_mask(case, patient), spots.weighted().to(compute.device)
    with progress.stage("Dose in every scenario", total=2 * len(ordered)) as stage:
        seen = body_doses(
            patient, machine, here, ordered, asked=asked_voxels(case, patient, whole).flatten(), level=level, leave=shield.flatten(),
            quantity=case.quantity(), discarded=True, letd=case.tells_letd, done=stage.advance, means=True, **options,
        )  # fmt: skip
        # other points than a plan is made with, which has the case's own seed
        points, at_points = voxel_points(patient, torch.zeros(0, dtype=torch.int64)), torch.zeros(len(ordered), 0)
        letd_at_points = at_points if case.tells_letd else None
        organs = _organs(patient)
        if organs:
            points = case_points(case, patient, machine, spots, organs, len(ordered), case.seed + 1)

            def looked(amplitude: str, done: Callable[[], object] = lambda: None) -> torch.Tensor:
                found = []
                for operator in scenario_operators(patient, machine, here, points, ordered, amplitude=amplitude, **options):
                    found.append(operator.dose(here.position.detach(), here.weight.detach()).cpu())
                    done()
                return torch.stack(found)

            at_points = looked("dose", stage.advance)
            letd_at_points = looked("letd_dose") if case.tells_letd else None
    names, entries = [scenario.name for scenario in ordered], torch.arange(len(points))
    inside, mask = (torch.zeros(patient.grid.n_voxels, dtype=dtype) for dtype in (seen.nominal.dtype, torch.bool))
    inside[seen.body] = _sound(weighted(case, patient, seen.nominal, seen.nominal_letd_dose, seen.body), NOMINAL.name)
    mask[seen.voxels] = True
    everywhere = bool(mask[seen.body].all())

    def sound(doses: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: _sound(dose, name) for name, dose in zip(names, doses, strict=True)}

    doses = sound(weighted(case, points, at_points, letd_at_points, entries))
    voxel_doses = sound(weighted(case, patient, seen.doses, seen.letd_doses, seen.voxels))

    def tables_of(on_points: Mapping[str, torch.Tensor], on_voxels: Mapping[str, torch.Tensor]) -> dict[str, dict[str, RoiDose]]:
        """By scenario and ROI: of points, and of all the body's voxels where they are told."""
        # points in organs are in the body, too, but are not all of it
        found = point_doses(points, on_points, organs)
        if everywhere and patient.external is not None:
            body = patient.external
            for name, own in roi_doses(replace(patient, rois={body.name: body}), on_voxels, seen.voxels).items():
                found[name] |= own
        return {name: {roi: rois[roi] for roi in patient.rois if roi in rois} for name, rois in found.items()}

    def letd_tables(name: str) -> dict[str, dict[str, RoiDose]]:
        """Of a quantity that needs LETd, in its unit."""
        assert letd_at_points is not None and seen.letd_doses is not None  # by `Case.tells_letd`
        on_points = quantity(case, name, points, entries).value(at_points, letd_at_points)
        on_voxels = quantity(case, name, patient, seen.voxels).value(seen.doses, seen.letd_doses)
        return tables_of(dict(zip(names, on_points, strict=True)), dict(zip(names, on_voxels, strict=True)))

    tables = tables_of(doses, voxel_doses)
    goals = _goals(case, tables, letd_tables, voxel_doses if everywhere else None)
    targets = case_targets(case, patient)

    def whole_grid(dose: torch.Tensor) -> torch.Tensor:
        return torch.zeros(patient.grid.n_voxels, dtype=dose.dtype).index_put_((seen.voxels,), dose).reshape(patient.grid.shape)

    dose = inside.reshape(patient.grid.shape)
    on_grid = ((name, dose if name == NOMINAL.name else whole_grid(one)) for name, one in voxel_doses.items())
    hottest = hottest_outside_targets(patient, on_grid, targets, prescription)
    full = {name: whole_grid(one) for name, one in voxel_doses.items()} if whole else {}
    by_beam = _beam_doses(case, patient, machine, spots, compute) if case.output.beams_dose else {}
    assessment = Assessment(dose, points, doses, tables, full, by_beam, goals, seen.discarded_fraction, hottest)
    if seen.nominal_letd_dose is None:
        return assessment
    letd = torch.zeros(patient.grid.n_voxels, dtype=seen.nominal.dtype)
    letd[seen.body] = LETd(least_dose(case)).value(seen.nominal, seen.nominal_letd_dose)
    return replace(assessment, letd=letd.reshape(patient.grid.shape), roi_letd=letd_tables("letd"))


def _goals(
    case: Case,
    tables: Mapping[str, Mapping[str, RoiDose]],
    letd_tables: Callable[[str], Mapping[str, Mapping[str, RoiDose]]],
    body: Mapping[str, torch.Tensor] | None,
) -> list[dict]:
    """Rows of `check_goals` in the case's order, each goal on the tables of its own quantity."""
    goals = case.goals()
    of_dose = iter(check_goals([g for g in goals if g.quantity == "dose"], tables, prescriptions=case.prescriptions(), body=body))
    others = {name: letd_tables(name) for name in dict.fromkeys(g.quantity for g in goals if g.quantity != "dose")}
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
                quantity=case.quantity(), letd=isinstance(case.dose.rbe, str), cutoff=case.dose.cutoff_sigma, dtype=spots.weight.dtype,
                device=compute.device, model=case.dose.model, means=True,
            )  # fmt: skip
            dose[seen.body] = weighted(case, patient, seen.nominal, seen.nominal_letd_dose, seen.body)
        found[beam] = dose.reshape(patient.grid.shape)
    return found
