"""Assembly of influence matrices on the CPU in numba: which pairs the cut-off keeps, their values, and the transposition.

The runs of `torchimpt.dose.rows` name the candidates, so most pairs of the dense matrix are never looked at. A spot's values are
scattered into a scratch dose vector and swept up in voxel order, which gives its row of `A^T` with ascending columns; `A` follows by
a transposition in blocks of voxels that stay in the cache. Every entry has one writer, so the result does not depend on the number
of threads.
"""

from __future__ import annotations

import warnings

import numba
import numpy as np
import torch

from torchimpt.dose.backends.numba_cpu import FAST, _exp_minus, _row_range, _run
from torchimpt.dose.backends.threads import use_torch_threads
from torchimpt.dose.operator import DoseOperator
from torchimpt.dose.rows import CELL_WIDTH, ROW_HEIGHT, PairTables

_CHUNK = 1 << 24
"""Candidate pairs taken at once: bounds the scratch to 128 MB in float32."""

_PARTS = 64
"""Shares of a chunk's spots that the threads take in turn."""

_BLOCK = 512
"""Voxels of a block in the transposition: their write positions stay in the first-level cache."""


@numba.njit(parallel=True, cache=True)
def _count_candidates(counts, cells, left, width, first, height, ratio_min, reach, layer, x, y):  # pragma: no cover
    """Pairs that a spot's runs hold, kept or not."""
    n_rows = cells.shape[0]
    for s in numba.prange(x.shape[0]):
        far = reach[layer[s]]
        total = 0
        if far > 0.0:
            from_row, to_row = _row_range(first, height, n_rows, ratio_min, y[s], far)
            for row in range(from_row, to_row):
                lo, hi = _run(cells, left, width, first, height, ratio_min, row, x[s], y[s], far)
                total += hi - lo
        counts[s] = total


@numba.njit(fastmath=FAST, inline="always")
def _count_run(p, q, ratio, amplitude, falloff, x, y, t_max):  # pragma: no cover
    total = 0
    for i in range(p.shape[0]):
        dx, dy = p[i] - x, q[i] - y
        total += (falloff[i] * (dx * dx + ratio[i] * dy * dy) < t_max) & (amplitude[i] > 0)
    return total


@numba.njit(parallel=True, fastmath=FAST, cache=True)
def _count(
    counts, p, q, ratio, cells, left, width, first, height, ratio_min, amplitude, falloff, reach, layer, x, y, t_max
):  # pragma: no cover
    """Kept pairs of each spot by its widest component, which is the last: the others reach less far."""
    n_rows = cells.shape[0]
    k = amplitude.shape[0] - 1
    for s in numba.prange(x.shape[0]):
        far = reach[layer[s]]
        total = 0
        if far > 0.0:
            a, c = amplitude[k, layer[s]], falloff[k, layer[s]]
            from_row, to_row = _row_range(first, height, n_rows, ratio_min, y[s], far)
            for row in range(from_row, to_row):
                lo, hi = _run(cells, left, width, first, height, ratio_min, row, x[s], y[s], far)
                if hi > lo:
                    total += _count_run(p[lo:hi], q[lo:hi], ratio[lo:hi], a[lo:hi], c[lo:hi], x[s], y[s], t_max)
        counts[s] = total


@numba.njit(fastmath=FAST, inline="always")
def _evaluate_run(out, p, q, ratio, amplitude, falloff, x, y, t_max, zero):  # pragma: no cover
    for i in range(out.shape[0]):
        dx, dy = p[i] - x, q[i] - y
        t = falloff[i] * (dx * dx + ratio[i] * dy * dy)
        e = _exp_minus(min(t, t_max))  # not inside the condition, as in the pair kernel
        out[i] += amplitude[i] * (e if t < t_max else zero)


