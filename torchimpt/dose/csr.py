"""CSR matrices on the CPU in numba: rows put together, and the transposition in blocks that stay in the cache."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import torch

from torchimpt.dose.inlines import use_torch_threads
from torchimpt.dose.model import SpotRows

_BLOCK = 512
"""Rows of the result in a block of the transposition: their write positions stay in the first-level cache."""


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


def no_rows(count: int) -> SpotRows:
    """`count` rows without entries."""
    return SpotRows(np.zeros(count, np.int64), np.zeros(0, np.int32), np.zeros(0))


def both_ways(rows: Sequence[SpotRows], shape: tuple[int, int], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """`A` of `shape` `(n_voxels, n_spots)` and `A^T` from the rows of `A^T`: torch CSR on the CPU, int32 indices, ascending columns."""
    use_torch_threads()
    counts = np.concatenate([part.counts for part in rows])
    some = [part for part in rows if len(part.values)]
    columns = np.concatenate([part.columns for part in some]) if some else np.zeros(0, np.int32)
    values = np.concatenate([part.values for part in some]) if some else torch.zeros(0, dtype=dtype).numpy()
    start = torch.zeros(shape[1] + 1, dtype=torch.int32)
    start[1:] = torch.from_numpy(np.cumsum(counts))
    a_start = torch.empty(shape[0] + 1, dtype=torch.int32)
    a_columns, a_values = np.empty_like(columns), np.empty_like(values)
    _transpose(start.numpy(), columns, values, a_start.numpy(), a_columns, a_values, _BLOCK)
    # valid by construction, and the tests check it; torch warns when it is left to the default
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)  # all that is used of it is tested here
        options: dict[str, Any] = {"check_invariants": False}
        matrix = torch.sparse_csr_tensor(a_start, torch.from_numpy(a_columns), torch.from_numpy(a_values), shape, **options)
        transpose = torch.sparse_csr_tensor(start, torch.from_numpy(columns), torch.from_numpy(values), shape[::-1], **options)
        return matrix, transpose
