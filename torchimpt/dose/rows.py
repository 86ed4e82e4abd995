"""Voxels of one beam in BEV rows, and the tables of one scenario in that order.

A spot reaches the voxels within a few sigmas of its axis. Sorted into rows of the isocentre-plane coordinate `q`, and by `p`
inside a row, those voxels are one contiguous run per row, whose ends a table of cells names: no index list, no gather, no
stored pair (physics page, "Facts measured once"). What depends on the layer, amplitude and fall-off, is tabulated in the same order.
Geometry depends on the setup shift only; range scenarios share it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from torchimpt.dose import interpolate
from torchimpt.geometry import Beam, Grid, magnification, to_bev
from torchimpt.machine import LayerTables
from torchimpt.physics.wepl import wepl

ROW_HEIGHT = 4.0
"""Height of a BEV row, mm: a little more than a usual voxel, much less than a spot's reach."""

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

    def keep(self, mask: torch.Tensor) -> BeamRows:
        """The rows without the voxels where `mask` is False."""
        before = torch.cat((torch.zeros(1, dtype=torch.int64), mask.cumsum(0)))
        names = ("order", "p", "q", "magnification", "ratio", "depth", "wepl")
        return BeamRows(**{name: getattr(self, name)[mask] for name in names}, row_start=before[self.row_start], first=self.first)


def beam_rows(
    rsp: torch.Tensor,
    grid: Grid,
    voxels: torch.Tensor,
    beam: Beam,
    sad: tuple[float, float],
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> BeamRows:
    """Sort the voxels into a beam's rows and trace a ray to each.

    Parameters
    ----------
    rsp
        Relative stopping power `(z, y, x)`.
    grid
        Where `rsp` lies.
    voxels
        Flat grid indices `(n,)` of the dose vector's entries.
    beam
        With its isocenter set.
    sad
        Distances of the two virtual sources from the isocentre `(x, y)`, mm.
    shift
        Setup shift of the patient, LPS, mm.
    """
    points = grid.centers(voxels)
    u, v, depth = to_bev(points, beam, shift).unbind(dim=1)
    m_x, m_y = magnification(depth, sad)
    p, q = u / m_x, v / m_y
    first = float(q.min())
    row = ((q - first) / ROW_HEIGHT).long()
    by_p = torch.argsort(p, stable=True)
    order = by_p[torch.argsort(row[by_p], stable=True)]
    row_start = torch.searchsorted(row[order], torch.arange(int(row.max()) + 2))
    path = wepl(rsp, grid, beam, sad, points, shift)
    values = {"p": p, "q": q, "magnification": m_x, "ratio": (m_y / m_x) ** 2, "depth": depth, "wepl": path}
    return BeamRows(order=order, row_start=row_start, first=first, **{k: t[order].contiguous() for k, t in values.items()})


@dataclass(frozen=True)
class PairTables:
    """One beam in one scenario, ready for the pair kernel. Component `k`, layer `l` of this beam, row-sorted voxel `i`.

    Attributes
    ----------
    order, row_start, first, p, q, ratio
        As in `BeamRows`, `p`, `q` and `ratio` in the kernel's dtype.
    left, cells
        From `row_cells`.
    amplitude, falloff
        `A` and `c` of `torchimpt.dose.kernel`, `(n_components, n_layers, n)`.
    sigma
        `(n_components, n_layers)`: largest sigma in the isocentre plane, `max sigma / m_x`, mm, among voxels with dose.
    ratio_min
        Smallest `ratio`, bounds the run inside a row.
    """

    order: torch.Tensor
    row_start: torch.Tensor
    first: float
    left: float
    cells: torch.Tensor
    p: torch.Tensor
    q: torch.Tensor
    ratio: torch.Tensor
    amplitude: torch.Tensor
    falloff: torch.Tensor
    sigma: torch.Tensor
    ratio_min: float

    @property
    def n_bytes(self) -> int:
        """Memory that the tables take."""
        tensors = (self.order, self.row_start, self.cells, self.p, self.q, self.ratio, self.amplitude, self.falloff)
        return sum(t.numel() * t.element_size() for t in tensors)


def tabulate(
    rows: BeamRows,
    layers: LayerTables,
    range_scale: float = 1.0,
    rbe: float = 1.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> PairTables:
    """Tables of one beam in one scenario.

        A = RBE IDD(s z) a_k(s z) / (2 pi sigma_k^2),  c = m_x^2 / (2 sigma_k^2),
        sigma_k^2 = optics(Zg) + variance_k(s z),  s = range_scale

    Parameters
    ----------
    rows
        The beam's voxels, from `beam_rows`.
    layers
        This beam's energy layers.
    range_scale
        Factor on every WEPL.
    rbe
        Constant factor on physical dose.
    """
    end = float((layers.depth_step * (layers.idd.shape[1] - 1)).max())
    rows = rows.keep(rows.wepl * range_scale < end)
    amplitude, falloff = interpolate.amplitude_and_falloff(rows.wepl * range_scale, rows.depth, rows.magnification, layers, rbe, dtype)
    # c >= 0 has its minimum where the spot is widest; voxels without dose don't count
    smallest = torch.where(amplitude > 0, falloff, torch.inf).amin(dim=2) if rows.p.numel() else torch.full(amplitude.shape[:2], torch.inf)
    sigma = (0.5 / smallest.double()).sqrt()
    p = rows.p.to(dtype)
    left, cells = row_cells(p, rows.row_start)
    return PairTables(
        order=rows.order.to(device),
        row_start=rows.row_start.to(device),
        first=rows.first,
        left=left,
        cells=cells.to(device),
        p=p.to(device),
        q=rows.q.to(device, dtype),
        ratio=rows.ratio.to(device, dtype),
        amplitude=amplitude.to(device),
        falloff=falloff.to(device),
        sigma=sigma,
        ratio_min=float(rows.ratio.min()) if rows.p.numel() else 1.0,
    )
