"""A machine from a folder of CSV tables, as a Monte Carlo commissioning leaves them. Columns that are read:

- `beam_model.csv`: `energy_MeV, sigma_x_mm, sigma_y_mm, smx_to_isocentre_mm, smy_to_isocentre_mm`, and where they are there
  `divergence_x_rad, divergence_y_rad, correlation_x, correlation_y`;
- `idd.csv`: `energy_MeV, depth_mm, idd_Gy_mm2_per_1e6_protons`, means over depth bins, given at the bins' middles from the surface on;
- `sigma.csv`: `energy_MeV, depth_mm, sigma1_mm, sigma2_mm, halo_fraction`, total spread in water along x, that in air included;
- `hu_to_rsp.csv`, which may be missing: `hu`, and `rsp` or `rsp_100MeV`.

The energies are those of `idd.csv`; `sigma.csv` must have the same, and `beam_model.csv` must enclose them.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from scipy.interpolate import make_interp_spline

from torchimpt.checks import InputError
from torchimpt.columns import read_columns
from torchimpt.constants import IDD_GY_MM2_PER_MEV_CM2_G
from torchimpt.files import reader
from torchimpt.hu_table import read_hu_table
from torchimpt.machine.curves import DepthCurve, ScaledCurves
from torchimpt.machine.machine import Machine
from torchimpt.machine.optics import Optics, drift
from torchimpt.physics.bragg import peak_position, r80

OPTICS_REACH, OPTICS_STEP = 500.0, 25.0
"""Optics are tabulated to this distance from the isocentre, in these steps, mm. A divergence of 5 mrad bends by 2e-3 mm^2 within a step."""

DEPTH_STEP = 0.05
"""Step of the depth curves made from the bins, mm."""

KERNEL = (1.0, 8.0)
"""Least and greatest width of the kernel that smooths the lateral tables, mm (Gaussian standard deviation). Where rows lie further apart
than 2 mm the least is half the gap: a narrower kernel sees one row, and has no slope."""

LEAST_ROWS = 4
"""Rows of lateral tables that must lie within the range of an energy."""

LEAST_REACH = 0.5
"""Lateral tables reach at least this share of the range: what lies beyond is held, and in centimetres they would end at a tenth."""

LEAST_SIZE = 0.5
"""Spots in water are wider than in air, along x; a table of half that width is in another unit, or leaves the spread in air out."""

FARTHEST = 1000.0
"""Greatest depth, mm: twice what protons of 330 MeV reach. Curves of `DEPTH_STEP` to there take a megabyte, and none more."""

WIDEST = 500.0
"""Greatest sigma, mm. Fits of a halo without dose give 100 mm and more; these mean nothing and do no harm."""

DEPOSITED = (0.5, 1.5)
"""Energy under a depth dose over that of its protons. In an endless plane it is 0.92 to 0.98, in a chamber of 4 cm radius up to a fifth
less; further off the unit is another one."""

GHOSTS = 3
"""Bins by which a depth dose is continued upstream of the surface, for the spline only."""

BEYOND = 3.0
"""From this far beyond R80 on the lateral tables hold their last value, mm: too few protons are left to fit a width to."""


@reader("machine")
def read_csv_machine(path: str | Path) -> Machine:
    """Read a machine from a folder of CSV tables (see the module).

    Parameters
    ----------
    path
        The folder.

    Returns
    -------
    Machine with two lateral Gaussians, core and halo. The spread in air at `Zg` is the drift from the isocentre plane,
    `sigma^2 - 2 rho sigma theta Zg + theta^2 Zg^2`, along x and along y. Its value at the isocentre along x is taken off the spread in
    water, in squares; where statistics leave less than that, the medium adds nothing. The machine has the folder's HU table when there
    is one.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"no folder {folder}; a CSV machine is a folder with beam_model.csv, idd.csv and sigma.csv")
    optics, sad = _read_optics(folder / "beam_model.csv")
    idd = _by_energy(folder / "idd.csv", ["idd_Gy_mm2_per_1e6_protons"], 8)
    sigma = _by_energy(folder / "sigma.csv", ["sigma1_mm", "sigma2_mm", "halo_fraction"], LEAST_ROWS)
    if set(idd) != set(sigma):
        odd = ", ".join(f"{energy:g}" for energy in sorted(set(idd) ^ set(sigma)))
        raise InputError(f"{folder}: idd.csv and sigma.csv must have the same energies, but only one of them has {odd} MeV")
    low, high = float(optics.energy[0]), float(optics.energy[-1])
    if min(idd) < low or max(idd) > high:
        raise InputError(f"{folder}: beam_model.csv spans {low:g} to {high:g} MeV, but idd.csv {min(idd):g} to {max(idd):g} MeV; add rows")
    curves = [_curve(folder, energy, idd[energy], sigma[energy], optics) for energy in idd]
    table = folder / "hu_to_rsp.csv"
    return Machine(folder.resolve().name, sad, ScaledCurves.of(curves), optics, read_hu_table(table) if table.is_file() else None)


