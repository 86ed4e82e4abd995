"""Doses of a finished plan: nominal on the whole body and the ROIs, every scenario on the ROIs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from torchimpt.case import Case
from torchimpt.dose.models import DEFAULT_MODEL, dose_model
from torchimpt.dose.scenarios import scenario_doses
from torchimpt.evaluate.goals import check_goals
from torchimpt.evaluate.tables import roi_doses
from torchimpt.machine import Machine
from torchimpt.patient import Patient
from torchimpt.planning.load import Compute
from torchimpt.scenarios import NOMINAL, Scenario
from torchimpt.spots import Spots
from torchimpt.watch import Progress


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
    goals
        Rows of `check_goals`.
    discarded_fraction
        Share of the nominal integral dose that the lateral cut-off puts elsewhere (`DoseOperator.discarded_fraction`).
    """

    dose: torch.Tensor
    roi_doses: dict[str, dict[str, torch.Tensor]]
    scenario_doses: dict[str, torch.Tensor]
    goals: list[dict]
    discarded_fraction: float


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
    model: str = DEFAULT_MODEL,
) -> Assessment:
    """Compute a plan's doses without matrices, and check the case's goals.

    Every ROI's voxels have the dose that the model computes there, inside the body or not, in the nominal scenario as in all others and as
    the optimizer sees them; the nominal dose besides at every voxel of the body.
    A dose model that knows the CPU only computes there, wherever the plan was made. The external ROI is part of the scenarios' tables only
    where a goal or an objective needs it, or when `whole` doses are asked for: it has ten times the voxels of all others.
    """
    delivered = spots.subset(spots.weight.detach() > 0) if bool((spots.weight > 0).any()) else spots
    device = torch.device("cpu") if dose_model(model).cpu_only else compute.device
    delivered = delivered.to(device)
    position, weight, quantity = delivered.position.detach(), delivered.weight.detach(), case.quantity()
    options: dict[str, Any] = {"cutoff": case.dose.cutoff_sigma, "dtype": weight.dtype, "device": device, "model": model}
    asked, external = whole, patient.external
    named = {o.roi for o in case.objective} | {g.roi for g in case.goal}
    whole = whole or external is None or external.name in named or any(g.metric == "ci" for g in case.goal)
    within = patient.body | patient.union(patient.rois) if patient.rois else patient.body
    body = within.flatten().nonzero().flatten()
    with progress.stage("Dose in every scenario", total=len(scenarios) + 1) as stage:
        operator = scenario_doses(patient, machine, delivered, body, (NOMINAL,), **options)[0]
        nominal = quantity.value(operator.dose(position, weight)).cpu()
        discarded = operator.discarded_fraction(position, weight)
        del operator
        stage.advance()
        viewed = patient if whole else replace(patient, rois={n: r for n, r in patient.rois.items() if r.role != "external"})
        voxels = body if whole or not viewed.rois else patient.union(viewed.rois).flatten().nonzero().flatten()
        # nominal first, and where it is not among the scenarios it is still what goals compare with
        ordered = (NOMINAL, *(s for s in scenarios if (s.shift, s.range_scale) != (NOMINAL.shift, NOMINAL.range_scale)))
        inside = torch.zeros(patient.grid.n_voxels, dtype=nominal.dtype).index_put_((body,), nominal)
        doses = {NOMINAL.name: inside[voxels]}
        for scenario in ordered[1:]:
            operator = scenario_doses(patient, machine, delivered, voxels, (scenario,), **options)[0]
            doses[scenario.name] = quantity.value(operator.dose(position, weight)).cpu()
            stage.advance()
    tables = roi_doses(viewed, doses, voxels)
    needs_body = {name: dose for name, dose in doses.items()} if whole else None
    goals = check_goals(case.goals(), tables, prescriptions=case.prescriptions(), body=needs_body)
    shape = patient.grid.shape
    full = {}
    if asked:
        for name, dose in doses.items():
            full[name] = torch.zeros(patient.grid.n_voxels, dtype=dose.dtype).index_put_((voxels,), dose).reshape(shape)
    return Assessment(inside.reshape(shape), tables, full, goals, discarded)
