"""Machines from tables of the beam on a plane upstream of the isocentre, one row per nominal energy, and another machine's depth doses.

From its plane the beam drifts: at a distance d downstream its variance is `s^2 + 2 rho s s' d + s'^2 d^2` along each direction (the
Courant-Snyder invariants of a drift), scatter in air included as far as the fit of s, s' and rho to spots in air has it.

Its energies are those on the plane: from there on air takes off `AIR_RSP` mm of range a mm (`Machine.air_from`), as it does in MCsquare.
Where they hold at the patient's surface instead, the reader is told that there is no air. The spread in air is the drift's alone: the
scattering of air, 1 mm after 600 mm at 100 MeV, is in s' and rho of every table that gives the spots that were measured.

The table says nothing about depth doses. They are another machine's, whose energies are taken for the table's real ones: its curves at
that energy by scaled range, broadened as protons of more spread energies are,

    idd(z) = sum_j g_j (E_j / E) / l_j idd_E(z / l_j),    l_j = R(E_j) / R(E),    E_j = E + t_j sqrt(sigma_E^2 - sigma_0^2),

with g_j a Gaussian's weights at t_j, sigma_E the table's spread and sigma_0 that of the curves.

A share w of a table's protons may lie in a second, wider Gaussian. It becomes one more lateral component, behind those of the curves, which
then share 1 - w: a round Gaussian, whose variance is the first one's and, at all distances, what the second has more at the isocentre,
with the same product of widths along x and y; in the medium it grows by the curves' mean variance.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from torchimpt.checks import InputError, PhysicsWarning
from torchimpt.columns import read_columns
from torchimpt.machine.csv_folder import OPTICS_REACH, OPTICS_STEP, read_csv_machine
from torchimpt.machine.curves import DepthCurve, ScaledCurves
from torchimpt.machine.machine import Calibration, Machine
from torchimpt.machine.optics import Optics, drift

LIMITS = {
    "nominal": (1.0, 1000.0, "MeV"), "real": (1.0, 1000.0, "MeV"), "spread": (0.0, 20.0, "MeV"), "protons": (1e3, 1e12, "protons in an MU"),
    "sigma_x": (1.0, 50.0, "mm"), "sigma_y": (1.0, 50.0, "mm"), "divergence_x": (0.0, 0.1, "rad"), "divergence_y": (0.0, 0.1, "rad"),
    "correlation_x": (-1.0, 1.0, "a correlation"), "correlation_y": (-1.0, 1.0, "a correlation"),
}  # fmt: skip
"""Least and greatest of each column, and its unit. No scanned beam is thinner than 1 mm (so that centimetres are found out) or diverges by
0.1 rad (milliradians); 1e3 and 1e12 enclose every calibration from a nanocoulomb chamber to whole fractions by a wide margin."""

SECOND = {"wide_share": (0.0, 0.5, "a share of all protons")} | {
    f"wide_{part}_{axis}": (least, most, unit)
    for axis in "xy"
    for part, least, most, unit in (
        ("sigma", 1.0, 200.0, "mm"),
        ("divergence", 0.0, 0.2, "rad"),
        ("correlation", -1.0, 1.0, "a correlation"),
    )
}
"""The same of a second Gaussian, where a table has one; its shape counts where its share is not zero."""

OFF_NOMINAL = 0.05
"""A real energy may differ from its nominal one by this share: beam lines differ by 0.2 %, other units or another column by far more."""

FARTHEST_PLANE = 5000.0
"""The table's plane lies at most this far upstream, mm: no gantry's nozzle is farther from the isocentre."""

SLACK = 1e-4
"""By this share a real energy may lie beyond those of the curves, and takes the nearest of these: it moves a range by less than 0.06 mm.
Energies in libraries that are our own exports are off by so much."""

NODE_STEP = 2.0
"""Depth curves are made at rows about this far apart, MeV, and are interpolated by scaled range between them."""

QUADRATURE = np.linspace(-4.0, 4.0, 33)
"""Energies that a broadened curve is the sum over, in standard deviations; steps of a quarter leave 1e-9 of a Gaussian's integral."""

logger = logging.getLogger(__name__)


