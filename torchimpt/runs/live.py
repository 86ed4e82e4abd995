"""What is seen of a planning run while it goes on, and of what came of it at its end: pictures and numbers for TensorBoard and history."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from matplotlib.figure import Figure

from torchimpt.case import Case
from torchimpt.dose.scenarios import scenario_operators
from torchimpt.evaluate.goals import check_goals
from torchimpt.planning.build import PlanningProblem
from torchimpt.planning.letd import weighted
from torchimpt.planning.load import dose_options
from torchimpt.planning.look import case_targets
from torchimpt.planning.plan import PlanResult
from torchimpt.report.figures import dvh_figure
from torchimpt.report.motion import fullest_layers, motion_figure
from torchimpt.report.slices import slices_figure
from torchimpt.report.style import roi_colors, shown_rois, slug
from torchimpt.report.volumes import start_point
from torchimpt.scenarios import NOMINAL
from torchimpt.schemes.stages import PlanIteration
from torchimpt.spots import Spots

WIDTH = 900.0
"""Of the pictures, pixels."""


def live_goals(problem: PlanningProblem, iteration: PlanIteration) -> list[dict[str, Any]]:
    """The case's goals of dose in the nominal scenario, of those ROIs whose doses the objective sees, at its points.

    `ci`, which needs the whole body, is left out; what is told at the end is of other points, and of all scenarios.
    """
    case, doses = problem.case, problem.nominal_doses(iteration.doses())
    goals = [goal for goal in case.goals() if goal.quantity == "dose" and goal.roi in doses and goal.metric.kind != "ci"]
    rows = check_goals(goals, {NOMINAL.name: doses}, prescriptions=case.prescriptions())
    told = [{name: row[name] for name in ("roi", "metric", "unit", "limit", "passed")} | {"value": row["nominal"]} for row in rows]
    return [{**row, "value": row["value"] if math.isfinite(row["value"]) else None} for row in told]


class LivePictures:
    """Pictures at an iteration: nominal DVHs of what the objective sees, nominal dose on three slices, the spots of the fullest layers.

    Dose is computed on the three slices alone, as `torchimpt.report.slices` cuts them.
    """

    def __init__(self, problem: PlanningProblem) -> None:
        self._problem = problem
        patient, case = problem.patient, problem.case
        self._targets = [name for name in case_targets(case, patient) if bool(patient.roi(name).mask.any())]
        self._colors = roi_colors(patient, self._targets)
        self._rois = shown_rois(patient, patient.rois, self._targets)
        point = start_point(patient, torch.zeros(patient.grid.shape), self._targets)
        slices = torch.zeros(patient.grid.shape, dtype=torch.bool)
        for axis, value, origin, spacing in zip((2, 1, 0), point, patient.grid.origin, patient.grid.spacing, strict=True):
            index = min(max(round((value - origin) / spacing), 0), patient.grid.shape[axis] - 1)
            slices.select(axis, index).fill_(True)
        self._voxels = (slices & patient.body_and_rois).flatten().nonzero().flatten()
        self._layers: list[int] = []

    def __call__(self, iteration: PlanIteration) -> dict[str, Figure]:
        problem = self._problem
        spots, home = problem.moving(iteration)
        doses = problem.nominal_doses(iteration.doses())
        shown = [name for name in self._rois if name in doses]
        level = problem.case.prescription()
        figures = {}
        if shown:
            figures["dvh/nominal"] = dvh_figure({NOMINAL.name: doses}, shown, self._colors, prescription=level, size=(WIDTH, 420))
        figures["dose/slices"] = slices_figure(
            problem.patient, self._dose(spots), self._colors, targets=self._targets, rois=self._rois, prescription=level, width=WIDTH
        )
        if problem.case.joint is None:  # those that move have a sequence of their own
            self._layers = self._layers or fullest_layers(spots)
            figures["spots/layers"] = motion_figure(spots, home, self._layers, width=WIDTH)
        return figures

    def _dose(self, spots: Spots) -> torch.Tensor:
        """Nominal dose `(z, y, x)`, Gy, in the body and the ROIs on the three slices; 0 elsewhere."""
        problem = self._problem
        case, patient, here = problem.case, problem.patient, spots.weighted()
        dose = torch.zeros(patient.grid.n_voxels)
        if not here.n_spots:
            return dose.reshape(patient.grid.shape)
        options = dose_options(case, problem.compute.device, here.weight.dtype)
        found = []
        for amplitude in ("dose", "letd_dose") if isinstance(case.dose.rbe, str) else ("dose",):
            operator = next(scenario_operators(patient, problem.machine, here, self._voxels, (NOMINAL,), amplitude=amplitude, **options))
            found.append(operator.dose(here.position.detach(), here.weight.detach()).cpu())
        dose[self._voxels] = weighted(case, patient, found[0], found[1] if len(found) > 1 else None, self._voxels).float()
        return dose.reshape(patient.grid.shape)


def last_pictures(result: PlanResult) -> dict[str, Figure]:
    """Pictures of the finished plan: DVHs with their bands, dose on three slices, the fullest layers."""
    case, patient, doses = result.case, result.patient, result.assessment.roi_doses
    targets = case.placement.targets
    colors = roi_colors(patient, targets)
    shown, level = shown_rois(patient, doses[NOMINAL.name], targets), case.prescription()
    layers = fullest_layers(result.spots)
    return {
        "dvh/band": dvh_figure(doses, shown, colors, prescription=level, size=(WIDTH, 420)),
        "dose/slices": slices_figure(
            patient, result.assessment.dose, colors, targets=targets, rois=shown, prescription=level, width=WIDTH
        ),
        "spots/layers": motion_figure(result.spots, result.home, layers, width=WIDTH),
    }  # fmt: skip


def hyperparameters(case: Case) -> dict[str, Any]:
    """What a table of runs compares them by: keys of the case file and their values."""
    spots, joint = case.placement, case.joint
    chosen = {
        "seed": case.seed, "spots.spacing_mm": spots.spacing_mm, "spots.margin_mm": spots.margin_mm, "dose.grid_mm": case.dose.grid_mm,
        "dose.dtype": case.dose.dtype, "optimizer.method": case.optimizer.method, "optimizer.max_iterations": case.optimizer.max_iterations,
        "optimizer.tolerance": case.optimizer.tolerance, "beams": len(case.beam), "scenarios": len(case.scenarios()),
        "joint.scheme": None if joint is None else joint.scheme,
    }  # fmt: skip
    return {name: "-" if value is None else value for name, value in chosen.items()}


def final_numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Of a run's `metrics.json`: objective, seconds, goals met, spots, delivery, every goal in its worst and in the nominal scenario."""
    goals = metrics["goals"]
    numbers = {
        "objective": metrics["objective"]["final"],
        "seconds": metrics["time_s"]["total"],
        "iterations": metrics["iterations"],
        "spots": metrics["spots"]["nonzero"],
        "goals_met": sum(goal["passed"] for goal in goals),
        "goals_failed": sum(not goal["passed"] for goal in goals),
    }
    if metrics["delivery"].get("seconds"):
        numbers["delivery_s"] = metrics["delivery"]["seconds"]
    for goal in goals:
        name = f"{slug(goal['roi'])}_{goal['metric']}"
        values = {name: goal["worst"], f"{name}_nominal": goal["nominal"]}
        numbers |= {key: value for key, value in values.items() if value is not None}
    return numbers
