"""Stages of one optimization: a solver run each, their histories joined, and an interrupted one taken up where it stopped."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from torchimpt.checks import InputError
from torchimpt.config import OptimizerConfig
from torchimpt.dose.operator import DoseOperator
from torchimpt.monitor import Callback
from torchimpt.optim import Penalized, Solution, Status, minimize
from torchimpt.optim.solution import Iteration
from torchimpt.planning.engine import Engine, MatrixFreeEngine
from torchimpt.planning.joint import JointProblem, Moving, PositionProblem, joint_scale, position_bounds
from torchimpt.planning.weights import jacobi_scale, weight_problem
from torchimpt.pruning import sparsity_cost
from torchimpt.robust import RobustObjective
from torchimpt.spots import Spots


@dataclass
class View:
    """What the solver is at, for those who watch: `problem.image(x)` gives the doses at its iterates, `plan(x)` the spots."""

    problem: Any = None
    plan: Callable[[Tensor], Moving] | None = None


@dataclass(frozen=True)
class Limits:
    """What the finished plan must satisfy.

    Attributes
    ----------
    min_weight
        `(n_spots,)` of the placed spots, 10^6 protons; None for no minimum.
    min_layer_share
        A layer that carries less than this share of the heaviest layer's weight is left out; 0 keeps all.
    """

    min_weight: Tensor | None = None
    min_layer_share: float = 0.0


@dataclass(frozen=True)
class Optimized:
    """A plan found.

    Attributes
    ----------
    plan
        Spots kept, where they are, what they weigh.
    solution
        Of the last stage, with history and counts of all.
    steps
        What each step left: `step`, `spots`, `objective`, `iterations`, `evaluations`, `seconds`.
    """

    plan: Moving
    solution: Solution
    steps: list[dict]


@dataclass
class Stages:
    """The stages of one optimization, those of an interrupted one included."""

    operators: Sequence[DoseOperator]
    objective: RobustObjective
    placed: Spots
    config: OptimizerConfig
    box: float
    callback: Callback | None
    view: View
    engine: Engine | None
    saved: dict | None
    done: list[dict] = field(default_factory=list)
    history: list[dict] = field(default_factory=list)
    steps: list[dict] = field(default_factory=list)

    def solve(
        self,
        step: str,
        kind: str,
        plan: Moving,
        iterations: int,
        *,
        tolerance: float | None = None,
        lower: Tensor | None = None,
        sparse: bool = False,
    ) -> tuple[Moving, Solution | None]:
        """One stage: `kind` "weights", "positions" or "joint". The solution is None where an earlier run had finished the stage.

        With `sparse`, the solver sees a price on each spot's weight (`sparsity_cost`); all values that are told are without it.
        """
        number = len(self.done)
        if self.saved is not None and number < len(self.saved["done"]):
            record = self.saved["done"][number]
            self._note(record)
            return Moving(**record["plan"]), None
        inner, prices = (None, {}) if self.saved is None else (self.saved["inner"], dict(self.saved["prices"]))
        self.saved = None
        last = self.history[-1] if self.history else {"iteration": -1, "evaluations": 0, "seconds": 0.0}
        before = {"done": [dict(record) for record in self.done], "history": list(self.history), "steps": list(self.steps)}

        def shifted(row: dict) -> dict:
            add = {"iteration": last["iteration"] + 1, "evaluations": last["evaluations"], "seconds": last["seconds"]}
            add["value"] = -prices.get(row["iteration"], 0.0)
            return {name: value + add.get(name, 0) for name, value in row.items()}

        def watch(iteration: Iteration) -> bool | None:
            if sparse:
                prices[iteration.iteration] = problem.penalty(iteration.x)
            numbers, state = shifted(iteration.numbers()), iteration.state
            here = {**before, "prices": dict(prices)}
            return self.callback and self.callback(replace(iteration, **numbers, state=lambda: {**here, "inner": state()}))

        problem, x, options, back = self._problem(kind, plan, lower)
        if sparse:
            cost = torch.zeros_like(x)
            cost[: plan.n_spots] = sparsity_cost(plan.weight, self.steps[-1]["objective"])
            problem, options["method"] = Penalized(problem, cost), "quasi_newton"
        self.view.problem, self.view.plan = problem, back
        left = None if self.config.max_evaluations is None else max(1, self.config.max_evaluations - last["evaluations"])
        solution = minimize(
            problem, x, max_iterations=iterations, tolerance=self.config.tolerance if tolerance is None else tolerance,
            max_evaluations=left, callback=watch, state=inner, **options,
        )  # fmt: skip
        if sparse:
            solution = replace(solution, value=solution.value - problem.penalty(solution.x))
        plan = back(solution.x)
        rows = [shifted(row) for row in solution.history]
        self._note(
            {
                "plan": plan.state_dict(),
                "history": rows,
                "step": {
                    "step": step,
                    "spots": plan.n_spots,
                    "objective": solution.value,
                    "iterations": solution.iterations,
                    "evaluations": solution.evaluations,
                    "seconds": rows[-1]["seconds"] - last["seconds"],
                },
            }
        )
        if solution.status in (Status.NOT_FINITE, Status.STOPPED):
            raise StoppedStage(plan, solution)
        return plan, solution

    @property
    def spent(self) -> bool:
        """Whether the evaluations of all stages are used up."""
        return self.config.max_evaluations is not None and self.history[-1]["evaluations"] >= self.config.max_evaluations

    def _note(self, record: dict) -> None:
        self.done.append(record)
        self.history += record["history"]
        self.steps.append(record["step"])

    def _problem(self, kind: str, plan: Moving, lower: Tensor | None):
        """Problem, start, options of `minimize`, and the way back from an iterate to a plan."""
        operators = self.operators if plan.n_spots == self.placed.n_spots else [o.subset(plan.index) for o in self.operators]
        least = torch.zeros_like(plan.weight) if lower is None else lower[plan.index]
        if kind == "weights":
            stay = self.engine is not None and plan.n_spots == self.placed.n_spots and torch.equal(plan.position, self.placed.position)
            engine = self.engine if stay else MatrixFreeEngine(operators, plan.position)
            options = {"method": self.config.method, "scale": jacobi_scale(operators[0], plan.position, self.objective.bound)}
            problem = weight_problem(engine, self.objective)
            return problem, plan.weight, {**options, "lower": least}, lambda x: replace(plan, weight=x)
        joint = JointProblem(operators, self.objective, plan.home)
        scale, n = joint_scale(operators[0], plan, self.objective), plan.n_spots
        below, above = position_bounds(plan, self.box, *self._rectangle(plan))
        # home + u is rounded, and the u that comes back may be past its bound by that
        z = torch.cat((plan.weight, torch.clamp(joint.pack(plan)[n:], below, above)))
        if kind == "positions":
            problem = PositionProblem(joint, plan.weight)
            return problem, z[n:], {"lower": below, "upper": above, "scale": scale[n:]}, lambda u: joint.unpack(plan, torch.cat((z[:n], u)))
        options = {
            "method": "quasi_newton", "scale": scale, "lower": torch.cat((least, below)),
            "upper": torch.cat((torch.full_like(least, math.inf), above)),
        }  # fmt: skip
        return joint, z, options, lambda x: joint.unpack(plan, x)

    def _rectangle(self, plan: Moving) -> tuple[Tensor, Tensor]:
        """Corners `(n, 2)` of the rectangle around all placed spots of each spot's beam: the target with its margin in that beam's view."""
        position, beam = self.placed.position.detach(), self.placed.beam
        far = torch.full((len(self.placed.beams), 2), math.inf, dtype=position.dtype, device=position.device)
        where = beam[:, None].expand_as(position)
        low, high = far.scatter_reduce(0, where, position, "amin"), far.neg().scatter_reduce(0, where, position, "amax")
        own = beam[plan.index]
        return low[own], high[own]

    def finish(self, plan: Moving, solution: Solution | None) -> Optimized:
        """The outcome, with the counts and the history of all stages."""
        if solution is None:
            raise InputError("the run to resume has gone as far as the case asks; start without --resume, or raise its limits")
        last = self.history[-1]
        solution = replace(solution, iterations=last["iteration"], evaluations=last["evaluations"], history=self.history)
        return Optimized(plan, solution, self.steps)


class StoppedStage(Exception):
    """A stage's callback stopped it, or it met NaN: no further stage."""

    def __init__(self, plan: Moving, solution: Solution) -> None:
        super().__init__()
        self.plan, self.solution = plan, solution
