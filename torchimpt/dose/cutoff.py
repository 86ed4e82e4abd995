"""The lateral cut-off of a spot, in sigmas of each Gaussian component: its range, and the exponent at which the kernels stop."""

from __future__ import annotations

from torchimpt.checks import InputError

DEFAULT_CUTOFF = 4.0
"""A Gaussian keeps all but exp(-8) = 0.03 % of itself."""

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


def largest_exponent(cutoff: float) -> float:
    """`t_max = cutoff^2 / 2`: pairs with `exp(-t)`, `t >= t_max`, count as zero."""
    return min(0.5 * cutoff**2, LARGEST_EXPONENT)
