"""A machine from matRad's base data, `protons_*.mat` (one struct `machine` with `meta` and `data`, one entry of `data` per energy).

Read per energy: `depths` (mm, plus `offset`) and `Z` (MeV cm^2 / g per primary); the kernel in water, `sigma1`, `sigma2` and `weight`
(of the second, wider Gaussian) or `sigma` alone; `LET` (dose-averaged, keV/um), where every energy has it; and `initFocus`, the spread
in air. Its `dist` counts from the virtual source, not from the nozzle: in the generic file it runs from `SAD - BAMStoIsoDist` on, where
the nozzle is, and the spread at `dist = SAD` is `SisFWHMAtIso`. So `Zg = SAD - dist`. (matRad itself takes the spread at the patient's
surface for the whole ray.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator

from torchimpt.checks import InputError
from torchimpt.constants import IDD_GY_MM2_PER_MEV_CM2_G
from torchimpt.files import reader
from torchimpt.machine.curves import DepthCurve, ScaledCurves
from torchimpt.machine.machine import Machine
from torchimpt.machine.optics import Optics
from torchimpt.matfile import load_mat
from torchimpt.physics.bragg import r80

OPTICS_STEP = 25.0
"""Step of the optics' planes, mm."""

LARGEST = 1e12
"""No number of a machine is larger, in any unit; squares of these are finite."""

MOST_PLANES = 4000
"""More planes of the optics than any machine needs: 100 m."""

BEYOND = 3.0
"""From this far beyond R80 on the kernel's widths and weight hold their value, mm: the fits behind them have too few protons to go on."""


@reader("machine")
def read_matrad_machine(path: str | Path) -> Machine:
    """Read a machine from matRad's base data (see the module).

    Parameters
    ----------
    path
        A `.mat` file of version 7 or older. Where an energy has several foci the first one is taken.

    Returns
    -------
    Machine with one or two lateral Gaussians, as the file has them. matRad's `sigma1` and `sigma2` leave the spread in air out.
    """
    path = Path(path)
    machine = _load(path)
    meta = _field(path, machine, "meta")
    mode = str(getattr(meta, "radiationMode", "protons"))
    if mode != "protons":
        raise InputError(f"{path} is a machine for {mode[:40]}; torchimpt plans with protons")
    sad = _number(path, meta, "SAD")
    data = sorted(np.atleast_1d(_field(path, machine, "data")), key=lambda entry: _number(path, entry, "energy"))
    if not data:
        raise InputError(f"{path}: 'data' is empty; it must have one entry per energy")
    return Machine(path.stem, (sad, sad), ScaledCurves.of([_curve(path, entry) for entry in data]), _optics(path, data, sad))


def _load(path: Path) -> Any:
    """The file's struct `machine`."""
    if not path.is_file():
        raise InputError(f"no file {path}; it must be matRad base data, protons_*.mat")
    try:
        content = load_mat(path)
    except NotImplementedError:
        raise InputError(f"{path} is a MATLAB file of version 7.3; save it again with save(..., '-v7')") from None
    except InputError:
        raise
    except (ValueError, TypeError, OSError) as error:
        raise InputError(f"{path} is no MATLAB file that can be read: {error}") from None
    if "machine" not in content:
        names = ", ".join(sorted(name for name in content if not name.startswith("__")))
        raise InputError(f"{path} has no variable 'machine' but {names or 'nothing'}; it must be matRad base data, protons_*.mat")
    return content["machine"]


def _field(path: Path, struct: Any, name: str) -> Any:
    """A field of a MATLAB struct, or an error that names it."""
    if not hasattr(struct, name):
        raise InputError(f"{path} has no field '{name}' but {', '.join(getattr(struct, '_fieldnames', []))}; is it matRad base data?")
    return getattr(struct, name)


def _number(path: Path, struct: Any, name: str) -> float:
    """A field that is one finite number."""
    value = np.asarray(_field(path, struct, name))
    if value.size != 1 or value.dtype.kind not in "fiu" or not np.isfinite(value).all():
        raise InputError(f"{path}: '{name}' must be one finite number, got {_short(value)}")
    return float(value.item())