@numba.njit(parallel=True, fastmath=FAST, cache=True)
def _rows_of_transpose(
    counts, columns, values, room, n_voxels, order, p, q, ratio, cells, left, width, first, height, ratio_min, amplitude, falloff, reach,
    layer, x, y, t_max, zero, n_parts,
):  # fmt: skip  # pragma: no cover
    """Row `s` of `A^T` from `room[s]` on, ascending columns; how many it has goes to `counts[s]`. `room` has one slot to spare a spot."""
    n_rows = cells.shape[0]
    n_spots = x.shape[0]
    longest = 0
    for row in range(n_rows):
        longest = max(longest, cells[row, cells.shape[1] - 1] - cells[row, 0])
    for part in numba.prange(n_parts):
        dense, buffer = np.zeros(n_voxels, values.dtype), np.zeros(longest, values.dtype)
        for s in range(part * n_spots // n_parts, (part + 1) * n_spots // n_parts):
            far = reach[layer[s]]
            counts[s] = 0
            if far == 0.0:
                continue
            low, high = n_voxels, 0
            from_row, to_row = _row_range(first, height, n_rows, ratio_min, y[s], far)
            for row in range(from_row, to_row):
                lo, hi = _run(cells, left, width, first, height, ratio_min, row, x[s], y[s], far)
                if hi == lo:
                    continue
                out = buffer[: hi - lo]
                out[:] = zero
                for k in range(amplitude.shape[0]):
                    a, c = amplitude[k, layer[s], lo:hi], falloff[k, layer[s], lo:hi]
                    _evaluate_run(out, p[lo:hi], q[lo:hi], ratio[lo:hi], a, c, x[s], y[s], t_max, zero)
                for i in range(hi - lo):
                    voxel = order[lo + i]
                    dense[voxel] = out[i]
                    low, high = min(low, voxel), max(high, voxel)
            at = room[s]
            for voxel in range(low, high + 1):
                # written first, counted after: no branch to mispredict; the slot to spare takes what comes after the last
                columns[at] = voxel
                values[at] = dense[voxel]
                at += dense[voxel] > zero
                dense[voxel] = zero
            counts[s] = at - room[s]


@numba.njit(parallel=True, cache=True)
def _compact(start, columns, values, room, counts, from_columns, from_values):  # pragma: no cover
    for s in numba.prange(counts.shape[0]):
        for i in range(counts[s]):
            columns[start[s] + i] = from_columns[room[s] + i]
            values[start[s] + i] = from_values[room[s] + i]


@numba.njit(inline="always")
def _first_at_least(values, low, high, threshold):  # pragma: no cover
    while low < high:
        middle = (low + high) >> 1
        if values[middle] < threshold:
            low = middle + 1
        else:
            high = middle
    return low


@numba.njit(parallel=True, cache=True)
def _transpose(start, columns, values, out_start, out_columns, out_values, block):  # pragma: no cover
    """CSR with ascending columns to CSR of the transpose: a block of output rows, one thread's own, meets a short piece of each row."""
    n_rows, n_out = start.shape[0] - 1, out_start.shape[0] - 1
    n_blocks = (n_out + block - 1) // block
    out_start[0] = 0
    for b in numba.prange(n_blocks):
        begin, end = b * block, min(n_out, (b + 1) * block)
        count = np.zeros(end - begin, np.int64)
        for row in range(n_rows):
            j = _first_at_least(columns, start[row], start[row + 1], begin)
            while j < start[row + 1] and columns[j] < end:
                count[columns[j] - begin] += 1
                j += 1
        for i in range(end - begin):
            out_start[begin + i + 1] = count[i]
    for i in range(n_out):
        out_start[i + 1] += out_start[i]
    for b in numba.prange(n_blocks):
        begin, end = b * block, min(n_out, (b + 1) * block)
        at = out_start[begin:end].copy()
        for row in range(n_rows):
            j = _first_at_least(columns, start[row], start[row + 1], begin)
            while j < start[row + 1] and columns[j] < end:
                k = at[columns[j] - begin]
                at[columns[j] - begin] = k + 1
                out_columns[k] = row
                out_values[k] = values[j]
                j += 1


@numba.njit(cache=True)
def add_rows(dense, start, columns, values, rows, factors):  # pragma: no cover
    """`dense += sum_i factors[i] M[rows[i], :]` for a CSR matrix M: few rows, so one thread."""
    for i in range(rows.shape[0]):
        for j in range(start[rows[i]], start[rows[i] + 1]):
            dense[columns[j]] += factors[i] * values[j]


def _arguments(operator: DoseOperator, beam: int, position: torch.Tensor) -> tuple[dict, dict]:
    """Where a beam's spots reach, and the kernel's values there."""
    tables: PairTables = operator.tables[beam]
    begin, end = operator.spans[beam]
    # all components of a pair share its entry: the widest decides how far to look
    reach = torch.nan_to_num(operator.cutoff * tables.sigma, posinf=0.0).amax(dim=0)
    x, y = (position[begin:end, i].contiguous().numpy() for i in (0, 1))
    amplitude = tables.amplitude.cpu().numpy()
    where = {
        "cells": tables.cells.cpu().numpy(), "left": tables.left, "width": CELL_WIDTH, "first": tables.first, "height": ROW_HEIGHT,
        "ratio_min": tables.ratio_min,
        "reach": reach.numpy(), "layer": operator.layers[beam].cpu().numpy(), "x": x, "y": y,
    }  # fmt: skip
    what = {
        "p": tables.p.cpu().numpy(), "q": tables.q.cpu().numpy(), "ratio": tables.ratio.cpu().numpy(), "amplitude": amplitude,
        "falloff": tables.falloff.cpu().numpy(), "t_max": amplitude.dtype.type(0.5 * operator.cutoff**2),
    }  # fmt: skip
    return where, what


def count(operator: DoseOperator, position: torch.Tensor) -> torch.Tensor:
    """Kept pairs per spot `(n_spots,)`, int64, at `position` `(n_spots, 2)`, CPU: to know a matrix's size before it is built.

    It counts by the widest component; rounding at the very edge of the cut-off may differ from what `fill` keeps by a few pairs.
    """
    use_torch_threads()
    counts = torch.zeros(operator.n_spots, dtype=torch.int64)
    for beam, (begin, end) in enumerate(operator.spans):
        if operator.tables[beam].p.numel():
            where, what = _arguments(operator, beam, position)
            _count(counts[begin:end].numpy(), **where, **what)
    return counts


def candidates(operator: DoseOperator, position: torch.Tensor) -> torch.Tensor:
    """Pairs per spot `(n_spots,)`, int64, that the runs hold at `position` `(n_spots, 2)`, CPU: those that are looked at, kept or not."""
    use_torch_threads()
    counts = torch.zeros(operator.n_spots, dtype=torch.int64)
    for beam, (begin, end) in enumerate(operator.spans):
        if operator.tables[beam].p.numel():
            where, _ = _arguments(operator, beam, position)
            _count_candidates(counts[begin:end].numpy(), **where)
    return counts


def _beam_rows(operator: DoseOperator, beam: int, position: torch.Tensor) -> tuple[list, list, list]:
    """Rows of `A^T` of one beam's spots: per chunk the counts, the columns and the values."""
    tables = operator.tables[beam]
    where, what = _arguments(operator, beam, position)
    n_spots = len(where["x"])
    most = np.zeros(n_spots, np.int64)
    _count_candidates(most, **where)
    total = np.cumsum(most + 1)
    found = ([], [], [])
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
            counts, wide_columns, wide_values, room, operator.n_voxels, tables.order.cpu().numpy(), **some, **what, zero=zero,
            n_parts=_PARTS,
        )  # fmt: skip
        start = np.concatenate(([0], np.cumsum(counts)))
        columns, values = np.empty(start[-1], np.int32), np.empty(start[-1], wide_values.dtype)
        _compact(start, columns, values, room, counts, wide_columns, wide_values)
        for parts, part in zip(found, (counts, columns, values), strict=True):
            parts.append(part)
        begin = end
    return found


