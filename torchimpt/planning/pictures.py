"""Doses of scenarios for pictures: known already where tissue is warm, computed besides where a picture shows any dose at all."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from torchimpt.case import Case
from torchimpt.dose.body import beside, reach
from torchimpt.dose.scenarios import scenario_operators
from torchimpt.machine import Machine
from torchimpt.patient import Patient
from torchimpt.planning.assess import Assessment
from torchimpt.planning.letd import weighted
from torchimpt.planning.load import Compute, dose_options
from torchimpt.scenarios import Scenario
from torchimpt.spots import Spots

SHOWN = 0.05
"""Share of the prescription that a voxel must have in the nominal scenario, or one beside it, for a scenario's own dose to be computed."""


def picture_doses(
    case: Case, patient: Patient, machine: Machine, spots: Spots, assessment: Assessment, scenarios: Sequence[Scenario], compute: Compute
) -> dict[str, torch.Tensor]:
    """The dose `(z, y, x)`, Gy, of each of the scenarios, by name; where nominal dose is far below `SHOWN`, it is the nominal one.

    Doses are means over voxels, as the nominal one: those of `assessment` in voxels that may get hot, others are computed. Scenarios whose
    whole dose is known cost nothing.
    """
    found = {
        scenario.name: assessment.scenario_doses[scenario.name] for scenario in scenarios if scenario.name in assessment.scenario_doses
    }
    left = [scenario for scenario in scenarios if scenario.name not in found]
    if not left:
        return found
    nominal = assessment.dose.flatten()
    level = SHOWN * (case.highest_prescription() or float(nominal.max()))
    near = beside(nominal >= level, patient.grid, max(map(reach, left))) & patient.body_and_rois.flatten()
    near[assessment.voxels] = False
    voxels, here = near.nonzero().flatten(), spots.weighted().to(compute.device)
    options = {**dose_options(case, compute.device, spots.weight.dtype), "means": True}
    rows: list[list[torch.Tensor]] = []
    for amplitude in ("dose", "letd_dose") if isinstance(case.dose.rbe, str) else ("dose",):
        operators = scenario_operators(patient, machine, here, voxels, left, amplitude=amplitude, **options) if len(voxels) else ()
        rows.append([operator.dose(here.position.detach(), here.weight.detach()).cpu() for operator in operators])
    for k, scenario in enumerate(left):
        dose = nominal.clone()
        dose[assessment.voxels] = assessment.voxel_doses[scenario.name].to(dose)
        if len(voxels):
            dose[voxels] = weighted(case, patient, rows[0][k], rows[1][k] if len(rows) > 1 else None, voxels).to(dose)
        found[scenario.name] = dose.reshape(patient.grid.shape)
    return {scenario.name: found[scenario.name] for scenario in scenarios}
