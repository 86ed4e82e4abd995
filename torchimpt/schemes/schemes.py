"""How a plan's weights and positions are found: stages of one solver each, with spots pruned, merged or raised to the minimum in between.

    weights            the placed spots, positions fixed
    joint              weights for a few iterations, the heaviest spots kept where a number is asked for, then both at once
    alternating        weights and positions by turns (the published scheme)
    prune_and_move     as joint, and the number of spots falls step by step as long as the objective allows

A scheme is plain code over `Stages.solve`, which repeats what an earlier run had finished: so a run that was interrupted goes on where
it stopped, and comes to the same plan. A further one is a function like `_joint`, or one of these with other variables, and an entry of
`SCHEMES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from torchimpt.checks import InputError, nearest
from torchimpt.dose.linear import LinearDose
from torchimpt.dose.scenarios import ScenarioDoses
from torchimpt.objectives import PlanObjective
from torchimpt.optim import Solution, Status
from torchimpt.optim.solution import WINDOW, fall_is_small, least_promised, remaining_fall
from torchimpt.schemes.moving import MovingSpots
from torchimpt.schemes.sampling import FIRST, ROUNDS, Sampling
from torchimpt.schemes.settings import Limits, Motion, Solver
from torchimpt.schemes.stages import Callback, Optimized, Stages, StoppedStage
from torchimpt.schemes.variables import JOINT, WEIGHTS, Vary
from torchimpt.schemes.weights import best_uniform_weight
from torchimpt.spots import Spots
from torchimpt.spots.pruning import heaviest, merge_close, used_layers

PRUNE_STEP = 1.5
"""Spots are pruned by at most this factor at once, with iterations in between, so that those which stay can take over. (At one stroke the
objective rises a hundredfold.)"""

PRICE_STEP = 1.3
"""The same where the objective's price decides how many stay: finer, for the answer is as coarse."""

ROUND = 30
"""Iterations between two rounds of pruning."""

Found = tuple[MovingSpots, Solution | None]
"""What a stage leaves; no solution where an earlier run had finished it."""


def optimize(
    doses: ScenarioDoses,
    objective: PlanObjective,
    spots: Spots,
    solver: Solver | None = None,
    motion: Motion | None = None,
    *,
    limits: Limits | None = None,
    linear: LinearDose | None = None,
    uniform: bool = True,
    sampling: Sampling | None = None,
    callback: Callback | None = None,
    state: dict | None = None,
) -> Optimized:
    """Find weights, and with `motion` positions, that minimize the objective.

    Parameters
    ----------
    doses
        Of every scenario, made for `spots`.
    objective
        Of the scenarios' doses.
    spots
        The start.
    solver
        The solver's settings.
    motion
        Scheme and limits of the motion; None, or a box of zero, leaves positions where they are, and a box of zero that prunes nothing is
        the same plan as None.
    limits
        Minimum weight and layer share.
    linear
        The linear map of all spots where they stand, if there is one that is faster than `doses`.
    uniform
        Start from the best multiple of the weights (True), or from the weights as they are.
    sampling
        What `doses`, `objective` and `linear` come from, where the objective is sampled: all voxels are looked at after some iterations on
        weights, and at the end, with more iterations where the sample was off.
    callback
        Called with every iteration of every stage.
    state
        From an iteration's `state()`, to go on.
    """
    solver, limits = solver or Solver(), limits or Limits()
    scheme = None if motion is None else scheme_of(motion)
    stages = Stages(doses, objective, spots, solver, motion.box_mm if motion is not None else 0.0, callback, linear, state, sampling)
    objective.constraints.reset()
    start = MovingSpots.start(spots)
    if uniform:
        start = replace(start, weight=best_uniform_weight(linear or doses.at(start.position), objective, start.weight))
    vary = scheme.vary(spots) if scheme is not None and motion is not None and motion.moves else WEIGHTS
    try:
        begun = 0
        if sampling is not None:
            begun = min(FIRST, solver.max_iterations)
            start, _ = stages.solve("weights, before a look at all voxels", WEIGHTS, start, begun, settle=False)
            stages.look(start, first=True)
        found = _weights(stages, start, begun) if motion is None or scheme is None else scheme.run(stages, start, motion, vary)
        if motion is not None:
            found = _merge(stages, *found, motion.merge_mm)
            # spots that have been merged must not come close again
            vary = WEIGHTS if motion.merge_mm > 0 else vary
        found = _deliverable(stages, *found, limits, vary)
        for _ in range(ROUNDS):
            if not stages.look(found[0]):
                break
            found = stages.solve("hot voxels taken in", vary, found[0], solver.max_iterations)
            found = _deliverable(stages, *found, limits, vary)
    except StoppedStage as stopped:
        found = stopped.spots, stopped.solution
    return stages.finish(*found)


