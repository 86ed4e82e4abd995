"""Step lengths: the Wolfe conditions on a path, and the exact minimum on a line whose values are cheap.

Wolfe (Xu et al. 2020, Eq. 11 and 12), with slope `s(l)` of the path at `l`:

    f(l) <= f(0) + l delta s(0),        s(l) >= theta s(0)

On a projected path the direction, and with it the start slope, depends on `l` (Eq. 7), so every trial brings its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

Point = TypeVar("Point")

DELTA, THETA = 1e-4, 0.9
"""The paper's constants of sufficient decrease and of curvature."""

PRECISION = 1e-2
"""Share of the start slope at which a line's minimum is found. In plans of the phantoms 1e-6 takes twice the looks along a line, each of
them a pass over the doses, and 50 to 100 iterations end as low within 0.4 %; at 1e-1 the first iterations are worse. Where the slope is
linear, the second look has its root anyway."""

PATIENCE = 20
"""Trials of the Illinois rule; it needs 3 to 8 as a rule."""


@dataclass(frozen=True)
class Trial(Generic[Point]):
    """A trial step.

    Attributes
    ----------
    length
        Step length `l`.
    value, slope
        `f(l)` and `g(x(l))' d(l)`.
    start_slope
        `g(x(0))' d(l)`, negative on a path that descends.
    point
        Whatever the caller wants back with the accepted trial.
    """

    length: float
    value: float
    slope: float
    start_slope: float
    point: Point


def wolfe(
    path: Callable[[float], Trial[Point]],
    value: float,
    first: float,
    *,
    delta: float = DELTA,
    theta: float = THETA,
    noise: float = 0.0,
    max_trials: int = 25,
) -> tuple[Trial[Point] | None, int]:
    """A step that satisfies the Wolfe conditions, by bracketing and safeguarded secant steps on the slope.

    Parameters
    ----------
    path
        `l -> Trial`; one evaluation each.
    value
        `f(0)`.
    first
        First trial length, positive.
    delta, theta
        Constants of Eq. 11 and 12, `0 < delta < theta < 1`.
    noise
        Rounding error of values. Values that differ by less are called equal, which will do where the slope, more precise near a
        minimum, satisfies Eq. 12 and is not steeper upwards than it was downwards (the approximate Wolfe conditions of Hager and Zhang,
        SIAM J Optim 16:170, 2005).
    max_trials
        Evaluations allowed. On a path that ends at a corner of the bounds no step may satisfy Eq. 12: then the lowest trial that
        satisfies Eq. 11 is taken.

    Returns
    -------
    tuple
        The accepted trial, or None when no trial was low enough, and the number of trials.
    """
    low, high, before, best = 0.0, math.inf, None, None
    length = first
    for n_trials in range(1, max_trials + 1):
        trial = path(length)
        finite = math.isfinite(trial.value) and math.isfinite(trial.slope)
        if abs(trial.value - value) <= noise and theta * trial.start_slope <= trial.slope <= (2 * delta - 1) * trial.start_slope:
            return trial, n_trials
        if not finite or trial.value > value + length * delta * trial.start_slope:
            high = length
            length = _shrink(low, high, value, trial if finite else None)
            before = None
        else:
            if best is None or trial.value < best.value:
                best = trial
            if trial.slope >= theta * trial.start_slope:
                return trial, n_trials
            low, length, before = length, _advance(trial, before, high), trial
        if math.isfinite(high) and high - low <= 1e-12 * high:
            break
    return best, n_trials


def _shrink(low: float, high: float, value: float, trial: Trial | None) -> float:
    """A length between `low` and a `high` that is too long: the quadratic's minimum where it is fit from zero, else the middle."""
    if trial is None:
        return low + 0.1 * (high - low)
    if low > 0 or trial.start_slope >= 0:
        return low + 0.5 * (high - low)
    excess = trial.value - value - high * trial.start_slope
    return min(max(-0.5 * trial.start_slope * high**2 / excess, 0.1 * high), 0.5 * high)


def _advance(trial: Trial, before: Trial | None, high: float) -> float:
    """A length beyond `trial`, which is still falling steeply: the slope's secant root, kept inside the bracket or below ten lengths."""
    from_length, from_slope = (before.length, before.slope) if before is not None else (0.0, trial.start_slope)
    rise = trial.slope - from_slope
    length = trial.length - trial.slope * (trial.length - from_length) / rise if rise > 0 else math.inf
    if math.isinf(high):
        return min(max(length, 2.0 * trial.length), 10.0 * trial.length)
    margin = 0.1 * (high - trial.length)
    return min(max(length, trial.length + margin), high - margin)


def line_minimum(
    line: Callable[[float], tuple[float, float]],
    start_slope: float,
    first: float,
    *,
    longest: float = math.inf,
    precision: float = PRECISION,
    max_trials: int = 60,
) -> float:
    """Minimum of a function on a line by the root of its slope, which rises in pieces: bracketing, then the Illinois rule.

    Where the function is piecewise quadratic and convex the slope is piecewise linear and the rule ends on the root's own piece; where that
    is a steep one beside one nearly flat, it takes long, and the bracket is halved after `PATIENCE` trials. Where the function is not
    convex the result is a point at which the slope changes sign, whose value the caller has to check.

    Parameters
    ----------
    line
        `l -> (f(l), df/dl)`.
    start_slope
        Slope at zero, negative.
    first
        First trial length, positive.
    longest
        Lengths beyond it are not looked at; it is returned when the slope is still negative there.
    precision
        Ends when the slope's magnitude is below this share of the start slope.
    max_trials
        Calls of `line` allowed.
    """
    target = precision * abs(start_slope)
    low, slope_low = 0.0, start_slope
    length, high, slope_high = min(first, longest), math.inf, 0.0
    side = 0
    for trial in range(max_trials):
        slope = line(length)[1]
        if not math.isfinite(slope):
            slope = math.inf
        if abs(slope) <= target or (slope < 0 and length >= longest):
            return length
        if slope < 0:
            if math.isinf(high):
                step = -slope * (length - low) / (slope - slope_low) if slope > slope_low else math.inf
                low, slope_low = length, slope
                length = min(length + min(max(1.05 * step, 0.1 * length), 9.0 * length), longest)
                continue
            low, slope_low, slope_high, side = length, slope, slope_high * (0.5 if side < 0 else 1.0), -1
        else:
            high, slope_high, slope_low, side = length, slope, slope_low * (0.5 if side > 0 else 1.0), 1
        if high - low <= 1e-14 * high:
            break
        share = 0.5 if math.isinf(slope_high) or trial > PATIENCE else slope_low / (slope_low - slope_high)
        length = low + share * (high - low)
        if not low < length < high:
            length = 0.5 * (low + high)
    return length
