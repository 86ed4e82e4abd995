"""A machine from a clinic's emittance table: one CSV row per nominal energy, with the beam on one plane upstream of the isocentre.

Columns, by their names in a line of the file's head (`#` and quotation marks around them do no harm, other lines that start with `#` are
left alone): `Energy nominal [MeV]`, `E real [MeV]`, `E real sigma [MeV]`, `protons/MU`, and for each scan direction `sigma x [mm]`,
`sigma x' [rad]` and `cor(x x')`. A head that names the table's plane, `BMODPOS 600.0 mm`, has to agree with what the reader is told.

From its plane the beam drifts: at a distance d downstream its variance is `s^2 + 2 rho s s' d + s'^2 d^2` along each direction (the
Courant-Snyder invariants of a drift), scatter in air included as far as the clinic's fit of s, s' and rho to its spots in air has it.

The table says nothing about depth doses. They are another machine's, whose energies are taken for the table's real ones: its curves at
that energy by scaled range, broadened as protons of more spread energies are,

    idd(z) = sum_j g_j (E_j / E) / l_j idd_E(z / l_j),    l_j = R(E_j) / R(E),    E_j = E + t_j sqrt(sigma_E^2 - sigma_0^2),

with g_j a Gaussian's weights at t_j, sigma_E the table's spread and sigma_0 that of the curves.
"""

from __future__ import annotations

import csv
import logging
import re
import warnings
from pathlib import Path

import numpy as np
import torch

from torchimpt.checks import InputError, PhysicsWarning, nearest
from torchimpt.columns import read_columns
from torchimpt.files import input_file, reader
from torchimpt.machine.csv_folder import OPTICS_REACH, OPTICS_STEP, read_csv_machine
from torchimpt.machine.curves import DepthCurve, ScaledCurves
from torchimpt.machine.machine import Calibration, Machine
from torchimpt.machine.optics import Optics

COLUMNS = {
    "nominal": "Energy nominal [MeV]", "real": "E real [MeV]", "spread": "E real sigma [MeV]", "protons": "protons/MU",
    "sigma_x": "sigma x [mm]", "sigma_y": "sigma y [mm]", "divergence_x": "sigma x' [rad]", "divergence_y": "sigma y' [rad]",
    "correlation_x": "cor(x x')", "correlation_y": "cor(y y')",
}  # fmt: skip
"""The table's columns, by what they are called here."""

LIMITS = {
    "nominal": (1.0, 1000.0, "MeV"), "real": (1.0, 1000.0, "MeV"), "spread": (0.0, 20.0, "MeV"), "protons": (1e3, 1e12, "protons in an MU"),
    "sigma_x": (1.0, 50.0, "mm"), "sigma_y": (1.0, 50.0, "mm"), "divergence_x": (0.0, 0.1, "rad"), "divergence_y": (0.0, 0.1, "rad"),
    "correlation_x": (-1.0, 1.0, "a correlation"), "correlation_y": (-1.0, 1.0, "a correlation"),
}  # fmt: skip
"""Least and greatest of each column, and its unit. No scanned beam is thinner than 1 mm (so that centimetres are found out) or diverges by
0.1 rad (milliradians); 1e3 and 1e12 enclose every calibration from a nanocoulomb chamber to whole fractions by a wide margin."""

OFF_NOMINAL = 0.05
"""A real energy may differ from its nominal one by this share: beam lines differ by 0.2 %, other units or another column by far more."""

FARTHEST_PLANE = 5000.0
"""The table's plane lies at most this far upstream, mm: no gantry's nozzle is farther from the isocentre."""

NODE_STEP = 2.0
"""Depth curves are made at rows about this far apart, MeV, and are interpolated by scaled range between them."""

QUADRATURE = np.linspace(-4.0, 4.0, 33)
"""Energies that a broadened curve is the sum over, in standard deviations; steps of a quarter leave 1e-9 of a Gaussian's integral."""

logger = logging.getLogger(__name__)


