"""A machine as an MCsquare beam data library.

A `Machine` has sigma in air and depth doses in water instead of what a library says (`torchimpt.machine.bdl`), so all of it is derived
here, and approximate: s, s' and rho along x and y by least squares from sigma^2 in air, the mean energy from the range, the spread from the
distal fall-off. The nuclear halo is the simulation's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import least_squares

from torchimpt.constants import AIR_RSP
from torchimpt.machine import Machine
from torchimpt.machine.bdl import BeamDataLibrary
from torchimpt.machine.optics import drift
from torchimpt.physics.bragg import crossing

RANGE_FIT = (1.54823e-3, -1.450362e-2, 6.0074441e-1, 2.13947605)
"""`ln E = sum_i c_i (ln R80)^(3-i)`, MeV and mm: MCsquare's own ranges in water, 70 to 230 MeV in 10 MeV steps, within 0.015 MeV."""

FALL_OFF = 1.318
"""Distance from the distal 80 % to the distal 20 % over the standard deviation of the range, of Bortfeld's curve at 70 to 230 MeV."""

STRAGGLING, STRAGGLING_POWER = 0.130, 0.935
"""Range straggling of a beam without energy spread, `0.130 (R / 10 mm)^0.935` mm: Bortfeld's (Med Phys 24:2024, 1997, Eq. 18) with 8 %
more, as MCsquare's depth doses of known spread have it. The spread found back is then within 0.02 % of the energy, 0.05 % at 70 MeV."""

LEAST_DIVERGENCE = 2e-5
"""rad: MCsquare's sampling divides by zero without any; a spot of 3 mm grows by 0.001 mm in 3 m."""

LEAST_CORRELATION, LEAST_PRODUCT = 1e-3, 2e-6
"""What a correlation, and its product with the divergence in rad, must be at least for the same sampling to hold its digits: sigma^2
changes by less than 0.1 % of itself over 400 mm."""

MOST_CORRELATION = 0.99
"""A phase space that is no line."""

APART = 0.01
"""MeV between rows: MCsquare interpolates in single precision, and crashes where two rows are the same to it."""

PLANES = 101
"""Distances that the phase space is fitted to."""


@dataclass(frozen=True)
class BeamData:
    """A beam data library.

    Attributes
    ----------
    text
        The file.
    nozzle
        The plane where protons start, mm upstream of the isocentre.
    misfit
        Largest difference between sigma in air of phase space and machine, mm, of any energy and distance.
    """

    text: str
    nozzle: float
    misfit: float


def mean_energy(r80: np.ndarray) -> np.ndarray:
    """Energy, MeV, with which MCsquare's protons have the range `r80` in water, mm; shape as given."""
    return np.exp(np.polyval(RANGE_FIT, np.log(r80)))


def energy_spread(r80: np.ndarray, fall_off: np.ndarray) -> np.ndarray:
    """Standard deviation of the energy, MeV, behind a distal fall-off from 80 to 20 % in water; shape as given.

        sigma_E = (dE/dR) sqrt((F / 1.318)^2 - sigma_mono^2)

    Zero where the fall-off is as sharp as straggling alone makes it, or sharper.
    """
    slope = mean_energy(r80) * np.polyval(np.polyder(RANGE_FIT), np.log(r80)) / r80
    mono = STRAGGLING * (r80 / 10.0) ** STRAGGLING_POWER
    return slope * np.sqrt(np.maximum((fall_off / FALL_OFF) ** 2 - mono**2, 0.0))


