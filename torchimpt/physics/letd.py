"""Dose-averaged linear energy transfer (LETd) of a proton beam in water against depth: all protons, primary and secondary.

    LETd(z) = (P2 + S2) / (P1 + S1),    P_n = int Phi(r) S(r)^n g(r - (R - z)) dr

S is the electronic stopping power of water at a residual range (a power law would diverge where it matters), g the Gaussian of the range
straggling, Phi the fluence of the primaries that nuclear reactions leave, `1 + beta r` (T. Bortfeld, Med. Phys. 24:2024, 1997), less what
is scattered by hydrogen. Straggling as a Gaussian spectrum of residual ranges is the model of J. J. Wilkens and U. Oelfke (Med. Phys.
30:806, 2003); unlike theirs the average is over all protons, as Monte Carlo codes score it. S1 and S2 are dose, and dose times LET, of
the protons that reactions set free upstream, each followed straight on, slowing down, until it stops:

- two protons of every elastic collision with hydrogen: isotropic in the centre of mass, so that the share of the energy T / E is even
  between 0 and 1, at the angle `cos^2 = T / E` (kinematics of equal masses); cross-section of N. Metropolis et al., Phys. Rev. 110:185,
  1958;
- the fast protons of a reaction with oxygen, to which 57 % of its energy goes (S. M. Seltzer, NISTIR 5221, 1993, 150 MeV): knocked on by
  collisions of the same kinematics, one or, as often (`TWICE`), two after each other, which share the energy again: `-ln(T / E)`;
- slow protons that the nucleus evaporates, `EVAPORATED` a reaction of `EVAPORATION_MEV`, which stop where they are set free.

They make up to a tenth of the dose, but nearly half of LETd at the entrance of a beam of 160 MeV, which they build up over the first
centimetres. Depths and ranges are mm of water, LET keV/um (the same as MeV/mm). Everything is float64, for building tables.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from scipy.special import erfc

from torchimpt.constants import PROTON_MASS_MEV
from torchimpt.physics.bragg import FLUENCE_SLOPE, crossing

STOPPING_POWER = (
    (0.001, 13.38), (0.002, 18.92), (0.005, 29.91), (0.01, 42.29), (0.02, 56.74), (0.03, 66.05), (0.05, 77.40), (0.08, 82.41), (0.1, 81.46),
    (0.15, 73.60), (0.2, 66.13), (0.3, 55.04), (0.4, 47.19), (0.5, 41.32), (0.6, 36.80), (0.8, 30.39), (1.0, 26.08), (1.5, 19.57),
    (2.0, 15.86), (3.0, 11.72), (4.0, 9.404), (5.0, 7.911), (6.0, 6.858), (8.0, 5.460), (10.0, 4.567), (15.0, 3.292), (20.0, 2.607),
    (30.0, 1.876), (40.0, 1.488), (50.0, 1.245), (60.0, 1.078), (80.0, 0.8625), (100.0, 0.7289), (125.0, 0.6192), (150.0, 0.5445),
    (175.0, 0.4903), (200.0, 0.4492), (225.0, 0.4170), (250.0, 0.3911), (300.0, 0.3520), (350.0, 0.3230),
)  # fmt: skip
"""Energy, MeV, and electronic stopping power of liquid water, keV/um: PSTAR (NIST; ICRU Report 49, 1993),
below 0.2 MeV that report's fit."""

TO_PROTONS = 0.57
"""Share of a reaction's energy that leaves the oxygen nucleus with protons (Seltzer 1993, at 150 MeV)."""

TWICE = 0.5
"""Share of the reactions with a second collision: a nucleon's free path in the nucleus, some 3 fm, is about the nucleus's radius."""

EVAPORATED, EVAPORATION_MEV = 0.3, 5.0
"""Slow protons a reaction, and their energy: spectra of protons from oxygen peak at a few MeV (ICRU Report 63, 2000). An estimate, as
`TWICE` is, settled by LETd in matRad's generic base data: from 1 cm depth to 90 % of the range 0.13 keV/um below it to 0.11 above at 135 to
217 MeV, near the end 5 % below to 10 % above. Without both, LETd of 160 MeV would be lower by a fifth at 2 cm, 11 % at 10 cm and the same
at the peak."""

