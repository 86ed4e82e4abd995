"""Which pairs the CPU kernel looks at, counted: to divide times by, and to see what is looked at for nothing."""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import torch

from torchimpt.dose.inlines import row_range, run
from torchimpt.dose.operator import DoseOperator
from torchimpt.dose.pencil_beam.compact import BLOCK, compact, longest_row, row_reach, whole_blocks
from torchimpt.dose.pencil_beam.numba_cpu import kernel_arguments


class Visits(NamedTuple):
    """Pairs of a voxel and a spot's component.

    Attributes
    ----------
    visited
        Looked at.
    inside
        Of these within range and cut-off.
    behind
        Of these where the layer gives no dose: beyond its range, or what fills up a run at a row's end.
    rows
        Pairs that the runs of rows would hold that are not compacted.
    """

    visited: int
    inside: int
    behind: int
    rows: int


@numba.njit
def _count(found, p, q, ratio, cells, left, width, first, height, ratio_min, amplitude, falloff, reach, layer, x, y, t_max):
    longest, zero, last = longest_row(cells), amplitude.dtype.type(0), -1
    packed = np.empty((cells.shape[0], 5, longest + BLOCK), amplitude.dtype)
    at, before = np.empty(longest + 1, np.uint32), np.empty((cells.shape[0], longest + 1), np.uint32)
    n, own = np.zeros(cells.shape[0], np.int64), np.zeros(cells.shape[0])
    for s in range(x.shape[0]):
        mine = layer[s]
        if reach[mine] == 0.0:
            continue
        if mine != last:
            last = mine
            r, a, c = ratio[min(mine, ratio.shape[0] - 1)], amplitude[mine], falloff[mine]
            for row in range(cells.shape[0]):
                b, e = cells[row, 0], cells[row, cells.shape[1] - 1]
                if e > b:
                    n[row], least = compact(packed[row], at, before[row], p[b:e], q[b:e], r[b:e], a[b:e], c[b:e], zero)
                    own[row] = row_reach(reach[mine], t_max, least)
        from_row, to_row = row_range(first, height, cells.shape[0], ratio_min, y[s], reach[mine])
        for row in range(from_row, to_row):
            lo, hi = run(cells, left, width, first, height, ratio_min, row, x[s], y[s], reach[mine])
            found[3] += max(hi - lo, 0)
            lo, hi = run(cells, left, width, first, height, ratio_min, row, x[s], y[s], own[row])
            if hi <= lo or n[row] == 0:
                continue
            lo, hi = before[row, lo - cells[row, 0]], before[row, hi - cells[row, 0]]
            for i in range(lo, whole_blocks(lo, hi, BLOCK)):
                dx, dy = packed[row, 0, i] - x[s], packed[row, 1, i] - y[s]
                found[0] += 1
                found[2] += i >= n[row]
                found[1] += i < n[row] and packed[row, 4, i] * (dx * dx + packed[row, 2, i] * dy * dy) < t_max


def visits(operator: DoseOperator, position: torch.Tensor) -> Visits:
    """What one evaluation of the operator's dose looks at, all components, for spots at `position` `(n_spots, 2)`."""
    found = np.zeros(4, np.int64)
    for tables, layer, begin, end in operator.beams():
        x, y = (position[begin:end, i].contiguous().numpy() for i in (0, 1))
        for k in range(tables.amplitude.shape[0]):
            _count(found, *kernel_arguments(tables, k, operator.cutoff), layer.numpy(), x, y, min(0.5 * operator.cutoff**2, 80.0))
    return Visits(*map(int, found))
