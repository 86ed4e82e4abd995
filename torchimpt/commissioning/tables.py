"""The configuration of a commissioning, TOML, and the tables that it names; relative paths start at its own folder.

name = "my machine"
sad_mm = [2000.0, 2560.0]         # virtual sources of x and y from the isocentre

[depth_dose]
path = "idd.csv"                  # energy_MeV, depth_mm, idd_Gy_mm2_per_1e6_protons
bins = true                       # means over bins of depth, as simulations score them; false: at the depths themselves

[air]
path = "air.csv"                  # energy_MeV, sigma_x_mm, sigma_y_mm, and z_mm towards the source where there are several planes

[water]                           # may be missing: then one Gaussian with the widths of the formula
path = "sigma.csv"                # energy_MeV, depth_mm, sigma1_mm along x, that in air included, and sigma2_mm, halo_fraction if any

[calibration]                     # may be missing
path = "mu.csv"                   # energy_MeV, protons_per_mu
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchimpt.checks import InputError, nearest
from torchimpt.columns import read_columns
from torchimpt.files import input_file, reader
from torchimpt.machine.curves import check_range
from torchimpt.machine.machine import FARTHEST_SOURCE, NEAREST_SOURCE
from torchimpt.physics.bragg import r80

SECTIONS = {
    "depth_dose": (("energy_MeV", "depth_mm", "idd_Gy_mm2_per_1e6_protons"), ()),
    "air": (("energy_MeV", "sigma_x_mm", "sigma_y_mm"), ("z_mm",)),
    "water": (("energy_MeV", "depth_mm", "sigma1_mm"), ("sigma2_mm", "halo_fraction")),
    "calibration": (("energy_MeV", "protons_per_mu"), ()),
}
"""Sections that name a table, with the columns that it must and may have."""

NEEDED = ("depth_dose", "air")

LEAST = {"depth_dose": 20, "water": 8}
"""Rows an energy, more than the parameters fitted to them."""

PLAUSIBLE = {
    "energy_MeV": (1.0, 1000.0), "depth_mm": (0.0, 1000.0), "idd_Gy_mm2_per_1e6_protons": (0.0, 100.0), "sigma_x_mm": (1.0, 50.0),
    "sigma_y_mm": (1.0, 50.0), "z_mm": (-2000.0, 2000.0), "sigma1_mm": (1.0, 100.0), "sigma2_mm": (1.0, 500.0),
    "halo_fraction": (0.0, 1.0), "protons_per_mu": (1e3, 1e12),
}  # fmt: skip
"""Least and greatest of a column, in the unit of its name: centimetres, MeV per nucleus or MU in millions are found out."""

Table = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class CommissioningTables:
    """What a machine is fitted to.

    Attributes
    ----------
    name, sad
        Of the machine.
    bins
        Whether depth doses are means over bins of depth.
    depth_dose, air, water
        Tables by energy, MeV, ascending; `water` may be empty.
    calibration
        Columns `energy_MeV` and `protons_per_mu`, or None.
    """

    name: str
    sad: tuple[float, float]
    bins: bool
    depth_dose: Mapping[float, Table]
    air: Mapping[float, Table]
    water: Mapping[float, Table]
    calibration: Table | None = None


@reader("commissioning")
def read_tables(path: str | Path) -> CommissioningTables:
    """Read a configuration and its tables (see the module)."""
    path = input_file(path, "commissioning")
    try:
        config = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not valid TOML: {error}") from None
    allowed = ("name", "sad_mm", *SECTIONS)
    for key in config:
        if key not in allowed:
            raise InputError(f"{path}: unknown key '{key}'{nearest(key, allowed)}; allowed: {', '.join(allowed)}")
    for key in ("name", "sad_mm", *NEEDED):
        if key not in config:
            raise InputError(f"{path} needs {f'a section [{key}]' if key in SECTIONS else key}")
    sad = config["sad_mm"]
    good = (
        isinstance(sad, list) and len(sad) == 2 and all(isinstance(v, (int, float)) and NEAREST_SOURCE <= v <= FARTHEST_SOURCE for v in sad)
    )
    if not good:
        raise InputError(f"{path}: sad_mm must be two distances of {NEAREST_SOURCE:g} mm or more, [x, y], got {sad!r}")
    tables = {section: _table(path, section, config[section]) for section in SECTIONS if section in config}
    by_energy = {section: _by_energy(path, section, table) for section, table in tables.items()}
    depth_dose, air, water = (by_energy.get(section, {}) for section in ("depth_dose", "air", "water"))
    file = path.parent / config["depth_dose"]["path"]
    for energy, table in depth_dose.items():
        found = r80(*map(torch.from_numpy, (table["depth_mm"], table["idd_Gy_mm2_per_1e6_protons"])))
        check_range(f"{file}: the range of {energy:g} MeV", energy, found)
    if water and set(water) != set(depth_dose):
        odd = ", ".join(f"{energy:g}" for energy in sorted(set(water) ^ set(depth_dose)))
        raise InputError(f"{path}: [water] and [depth_dose] must have the same energies, but only one of them has {odd} MeV")
    if min(air) > min(depth_dose) or max(air) < max(depth_dose):
        raise InputError(
            f"{path}: [air] spans {min(air):g} to {max(air):g} MeV, but [depth_dose] {min(depth_dose):g} to {max(depth_dose):g}; add rows"
        )
    bins = config["depth_dose"].get("bins", True)
    return CommissioningTables(
        str(config["name"]), (float(sad[0]), float(sad[1])), bool(bins), depth_dose, air, water, tables.get("calibration")
    )


def _table(path: Path, section: str, config: Any) -> dict[str, np.ndarray]:
    """The columns of a section's table, plausible ones."""
    keys = ("path", "bins") if section == "depth_dose" else ("path",)
    if not isinstance(config, dict) or not isinstance(config.get("path"), str):
        raise InputError(f"{path}: [{section}] needs path, the name of a CSV table")
    for key, value in config.items():
        if key not in keys:
            raise InputError(f"{path}: unknown key '{section}.{key}'{nearest(key, keys)}; allowed: {', '.join(keys)}")
        if key == "bins" and not isinstance(value, bool):
            raise InputError(f"{path}: depth_dose.bins must be true or false, got {value!r}")
    required, optional = SECTIONS[section]
    file = path.parent / config["path"]
    columns = {name: column.numpy() for name, column in read_columns(file, required, optional).items()}
    for name, column in columns.items():
        least, most = PLAUSIBLE[name]
        if column.min() < least or column.max() > most:
            raise InputError(
                f"{file}: {name} must lie between {least:g} and {most:g}, got {column.min():.4g} to {column.max():.4g}; check its unit"
            )
    if ("sigma2_mm" in columns) != ("halo_fraction" in columns):
        raise InputError(f"{file} must have both of sigma2_mm and halo_fraction, or none")
    if section == "calibration" and (np.diff(columns["energy_MeV"]) <= 0).any():
        raise InputError(f"{file}: energy_MeV must ascend")
    return columns


