"""The lateral cut-off of a spot, in sigmas of each Gaussian component: its range, and what becomes of the Gaussian.

Cut at `cutoff` sigmas, `exp(-t)` with `t = r^2 / (2 sigma^2)` would jump from `exp(-T)`, `T = cutoff^2 / 2`, to nothing: the dose would
not be continuous in a spot's position, no gradient would know of the jumps, and `exp(-T)` of the integral would be lost. So the kernels
have

    q(t) = exp(-t) + a + b t + c t^2   for t < T,    0 beyond,

with `q(T) = 0` and the integral and the variance of the Gaussian,

    int_0^T q dt = 1,    int_0^T t q dt = 1,

from three linear equations; q is positive. At 4 sigmas it differs from the Gaussian by less than 0.07 % of its maximum, at 3 by 3 %. Below
`LEAST_FOR_VARIANCE` sigmas there is no room for the variance: `c` is 0 there, and the spot becomes narrower.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torchimpt.checks import InputError

DEFAULT_CUTOFF = 4.0
"""Beyond it is exp(-8) = 0.03 % of a Gaussian."""

LEAST_CUTOFF, LARGEST_CUTOFF = 1.0, 12.0
"""What may be asked for. At 1 sigma 61 % of a spot is beyond the cut-off; at 12 a part in 10^31."""

LARGEST_EXPONENT = 80.0
"""exp(-80) = 2e-35 is near the least that float32 holds, and beyond 88 the kernels' exp leaves its range. Squares of the kernel, whose
cut-off is wider by the root of two, meet it from 8.9 sigmas on: what they lose there is nothing."""


def check_cutoff(cutoff: float) -> float:
    """Return `cutoff`, or raise when it is out of range."""
    if not LEAST_CUTOFF <= cutoff <= LARGEST_CUTOFF:
        raise InputError(f"cutoff_sigma must lie between {LEAST_CUTOFF:g} and {LARGEST_CUTOFF:g} sigmas, got {cutoff}")
    return cutoff


LEAST_FOR_VARIANCE = 3.0
"""Least cut-off that keeps the Gaussian's variance: there that takes 3 % of the dose on the axis, at 2 sigmas 95 %."""


class Cut(NamedTuple):
    """A Gaussian cut off: `q(t) = exp(-t) + a + b t + c t^2` for `t < t_max`, 0 beyond; a tuple, so that numba's kernels take it."""

    t_max: float
    a: float
    b: float
    c: float


def cut(cutoff: float) -> Cut:
    """The cut Gaussian at so many sigmas."""
    t_max = min(0.5 * cutoff**2, LARGEST_EXPONENT)
    edge = math.exp(-t_max)
    # in units of the edge, with s = t / t_max: P(1) = -1, int P ds = 1 / t_max, int s P ds = (1 + t_max) / t_max^2
    mean, moment = 1.0 / t_max, (1.0 + t_max) / t_max**2
    c = 12.0 * mean - 36.0 * moment - 6.0 if cutoff >= LEAST_FOR_VARIANCE else 0.0
    b = -2.0 - 2.0 * mean - 4.0 / 3.0 * c
    return Cut(t_max, edge * (-1.0 - b - c), edge * b / t_max, edge * c / t_max**2)
