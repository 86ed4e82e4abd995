"""Matrix entries of one beam on the CPU in numba: which pairs the cut-off keeps, and their values.

The runs of `torchimpt.dose.rows` name the candidates, so most pairs of the dense matrix are never looked at. A spot's values are
scattered into a scratch dose vector and swept up in voxel order, which gives its row of `A^T` with ascending columns. Every entry has
one writer, so the result does not depend on the number of threads.
"""

from __future__ import annotations

import numba
import numpy as np
import torch

from torchimpt.dose.csr import copy_rows
from torchimpt.dose.cutoff import cut
from torchimpt.dose.inlines import FAST, exp_minus, row_range, run, use_torch_threads
from torchimpt.dose.model import SpotRows
from torchimpt.dose.pencil_beam.tables import PairTables
from torchimpt.dose.rows import CELL_WIDTH, ROW_HEIGHT

_CHUNK = 1 << 24
"""Candidate pairs taken at once: bounds the scratch to 128 MB in float32."""

_PARTS = 64
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


@numba.njit(inline="always")
def _longest_row(cells):  # pragma: no cover
    longest = 0
    for row in range(cells.shape[0]):
        longest = max(longest, cells[row, cells.shape[1] - 1] - cells[row, 0])
    return longest


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
    longest = _longest_row(cells)
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


@numba.njit(parallel=True, fastmath=FAST, cache=True)
def _rows_of_transpose(
    counts, columns, values, room, n_voxels, order, p, q, ratio, cells, left, width, first, height, ratio_min, amplitude, falloff, reach,
    layer, x, y, cut, zero, n_parts,
):  # fmt: skip  # pragma: no cover
    """Row `s` of `A^T` from `room[s]` on, ascending columns; how many it has goes to `counts[s]`. `room` has one slot to spare a spot."""
    n_rows = cells.shape[0]
    n_spots = x.shape[0]
    longest = _longest_row(cells)
    for part in numba.prange(n_parts):
        dense, buffer = np.zeros(n_voxels, values.dtype), np.zeros(longest, values.dtype)
        for s in range(part * n_spots // n_parts, (part + 1) * n_spots // n_parts):
            far = reach[layer[s]]
            counts[s] = 0
            if far == 0.0:
                continue
            low, high = n_voxels, 0
            from_row, to_row = row_range(first, height, n_rows, ratio_min, y[s], far)
            for row in range(from_row, to_row):
                lo, hi = run(cells, left, width, first, height, ratio_min, row, x[s], y[s], far)
                if hi == lo:
                    continue
                out = buffer[: hi - lo]
                out[:] = zero
                for k in range(amplitude.shape[0]):
                    a, c = amplitude[k, layer[s], lo:hi], falloff[k, layer[s], lo:hi]
                    r = ratio[min(k, ratio.shape[0] - 1), min(layer[s], ratio.shape[1] - 1), lo:hi]
                    _evaluate_run(out, p[lo:hi], q[lo:hi], r, a, c, x[s], y[s], cut, zero)
                for i in range(hi - lo):
                    voxel = order[lo + i]
                    dense[voxel] = out[i]
                    low, high = min(low, voxel), max(high, voxel)
            at = room[s]
            for voxel in range(low, high + 1):
                # written first, counted after: no branch to mispredict; the slot to spare takes what comes after the last
                columns[at] = voxel
                values[at] = dense[voxel] * cut.gain
                at += dense[voxel] > zero
                dense[voxel] = zero
            counts[s] = at - room[s]


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
    """Pairs of each of a beam's spots `(n,)`, int64, that the runs hold, CPU: those that are looked at, kept or not."""
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
    total = np.cumsum(most + 1)
    chunks = []
    begin = 0
    while begin < n_spots:
        before = total[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(total, before + _CHUNK)))
        room = np.concatenate(([0], total[begin:end] - before))
        counts = np.zeros(end - begin, np.int64)
        wide_columns, wide_values = np.empty(room[-1], np.int32), np.empty(room[-1], what["amplitude"].dtype)
        some = {**where, **{name: where[name][begin:end] for name in ("layer", "x", "y")}}
        zero = what["amplitude"].dtype.type(0)
        _rows_of_transpose(
            counts, wide_columns, wide_values, room, n_voxels, tables.order.cpu().numpy(), **some, **what, zero=zero, n_parts=_PARTS
        )
        columns, values = np.empty(counts.sum(), np.int32), np.empty(counts.sum(), wide_values.dtype)
        copy_rows(np.cumsum(counts) - counts, columns, values, room, counts, wide_columns, wide_values)
        chunks.append(SpotRows(counts, columns, values))
        begin = end
    return chunks
