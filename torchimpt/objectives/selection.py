"""Which voxels a dose-volume goal excuses: those of the largest violations, found without sorting them.

A goal allows a share of the volume to violate its level, and the largest violations are excused (`torchimpt.objectives.dose_volume`). Only
the border has to be known, not the order on either side of it: a histogram of the violations over bins of 3 % tells in which bin the volume
is spent, and only that bin's are sorted. `benchmarks/sorting.py` holds it against a full sort. The entry at the border is excused for what
is left of the volume: excused as a whole or not at all, the sum would jump where two entries of different volumes change places.
"""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np
import torch
from torch import Tensor

from torchimpt.loops import HONEST, use_torch_threads

_SHIFT = 18
"""Bits of a float32 that a bin does not tell: it keeps the exponent and the first five of the mantissa."""

_BINS = 1 << (31 - _SHIFT)

_EVERY = np.ones(1)
"""Volumes where each voxel has one: the last entry serves for all behind it."""


@numba.njit(cache=True)
def _pardon(excess, volume, allowed):  # pragma: no cover
    """Set the largest of some violations to zero, as long as their volumes are no more than `allowed` together; of the volume of the next
    one take what is left."""
    if volume.sum() <= allowed:
        excess[:] = 0
        return
    place, spent = excess.astype(np.float32).view(np.int32) >> _SHIFT, np.zeros(_BINS)
    for i in range(excess.shape[0]):
        spent[place[i]] += volume[i]
    border, left = _BINS - 1, allowed
    while border >= 0 and spent[border] <= left:
        left -= spent[border]
        border -= 1
    at = np.flatnonzero(place == border)
    for i in at[np.argsort(-excess[at], kind="mergesort")]:  # of equal ones the first
        if volume[i] > left:
            volume[i] -= left
            break
        left -= volume[i]
        excess[i] = 0
    for i in range(excess.shape[0]):
        if place[i] > border:
            excess[i] = 0


@numba.njit(parallel=True, fastmath=HONEST, cache=True)
def _value_and_grad(dose, side, level, volume, allowed, grad):  # pragma: no cover
    """Sums of `v e^2` of each scenario over what is not excused, and into `grad`, which is zero, `2 side v e`."""
    value, last, n_voxels = np.zeros(dose.shape[0]), volume.shape[0] - 1, dose.shape[1]
    for k in numba.prange(dose.shape[0]):
        excess, at, n = np.empty(n_voxels + 1), np.empty(n_voxels + 1, np.uint32), 0
        for i in range(n_voxels):  # written first, counted after: no branch to mispredict
            e = side * (np.float64(dose[k, i]) - level)
            excess[n], at[n] = e, i
            n += not e <= 0
        own = np.empty(n)
        for j in range(n):
            own[j] = volume[min(np.int64(at[j]), last)]
            value[k] += 0.0 * excess[j]  # what is no number must not be excused unseen
        _pardon(excess[:n], own, allowed)
        for j in range(n):
            pull = own[j] * excess[j]
            value[k] += pull * excess[j]
            grad[k, at[j]] = 2.0 * side * pull
    return value


@numba.njit(parallel=True, cache=True)
def _keep(dose, rate, side, level, volume, start, out):  # pragma: no cover
    """Of each scenario what may come to violate the level, from `start[k]` on: `out` `(3, n)`, what it is beyond it, its rate, its volume.
    Returns how many they are."""
    n, last = np.zeros(dose.shape[0], np.int64), volume.shape[0] - 1
    for k in numba.prange(dose.shape[0]):
        at = start[k]
        for i in range(dose.shape[1]):
            d, r = side * (np.float64(dose[k, i]) - level), side * np.float64(rate[k, i])
            out[0, at], out[1, at], out[2, at] = d, r, volume[min(i, last)]
            at += not (d <= 0 and r <= 0)
        n[k] = at - start[k]
    return n


@numba.njit(parallel=True, fastmath=HONEST, cache=True)
def _look(kept, start, counts, length, allowed):  # pragma: no cover
    """Sums of `v e^2` and `2 v e r` of each scenario over what is not excused at this length."""
    value, slope = np.zeros(counts.shape[0]), np.zeros(counts.shape[0])
    for k in numba.prange(counts.shape[0]):
        beyond, rate, volume = kept[:, start[k] : start[k] + counts[k]]
        excess, at, n = np.empty(counts[k] + 1), np.empty(counts[k] + 1, np.uint32), 0
        for i in range(counts[k]):
            e = beyond[i] + length * rate[i]
            excess[n], at[n] = e, i
            n += not e <= 0
        own = np.empty(n)
        for j in range(n):
            own[j] = volume[at[j]]
            value[k] += 0.0 * excess[j]
        _pardon(excess[:n], own, allowed)
        for j in range(n):
            pull = own[j] * excess[j]
            value[k] += pull * excess[j]
            slope[k] += 2.0 * pull * rate[at[j]]
    return value, slope


def excused_value_and_grad(dose: Tensor, side: float, level: float, volume: Tensor | None, allowed: float) -> tuple[Tensor, Tensor]:
    """Sum of `v max(0, side (d - level))^2` over what is not excused, and its gradient, on the CPU.

    Parameters
    ----------
    dose
        `(..., n_voxels)`.
    side
        1 or -1.
    level
        Of the goal.
    volume
        `(n_voxels,)` float64, positive: what each dose stands for; None: one each.
    allowed
        How much volume is excused.

    Returns
    -------
    tuple
        Value `(...)`, float64, and gradient in the doses' shape and dtype.
    """
    use_torch_threads()
    rows = dose.detach().reshape(-1, dose.shape[-1])
    grad = torch.zeros_like(rows)
    value = _value_and_grad(rows.numpy(), side, level, _EVERY if volume is None else volume.numpy(), allowed, grad.numpy())
    return torch.from_numpy(value).view(dose.shape[:-1]), grad.view(dose.shape)


def excused_ray(
    dose: Tensor, rate: Tensor, side: float, level: float, volume: Tensor | None, allowed: float
) -> Callable[[float], tuple[Tensor, Tensor]]:
    """Sum of `v max(0, side (d + l r - level))^2` over what is not excused at `l`, and its slope, on the CPU.

    Parameters
    ----------
    dose, rate
        `(n_scenarios, n_voxels)`, what the ray starts from and what it gains.
    side, level, volume, allowed
        As in `excused_value_and_grad`.

    Returns
    -------
    Callable
        From `l >= 0` to values and slopes, `(n_scenarios,)` each, float64. It looks only at voxels that may violate the level.
    """
    use_torch_threads()
    start = np.arange(len(dose)) * (dose.shape[1] + 1)  # one to spare: what is written is counted after
    kept = np.empty((3, len(dose) * (dose.shape[1] + 1)))
    n = _keep(dose.numpy(), rate.numpy(), side, level, _EVERY if volume is None else volume.numpy(), start, kept)

    def look(length: float) -> tuple[Tensor, Tensor]:
        use_torch_threads()
        value, slope = _look(kept, start, n, length, allowed)
        return torch.from_numpy(value), torch.from_numpy(slope)

    return look
