"""The generic machine: formulas only, no file needed.

Depth dose by Bortfeld's analytic curve, lateral spread by multiple scattering in water, optics by a power law that falls as clinical
scanning nozzles do. No claim about any real machine.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from torchimpt.machine.curves import DepthCurve, ScaledCurves
from torchimpt.machine.machine import Machine
from torchimpt.machine.optics import Optics
from torchimpt.physics.bragg import bragg_curve, range_from_energy, range_straggling
from torchimpt.physics.scatter import lateral_variance

ENERGY_MIN, ENERGY_MAX, ENERGY_STEP = 70.0, 240.0, 5.0
"""Tabulated energies, MeV: what clinical accelerators deliver. Peaks within 41 mm of water from the skin need a range shifter."""

SAD = (2000.0, 2000.0)
"""Virtual sources, mm from the isocentre: the magnets of the common compact nozzles stand 1.9 to 2.6 m away."""

SAMPLES = 4000
"""Depth samples of a tabulated curve."""


def energy_spread(energy: torch.Tensor) -> torch.Tensor:
    """Standard deviation of the beam's energy, MeV: 0.8 % at 70 MeV falling linearly to 0.4 % at 230 MeV."""
    return energy * (0.975 - 0.0025 * energy) / 100.0


def sigma_in_air(energy: torch.Tensor) -> torch.Tensor:
    """Standard deviation of a spot at the isocentre in air, `6.5 (70 / E)^0.6` mm: 6.5 mm at 70 MeV, 3.2 mm at 230 MeV."""
    return 6.5 * (70.0 / energy) ** 0.6


def halo_fraction(depth: torch.Tensor, mean_range: float, straggling: float) -> torch.Tensor:
    """Share of the dose at a depth, mm, that nuclear secondaries and large-angle scatter carry into the wide Gaussian.

    `0.119 tanh((z / 143 mm)^1.11)`, falling off across the range: a fit to double-Gaussian fits of Monte Carlo doses in water (MCsquare,
    100 to 230 MeV), within 0.006 (standard deviation; worst 0.03, just before the peak).
    """
    return 0.119 * torch.tanh((depth / 143.0) ** 1.11) * 0.5 * torch.erfc((depth - mean_range) / (straggling * 2.0**0.5))


def halo_sigma(mean_range: float) -> float:
    """Standard deviation of the wide Gaussian, `8.6 mm + 0.056 R`, from the same Monte Carlo fits, within 1.7 mm (standard deviation)."""
    return 8.6 + 0.056 * mean_range


@cache
def generic(halo: bool = False) -> Machine:
    """The generic machine, 70 to 240 MeV, spot size in air the same at every distance.

    Parameters
    ----------
    halo
        Whether nuclear secondaries get a second, wide lateral Gaussian of their own.
    """
    energies = torch.arange(ENERGY_MIN, ENERGY_MAX + ENERGY_STEP / 2, ENERGY_STEP, dtype=torch.float64)
    fine = torch.arange(ENERGY_MIN, ENERGY_MAX + 0.5, dtype=torch.float64)
    optics = Optics(fine, 0.0, 1.0, sigma_in_air(fine)[:, None])
    name = "generic with halo" if halo else "generic"
    return Machine(name, SAD, ScaledCurves.of([_curve(float(energy), halo) for energy in energies]), optics)


def _curve(energy: float, halo: bool) -> DepthCurve:
    """Depth curves from the formulas, to seven sigmas of the range beyond it."""
    spread = float(energy_spread(torch.tensor(energy)))
    mean_range, straggling = float(range_from_energy(energy)), float(range_straggling(energy, spread))
    depth = torch.linspace(0.0, mean_range + 7.0 * straggling, SAMPLES, dtype=torch.float64)
    coarse = torch.linspace(0.0, mean_range, 401, dtype=torch.float64)
    variance = torch.from_numpy(np.interp(depth.numpy(), coarse.numpy(), lateral_variance(coarse, mean_range).numpy()))[None]
    fraction = torch.ones_like(variance)
    if halo:
        wide = halo_fraction(depth, mean_range, straggling)
        fraction = torch.stack((1.0 - wide, wide))
        variance = torch.cat((variance, torch.full_like(variance, halo_sigma(mean_range) ** 2)))
    return DepthCurve(energy, depth, bragg_curve(depth, energy, spread), variance, fraction)
