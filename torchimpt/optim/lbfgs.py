"""SciPy's L-BFGS-B behind the same interface: the yardstick.

Source: Zhu, Byrd, Lu and Nocedal, ACM Trans Math Softw 23:550, 1997. It works in float64 on `x / scale` and stops by the same test of
convergence as the other solvers; its own tests are switched off.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

from torchimpt.optim.direction import dot
from torchimpt.optim.run import Run
from torchimpt.optim.solution import Solution, Status
from torchimpt.optim.steps import Memory, State

PAIRS = 20
"""Correction pairs that it remembers."""


class _Evaluator:
    """F and its gradient in SciPy's terms, remembering the last point."""

    def __init__(self, run: Run, scale: Tensor, start: State[Memory]) -> None:
        self.run, self.scale = run, scale
        self.evaluations = 0
        self.last = start

    def __call__(self, scaled: np.ndarray) -> tuple[float, np.ndarray]:
        x = self.run.bounds.clamp(torch.as_tensor(scaled).to(self.scale) * self.scale)
        value, gradient = self.run.problem.value_and_grad(x)
        self.evaluations += 1
        self.last = State(x, value, gradient)
        return value, (gradient * self.scale).double().cpu().numpy()


def run_lbfgs(run: Run, x0: Tensor, scale: Tensor | None, saved: dict | None) -> Solution:
    """Minimize with SciPy's L-BFGS-B; see `minimize`."""
    # One scale for all components when none is given: it keeps the first step, which is steepest descent, of a useful length.
    scale = torch.full_like(x0, float(x0.abs().max()) or 1.0) if scale is None else scale
    state: State[Memory]
    if saved is None:
        state = State.start(run.problem, x0.detach().clone())
        status = run.record(state)
    else:
        state = run.resume(saved, None)
        status = run.reason(state)
    if status is not None:
        return run.solution(state, status)
    evaluate = _Evaluator(run, scale, state)
    before = state.evaluations

    def after_iteration(intermediate_result: optimize.OptimizeResult) -> None:
        nonlocal state, status
        move = evaluate.last.x - state.x
        step = math.sqrt(dot(move, move))
        state = replace(evaluate.last, step=step, beta=None, iteration=state.iteration + 1, evaluations=before + evaluate.evaluations)
        status = run.record(state)
        if status is not None:
            raise StopIteration

    sides = [torch.as_tensor(side).double().expand(len(x0)).cpu() / scale.double().cpu() for side in (run.bounds.lower, run.bounds.upper)]
    result = optimize.minimize(
        evaluate,
        (state.x.double() / scale.double()).cpu().numpy(),
        jac=True,
        method="L-BFGS-B",
        bounds=optimize.Bounds(*(side.numpy() for side in sides)),
        callback=after_iteration,
        options={
            "maxcor": PAIRS,
            "maxiter": run.max_iterations + 1,
            "maxfun": min(run.max_evaluations - before, 10**9),
            "ftol": 0.0,
            "gtol": 0.0,
        },
    )
    if status is None:
        status = Status.MAX_EVALUATIONS if "EVALUATIONS" in result.message else run.failed(state)
        state = replace(state, evaluations=before + evaluate.evaluations)
    return run.solution(state, status)