def _by_energy(path: Path, names: list[str], least: int) -> dict[float, dict[str, np.ndarray]]:
    """Columns by energy, ascending; energies are positive, and each has `least` depths or more, which ascend from the surface on."""
    columns = {name: column.numpy() for name, column in read_columns(path, ["energy_MeV", "depth_mm", *names]).items()}
    tables = {}
    for energy in np.unique(columns["energy_MeV"]):
        rows = columns["energy_MeV"] == energy
        table = {name: columns[name][rows] for name in ("depth_mm", *names)}
        depth = table["depth_mm"]
        if energy <= 0:
            raise InputError(f"{path}: energy_MeV must be positive, got {energy:g}")
        if len(depth) < least or np.any(np.diff(depth) <= 0):
            raise InputError(f"{path}: the depths of {energy:g} MeV must be {least} or more and ascend")
        if depth[0] < 0 or depth[-1] > FARTHEST:
            raise InputError(f"{path}: the depths of {energy:g} MeV must be 0 to {FARTHEST:g} mm, got {depth[0]:g} to {depth[-1]:g}")
        tables[float(energy)] = table
    return tables


def _read_optics(path: Path) -> tuple[Optics, tuple[float, float]]:
    """In-air spread and the virtual sources. A table of equal sizes in x and y has round spots, which cost less."""
    optional = ["divergence_x_rad", "divergence_y_rad", "correlation_x", "correlation_y"]
    required = ["energy_MeV", "sigma_x_mm", "sigma_y_mm", "smx_to_isocentre_mm", "smy_to_isocentre_mm"]
    columns = read_columns(path, required, optional)
    energy = columns["energy_MeV"]
    if bool((energy.diff() <= 0).any()):
        raise InputError(f"{path}: energy_MeV must ascend")
    for name, least, most in (
        ("sigma_x_mm", 0.0, WIDEST),
        ("sigma_y_mm", 0.0, WIDEST),
        *((f"divergence_{a}_rad", -1.0, 1.0) for a in "xy"),
    ):
        column = columns.get(name, torch.full((1,), 0.5, dtype=torch.float64))
        if float(column.min()) <= least or float(column.max()) > most:
            wanted = f"positive and at most {most:g}" if least == 0 else f"between {least:g} and {most:g}"
            raise InputError(f"{path}: {name} must be {wanted}, got {float(column.min()):g} to {float(column.max()):g}")
    z = torch.arange(-OPTICS_REACH, OPTICS_REACH + OPTICS_STEP / 2, OPTICS_STEP, dtype=torch.float64)
    variance = []
    for axis in "xy":
        size = columns[f"sigma_{axis}_mm"][:, None]
        divergence = columns.get(f"divergence_{axis}_rad", torch.zeros_like(energy))[:, None]
        correlation = columns.get(f"correlation_{axis}", torch.zeros_like(energy))[:, None]
        if bool((correlation.abs() > 1).any()):
            raise InputError(f"{path}: correlation_{axis} must lie between -1 and 1")
        variance.append(drift(size, divergence, correlation, -z))
    sad = []
    for name in ("smx_to_isocentre_mm", "smy_to_isocentre_mm"):
        if float(columns[name].max() - columns[name].min()) > 1e-6 * float(columns[name].abs().max()):
            raise InputError(f"{path}: {name} must be the same in every row")
        sad.append(float(columns[name][0]))
    sigma_x, sigma_y = (v.sqrt() for v in variance)
    return Optics(energy, -OPTICS_REACH, OPTICS_STEP, sigma_x, None if torch.equal(sigma_x, sigma_y) else sigma_y), (sad[0], sad[1])


