"""A patient from a folder of DICOM files: a CT series, and the structure set that was drawn on it."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import affine_transform

from torchimpt.checks import InputError, PhysicsWarning
from torchimpt.contours import Contours
from torchimpt.files import input_folder, reader
from torchimpt.geometry import POSITIONS, Grid
from torchimpt.io.dicom.catalog import Found, catalog, walk
from torchimpt.io.dicom.choose import choose_series, choose_structures
from torchimpt.io.dicom.ct import AIR, Stack, read_stack, stack_of
from torchimpt.io.dicom.structure_set import DrawnROI, StructureSet, outline, read_structure_set
from torchimpt.io.image import tell_unscaled
from torchimpt.io.lps import tilt, turned
from torchimpt.memory import check_memory
from torchimpt.patient import ROI, Patient

TOLD_CUT = 0.02
"""Share of a ROI's volume outside the CT that is told."""

logger = logging.getLogger(__name__)


@reader("DICOM patient")
def read_dicom(path: str | os.PathLike, structures: str | None = None, series: str | None = None) -> Patient:
    """Read a CT with its structure set.

    Parameters
    ----------
    path
        A folder. Files may lie in folders of their own and be named anyhow; what is no CT slice and no structure set is left alone.
    structures
        Label, name, UID or file name of the structure set, where there are several whose CT is here.
    series
        UID or description of the CT series, where the structure set does not tell.

    Returns
    -------
    A patient named after the folder, in the position of its CT. A ROI is what lies between its contours (`torchimpt.contours`), and its
    mask as many voxels as that fills, the fullest. ROIs without a closed contour are left out, those that reach out of the CT cut off.
    Slices of a tilted gantry, and oblique ones, are interpolated onto a grid along the patient's axes.
    """
    chosen, files = find_patient(path, structures, series)
    drawn = None if chosen is None else read_structure_set(chosen.path)
    if len(files) < 2:
        wanted = f"; structure set {drawn.path} was drawn on {len(drawn.images)}" if drawn is not None and drawn.images else ""
        raise InputError(f"the CT has one slice, {files[0].path}, and a patient needs two or more{wanted}; export the series whole")
    placed = stack_of(files)
    hu, stack = read_stack(placed)
    slices = placed.w - (stack.origin - placed.origin) @ stack.axes[:, 2]  # along the frame of the even ones
    values, grid = _upright(hu, stack)
    del hu
    tensor = torch.from_numpy(values)
    tell_unscaled(tensor, Path(path))
    rois = {} if drawn is None else _rois(drawn, files, stack, slices, grid)
    return Patient(tensor, grid, rois, name=Path(path).resolve().name, position=_position(files))


def find_patient(path: str | os.PathLike, structures: str | None, series: str | None) -> tuple[Found | None, Sequence[Found]]:
    """The structure set, if there is one, and the CT's slices that a folder's patient is read from; arguments as of `read_dicom`."""
    folder = input_folder(path, "DICOM patient")
    found = catalog(walk(folder))
    for broken, reason in found.broken:
        logger.warning("%s is left out: %s", broken, reason)
    chosen = choose_structures(found, folder, structures)
    return chosen, found.series[choose_series(found, folder, chosen, series)]


def _position(files: Sequence[Found]) -> str:
    """How the patient lies, as the CT says."""
    told = {found.text("PatientPosition") for found in files}
    if len(told) > 1 or (position := told.pop()) not in ("", *POSITIONS):
        raise InputError(
            f"the CT's patient position is {' and '.join(sorted(told)) or position}; one of {', '.join(POSITIONS)} can be read: set "
            "position = '...' in [patient] where one is meant"
        )
    if not position:
        warnings.warn(
            "the CT does not say how the patient lies (PatientPosition); head first supine (HFS) is taken: set position = '...' in "
            "[patient] where it is another",
            PhysicsWarning,
            stacklevel=4,
        )
    return position or "HFS"


def _affine(stack: Stack) -> np.ndarray:
    """`(3, 3)`: LPS mm per step of the indices k, row and column."""
    du, dv = stack.spacing
    return np.stack((stack.axes[:, 2] * stack.step, stack.axes[:, 1] * dv, stack.axes[:, 0] * du), axis=1)