def _name(vary: Vary) -> str:
    """The step's name in reports."""
    return vary[0].name if len(vary) == 1 else "joint"


def _weights(stages: Stages, spots: MovingSpots, begun: int = 0) -> Found:
    """Weights alone, after so many iterations."""
    return stages.solve("weights", WEIGHTS, spots, stages.solver.max_iterations - begun)


def _joint(stages: Stages, spots: MovingSpots, motion: Motion, vary: Vary) -> Found:
    """Weights for some iterations, the heaviest spots, then both at once."""
    if vary == WEIGHTS and motion.spots is None:
        return _weights(stages, spots)
    spots, _ = stages.solve("weights, before moving", WEIGHTS, spots, motion.warm_iterations, settle=False)
    if motion.spots is not None:
        spots = _thin(stages, spots, motion.spots, vary)
    return stages.solve(_name(vary), vary, spots, stages.solver.max_iterations)


def _thin(stages: Stages, spots: MovingSpots, count: int, vary: Vary) -> MovingSpots:
    """The `count` heaviest spots, by steps; before each, some iterations in which every spot has its price, so that few carry most."""
    while spots.n_spots > count:
        spots, _ = stages.solve(f"{spots.n_spots} spots, thinned", vary, spots, ROUND, sparse=True)
        spots = spots.keep(heaviest(spots.weight, max(count, min(int(spots.n_spots / PRUNE_STEP), _alive(spots)))))
    return spots


def _alive(spots: MovingSpots) -> int:
    """Spots whose weight is more than nothing."""
    return int((spots.weight > 1e-3 * spots.weight.max()).sum())


def _prune_and_move(stages: Stages, spots: MovingSpots, motion: Motion, vary: Vary) -> Found:
    """As few spots as the objective allows: it may rise by `price_percent` above that of all spots, moved."""
    if motion.spots is not None:
        return _joint(stages, spots, motion, vary)
    spots, _ = stages.solve("weights, before moving", WEIGHTS, spots, motion.warm_iterations, settle=False)
    spots = spots.keep(spots.weight > 0) if bool((spots.weight > 0).any()) else spots
    spots, _ = stages.solve(_name(vary), vary, spots, stages.solver.max_iterations)
    allowed = stages.merit * (1.0 + motion.price_percent / 100.0)
    good = spots
    while spots.n_spots > 1:
        spots, _ = stages.solve(f"{spots.n_spots} spots, thinned", vary, spots, ROUND, sparse=True)
        count = max(1, min(int(spots.n_spots / PRICE_STEP), _alive(spots)))
        spots, _ = stages.solve(f"{count} spots", vary, spots.keep(heaviest(spots.weight, count)), 2 * ROUND, settle=False)
        if stages.merit > allowed:
            break
        good = spots
    return stages.solve(_name(vary), vary, good, stages.solver.max_iterations)


def _alternating(stages: Stages, spots: MovingSpots, motion: Motion, vary: Vary) -> Found:
    """Weight iterations and position steps by turns, until the objective stands still or iterations run out."""
    if vary == WEIGHTS and motion.spots is None:
        return _weights(stages, spots)
    if motion.spots is not None:
        spots, _ = stages.solve("weights, before moving", WEIGHTS, spots, motion.warm_iterations, settle=False)
        spots = _thin(stages, spots, motion.spots, WEIGHTS)
    others = tuple(variable for variable in vary if variable not in WEIGHTS)
    first, turn = len(stages.done), partial(stages.solve, tolerance=0.0, settle=False)

    def ended(solution: Solution | None, status: Status) -> Solution | None:
        values = [row["value"] for record in stages.done[first:] for row in record.get("history", ())]
        return solution and replace(solution, status=status, remaining=None if stages.objective.constraints else remaining_fall(values))

    while True:
        spots, solution = turn("weights", WEIGHTS, spots, motion.weight_iterations)
        if others:
            # few steps, each down the gradient, as published: from one step a quasi-Newton method learns nothing
            spots, solution = turn(_name(others), others, spots, motion.position_steps, method="projected_cg")
        # the stages' own records, so that a resumed run stops where the whole one does
        if _turns_converged(stages.done[first:], stages.solver.tolerance):
            if why := stages.settle():
                return spots, ended(solution, why)
            first = len(stages.done)
        if stages.history[-1]["iteration"] >= stages.solver.max_iterations:
            return spots, ended(solution, Status.MAX_ITERATIONS)
        if stages.spent:
            return spots, ended(solution, Status.MAX_EVALUATIONS)


