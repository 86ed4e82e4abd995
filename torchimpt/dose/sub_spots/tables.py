"""Sub-spots: a spot's protons on a lattice of rays, each ray with the WEPL of its own path.

The default dose gives a voxel the WEPL of the straight ray from the source to it. Protons scatter, though: of those that reach a
voxel deep behind a lateral density step, some entered on the other side of it, nearer to the spot's axis. Here the spot's Gaussian in
air is shared out on a square lattice of rays,

    sigma_optics^2 = m^2 sigma_a^2 + (sigma_optics^2 - m^2 sigma_a^2),   sigma_a^2 = half of the least sigma_optics^2 / m^2,

the first part by the rays' weights, the rest by a narrow Gaussian around every ray, to which the medium's scatter is added:

    Phi_j = h^2 sum_s w_s N2(X_j - x_s; sigma_a),
    D_v = sum_j Phi_j IDD(z_j) sum_k a_k(z_j) N2(v - m X_j; sigma_k),   sigma_k^2 = sigma_optics^2(Zg) - m^2 sigma_a^2 + variance_k(z_j)

with N2 cut off as in `torchimpt.dose.cutoff` and `z_j` the WEPL along ray j down to the voxel's plane `Zg`. The pitch `h` is 0.625 of the
least sigma in air: the sum over the lattice is the integral to 1e-5. In a medium without lateral steps both doses are the same. A spot's
position moves the rays' weights only, so the gradient for it is as exact as the one for the weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from torchimpt.dose.model import Surroundings
from torchimpt.dose.rows import BeamRows, row_cells
from torchimpt.geometry import from_bev, magnification
from torchimpt.machine import LayerTables
from torchimpt.physics.wepl import wepl

PITCH = 0.625
"""Pitch of the rays over the least sigma in air. The product of the two equal Gaussians has half of it: ripple 2 exp(-2 pi^2 / 1.25^2)."""

DEPTH_STEP = 1.0
"""Step of a ray's WEPL samples, mm. WEPL is linear between voxel borders; the interval that holds one is off by at most a quarter of it."""

RAYS_AT_ONCE = 1024
"""Rays traced at once, a few hundred points each."""


class Rays:
    """A beam's lattice of rays in one scenario. A ray is traced when it first carries protons, and kept.

    Attributes
    ----------
    x, y
        `(n_x,)`, `(n_y,)`: the lattice in the isocentre plane, mm, float64.
    pitch, top
        Pitch of the lattice, and `Zg` of the first sample along every ray, mm.
    """

    def __init__(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        top: float,
        n_samples: int,
        wepl_at: Callable[[torch.Tensor], torch.Tensor],
        sad: tuple[float, float],
        dtype: torch.dtype,
    ) -> None:
        self.x, self.y, self.pitch, self.top = x, y, float(x[1] - x[0]), top
        self._depth = top - DEPTH_STEP * torch.arange(n_samples, dtype=torch.float64)
        self._wepl_at, self._sad = wepl_at, sad
        self._traced = torch.zeros((len(y), len(x)), dtype=torch.bool)
        self._path = torch.zeros((len(y), len(x), n_samples), dtype=dtype)

    def path(self, wanted: torch.Tensor) -> torch.Tensor:
        """WEPL `(n_y, n_x, n_samples)` downstream along the rays, mm; only those `wanted` `(n_y, n_x)`, now or before, have theirs."""
        m_x, m_y = magnification(self._depth, self._sad)
        for new in (wanted & ~self._traced).nonzero().split(RAYS_AT_ONCE):
            j, i = new.unbind(1)
            bev = torch.stack((self.x[i, None] * m_x, self.y[j, None] * m_y, self._depth.expand(len(i), -1)), dim=2)
            self._path[j, i] = self._wepl_at(bev.reshape(-1, 3)).reshape(bev.shape[:2]).to(self._path)
            self._traced[j, i] = True
        return self._path


