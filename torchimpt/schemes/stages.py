"""Stages of one optimization: a solver run each, their histories joined, and an interrupted one taken up where it stopped."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from torchimpt.checks import InputError
from torchimpt.dose.joined import SomeSpots
from torchimpt.dose.linear import LinearDose
from torchimpt.dose.scenarios import ScenarioDoses
from torchimpt.objectives import PlanObjective, worst
from torchimpt.optim import Composite, Iteration, Penalized, Solution, Status, minimize
from torchimpt.optim.augmented import Multipliers
from torchimpt.schemes.moving import MovingSpots
from torchimpt.schemes.sampling import AGREE, Sampling, Whole
from torchimpt.schemes.settings import Solver
from torchimpt.schemes.variables import WEIGHTS, Packing, Room, SpotProblem, Vary
from torchimpt.spots import Spots
from torchimpt.spots.pruning import sparsity_cost

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlanIteration(Iteration):
    """A solver's iteration that knows its spots and their doses. Both are computed when they are asked for, during the callback.

    Attributes
    ----------
    spots
        Call it for the spots at the iterate.
    doses
        Call it for their doses `(n_scenarios, n_voxels)`, Gy, physical, at the voxels that the objective sees; among several processes,
        of this one's scenarios.
    """

    spots: Callable[[], MovingSpots]
    doses: Callable[[], Tensor]


Callback = Callable[[PlanIteration], bool | None]
"""Called with every iteration of every stage; returning True stops."""


@dataclass(frozen=True)
class Optimized:
    """What the stages came to.

    Attributes
    ----------
    spots
        Those kept, where they are, what they weigh.
    solution
        Of the last stage, with history and counts of all.
    doses
        `(n_scenarios, n_voxels)`, Gy, physical, at the voxels that the objective sees.
    steps
        What each step left: `step`, `spots`, `objective`, `iterations`, `evaluations`, `seconds`.
    violations
        `(n_constraints, n_scenarios)`, as of `Constraints.violations`.
    whole
        The plan on all voxels, where the objective was sampled; `solution.value` and `violations` then are of all voxels, too.
    """

    spots: MovingSpots
    solution: Solution
    doses: Tensor
    steps: list[dict]
    violations: Tensor
    whole: Whole | None = None


@dataclass
class Stages:
    """The stages of one optimization, those of an interrupted one included.

    Attributes
    ----------
    doses, objective, placed
        Doses of the placed spots in every scenario, and what is asked of them.
    solver
        Its settings.
    box
        How far spots may go, mm.
    callback
        Called with every iteration.
    linear
        The linear map of the placed spots where they stand, if there is one faster than `doses`.
    saved
        The state of an interrupted run.
    sampling
        What `doses`, `objective` and `linear` come from, where the objective is sampled.
    """

    doses: ScenarioDoses
    objective: PlanObjective
    placed: Spots
    solver: Solver
    box: float
    callback: Callback | None
    linear: LinearDose | None
    saved: dict | None
    sampling: Sampling | None = None
    done: list[dict] = field(default_factory=list)
    history: list[dict] = field(default_factory=list)
    steps: list[dict] = field(default_factory=list)
    _image: Callable[[], Tensor] = field(init=False, repr=False)
    _judged: tuple[MovingSpots, Whole] | None = field(default=None, init=False, repr=False)

    def solve(
        self,
        step: str,
        vary: Vary,
        spots: MovingSpots,
        iterations: int,
        *,
        tolerance: float | None = None,
        lower: Tensor | None = None,
        sparse: bool = False,
        method: str | None = None,
        settle: bool = True,
    ) -> tuple[MovingSpots, Solution | None]:
        """One stage in which `vary` changes. The solution is None where an earlier run had finished the stage.

        With `sparse`, the solver sees a price on each spot's weight (`sparsity_cost`), and of constraints what their violation costs; all
        values that are told are without these. `settle`: whether the stage goes on until the constraints hold, which one that others follow
        need not. `method` is the one of `torchimpt.optim.METHODS` that suits the stage, taken unless the solver's settings name one; left
        out, `"projected_cg"` for weights alone and `"quasi_newton"` for all else.
        """
        number = len(self.done)
        if self.saved is not None and number < len(self.saved["done"]):
            record = self.saved["done"][number]
            self._note(record)
            self.objective.constraints.load_state_dict(record["constraints"])
            return MovingSpots(**record["spots"]), None
        inner, prices = (None, {}) if self.saved is None else (self._part(self.saved["inner"]), dict(self.saved["prices"]))
        self.saved = None
        last = self.history[-1] if self.history else {"iteration": -1, "evaluations": 0, "seconds": 0.0}
        before = {"done": [dict(record) for record in self.done], "history": list(self.history), "steps": list(self.steps)}
        problem, packing, options = self._problem(vary, spots, lower)
        constraints = self.objective.constraints
        method = self.solver.method or method or ("projected_cg" if vary == WEIGHTS and not sparse else "quasi_newton")
        priced = problem
        if sparse:
            priced = Penalized(problem, packing.weight_cost(sparsity_cost(spots.weight, self.steps[-1]["objective"])))

        def shifted(row: dict) -> dict:
            first = {"iteration": last["iteration"] + 1, "evaluations": last["evaluations"], "seconds": last["seconds"]}
            first["value"] = -prices.get(row["iteration"], 0.0)
            return {name: value + first[name] if name in first else value for name, value in row.items()}

        def watch(iteration: Iteration) -> bool | None:
            if isinstance(priced, Penalized):
                prices[iteration.iteration] = priced.penalty(iteration.x)
            if constraints:
                broken = constraints.value(problem.image(iteration.x))
                prices[iteration.iteration] = prices.get(iteration.iteration, 0.0) + broken
            if self.callback is None:
                return None
            here = {**before, "prices": dict(prices)}
            told = {**vars(iteration), **shifted(iteration.numbers()), "state": lambda: {**here, "inner": self._part(iteration.state())}}
            return self.callback(PlanIteration(**told, spots=lambda: packing.unpack(iteration.x), doses=lambda: problem.image(iteration.x)))

        left = None if self.solver.max_evaluations is None else max(1, self.solver.max_evaluations - int(last["evaluations"]))
        solution = minimize(
            priced, options.pop("start"), max_iterations=iterations, tolerance=self.solver.tolerance if tolerance is None else tolerance,
            max_evaluations=left, callback=watch, state=inner, method=method, feasibility=self.solver.feasibility,
            settle=settle and not sparse, **options,
        )  # fmt: skip
        self._image = lambda: problem.image(solution.x)
        spots = packing.unpack(solution.x)
        rows = [shifted(row) for row in solution.history]
        if prices:
            solution = replace(solution, value=rows[-1]["value"], remaining=None)
        self._note(
            {
                "spots": spots.state_dict(),
                "history": rows,
                "constraints": constraints.state_dict(),
                "merit": solution.value + (constraints.value(self._image()) if constraints else 0.0),
                "step": {
                    "step": step,
                    "spots": spots.n_spots,
                    "objective": solution.value,
                    "iterations": solution.iterations,
                    "evaluations": solution.evaluations,
                    "seconds": rows[-1]["seconds"] - last["seconds"],
                },
            }
        )
        if solution.status in (Status.NOT_FINITE, Status.STOPPED):
            raise StoppedStage(spots, solution)
        return spots, solution

    @property
    def merit(self) -> float:
        """The last stage's objective, and what violated constraints cost by their multipliers as they are."""
        return next(record["merit"] for record in reversed(self.done) if "merit" in record)

    def settle(self) -> Status | None:
        """Update multipliers after stages that left them as they were, and came to a standstill: why to end, or None to go on."""
        if not self.objective.constraints:
            return Status.CONVERGED
        number = len(self.done)
        if self.saved is not None and number < len(self.saved["done"]):
            record = self.saved["done"][number]
        else:
            ended = self._multipliers.update(self._image(), self.merit, True)
            record = {"multipliers": self._multipliers.state_dict(), "ended": None if ended is None else ended.value}
        self.done.append(record)
        self._multipliers.load_state_dict(record["multipliers"])
        return None if record["ended"] is None else Status(record["ended"])

    @cached_property
    def _multipliers(self) -> Multipliers:
        return Multipliers(self.objective.constraints, self.solver.feasibility)

    def _part(self, state: dict) -> dict:
        """A solver's state as it is written and read: without doses where a process has those of some scenarios only. They are computed
        again, so that any number of processes goes on from it.
        """
        alone = self.doses.team.size == 1 or state["problem"] is None
        return state if alone else {**state, "problem": {**state["problem"], "image": None}}

    def look(self, spots: MovingSpots, *, first: bool = False) -> bool:
        """Look at all voxels, and take those into the sample that it lacks; whether there is reason to go on optimizing.

        There is where the objective on the sample was off by more than `AGREE`. At the `first` look the sample is drawn.
        """
        if self.sampling is None:
            return False
        number = len(self.done)
        if self.saved is not None and number < len(self.saved["done"]):
            record = self.saved["done"][number]
        elif first:
            record = self.sampling.choose(self.sampling.look(spots.spots(self.placed)), draw=True)
        else:
            whole = self._judge(spots)
            log.info("objective %.6g on all voxels, %.6g on the sample", whole.value, self.steps[-1]["objective"])
            record = self.sampling.choose(whole.seen) if self._off(whole) else {}
        self.done.append(record)
        if record:
            self.sampling.take(**record)
            self.doses, self.objective, self.linear = self.sampling.doses, self.sampling.objective, self.sampling.linear
        return bool(record)

    def _judge(self, spots: MovingSpots) -> Whole:
        """The plan on all voxels, computed once."""
        assert self.sampling is not None  # asked by those who have it
        if self._judged is None or self._judged[0] is not spots:
            self._judged = spots, self.sampling.judge(self.sampling.look(spots.spots(self.placed)), spots)
        return self._judged[1]

    def _off(self, whole: Whole) -> bool:
        """Whether the objective on the sample, where the last stage left it, is not that on all voxels, or a constraint is not."""
        missed = worst(whole.violations) > worst(self._violations()) + self.solver.feasibility
        return missed or abs(self.steps[-1]["objective"] - whole.value) > AGREE * abs(whole.value)

    def _violations(self) -> Tensor:
        return self.objective.constraints.violations(self._image())

    @property
    def spent(self) -> bool:
        """Whether the evaluations of all stages are used up."""
        return self.solver.max_evaluations is not None and self.history[-1]["evaluations"] >= self.solver.max_evaluations

    def finish(self, spots: MovingSpots, solution: Solution | None) -> Optimized:
        """The outcome, with the counts and the history of all stages."""
        if solution is None:
            raise InputError("the run to resume has gone as far as the case asks; start without --resume, or raise its limits")
        last = self.history[-1]
        solution = replace(solution, iterations=last["iteration"], evaluations=last["evaluations"], history=self.history)
        if self.sampling is None:
            return self._checked(Optimized(spots, solution, self._image(), self.steps, self._violations()))
        whole = self._judge(spots)
        sampled = self.steps[-1]["objective"]
        if self._off(whole):
            log.warning("the objective is %.6g on all voxels, but %.6g on the sample that was optimized", whole.value, sampled)
        found = replace(solution, value=whole.value)
        return self._checked(Optimized(spots, found, self._image(), self.steps, whole.violations, whole))

    def _checked(self, found: Optimized) -> Optimized:
        """No plan has converged whose constraints do not hold."""
        if not found.solution.converged or worst(found.violations) <= self.solver.feasibility:
            return found
        return replace(found, solution=replace(found.solution, status=Status.INFEASIBLE))

    def _note(self, record: dict) -> None:
        self.done.append(record)
        self.history += record["history"]
        self.steps.append(record["step"])

    def _problem(self, vary: Vary, spots: MovingSpots, lower: Tensor | None) -> tuple[Any, Packing, dict[str, Any]]:
        """What the solver sees, the packing of its vector, and its options with the start."""
        doses, packing = self.doses.subset(spots.index), Packing(vary, spots)
        least = torch.zeros_like(spots.weight) if lower is None else lower[spots.index]
        room = Room(spots, doses, self.objective, least, self.box, *self._rectangle(spots))
        low, high = packing.bounds(room)
        # a position is home + u, rounded, and the u that comes back may be past its bound by that
        start = torch.clamp(packing.pack(spots), low, high)
        options: dict[str, Any] = {"start": start, "lower": low, "upper": high, "scale": packing.scale(room)}
        if vary == WEIGHTS:
            return Composite(self._linear(doses, spots), self.objective), packing, options
        return SpotProblem(doses, self.objective, packing), packing, options

    def _linear(self, doses: ScenarioDoses, spots: MovingSpots) -> LinearDose:
        """The linear map of spots where they stand: that of the placed ones as long as these are among them."""
        if self.linear is None or not torch.equal(spots.position, self.placed.position[spots.index]):
            return doses.at(spots.position)
        if spots.n_spots == self.placed.n_spots:
            return self.linear
        # the pair kernel costs in proportion to the spots, a matrix needs building first
        return SomeSpots(self.linear, spots.index, self.placed.n_spots) if self.linear.n_nonzeros else doses.at(spots.position)

    def _rectangle(self, spots: MovingSpots) -> tuple[Tensor, Tensor]:
        """Corners `(n, 2)` of the rectangle around all placed spots of each spot's beam: the target with its margin in that beam's view."""
        position, beam = self.placed.position.detach(), self.placed.beam
        far = torch.full((len(self.placed.beams), 2), math.inf, dtype=position.dtype, device=position.device)
        where = beam[:, None].expand_as(position)
        low, high = far.scatter_reduce(0, where, position, "amin"), far.neg().scatter_reduce(0, where, position, "amax")
        own = beam[spots.index]
        return low[own], high[own]


class StoppedStage(Exception):
    """A stage's callback stopped it, or it met NaN: no further stage."""

    def __init__(self, spots: MovingSpots, solution: Solution) -> None:
        super().__init__()
        self.spots, self.solution = spots, solution
