"""The pencil-beam formula on voxel-spot pairs, and its hand-derived partial derivatives.

Physics page, "Pencil-beam dose" and "Derivatives". For one Gaussian component of one spot at `(x, y)` in the isocentre plane,

    phi = A q(t),    t = f ((p - x)^2 + r (q - y)^2)
    dphi/dx = -2 f (p - x) A q'(t),    dphi/dy = -2 f r (q - y) A q'(t)

where a voxel at BEV `(u, v)` is named by its projection from the virtual sources into the isocentre plane,
`p = u / m_x`, `q = v / m_y`, so that all spots see it at one place, and

    A = IDD(z) a(z) / (2 pi sigma_x sigma_y),    f = m_x^2 / (2 sigma_x^2),    r = (m_y sigma_x / (m_x sigma_y))^2.

With `u - m_x x = m_x (p - x)` and `v - m_y y = m_y (q - y)` the exponential `A exp(-t)` is that of an ellipse along the scan directions,
`A exp(-(u - m_x x)^2 / (2 sigma_x^2) - (v - m_y y)^2 / (2 sigma_y^2))`, term by term. The ellipse is all in `r`, which for round spots is
the same in every layer and component. The exponential's place is taken by `q` (`torchimpt.dose.cutoff`), which is zero from the cut-off
on and continuous there: so is the dose as a spot moves, and its gradient is that of the very formula.
Pure functions: no autograd machinery here, and none needed (torch can differentiate `pair_dose` too).
"""

from __future__ import annotations

import torch

from torchimpt.dose.cutoff import Cut


def pair_dose(
    dx: torch.Tensor, dy: torch.Tensor, ratio: torch.Tensor, amplitude: torch.Tensor, falloff: torch.Tensor, cut: Cut
) -> torch.Tensor:
    """`phi` for every pair, Gy per unit weight.

    Parameters
    ----------
    dx, dy
        `p - x` and `q - y`, mm, any broadcastable shape.
    ratio
        `r` of the voxel, and of the layer and the component where spots are not round.
    amplitude
        `A`, Gy per 10^6 protons.
    falloff
        `f`, 1/mm^2.
    cut
        The constants of `q`.
    """
    t = falloff * (dx * dx + ratio * dy * dy)
    return cut.gain * _within(t, cut, amplitude * (torch.exp(-t) - cut.edge))


def pair_partials(
    dx: torch.Tensor, dy: torch.Tensor, ratio: torch.Tensor, amplitude: torch.Tensor, falloff: torch.Tensor, cut: Cut
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`(phi, dphi/dx, dphi/dy)` for every pair; arguments as in `pair_dose`."""
    t = falloff * (dx * dx + ratio * dy * dy)
    e = torch.exp(-t)
    phi = cut.gain * _within(t, cut, amplitude * (e - cut.edge))
    slope = 2.0 * cut.gain * falloff * _within(t, cut, amplitude * e)
    return phi, slope * dx, slope * ratio * dy


def _within(t: torch.Tensor, cut: Cut, value: torch.Tensor) -> torch.Tensor:
    return torch.where(t < cut.t_max, value, torch.zeros((), dtype=t.dtype, device=t.device))
