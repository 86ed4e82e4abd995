"""Limited-memory BFGS within bounds: one step, for problems that are no composition with a linear map.

Sources: Nocedal, Math Comp 35:773, 1980 (the two-loop recursion); Bertsekas, SIAM J Control Optim 20:221, 1982 (the components that a
bound holds stay out of the Newton direction, and the path is projected).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchimpt.optim.direction import Direction, dot, steepest
from torchimpt.optim.steps import COSINE, State, WolfeStep

PAIRS = 20
"""Correction pairs that are remembered."""

CURVATURE = 1e-8
"""A pair serves when `s'y` is above this share of `|s| |y|`: below, rounding decides."""


def newton_like(gradient: Tensor, moves: Tensor, changes: Tensor, metric: Tensor | None) -> Tensor:
    """`-H g` with the L-BFGS inverse Hessian `H` of the pairs `s = moves[i]`, `y = changes[i]`, oldest first, `(pairs, n)` each.

    `H_0 = M s'y / y'My` of the newest pair that serves; pairs without positive curvature are passed over. `-M g` when none is left.
    """
    scale = torch.ones_like(gradient) if metric is None else metric
    curvature = (moves * changes).sum(1, dtype=torch.float64)
    size = moves.square().sum(1, dtype=torch.float64).sqrt() * changes.square().sum(1, dtype=torch.float64).sqrt()
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
class QuasiNewtonStep(WolfeStep):
    """Projected L-BFGS: direction from the pairs restricted to the free components, first trial length 1."""

    def direction(self, state: State) -> Direction:
        """The search direction at a state."""
        free = self.bounds.free(state.x, state.gradient)
        gradient = state.gradient * free
        if state.moves is not None:
            vector = newton_like(gradient, state.moves * free, state.changes * free, self.metric) * free
            vector.masked_fill_(self.bounds.pointing_out(state.x, vector), 0.0)
            slope = dot(gradient, vector)
            if -slope > 1e-3 * COSINE * self.size(gradient * (vector != 0), vector):
                return Direction(vector, slope, float("nan"))
        vector = steepest(gradient, self.metric)
        return Direction(vector, dot(gradient, vector), 0.0)

    def first_length(self, state: State, direction: Direction) -> float:
        """1 with pairs, else a tenth of the iterate's size in the metric."""
        if state.moves is not None and direction.beta != 0.0:
            return 1.0
        scale = 1.0 if self.metric is None else self.metric.sqrt()
        return 0.1 * (float((state.x / scale).abs().max()) or 1.0) / float((direction.vector / scale).abs().max())

    def along(self, problem, state: State, direction: Direction) -> State | None:
        """The next state, with the pair of this step."""
        new = super().along(problem, state, direction)
        if new is not None:
            new.moves, new.changes = _remember(state.moves, new.x - state.x), _remember(state.changes, new.gradient - state.gradient)
        return new


def _remember(old: Tensor | None, new: Tensor) -> Tensor:
    return new[None] if old is None else torch.cat((old, new[None]))[-PAIRS:]
