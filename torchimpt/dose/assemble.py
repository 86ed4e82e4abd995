"""Assembly of influence matrices: which pairs the cut-off keeps, their values, and the transposition, on the CPU in numba.

The runs of `torchimpt.dose.rows` name the candidates, so most pairs of the dense matrix are never looked at. Pass one counts, pass
two fills rows of `A^T` (a spot each), then two counting sorts give `A`, and `A^T` again with its columns in ascending order.
Every entry has one writer, so the result does not depend on the number of threads.
"""

from __future__ import annotations

import numba
import numpy as np
import torch

from torchimpt.dose.backends.numba_cpu import _exp_minus, _row_range, _run
from torchimpt.dose.backends.threads import use_torch_threads
from torchimpt.dose.operator import DoseOperator
from torchimpt.dose.rows import ROW_HEIGHT, PairTables


@numba.njit(parallel=True, fastmath=True, cache=True)
def _count(counts, p, q, ratio, row_start, first, height, ratio_min, amplitude, falloff, reach, layer, x, y, t_max):  # pragma: no cover
    n_rows = row_start.shape[0] - 1
    n_components = amplitude.shape[0]
    for s in numba.prange(x.shape[0]):
        far = reach[layer[s]]
        if far == 0.0:
            continue
        total = 0
        from_row, to_row = _row_range(first, height, n_rows, ratio_min, y[s], far)
        for row in range(from_row, to_row):
            lo, hi = _run(p, row_start, first, height, ratio_min, row, x[s], y[s], far)
            for i in range(lo, hi):
                dx, dy = p[i] - x[s], q[i] - y[s]
                r2 = dx * dx + ratio[i] * dy * dy
                kept = False
                for k in range(n_components):
                    kept |= (falloff[k, layer[s], i] * r2 < t_max) & (amplitude[k, layer[s], i] > 0)
                total += kept
        counts[s] = total


@numba.njit(parallel=True, fastmath=True, cache=True)
def _fill(
    values, columns, start, order, p, q, ratio, row_start, first, height, ratio_min, amplitude, falloff, reach, layer, x, y, t_max
):  # pragma: no cover
    n_rows = row_start.shape[0] - 1
    n_components = amplitude.shape[0]
    for s in numba.prange(x.shape[0]):
        far = reach[layer[s]]
        if far == 0.0:
            continue
        at = start[s]
        from_row, to_row = _row_range(first, height, n_rows, ratio_min, y[s], far)
        for row in range(from_row, to_row):
            lo, hi = _run(p, row_start, first, height, ratio_min, row, x[s], y[s], far)
            for i in range(lo, hi):
                dx, dy = p[i] - x[s], q[i] - y[s]
                r2 = dx * dx + ratio[i] * dy * dy
                kept = False
                value = r2 * 0
                for k in range(n_components):
                    t = falloff[k, layer[s], i] * r2
                    if (t < t_max) & (amplitude[k, layer[s], i] > 0):
                        kept = True
                        value += amplitude[k, layer[s], i] * _exp_minus(t)
                if kept:
                    values[at] = value
                    columns[at] = order[i]
                    at += 1


@numba.njit(parallel=True, cache=True)
def _transpose(start, columns, values, out_start, out_columns, out_values, n_parts):  # pragma: no cover
    """CSR to CSR of the transpose by a counting sort; rows of the input are shared out in `n_parts` consecutive parts."""
    n_rows, n_columns = start.shape[0] - 1, out_start.shape[0] - 1
    at = np.zeros((n_parts, n_columns), dtype=np.int64)
    bounds = np.searchsorted(start, np.arange(n_parts + 1) * start[n_rows] // n_parts)
    bounds[0], bounds[n_parts] = 0, n_rows
    for part in numba.prange(n_parts):
        for j in range(start[bounds[part]], start[bounds[part + 1]]):
            at[part, columns[j]] += 1
    total = 0
    for c in range(n_columns):
        out_start[c] = total
        for part in range(n_parts):
            count = at[part, c]
            at[part, c] = total
            total += count
    out_start[n_columns] = total
    for part in numba.prange(n_parts):
        for row in range(bounds[part], bounds[part + 1]):
            for j in range(start[row], start[row + 1]):
                k = at[part, columns[j]]
                at[part, columns[j]] = k + 1
                out_columns[k] = row
                out_values[k] = values[j]


def _arguments(operator: DoseOperator, beam: int, position: torch.Tensor) -> tuple:
    tables: PairTables = operator.tables[beam]
    begin, end = operator.spans[beam]
    # all components of a pair share its entry: the widest decides how far to look
    reach = torch.nan_to_num(operator.cutoff * tables.sigma, posinf=0.0).amax(dim=0)
    x, y = (position[begin:end, i].contiguous().numpy() for i in (0, 1))
    amplitude = tables.amplitude.cpu().numpy()
    return (
        tables.p.cpu().numpy(), tables.q.cpu().numpy(), tables.ratio.cpu().numpy(), tables.row_start.cpu().numpy(), tables.first,
        ROW_HEIGHT, tables.ratio_min, amplitude, tables.falloff.cpu().numpy(), reach.numpy(), operator.layers[beam].cpu().numpy(), x, y,
        amplitude.dtype.type(0.5 * operator.cutoff**2),
    )  # fmt: skip


def count(operator: DoseOperator, position: torch.Tensor) -> torch.Tensor:
    """Kept pairs per spot `(n_spots,)`, int64, at `position` `(n_spots, 2)`, CPU."""
    use_torch_threads()
    counts = torch.zeros(operator.n_spots, dtype=torch.int64)
    for beam, (begin, end) in enumerate(operator.spans):
        if operator.tables[beam].p.numel():
            _count(counts[begin:end].numpy(), *_arguments(operator, beam, position))
    return counts


def fill(operator: DoseOperator, position: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`A` and `A^T` as torch CSR tensors on the CPU, from the counts that `count` gave for the same positions."""
    threads = use_torch_threads()
    dtype = operator.tables[0].p.dtype
    n_entries, shape = int(counts.sum()), (operator.n_voxels, operator.n_spots)
    start = torch.zeros(shape[1] + 1, dtype=torch.int32)
    torch.cumsum(counts, 0, out=start[1:])
    values, columns = torch.empty(n_entries, dtype=dtype), torch.empty(n_entries, dtype=torch.int32)
    for beam, (begin, end) in enumerate(operator.spans):
        tables = operator.tables[beam]
        if tables.p.numel():
            arguments = _arguments(operator, beam, position)
            _fill(values.numpy(), columns.numpy(), start[begin:end].numpy(), tables.order.cpu().numpy(), *arguments)
    a_start = torch.empty(shape[0] + 1, dtype=torch.int32)
    a_values, a_columns = torch.empty_like(values), torch.empty_like(columns)
    _transpose(start.numpy(), columns.numpy(), values.numpy(), a_start.numpy(), a_columns.numpy(), a_values.numpy(), threads)
    again = torch.empty_like(start)
    _transpose(a_start.numpy(), a_columns.numpy(), a_values.numpy(), again.numpy(), columns.numpy(), values.numpy(), threads)
    # valid by construction, and the tests check it; torch warns when it is left to the default
    forward = torch.sparse_csr_tensor(a_start, a_columns, a_values, shape, check_invariants=False)
    return forward, torch.sparse_csr_tensor(again, columns, values, shape[::-1], check_invariants=False)
