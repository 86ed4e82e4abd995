"""How a plan's weights and positions are found: stages of one solver each, with spots pruned, merged or raised to the minimum in between.

    weights            the placed spots, positions fixed
    joint              weights for a few iterations, the heaviest spots kept where a number is asked for, then both at once
    alternating        weights and positions by turns (the published scheme)
    prune_and_move     as joint, and the number of spots falls step by step as long as the objective allows

A scheme is plain code over `Stages.solve`, which repeats what an earlier run had finished: so a run that was interrupted goes on where
it stopped, and comes to the same plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from torchimpt.casefile import describe
from torchimpt.checks import InputError
from torchimpt.config import JointConfig, OptimizerConfig
from torchimpt.dose.operator import DEFAULT_CUTOFF, DoseOperator, dose_operators
from torchimpt.machine import Machine
from torchimpt.monitor import Callback
from torchimpt.objectives import Objective
from torchimpt.optim import Solution, Status
from torchimpt.optim.solution import is_converged
from torchimpt.patient import Patient
from torchimpt.planning.engine import Engine, MatrixFreeEngine
from torchimpt.planning.joint import Moving
from torchimpt.planning.stages import Limits, Optimized, Stages, StoppedStage, View
from torchimpt.planning.weights import best_uniform_weight
from torchimpt.pruning import heaviest, merge_close, used_layers
from torchimpt.robust import RobustObjective
from torchimpt.scenarios import NOMINAL, Scenario
from torchimpt.spots import Spots

PRUNE_STEP = 1.5
"""Spots are pruned by at most this factor at once, with iterations in between, so that those which stay can take over. (At one stroke the
objective rises a hundredfold.)"""

PRICE_STEP = 1.3
"""The same where the objective's price decides how many stay: finer, for the answer is as coarse."""

ROUND = 30
"""Iterations between two rounds of pruning."""


def optimize(
    operators: Sequence[DoseOperator],
    objective: RobustObjective,
    spots: Spots,
    config: OptimizerConfig | None = None,
    joint: JointConfig | None = None,
    *,
    limits: Limits | None = None,
    engine: Engine | None = None,
    uniform: bool = True,
    callback: Callback | None = None,
    view: View | None = None,
    state: dict | None = None,
) -> Optimized:
    """Find weights, and with `joint` positions, that minimize the objective.

    Parameters
    ----------
    operators
        One per scenario, made for `spots`.
    objective
        Of the scenarios' doses.
    spots
        The start.
    config
        The solver's settings.
    joint
        Scheme and limits of the motion; None, or a box of zero, leaves positions where they are, and a box of zero that prunes nothing is
        the same plan as None.
    limits
        Minimum weight and layer share.
    engine
        Products for all spots where they stand, if there are any faster than the operators.
    uniform
        Start from the best multiple of the weights (True), or from the weights as they are.
    callback
        Called with every iteration of every stage.
    view
        Told the problem of each stage.
    state
        From an iteration's `state()`, to go on.
    """
    config, limits = config or OptimizerConfig(), limits or Limits()
    fixed = joint is None or joint.box_mm == 0
    stages = Stages(operators, objective, spots, config, 0.0 if fixed else joint.box_mm, callback, view or View(), engine, state)
    plan = Moving.start(spots)
    if uniform:
        first = engine or MatrixFreeEngine(operators, plan.position)
        plan = replace(plan, weight=best_uniform_weight(first, objective, plan.weight))
    try:
        if joint is None or (fixed and joint.spots is None and joint.scheme != "prune_and_move"):
            outcome = stages.solve("weights", "weights", plan, config.max_iterations)
        else:
            outcome = _SCHEMES[joint.scheme](stages, plan, joint, "weights" if fixed else "joint")
        if joint is not None:
            outcome = _merge(stages, *outcome, joint.merge_mm)
            fixed = fixed or joint.merge_mm > 0  # spots that have been merged must not come close again
        outcome = _deliverable(stages, *outcome, limits, "weights" if fixed else "joint")
    except StoppedStage as stopped:
        outcome = stopped.plan, stopped.solution
    return stages.finish(*outcome)


def _joint(stages: Stages, plan: Moving, joint: JointConfig, kind: str):
    """Weights for some iterations, the heaviest spots, then both at once."""
    plan, _ = stages.solve("weights, before moving", "weights", plan, joint.warm_iterations)
    if joint.spots is not None:
        plan = _thin(stages, plan, joint.spots, kind)
    return stages.solve(kind, kind, plan, stages.config.max_iterations)


def _thin(stages: Stages, plan: Moving, count: int, kind: str) -> Moving:
    """The `count` heaviest spots, by steps; before each, some iterations in which every spot has its price, so that few carry most."""
    while plan.n_spots > count:
        plan, _ = stages.solve(f"{plan.n_spots} spots, thinned", kind, plan, ROUND, sparse=True)
        plan = plan.keep(heaviest(plan.weight, max(count, min(int(plan.n_spots / PRUNE_STEP), _alive(plan)))))
    return plan


def _alive(plan: Moving) -> int:
    """Spots whose weight is more than nothing."""
    return int((plan.weight > 1e-3 * plan.weight.max()).sum())


