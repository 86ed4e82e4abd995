"""Matrix entries of one beam on the CPU in numba: which pairs the cut-off keeps, and their values.

The runs of `torchimpt.dose.rows` name the candidates, so most pairs of the dense matrix are never looked at, and those behind a layer's
range are left out for all of its spots at once (`torchimpt.dose.pencil_beam.compact`). A spot's values are scattered into a scratch dose
vector, a bit marks each of them, and the bits, 64 at a time, give its row of `A^T` with ascending columns. Every entry has one writer, so
the result does not depend on the number of threads.
"""

from __future__ import annotations

import numba
import numpy as np
import torch

from torchimpt.dose.csr import copy_rows
from torchimpt.dose.cutoff import cut
from torchimpt.dose.inlines import exp_minus, row_range, run, trailing_zeros
from torchimpt.dose.model import SpotRows
from torchimpt.dose.pencil_beam.compact import BLOCK, compact, longest_row, whole_blocks
from torchimpt.dose.pencil_beam.tables import PairTables
from torchimpt.dose.rows import CELL_WIDTH, ROW_HEIGHT
from torchimpt.loops import FAST, use_torch_threads

_CHUNK = 1 << 23
"""Candidate pairs taken at once: bounds the scratch, which all chunks share, to 64 MB in float32."""

_PARTS = 32
"""Shares of a chunk's spots that the threads take in turn."""


@numba.njit(parallel=True, cache=True)
def _count_candidates(counts, cells, left, width, first, height, ratio_min, reach, layer, x, y):  # pragma: no cover
    """Pairs that a spot's runs hold, kept or not."""
    n_rows = cells.shape[0]
    for s in numba.prange(x.shape[0]):
        far = reach[layer[s]]
        total = 0
        if far > 0.0:
            from_row, to_row = row_range(first, height, n_rows, ratio_min, y[s], far)
            for row in range(from_row, to_row):
                lo, hi = run(cells, left, width, first, height, ratio_min, row, x[s], y[s], far)
                total += hi - lo
        counts[s] = total


@numba.njit(fastmath=FAST, inline="always")
def _mark_run(kept, p, q, ratio, amplitude, falloff, x, y, t_max):  # pragma: no cover
    for i in range(kept.shape[0]):
        dx, dy = p[i] - x, q[i] - y
        kept[i] |= (falloff[i] * (dx * dx + ratio[i] * dy * dy) < t_max) & (amplitude[i] > 0)


@numba.njit(parallel=True, fastmath=FAST, cache=True)
def _count(
    counts, p, q, ratio, cells, left, width, first, height, ratio_min, amplitude, falloff, reach, layer, x, y, cut
):  # pragma: no cover
    """Pairs of each spot that any component keeps: where one has no dose (a halo begins behind the surface) the others may."""
    n_rows = cells.shape[0]
    longest = longest_row(cells)
    for s in numba.prange(x.shape[0]):
        far = reach[layer[s]]
        total = 0
        if far > 0.0:
            buffer = np.empty(longest, np.uint8)
            from_row, to_row = row_range(first, height, n_rows, ratio_min, y[s], far)
            for row in range(from_row, to_row):
                lo, hi = run(cells, left, width, first, height, ratio_min, row, x[s], y[s], far)
                if hi == lo:
                    continue
                kept = buffer[: hi - lo]
                kept[:] = 0
                for k in range(amplitude.shape[0]):
                    a, c = amplitude[k, layer[s], lo:hi], falloff[k, layer[s], lo:hi]
                    r = ratio[min(k, ratio.shape[0] - 1), min(layer[s], ratio.shape[1] - 1), lo:hi]
                    _mark_run(kept, p[lo:hi], q[lo:hi], r, a, c, x[s], y[s], cut.t_max)
                for i in range(hi - lo):
                    total += kept[i]
        counts[s] = total


