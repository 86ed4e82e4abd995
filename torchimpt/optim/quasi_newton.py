"""Limited-memory BFGS within bounds: one step, for problems that are no composition with a linear map.

Sources: Nocedal, Math Comp 35:773, 1980 (the two-loop recursion); Bertsekas, SIAM J Control Optim 20:221, 1982 (the components that a
bound holds stay out of the Newton direction, and the path is projected).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchimpt.optim.direction import Direction, dot, steepest
from torchimpt.optim.problem import Problem
from torchimpt.optim.steps import COSINE, Attempt, Memory, State, Step, along_wolfe
from torchimpt.sums import total

PAIRS = 20
"""Correction pairs that are remembered."""

CURVATURE = 1e-8
"""A pair serves when `s'y` is above this share of `|s| |y|`: below, rounding decides."""


def newton_like(gradient: Tensor, moves: Tensor, changes: Tensor, metric: Tensor | None) -> Tensor:
    """`-H g` with the L-BFGS inverse Hessian `H` of the pairs `s = moves[i]`, `y = changes[i]`, oldest first, `(pairs, n)` each.

    `H_0 = M s'y / y'My` of the newest pair that serves; pairs without positive curvature are passed over. `-M g` when none is left.
    """
    scale = torch.ones_like(gradient) if metric is None else metric
    curvature = total(moves * changes)
    size = total(moves.square()).sqrt() * total(changes.square()).sqrt()
    pairs = [(s, y, float(sy)) for s, y, sy, good in zip(moves, changes, curvature, curvature > CURVATURE * size, strict=True) if good]
    if not pairs:
        return steepest(gradient, metric)
    vector, taken = -gradient, []
    for s, y, sy in reversed(pairs):
        share = dot(s, vector) / sy
        vector = torch.add(vector, y, alpha=-share)
        taken.append(share)
    _, y, sy = pairs[-1]
    vector = vector * scale * (sy / dot(y, scale * y))
    for (s, y, sy), share in zip(pairs, reversed(taken), strict=True):
        vector = torch.add(vector, s, alpha=share - dot(y, vector) / sy)
    return vector


@dataclass(frozen=True)
class Pairs(Memory):
    """Oldest first, `(pairs, n)` each: steps `x_{k+1} - x_k` and what the gradient changed by."""

    moves: Tensor
    changes: Tensor

    def after(self, move: Tensor, change: Tensor) -> Pairs:
        """With one more pair; the oldest goes when there are too many."""
        return Pairs(*(torch.cat((old, new[None]))[-PAIRS:] for old, new in ((self.moves, move), (self.changes, change))))


class QuasiNewtonStep(Step[Pairs]):
    """Projected L-BFGS: direction from the pairs restricted to the free components, first trial length 1."""

    memory = Pairs

    def direction(self, state: State[Pairs]) -> Direction:
        """The search direction at a state."""
        free = self.bounds.free(state.x, state.gradient)
        gradient = state.gradient * free
        if state.memory is not None:
            vector = newton_like(gradient, state.memory.moves * free, state.memory.changes * free, self.metric) * free
            vector.masked_fill_(self.bounds.pointing_out(state.x, vector), 0.0)
            slope = dot(gradient, vector)
            if -slope > 1e-3 * COSINE * self.size(gradient * (vector != 0), vector):
                return Direction(vector, slope, None)
        vector = steepest(gradient, self.metric)
        return Direction(vector, dot(gradient, vector), 0.0)

    def first_length(self, state: State[Pairs], direction: Direction) -> float:
        """1 for a direction from pairs, else a tenth of the iterate's size in the metric."""
        if direction.beta is None:
            return 1.0
        scale = 1.0 if self.metric is None else self.metric.sqrt()
        return 0.1 * (float((state.x / scale).abs().max()) or 1.0) / float((direction.vector / scale).abs().max())

    def along(self, problem: Problem, state: State[Pairs], direction: Direction) -> Attempt[Pairs]:
        """What comes of a step along a direction, with its pair."""
        attempt, trial = along_wolfe(self, problem, state, direction)
        if trial is None:
            return attempt
        move, change = attempt.state.x - state.x, attempt.state.gradient - state.gradient
        memory = Pairs(move[None], change[None]) if state.memory is None else state.memory.after(move, change)
        return Attempt(replace(attempt.state, memory=memory), moved=True)
