"""A machine from matRad's base data, `protons_*.mat` (one struct `machine` with `meta` and `data`, one entry of `data` per energy).

Read per energy: `depths` (mm, plus `offset`) and `Z` (MeV cm^2 / g per primary); the kernel in water, `sigma1`, `sigma2` and `weight`
(of the second, wider Gaussian) or `sigma` alone; and `initFocus`, the spread in air. Its `dist` counts from the virtual source, not from
the nozzle: in the generic file it runs from `SAD - BAMStoIsoDist` on, where the nozzle is, and the spread at `dist = SAD` is
`SisFWHMAtIso`. So `Zg = SAD - dist`. (matRad itself takes the spread at the patient's surface for the whole ray.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from scipy.io import loadmat

from torchimpt.checks import InputError
from torchimpt.constants import IDD_GY_MM2_PER_MEV_CM2_G
from torchimpt.machine.curves import DepthCurve, ScaledCurves
from torchimpt.machine.machine import Machine
from torchimpt.machine.optics import Optics
from torchimpt.physics.bragg import r80

OPTICS_STEP = 25.0
"""Step of the optics' planes, mm."""

BEYOND = 3.0
"""From this far beyond R80 on the kernel's widths and weight hold their value, mm: the fits behind them have too few protons to go on."""


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
        raise InputError(f"{path} is a machine for {mode}; torchimpt plans with protons")
    sad = float(_field(path, meta, "SAD"))
    data = sorted(np.atleast_1d(_field(path, machine, "data")), key=lambda entry: float(_field(path, entry, "energy")))
    return Machine(path.stem, (sad, sad), ScaledCurves.of([_curve(path, entry) for entry in data]), _optics(path, data, sad))


def _load(path: Path) -> Any:
    """The file's struct `machine`."""
    if not path.is_file():
        raise InputError(f"no file {path}; it must be matRad base data, protons_*.mat")
    try:
        content = loadmat(path, squeeze_me=True, struct_as_record=False)
    except NotImplementedError:
        raise InputError(f"{path} is a MATLAB file of version 7.3; save it again with save(..., '-v7')") from None
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


def _curve(path: Path, entry: Any) -> DepthCurve:
    """Depth curves of one energy, from the surface on."""
    energy = float(entry.energy)
    depth = np.asarray(_field(path, entry, "depths"), dtype=float) + float(getattr(entry, "offset", 0.0))
    z = np.concatenate(([0.0], depth[depth > 0.0]))
    if np.any(np.diff(depth) <= 0) or len(z) < 8:
        raise InputError(f"{path}: the depths of {energy:.5g} MeV must ascend, and 8 of them lie in the water")

    def column(name: str) -> np.ndarray:
        values = np.asarray(_field(path, entry, name), dtype=float)
        if values.shape != depth.shape or not np.isfinite(values).all():
            raise InputError(f"{path}: '{name}' of {energy:.5g} MeV must be {len(depth)} finite numbers, one per depth")
        return np.interp(z, depth, values)

    dose = torch.from_numpy(column("Z") * IDD_GY_MM2_PER_MEV_CM2_G)
    water = torch.from_numpy(z)
    held = np.minimum(z, max(z[z <= r80(water, dose) + BEYOND]))
    names = ["sigma1", "sigma2"] if hasattr(entry, "sigma1") else ["sigma"]
    variance = np.stack([np.interp(held, z, column(name) ** 2) for name in names])
    halo = np.interp(held, z, column("weight")).clip(0.0, 1.0) if len(names) == 2 else np.zeros_like(z)
    fraction = np.stack([1.0 - halo, halo][: len(names)])
    return DepthCurve(energy, water, dose, torch.from_numpy(variance), torch.from_numpy(fraction))


def _optics(path: Path, data: list[Any], sad: float) -> Optics:
    """Spread in air of the first focus on even planes, between the distances that all energies have."""
    focus = [_field(path, entry, "initFocus") for entry in data]
    distance = [np.atleast_2d(np.asarray(_field(path, f, "dist"), dtype=float))[0] for f in focus]
    sigma = [np.atleast_2d(np.asarray(_field(path, f, "sigma"), dtype=float))[0] for f in focus]
    low, high = sad - min(d[-1] for d in distance), sad - max(d[0] for d in distance)
    planes = low + OPTICS_STEP * np.arange(int((high - low) / OPTICS_STEP) + 1)
    rows = [PchipInterpolator(d, s)(np.clip(sad - planes, d[0], d[-1])) for d, s in zip(distance, sigma, strict=True)]
    energy = torch.tensor([float(entry.energy) for entry in data], dtype=torch.float64)
    return Optics(energy, float(low), OPTICS_STEP, torch.from_numpy(np.stack(rows)))
