"""`minimize`: a problem, a start and bounds in; a `Solution` that says why it stopped out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from torchimpt.checks import InputError, finite, nearest
from torchimpt.optim import beta as beta_rules
from torchimpt.optim.augmented import FEASIBILITY, Constrained, run_rounds
from torchimpt.optim.direction import Bounds
from torchimpt.optim.lbfgs import run_lbfgs
from torchimpt.optim.problem import LineProblem, Problem
from torchimpt.optim.quasi_newton import QuasiNewtonStep
from torchimpt.optim.run import Callback, Run
from torchimpt.optim.solution import Solution, Status
from torchimpt.optim.steps import LineStep, State, Step, WolfeStep


@dataclass(frozen=True)
class Options:
    """What `minimize` was given, as the methods need it.

    Attributes
    ----------
    bounds
        Of every component.
    beta
        Name of the rule of the conjugate-gradient factor.
    scale
        Typical size of each component `(n,)`, or None.
    """

    bounds: Bounds
    beta: str
    scale: Tensor | None

    @property
    def metric(self) -> Tensor | None:
        """`scale^2`: about the inverse of the Hessian's diagonal."""
        return None if self.scale is None else self.scale.square()


Method = Callable[[Run, Tensor, Options, "dict | None"], Solution]
"""From a run, its start, options, and the state to resume from."""


def by_steps(make: Callable[[Problem, Options], Step]) -> Method:
    """A method that is a step taken again and again."""
    return lambda run, x0, options, saved: _run_steps(run, make(run.problem, options), x0, saved)


METHODS: dict[str, Method] = {
    "projected_cg": by_steps(
        lambda problem, o: (LineStep if isinstance(problem, LineProblem) else WolfeStep)(o.bounds, o.beta, True, o.metric)
    ),
    "dyhs_cg": by_steps(lambda problem, o: WolfeStep(o.bounds, o.beta, False)),
    "quasi_newton": by_steps(lambda problem, o: QuasiNewtonStep(o.bounds, o.beta, True, o.metric)),
    "lbfgs": lambda run, x0, options, saved: run_lbfgs(run, x0, options.scale, saved),
}
"""Every method by its name; a further one is a `Step` in a file of its own, and an entry."""


def minimize(
    problem: Problem,
    x0: Tensor,
    *,
    lower: float | Tensor = 0.0,
    upper: float | Tensor = math.inf,
    method: str = "projected_cg",
    beta: str = "dyhs",
    scale: Tensor | None = None,
    max_iterations: int = 300,
    max_evaluations: int | None = None,
    tolerance: float = 1e-4,
    callback: Callback | None = None,
    state: dict | None = None,
    feasibility: float = FEASIBILITY,
    settle: bool = True,
) -> Solution:
    """Minimize `F(x)` within bounds, and where the problem has constraints, within these.

    Parameters
    ----------
    problem
        Value and gradient; with a `line` method as well, `projected_cg` takes the exact minimum along every line.
    x0
        Start `(n,)`, within the bounds; its dtype and device are the solver's.
    lower, upper
        Bounds, each a number or `(n,)`.
    method
        `"projected_cg"`: conjugate gradients restricted to the free components, with the exact minimum on the line and with `scale`; the
        default and the fastest. `"dyhs_cg"`: the plain form of Xu et al. 2020, Eq. 7-12. `"quasi_newton"`: projected L-BFGS with 20
        pairs, for problems that are not linear up to the objective. `"lbfgs"`: SciPy's L-BFGS-B, as many pairs.
    beta
        Rule of the conjugate-gradient factor: `"dyhs"`, `"dy"`, `"hs"`, `"pr+"` or `"fr"`.
    scale
        Typical size of each component `(n,)`, positive: the solvers work on `x / scale`. Best is the inverse square root of the Hessian's
        diagonal. `dyhs_cg` uses it for the test of convergence alone.
    max_iterations, max_evaluations
        Limits; both count from the very start of a resumed run.
    tolerance
        Relative decrease of F per iteration, averaged over ten, or promised by the gradient: `torchimpt.optim.solution.converged`.
    callback
        Called with an `Iteration` after the start and after every iteration; returning True stops.
    state
        `Solution.state` or `Iteration.state()` of an earlier run of the same problem and method: the iterates go on as if it had not been
        interrupted (`lbfgs` starts again from its last iterate, because SciPy does not give out its memory).
    feasibility
        Of a problem with constraints (`torchimpt.optim.augmented`): how far any may be violated, in its own unit.
    settle
        Whether to update its multipliers until the constraints hold (True), or to leave them as they are. They stay with the problem, and a
        further call starts from them.

    Examples
    --------
    `F(x) = |x - c|^2` with `x >= 0`: components of `c` below zero end at the bound.

    >>> c = torch.tensor([3.0, -2.0], dtype=torch.float64)
    >>> class Distance:
    ...     def value_and_grad(self, x):
    ...         return float((x - c).square().sum()), 2.0 * (x - c)
    >>> solution = minimize(Distance(), torch.ones(2, dtype=torch.float64), lower=0.0, tolerance=1e-9)
    >>> solution.converged, solution.x.round(decimals=6).tolist()
    (True, [3.0, 0.0])
    """
    if method not in METHODS:
        raise InputError(f"method must be one of {', '.join(METHODS)}, got '{method}'{nearest(method, METHODS)}")
    beta_rules.rule(beta)
    bounds = _bounds(x0, lower, upper)
    if not (tolerance >= 0 and max_iterations >= 0 and (max_evaluations is None or max_evaluations >= 1)):
        raise InputError(
            f"tolerance and max_iterations must be zero or more and max_evaluations one or more, got {tolerance}, {max_iterations}, "
            f"{max_evaluations}"
        )
    if not feasibility > 0:
        raise InputError(f"feasibility, how far a constraint may be violated, must be positive, got {feasibility:g}")
    if state is not None:
        _check_state(state, method, x0)
    options = Options(bounds, beta, None if scale is None else _scale(x0, scale))
    run = Run(problem, bounds, method, tolerance, max_iterations, max_evaluations or math.inf, callback, options.metric)
    if settle and isinstance(problem, Constrained) and len(problem.constraints):
        return run_rounds(run, lambda one, x, saved: METHODS[method](one, x, options, saved), x0, feasibility, state)
    return METHODS[method](run, x0, options, state)


