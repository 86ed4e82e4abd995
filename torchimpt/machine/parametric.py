"""Depth curves of one energy from a few parameters, with the derivatives that fits of them need.

Depth dose: a beam without straggling deposits a sum of powers of the residual range r, as in Bortfeld's curve (Med Phys 24:2024, 1997),
whose first two terms are those of stopping and of nuclear losses; straggling smears each by a Gaussian of width s, and a term that falls
with depth stands for secondaries that build up:

    idd(z) = sum_{k=0..3} c_k (s / L)^(a+k-1) S_{a+k}(x) - c_4 exp(-z / l) Phi(x),    x = (R - z) / s,    a = 1 / 1.77,
    S_p(x) = 1/sqrt(2 pi) int_0^inf t^(p-1) exp(-(t - x)^2 / 2) dt,    L = 100 mm,    l = 15 mm,

with Phi Gauss's integral. Since `S_p' = S_{p+1} - x S_p`, all derivatives are in closed form.

Width and halo, against t = z / R, with V the variance by multiple scattering in water (`torchimpt.physics.scatter`):

    core:   (b_0 + b_1 t) V(z)                      what the medium adds to the variance in air
    halo:   share (h_1 t + h_2 t^2 + h_3 t^3) Phi(x),    added variance w_0 + w_1 t + w_2 t^2

Beyond R both keep what they have there. Lengths in mm, depth dose in Gy mm^2 per 10^6 protons.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from scipy.special import ndtr

from torchimpt.machine.curves import DepthCurve
from torchimpt.physics.bragg import RANGE_POWER, smeared_power
from torchimpt.physics.scatter import lateral_variance

RANGE = ("range_mm", "spread_mm")
DOSE = ("dose_0", "dose_1", "dose_2", "dose_3", "build_up")
SCATTER = ("scatter", "scatter_slope")
SHARE = ("halo_1", "halo_2", "halo_3")
WIDE = ("wide_0", "wide_1", "wide_2")
"""Names of R and s, of the c, b, h and w."""

UNIT_LENGTH, BUILD_UP_LENGTH = 100.0, 15.0
"""L and l, mm. Secondaries build up over 10 to 20 mm in Monte Carlo depth doses; of 15 mm little of the fit depends."""

SAMPLES, BEYOND = 4000, 7.0
"""Depths of a curve, and how many s it goes beyond R."""


def depth_dose(depth: np.ndarray, mean_range: float, spread: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the coefficients c multiply, `(n, 5)`, at depths `(n,)`, and its derivatives with respect to R and s; see the module."""
    x = torch.from_numpy((mean_range - depth) / spread)
    a, zeta = 1.0 / RANGE_POWER, x.numpy()
    powers = [smeared_power(x, a + k).numpy() for k in range(5)]
    values, by_range, by_spread = (np.empty((len(depth), len(DOSE))) for _ in range(3))
    for k in range(4):
        q = a + k - 1.0
        scale, slope = (spread / UNIT_LENGTH) ** q, powers[k + 1] - zeta * powers[k]
        values[:, k] = scale * powers[k]
        by_range[:, k] = scale * slope / spread
        by_spread[:, k] = scale * (q * powers[k] - zeta * slope) / spread
    falling = np.exp(-depth / BUILD_UP_LENGTH)
    density = np.exp(-0.5 * zeta**2) / math.sqrt(2.0 * math.pi)
    values[:, 4] = -falling * ndtr(zeta)
    by_range[:, 4] = -falling * density / spread
    by_spread[:, 4] = falling * density * zeta / spread
    return values, by_range, by_spread


def scatter_basis(depth: np.ndarray, mean_range: float) -> np.ndarray:
    """What the b multiply, `(n, 2)`, mm^2."""
    z = depth.clip(0.0, mean_range)
    coarse = np.linspace(0.0, mean_range, 401)
    variance = np.interp(z, coarse, lateral_variance(torch.from_numpy(coarse), mean_range).numpy())
    return variance[:, None] * np.stack((np.ones_like(z), z / mean_range), axis=1)


def share_basis(depth: np.ndarray, mean_range: float, spread: float) -> np.ndarray:
    """What the h multiply, `(n, 3)`."""
    t = depth.clip(0.0, mean_range) / mean_range
    return np.stack((t, t**2, t**3), axis=1) * ndtr((mean_range - depth) / spread)[:, None]


def wide_basis(depth: np.ndarray, mean_range: float) -> np.ndarray:
    """What the w multiply, `(n, 3)`."""
    t = depth.clip(0.0, mean_range) / mean_range
    return np.stack((np.ones_like(t), t, t**2), axis=1)


def depth_curve(energy: float, row: Mapping[str, float]) -> DepthCurve:
    """The curves of one energy, MeV, from its parameters by name; one Gaussian where there are none of a halo.

    Where a fit makes a dose, a share or a variance negative it is zero.
    """
    mean_range, spread = (row[name] for name in RANGE)
    depth = np.linspace(0.0, mean_range + BEYOND * spread, SAMPLES)

    def of(names: tuple[str, ...], basis: np.ndarray) -> np.ndarray:
        return (basis @ np.array([row[name] for name in names])).clip(0.0)

    dose = of(DOSE, depth_dose(depth, mean_range, spread)[0])
    variance = of(SCATTER, scatter_basis(depth, mean_range))[None]
    fraction = np.ones_like(variance)
    if SHARE[0] in row:
        share = of(SHARE, share_basis(depth, mean_range, spread)).clip(0.0, 1.0)
        fraction = np.stack((1.0 - share, share))
        variance = np.concatenate((variance, of(WIDE, wide_basis(depth, mean_range))[None]))
    return DepthCurve(energy, *map(torch.from_numpy, (depth, dose, variance, fraction)))
