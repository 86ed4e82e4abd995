"""What a solver reports: a record of every iteration while it runs, and an outcome with cause and remedy when it stops."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

WINDOW = 10
"""Iterations over which the decrease of F is averaged before it is called small."""


class Status(enum.Enum):
    """Why a solver stopped."""

    CONVERGED = "converged"
    MAX_ITERATIONS = "max_iterations"
    MAX_EVALUATIONS = "max_evaluations"
    LINE_SEARCH_FAILED = "line_search_failed"
    NOT_FINITE = "not_finite"
    STOPPED = "stopped"

    @property
    def message(self) -> str:
        """Cause and remedy in one sentence."""
        return _MESSAGES[self]


_MESSAGES = {
    Status.CONVERGED: "converged: a further iteration would lower the objective by less than the tolerance",
    Status.MAX_ITERATIONS: "out of iterations before the tolerance was met: raise max_iterations, or the tolerance",
    Status.MAX_EVALUATIONS: "out of evaluations before the tolerance was met: raise max_evaluations, or the tolerance",
    Status.LINE_SEARCH_FAILED: "no lower point was found along steepest descent: check the gradient, or use float64",
    Status.NOT_FINITE: "the objective or its gradient is NaN or infinite: check the dose, the doses prescribed, and the weights",
    Status.STOPPED: "stopped by the callback",
}


@dataclass(frozen=True)
class Iteration:
    """Record of one iteration, as callbacks get it.

    Attributes
    ----------
    iteration, evaluations
        Counts so far; iteration 0 is the start.
    value
        F.
    step_length, beta
        Of the step that led here; zero at the start, and `beta` is None for solvers that have none.
    projected_gradient_norm
        2-norm of the gradient in the components that no bound holds.
    x
        The iterate `(n,)`; copy it to keep it.
    seconds
        Since the solver started, earlier runs that were resumed included.
    state
        Call it for a dict from which `minimize(..., state=...)` goes on; tensors are copied, `torch.save` takes it.
    """

    iteration: int
    evaluations: int
    value: float
    step_length: float
    beta: float | None
    projected_gradient_norm: float
    x: Tensor
    seconds: float
    state: Callable[[], dict]

    def numbers(self) -> dict[str, Any]:
        """The plain numbers: a row of `Solution.history`."""
        names = ("iteration", "evaluations", "value", "step_length", "beta", "projected_gradient_norm", "seconds")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Solution:
    """Outcome of `minimize`.

    Attributes
    ----------
    x, value, gradient
        Last iterate `(n,)`, F there, its gradient `(n,)`.
    projected_gradient_norm
        2-norm of the gradient in the components that no bound holds; zero at a minimum.
    iterations, evaluations
        Counts; an evaluation is one value with its gradient.
    status
        Why it stopped.
    history
        Plain numbers of every iteration, the start included.
    state
        Give it to `minimize(..., state=...)` to go on.
    """

    x: Tensor
    value: float
    gradient: Tensor
    projected_gradient_norm: float
    iterations: int
    evaluations: int
    status: Status
    history: list[dict[str, Any]] = field(repr=False)
    state: dict = field(repr=False)

    @property
    def converged(self) -> bool:
        """Whether the tolerance was met."""
        return self.status is Status.CONVERGED

    @property
    def message(self) -> str:
        """Cause and remedy in one sentence."""
        return self.status.message


def is_converged(history: list[dict[str, Any]], tolerance: float) -> bool:
    """The one test of convergence, for every solver.

    Met when F fell by at most `tolerance` times itself per iteration, averaged over the last ten, or when the projected gradient's norm is
    zero or at most `tolerance` times its norm at the start.
    """
    last, first = history[-1], history[0]
    if not (math.isfinite(last["value"]) and math.isfinite(last["projected_gradient_norm"])):
        return False
    if last["projected_gradient_norm"] <= tolerance * first["projected_gradient_norm"]:
        return True
    if len(history) <= WINDOW:
        return False
    fall = history[-1 - WINDOW]["value"] - last["value"]
    return fall <= WINDOW * tolerance * abs(last["value"])