def _run_steps(run: Run, step: Step, x0: Tensor, saved: dict | None) -> Solution:
    """Steps until one of the reasons to stop applies."""
    state: State
    if saved is None:
        state = State.start(run.problem, x0.detach().clone())
        status = run.record(state)
    else:
        state = run.resume(saved, step.memory)
        status = run.reason(state)
    while status is None:
        attempt = step(run.problem, state)
        state = attempt.state
        if attempt.moved:
            status = run.record(state)
        else:
            status = run.failed(state) if attempt.finite else Status.NOT_FINITE
    return run.solution(state, status)


def _bounds(x0: Tensor, lower: float | Tensor, upper: float | Tensor) -> Bounds:
    if x0.dim() != 1 or not x0.is_floating_point():
        raise TypeError(f"x0 must be a floating-point vector (n,), got {tuple(x0.shape)} {x0.dtype}")
    finite("x0", x0)
    sides = []
    for name, side in (("lower", lower), ("upper", upper)):
        side = torch.as_tensor(side, dtype=x0.dtype, device=x0.device)
        if side.dim() > 1 or (side.dim() == 1 and side.shape != x0.shape):
            raise InputError(f"{name} must be a number or a vector of {len(x0)}, got the shape {tuple(side.shape)}")
        sides.append(side)
    if (sides[0] > sides[1]).any():
        raise InputError("lower must not exceed upper in any component")
    outside = int(((x0 < sides[0]) | (x0 > sides[1])).sum())
    if outside:
        raise InputError(f"x0 has {outside} components outside the bounds; clamp it first")
    return Bounds(*sides)


def _scale(x0: Tensor, scale: Tensor) -> Tensor:
    if scale.shape != x0.shape or not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise InputError(f"scale must hold {len(x0)} positive finite numbers, got the shape {tuple(scale.shape)}")
    return scale.to(x0)


def _check_state(state: dict, method: str, x0: Tensor) -> None:
    if state.get("method") != method:
        raise InputError(f"the state to resume from is of method '{state.get('method')}', not '{method}': resume with the same method")
    if state["solver"]["x"].shape != x0.shape or state["solver"]["x"].dtype != x0.dtype:
        raise InputError(
            f"the state to resume from has {len(state['solver']['x'])} components of {state['solver']['x'].dtype}, "
            f"the problem {len(x0)} of {x0.dtype}: it belongs to another problem"
        )
