"""The machine file that `torchimpt commission` writes: TOML, one array a parameter, one entry an energy (docs/machine_file.md).

format = "torchimpt machine"
version = 1
name, sad_mm
[curves]        energy_mev, and the parameters of `torchimpt.machine.parametric` by their names
[optics]        energy_mev, sigma_x_mm, divergence_x_rad, correlation_x (at the isocentre, `torchimpt.machine.optics.drift`), and along y
[calibration]   energy_mev, protons_per_mu; may be missing
[curves_error], [optics_error]   standard errors of the same; not read
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchimpt.checks import InputError, nearest
from torchimpt.files import input_file, reader
from torchimpt.machine.csv_folder import OPTICS_REACH, OPTICS_STEP
from torchimpt.machine.curves import ScaledCurves
from torchimpt.machine.machine import Calibration, Machine
from torchimpt.machine.optics import Optics, drift
from torchimpt.machine.parametric import DOSE, RANGE, SCATTER, SHARE, WIDE, depth_curve

FORMAT, VERSION, FILE = "torchimpt machine", 1, "machine.toml"
"""What the file says that it is, and its name in the folder of a commissioning."""

OPTICS = tuple(f"{part}_{axis}{unit}" for axis in "xy" for part, unit in (("sigma", "_mm"), ("divergence", "_rad"), ("correlation", "")))

Columns = Mapping[str, np.ndarray]


def machine_of(name: str, sad: tuple[float, float], curves: Columns, optics: Columns, calibration: Columns | None) -> Machine:
    """A machine from the file's columns, each `(n_energies,)` of its section."""
    parameters = [key for key in curves if key != "energy_mev"]
    rows = [{key: float(curves[key][i]) for key in parameters} for i in range(len(curves["energy_mev"]))]
    depth_curves = [depth_curve(float(energy), row) for energy, row in zip(curves["energy_mev"], rows, strict=True)]
    z = np.arange(-OPTICS_REACH, OPTICS_REACH + OPTICS_STEP / 2, OPTICS_STEP)
    parts = [optics[key][:, None] for key in OPTICS]
    sigma_x, sigma_y = (torch.from_numpy(np.sqrt(drift(parts[i], parts[i + 1], parts[i + 2], -z))) for i in (0, 3))
    return Machine(
        name,
        sad,
        ScaledCurves.of(depth_curves),
        Optics(
            torch.from_numpy(optics["energy_mev"]), -OPTICS_REACH, OPTICS_STEP, sigma_x, None if torch.equal(sigma_x, sigma_y) else sigma_y
        ),
        calibration=None
        if calibration is None
        else Calibration(torch.from_numpy(calibration["energy_mev"]), torch.from_numpy(calibration["protons_per_mu"]) / 1e6),
    )


def text_of(name: str, sad: tuple[float, float], sections: Mapping[str, Columns], comment: str = "") -> str:
    """The file; every number reads back as it was."""
    lines = [f"# {comment}"] if comment else []
    plain = name.replace("\\", "\\\\").replace('"', '\\"')
    lines += [f'format = "{FORMAT}"', f"version = {VERSION}", f'name = "{plain}"', f"sad_mm = [{sad[0]!r}, {sad[1]!r}]"]
    for section, columns in sections.items():
        lines += ["", f"[{section}]", *(f"{key} = [{', '.join(repr(float(v)) for v in column)}]" for key, column in columns.items())]
    return "\n".join(lines) + "\n"


@reader("machine")
def read_commissioned_machine(path: str | Path) -> Machine:
    """Read a machine file (see the module), or the folder that `torchimpt commission` wrote it into."""
    path = Path(path)
    path = input_file(path / FILE if path.is_dir() else path, "machine")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not valid TOML: {error}") from None
    if data.get("format") != FORMAT:
        raise InputError(f"{path} must say format = '{FORMAT}', got {data.get('format')!r}; `torchimpt commission` writes such files")
    if data.get("version") != VERSION:
        raise InputError(
            f"{path} is of version {data.get('version')!r} of its format, and this torchimpt reads {VERSION}; commission the machine anew, "
            "or take the torchimpt that wrote it"
        )
    halo = (*SHARE, *WIDE) if isinstance(data.get("curves"), dict) and SHARE[0] in data["curves"] else ()
    curves = _section(path, data, "curves", (*RANGE, *DOSE, *SCATTER, *halo))
    optics = _section(path, data, "optics", OPTICS)
    calibration = _section(path, data, "calibration", ("protons_per_mu",)) if "calibration" in data else None
    for name in RANGE:
        if curves[name].min() <= 0:
            raise InputError(f"{path}: [curves] {name} must be positive, got {curves[name].min():g}")
    for axis in "xy":
        if np.abs(optics[f"correlation_{axis}"]).max() > 1:
            raise InputError(f"{path}: [optics] correlation_{axis} must lie between -1 and 1")
    sad = data.get("sad_mm")
    if not isinstance(sad, list) or len(sad) != 2 or not all(isinstance(value, (int, float)) for value in sad):
        raise InputError(f"{path}: sad_mm must be two numbers, mm, got {sad!r}")
    return machine_of(str(data.get("name", path.stem)), (float(sad[0]), float(sad[1])), curves, optics, calibration)


def _section(path: Path, data: dict[str, Any], section: str, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The columns of a section, as long as its energies, which ascend."""
    found = data.get(section)
    if not isinstance(found, dict):
        raise InputError(f"{path} has no section [{section}]{nearest(section, data)}")
    columns = {}
    for name in ("energy_mev", *names):
        if name not in found:
            raise InputError(f"{path}: [{section}] has no {name}{nearest(name, found)}")
        values = found[name]
        if not isinstance(values, list) or not all(isinstance(v, (int, float)) and np.isfinite(v) for v in values):
            raise InputError(f"{path}: [{section}] {name} must be an array of finite numbers")
        columns[name] = np.array(values, dtype=np.float64)
        if len(columns[name]) != len(columns["energy_mev"]) or not len(columns[name]):
            raise InputError(f"{path}: [{section}] {name} must have {len(columns['energy_mev'])} numbers, one an energy, got {len(values)}")
    steps = np.diff(columns["energy_mev"])
    if (steps <= 0).any():
        i = int((steps <= 0).argmax())
        before, after = columns["energy_mev"][i : i + 2]
        raise InputError(f"{path}: [{section}] energy_mev must ascend, but {after:g} follows {before:g}")
    return columns
