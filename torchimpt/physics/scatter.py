"""Multiple Coulomb scattering in water: the lateral variance that the medium adds to a proton pencil beam, and that a plate before it adds.

Protons of mean range R have the residual range `R - u` at depth u, and with it the energy of `bragg.energy_from_range`. The
scattering power T(u), the growth of the projected angle's variance per mm, gives Fermi and Eyges' lateral variance
`sigma^2(z) = int_0^z (z - u)^2 T(u) du`. T is the differential Moliere formula (B. Gottschalk, Med. Phys. 37:352, 2010), the local form of
the theory that Highland's formula fits.

A plate of water-equivalent thickness t before the patient scatters by the moments `A_n = int_0^t (t - u)^n T(u) du`: in a plane that lies D
behind its downstream face its protons have the variance `int_0^t (t - u + D)^2 T(u) du = A_2 + 2 D A_1 + D^2 A_0` (Fermi and Eyges, as
Gottschalk 2010 has them), whatever lies between, as far as that does not scatter itself.
"""

from __future__ import annotations

import numpy as np
import torch

from torchimpt.constants import PROTON_MASS_MEV
from torchimpt.physics.bragg import energy_from_range

WATER_SCATTERING_LENGTH_MM = 468.8
"""Scattering length of water, mm (Gottschalk 2010, 46.88 g/cm^2)."""

LEXAN_STOPPING = 1.143
"""Relative stopping power of Lexan (polycarbonate), of which range shifters are made: 1.20 g/cm^3, 6.943 over 7.289 MeV cm^2/g at 100 MeV
(PSTAR). 30 mm of it are 34.3 mm of water."""

LEXAN_SCATTERING = 1.20 / LEXAN_STOPPING * 46.88 / 55.05
"""Scattering power of Lexan over that of water, per mm of water-equivalent thickness: its scattering length is 55.05 g/cm^2. Other plastics
of range shifters differ by a few per cent."""

SCATTERING_ENERGY_MEV = 15.0
"""E_s of the differential Moliere formula, MeV (Gottschalk 2010, Eq. 46)."""

_NODES = 48
"""Gauss-Legendre nodes over the depth: more of them change no variance by more than 1e-4 of itself (the test measures it)."""


def momentum_velocity(energy: torch.Tensor) -> torch.Tensor:
    """Momentum times velocity of a proton, `pv = E (E + 2 m) / (E + m)`, MeV, for the kinetic energy E, MeV."""
    return energy * (energy + 2.0 * PROTON_MASS_MEV) / (energy + PROTON_MASS_MEV)


def scattering_power(energy: torch.Tensor, initial_energy: torch.Tensor) -> torch.Tensor:
    """Differential Moliere scattering power of water (Gottschalk 2010, Eq. 46 and 47).

    `T = f (E_s / pv)^2 / X_s`, `f = 0.5244 + 0.1975 lg(1 - (pv / p1v1)^2) + 0.2320 lg(pv) - 0.0098 lg(pv) lg(1 - (pv / p1v1)^2)`,
    pv in MeV here and p1v1 at the surface. The factor f grows as the protons slow down: single scattering counts for more in thin layers.

    Parameters
    ----------
    energy
        Kinetic energy at the depth, MeV, any shape, at most `initial_energy`.
    initial_energy
        Kinetic energy at the surface, MeV, broadcast against `energy`.

    Returns
    -------
    rad^2 per mm. At the surface itself, where f falls without bound, it is cut off at zero.
    """
    pv = momentum_velocity(energy)
    slowing = torch.log10((1.0 - (pv / momentum_velocity(initial_energy)) ** 2).clamp_min(1e-12))
    log_pv = torch.log10(pv)
    f = 0.5244 + 0.1975 * slowing + 0.2320 * log_pv - 0.0098 * log_pv * slowing
    return f.clamp_min(0.0) * (SCATTERING_ENERGY_MEV / pv) ** 2 / WATER_SCATTERING_LENGTH_MM


def lateral_variance(depth: torch.Tensor, mean_range: float, nodes: int = _NODES) -> torch.Tensor:
    """Lateral variance by multiple scattering in water, `int_0^z (z - u)^2 T(u) du`.

    Parameters
    ----------
    depth
        Depths `(n,)`, mm. Beyond the range the variance keeps its value there: no proton is left that could add to it.
    mean_range
        Mean range of the protons at the surface, mm.
    nodes
        Gauss-Legendre nodes of the quadrature.

    Returns
    -------
    `(n,)`, mm^2, per lateral direction: the standard deviation at the end of the range is about 2.2 % of it.
    """
    return scattering_moment(2, depth, mean_range, nodes)


def scattering_moment(order: int, depth: torch.Tensor, mean_range: float, nodes: int = _NODES) -> torch.Tensor:
    """Moment of the scattering power of water, `A_n(z) = int_0^z (z - u)^n T(u) du`, n = `order`; else as `lateral_variance`, which is A_2.

    A_0 is the variance of the projected angle at the depth, rad^2, A_1 its covariance with the position, mm.
    """
    points, weights = np.polynomial.legendre.leggauss(nodes)
    fraction = torch.from_numpy((points + 1.0) / 2.0)
    weight = torch.from_numpy(weights / 2.0) * (1.0 - fraction) ** order
    z = depth.to(torch.float64).clamp(0.0, mean_range)
    energy = energy_from_range(mean_range - z[:, None] * fraction)
    return z ** (order + 1) * (scattering_power(energy, energy_from_range(mean_range)) @ weight)
