"""The generic machine: formulas only, no file needed.

Depth dose by Bortfeld's analytic curve, lateral spread by multiple scattering in water, optics by a power law that falls as clinical
scanning nozzles do. No claim about any real machine.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from torchimpt.geometry import RangeShifter
from torchimpt.machine.curves import DepthCurve, ScaledCurves
from torchimpt.machine.machine import Machine
from torchimpt.machine.optics import Optics
from torchimpt.physics.bragg import bragg_curve, range_from_energy, range_straggling
from torchimpt.physics.nuclear import halo_fraction, halo_sigma
from torchimpt.physics.scatter import lateral_variance

ENERGY_MIN, ENERGY_MAX, ENERGY_STEP = 70.0, 240.0, 5.0
"""Tabulated energies, MeV: what clinical accelerators deliver. Peaks within 41 mm of water from the skin need a range shifter."""

SHIFTER = RangeShifter(45.0, rule="layers")
"""Its range shifter: 45 mm of water (clinics have 20 to 75), a little more than the depth of the shallowest peak, so that peaks reach the
skin in every scenario; no thicker, because scatter in it widens the spots. It moves with the snout; layers that need it go through it."""

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
    return Machine(name, SAD, ScaledCurves.of([_curve(float(energy), halo) for energy in energies]), optics, shifter=SHIFTER)


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