@numba.njit(fastmath=FAST, inline="always")
def _evaluate_run(out, p, q, ratio, amplitude, falloff, x, y, cut, zero):  # pragma: no cover
    for i in range(out.shape[0]):
        dx, dy = p[i] - x, q[i] - y
        t = falloff[i] * (dx * dx + ratio[i] * dy * dy)
        e = exp_minus(t) - cut.edge
        out[i] += amplitude[i] * (e if t < cut.t_max else zero)


@numba.njit(inline="always")
def _compact(packed, at, before, p, q, ratio, amplitude, falloff, mine, zero):  # pragma: no cover
    """The beam's voxels that layer `mine` gives dose to, of any component: `packed` `(n_components, 5, n + BLOCK)`, else as `compact`."""
    widest = amplitude[0, mine].copy()
    for k in range(1, amplitude.shape[0]):
        widest += amplitude[k, mine]
    n = 0
    for k in range(amplitude.shape[0]):
        r = ratio[min(k, ratio.shape[0] - 1), min(mine, ratio.shape[1] - 1)]
        n, _ = compact(packed[k], at, before, p, q, r, widest, falloff[k, mine], zero)
        for j in range(n):
            packed[k, 3, j] = amplitude[k, mine, at[j]]
    return n


@numba.njit(parallel=True, fastmath=FAST, cache=True)
def _rows_of_transpose(
    counts, columns, values, room, n_voxels, order, p, q, ratio, cells, left, width, first, height, ratio_min, amplitude, falloff, reach,
    layer, x, y, cut, zero, n_parts,
):  # fmt: skip  # pragma: no cover
    """Row `s` of `A^T` from `room[s]` on, ascending columns; how many it has goes to `counts[s]`."""
    n_rows, n_spots, n, longest = cells.shape[0], x.shape[0], p.shape[0], longest_row(cells)
    for part in numba.prange(n_parts):
        packed = np.empty((amplitude.shape[0], 5, n + BLOCK), values.dtype)
        at, before, voxels = np.empty(n + 1, np.uint32), np.empty(n + 1, np.uint32), np.empty(n, np.uint32)
        dense, buffer, found = (
            np.empty(n_voxels, values.dtype),
            np.empty(longest + BLOCK, values.dtype),
            np.zeros(n_voxels // 64 + 1, np.uint64),
        )
        mine = -1
        for s in range(part * n_spots // n_parts, (part + 1) * n_spots // n_parts):
            far = reach[layer[s]]
            counts[s] = 0
            if far == 0.0:
                continue
            if layer[s] != mine:
                mine = layer[s]
                for j in range(_compact(packed, at, before, p, q, ratio, amplitude, falloff, mine, zero)):
                    voxels[j] = order[at[j]]
            low, high = found.shape[0], -1
            from_row, to_row = row_range(first, height, n_rows, ratio_min, y[s], far)
            for row in range(from_row, to_row):
                lo, hi = run(cells, left, width, first, height, ratio_min, row, x[s], y[s], far)
                if hi <= lo:
                    continue
                lo, hi = before[lo], before[hi]
                if hi <= lo:
                    continue
                end = whole_blocks(lo, hi, BLOCK)
                out = buffer[: end - lo]
                out[:] = zero
                for k in range(amplitude.shape[0]):
                    own = packed[k]
                    _evaluate_run(
                        out, own[0, lo:end], own[1, lo:end], own[2, lo:end], own[3, lo:end], own[4, lo:end], x[s], y[s], cut, zero
                    )
                for i in range(hi - lo):
                    voxel = voxels[lo + i]
                    word = voxel >> 6
                    dense[voxel] = out[i]
                    found[word] |= np.uint64(out[i] > zero) << np.uint64(voxel & 63)
                    low, high = min(low, word), max(high, word)
            at_entry = room[s]
            for word in range(low, high + 1):
                bits = found[word]
                found[word] = 0
                while bits:
                    voxel = (word << 6) + np.int64(trailing_zeros(bits))
                    columns[at_entry], values[at_entry] = voxel, dense[voxel] * cut.gain
                    at_entry += 1
                    bits &= bits - np.uint64(1)
            counts[s] = at_entry - room[s]


def _arguments(tables: PairTables, layer: torch.Tensor, position: torch.Tensor, cutoff: float) -> tuple[dict, dict]:
    """Where a beam's spots reach, and the kernel's values there."""
    # all components of a pair share its entry: the widest decides how far to look
    reach = torch.nan_to_num(cutoff * tables.sigma, posinf=0.0).amax(dim=0)
    x, y = (position[:, i].contiguous().numpy() for i in (0, 1))
    amplitude = tables.amplitude.cpu().numpy()
    where = {
        "cells": tables.cells.cpu().numpy(), "left": tables.left, "width": CELL_WIDTH, "first": tables.first, "height": ROW_HEIGHT,
        "ratio_min": tables.ratio_min, "reach": reach.numpy(), "layer": layer.cpu().numpy(), "x": x, "y": y,
    }  # fmt: skip
    what = {
        "p": tables.p.cpu().numpy(), "q": tables.q.cpu().numpy(), "ratio": tables.ratio.cpu().numpy(), "amplitude": amplitude,
        "falloff": tables.falloff.cpu().numpy(), "cut": cut(cutoff, amplitude.dtype.type),
    }  # fmt: skip
    return where, what


def count(tables: PairTables, layer: torch.Tensor, position: torch.Tensor, cutoff: float) -> torch.Tensor:
    """Kept pairs of each of a beam's spots `(n,)`, int64, at `position` `(n, 2)`, CPU: to know a matrix's size before it is built.

    Rounding at the very edge of the cut-off may differ from what `rows` keeps by a few pairs.
    """
    use_torch_threads()
    counts = torch.zeros(len(layer), dtype=torch.int64)
    where, what = _arguments(tables, layer, position, cutoff)
    _count(counts.numpy(), **where, **what)
    return counts


def candidates(tables: PairTables, layer: torch.Tensor, position: torch.Tensor, cutoff: float) -> torch.Tensor:
    """Pairs of each of a beam's spots `(n,)`, int64, that the runs of whole rows hold, kept or not, CPU."""
    use_torch_threads()
    counts = torch.zeros(len(layer), dtype=torch.int64)
    _count_candidates(counts.numpy(), **_arguments(tables, layer, position, cutoff)[0])
    return counts


def rows(tables: PairTables, layer: torch.Tensor, position: torch.Tensor, cutoff: float, n_voxels: int) -> list[SpotRows]:
    """Rows of `A^T` of one beam's spots, a chunk of spots each; CPU."""
    use_torch_threads()
    where, what = _arguments(tables, layer, position, cutoff)
    n_spots = len(where["x"])
    most = np.zeros(n_spots, np.int64)
    _count_candidates(most, **where)
    total = np.concatenate(([0], np.cumsum(most)))
    zero = what["amplitude"].dtype.type(0)
    size = max(min(int(total[-1]), _CHUNK), int(most.max(initial=0)))
    wide_columns, wide_values = np.empty(size, np.int32), np.empty(size, zero.dtype)
    chunks = []
    begin = 0
    while begin < n_spots:
        end = max(begin + 1, int(np.searchsorted(total, total[begin] + _CHUNK, side="right")) - 1)
        room = total[begin : end + 1] - total[begin]
        counts = np.zeros(end - begin, np.int64)
        some = {**where, **{name: where[name][begin:end] for name in ("layer", "x", "y")}}
        _rows_of_transpose(
            counts, wide_columns, wide_values, room, n_voxels, tables.order.cpu().numpy(), **some, **what, zero=zero, n_parts=_PARTS
        )
        columns, values = np.empty(counts.sum(), np.int32), np.empty(counts.sum(), zero.dtype)
        copy_rows(np.cumsum(counts) - counts, columns, values, room, counts, wide_columns, wide_values)
        chunks.append(SpotRows(counts, columns, values))
        begin = end
    return chunks