def phase_space(variance: np.ndarray, downstream: np.ndarray) -> tuple[float, float, float]:
    """`s` (mm), `s'` (rad) and `rho` whose `sigma^2(d)` is nearest to `variance` `(n,)`, mm^2, at `downstream` `(n,)`, mm."""
    length = float(np.abs(downstream).max())
    d = downstream / length

    def parts(p: np.ndarray) -> np.ndarray:
        return drift(p[0], p[1], p[2], d) - variance

    curve = np.polyfit(d, variance, 2)
    least = LEAST_DIVERGENCE * length
    size, grown = np.sqrt(max(curve[2], 1e-2)), max(np.sqrt(max(curve[0], 0.0)), least * 1.01)
    start = (size, grown, np.clip(curve[1] / (2.0 * size * grown), -0.9, 0.9))
    fit = least_squares(parts, start, bounds=([1e-2, least, -MOST_CORRELATION], [np.inf, np.inf, MOST_CORRELATION]), xtol=1e-12, ftol=1e-12)
    size, divergence, rho = fit.x[0], fit.x[1] / length, fit.x[2]
    enough = max(LEAST_CORRELATION, LEAST_PRODUCT / divergence)
    return float(size), float(divergence), float(np.copysign(max(abs(rho), enough), rho))


def _apart(energies: Sequence[float]) -> list[float]:
    """The energies in ascending order, without those that lie within `APART` of an earlier one."""
    kept: list[float] = []
    for energy in energies:
        if all(abs(energy - other) >= APART for other in kept):
            kept.append(energy)
    return sorted(kept)


def beam_data(
    machine: Machine, energies: Sequence[float], low: float, nozzle: float, shifters: Mapping[str, float] | None = None
) -> BeamData:
    """A beam data library of these nominal energies and of those that the machine's curves are tabulated at.

    Parameters
    ----------
    machine
        What is described.
    energies
        Of the plan's layers, MeV: rows of their own, so that MCsquare, which interpolates, finds protons per MU exactly. Of energies that
        are nearly the same the first has the row.
    low, nozzle
        The phase space starts at `Zg = nozzle` and is fitted from there down to `Zg = low`, mm.
    shifters
        Water-equivalent thicknesses, mm, of range shifters of Lexan, by the names that the plan has for them.
    """
    rows = _apart([*sorted(map(float, energies)), *machine.curves.energy.tolist()])
    layers = machine.layers(rows)
    depth = layers.depth_step[:, None] * torch.arange(layers.idd.shape[1], dtype=torch.float64)
    distal = np.array([crossing(z, dose, 0.2, "distal") for z, dose in zip(depth, layers.idd, strict=True)])
    r80 = layers.r80.numpy()
    fall_off = distal - r80
    if machine.air_from is not None:  # what the air up to the nozzle has taken off
        r80 = r80 - AIR_RSP * (machine.air_from - nozzle)
    nominal, count = np.array(rows), len(rows)
    table = {
        "nominal": nominal, "real": mean_energy(r80), "protons": 1e6 * machine.protons_per_mu(rows).numpy(),
        # in percent of the nominal energy
        "spread": 100.0 * energy_spread(r80, fall_off) / nominal, "share": np.ones(count), "wide_share": np.zeros(count),
    }  # fmt: skip
    planes = layers.optics_start + layers.optics_step * np.arange(layers.optics_variance.shape[1])
    height, misfit = np.linspace(nozzle, low, PLANES), 0.0
    along_x = layers.optics_variance.numpy()
    along_y = along_x if layers.optics_variance_y is None else layers.optics_variance_y.numpy()
    for axis, known in (("x", along_x), ("y", along_y)):
        variance = np.stack([np.interp(height, planes, row) for row in known])
        fit = np.array([phase_space(row, nozzle - height) for row in variance])
        found = drift(fit[:, [0]], fit[:, [1]], fit[:, [2]], nozzle - height)
        misfit = max(misfit, float(np.abs(np.sqrt(found) - np.sqrt(variance)).max()))
        for i, part in enumerate(("sigma", "divergence", "correlation")):
            # what has no share has a shape all the same
            table[f"{part}_{axis}"] = table[f"wide_{part}_{axis}"] = fit[:, i]
    if count == 1:  # MCsquare interpolates between two rows, and needs them
        table = {name: np.repeat(column, 2) for name, column in table.items()}
        table["nominal"][1] += 1.0
    library = BeamDataLibrary(nozzle, *machine.sad, table, dict(shifters or {}))
    return BeamData(library.text("Beam data library, derived by torchimpt"), nozzle, misfit)
