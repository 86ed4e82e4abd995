"""Amplitude and fall-off of one beam in one scenario, for every layer at every row-sorted voxel: what the pair kernels read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch

from torchimpt.dose.pencil_beam import interpolate
from torchimpt.dose.rows import COARSER, BeamRows, row_cells
from torchimpt.machine import LayerTables
from torchimpt.memory import check_memory

_ON_DEVICE = ("order", "row_start", "cells", "p", "q", "ratio", "amplitude", "falloff")
"""Of the tables' tensors, those that are where the dose is computed; `sigma` is read on the CPU, before a kernel starts."""


@dataclass(frozen=True)
class PairTables:
    """One beam in one scenario, ready for the pair kernel. Component `k`, layer `l` of this beam, row-sorted voxel `i`.

    Attributes
    ----------
    order, row_start, first, p, q
        As in `BeamRows`, `p` and `q` in the kernel's dtype.
    left, cells
        From `row_cells`.
    amplitude, falloff
        `A` and `f` of `torchimpt.dose.pencil_beam.kernel`, `(n_components, n_layers, n)`.
    ratio
        `r` of the same, `(n_components, n_layers, n)`, or `(1, 1, n)` where spots are round: one for all, so that they take no more memory.
    sigma
        `(n_components, n_layers)`: largest sigma along x in the isocentre plane, `max sigma_x / m_x`, mm, among voxels with dose.
    ratio_min
        Smallest `ratio`: no spot reaches farther along y than `sigma / sqrt(ratio_min)`.
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
        return sum(t.numel() * t.element_size() for t in (getattr(self, name) for name in _ON_DEVICE))

    def to(self, device: torch.device | str) -> Self:
        """The same tables on another device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in _ON_DEVICE})

    def ratio_of(self, component: int, layer: int) -> torch.Tensor:
        """`r` of a component in a layer `(n,)`."""
        return self.ratio[min(component, self.ratio.shape[0] - 1), min(layer, self.ratio.shape[1] - 1)]

    @property
    def empty(self) -> bool:
        """Whether no voxel gets dose from this beam."""
        return self.p.numel() == 0

    @property
    def dtype(self) -> torch.dtype:
        """Of the tables."""
        return self.p.dtype

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.p.device


def tabulate(
    rows: BeamRows,
    layers: LayerTables,
    range_scale: float = 1.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> PairTables:
    """Tables of one beam in one scenario.

        A = IDD(s z) a_k(s z) / (2 pi sigma_kx sigma_ky),  f = m_x^2 / (2 sigma_kx^2),  r = (m_y sigma_kx / (m_x sigma_ky))^2,
        sigma_kx^2 = optics_x(Zg) + variance_k(s z),  sigma_ky^2 = optics_y(Zg) + variance_k(s z),  s = range_scale

    with the mean of the IDD over the voxel where `rows` know its `spread`, and for layers behind a range shifter what `LayerTables.drift`
    adds to both variances.

    Parameters
    ----------
    rows
        The beam's voxels, from `beam_rows`.
    layers
        This beam's energy layers.
    range_scale
        Factor on every WEPL.
    """
    end = float((layers.depth_step * (layers.idd.shape[1] - 1)).max())
    reach = 0.0 if rows.spread is None else 0.5 * rows.spread[:2].abs().amax(0) + rows.spread[2]
    rows = rows.keep((rows.wepl - reach) * range_scale < end)
    size = (2 if layers.round else 3) * layers.variance.shape[0] * layers.variance.shape[1] * rows.p.numel() * torch.finfo(dtype).bits // 8
    for place in dict.fromkeys(("cpu", str(device))):
        check_memory(f"the dose tables of a beam ({layers.variance.shape[1]} energy layers, {rows.p.numel()} voxels)", size, place, COARSER)
    spread = None if rows.spread is None else rows.spread * range_scale
    amplitude, falloff, ratio = interpolate.spot_shapes(
        rows.wepl * range_scale, rows.depth, rows.magnification, rows.ratio, layers, dtype, spread
    )  # fmt: skip
    # f >= 0 has its minimum where the spot is widest; voxels without dose don't count
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
        ratio=ratio.to(device),
        amplitude=amplitude.to(device),
        falloff=falloff.to(device),
        sigma=sigma,
        ratio_min=_least(rows, ratio, layers.round),
    )


def _least(rows: BeamRows, ratio: torch.Tensor, is_round: bool) -> float:
    """Smallest ratio; of round spots before it is rounded to the kernel's dtype."""
    if not rows.p.numel():
        return 1.0
    return float(rows.ratio.min() if is_round else ratio.min())
