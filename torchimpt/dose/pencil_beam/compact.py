"""Rows compacted for a layer: of a BEV row, the voxels that the layer's spots give dose to, side by side.

A layer's protons stop, and in a patient a third to a half of the voxels that a spot's chord names lie behind: a run over the row's own
arrays would visit them all. So the kernels copy what is before the layer's end into arrays of their own, once for all of the layer's
spots that reach the row, and run over those. A spot's run there is as contiguous as in the row. It is filled up to whole blocks of `BLOCK`
voxels, so that no loop has a rest of single pairs, which cost four times those of a block: what stands behind a run are the row's next
voxels, which the cut-off leaves out, and at the end of the row voxels without dose.
"""

from __future__ import annotations

import math

import numba
import numpy as np

BLOCK = 16
"""Pairs that a loop over a run takes at once: two vectors of 16 or four of 8 numbers in float32."""

_WIDER = 1.0 + 1e-5
"""On a row's own reach, which is computed in float32: it may look at too many pairs, never at too few."""


@numba.njit(inline="always")
def longest_row(cells):  # pragma: no cover
    """Most voxels of a row."""
    longest = 0
    for row in range(cells.shape[0]):
        longest = max(longest, cells[row, cells.shape[1] - 1] - cells[row, 0])
    return longest


@numba.njit(inline="always")
def compact(packed, at, before, p, q, ratio, scale, falloff, zero):  # pragma: no cover
    """Copy the row's voxels whose `scale` is not zero to the front of `packed` `(5, n + BLOCK)`: `p, q, ratio, scale, falloff`.

    `at` `(n + 1,)` then says where in the row each of them was, and `before` `(n + 1,)` how many come before a voxel of the row: what
    names a run in the row names it here too. Returns how many there are, and the least fall-off among them, of which the widest spot is.
    """
    n = np.uint64(0)
    for i in range(p.shape[0]):  # written first, counted after: no branch to mispredict
        before[i], at[n] = n, i
        n += np.uint64(scale[i] != zero)
    before[p.shape[0]] = n
    for k, values in enumerate((p, q, ratio, scale, falloff)):
        target = packed[k]
        for j in range(n):
            target[j] = values[at[j]]
        for j in range(n, n + np.uint64(BLOCK)):
            target[j] = zero
    least = falloff[at[0]] if n > 0 else zero
    for j in range(n):
        least = min(least, packed[4, j])
    return np.int64(n), least


@numba.njit(inline="always")
def row_reach(far, t_max, least):  # pragma: no cover
    """The layer's reach, or the row's own where its widest spot is narrower."""
    return min(far, math.sqrt(t_max / least) * _WIDER) if least > 0.0 else far


@numba.njit(inline="always")
def whole_blocks(low, high, block):  # pragma: no cover
    """The end of a run that is filled up."""
    return low + (high - low + block - 1) // block * block
