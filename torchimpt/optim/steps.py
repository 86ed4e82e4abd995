"""One step of the projected conjugate-gradient methods: direction, step length, new point.

Two forms share one state. `WolfeStep` needs values and gradients only; with `restrict=False` it is the method of Xu et al. 2020, Eq. 7-12.
`LineStep` is for problems whose restriction to a line is cheap: it takes the exact minimum on the line, and mends what the bounds cut off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from torchimpt.optim.direction import Bounds, Direction, conjugate, dot, steepest
from torchimpt.optim.line_search import DELTA, THETA, Trial, line_minimum, wolfe
from torchimpt.optim.problem import LineProblem, Problem

COSINE = 0.01
"""A direction whose cosine with steepest descent, in the components that move, is not above it is dropped for steepest descent.

Not in the paper. The factors count components that a bound holds, and can grow so large that the next direction is the last one again,
along which there is nothing left to gain: without this guard the plain form ended up to 50 % above the minimum of random quadratics. Plans
meet it once in hundreds of iterations.
"""


@dataclass
class State:
    """Where a solver stands; all that its next step depends on, apart from the problem.

    Attributes
    ----------
    x, value, gradient
        The iterate `(n,)`, F there, and its gradient `(n,)`.
    gradient_old, direction
        Gradient at the iterate before and the direction that led from it, `(n,)`; None where the method starts or restarts.
    length, slope
        Length on that direction at which the secant of its slope vanishes, and its start slope: they give the next first trial.
    step
        Step length that was taken.
    beta
        Factor that the direction was made with.
    iteration, evaluations
        Counts so far.
    moves, changes
        Quasi-Newton pairs, oldest first, `(pairs, n)` each: steps `x_{k+1} - x_k` and what the gradient changed by; None without any.
    """

    x: Tensor
    value: float
    gradient: Tensor
    gradient_old: Tensor | None = None
    direction: Tensor | None = None
    length: float = 0.0
    slope: float = 0.0
    step: float = 0.0
    beta: float = 0.0
    iteration: int = 0
    evaluations: int = 1
    moves: Tensor | None = None
    changes: Tensor | None = None

    def state_dict(self) -> dict:
        """Every field, tensors copied."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: v.clone() if isinstance(v, Tensor) else v for name, v in values.items()}

    @classmethod
    def load(cls, saved: dict) -> State:
        """The state that `state_dict` wrote."""
        return cls(**{name: v.clone() if isinstance(v, Tensor) else v for name, v in saved.items()})

    @classmethod
    def start(cls, problem: Problem, x: Tensor) -> State:
        """State at `x`, after one evaluation."""
        return cls(x, *problem.value_and_grad(x))


@dataclass(frozen=True)
class Step:
    """Settings of a step.

    Attributes
    ----------
    bounds
        Of every component.
    beta
        Name of the beta rule.
    restrict
        Make gradient and direction zero in the components that a bound holds before anything else is computed from them.
    metric
        Diagonal `(n,)` of `M`, about the inverse of the Hessian's diagonal; None for the identity.
    """

    bounds: Bounds
    beta: str = "dyhs"
    restrict: bool = True
    metric: Tensor | None = None
    delta: float = DELTA
    theta: float = THETA

    def direction(self, state: State) -> Direction:
        """The search direction at a state."""
        gradient, old, gradient_old = state.gradient, state.direction, state.gradient_old
        if self.restrict:
            free = self.bounds.free(state.x, gradient)
            gradient = gradient * free
            if old is not None:
                old, gradient_old = old * free, gradient_old * free
        # A component at a bound that the direction would leave gets a step of zero from Eq. 7, whatever the step length.
        if old is not None:
            vector, factor = conjugate(gradient, gradient_old, old, self.beta, self.metric)
            vector.masked_fill_(self.bounds.pointing_out(state.x, vector), 0.0)
            slope = dot(gradient, vector)
            if -slope > COSINE * self.size(gradient * (vector != 0), vector):
                return Direction(vector, slope, factor)
        vector = steepest(gradient, self.metric)
        vector.masked_fill_(self.bounds.pointing_out(state.x, vector), 0.0)
        return Direction(vector, dot(gradient, vector), 0.0)

    def size(self, gradient: Tensor, vector: Tensor) -> float:
        """`|g| |d|` in the metric."""
        if self.metric is None:
            return math.sqrt(dot(gradient, gradient) * dot(vector, vector))
        return math.sqrt(dot(gradient, self.metric * gradient) * dot(vector, vector / self.metric))

    def first_length(self, state: State, direction: Direction) -> float:
        """First trial: the last step's expected decrease again, or a tenth of the iterate's size."""
        if state.direction is not None and state.slope < 0:
            return state.length * state.slope / direction.slope
        return 0.1 * (float(state.x.abs().max()) or 1.0) / float(direction.vector.abs().max())

    def __call__(self, problem: Problem, state: State) -> State | None:
        """The next state, or None when no lower point was found even along steepest descent."""
        direction = self.direction(state)
        new = self.along(problem, state, direction) if direction.slope < 0 else None
        if new is None and state.direction is not None:
            state.gradient_old = state.direction = state.moves = state.changes = None
            return self(problem, state)
        return new

    def along(self, problem: Problem, state: State, direction: Direction) -> State | None:
        """The next state along a direction."""
        raise NotImplementedError(f"{type(self).__name__} must define along")

    def noise(self, state: State) -> float:
        """Rounding error of a value."""
        return 4 * torch.finfo(state.x.dtype).eps * abs(state.value)