def check_plane(path: Path, name: str, plane: float) -> None:
    """A plane upstream of the isocentre, mm, within a nozzle's reach; `name` is what the user calls its distance."""
    if not 0.0 <= plane <= FARTHEST_PLANE:
        raise InputError(f"{path}: {name} must be 0 to {FARTHEST_PLANE:g}, mm upstream of the isocentre, got {plane:g}")


def check_beams(path: Path, table: Mapping[str, np.ndarray], names: Mapping[str, str]) -> None:
    """Numbers that a beam has, in order.

    Parameters
    ----------
    path
        For messages.
    table
        Columns `(n_rows,)` with the keys of `LIMITS`, and those of `SECOND` where there is a second Gaussian.
    names
        What the file calls them.
    """
    second = table["wide_share"] > 0 if "wide_share" in table else np.zeros(len(table["nominal"]), bool)
    for key, (least, most, unit) in (LIMITS | SECOND).items():
        if key not in table or (key in SECOND and key != "wide_share" and not second.any()):
            continue
        value = table[key][second] if key in SECOND and key != "wide_share" else table[key]
        if value.min() < least or value.max() > most:
            raise InputError(
                f"{path}: '{names[key]}' must lie between {least:g} and {most:g}, got {value.min():.4g} to {value.max():.4g}; "
                f"check that it is {unit}"
            )
    for key in ("nominal", "real"):
        steps = np.diff(table[key])
        if (steps <= 0).any():
            i = int((steps <= 0).argmax())
            raise InputError(f"{path}: '{names[key]}' must ascend, but {table[key][i + 1]:g} follows {table[key][i]:g}; sort its rows")
    off = np.abs(table["real"] / table["nominal"] - 1.0)
    if off.max() > OFF_NOMINAL:
        i = int(off.argmax())
        raise InputError(
            f"{path}: a real energy of {table['real'][i]:g} MeV is {100 * off[i]:.0f} % off the nominal {table['nominal'][i]:g} MeV; "
            "check the columns and their unit"
        )


def upstream_machine(
    path: Path, table: Mapping[str, np.ndarray], plane: float, curves: str | Path, sad: tuple[float, float], air: bool
) -> Machine:
    """The machine of a checked table (see the module).

    Parameters
    ----------
    path
        The table's file, for the machine's name and for messages.
    table
        As for `check_beams`.
    plane
        How far upstream of the isocentre the table holds, mm.
    curves
        Folder of a CSV machine whose depth doses and widths are taken.
    sad
        Distances of the virtual sources `(x, y)` from the isocentre, mm.
    air
        Whether the real energies are those on the plane, and the air behind it takes off what it does.
    """
    folder = Path(curves)
    source = read_csv_machine(folder)
    inside = (table["real"] >= source.energy_min * (1.0 - SLACK)) & (table["real"] <= source.energy_max * (1.0 + SLACK))
    if not inside.any():
        raise InputError(
            f"{path}: none of its real energies, {table['real'][0]:g} to {table['real'][-1]:g} MeV, lies within those of the curves in "
            f"{folder}, {source.energy_min:g} to {source.energy_max:g} MeV; give other curves"
        )
    if not inside.all():
        logger.info("%s: %d of %d energies lie beyond the curves in %s", path, int((~inside).sum()), len(inside), folder)
    table = {name: column[inside] for name, column in table.items()}
    table["real"] = table["real"].clip(source.energy_min, source.energy_max)
    energy = torch.from_numpy(table["nominal"])
    z = np.arange(-OPTICS_REACH, OPTICS_REACH + OPTICS_STEP / 2, OPTICS_STEP)
    sigma_x, sigma_y = (torch.from_numpy(np.sqrt(_variance(table, axis, plane - z))) for axis in "xy")
    share, more = _second(path, table, plane)
    return Machine(
        path.stem,
        (float(sad[0]), float(sad[1])),
        ScaledCurves.of(_curves(path, table, folder, source, share, more)),
        Optics(energy, -OPTICS_REACH, OPTICS_STEP, sigma_x, None if torch.equal(sigma_x, sigma_y) else sigma_y),
        calibration=Calibration(energy, torch.from_numpy(table["protons"]) / 1e6),
        air_from=plane if air else None,
    )


