"""One step of the methods: direction, step length, new point.

A step is given a state and returns what came of it; the state that it was given stays as it is. All methods share `State`; what one of them
remembers from step to step is its own `memory`. `WolfeStep` needs values and gradients only; with `restrict=False` it is the method of
Xu et al. 2020, Eq. 7-12. `LineStep` is for problems whose restriction to a line is cheap: it takes the exact minimum on the line, and mends
what the bounds cut off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Generic, TypeVar

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


@dataclass(frozen=True)
class Memory:
    """What a method remembers from one step to the next, besides the state; a frozen dataclass of tensors and numbers."""

    def state_dict(self) -> dict[str, Any]:
        """Every field, tensors copied."""
        return {f.name: _copy(getattr(self, f.name)) for f in fields(self)}


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


@dataclass(frozen=True)
class ConjugateMemory(Memory):
    """Of conjugate gradients.

    Attributes
    ----------
    gradient_old, direction
        Gradient at the iterate before and the direction that led from it, `(n,)`.
    length, slope
        Length on that direction at which the secant of its slope vanishes, and its start slope: they give the next first trial.
    """

    gradient_old: Tensor
    direction: Tensor
    length: float
    slope: float


M = TypeVar("M", bound=Memory)


@dataclass(frozen=True)
class State(Generic[M]):
    """Where a solver stands; with `memory`, all that its next step depends on, apart from the problem.

    Attributes
    ----------
    x, value, gradient
        The iterate `(n,)`, F there, and its gradient `(n,)`.
    step, beta
        Step length that was taken, and the factor that its direction was made with; None for methods that have none.
    iteration, evaluations
        Counts so far.
    memory
        The method's own; None where it starts or restarts.
    """

    x: Tensor
    value: float
    gradient: Tensor
    step: float = 0.0
    beta: float | None = 0.0
    iteration: int = 0
    evaluations: int = 1
    memory: M | None = None

    def state_dict(self) -> dict[str, Any]:
        """Every field, tensors copied, the memory as a dict of its own."""
        plain = {f.name: _copy(getattr(self, f.name)) for f in fields(self) if f.name != "memory"}
        return {**plain, "memory": None if self.memory is None else self.memory.state_dict()}

    @classmethod
    def load(cls, saved: dict[str, Any], kind: type[M] | None) -> State[M]:
        """The state that `state_dict` wrote, with a memory of this kind."""
        plain = {name: _copy(value) for name, value in saved.items() if name != "memory"}
        memory = saved["memory"]
        if memory is not None and kind is not None:
            memory = kind(**{name: _copy(value) for name, value in memory.items()})
        return cls(**plain, memory=memory)

    @classmethod
    def start(cls, problem: Problem, x: Tensor) -> State[M]:
        """State at `x`, after one evaluation."""
        return cls(x, *problem.value_and_grad(x))

    @property
    def finite(self) -> bool:
        """Whether value and gradient are numbers."""
        return math.isfinite(self.value) and bool(torch.isfinite(self.gradient).all())


@dataclass(frozen=True)
class Attempt(Generic[M]):
    """What came of a step.

    Attributes
    ----------
    state
        The next state; where there is no lower point, the one that the step was given, with the evaluations that were spent.
    moved
        Whether there is a next one.
    finite
        False where value or gradient are NaN or infinite however short the step.
    """

    state: State[M]
    moved: bool
    finite: bool = True


@dataclass(frozen=True)
class Step(Generic[M]):
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

    memory: ClassVar[type[Memory]] = Memory
    """What the method remembers."""

    def direction(self, state: State[M]) -> Direction:
        """The search direction at a state."""
        raise NotImplementedError(f"{type(self).__name__} must define direction")

    def first_length(self, state: State[M], direction: Direction) -> float:
        """First trial length on a direction."""
        raise NotImplementedError(f"{type(self).__name__} must define first_length")

    def along(self, problem: Any, state: State[M], direction: Direction) -> Attempt[M]:
        """What comes of a step along a direction."""
        raise NotImplementedError(f"{type(self).__name__} must define along")

    def __call__(self, problem: Problem, state: State[M]) -> Attempt[M]:
        """One step: along the method's direction, else along steepest descent, all else forgotten."""
        direction = self.direction(state)
        attempt = self.along(problem, state, direction) if direction.slope < 0 else Attempt(state, moved=False)
        if attempt.moved or state.memory is None:
            return attempt
        return self(problem, replace(attempt.state, memory=None))

    def size(self, gradient: Tensor, vector: Tensor) -> float:
        """`|g| |d|` in the metric."""
        if self.metric is None:
            return math.sqrt(dot(gradient, gradient) * dot(vector, vector))
        return math.sqrt(dot(gradient, self.metric * gradient) * dot(vector, vector / self.metric))

    def noise(self, state: State) -> float:
        """Rounding error of a value."""
        return 4 * torch.finfo(state.x.dtype).eps * abs(state.value)


