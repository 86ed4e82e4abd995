"""What a solver reports: a record of every iteration while it runs, and an outcome with cause and remedy when it stops."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

WINDOW = 10
"""Iterations over which the decrease of F is averaged before it is called small."""


class Status(enum.Enum):
    """Why a solver stopped."""

    CONVERGED = "converged"
    STATIONARY = "stationary"
    PRECISION = "precision"
    MAX_ITERATIONS = "max_iterations"
    MAX_EVALUATIONS = "max_evaluations"
    LINE_SEARCH_FAILED = "line_search_failed"
    NOT_FINITE = "not_finite"
    STOPPED = "stopped"
    INFEASIBLE = "infeasible"

    @property
    def message(self) -> str:
        """Cause and remedy in one sentence."""
        return _MESSAGES[self]

    @property
    def converged(self) -> bool:
        """Whether the tolerance was met."""
        return self in (Status.CONVERGED, Status.STATIONARY, Status.PRECISION)


_MESSAGES = {
    Status.CONVERGED: "converged: over its last iterations the objective fell by no more than the tolerance an iteration",
    Status.STATIONARY: "converged: by its gradient an iteration would lower the objective by less than the tolerance",
    Status.PRECISION: "converged: no lower point can be told from rounding error; a lower one may be found in float64",
    Status.MAX_ITERATIONS: "out of iterations before the tolerance was met: raise max_iterations, or the tolerance",
    Status.MAX_EVALUATIONS: "out of evaluations before the tolerance was met: raise max_evaluations, or the tolerance",
    Status.LINE_SEARCH_FAILED: "no lower point was found along steepest descent, which promises one: use float64, or check the gradient",
    Status.NOT_FINITE: "the objective or its gradient is NaN or infinite: check the dose, the doses prescribed, and the weights",
    Status.STOPPED: "stopped by the callback",
    Status.INFEASIBLE: "the constraints cannot all be met, and are violated as little as can be: loosen one, or make it an objective",
}


NUMBERS = (
    "iteration", "evaluations", "value", "step_length", "beta", "projected_gradient_norm", "decrement", "short", "long", "seconds",
)  # fmt: skip
"""The plain numbers of an iteration."""


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
    decrement
        `g' M g / 2` in those components, `M` the square of the scale: what a step `-M g` would lower F by, were `M` the inverse Hessian.
    short, long
        Factors `s' y / y' M y` and `s' M^-1 s / s' y` on `M` from the last step `s` and the change `y` of the gradient, in those
        components; None where there is none, or `s' y` is not positive.
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
    decrement: float
    short: float | None
    long: float | None
    x: Tensor
    seconds: float
    state: Callable[[], dict]

    def numbers(self) -> dict[str, Any]:
        """The plain numbers: a row of `Solution.history`."""
        return {name: getattr(self, name) for name in NUMBERS}


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
    remaining
        `remaining_fall` of this run; None where it can't be told.
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
    remaining: float | None = None

    @property
    def converged(self) -> bool:
        """Whether the tolerance was met."""
        return self.status.converged

    @property
    def above_minimum(self) -> float | None:
        """`(F - F_min) / F_min`, estimated from the fall so far; infinite where F may yet halve, None where it can't be told."""
        if self.remaining is None:
            return None
        return self.remaining / (1.0 - self.remaining) if self.remaining < 0.5 else math.inf

    @property
    def message(self) -> str:
        """Cause and remedy, and how far from its minimum the objective may be."""
        above = self.above_minimum
        if above is None:
            return self.status.message
        far = "may be far" if math.isinf(above) else "is less than 0.01 %" if above < 1e-4 else f"is about {100 * above:.2g} %"
        return f"{self.status.message}. The objective {far} above its minimum, estimated from its fall"


def fall_is_small(values: Sequence[float], tolerance: float, iterations: int = WINDOW) -> bool:
    """Whether F fell by at most `tolerance` times itself per iteration, from the first to the last of its `values`.

    Parameters
    ----------
    values
        F now and earlier, in order.
    iterations
        How many there were between the first of the values and the last.
    """
    return values[0] - values[-1] <= iterations * tolerance * abs(values[-1])


def converged(history: Sequence[dict[str, Any]], tolerance: float) -> Status | None:
    """The one test of convergence, for every solver and every stage; all of it scales with F.

    `CONVERGED`: F fell by at most `tolerance` times itself per iteration over the last `WINDOW`, and `least_promised` is no more either; so
    a method that stands still does not pass. `STATIONARY`: `most_promised` is below that, and the last iteration gave no more; or the
    gradient is zero.
    """
    last = history[-1]
    if not (math.isfinite(last["value"]) and math.isfinite(last["projected_gradient_norm"])):
        return None
    if last["projected_gradient_norm"] == 0:
        return Status.STATIONARY
    values, small = [row["value"] for row in history[-1 - WINDOW :]], tolerance * abs(last["value"])
    if len(values) > WINDOW and fall_is_small(values, tolerance) and least_promised(history) <= small:
        return Status.CONVERGED
    if len(values) > 1 and most_promised(history) <= small and fall_is_small(values[-2:], tolerance, 1):
        return Status.STATIONARY
    return None


def least_promised(history: Sequence[dict[str, Any]]) -> float:
    """By how much a step along scaled steepest descent would lower F, at least: `short` times `decrement`.

    The factors are those of Barzilai and Borwein, IMA J Numer Anal 8:141, 1988: one over the curvature along the last step, whatever unit
    the scale has; the short one weighs the stiffest directions most. A step of ours takes 1 to 6 times as much, on plans. Of the last
    `WINDOW` iterations the least, because one number is now and then spoilt by rounding; infinite where there is none.
    """
    told = (row["short"] * row["decrement"] for row in history[-WINDOW:] if row["short"] is not None)
    return min(told, default=math.inf)


def most_promised(history: Sequence[dict[str, Any]]) -> float:
    """The same, at most: with the longest of the long factors of the last `WINDOW` iterations, one over the least curvature seen."""
    longest = max((row["long"] for row in history[-WINDOW:] if row["long"] is not None), default=math.inf)
    return longest * history[-1]["decrement"]


def remaining_fall(values: Sequence[float]) -> float | None:
    """Share of F that it may still fall by, estimated from its fall over the iterations so far.

    Taken as `F_k = F_min + c k^-p` through the last iterate `n` and those at `n / 2` and `n / 4`:

        2^p = (F_{n/4} - F_{n/2}) / (F_{n/2} - F_n),    F_n - F_min = (F_{n/2} - F_n) / (2^p - 1)

    so it is a guess: on plans within a factor of two of what a run to the minimum showed, whatever the tolerance from 1e-2 to 1e-5 and for
    every method but `dyhs_cg`, which can stand still far from the minimum (`experiments/stop_rule.py`). A geometric law says a third of it.

    Parameters
    ----------
    values
        F of every iteration, the start included.

    Returns
    -------
    `(F_n - F_min) / F_n`, at most 1; 0 where F did not fall in the second half; None where F is not positive or the run is shorter than 16
    iterations.
    """
    n = len(values) - 1
    if n < 16 or not values[n] > 0:
        return None
    quarter, half, last = values[n // 4], values[n // 2], values[n]
    before, after = quarter - half, half - last
    if after <= 0:
        return 0.0
    return min(1.0, after / (before / after - 1.0) / last) if before > after else 1.0
