"""How `torchimpt.dose.packed` matrices are made: some spots' entries at a time, so that no matrix of full precision is ever in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numba
import numpy as np
import torch

from torchimpt.checks import InputError
from torchimpt.dose.inlines import row_turns
from torchimpt.dose.model import NO_MATRIX, SpotRows
from torchimpt.dose.operator import DoseOperator
from torchimpt.dose.packed import BLOCK, PackedMatrix
from torchimpt.dose.packed_loops import LANES, SHIFT
from torchimpt.loops import use_torch_threads

_CHUNK = 1 << 22
"""Entries that are computed before they are packed: bounds the scratch to some 100 MB."""

_PARTS = 64
"""Shares of a chunk's spots that the threads take in turn."""


@numba.njit(parallel=True, cache=True)
def _pack(counts, first, columns, bits, rank, n, n_groups, starts, codes, exponent):  # pragma: no cover
    """Groups of each spot, block by block, from `first[s]` on, and how many it has in every block.

    `bits` are the values' float32 bit patterns: of positive numbers they ascend as the numbers do. A group begins at an entry and takes
    what the next places have, zeros too.
    """
    n_spots, n_blocks = n_groups.shape
    for part in numba.prange(_PARTS):
        dense = np.zeros(n + LANES, np.uint16)
        low, high = np.full(n_blocks, n), np.zeros(n_blocks, np.int64)
        for s in range(part * n_spots // _PARTS, (part + 1) * n_spots // _PARTS):
            top = np.int32(0)
            for k in range(first[s], first[s] + counts[s]):
                top = max(top, bits[k])
            # the largest entry gets the last exponent but one: rounding up may reach the last
            exponent[s] = (top >> 23) - 30
            zero = exponent[s] << 23
            for k in range(first[s], first[s] + counts[s]):
                word = bits[k] - zero
                if word >= 1 << 23:
                    at = rank[columns[k]]
                    dense[at] = (word + (1 << (SHIFT - 1))) >> SHIFT
                    b = at // BLOCK
                    low[b], high[b] = min(low[b], at), max(high[b], at)
            g = first[s]
            for b in range(n_blocks):
                if low[b] <= high[b]:
                    before, end, at = g, min(n, (b + 1) * BLOCK), low[b]
                    while at <= high[b]:
                        if dense[at] == 0:
                            at += 1
                            continue
                        starts[g] = at - b * BLOCK
                        for i in range(LANES):
                            codes[g, i] = dense[at + i] if at + i < end else 0
                        g += 1
                        at += LANES
                    dense[low[b] : high[b] + 1] = 0
                    n_groups[s, b] = g - before
                    low[b], high[b] = n, 0


@numba.njit(parallel=True, cache=True)
def _move(begin, to, count, starts, codes, all_starts, all_codes):  # pragma: no cover
    """`count[s, b]` groups of each spot and block: they lie one after the other from `begin[s]` on, and go to `to[s, b]`."""
    for s in numba.prange(count.shape[0]):
        at = begin[s]
        for b in range(count.shape[1]):
            for g in range(to[s, b], to[s, b] + count[s, b]):
                all_starts[g] = starts[at]
                for i in range(LANES):
                    all_codes[g, i] = codes[at, i]
                at += 1


@dataclass(frozen=True)
class _Chunk:
    """Some spots' groups, spot by spot, their blocks in order, and how many each spot has in each block."""

    n_groups: np.ndarray
    starts: np.ndarray
    codes: np.ndarray
    exponent: np.ndarray

    def move(self, to: np.ndarray, starts: np.ndarray, codes: np.ndarray) -> None:
        """The groups of spot s and block b to `to[s, b]` of other arrays."""
        each = self.n_groups.sum(1, dtype=np.int64)
        _move(np.cumsum(each) - each, to, self.n_groups, self.starts, self.codes, starts, codes)


def _chunk(rows: SpotRows, rank: np.ndarray, n: int) -> _Chunk:
    """Rows of `A^T` in groups, for voxels whose place among `n` is `rank`."""
    first, n_entries = np.cumsum(rows.counts) - rows.counts, len(rows.values)
    n_groups, exponent = np.zeros((len(rows.counts), -(-n // BLOCK)), np.int32), np.zeros(len(rows.counts), np.int32)
    # no more groups than entries: what is not touched takes no memory
    starts, codes = np.empty(n_entries, np.uint16), np.empty((n_entries, LANES), np.uint16)
    _pack(rows.counts, first, rows.columns, rows.values.view(np.int32), rank, n, n_groups, starts, codes, exponent)
    each = n_groups.sum(1, dtype=np.int64, keepdims=True)
    kept = np.empty(each.sum(), np.uint16), np.empty((each.sum(), LANES), np.uint16)
    _move(first, np.cumsum(each)[:, None] - each, each, starts, codes, *kept)
    return _Chunk(n_groups, *kept, exponent)


@dataclass(frozen=True)
class _Beam:
    """A beam's first spot, its voxels in their order, and its spots' groups."""

    first: int
    voxel: np.ndarray
    chunks: list[_Chunk]

    def n_groups(self) -> np.ndarray:
        """Groups by block and spot `(n_blocks, n)`."""
        return np.concatenate([chunk.n_groups for chunk in self.chunks]).T


def pack(operator: DoseOperator, position: torch.Tensor, counts: torch.Tensor) -> PackedMatrix:
    """The matrix of one scenario.

    Parameters
    ----------
    operator
        With tables of float32 on the CPU.
    position
        `(n_spots, 2)`, CPU.
    counts
        About how many entries each spot has `(n_spots,)`: as many spots are taken at once as have `_CHUNK` together.
    """
    use_torch_threads()
    n_voxels, n_nonzeros = operator.n_voxels, 0
    beams: list[_Beam] = []
    place = []
    for tables, layer, begin, end in operator.beams():
        entries = tables.entries
        if entries is None:
            raise InputError(NO_MATRIX)
        voxel, rank = entries.order(), np.full(n_voxels, -1, np.int32)
        rank[voxel] = np.arange(len(voxel), dtype=np.int32)
        chunks = []
        for i, j in _spans(counts[begin:end]):
            for rows in entries.rows(layer[i:j], position[begin + i : begin + j], operator.cutoff, n_voxels):
                n_nonzeros += len(rows.values)
                chunks.append(_chunk(rows, rank, len(voxel)))
        place.append(np.where(rank < 0, -1, rank + sum(len(beam.voxel) for beam in beams)).astype(np.int32))
        beams.append(_Beam(begin, voxel, chunks))
    places = np.stack(place) if place else np.zeros((0, n_voxels), np.int32)
    return _assembled(beams, places, (n_voxels, operator.n_spots), n_nonzeros)


def _spans(counts: torch.Tensor) -> list[tuple[int, int]]:
    """Spans of spots with about `_CHUNK` entries each."""
    share = (counts.cumsum(0) - counts) // _CHUNK
    edges = [0, *(share.diff().nonzero().flatten() + 1).tolist(), len(counts)]
    return list(pairwise(edges))


def _assembled(beams: Sequence[_Beam], place: np.ndarray, shape: tuple[int, int], n_nonzeros: int) -> PackedMatrix:
    """The beams' groups in one, block by block and then spot by spot; the chunks are used up."""
    before = _ends([len(beam.voxel) for beam in beams])
    counts = [beam.n_groups() for beam in beams]
    where = [count.nonzero() for count in counts]  # of each beam, block and spot of its segments
    group = _ends(np.concatenate([np.zeros(0, np.int32), *(count[at] for count, at in zip(counts, where, strict=True))]))
    segment = _ends(np.concatenate([np.zeros(0, np.int64), *((count > 0).sum(1) for count in counts)]))
    starts, codes, scale = np.empty(group[-1], np.uint16), np.empty((group[-1], LANES), np.uint16), np.zeros(shape[1], np.float32)
    done = 0
    for beam, count, (block, spot) in zip(beams, counts, where, strict=True):
        to = np.zeros(count.shape[::-1], np.int64)
        to[spot, block] = group[done : done + len(spot)]
        done, first = done + len(spot), 0
        while beam.chunks:
            chunk = beam.chunks.pop(0)
            end = first + len(chunk.exponent)
            chunk.move(to[first:end], starts, codes)
            scale[beam.first + first : beam.first + end] = np.ldexp(np.float32(1), chunk.exponent)
            first = end
    edges = [np.arange(at, end, BLOCK) for at, end in pairwise(before)]
    # shares of blocks of every size, whatever the number of threads
    turns = np.argsort(-np.diff(group[segment]), kind="stable")[row_turns(len(segment) - 1)]
    return PackedMatrix(
        shape, n_nonzeros, voxel=np.concatenate([np.zeros(0, np.int32), *(beam.voxel for beam in beams)]), place=place,
        block=np.concatenate([*edges, before[-1:]]), segment=segment,
        spot=np.concatenate([np.zeros(0, np.int32), *((at[1] + b.first).astype(np.int32) for at, b in zip(where, beams, strict=True))]),
        group=group, starts=starts, codes=codes, scale=scale, turns=turns,
    )  # fmt: skip


def _ends(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """Where pieces of these sizes begin, one after the other, and the end of the last: int64."""
    return np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