def _numbers(path: Path, struct: Any, name: str, what: str, like: np.ndarray | None = None) -> np.ndarray:
    """A field that is a row of finite numbers, as many as there are in `like`; of a matrix the first row."""
    value = np.asarray(_field(path, struct, name))
    row = np.atleast_2d(value)[0] if value.size else value.flatten()
    good = row.dtype.kind in "fiu" and len(row) > 0 and bool((np.abs(row) <= LARGEST).all())  # no NaN either
    if not good or (like is not None and row.shape != like.shape):
        count = f"{len(like)} finite numbers" if like is not None else "a row of finite numbers"
        raise InputError(f"{path}: '{name}' of {what} must be {count}, got {_short(value)}")
    return row.astype(float)


def _short(value: np.ndarray) -> str:
    """What an array is, in few words."""
    return f"'{str(value)[:40]}'" if value.size == 1 else f"{value.size} values of type {value.dtype}, shape {value.shape}"


def _curve(path: Path, entry: Any) -> DepthCurve:
    """Depth curves of one energy, from the surface on."""
    energy = _number(path, entry, "energy")
    what = f"{energy:.5g} MeV"
    depth = _numbers(path, entry, "depths", what) + (_number(path, entry, "offset") if hasattr(entry, "offset") else 0.0)
    z = np.concatenate(([0.0], depth[depth > 0.0]))
    if np.any(np.diff(depth) <= 0) or len(z) < 8:
        raise InputError(f"{path}: the depths of {what} must ascend, and 8 of them lie in the water")

    def column(name: str) -> np.ndarray:
        return np.interp(z, depth, _numbers(path, entry, name, what, depth))

    dose = torch.from_numpy(column("Z") * IDD_GY_MM2_PER_MEV_CM2_G)
    water = torch.from_numpy(z)
    held = np.minimum(z, max(z[z <= r80(water, dose) + BEYOND]))
    names = ["sigma1", "sigma2"] if hasattr(entry, "sigma1") else ["sigma"]
    sigma = [column(name) for name in names]
    if min(values.min() for values in sigma) < 0:
        raise InputError(f"{path}: {' and '.join(names)} of {what} must not be negative")
    variance = np.stack([np.interp(held, z, values**2) for values in sigma])
    halo = np.interp(held, z, column("weight")) if len(names) == 2 else np.zeros_like(z)
    fraction = np.stack([1.0 - halo, halo][: len(names)])
    letd = torch.from_numpy(column("LET")) if hasattr(entry, "LET") else None
    return DepthCurve(energy, water, dose, torch.from_numpy(variance), torch.from_numpy(fraction), letd)


def _optics(path: Path, data: list[Any], sad: float) -> Optics:
    """Spread in air of the first focus on even planes, between the distances that all energies have."""
    distance, sigma = [], []
    for entry in data:
        focus, what = _field(path, entry, "initFocus"), f"the first focus of {entry.energy:.5g} MeV"
        distance.append(_numbers(path, focus, "dist", what))
        sigma.append(_numbers(path, focus, "sigma", what, distance[-1]))
        if len(distance[-1]) < 2 or np.any(np.diff(distance[-1]) <= 0):
            raise InputError(f"{path}: 'dist' of {what} must be two or more distances that ascend, mm from the source")
    low, high = sad - min(d[-1] for d in distance), sad - max(d[0] for d in distance)
    if not low <= 1.0 or not high >= -1.0 or high - low > MOST_PLANES * OPTICS_STEP:
        raise InputError(f"{path}: 'dist' must reach from the nozzle past the isocentre, SAD = {sad:g} mm, in every focus; check its unit")
    planes = low + OPTICS_STEP * np.arange(int((high - low) / OPTICS_STEP) + 1)
    rows = [PchipInterpolator(d, s)(np.clip(sad - planes, d[0], d[-1])) for d, s in zip(distance, sigma, strict=True)]
    energy = torch.tensor([float(entry.energy) for entry in data], dtype=torch.float64)
    return Optics(energy, float(low), OPTICS_STEP, torch.from_numpy(np.stack(rows)))