def _variance(table: Mapping[str, np.ndarray], axis: str, distance: np.ndarray, which: str = "") -> np.ndarray:
    """Variance `(n_rows, n_distances)`, mm^2, downstream of the plane, of the first Gaussian or the "wide_" one."""
    size, divergence, correlation = (table[f"{which}{part}_{axis}"][:, None] for part in ("sigma", "divergence", "correlation"))
    return drift(size, divergence, correlation, distance)


def _second(path: Path, table: Mapping[str, np.ndarray], plane: float) -> tuple[np.ndarray, np.ndarray]:
    """The second Gaussian's share `(n_rows,)`, and its variance above the first's at the isocentre `(n_rows,)`, mm^2.

    The variance e is that of a product of widths as large as the second's: `(v_x + e) (v_y + e) = w_x w_y`.
    """
    share = table.get("wide_share", np.zeros(len(table["nominal"])))
    if not share.any():
        return share, np.zeros_like(share)
    distance = np.array([plane])
    first, second = ([_variance(table, axis, distance, which)[:, 0] for axis in "xy"] for which in ("", "wide_"))
    more = 0.5 * (np.sqrt((first[0] - first[1]) ** 2 + 4.0 * second[0] * second[1]) - first[0] - first[1])
    narrow = (share > 0) & (more < 0)
    if narrow.any():
        raise InputError(
            f"{path}: at {table['nominal'][narrow][0]:g} MeV the second Gaussian is narrower at the isocentre than the first; exchange them"
        )
    return share, np.where(share > 0, more, 0.0)


def _curves(
    path: Path, table: Mapping[str, np.ndarray], folder: Path, source: Machine, share: np.ndarray, more: np.ndarray
) -> list[DepthCurve]:
    """Depth curves of some rows, at their nominal energies."""
    known = read_columns(folder / "beam_model.csv", ["energy_MeV", "energy_spread_MeV_1sigma"])
    nominal, real = table["nominal"], table["real"]
    wanted = np.linspace(nominal[0], nominal[-1], int(np.ceil((nominal[-1] - nominal[0]) / NODE_STEP)) + 1)
    rows = np.unique(np.abs(nominal[:, None] - wanted).argmin(axis=0))
    own = np.interp(real[rows], known["energy_MeV"].numpy(), known["energy_spread_MeV_1sigma"].numpy())
    short = own > table["spread"][rows] * 1.01
    if short.any():
        low, high = nominal[rows][short][[0, -1]]
        warnings.warn(
            f"{path}: between {low:g} and {high:g} MeV energies are spread less than those of the curves in {folder}, by up to "
            f"{(own - table['spread'][rows]).max():.2g} MeV; the curves stay as broad as they are",
            PhysicsWarning,
            stacklevel=5,
        )
    extra = np.sqrt(np.maximum(table["spread"][rows] ** 2 - own**2, 0.0))
    tables = source.layers(torch.from_numpy(real[rows]))
    found = []
    for i, row in enumerate(rows):
        depth = float(tables.depth_step[i]) * np.arange(tables.idd.shape[1])
        z, idd = _broadened(source, real[row], extra[i], depth, tables.idd[i].numpy())
        variance, fraction = (
            np.stack([np.interp(z, depth, curve.numpy()) for curve in kind[:, i]]) for kind in (tables.variance, tables.fraction)
        )
        if share.any():
            variance = np.concatenate((variance, (fraction * variance).sum(axis=0, keepdims=True) + more[row]))
            fraction = np.concatenate(((1.0 - share[row]) * fraction, np.full_like(variance[:1], share[row])))
        found.append(DepthCurve(nominal[row], *map(torch.from_numpy, (z, idd, variance, fraction))))
    return found


def _broadened(source: Machine, energy: float, extra: float, depth: np.ndarray, idd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depths and depth dose of protons whose energies are spread by `extra` MeV more; see the module."""
    energies = energy + extra * QUADRATURE
    stretch = source.curves.range_at(torch.from_numpy(np.append(energies, energy))).numpy()
    stretch = stretch[:-1] / stretch[-1]
    share = np.exp(-0.5 * QUADRATURE**2)
    share *= energies / energy / stretch / share.sum()
    z = depth[1] * np.arange(int(np.ceil(depth[-1] * stretch.max() / depth[1])) + 1)
    return z, sum(w * np.interp(z / factor, depth, idd, right=0.0) for w, factor in zip(share, stretch, strict=True))