HYDROGEN_PER_MM_AND_MB = 6.685e-6
"""Hydrogen nuclei of water, 6.685e22 per cm^3, as a probability a mm and mb of cross-section."""

DISTAL_80_20 = 1.319
"""Distance from the distal 80 % to the distal 20 % of a Bragg curve, in standard deviations of the range: that of Bortfeld's curve, within
0.2 % from 70 to 240 MeV. So a depth dose tells its own straggling, energy spread included."""

_WIDE = 6.0
"""From so many standard deviations before the end of the range on, no proton of the spectrum has stopped, and few nodes do."""


@cache
def _water() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Energies, MeV, ranges of protons that slow down continuously, mm, and the integral of the scattering by hydrogen over the range."""
    energy = np.concatenate(([0.0], np.geomspace(1e-3, 350.0, 6000)))
    power = stopping_power(energy)
    middle = np.sqrt(np.maximum(energy[1:], 1e-3) * np.maximum(energy[:-1], 1e-3))
    step = np.diff(energy) * (1.0 / power[1:] + 1.0 / power[:-1]) / 2.0
    return energy, np.concatenate(([0.0], np.cumsum(step))), np.concatenate(([0.0], np.cumsum(step * _hydrogen(middle))))


def stopping_power(energy: np.ndarray) -> np.ndarray:
    """Electronic stopping power of water, keV/um, at energies in MeV of any shape; linear in log-log between `STOPPING_POWER`."""
    known, power = np.log(np.array(STOPPING_POWER).T)
    return np.exp(np.interp(np.log(np.maximum(energy, 1e-3)), known, power))


def _hydrogen(energy: np.ndarray) -> np.ndarray:
    """Probability of an elastic collision with hydrogen, 1/mm (Metropolis et al. 1958); below 10 MeV that of 10 MeV."""
    gamma = 1.0 + np.maximum(energy, 10.0) / PROTON_MASS_MEV
    beta = np.sqrt(1.0 - 1.0 / gamma**2)
    return HYDROGEN_PER_MM_AND_MB * (10.63 / beta**2 - 29.92 / beta + 42.9)


def _range(energy: np.ndarray) -> np.ndarray:
    return np.interp(energy, _water()[0], _water()[1])


def _energy(residual: np.ndarray) -> np.ndarray:
    return np.interp(residual, _water()[1], _water()[0])


def straggling(depth: torch.Tensor, dose: torch.Tensor) -> float:
    """Standard deviation of the range, mm, that a sampled depth dose `(n,)` shows by its distal fall-off."""
    return (crossing(depth, dose, 0.2, "distal") - crossing(depth, dose, 0.8, "distal")) / DISTAL_80_20


def letd_curve(depth: torch.Tensor, mean_range: float, sigma: float) -> torch.Tensor:
    """LETd of all protons at depths in water; see the module.

    Parameters
    ----------
    depth
        `(n,)`, mm of water from the surface, ascending from 0.
    mean_range
        Mean range R, mm of water (the distal 80 % of the depth dose).
    sigma
        Standard deviation of the range, mm, energy spread included.

    Returns
    -------
    keV/um `(n,)`, float64; beyond the range that of the last protons, where next to no dose is left.
    """
    z = depth.double().numpy()
    # nodes close together where the curve bends: behind the surface and around the end of the range
    before, behind = np.linspace(0.0, 1.0, 33), np.linspace(-12.0, 8.0, 81)
    edge = max(mean_range - 12.0 * sigma, 0.0)
    nodes = np.unique(np.concatenate((edge * before**2, (mean_range + sigma * behind).clip(0.0))))
    dose, weighted = (p + s for p, s in zip(_primary(nodes, mean_range, sigma), _secondary(nodes, mean_range, sigma), strict=True))
    return torch.from_numpy(np.interp(z, nodes, weighted / dose))


def _fluence(residual: np.ndarray, mean_range: float) -> np.ndarray:
    """Primaries at a residual range, those at the surface being `1 + beta R`."""
    scattered = np.interp([mean_range], _water()[1], _water()[2]) - np.interp(residual, _water()[1], _water()[2])
    return (1.0 + FLUENCE_SLOPE * residual) * np.exp(-scattered)


def _primary(z: np.ndarray, mean_range: float, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """P1 and P2 at depths."""
    first, second = np.zeros_like(z), np.zeros_like(z)
    far = mean_range - z > _WIDE * sigma
    t, w = np.polynomial.hermite_e.hermegauss(12)
    r = (mean_range - z[far])[:, None] + sigma * t
    power, share = stopping_power(_energy(r)), _fluence(r, mean_range) * w / w.sum()
    first[far], second[far] = (share * power).sum(1), (share * power**2).sum(1)
    # near the end over the energy: S dr = dE has no peak
    top = float(_energy(np.array(2.0 * _WIDE * sigma)))
    edges = top * np.linspace(0.0, 1.0, 601) ** 2
    energy, de = (edges[1:] + edges[:-1]) / 2.0, np.diff(edges)
    r = _range(energy)
    spectrum = np.exp(-0.5 * ((r - (mean_range - z[~far])[:, None]) / sigma) ** 2) / (sigma * np.sqrt(2.0 * np.pi))
    share = spectrum * _fluence(r, mean_range) * de
    first[~far], second[~far] = share.sum(1), (share * stopping_power(energy)).sum(1)
    tiny = np.finfo(float).tiny
    # far beyond the range nothing is left: the ratio of the last depth that has any is held
    some = first > 1e3 * tiny
    last = int(some.nonzero()[0][-1])
    second[~some], first[~some] = tiny * second[last] / first[last], tiny
    return first, second


def _secondary(z: np.ndarray, mean_range: float, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """S1 and S2 at depths: sums over the way s from where a proton is set free, and over its energy T there."""
    x, w = np.polynomial.legendre.leggauss(32)
    x, w = (x + 1.0) / 2.0, w / 2.0
    # nodes crowd where integrands are steep: short ways, and protons near their end
    way = z[:, None] * x**3
    residual = mean_range - z[:, None] + way
    made = residual > 0
    energy = _energy(np.maximum(residual, 1e-6))
    nuclear = np.where(made, FLUENCE_SLOPE, 0.0)
    elastic = np.where(made, _hydrogen(energy) * _fluence(np.maximum(residual, 0.0), mean_range), 0.0)
    rate = 2.0 / energy * 3.0 * z[:, None] * x**2 * w
    # the slowest that come here: range times cosine, R(T) sqrt(T / E), is the way
    least = _slowest(way, energy)
    span = np.maximum(energy - least, 0.0)[..., None]
    start = least[..., None] + span * x**2
    cosine = np.sqrt(start / energy[..., None])
    left = _energy(np.maximum(_range(start) - way[..., None] / cosine, 0.0))
    power = np.where(left > 0, stopping_power(left), 0.0)
    split = (1.0 - TWICE) - 2.0 * TWICE * np.log(np.maximum(start / energy[..., None], 1e-12))
    spectrum = TO_PROTONS * nuclear[..., None] * split + elastic[..., None]
    share = rate[..., None] * spectrum * power / cosine * span * 2.0 * x * w
    first, second = share.sum((1, 2)), (share * power).sum((1, 2))
    slow = EVAPORATED * FLUENCE_SLOPE * 0.5 * erfc((z - mean_range) / (sigma * 2.0**0.5))
    mean_power = float((stopping_power(EVAPORATION_MEV * x) * w).sum())
    return first + slow * EVAPORATION_MEV, second + slow * EVAPORATION_MEV * mean_power


def _slowest(way: np.ndarray, energy: np.ndarray) -> np.ndarray:
    """Least energy T with `R(T) sqrt(T / E) >= way`; E where none has."""
    known, ranges, _ = _water()
    return np.minimum(np.interp(way * np.sqrt(energy), ranges * np.sqrt(known), known), energy)