def _by_energy(path: Path, section: str, columns: dict[str, np.ndarray]) -> dict[float, dict[str, np.ndarray]]:
    """The rows of each energy; depths ascend."""
    found: dict[float, dict[str, np.ndarray]] = {}
    for energy in np.unique(columns["energy_MeV"]):
        rows = columns["energy_MeV"] == energy
        table = {name: column[rows] for name, column in columns.items() if name != "energy_MeV"}
        if rows.sum() < LEAST.get(section, 1):
            raise InputError(f"{path}: [{section}] has {rows.sum()} rows of {energy:g} MeV, {LEAST[section]} are needed")
        along = table.get("depth_mm", table.get("z_mm"))
        if along is None and section == "air" and rows.sum() > 1:
            raise InputError(f"{path}: [air] has several rows of {energy:g} MeV; a column z_mm has to say on which planes")
        if along is not None and (np.diff(np.sort(along) if section == "air" else along) <= 0).any():
            what = "z_mm must differ" if section == "air" else "depth_mm must ascend"
            raise InputError(f"{path}: [{section}] {what} within {energy:g} MeV")
        if section == "air" and rows.sum() == 2:
            raise InputError(
                f"{path}: [air] has two planes of {energy:g} MeV; a size, a divergence and a correlation need three, a size one"
            )
        found[float(energy)] = table
    return found
