"""How deep a voxel is to a beam, for dose that is the mean over a voxel in the place of that in its middle.

A Bragg peak of 2 mm falls between the middles of voxels of 5 mm, or on one: the integral dose, or the DVH of the body, on such a grid then
miss what the patient gets. The mean over a voxel, summed over the grid, is the integral. From a voxel's middle to its neighbours' along one
axis the water-equivalent depth z changes by b and f, and within the voxel by half of that on either side. So depths in it are spread like
boxes, convolved. That of the axis with the largest change is kept as it is, in two halves, of the others the second moment d^2:

    mean IDD = (B(z + d) + B(z - d)) / 2,   B(z) = (M(z - b/2, z) + M(z, z + f/2)) / 2,   M(p, q) = 1 / (q - p) int_p^q IDD dz'

This is exact where the depth changes along one axis, and takes out what a coarse grid makes of a narrow peak whichever way of its own the
grid is hit (of a lattice's frequencies along the depth all lie on zeros of that box); in voxels where two faces of a body meet it is not.
Across the beam a spot is wider by the voxel's second moment, `sum_i (s_i e_x . e_i)^2 / 12` along x, y alike.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from torchimpt.dose.rows import BeamRows, beam_rows
from torchimpt.geometry import Beam, Grid, bev_rotation
from torchimpt.machine import LayerTables
from torchimpt.physics.wepl import wepl


def mean_rows(
    rsp: Tensor,
    ct: Grid,
    voxels: tuple[Grid, Tensor],
    beam: Beam,
    sad: tuple[float, float],
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0),
    air_from: float | None = None,
) -> BeamRows:
    """Rows of voxels, a grid and flat indices `(n,)` in it, with the spread of their depths; all else as in `beam_rows`."""
    grid, index = voxels
    neighbours = [_neighbours(grid, index, axis) for axis in range(3)]
    every, place = torch.cat([index, *(side for pair in neighbours for side in pair)]).unique(return_inverse=True)
    path = wepl(rsp, ct, beam, sad, grid.centers(every), shift, air_from=air_from)[place].view(7, -1)
    steps = torch.stack([torch.stack(((index - low).sign(), (high - index).sign())) for low, high in neighbours])
    before, behind = path[0] - path[1::2], path[2::2] - path[0]
    # at the grid's border there is one neighbour, which tells of both sides
    before, behind = torch.where(steps[:, 0] > 0, before, behind), torch.where(steps[:, 1] > 0, behind, before)
    width = (0.5 * (before + behind)).abs()
    axis = width.argmax(dim=0, keepdim=True)
    rest = (width.square().sum(0) - width.square().gather(0, axis)[0]).clamp_min(0.0)
    spread = torch.stack((before.gather(0, axis)[0], behind.gather(0, axis)[0], (rest / 12.0).sqrt()))
    rows = beam_rows(rsp, ct, grid.centers(index), beam, sad, shift, air_from, path[0])
    return replace(rows, spread=spread[:, rows.order].contiguous())


def _neighbours(grid: Grid, voxels: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Flat indices of the voxels before and behind along an array axis; at the border the voxel itself."""
    stride = [grid.shape[1] * grid.shape[2], grid.shape[2], 1][axis]
    place = voxels // stride % grid.shape[axis]
    return voxels - stride * (place > 0), voxels + stride * (place < grid.shape[axis] - 1)


def widened(tables: LayerTables, spacing: tuple[float, ...], beam: Beam) -> LayerTables:
    """The tables with spots as wide as voxels of this spacing `(x, y, z)`, mm, see them on average."""
    edges = bev_rotation(beam) * torch.tensor(spacing, dtype=torch.float64)
    across_x, across_y = (float(edges[i].square().sum()) / 12.0 for i in (0, 1))
    along_y = tables.optics_variance if tables.optics_variance_y is None else tables.optics_variance_y
    is_round = tables.round and abs(across_x - across_y) < 1e-9
    return replace(
        tables, optics_variance=tables.optics_variance + across_x, optics_variance_y=None if is_round else along_y + across_y
    )  # fmt: skip
