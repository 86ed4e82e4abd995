"""The pencil-beam formula on voxel-spot pairs, and its hand-derived partial derivatives.

Physics page, "Pencil-beam dose" and "Derivatives". For one Gaussian component of one spot at `(x, y)` in the isocentre plane,

    phi = A exp(-t),    t = c ((p - x)^2 + r (q - y)^2)
    dphi/dx = 2 c (p - x) phi,    dphi/dy = 2 c r (q - y) phi

where a voxel at BEV `(u, v)` is named by its projection from the virtual sources into the isocentre plane,
`p = u / m_x`, `q = v / m_y`, so that all spots see it at one place, and

    A = IDD(z) a(z) / (2 pi sigma^2),    c = m_x^2 / (2 sigma^2),    r = (m_y / m_x)^2.

With `(u - m_x x) = m_x (p - x)` this is `A exp(-((u - m_x x)^2 + (v - m_y y)^2) / (2 sigma^2))` and
`dphi/dx = phi m_x (u - m_x x) / sigma^2`, term by term. Pairs with `t >= t_max = cutoff^2 / 2` count as zero: the
gradient is exactly that of the truncated formula, and the cut-off moves with the spot.
Pure functions: no autograd machinery here, and none needed (torch can differentiate `pair_dose` too).
"""

from __future__ import annotations

import torch


def pair_dose(
    dx: torch.Tensor, dy: torch.Tensor, ratio: torch.Tensor, amplitude: torch.Tensor, falloff: torch.Tensor, t_max: float
) -> torch.Tensor:
    """`phi` for every pair, Gy per unit weight.

    Parameters
    ----------
    dx, dy
        `p - x` and `q - y`, mm, any broadcastable shape.
    ratio
        `(m_y / m_x)^2` of the voxel.
    amplitude
        `A`, Gy per 10^6 protons.
    falloff
        `c`, 1/mm^2.
    t_max
        Half the squared cut-off radius in sigmas.
    """
    t = falloff * (dx * dx + ratio * dy * dy)
    return torch.where(t < t_max, amplitude * torch.exp(-t), torch.zeros((), dtype=t.dtype, device=t.device))


def pair_partials(
    dx: torch.Tensor, dy: torch.Tensor, ratio: torch.Tensor, amplitude: torch.Tensor, falloff: torch.Tensor, t_max: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`(phi, dphi/dx, dphi/dy)` for every pair; arguments as in `pair_dose`."""
    phi = pair_dose(dx, dy, ratio, amplitude, falloff, t_max)
    slope = 2.0 * falloff * phi
    return phi, slope * dx, slope * ratio * dy
