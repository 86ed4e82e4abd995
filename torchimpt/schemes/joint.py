"""The case file's `[joint]` as one call in Python: patient, machine, spots and an objective in, a plan of moved spots out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from torchimpt.checks import InputError, nearest
from torchimpt.dose.cutoff import DEFAULT_CUTOFF
from torchimpt.dose.looks import look_points
from torchimpt.dose.scenarios import scenario_doses
from torchimpt.machine import Machine
from torchimpt.objectives import Objective, RobustObjective, seen_whole
from torchimpt.optim import Solution
from torchimpt.patient import Patient
from torchimpt.quantities import ConstantRBE
from torchimpt.scenarios import NOMINAL, Scenario
from torchimpt.schemes.schemes import optimize, scheme_of
from torchimpt.schemes.settings import Limits, Motion, Solver
from torchimpt.schemes.stages import Callback
from torchimpt.spots import Spots


@dataclass(frozen=True)
class JointResult:
    """What `joint` found.

    Attributes
    ----------
    spots
        Kept, where they went, with their weights.
    home
        Where they started, `(n_spots, 2)`, mm.
    solution
        Of the last stage, with history and counts of all.
    steps
        What each step left: `step`, `spots`, `objective`, `iterations`, `evaluations`, `seconds`.
    constraints
        Rows of `Constraints.rows`.
    """

    spots: Spots
    home: Tensor
    solution: Solution = field(repr=False)
    steps: list[dict] = field(repr=False)
    constraints: list[dict] = field(repr=False)


def joint(
    patient: Patient,
    machine: Machine,
    spots: Spots,
    /,
    objective: Objective,
    scenarios: Sequence[Scenario] = (NOMINAL,),
    *,
    cutoff: float = DEFAULT_CUTOFF,
    rbe: float = 1.1,
    target_grid: float | str = "auto",
    seed: int = 0,
    max_iterations: int = 300,
    tolerance: float = 1e-4,
    feasibility: float = Solver.feasibility,
    limits: Limits | None = None,
    callback: Callback | None = None,
    **settings: Any,
) -> JointResult:
    """Optimize weights and positions of any spots together: the case file's `[joint]` in Python.

    Parameters
    ----------
    patient, machine
        On the dose grid; the beam model.
    spots
        The start: placed by `place_spots`, shifted, or read from a plan file. Their device and dtype are the computation's. Weights that
        are all equal are scaled to the best uniform ones first.
    objective
        What is asked of the ROIs.
    scenarios
        What is planned for; `boundary_scenarios(3.0, 3.0)` for the nine of 3 mm and 3 %.
    cutoff, rbe
        Lateral cut-off in sigmas; constant factor on physical dose.
    target_grid, seed
        How finely the objective looks, mm, `"auto"` or `"off"`, as in `look_points`, with this `seed`.
    max_iterations, tolerance, feasibility
        Of each stage's solver.
    limits
        Minimum weights and layer share of the finished plan.
    callback
        Called with every iteration; returning True stops.
    settings
        Keys of `[joint]` but `start`: `scheme`, `box_mm`, `spots`, ...
    """
    allowed = [f.name for f in fields(Motion)]
    for name in settings:
        if name == "start":
            raise InputError("joint: start is for the case file; give the plan's spots, as read_plan(...) reads them")
        if name not in allowed:
            raise InputError(f"joint: unknown key '{name}'{nearest(name, allowed)}; allowed: {', '.join(allowed)}")
    motion = Motion(**settings)
    scheme_of(motion)
    rois, weight = list(dict.fromkeys(term.roi for term in objective.terms)), spots.weight.detach()
    targets = [name for name in rois if patient.roi(name).role == "target"]
    points = look_points(
        patient, machine, spots, rois, targets, spacing=target_grid, n_scenarios=len(scenarios), seed=seed,
        whole=seen_whole(objective.terms, patient),
    )  # fmt: skip
    robust = RobustObjective(objective.at(points, points.volume), quantity=ConstantRBE(rbe))
    doses = scenario_doses(patient, machine, spots, points, scenarios, cutoff=cutoff, dtype=weight.dtype, device=weight.device)
    optimized = optimize(
        doses, robust, spots, Solver(None, max_iterations, None, tolerance, feasibility), motion, limits=limits,
        uniform=bool((weight == weight[0]).all()), callback=callback,
    )  # fmt: skip
    held = robust.constraints.rows(optimized.violations, doses.names, feasibility)
    return JointResult(optimized.spots.spots(spots), optimized.spots.home, optimized.solution, optimized.steps, held)