@reader("machine")
def read_emittance_machine(path: str | Path, *, plane_mm: float, curves: str | Path, sad_mm: tuple[float, float]) -> Machine:
    """Read a machine from an emittance table (see the module).

    Parameters
    ----------
    path
        The CSV table.
    plane_mm
        How far upstream of the isocentre the table's plane lies, mm.
    curves
        Folder of a CSV machine (`torchimpt.machine.csv_folder`) whose depth doses and widths are taken. Its `beam_model.csv` has to tell
        their energy spread, in the column `energy_spread_MeV_1sigma`.
    sad_mm
        Distances of the virtual sources `(x, y)` from the isocentre, mm.

    Returns
    -------
    Machine of the table's nominal energies, as far as the curves have the real ones; with the table's calibration, and spots of their own
    width along x and y. Where the curves are broader than the table's spread they stay so, with a `PhysicsWarning`.
    """
    path = input_file(path, "machine")
    if not 0.0 <= plane_mm <= FARTHEST_PLANE:
        raise InputError(f"{path}: plane_mm must be 0 to {FARTHEST_PLANE:g}, mm upstream of the isocentre, got {plane_mm:g}")
    table = _read_table(path, plane_mm)
    folder = Path(curves)
    source = read_csv_machine(folder)
    inside = (table["real"] >= source.energy_min) & (table["real"] <= source.energy_max)
    if not inside.any():
        raise InputError(
            f"{path}: none of its real energies, {table['real'][0]:g} to {table['real'][-1]:g} MeV, lies within those of the curves in "
            f"{folder}, {source.energy_min:g} to {source.energy_max:g} MeV; give other curves"
        )
    if not inside.all():
        logger.info("%s: %d of %d energies lie beyond the curves in %s", path, int((~inside).sum()), len(inside), folder)
    table = {name: column[inside] for name, column in table.items()}
    energy = torch.from_numpy(table["nominal"])
    z = np.arange(-OPTICS_REACH, OPTICS_REACH + OPTICS_STEP / 2, OPTICS_STEP)
    sigma_x, sigma_y = (torch.from_numpy(np.sqrt(_drift(table, axis, plane_mm - z))) for axis in "xy")
    return Machine(
        path.stem,
        (float(sad_mm[0]), float(sad_mm[1])),
        ScaledCurves.of(_curves(path, table, folder, source)),
        Optics(energy, -OPTICS_REACH, OPTICS_STEP, sigma_x, sigma_y),
        calibration=Calibration(energy, torch.from_numpy(table["protons"]) / 1e6),
    )


def _drift(table: dict[str, np.ndarray], axis: str, distance: np.ndarray) -> np.ndarray:
    """Variance `(n_energies, n_planes)`, mm^2, at distances downstream of the table's plane, mm."""
    s, angle, correlation = (table[f"{name}_{axis}"][:, None] for name in ("sigma", "divergence", "correlation"))
    return s**2 + 2.0 * correlation * s * angle * distance + (angle * distance) ** 2


def _curves(path: Path, table: dict[str, np.ndarray], folder: Path, source: Machine) -> list[DepthCurve]:
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
            stacklevel=4,
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


def _read_table(path: Path, plane: float) -> dict[str, np.ndarray]:
    """The columns `(n_rows,)`, checked."""
    names: list[str] = []
    rows: list[list[float]] = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file)
        for cells in lines:
            if not any(cell.strip() for cell in cells):
                continue
            if cells[0].lstrip().startswith("#") or not (names or rows):
                words = [_plain(cell) for cell in cells]
                names = words if words[0] == _plain(COLUMNS["nominal"]) else names
                _check_plane(path, words, plane)
                continue
            rows.append([_number(path, lines.line_num, cell) for cell in cells])
    place = {}
    for key, column in COLUMNS.items():
        if _plain(column) not in names:
            has = ", ".join(names) or "none that it names in its head"
            raise InputError(f"{path} has no column '{column}'{nearest(_plain(column), names)}; it has {has}")
        place[key] = names.index(_plain(column))
    if not rows or {len(row) for row in rows} != {len(names)}:
        raise InputError(f"{path} must have rows of {len(names)} numbers under its head, got {len(rows)} of {len(rows[-1]) if rows else 0}")
    columns = {key: np.array([row[i] for row in rows]) for key, i in place.items()}
    _check(path, columns)
    return columns


def _plain(cell: str) -> str:
    """A name in the head without comment and quotation marks, in small letters, with single blanks."""
    return " ".join(re.sub(r'[#"]', " ", cell).lower().split())


def _number(path: Path, line: int, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise InputError(f"{path}, line {line}: expected a number, got '{cell[:40]}'")
    return value


def _check_plane(path: Path, words: list[str], plane: float) -> None:
    """The head's own word on the plane."""
    said = re.fullmatch(r"bmodpos ([\d.]+) mm", words[0])
    if said and abs(float(said[1]) - plane) > 0.5:
        raise InputError(f"{path} says that its plane lies {said[1]} mm upstream of the isocentre, but plane_mm is {plane:g}; give its own")


def _check(path: Path, columns: dict[str, np.ndarray]) -> None:
    """Numbers that a beam has, in order."""
    for key, (least, most, unit) in LIMITS.items():
        value = columns[key]
        if value.min() < least or value.max() > most:
            raise InputError(
                f"{path}: '{COLUMNS[key]}' must lie between {least:g} and {most:g}, got {value.min():.4g} to {value.max():.4g}; "
                f"check that it is {unit}"
            )
    for key in ("nominal", "real"):
        steps = np.diff(columns[key])
        if (steps <= 0).any():
            i = int((steps <= 0).argmax())
            raise InputError(
                f"{path}: '{COLUMNS[key]}' must ascend, but {columns[key][i + 1]:g} follows {columns[key][i]:g}; sort its rows"
            )
    off = np.abs(columns["real"] / columns["nominal"] - 1.0)
    if off.max() > OFF_NOMINAL:
        i = int(off.argmax())
        raise InputError(
            f"{path}: a real energy of {columns['real'][i]:g} MeV is {100 * off[i]:.0f} % off the nominal {columns['nominal'][i]:g} MeV; "
            "check the columns and their unit"
        )