def _curve(folder: Path, energy: float, idd: dict[str, np.ndarray], sigma: dict[str, np.ndarray], optics: Optics) -> DepthCurve:
    """Depth curves of one energy on even, fine depths."""
    _check_idd(folder / "idd.csv", energy, idd["depth_mm"], idd["idd_Gy_mm2_per_1e6_protons"])
    depth, dose = _from_bins(folder / "idd.csv", energy, idd["depth_mm"], idd["idd_Gy_mm2_per_1e6_protons"])
    end = r80(depth, dose) + BEYOND
    peak = peak_position(depth, dose)[0]
    at_isocentre = round(-optics.start / optics.step)
    air = float(optics.variance(torch.tensor([energy], dtype=torch.float64))[0, at_isocentre])
    z, halo = sigma["depth_mm"], sigma["halo_fraction"]
    sizes = np.concatenate((sigma["sigma1_mm"], sigma["sigma2_mm"]))
    where = f"{folder / 'sigma.csv'}: at {energy:g} MeV"
    if halo.min() < 0 or halo.max() > 1:
        raise InputError(f"{where} a halo_fraction is not between 0 and 1")
    if sizes.min() <= 0 or sizes.max() > WIDEST:
        raise InputError(f"{where} sigma1_mm and sigma2_mm must be positive and at most {WIDEST:g}, got {sizes.min():g} to {sizes.max():g}")
    if z[-1] < LEAST_REACH * end:
        raise InputError(f"{where} the depths end at {z[-1]:g} mm of a range of {end - BEYOND:.1f} mm; add rows, or check that they are mm")
    middle = float(np.median(sizes[: len(z)]))
    if middle < LEAST_SIZE * math.sqrt(air):
        raise InputError(
            f"{where} half of the sigma1_mm are below {middle:.3g}, and in air the spot has {math.sqrt(air):.3g} mm, which they must "
            "include; check that they are mm"
        )
    keep = z <= end
    if keep.sum() < LEAST_ROWS:
        raise InputError(f"{where} {keep.sum()} depths lie before the end of the range, {end:.1f} mm, {LEAST_ROWS} are needed; add rows")
    local = np.interp(z, depth.numpy(), dose.numpy())
    core = _smooth(z, sigma["sigma1_mm"] ** 2 - air, local * (1 - halo), keep, peak, depth.numpy())
    wide = _smooth(z, sigma["sigma2_mm"] ** 2 - air, local * halo, keep, peak, depth.numpy())
    share = _smooth(z, halo, local, keep, peak, depth.numpy()).clip(0.0, 1.0)
    variance = torch.from_numpy(np.stack((core, wide)).clip(0.0))
    return DepthCurve(energy, depth, dose, variance, torch.from_numpy(np.stack((1.0 - share, share))))


