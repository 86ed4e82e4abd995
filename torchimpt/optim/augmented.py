"""Constraints: rounds of any of the methods on an augmented Lagrangian, between which its multipliers are updated.

    L(x) = F(x) + sum_j r_j (max(0, g_j(x) + t_j)^2 - t_j^2),    t_j <- max(0, g_j + t_j) after each round

The problem's value is L, and its constraints hold shifts `t`, the multipliers over twice the penalties, and penalties `r`
(`torchimpt.objectives.constraints`). A penalty is raised where a round did not bring the change of its shifts down to `FALL` of what it
was. Rounds end where no shift changes by more than the tolerance, in the constraints' unit: then no constraint is violated by more, and
none that has a multiplier is further inside. They also end where constraints cannot be met: the penalty of what is violated is far above F,
and raising it brings the violation down no further.

Sources: Hestenes, J Optim Theory Appl 4:303, 1969; Rockafellar, J Optim Theory Appl 12:555, 1973; the order of updates as in Andreani,
Birgin, Martinez and Schuverdt, SIAM J Optim 18:1286, 2007 (ALGENCAN).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from torchimpt.optim.problem import Problem
from torchimpt.optim.run import Callback, Run
from torchimpt.optim.solution import Iteration, Solution, Status

FALL = 0.25
"""A round that does not bring the change of a constraint's shifts down to this share of what it was raises its penalty."""

RAISE = 5.0
"""By this factor."""

STILL, LOUD = 0.95, 10.0
"""Constraints cannot be met where a round left the violation above `STILL` of what it was, though its penalty is `LOUD` times F."""

FEASIBILITY = 0.1
"""Default tolerance, Gy: 0.15 % of a usual prescription."""


class ConstraintSet(Protocol):
    """Constraints of images: the doses of all scenarios, or whatever a problem makes of `x`."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def value(self, image: Tensor) -> float:
        """What they add to F in L."""
        ...

    def energy(self, image: Tensor) -> float:
        """`sum_j r_j max(0, g_j)^2`."""
        ...

    def worst(self, image: Tensor) -> float:
        """The largest violation, at least zero."""
        ...

    def advance(self, image: Tensor) -> list[float]:
        """Update the shifts; the largest change of each constraint's."""
        ...

    def stiffen(self, number: int, factor: float) -> None:
        """Raise one's penalty; its multipliers stay."""
        ...

    def state_dict(self) -> Any:
        """Shifts and penalties."""
        ...

    def load_state_dict(self, state: Any) -> None:
        """Take up earlier ones."""
        ...


@runtime_checkable
class Constrained(Problem, Protocol):
    """A problem whose value is L."""

    constraints: ConstraintSet

    def image(self, x: Tensor) -> Tensor:
        """What the constraints see of `x`, from a store where it was just computed."""
        ...


@dataclass
class Multipliers:
    """When shifts are updated and penalties raised, and when that is to end.

    Attributes
    ----------
    constraints
        Whose.
    tolerance
        How far a constraint may be violated, in its unit.
    changes, violation
        Of each constraint's shifts, and the largest violation, after the last round.
    """

    constraints: ConstraintSet
    tolerance: float
    changes: list[float] | None = None
    violation: float = float("inf")

    def update(self, image: Tensor, value: float, solved: bool) -> Status | None:
        """After a round that ended at `image` with the value L, `solved` to its tolerance or not: why to end, if at all."""
        objective, energy = value - self.constraints.value(image), self.constraints.energy(image)
        before, self.violation = self.violation, self.constraints.worst(image)
        stuck = self.violation > max(self.tolerance, STILL * before) and energy > LOUD * abs(objective)
        last, self.changes = self.changes, self.constraints.advance(image)
        if solved and max(self.changes) <= self.tolerance:
            return Status.CONVERGED
        if solved and stuck:
            return Status.INFEASIBLE
        for number, change in enumerate(self.changes):
            if solved and last is not None and change > max(self.tolerance, FALL * last[number]):
                self.constraints.stiffen(number, RAISE)
        return None

    def state_dict(self) -> dict:
        """All that the next update depends on, apart from the problem."""
        return {"constraints": self.constraints.state_dict(), "changes": self.changes, "violation": self.violation}

    def load_state_dict(self, state: dict) -> None:
        """Take up an earlier run's."""
        self.constraints.load_state_dict(state["constraints"])
        self.changes, self.violation = state["changes"], state["violation"]


Solve = Callable[[Run, Tensor, dict | None], Solution]
"""One round: from its run, start and state to resume from."""


def run_rounds(run: Run, solve: Solve, x: Tensor, feasibility: float, saved: dict | None) -> Solution:
    """Rounds of a solver until the constraints hold; iterations, evaluations and seconds count through all of them.

    Parameters
    ----------
    run
        The whole run, whose problem is `Constrained`.
    solve
        Runs one round.
    x
        The start.
    feasibility
        How far a constraint may be violated, in its unit.
    saved
        The state of an earlier run.
    """
    problem: Any = run.problem
    multipliers, history, inner = Multipliers(problem.constraints, feasibility), list[dict](), saved
    if saved is not None:
        multipliers.load_state_dict(saved["rounds"]["multipliers"])
        history = [dict(row) for row in saved["rounds"]["history"]]
    while True:
        before = {"multipliers": multipliers.state_dict(), "history": list(history)}
        first = {name: history[-1][name] if history else 0 for name in ("evaluations", "seconds")}
        first["iteration"] = history[-1]["iteration"] + 1 if history else 0
        one = replace(
            run,
            callback=run.callback and _counted(run.callback, first, before),
            max_iterations=max(0, run.max_iterations - first["iteration"]),
            max_evaluations=max(1, run.max_evaluations - first["evaluations"]),
            history=[],
        )
        solution = solve(one, x, inner)
        history += [_shifted(row, first) for row in solution.history]
        x, inner = solution.x, None
        status: Status | None = solution.status
        if solution.status not in (Status.STOPPED, Status.NOT_FINITE):
            ended = multipliers.update(problem.image(x), solution.value, solution.converged)
            # to go on is for rounds that were solved; out of iterations, or where no lower point is found, there is no next one
            status = Status.INFEASIBLE if ended is Status.INFEASIBLE else None if ended is None and solution.converged else solution.status
        last = history[-1]
        if status is None and last["iteration"] + 1 >= run.max_iterations:
            status = Status.MAX_ITERATIONS
        if status is None and last["evaluations"] >= run.max_evaluations:
            status = Status.MAX_EVALUATIONS
        if status is not None:
            return replace(
                solution, status=status, history=history, iterations=last["iteration"], evaluations=last["evaluations"],
                state={**solution.state, "rounds": before},
            )  # fmt: skip


def _shifted(row: dict, first: dict) -> dict:
    return {name: value + first.get(name, 0) if name in first else value for name, value in row.items()}


def _counted(callback: Callback, first: dict, before: dict) -> Callback:
    """The callback of a round: counts go on from the rounds before, and the state tells them."""

    def counted(iteration: Iteration) -> bool | None:
        told = {**vars(iteration), **_shifted(iteration.numbers(), first)}
        return callback(Iteration(**{**told, "state": lambda: {**iteration.state(), "rounds": before}}))

    return counted
