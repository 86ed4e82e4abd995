"""A plan's check of itself: its nominal dose on a finer grid than it was made on."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch

from torchimpt.case import Case
from torchimpt.checks import InputError, PhysicsWarning
from torchimpt.dose.scenarios import scenario_operators
from torchimpt.evaluate.fine import fine_warning, moved
from torchimpt.evaluate.goals import check_goals
from torchimpt.evaluate.tables import point_doses, roi_metrics
from torchimpt.machine import Machine
from torchimpt.objectives import Objective
from torchimpt.patient import Patient
from torchimpt.planning.assess import Assessment
from torchimpt.planning.letd import weighted
from torchimpt.planning.load import Compute, dose_options
from torchimpt.points import Points, cell_points
from torchimpt.resampling import cropped, resample
from torchimpt.scenarios import NOMINAL
from torchimpt.spots import Spots
from torchimpt.watch import Progress

_CHUNK = 1 << 17
"""Points tabulated at once: 80 MB for a hundred energy layers in float32."""


def fine_check(
    case: Case, patient: Patient, machine: Machine, spots: Spots, assessment: Assessment, compute: Compute, progress: Progress
) -> dict[str, Any] | None:
    """Nominal dose of every ROI but the body on voxels of half the size, or of `[dose] check_mm`; CT and ROIs are those that were read.

    Returns
    -------
    `grid_mm`; `rois`, as in a scenario of `metrics.json`; `objective`, the nominal scenario's, and `objective_planned`, on the points that
    the plan's other numbers are of, both without what is asked of the body; `moved`, rows of `torchimpt.evaluate.fine.moved`; `warning`, a
    sentence or None. None where no check is asked for, or where it would not fit: that is told as a warning, because the plan is made.
    """
    if case.dose.check_mm == "off":
        return None
    spacing = case.dose.check_mm or tuple(0.5 * s for s in patient.grid.spacing)
    try:
        with progress.stage("Nominal dose on a finer grid"):
            return _checked(case, patient, machine, spots, assessment, compute, spacing)
    except InputError as error:
        warnings.warn(f"the plan was not checked on a finer grid: {error}; set dose.check_mm", PhysicsWarning, stacklevel=2)
        return None


def _checked(
    case: Case, patient: Patient, machine: Machine, spots: Spots, assessment: Assessment, compute: Compute, spacing: Any
) -> dict[str, Any]:
    read = patient.original or patient
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PhysicsWarning)  # what thin ROIs lose was told of the coarser grid
        fine = resample(cropped(read, read.body_and_rois), spacing)
    organs = [name for name, roi in fine.rois.items() if roi.role != "external" and bool(roi.mask.any())]
    points = cell_points(fine, organs, jitter=False)
    letd_dose = _nominal(case, fine, machine, spots, points, compute, "letd_dose") if isinstance(case.dose.rbe, str) else None
    dose = weighted(case, points, _nominal(case, fine, machine, spots, points, compute), letd_dose, torch.arange(len(points)))
    doses = point_doses(points, {NOMINAL.name: dose}, organs)
    rois = {name: roi_metrics(values) for name, values in doses[NOMINAL.name].items()}
    planned = assessment.roi_doses[NOMINAL.name]
    goals = [
        goal for goal in case.goals() if goal.roi in rois and goal.roi in planned and goal.metric.kind != "ci" and goal.quantity == "dose"
    ]
    both = tuple(check_goals(goals, one, prescriptions=case.prescriptions()) for one in ({NOMINAL.name: planned}, doses))
    targets = [name for name in dict.fromkeys((*case.prescriptions(), *(case.spots.targets if case.spots else ()))) if name in planned]
    own = {name: roi_metrics(planned[name]) for name in targets}
    rows = moved(own, rois, (both[0], both[1]), case.prescriptions(), targets)
    grid_mm = list(fine.grid.spacing)
    return {
        "grid_mm": grid_mm, "rois": rois, **_objectives(case, assessment, organs, points, dose), "moved": rows,
        "warning": fine_warning(grid_mm, rows),
    }  # fmt: skip


def _nominal(
    case: Case, fine: Patient, machine: Machine, spots: Spots, points: Points, compute: Compute, amplitude: str = "dose"
) -> torch.Tensor:
    """Nominal physical dose `(n_points,)`, Gy, or LETd x dose, on the CPU, matrix-free."""
    spots = spots.weighted().to(compute.device)
    options = {**dose_options(case, compute.device, spots.weight.dtype), "amplitude": amplitude}
    parts = []
    for place, volume in zip(points.place(0).split(_CHUNK), points.volume.split(_CHUNK), strict=True):
        operator = next(scenario_operators(fine, machine, spots, Points((place,), volume, {}), (NOMINAL,), **options))
        parts.append(operator.dose(spots.position.detach(), spots.weight.detach()).cpu())
    return torch.cat(parts)


def _objectives(case: Case, assessment: Assessment, organs: Sequence[str], points: Points, dose: torch.Tensor) -> dict[str, float]:
    """The nominal objective on the finer grid and as planned, of terms of dose about ROIs that it has, without constraints; empty
    where there is none.
    """
    terms = [term for term in case.terms() if term.roi in organs and term.quantity == "dose" and not term.constraint]
    if not any(term.weight > 0 for term in terms):
        return {}
    objective = Objective(terms, normalize=case.optimizer.normalize, overlap=case.optimizer.overlap)
    planned = assessment.points
    on_both = objective.at(points, points.volume).value(dose), objective.at(planned, planned.volume).value(assessment.doses[NOMINAL.name])
    return {"objective": float(on_both[0]), "objective_planned": float(on_both[1])}
