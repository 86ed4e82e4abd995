"""CSR matrices whose products do not depend on the number of threads; put together on the CPU in numba.

MKL's product gives every thread a share of the rows and takes a kernel by the entries that a row has there in the mean: below 9 in
float32, 5 in float64 (measured), it is another one, which rounds otherwise. So which voxels get which last bit would depend on where the
shares begin. Here no row has fewer than `LEAST`, and every share gets the same kernel.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numba
import numpy as np
import torch

from torchimpt.checks import InputError
from torchimpt.dose.gpu import device_product, runs_triton
from torchimpt.dose.model import SpotRows
from torchimpt.loops import use_torch_threads

MAX_NONZEROS = 2**31 - 1
"""An int32 row pointer holds no more; torch's CSR overflows silently past it."""

LEAST = 12
"""Entries of a stored row, at least; what it lacks are zeros in column 0. A few per cent of the rows of a plan are so short."""

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
def _count_columns(start, end, columns, counts, block):  # pragma: no cover
    """Entries of each column; ascending columns in each row."""
    n_out = counts.shape[0]
    for b in numba.prange((n_out + block - 1) // block):
        low, high = b * block, min(n_out, (b + 1) * block)
        for row in range(end.shape[0]):
            j = _first_at_least(columns, start[row], end[row], low)
            while j < end[row] and columns[j] < high:
                counts[columns[j]] += 1
                j += 1


@numba.njit(parallel=True, cache=True)
def _transpose(start, end, columns, values, first, out_columns, out_values, block):  # pragma: no cover
    """The transpose's entries, a column's from `first` on: a block of output rows, one thread's own, meets a short piece of each row."""
    n_out = first.shape[0]
    for b in numba.prange((n_out + block - 1) // block):
        low, high = b * block, min(n_out, (b + 1) * block)
        at = first[low:high].copy()
        for row in range(end.shape[0]):
            j = _first_at_least(columns, start[row], end[row], low)
            while j < end[row] and columns[j] < high:
                k = at[columns[j] - low]
                at[columns[j] - low] = k + 1
                out_columns[k] = row
                out_values[k] = values[j]
                j += 1


@numba.njit(parallel=True, cache=True)
def copy_rows(start, out_columns, out_values, first, counts, columns, values):  # pragma: no cover
    """Rows of `counts` entries that begin at `first`, into rows that begin at `start`: all threads touch new memory."""
    for row in numba.prange(counts.shape[0]):
        for k in range(counts[row]):
            out_columns[start[row] + k] = columns[first[row] + k]
            out_values[start[row] + k] = values[first[row] + k]


@numba.njit(cache=True)
def _add_rows(dense, start, columns, values, rows, factors):  # pragma: no cover
    """`dense += sum_i factors[i] M[rows[i], :]` for a CSR matrix M: few rows, so one thread."""
    for i in range(rows.shape[0]):
        for j in range(start[rows[i]], start[rows[i] + 1]):
            dense[columns[j]] += factors[i] * values[j]


@numba.njit(cache=True)
def _spread(dense, rows, values):  # pragma: no cover
    """`dense[rows] = values`: torch's threads take longer to wake than this takes."""
    for i in range(rows.shape[0]):
        dense[rows[i]] = values[i]


@dataclass(frozen=True)
class Rows:
    """A sparse matrix by its rows.

    Attributes
    ----------
    entries
        torch CSR with int32 indices, of the rows that have entries: `LEAST` or more each, those that fill it up zeros in column 0.
    filled
        Which rows they are `(n_filled,)`, int32, ascending; None for all of them.
    shape
        `(n_rows, n_columns)`.
    n_nonzeros
        Entries without those that fill up.
    scale
        What the stored values are divided by.
    """

    entries: torch.Tensor
    filled: torch.Tensor | None
    shape: tuple[int, int]
    n_nonzeros: int
    scale: float = 1.0

    @property
    def n_bytes(self) -> int:
        """Memory."""
        parts = [self.entries.values(), self.entries.col_indices(), self.entries.crow_indices()]
        parts += [] if self.filled is None else [self.filled]
        return sum(t.numel() * t.element_size() for t in parts)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """`M x` `(n_rows,)`."""
        product = torch.mv(self.entries, x) if not runs_triton(x.device) else device_product(self.entries, x)
        if self.scale != 1.0:
            product = product / self.scale
        if self.filled is None:
            return product
        dense = product.new_zeros(self.shape[0])
        if dense.device.type != "cpu":
            return dense.index_copy_(0, self.filled.long(), product)
        _spread(dense.numpy(), self.filled.numpy(), product.numpy())
        return dense

    def products(self, x: torch.Tensor) -> torch.Tensor:
        """`M X` `(n_rows, k)` for `X` `(n_columns, k)`: an entry is read once for all vectors.

        Each column is summed in an order of its own, whatever the others are and however many, but not in that of `product`.
        """
        if self.entries.dtype == torch.float16:  # which no library multiplies with float32
            return torch.stack([self.product(column.contiguous()) for column in x.unbind(1)], dim=1)
        found = torch.mm(self.entries, x.contiguous())
        return found if self.filled is None else found.new_zeros(self.shape[0], x.shape[1]).index_copy_(0, self.filled.long(), found)

    def sum_of_rows(self, rows: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        """`sum_i factors[i] M[rows[i], :]` `(n_columns,)`, reading only those rows; all rows must be stored."""
        if self.filled is not None:
            raise InputError("some rows of the matrix are not stored; take its transpose's product")
        total = factors.new_zeros(self.shape[1])
        start, columns, values = self.entries.crow_indices(), self.entries.col_indices(), self.entries.values()
        if total.device.type == "cpu":
            _add_rows(total.numpy(), *(t.contiguous().numpy() for t in (start, columns, values, rows, factors)))
            return total
        begin, end = (start[rows + i].long() for i in (0, 1))
        count = end - begin
        entry = torch.repeat_interleave(begin - (count.cumsum(0) - count), count) + torch.arange(int(count.sum()), device=total.device)
        own = values[entry].to(factors) * torch.repeat_interleave(factors / self.scale, count)
        return total.index_add(0, columns[entry], own)

    def half(self) -> Rows:
        """The same matrix with values of 16 bits, a third of the memory less, for GPUs: to 0.05 % of each value.

        The largest is put at 2^15; only below 2e-9 of it are values less precise. A product's sums are float32.
        """
        if not runs_triton(self.entries.device):
            raise InputError("values of 16 bits are for GPUs with Triton; on the CPU keep float32")
        values = self.entries.values()
        largest = float(values.max()) if values.numel() else 0.0
        scale = 2.0**15 / largest if largest > 0 else 1.0
        n_rows, n_columns = self.entries.shape
        short = csr_tensor(self.entries.crow_indices(), self.entries.col_indices(), (values * scale).half(), (n_rows, n_columns))
        return replace(self, entries=short, scale=self.scale * scale)

    def to_dense(self) -> torch.Tensor:
        """All of it `(n_rows, n_columns)`."""
        dense = self.entries.to_dense()
        if dense.dtype == torch.float16:
            dense = dense.float() / self.scale
        return dense if self.filled is None else dense.new_zeros(self.shape).index_copy_(0, self.filled.long(), dense)

    def to(self, device: torch.device | str) -> Rows:
        """The same matrix on another device."""
        return replace(self, entries=self.entries.to(device), filled=None if self.filled is None else self.filled.to(device))


def no_rows(count: int) -> SpotRows:
    """`count` rows without entries."""
    return SpotRows(np.zeros(count, np.int64), np.zeros(0, np.int32), np.zeros(0))


def both_ways(rows: Sequence[SpotRows], shape: tuple[int, int], dtype: torch.dtype) -> tuple[Rows, Rows]:
    """`A` of `shape` `(n_voxels, n_spots)` and `A^T` from the rows of `A^T`: ascending columns but for those that fill up.

    All rows of `A^T` are stored, as `sum_of_rows` needs them, and those of `A` that have entries: most voxels of a patient have none.
    """
    use_torch_threads()
    counts, kind = np.concatenate([part.counts for part in rows]), torch.zeros(0, dtype=dtype).numpy().dtype
    start, columns, values = _room(counts, kind)
    done = 0
    for part in rows:
        if len(part.values):
            copy_rows(start[done:], columns, values, np.cumsum(part.counts) - part.counts, part.counts, part.columns, part.values)
        done += len(part.counts)
    end = start[:-1] + counts.astype(np.int32)
    of_voxel = np.zeros(shape[0], np.int64)
    _count_columns(start, end, columns, of_voxel, _BLOCK)
    filled = of_voxel.nonzero()[0]
    a_start, a_columns, a_values = _room(of_voxel[filled], kind)
    first = np.zeros(shape[0], np.int32)
    first[filled] = a_start[:-1]
    _transpose(start, end, columns, values, first, a_columns, a_values, _BLOCK)
    n_nonzeros, all_filled = int(counts.sum()), len(filled) == shape[0]
    matrix = _csr(a_start, a_columns, a_values, (len(filled), shape[1]))
    return (
        Rows(matrix, None if all_filled else torch.from_numpy(filled.astype(np.int32)), shape, n_nonzeros),
        Rows(_csr(start, columns, values, shape[::-1]), None, shape[::-1], n_nonzeros),
    )


def _room(counts: np.ndarray, kind: np.dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row pointers, columns and values for rows of so many entries, or `LEAST`: all zeros."""
    start = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(np.maximum(counts, LEAST), out=start[1:])
    if start[-1] > MAX_NONZEROS:
        raise InputError(f'a matrix would have {start[-1]:.3g} entries, more than int32 rows hold (2.1e9); use engine = "matrix_free"')
    return start.astype(np.int32), np.zeros(start[-1], np.int32), np.zeros(start[-1], kind)


def _csr(start: np.ndarray, columns: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> torch.Tensor:
    """The arrays as torch's CSR."""
    return csr_tensor(torch.from_numpy(start), torch.from_numpy(columns), torch.from_numpy(values), shape)


def csr_tensor(start: torch.Tensor, columns: torch.Tensor, values: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Row pointers and columns, int32, and values as torch's CSR."""
    # valid by construction, and the tests check it; torch warns when it is left to the default
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)  # all that is used of it is tested here
        options: dict[str, Any] = {"check_invariants": False}
        return torch.sparse_csr_tensor(start, columns, values, shape, **options)