def _check_idd(path: Path, energy: float, depth: np.ndarray, dose: np.ndarray) -> None:
    """A depth dose is nowhere negative, has fallen to a tenth of its maximum at its end, and holds about the energy of its protons."""
    if dose.min() < 0:
        raise InputError(
            f"{path}: the depth dose of {energy:g} MeV is negative, {dose.min():g} at {depth[dose.argmin()]:g} mm; it must be 0 or more"
        )
    if dose[-1] > 0.1 * dose.max():
        raise InputError(
            f"{path}: the depth dose of {energy:g} MeV ends at {depth[-1]:g} mm with {100 * dose[-1] / dose.max():.0f} % of its maximum; "
            "add rows until it is over"
        )
    share = float(np.trapezoid(dose, depth)) / (energy * 10.0 * IDD_GY_MM2_PER_MEV_CM2_G)
    if not DEPOSITED[0] <= share <= DEPOSITED[1]:
        raise InputError(
            f"{path}: the depth dose of {energy:g} MeV holds {share:.3g} times the energy of its protons; it must be whole, and "
            "in Gy mm^2 per 10^6 protons"
        )


def _from_bins(path: Path, energy: float, depth: np.ndarray, dose: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """A smooth depth dose whose means over the bins are the given ones: the derivative of a quintic spline through their running integral.

    Bins of 1 mm flatten the peak of 70 MeV by 7 %; this leaves 2 %, 1 % from 80 MeV and 0.1 % from 100 MeV on (a cubic spline twice to
    six times as much), and raises the bins' noise by a tenth. The first bin must start at the surface.
    """
    edges = np.concatenate(([1.5 * depth[0] - 0.5 * depth[1]], (depth[1:] + depth[:-1]) / 2, [1.5 * depth[-1] - 0.5 * depth[-2]]))
    if abs(edges[0]) > 0.01 * (depth[1] - depth[0]):
        raise InputError(f"{path}: the first bin of {energy:g} MeV starts at {edges[0]:g} mm; depths must be the middles of bins from 0 on")
    edges[0] = 0.0
    # a few bins continued upstream keep the spline's loose end, which magnifies noise, out of the patient
    edges = np.concatenate((edges[1] * np.arange(-GHOSTS, 0), edges))
    dose = np.concatenate((dose[0] - (dose[1] - dose[0]) * np.arange(GHOSTS, 0, -1), dose))
    integral = np.concatenate(([0.0], np.cumsum(dose * np.diff(edges))))
    fine = np.linspace(0.0, edges[-1], max(int(np.ceil(edges[-1] / DEPTH_STEP)), 2) + 1)
    curve = make_interp_spline(edges, integral, k=5).derivative()(fine).clip(0.0)
    return torch.from_numpy(fine), torch.from_numpy(curve)


def _smooth(depth: np.ndarray, values: np.ndarray, weight: np.ndarray, keep: np.ndarray, peak: float, at: np.ndarray) -> np.ndarray:
    """Local-linear regression of a noisy curve, at depths `at`; beyond the last row kept its value holds.

    Rows count by `weight`, the dose that their fit rests on: where there is next to no halo its width is arbitrary, and where there is none
    at all every row counts the same. The Gaussian kernel's width is 15 % of the distance to the peak, within `KERNEL`: the curves are
    straight far from the peak and bend near it.
    """
    x, y = depth[keep], values[keep]
    w = weight[keep] + 1e-6 * (weight[keep].max() or 1.0)
    nodes = np.concatenate(([0.0], x))
    gap = np.diff(nodes)
    reach = 0.5 * np.maximum(np.append(gap, 0.0), np.concatenate(([0.0], gap)))
    width = np.maximum((0.15 * (peak - nodes)).clip(*KERNEL), reach)[:, None]
    away = x - nodes[:, None]
    kernel = w * np.exp(-0.5 * (away / width) ** 2)
    s0, s1, s2 = kernel.sum(axis=1), (kernel * away).sum(axis=1), (kernel * away**2).sum(axis=1)
    sy, sxy = kernel @ y, (kernel * away) @ y
    return np.interp(at, nodes, (s2 * sy - s1 * sxy) / (s0 * s2 - s1**2))
