"""Head-and-neck patients of the public OpenKBP data set.

Source: A. Babier et al., "OpenKBP: The open-access knowledge-based planning grand challenge and dataset", Med Phys 48:5549, 2021.
A patient is a folder: `voxel_dimensions.csv` (mm, in the order of the array's axes), `ct.csv` (`flat index,value` of the voxels that
are not zero in a 128 x 128 x 128 array in C order), and one list of flat indices for each ROI. CT values are HU + 1000, clipped at 0.
The array's index grows to posterior on axis 0, to patient left on axis 1, to inferior on axis 2 (read off the anatomy). The files hold
no position: the middle of the array is put at LPS (0, 0, 0).
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import torch

from torchimpt.checks import InputError
from torchimpt.files import input_file, input_folder, reader
from torchimpt.geometry import Grid
from torchimpt.io.roles import role_of
from torchimpt.patient import ROI, Patient

_SIDE = 128
_HU_OFFSET = 1000.0
_NOT_ROIS = {"ct", "voxel_dimensions", "dose", "possible_dose_mask"}

logger = logging.getLogger(__name__)


@reader("OpenKBP patient")
def read_openkbp(path: str | os.PathLike) -> Patient:
    """Read a patient folder of the OpenKBP data set.

    Parameters
    ----------
    path
        The patient's folder, e.g. `"pt_109"`.

    Returns
    -------
    A patient named after its folder. ROIs keep their file's name; PTV, CTV and GTV are targets. `External` is added: the voxels with
    a CT value (`value > 0`), since the data set has no body contour. A ROI whose list is empty is left out, with a logged warning.
    The data set's photon `dose.csv` and `possible_dose_mask.csv` are not read.
    """
    folder = input_folder(path, "OpenKBP patient")
    dy, dx, dz = _voxel_dimensions(folder)
    grid = Grid(shape=(_SIDE,) * 3, spacing=(dx, dy, dz), origin=tuple(-0.5 * (_SIDE - 1) * spacing for spacing in (dx, dy, dz)))

    index, value = _columns(folder / "ct.csv", n_columns=2)
    if np.unique(index).size != index.size:
        raise InputError(f"{folder / 'ct.csv'} lists a voxel twice; copy the file anew from the data set")
    if not np.isfinite(value).all():
        raise InputError(f"{folder / 'ct.csv'} has {int((~np.isfinite(value)).sum())} CT values that are NaN or infinite")
    cube = np.zeros(_SIDE**3, dtype=np.float32)
    cube[index] = value
    ct = _to_lps(cube)
    if not (ct > 0).any():
        raise InputError(f"{folder / 'ct.csv'} has no CT value above zero, so there is no body; copy the file anew from the data set")
    rois = {"External": ROI("External", ct > 0, "external")}
    for file in sorted(folder.glob("*.csv")):
        if file.stem in _NOT_ROIS:
            continue
        (index,) = _columns(file, n_columns=1)
        if index.size == 0:
            logger.warning("%s lists no voxel; the patient is read without the ROI '%s'", file, file.stem)
            continue
        cube = np.zeros(_SIDE**3, dtype=bool)
        cube[index] = True
        rois[file.stem] = ROI(file.stem, _to_lps(cube), "target" if role_of(file.stem) == "target" else "oar")
    return Patient(ct - _HU_OFFSET, grid, rois, name=folder.resolve().name)


def _voxel_dimensions(folder: Path) -> tuple[float, float, float]:
    """The three voxel sizes, mm, in the order of the array's axes."""
    file = input_file(folder / "voxel_dimensions.csv", "OpenKBP patient")
    try:
        size = np.array(file.read_text().replace(",", " ").split(), dtype=np.float64)
    except ValueError as error:
        raise InputError(f"{file} must hold three numbers, mm: {error}") from error
    if size.shape != (3,) or not (np.isfinite(size) & (size > 0)).all():
        raise InputError(f"{file} must hold three positive numbers, mm, got {size.tolist()}")
    return tuple(size.tolist())


def _columns(file: Path, n_columns: int) -> tuple[np.ndarray, ...]:
    """The first columns of a `flat index,value` file with one header line; the index as int64, checked."""
    input_file(file, "OpenKBP patient")
    try:
        with file.open() as lines:
            next(lines, None)
            rows = [line for line in lines if line.strip()]
        table = np.loadtxt(rows, delimiter=",", usecols=range(n_columns), ndmin=2) if rows else np.zeros((0, n_columns))
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not a list of 'flat index,value': {error}") from error
    index = table[:, 0]
    bad = ~((index >= 0) & (index < _SIDE**3) & (index == np.round(index)))
    if bad.any():
        raise InputError(
            f"{file} has {int(bad.sum())} voxel indices that are not whole numbers from 0 to {_SIDE**3 - 1} (the first: {index[bad][0]:g})"
        )
    return (index.astype(np.int64), *table.T[1:])


def _to_lps(cube: np.ndarray) -> torch.Tensor:
    """The flat array `(posterior, left, inferior)` as `(z, y, x)` in LPS, where z grows to superior."""
    array = cube.reshape((_SIDE,) * 3).transpose(2, 0, 1)[::-1]
    return torch.from_numpy(np.ascontiguousarray(array))
