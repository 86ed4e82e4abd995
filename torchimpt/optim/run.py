"""Bookkeeping that every solver shares: records, callbacks, reasons to stop, and the state to resume from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from torchimpt.optim.direction import Bounds, dot
from torchimpt.optim.problem import Problem, Resumable
from torchimpt.optim.solution import Iteration, Solution, Status, is_converged
from torchimpt.optim.steps import Memory, State

Callback = Callable[[Iteration], bool | None]


@dataclass
class Run:
    """One call of `minimize`; its arguments, and the history so far."""

    problem: Problem
    bounds: Bounds
    method: str
    tolerance: float
    max_iterations: int
    max_evaluations: float
    callback: Callback | None
    history: list[dict[str, Any]] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def norm(self, state: State) -> float:
        """2-norm of the gradient in the free components."""
        free = state.gradient * self.bounds.free(state.x, state.gradient)
        return math.sqrt(dot(free, free))

    def record(self, state: State) -> Status | None:
        """Note an iterate, call the callback, and say whether to stop."""
        record = Iteration(
            iteration=state.iteration,
            evaluations=state.evaluations,
            value=state.value,
            step_length=state.step,
            beta=state.beta,
            projected_gradient_norm=self.norm(state),
            x=state.x,
            seconds=time.perf_counter() - self.started,
            state=lambda: self.state_dict(state),
        )
        self.history.append(record.numbers())
        if not state.finite:
            return Status.NOT_FINITE
        if self.callback is not None and self.callback(record):
            return Status.STOPPED
        return self.reason(state)

    def reason(self, state: State) -> Status | None:
        """Why to stop at the last iterate in the history, if at all."""
        if is_converged(self.history, self.tolerance):
            return Status.CONVERGED
        if state.iteration >= self.max_iterations:
            return Status.MAX_ITERATIONS
        if state.evaluations >= self.max_evaluations:
            return Status.MAX_EVALUATIONS
        return None

    def failed(self, state: State) -> Status:
        """What it means that no lower point was found: the minimum, to the precision of the numbers, or something that is wrong.

        The last step's decrease in rounding, or the projected gradient (whose square F's distance from its minimum goes by) down to the
        square root of it.
        """
        eps = torch.finfo(state.x.dtype).eps
        if state.iteration > 0:
            fall = self.history[-2]["value"] - state.value
            small = self.history[-1]["projected_gradient_norm"] <= math.sqrt(eps) * self.history[0]["projected_gradient_norm"]
            if small or fall <= 10 * eps * abs(state.value):
                return Status.CONVERGED
        return Status.LINE_SEARCH_FAILED

    def resume(self, saved: dict, kind: type[Memory] | None) -> State:
        """Take up history, clock and problem of an earlier run; returns its state, with a memory of this kind."""
        self.history = [dict(row) for row in saved["history"]]
        self.started = time.perf_counter() - self.history[-1]["seconds"]
        if saved["problem"] is not None and isinstance(self.problem, Resumable):
            self.problem.load_state_dict(saved["problem"])
        return State.load(saved["solver"], kind)

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
            projected_gradient_norm=self.norm(state),
            iterations=state.iteration,
            evaluations=state.evaluations,
            status=status,
            history=self.history,
            state=self.state_dict(state),
        )