def _upright(hu: np.ndarray, stack: Stack) -> tuple[np.ndarray, Grid]:
    """The CT along the patient's axes: turned, or interpolated where its slices are oblique or sheared."""
    if not (angle := tilt(stack.axes)):
        return turned(hu, stack.axes, np.array([*stack.spacing, stack.step]), stack.origin)
    affine = _affine(stack)
    corners = np.stack(np.meshgrid(*((-0.5, n - 0.5) for n in hu.shape), indexing="ij"), axis=-1).reshape(-1, 3) @ affine.T + stack.origin
    # along each axis the voxel size of the image's axis that is nearest to it
    size = np.array([stack.spacing[0], stack.spacing[1], stack.step])[np.abs(stack.axes).argmax(axis=1)]
    count = np.ceil(np.ptp(corners, axis=0) / size - 1e-6).astype(int)
    first = corners.min(axis=0) + 0.5 * size
    grid = Grid(tuple(count[::-1].tolist()), tuple(size.tolist()), tuple(first.tolist()))
    needed = 4.0 * grid.n_voxels
    check_memory(f"the CT on an upright grid of {grid.n_voxels:.2g} voxels", needed, "cpu", "take a machine with more memory")
    logger.warning(
        "the CT's slices are tilted or oblique by %.3g degrees: it is interpolated onto a grid along the patient's axes, of %s voxels",
        angle, " x ".join(map(str, count)),
    )  # fmt: skip
    return _interpolated(hu, affine, stack.origin, grid, AIR), grid


def _interpolated(values: np.ndarray, affine: np.ndarray, origin: np.ndarray, grid: Grid, outside: float) -> np.ndarray:
    """Values `(k, row, column)` at the grid's voxels `(z, y, x)`, linearly."""
    steps = np.diag(grid.spacing)[:, ::-1]
    matrix = np.linalg.solve(affine, steps)
    offset = np.linalg.solve(affine, np.array(grid.origin) - origin)
    return affine_transform(values, matrix, offset, grid.shape, np.float32, order=1, mode="grid-constant", cval=outside)


def _rois(drawn: StructureSet, files: Sequence[Found], stack: Stack, slices: np.ndarray, grid: Grid) -> dict[str, ROI]:
    """The drawn ROIs on the CT's grid."""
    missing = drawn.images - {found.uid for found in files}
    if missing and missing != drawn.images:  # a program that compresses may give all slices new UIDs
        warnings.warn(
            f"structure set {drawn.path} was drawn on {len(drawn.images)} slices, of which {len(missing)} are not here; the CT may be "
            "cut off",
            PhysicsWarning,
            stacklevel=4,
        )
    check_memory(f"{len(drawn.rois)} ROIs on {grid.n_voxels:.2g} voxels", len(drawn.rois) * grid.n_voxels, "cpu", "take out ROIs")
    rois = {}
    for roi in drawn.rois:
        if not roi.contours:
            logger.warning("ROI '%s' has no closed contour and is left out", roi.name)
            continue
        try:
            region = outline(roi, stack.step, stack.origin, stack.axes, slices)
        except InputError as error:
            warnings.warn(f"{error}; it is left out", PhysicsWarning, stacklevel=4)
            continue
        mask = _mask(roi, region, stack, grid)
        if mask is not None:
            if roi.rsp is not None:
                logger.warning(
                    "ROI '%s' has a relative stopping power of %g in the structure set, in the place of its CT's", roi.name, roi.rsp
                )
            rois[roi.name] = ROI(roi.name, torch.from_numpy(mask), roi.role, roi.rsp, outline=region)
    return rois


def _mask(roi: DrawnROI, region: Contours, stack: Stack, grid: Grid) -> np.ndarray | None:
    """Mask `(z, y, x)` of a region: as many voxels as it fills, the fullest; None where it fills none."""
    du, dv = stack.spacing
    sizes, shape = (stack.step, dv, du), (len(stack.w), *stack.shape)
    share, at = region.fractions([-0.5 * size for size in sizes], sizes, shape)
    filled, whole = float(share.sum()) * abs(np.linalg.det(_affine(stack))), region.volume
    if filled < (1.0 - TOLD_CUT) * whole:
        warnings.warn(
            f"ROI '{roi.name}' reaches out of the CT, which holds {filled / whole:.0%} of its {whole / 1000:.3g} cm3; the rest is cut off"
            + ("" if filled else ", so that it is left out"),
            PhysicsWarning,
            stacklevel=5,
        )
    if not filled:
        return None
    if tilt(stack.axes):
        affine = _affine(stack)
        whole_share = _interpolated(share, affine, stack.origin + affine @ np.array(at, dtype=np.float64), grid, 0.0)
        return fullest(whole_share, filled / grid.voxel_volume)
    box = fullest(share, float(share.sum()))
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(first, first + n) for first, n in zip(at, box.shape, strict=True))] = box
    return turned(mask, stack.axes, np.array([du, dv, stack.step]), stack.origin)[0]


def fullest(share: np.ndarray, count: float) -> np.ndarray:
    """Mask of the `count` (rounded, at least 1) entries of which the greatest share lies inside; of equal ones the first."""
    wanted = max(1, round(count))
    inside = np.flatnonzero(share)
    if wanted >= len(inside):
        return share > 0
    values = share.reshape(-1)[inside]
    least = np.partition(values, len(values) - wanted)[len(values) - wanted]
    mask = (share > least).reshape(-1)
    ties = inside[values == least]
    mask[ties[: wanted - int(mask.sum())]] = True
    return mask.reshape(share.shape)