@dataclass(frozen=True)
class RayTables:
    """One beam in one scenario for the sub-spot kernel; rows as in `torchimpt.dose.rows`, voxels `(n,)` row-sorted.

    Attributes
    ----------
    order, first, left, cells, p, q, ratio, ratio_min
        As in `PairTables`.
    magnification
        `(n,)` `m_x`.
    plane
        `(n,)` the voxel's place along the rays' samples, counted from 0.
    optics
        `(n_layers, n)` `sigma_optics^2 - m_x^2 sigma_a^2`, mm^2.
    sigma
        `(n_components, n_layers)`: bound on `sigma_k / m_x`, mm.
    spread
        `(n_layers,)` `sigma_a^2`, mm^2.
    rays
        The lattice, with the scenario's range scale in its WEPL.
    layers
        The machine's tables in the kernel's dtype.
    """

    order: torch.Tensor
    first: float
    left: float
    cells: torch.Tensor
    p: torch.Tensor
    q: torch.Tensor
    ratio: torch.Tensor
    ratio_min: float
    magnification: torch.Tensor
    plane: torch.Tensor
    optics: torch.Tensor
    sigma: torch.Tensor
    spread: torch.Tensor
    rays: Rays
    layers: LayerTables

    @property
    def n_bytes(self) -> int:
        """Memory that the tables take."""
        tensors = (self.order, self.cells, self.p, self.q, self.ratio, self.magnification, self.plane, self.optics)
        return sum(t.numel() * t.element_size() for t in tensors)

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


def trace_rays(rows: BeamRows, layers: LayerTables, surroundings: Surroundings, dtype: torch.dtype) -> RayTables:
    """Tables of one beam in one scenario; arguments as in `torchimpt.dose.model.DoseModel.tabulate`."""
    beam, sad, shift = surroundings.beam, surroundings.sad, surroundings.shift
    place = ((rows.depth - layers.optics_start) / layers.optics_step).clamp(0, layers.optics_variance.shape[1] - 1)
    before = place.long().clamp_max(layers.optics_variance.shape[1] - 2)
    low, high = layers.optics_variance[:, before], layers.optics_variance[:, before + 1]
    in_air = low + (place - before) * (high - low)
    spread = 0.5 * (in_air / rows.magnification**2).amin(dim=1)
    optics = in_air - spread[:, None] * rows.magnification**2
    sigma = ((optics.amax(dim=1) + layers.variance.amax(dim=2)).sqrt()) / rows.magnification.min()
    pitch = PITCH * float((2 * spread.min()).sqrt())
    # rays as far beyond the voxels as a spot could be that reaches them
    margin = 4.0 * float(sigma.max())
    x, y = (torch.arange(float(c.min()) - margin, float(c.max()) + margin + pitch, pitch, dtype=torch.float64) for c in (rows.p, rows.q))
    top = float(rows.depth.max()) + DEPTH_STEP
    n_samples = math.ceil((top - float(rows.depth.min())) / DEPTH_STEP) + 2

    def wepl_at(bev: torch.Tensor) -> torch.Tensor:
        path = wepl(surroundings.rsp, surroundings.grid, beam, sad, from_bev(bev, beam, shift), shift)
        return surroundings.range_scale * path

    rays = Rays(x, y, top, n_samples, wepl_at, sad, dtype)
    p = rows.p.to(dtype)
    left, cells = row_cells(p, rows.row_start)
    return RayTables(
        order=rows.order, first=rows.first, left=left, cells=cells, p=p, q=rows.q.to(dtype),
        ratio=rows.ratio.to(dtype), ratio_min=float(rows.ratio.min()), magnification=rows.magnification.to(dtype),
        plane=((top - rows.depth) / DEPTH_STEP).to(dtype),
        optics=optics.to(dtype), sigma=sigma, spread=spread.to(dtype), rays=rays, layers=layers.to(dtype),
    )  # fmt: skip