def _turns_converged(done: list[dict], tolerance: float) -> bool:
    """As `torchimpt.optim.solution.converged`, for the last `WINDOW` of the stages taken by turns: what each of them promises adds up."""
    if len(done) <= WINDOW:
        return False
    recent = done[-WINDOW:]
    value, promised = recent[-1]["merit"], dict[str, float]()
    for record in recent:
        step = record["step"]["step"]
        promised[step] = min(promised.get(step, math.inf), least_promised(record["history"][-1:]))
    values = [done[-1 - WINDOW]["merit"], value]
    small = fall_is_small(values, tolerance, sum(record["step"]["iterations"] for record in recent))
    return small and sum(promised.values()) <= tolerance * abs(value)


def _joint_variables(placed: Spots) -> Vary:
    """Weights and positions."""
    return JOINT


@dataclass(frozen=True)
class Scheme:
    """How spots move.

    Attributes
    ----------
    run
        The stages: from the start, the settings, and what varies (weights alone, where no spot may move), to what the last one left.
    vary
        What varies together, given the placed spots; later stages, which make a plan deliverable, vary it, too.
    """

    run: Callable[[Stages, MovingSpots, Motion, Vary], Found]
    vary: Callable[[Spots], Vary] = _joint_variables


SCHEMES: dict[str, Scheme] = {
    "joint": Scheme(_joint),
    "alternating": Scheme(_alternating),
    "prune_and_move": Scheme(_prune_and_move),
}
"""Every scheme by its name in a case file."""


def scheme_of(motion: Motion) -> Scheme:
    """The scheme that its settings name."""
    name = motion.scheme
    if name not in SCHEMES:
        raise InputError(f"joint: scheme must be one of {', '.join(SCHEMES)}, got '{name}'{nearest(name, SCHEMES)}")
    return SCHEMES[name]


def _merge(stages: Stages, spots: MovingSpots, solution: Solution | None, distance: float) -> Found:
    """Merge spots closer than `distance`, then optimize again with positions where they are, so that none come close again.

    Their homes are averaged with the same weights: a merged spot is within the box of its home, too.
    """
    if distance <= 0:
        return spots, solution
    both = torch.cat((spots.position, spots.home), dim=1)
    kept, both, weight = merge_close(both, spots.weight, stages.placed.layer[spots.index], distance)
    merged = replace(spots, position=both[:, :2].contiguous(), home=both[:, 2:].contiguous(), weight=weight).keep(kept)
    return stages.solve("merged", WEIGHTS, merged, stages.solver.max_iterations)


def _deliverable(stages: Stages, spots: MovingSpots, solution: Solution | None, limits: Limits, vary: Vary) -> Found:
    """Leave out what the machine does not deliver, and optimize again above the minimum."""
    spots, solution = _without_light_layers(stages, spots, solution, limits, vary)
    if limits.min_weight is None:
        return spots, solution
    for share in (0.25, 0.5):
        spots = spots.keep(_above(spots, share * limits.min_weight[spots.index]))
        spots, _ = stages.solve(f"spots below {share:g} of the minimum left out", vary, spots, ROUND // 2, settle=False)
    least = limits.min_weight[spots.index]
    spots = spots.keep(_above(spots, 0.5 * least))
    spots = replace(spots, weight=torch.maximum(spots.weight, limits.min_weight[spots.index]))
    found = stages.solve("minimum MU", vary, spots, stages.solver.max_iterations, lower=limits.min_weight)
    # the spots that went have shifted weight from layer to layer
    return _without_light_layers(stages, *found, limits, vary, limits.min_weight)


def _without_light_layers(
    stages: Stages, spots: MovingSpots, solution: Solution | None, limits: Limits, vary: Vary, lower: Tensor | None = None
) -> Found:
    """Leave out layers below their least share and optimize the others above `lower`, until every layer that is left has its share."""
    while not bool((used := used_layers(spots.weight, stages.placed.layer[spots.index], limits.min_layer_share)).all()):
        spots, solution = stages.solve("light layers left out", vary, spots.keep(used), stages.solver.max_iterations, lower=lower)
    return spots, solution


def _above(spots: MovingSpots, least: Tensor) -> Tensor:
    """Mask of the spots whose weight is at least so much."""
    mask = spots.weight >= least
    if not bool(mask.any()):
        raise InputError(
            f"no spot reaches the minimum MU: the heaviest of {spots.n_spots} has {float((spots.weight / least).max()):.2g} of "
            "what must stay; lower delivery.min_mu, place fewer spots, or plan fewer fractions"
        )
    return mask