class ConjugateStep(Step[ConjugateMemory]):
    """Conjugate gradients: the direction and the first trial length."""

    memory = ConjugateMemory

    def direction(self, state: State[ConjugateMemory]) -> Direction:
        """The search direction at a state."""
        gradient, memory = state.gradient, state.memory
        old, gradient_old = (None, None) if memory is None else (memory.direction, memory.gradient_old)
        if self.restrict:
            free = self.bounds.free(state.x, gradient)
            gradient = gradient * free
            if old is not None and gradient_old is not None:
                old, gradient_old = old * free, gradient_old * free
        # A component at a bound that the direction would leave gets a step of zero from Eq. 7, whatever the step length.
        if old is not None and gradient_old is not None:
            vector, factor = conjugate(gradient, gradient_old, old, self.beta, self.metric)
            vector.masked_fill_(self.bounds.pointing_out(state.x, vector), 0.0)
            slope = dot(gradient, vector)
            if -slope > COSINE * self.size(gradient * (vector != 0), vector):
                return Direction(vector, slope, factor)
        vector = steepest(gradient, self.metric)
        vector.masked_fill_(self.bounds.pointing_out(state.x, vector), 0.0)
        return Direction(vector, dot(gradient, vector), 0.0)

    def first_length(self, state: State[ConjugateMemory], direction: Direction) -> float:
        """First trial: the last step's expected decrease again, or a tenth of the iterate's size."""
        memory = state.memory
        if memory is not None and memory.slope < 0:
            return memory.length * memory.slope / direction.slope
        return 0.1 * (float(state.x.abs().max()) or 1.0) / float(direction.vector.abs().max())


def along_wolfe(step: Step[M], problem: Problem, state: State[M], direction: Direction) -> tuple[Attempt[M], Trial | None]:
    """A step by the Wolfe conditions on the projected path (Eq. 7, 11, 12): the attempt, without memory, and the trial taken."""
    last: Trial | None = None

    def path(length: float) -> Trial:
        nonlocal last
        straight = torch.add(state.x, direction.vector, alpha=length)
        x = step.bounds.clamp(straight)
        moved = torch.where(x == straight, direction.vector, (x - state.x) / length)
        value, gradient = problem.value_and_grad(x)
        last = Trial(length, value, dot(gradient, moved), dot(state.gradient, moved), (x, gradient, moved))
        return last

    first = step.first_length(state, direction)
    trial, n_trials = wolfe(path, state.value, first, delta=step.delta, theta=step.theta, noise=step.noise(state))
    evaluations = state.evaluations + n_trials
    if trial is None:
        finite = last is not None and math.isfinite(last.value) and math.isfinite(last.slope)
        return Attempt(replace(state, evaluations=evaluations), moved=False, finite=finite), None
    x, gradient, _ = trial.point
    new: State[M] = State(x, trial.value, gradient, trial.length, direction.beta, state.iteration + 1, evaluations)
    return Attempt(new, moved=True), trial


class WolfeStep(ConjugateStep):
    """Step by the Wolfe conditions on the projected path (Eq. 7, 11, 12)."""

    def along(self, problem: Problem, state: State[ConjugateMemory], direction: Direction) -> Attempt[ConjugateMemory]:
        """What comes of a step along a direction."""
        attempt, trial = along_wolfe(self, problem, state, direction)
        if trial is None:
            return attempt
        rise = trial.slope - trial.start_slope
        best = min(-trial.length * trial.start_slope / rise, 10.0 * trial.length) if rise > 0 else 10.0 * trial.length
        memory = ConjugateMemory(state.gradient, trial.point[2], best, trial.start_slope)
        return Attempt(replace(attempt.state, memory=memory), moved=True)


class LineStep(ConjugateStep):
    """Step to the minimum on the line, cut off at the bounds.

    Where bounds bend the path, its end is taken as it is when it is low enough (Eq. 11), because stopping short of it would leave the
    bounds again that were just reached; otherwise the minimum between the old point and the bent end.
    """

    def along(self, problem: LineProblem, state: State[ConjugateMemory], direction: Direction) -> Attempt[ConjugateMemory]:
        """What comes of a step along a direction."""
        line, moved = problem.line(state.x, direction.vector), direction.vector
        # The line's own start, not the state's: both stand for one number, and rounding must not decide between them.
        start, slope = line.value_slope(0.0)
        if not slope < 0:
            return Attempt(state, moved=False)
        evaluations = state.evaluations
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
                evaluations += 1
                length, moved, slope = length * share, moved * share, slope * share
            moved, slope = moved / length, slope / length
        evaluations += 1
        if not (math.isfinite(value) and value <= start + self.noise(state)):
            return Attempt(replace(state, evaluations=evaluations), moved=False, finite=math.isfinite(value))
        memory = ConjugateMemory(state.gradient, moved, length, slope)
        return Attempt(State(x, value, gradient, length, direction.beta, state.iteration + 1, evaluations, memory), moved=True)
