"""The pair kernel in plain torch, on any device: the reference that the fast back-ends are held against, and the CUDA path.

Each layer's spots are sorted by `y` and taken in chunks; a chunk meets the one contiguous slice of row-sorted voxels that it
can reach.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from torchimpt.dose.cutoff import cut
from torchimpt.dose.pencil_beam.kernel import pair_dose, pair_partials
from torchimpt.dose.pencil_beam.tables import PairTables
from torchimpt.dose.rows import ROW_HEIGHT

Pairs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]

_PAIRS = {"cpu": 1 << 18, "cuda": 1 << 25}
"""Pairs evaluated at once: the second-level cache on a CPU; on a GPU enough to fill it."""


def _chunks(tables: PairTables, layer: torch.Tensor, position: torch.Tensor, cutoff: float) -> Iterator[tuple]:
    """Yield `(component, layer, spots, voxels)`: index tensor of a chunk of spots, slice of row-sorted voxels."""
    pairs = _PAIRS.get(position.device.type, 1 << 18)
    start = torch.searchsorted(layer, torch.arange(tables.amplitude.shape[1] + 1, device=layer.device)).tolist()
    row_start = tables.row_start.tolist()
    n_rows = len(row_start) - 1
    reach = cutoff * tables.sigma / math.sqrt(tables.ratio_min)
    for index in range(len(start) - 1):
        if start[index] == start[index + 1]:
            continue
        order = start[index] + torch.argsort(position[start[index] : start[index + 1], 1])
        y_sorted = position[order, 1].tolist()
        for k in range(tables.amplitude.shape[0]):
            far = float(reach[k, index])
            if not math.isfinite(far):
                continue
            begin = 0
            while begin < len(order):
                low = min(max(int((y_sorted[begin] - far - tables.first) // ROW_HEIGHT), 0), n_rows)
                step, end = 0, begin
                while end < len(order) and (end == begin or (end + 1 - begin) * step <= pairs):
                    high = min(max(int((y_sorted[end] + far - tables.first) // ROW_HEIGHT) + 1, low), n_rows)
                    step = row_start[high] - row_start[low]
                    end += 1
                yield k, index, order[begin:end], slice(row_start[low], row_start[high])
                begin = end


def _pairs(tables: PairTables, k: int, index: int, position: torch.Tensor, spots: torch.Tensor, voxels: slice) -> Pairs:
    """`(dx, dy, ratio, amplitude, falloff)` of the chunk's pairs, spots down, voxels across."""
    dx = tables.p[voxels] - position[spots, 0, None]
    dy = tables.q[voxels] - position[spots, 1, None]
    return dx, dy, tables.ratio_of(k, index)[voxels], tables.amplitude[k, index, voxels], tables.falloff[k, index, voxels]


def add_dose(
    dose: torch.Tensor, tables: PairTables, layer: torch.Tensor, position: torch.Tensor, weight: torch.Tensor, cutoff: float
) -> None:
    """Add one beam's dose to `dose` `(n_voxels,)`; `layer` `(S,)` counts from the beam's first layer, ascending."""
    mine = torch.zeros_like(tables.p)
    for k, index, spots, voxels in _chunks(tables, layer, position, cutoff):
        mine[voxels] += weight[spots] @ pair_dose(*_pairs(tables, k, index, position, spots, voxels), cut=cut(cutoff))
    dose.index_add_(0, tables.order, mine)


def add_gradient(
    gradient: torch.Tensor,
    residual: torch.Tensor,
    tables: PairTables,
    layer: torch.Tensor,
    position: torch.Tensor,
    weight: torch.Tensor,
    cutoff: float,
    move: bool,
) -> None:
    """Add `(dF/dw, dF/dx, dF/dy)` `(3, S)` of one beam, in one pass over the pairs; only the first row unless `move`."""
    mine = residual[tables.order]
    for k, index, spots, voxels in _chunks(tables, layer, position, cutoff):
        pairs = _pairs(tables, k, index, position, spots, voxels)
        if not move:
            gradient[0].index_add_(0, spots, pair_dose(*pairs, cut=cut(cutoff)) @ mine[voxels])
            continue
        phi, phi_x, phi_y = pair_partials(*pairs, cut=cut(cutoff))
        gradient[0].index_add_(0, spots, phi @ mine[voxels])
        gradient[1].index_add_(0, spots, weight[spots] * (phi_x @ mine[voxels]))
        gradient[2].index_add_(0, spots, weight[spots] * (phi_y @ mine[voxels]))
