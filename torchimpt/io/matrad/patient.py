"""Patients from matRad's `.mat` files, which hold a `ct` and a `cst`.

matRad's cubes are indexed `(y, x, z)`; a ROI is a list of 1-based linear indices in Fortran order of that shape. `ct.x`, `ct.y` and `ct.z`
are the voxel centres in LPS, mm. CT numbers are `ct.cubeHU`; `ct.hlut` is the CT's table of HU and relative stopping power.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchimpt.checks import InputError
from torchimpt.files import input_file, reader
from torchimpt.geometry import Grid
from torchimpt.hu_table import HuTable
from torchimpt.io.mat import load
from torchimpt.io.roles import role_of
from torchimpt.patient import ROI, Patient

_TO_ZYX = (2, 0, 1)

logger = logging.getLogger(__name__)


@reader("matRad patient")
def read_matrad(path: str | os.PathLike) -> Patient:
    """Read a patient or phantom of matRad's.

    Parameters
    ----------
    path
        The `.mat` file, e.g. `"TG119.mat"`, in MATLAB's format 7 or older.

    Returns
    -------
    A patient named after the file, with the file's HU table where it has one. ROIs of matRad's type TARGET are targets, the one of type
    EXTERNAL, or else the one that is named BODY, External or Skin, is the external, the rest are OARs. Objectives and plans are read by
    `read_matrad_objectives` and `read_plan`. Of several CT scenarios the first is taken, and of ROIs without a voxel none, each with a
    logged warning.
    """
    path = input_file(path, "matRad patient")
    content = load(path, ("ct", "cst", "machine"))
    hint = "; it holds a machine, which goes into [machine]" if "machine" in content else ""
    return patient_of(path, content, hint)


def patient_of(path: Path, content: dict[str, Any], hint: str = "") -> Patient:
    """The patient in a file's variables; `hint` ends the error where there is none."""
    ct, cst = _ct_and_cst(path, content, hint)
    cube = _first_scenario(path, _field(path, ct, "cubeHU"), "ct.cubeHU")
    if cube.ndim != 3 or cube.dtype.kind not in "fiu":
        raise InputError(f"{path}: ct.cubeHU must be a cube of CT numbers, got an array of shape {cube.shape} and type {cube.dtype}")
    axes = {name: _axis(path, ct, name, cube.shape["yxz".index(name)]) for name in "xyz"}
    grid = Grid(
        shape=tuple(cube.shape[i] for i in _TO_ZYX),
        spacing=tuple(abs(axes[name][1]) for name in "xyz"),
        origin=tuple(_low_end(*axes[name], cube.shape["yxz".index(name)]) for name in "xyz"),
    )
    reversed_axes = [i for i, name in enumerate("zyx") if axes[name][1] < 0]

    def to_lps(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(np.flip(array.transpose(_TO_ZYX), tuple(reversed_axes))))

    rois: dict[str, ROI] = {}
    typed = any(str(row[2]).upper() == "EXTERNAL" for row in cst)
    for row in cst:
        roi = _roi(path, row, cube.shape, to_lps, typed)
        if roi is not None:
            rois[roi.name] = roi
    return Patient(to_lps(cube.astype(np.float32)), grid, rois, name=path.stem, hu_table=_hu_table(path, ct))


def _ct_and_cst(path: Path, content: dict[str, Any], hint: str) -> tuple[Any, np.ndarray]:
    """The struct `ct` and the cell array `cst`, one row per ROI."""
    missing = [name for name in ("ct", "cst") if name not in content]
    if missing:
        raise InputError(f"{path} has no variable {' and '.join(missing)}, so it is no matRad patient{hint}")
    cst = np.atleast_2d(content["cst"])
    if cst.dtype != object or cst.shape[1] < 4:
        raise InputError(f"{path}: cst must be a cell array of at least 4 columns, got shape {cst.shape}")
    return content["ct"], cst


