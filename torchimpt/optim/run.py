"""Bookkeeping that every solver shares: records, callbacks, reasons to stop, and the state to resume from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from torchimpt.optim.direction import Bounds, dot, steepest
from torchimpt.optim.problem import Problem, Resumable
from torchimpt.optim.solution import WINDOW, Iteration, Solution, Status, converged, least_promised, remaining_fall
from torchimpt.optim.steps import Memory, State

Callback = Callable[[Iteration], bool | None]


@dataclass
class Run:
    """One call of `minimize`; its arguments, and the history so far. `metric` is the square of its scale."""

    problem: Problem
    bounds: Bounds
    method: str
    tolerance: float
    max_iterations: int
    max_evaluations: float
    callback: Callback | None
    metric: Tensor | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)
    last: State | None = None
    """The state that the last record is of."""

    def curvature(self, state: State, free: Tensor, gradient: Tensor) -> tuple[float, float | None, float | None]:
        """`decrement`, `short` and `long` of an iteration's record; `free` are the components that no bound holds, `gradient` is theirs."""
        decrement, short, long = -0.5 * dot(gradient, steepest(gradient, self.metric)), None, None
        if self.last is not None:
            move, change = (state.x - self.last.x) * free, (state.gradient - self.last.gradient) * free
            both, stiff = dot(move, change), -dot(change, steepest(change, self.metric))
            if not move.any():
                told = (row for row in reversed(self.history) if row["short"] is not None)
                short, long = next(((row["short"], row["long"]) for row in told), (None, None))
            elif both > 0 and stiff > 0:
                short, long = both / stiff, dot(move, move if self.metric is None else move / self.metric) / both
        return decrement, short, long

    def record(self, state: State) -> Status | None:
        """Note an iterate, call the callback, and say whether to stop."""
        free = self.bounds.free(state.x, state.gradient)
        gradient = state.gradient * free
        decrement, short, long = self.curvature(state, free, gradient)
        record = Iteration(
            iteration=state.iteration,
            evaluations=state.evaluations,
            value=state.value,
            step_length=state.step,
            beta=state.beta,
            projected_gradient_norm=_norm(gradient),
            decrement=decrement,
            short=short,
            long=long,
            x=state.x,
            seconds=time.perf_counter() - self.started,
            state=lambda: self.state_dict(state),
        )
        self.history.append(record.numbers())
        self.last = state
        if not state.finite:
            return Status.NOT_FINITE
        if self.callback is not None and self.callback(record):
            return Status.STOPPED
        return self.reason(state)

    def reason(self, state: State) -> Status | None:
        """Why to stop at the last iterate in the history, if at all."""
        if status := converged(self.history, self.tolerance):
            return status
        if len(self.history) > WINDOW and self.history[-1 - WINDOW]["value"] <= state.value:
            return self.failed(state)
        if state.iteration >= self.max_iterations:
            return Status.MAX_ITERATIONS
        if state.evaluations >= self.max_evaluations:
            return Status.MAX_EVALUATIONS
        return None

    def failed(self, state: State) -> Status:
        """What it means that no lower point was found, or none in a whole window: the minimum, to the numbers' precision, or an error.

        The minimum, when what the gradient promises at least is below the tolerance, or in the rounding of F; or when F itself is in the
        rounding of what it was at the start.
        """
        eps = torch.finfo(state.x.dtype).eps
        little = least_promised(self.history) <= max(self.tolerance, 100 * eps) * abs(state.value)
        if state.iteration > 0 and (little or abs(state.value) <= eps * abs(self.history[0]["value"])):
            return Status.PRECISION
        return Status.LINE_SEARCH_FAILED

    def resume(self, saved: dict, kind: type[Memory] | None) -> State:
        """Take up history, clock and problem of an earlier run; returns its state, with a memory of this kind."""
        self.history = [dict(row) for row in saved["history"]]
        self.started = time.perf_counter() - self.history[-1]["seconds"]
        if saved["problem"] is not None and isinstance(self.problem, Resumable):
            self.problem.load_state_dict(saved["problem"])
        self.last = State.load(saved["solver"], kind)
        return self.last

    def state_dict(self, state: State) -> dict:
        """All that `resume` needs."""
        problem = self.problem.state_dict() if isinstance(self.problem, Resumable) else None
        return {"method": self.method, "solver": state.state_dict(), "history": [dict(row) for row in self.history], "problem": problem}

    def solution(self, state: State, status: Status) -> Solution:
        """The outcome at a state."""
        return Solution(
            x=state.x,
            value=state.value,
            gradient=state.gradient,
            projected_gradient_norm=_norm(state.gradient * self.bounds.free(state.x, state.gradient)),
            iterations=state.iteration,
            evaluations=state.evaluations,
            status=status,
            history=self.history,
            state=self.state_dict(state),
            remaining=remaining_fall([row["value"] for row in self.history]),
        )


def _norm(vector: Tensor) -> float:
    """2-norm."""
    return math.sqrt(dot(vector, vector))
