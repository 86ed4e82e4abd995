"""Voxels of one beam in BEV rows: the order that every dose model's tables have.

A spot reaches the voxels within a few sigmas of its axis. Sorted into rows of the isocentre-plane coordinate `q`, and by `p`
inside a row, those voxels are one contiguous run per row, whose ends a table of cells names: no index list, no gather, no
stored pair (physics page, "Facts measured once"). Geometry depends on the setup shift only; range scenarios share it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from torchimpt.geometry import Beam, Grid, magnification, to_bev
from torchimpt.physics.wepl import wepl

ROW_HEIGHT = 4.0
"""Height of a BEV row, mm: a little more than a usual voxel, much less than a spot's reach."""

COARSER = "use a coarser grid_mm, a larger layer_spacing, or fewer beams or scenarios"
"""What to do where the tables of so many voxels and layers do not fit."""

CELL_WIDTH = 2.0
"""Width of a cell of a row, mm: runs begin and end at cells, which needs no search (bisection took a quarter of the kernel's time)."""


def row_cells(p: torch.Tensor, row_start: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Where the cells of each row begin: the left edge of the first cells, and `(n_rows, n_cells + 1)` int64, ends included.

    Parameters
    ----------
    p
        `(n,)` in the kernel's dtype, ascending within a row.
    row_start
        `(n_rows + 1,)`.
    """
    n_rows = len(row_start) - 1
    left = float(p.min()) if p.numel() else 0.0
    # in float64, as the kernel does it: what rounds down there rounds down here
    cell = ((p.double() - left) / CELL_WIDTH).long()
    n_cells = int(cell.max()) + 1 if p.numel() else 1
    row = torch.repeat_interleave(torch.arange(n_rows), row_start.diff())
    count = torch.bincount(row * n_cells + cell, minlength=n_rows * n_cells).view(n_rows, n_cells)
    return left, row_start[:-1, None] + torch.cat((torch.zeros(n_rows, 1, dtype=torch.int64), count.cumsum(1)), dim=1)


@dataclass(frozen=True)
class BeamRows:
    """The dose voxels as one beam sees them, sorted into BEV rows.

    Attributes
    ----------
    order
        `(n,)` int64: which entry of the dose vector each row-sorted voxel is.
    p, q
        `(n,)` projections into the isocentre plane, mm.
    magnification
        `(n,)` `m_x`.
    ratio
        `(n,)` `(m_y / m_x)^2`.
    depth
        `(n,)` gantry coordinate `Zg`, mm.
    wepl
        `(n,)` water-equivalent path length, mm.
    row_start
        `(n_rows + 1,)` int64: row `i` is `row_start[i]:row_start[i + 1]`.
    first
        Lower edge of row 0, mm.
    spread
        `(3, n)`, mm: how deep a voxel is, `b`, `f` and `d` of `torchimpt.dose.voxel_mean`; None for the dose in its middle.
    """

    order: torch.Tensor
    p: torch.Tensor
    q: torch.Tensor
    magnification: torch.Tensor
    ratio: torch.Tensor
    depth: torch.Tensor
    wepl: torch.Tensor
    row_start: torch.Tensor
    first: float
    spread: torch.Tensor | None = None

    def keep(self, mask: torch.Tensor) -> BeamRows:
        """The rows without the voxels where `mask` is False."""
        before, kept = torch.cat((torch.zeros(1, dtype=torch.int64), mask.cumsum(0))), mask.nonzero().flatten()
        names = ("order", "p", "q", "magnification", "ratio", "depth", "wepl")
        spread = None if self.spread is None else self.spread[:, kept]
        parts = {name: getattr(self, name)[kept] for name in names}
        return BeamRows(**parts, row_start=before[self.row_start], first=self.first, spread=spread)


def beam_rows(
    rsp: torch.Tensor,
    grid: Grid,
    points: torch.Tensor,
    beam: Beam,
    sad: tuple[float, float],
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0),
    air_from: float | None = None,
    path: torch.Tensor | None = None,
) -> BeamRows:
    """Sort points, mostly middles of voxels, into a beam's rows and trace a ray to each.

    Parameters
    ----------
    rsp
        Relative stopping power `(z, y, x)`.
    grid
        Where `rsp` lies.
    points
        LPS points `(n, 3)` of the dose vector's entries, mm, float64.
    beam
        With its isocenter set.
    sad
        Distances of the two virtual sources from the isocentre `(x, y)`, mm.
    shift
        Setup shift of the patient, LPS, mm.
    air_from
        As for `torchimpt.physics.wepl.wepl`.
    path
        `(n,)`, the points' WEPL where it is known, mm.
    """
    u, v, depth = to_bev(points, beam, shift).unbind(dim=1)
    m_x, m_y = magnification(depth, sad)
    p, q = u / m_x, v / m_y
    first = float(q.min())
    row = ((q - first) / ROW_HEIGHT).long()
    by_p = torch.argsort(p, stable=True)
    order = by_p[torch.argsort(row[by_p], stable=True)]
    row_start = torch.searchsorted(row[order], torch.arange(int(row.max()) + 2))
    if path is None:
        path = wepl(rsp, grid, beam, sad, points, shift, air_from=air_from)
    values = {"p": p, "q": q, "magnification": m_x, "ratio": (m_y / m_x) ** 2, "depth": depth, "wepl": path}
    return BeamRows(order=order, row_start=row_start, first=first, **{k: t[order].contiguous() for k, t in values.items()})