def _prune_and_move(stages: Stages, plan: Moving, joint: JointConfig, kind: str):
    """As few spots as the objective allows: it may rise by `price_percent` above that of all spots, moved."""
    if joint.spots is not None:
        return _joint(stages, plan, joint, kind)
    plan, _ = stages.solve("weights, before moving", "weights", plan, joint.warm_iterations)
    plan = plan.keep(plan.weight > 0) if bool((plan.weight > 0).any()) else plan
    plan, _ = stages.solve(kind, kind, plan, stages.config.max_iterations)
    allowed = stages.steps[-1]["objective"] * (1.0 + joint.price_percent / 100.0)
    good = plan
    while plan.n_spots > 1:
        plan, _ = stages.solve(f"{plan.n_spots} spots, thinned", kind, plan, ROUND, sparse=True)
        count = max(1, min(int(plan.n_spots / PRICE_STEP), _alive(plan)))
        plan, _ = stages.solve(f"{count} spots", kind, plan.keep(heaviest(plan.weight, count)), 2 * ROUND)
        if stages.steps[-1]["objective"] > allowed:
            break
        good = plan
    return stages.solve(kind, kind, good, stages.config.max_iterations)


def _alternating(stages: Stages, plan: Moving, joint: JointConfig, kind: str):
    """Weight iterations and position steps by turns, until the objective stands still or iterations run out."""
    if joint.spots is not None:
        plan, _ = stages.solve("weights, before moving", "weights", plan, joint.warm_iterations)
        plan = _thin(stages, plan, joint.spots, "weights")
    while True:
        plan, solution = stages.solve("weights", "weights", plan, joint.weight_iterations, tolerance=0.0)
        if kind == "joint":
            plan, solution = stages.solve("positions", "positions", plan, joint.position_steps, tolerance=0.0)
        # the turns' own records, so that a resumed run stops where the whole one does
        turns = [{"value": s["objective"], "projected_gradient_norm": 1.0} for s in stages.steps]
        if is_converged(turns, stages.config.tolerance):
            return plan, solution and replace(solution, status=Status.CONVERGED)
        if stages.history[-1]["iteration"] >= stages.config.max_iterations:
            return plan, solution and replace(solution, status=Status.MAX_ITERATIONS)
        if stages.spent:
            return plan, solution and replace(solution, status=Status.MAX_EVALUATIONS)


_SCHEMES = {"joint": _joint, "alternating": _alternating, "prune_and_move": _prune_and_move}


def _merge(stages: Stages, plan: Moving, solution: Solution | None, distance: float):
    """Merge spots closer than `distance`, then optimize again with positions where they are, so that none come close again.

    Their homes are averaged with the same weights: a merged spot is within the box of its home, too.
    """
    if distance <= 0:
        return plan, solution
    both = torch.cat((plan.position, plan.home), dim=1)
    kept, both, weight = merge_close(both, plan.weight, stages.placed.layer[plan.index], distance)
    merged = replace(plan, position=both[:, :2].contiguous(), home=both[:, 2:].contiguous(), weight=weight).keep(kept)
    return stages.solve("merged", "weights", merged, stages.config.max_iterations)


def _deliverable(stages: Stages, plan: Moving, solution: Solution | None, limits: Limits, kind: str):
    """Leave out what the machine does not deliver, and optimize again above the minimum."""
    while not bool((used := used_layers(plan.weight, stages.placed.layer[plan.index], limits.min_layer_share)).all()):
        plan, solution = stages.solve("light layers left out", kind, plan.keep(used), stages.config.max_iterations)
    if limits.min_weight is None:
        return plan, solution
    for share in (0.25, 0.5):
        plan = plan.keep(_above(plan, share * limits.min_weight[plan.index]))
        plan, _ = stages.solve(f"spots below {share:g} of the minimum left out", kind, plan, ROUND // 2)
    least = limits.min_weight[plan.index]
    plan = plan.keep(_above(plan, 0.5 * least))
    plan = replace(plan, weight=torch.maximum(plan.weight, limits.min_weight[plan.index]))
    return stages.solve("minimum MU", kind, plan, stages.config.max_iterations, lower=limits.min_weight)


def _above(plan: Moving, least: Tensor) -> Tensor:
    mask = plan.weight >= least
    if not bool(mask.any()):
        raise InputError(
            f"no spot reaches the minimum MU: the heaviest of {plan.n_spots} has {float((plan.weight / least).max()):.2g} of "
            "what must stay; lower delivery.min_mu, place fewer spots, or plan fewer fractions"
        )
    return mask


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
    """

    spots: Spots
    home: Tensor
    solution: Solution = field(repr=False)
    steps: list[dict] = field(repr=False)


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
    max_iterations: int = 300,
    tolerance: float = 1e-4,
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
    max_iterations, tolerance
        Of each stage's solver.
    limits
        Minimum weights and layer share of the finished plan.
    callback
        Called with every iteration; returning True stops.
    settings
        Keys of `[joint]` but `start`: `scheme`, `box_mm`, `spots`, ...
    """
    try:
        settings = JointConfig(**settings)
    except ValidationError as error:
        raise InputError(describe(error, JointConfig, "joint")) from None
    if settings.start is not None:
        raise InputError("joint: start is for the case file; give the plan's spots, as read_plan(...) reads them")
    voxels = objective.voxels(patient)
    robust = RobustObjective(objective.on(patient, voxels))
    where = {"dtype": spots.weight.dtype, "device": spots.weight.device}
    operators = dose_operators(patient, machine, spots, voxels, scenarios, cutoff=cutoff, rbe=rbe, **where)
    weight = spots.weight.detach()
    found = optimize(
        operators, robust, spots, OptimizerConfig(max_iterations=max_iterations, tolerance=tolerance), settings, limits=limits,
        uniform=bool((weight == weight[0]).all()), callback=callback,
    )  # fmt: skip
    return JointResult(found.plan.spots(spots), found.plan.home, found.solution, found.steps)