def fill(operator: DoseOperator, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`A` `(n_voxels, n_spots)` and `A^T` as torch CSR tensors on the CPU, int32 indices, ascending columns."""
    use_torch_threads()
    shape = (operator.n_voxels, operator.n_spots)
    parts: tuple[list, list, list] = ([], [], [])
    for beam, (begin, end) in enumerate(operator.spans):
        if operator.tables[beam].p.numel():
            for own, more in zip(parts, _beam_rows(operator, beam, position), strict=True):
                own.extend(more)
        else:
            parts[0].append(np.zeros(end - begin, np.int64))
    # spots are sorted by beam and the spans are all of them, so the parts follow each other without gaps
    counts = np.concatenate(parts[0])
    start = torch.zeros(shape[1] + 1, dtype=torch.int32)
    start[1:] = torch.from_numpy(np.cumsum(counts))
    kind = operator.tables[0].p.dtype
    columns = torch.from_numpy(np.concatenate(parts[1])) if parts[1] else torch.empty(0, dtype=torch.int32)
    values = torch.from_numpy(np.concatenate(parts[2])) if parts[2] else torch.empty(0, dtype=kind)
    a_start = torch.empty(shape[0] + 1, dtype=torch.int32)
    a_columns, a_values = torch.empty_like(columns), torch.empty_like(values)
    _transpose(start.numpy(), columns.numpy(), values.numpy(), a_start.numpy(), a_columns.numpy(), a_values.numpy(), _BLOCK)
    # valid by construction, and the tests check it; torch warns when it is left to the default
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)  # all that is used of it is tested here
        forward = torch.sparse_csr_tensor(a_start, a_columns, a_values, shape, check_invariants=False)
        return forward, torch.sparse_csr_tensor(start, columns, values, shape[::-1], check_invariants=False)