class WolfeStep(Step):
    """Step by the Wolfe conditions on the projected path (Eq. 7, 11, 12)."""

    def along(self, problem: Problem, state: State, direction: Direction) -> State | None:
        last: Trial | None = None

        def path(length: float) -> Trial:
            nonlocal last
            straight = torch.add(state.x, direction.vector, alpha=length)
            x = self.bounds.clamp(straight)
            moved = torch.where(x == straight, direction.vector, (x - state.x) / length)
            value, gradient = problem.value_and_grad(x)
            last = Trial(length, value, dot(gradient, moved), dot(state.gradient, moved), (x, gradient, moved))
            return last

        first = self.first_length(state, direction)
        trial, n_trials = wolfe(path, state.value, first, delta=self.delta, theta=self.theta, noise=self.noise(state))
        state.evaluations += n_trials
        if trial is None:
            if state.direction is None and not (math.isfinite(last.value) and math.isfinite(last.slope)):
                # NaN however short the step: the run says so by this state
                return State(last.point[0], last.value, last.point[1], iteration=state.iteration + 1, evaluations=state.evaluations)
            return None
        x, gradient, moved = trial.point
        rise = trial.slope - trial.start_slope
        best = min(-trial.length * trial.start_slope / rise, 10.0 * trial.length) if rise > 0 else 10.0 * trial.length
        return State(
            x, trial.value, gradient, state.gradient, moved, best, trial.start_slope, trial.length, direction.beta,
            state.iteration + 1, state.evaluations,
        )  # fmt: skip


class LineStep(Step):
    """Step to the minimum on the line, cut off at the bounds.

    Where bounds bend the path, its end is taken as it is when it is low enough (Eq. 11), because stopping short of it would leave the
    bounds again that were just reached; otherwise the minimum between the old point and the bent end.
    """

    def along(self, problem: LineProblem, state: State, direction: Direction) -> State | None:
        line, moved = problem.line(state.x, direction.vector), direction.vector
        # The line's own start, not the state's: both stand for one number, and rounding must not decide between them.
        start, slope = line.value_slope(0.0)
        if not slope < 0:
            return None
        length = line_minimum(line.value_slope, slope, self.first_length(state, direction))
        straight = torch.add(state.x, moved, alpha=length)
        x = self.bounds.clamp(straight)
        if torch.equal(x, straight):
            value, gradient = line.value_and_grad(length, x)
        else:
            line, moved = line.bend(length, x), x - state.x
            slope = dot(state.gradient, moved)
            value, gradient = line.value_and_grad(1.0, x)
            if not value <= start + self.delta * slope + self.noise(state) and slope < 0:
                share = line_minimum(line.value_slope, slope, 0.5, longest=1.0)
                x = self.bounds.clamp(torch.add(state.x, moved, alpha=share))
                value, gradient = line.value_and_grad(share, x)
                state.evaluations += 1
                length, moved, slope = length * share, moved * share, slope * share
            moved, slope = moved / length, slope / length
        state.evaluations += 1
        if not (math.isfinite(value) and value <= start + self.noise(state)):
            return None
        return State(
            x, value, gradient, state.gradient, moved, length, slope, length, direction.beta, state.iteration + 1, state.evaluations
        )  # fmt: skip
