"""Influence matrices put together on the GPU, where the dose model finds its entries there: none of it crosses the bus.

The entries of a spot come in the order of the beam's rows, spot after spot. Sorted by spot and voxel they are `A^T`, and these, sorted by
voxel and nothing else, are `A`. Rows need not have a least length there: that is for MKL (`torchimpt.dose.csr`).
"""

from __future__ import annotations

import torch

from torchimpt.dose.csr import Rows, csr_tensor
from torchimpt.dose.operator import DoseOperator

SORT_BYTES = 48
"""About what sorting takes of an entry while one matrix is put together: keys, sorted keys, and places, twice."""


def on_device(operator: DoseOperator) -> bool:
    """Whether all of the operator's beams find their entries on the GPU."""
    found = [tables.entries for tables in operator.tables]
    return bool(found) and all(getattr(entries, "on_device", None) is not None for entries in found)


def device_rows(operator: DoseOperator, position: torch.Tensor) -> tuple[Rows, Rows]:
    """`A` and `A^T` of one scenario for spots at `position` `(n_spots, 2)`, on the operator's device."""
    device, n_voxels, n_spots = operator.device, operator.n_voxels, operator.n_spots
    counts = torch.zeros(n_spots, dtype=torch.int64, device=device)
    columns, values = [counts.new_zeros(0, dtype=torch.int32)], [counts.new_zeros(0, dtype=operator.tables[0].dtype)]
    for tables, layer, begin, end in operator.beams():
        rows = tables.entries.on_device(layer, position[begin:end].to(device), operator.cutoff)  # type: ignore[union-attr]
        counts[begin:end] = rows.counts
        columns.append(rows.columns)
        values.append(rows.values)
    column, value = torch.cat(columns), torch.cat(values)
    spot = torch.repeat_interleave(torch.arange(n_spots, device=device), counts)
    order = (spot * n_voxels + column).argsort()
    column, value = column[order], value[order]
    by_voxel = column.argsort(stable=True)
    of_voxel = torch.bincount(column, minlength=n_voxels)
    matrix = csr_tensor(_pointers(of_voxel), spot[by_voxel].int(), value[by_voxel], (n_voxels, n_spots))
    transpose = csr_tensor(_pointers(counts), column, value, (n_spots, n_voxels))
    return Rows(matrix, None, (n_voxels, n_spots), len(column)), Rows(transpose, None, (n_spots, n_voxels), len(column))


def _pointers(counts: torch.Tensor) -> torch.Tensor:
    """CSR row pointers, int32."""
    return torch.cat((counts.new_zeros(1), counts.cumsum(0))).int()
