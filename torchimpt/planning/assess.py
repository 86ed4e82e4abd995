"""Doses of a finished plan: nominal on the whole body and the ROIs, every scenario on the ROIs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from torchimpt.case import Case
from torchimpt.dose.scenarios import scenario_doses
from torchimpt.dose.sweep import sweep
from torchimpt.evaluate.goals import check_goals
from torchimpt.evaluate.hottest import hottest_outside_targets
from torchimpt.evaluate.tables import roi_doses
from torchimpt.machine import Machine
from torchimpt.patient import Patient
from torchimpt.planning.load import Compute
from torchimpt.scenarios import NOMINAL, Scenario
from torchimpt.schemes.sampling import Whole
from torchimpt.spots import Spots
from torchimpt.watch import Progress

WIDE = 8.0
"""Cut-off in sigmas that the case's is compared with: it leaves out exp(-32)."""


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
        Share of the nominal integral dose that the lateral cut-off leaves out.
    hottest
        From `hottest_outside_targets`.
    """

    dose: torch.Tensor
    roi_doses: dict[str, dict[str, torch.Tensor]]
    scenario_doses: dict[str, torch.Tensor]
    goals: list[dict]
    discarded_fraction: float
    hottest: dict


def assessed_voxels(patient: Patient) -> torch.Tensor:
    """Flat indices of the voxels that have dose: the body's, and those of ROIs that reach out of it."""
    masks = [patient.body, *(roi.mask for roi in patient.rois.values())]
    return torch.stack(masks).any(0).flatten().nonzero().flatten()


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
    model: str = "pencil_beam",
    seen: Whole | None = None,
) -> Assessment:
    """Compute a plan's doses without matrices, and check the case's goals.

    Every ROI's voxels have the dose that the model computes there, inside the body or not, in the nominal scenario as in all others and as
    the optimizer sees them. With the model `"sub_spots"`, on the CPU wherever the plan was made and slow, scenarios other than the nominal
    one are computed on the body only where a goal or an objective needs it, or when `whole` doses are asked for, else on the other ROIs.
    `seen`: doses of these spots that are known already.
    """
    used = spots.weight.detach() > 0
    device = torch.device("cpu") if model == "sub_spots" else compute.device
    delivered = (spots.subset(used) if bool(used.any()) else spots).to(device)
    position, weight, quantity = delivered.position.detach(), delivered.weight.detach(), case.quantity()
    cutoff = case.dose.cutoff_sigma
    options: dict[str, Any] = {"dtype": weight.dtype, "device": device, "model": model}
    external, body = patient.external, assessed_voxels(patient)
    named = {o.roi for o in case.objective} | {g.roi for g in case.goal}
    everywhere = whole or model != "sub_spots" or external is None or external.name in named or any(g.metric == "ci" for g in case.goal)
    viewed = patient if everywhere else replace(patient, rois={n: r for n, r in patient.rois.items() if r.role != "external"})
    voxels = body if everywhere or not viewed.rois else patient.union(viewed.rois).flatten().nonzero().flatten()
    # nominal first, and where it is not among the scenarios it is still what goals compare with
    others = [s for s in scenarios if (s.shift, s.range_scale) != (NOMINAL.shift, NOMINAL.range_scale)]
    with progress.stage("Dose in every scenario", total=len(others) + 1) as stage:
        operator = scenario_doses(patient, machine, delivered, body, (NOMINAL,), cutoff=cutoff, reach=max(WIDE, cutoff), **options)[0]
        nominal = quantity.value(operator.dose(position, weight)).cpu()
        discarded = operator.discarded_fraction(position, weight, WIDE)
        del operator
        stage.advance()
        inside = torch.zeros(patient.grid.n_voxels, dtype=nominal.dtype).index_put_((body,), nominal)
        if seen is None or model == "sub_spots":
            rows = sweep(patient, machine, delivered, voxels, others, cutoff=cutoff, done=stage.advance, **options)
        else:
            rows = seen.doses[[k for k, s in enumerate(scenarios) if s in others]]
    doses = {NOMINAL.name: inside[voxels], **{s.name: quantity.value(dose) for s, dose in zip(others, rows, strict=True)}}
    tables = roi_doses(viewed, doses, voxels)
    goals = check_goals(case.goals(), tables, prescriptions=case.prescriptions(), body=doses if everywhere else None)
    prescribed = [*dict.fromkeys((*case.prescriptions(), *(case.spots.targets if case.spots else ())))] or patient.targets
    hottest = hottest_outside_targets(patient, voxels, doses, prescribed, max(case.prescriptions().values(), default=None))
    shape, full = patient.grid.shape, {}
    if whole:
        for name, dose in doses.items():
            full[name] = torch.zeros(patient.grid.n_voxels, dtype=dose.dtype).index_put_((voxels,), dose).reshape(shape)
    return Assessment(inside.reshape(shape), tables, full, goals, discarded, hottest)