def _field(path: Path, struct: Any, name: str) -> Any:
    if not hasattr(struct, name):
        remedy = "; convert its electron densities to HU in matRad first" if name == "cubeHU" and hasattr(struct, "cube") else ""
        raise InputError(f"{path}: ct has no field '{name}'{remedy}")
    return getattr(struct, name)


def _first_scenario(path: Path, value: Any, what: str) -> np.ndarray:
    """What a cell array holds for the first CT scenario, or the value itself where there is no cell."""
    array = np.asarray(value)
    if array.dtype != object:
        return array
    if array.size == 0:
        raise InputError(f"{path}: {what} is empty")
    if array.size > 1:
        logger.warning("%s: %s has %d CT scenarios; the first is read", path, what, array.size)
    return np.asarray(array.flat[0])


def _axis(path: Path, ct: Any, name: str, count: int) -> tuple[float, float]:
    """First voxel centre and step (negative where the axis descends) along x, y or z, mm."""
    if hasattr(ct, name):
        centers = np.atleast_1d(np.asarray(getattr(ct, name), dtype=np.float64))
        if centers.shape != (count,) or not np.isfinite(centers).all():
            raise InputError(f"{path}: ct.{name} must be {count} voxel centres, mm, got shape {centers.shape}")
        if count > 1:
            steps = np.diff(centers)
            # Centres are often stored in single precision or rounded to 0.01 mm.
            if np.abs(steps - steps.mean()).max() > 0.02:
                low, high = np.abs(steps).min(), np.abs(steps).max()
                raise InputError(f"{path}: ct.{name} is not evenly spaced ({low:g} to {high:g} mm); resample the CT in matRad")
            return float(centers[0]), float(np.round(steps.mean(), 9))
        return float(centers[0]), float(getattr(_field(path, ct, "resolution"), name))
    # Files without axes: matRad then counts from its own corner; the middle of the CT is put at 0, as for every CT without a place.
    step = float(getattr(_field(path, ct, "resolution"), name))
    return -0.5 * (count - 1) * step, step


def _low_end(first: float, step: float, count: int) -> float:
    """The least of an axis's voxel centres."""
    return first if step > 0 else first + (count - 1) * step


def _roi(path: Path, row: np.ndarray, shape: tuple[int, ...], to_lps: Any, typed: bool) -> ROI | None:
    """One row of cst: number, name, type, voxel list; `typed` where the type tells the external."""
    name, kind = str(row[1]), str(row[2]).upper()
    voxels = np.atleast_1d(_first_scenario(path, row[3], f"ROI '{name}'")) if np.size(row[3]) else np.zeros(0)
    if voxels.size == 0:
        logger.warning("%s: ROI '%s' has no voxel and is left out", path, name)
        return None
    n_voxels = int(np.prod(shape))
    if voxels.dtype.kind not in "fiu" or not ((voxels >= 1) & (voxels <= n_voxels) & (voxels == np.round(voxels))).all():
        raise InputError(f"{path}: ROI '{name}' must list voxel indices from 1 to {n_voxels}")
    mask = np.zeros(n_voxels, dtype=bool)
    mask[voxels.astype(np.int64) - 1] = True
    external = kind == "EXTERNAL" if typed else role_of(name) == "external"
    role = "external" if external else "target" if kind == "TARGET" else "oar"
    return ROI(name, to_lps(mask.reshape(shape, order="F")), role)


def _hu_table(path: Path, ct: Any) -> HuTable | None:
    """The CT's own HU table, where the file has one."""
    if not hasattr(ct, "hlut"):
        return None
    table = np.asarray(ct.hlut, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] < 2:
        raise InputError(f"{path}: ct.hlut must have two columns, HU and relative stopping power, got shape {table.shape}")
    return HuTable(torch.from_numpy(table[:, 0].copy()), torch.from_numpy(table[:, 1].copy()), f"{path.name} hlut")
