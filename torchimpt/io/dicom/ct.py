"""A CT series: slices in any order, with any names, become a stack by their positions.

Slices are sorted by where they lie, never by their number. Each has its own rescale slope and intercept. Slices of a tilted gantry are
sheared against each other: their frame has axes along rows, columns, and from slice to slice, which need not be perpendicular. Uneven
slices are averaged onto even ones; each stands for what is nearer to it than to the next. A slice that is missing is an error: what was
there is not known.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from torchimpt.checks import InputError
from torchimpt.files import reading
from torchimpt.io.dicom.catalog import Found
from torchimpt.io.dicom.dataset import number, numbers, read_dataset, stored_pixels
from torchimpt.io.image import without_chatter
from torchimpt.memory import check_memory

PARALLEL = 1e-3
"""Largest difference between slices' direction cosines, and between an angle of rows and columns and a right one: 0.06 degrees."""

OFF_LINE = 0.1
"""How far a slice's corner may lie off the line of all, mm."""

SAME_PLACE = 0.01
"""Slices nearer than this lie in the same place, mm."""

UNEVEN = 0.05
"""How far slices may lie off even places and still count as even, mm: positions are often rounded to 0.1 mm."""

MISSING = 1.5
"""A gap this times as wide as usual, between slices that are thinner than it, is where slices are missing."""

AIR = -1024.0
"""What is lower is no CT number, but marks what was not scanned, or is streaks of metal; air all the same."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Stack:
    """Where a series' slices lie.

    Attributes
    ----------
    files
        By ascending `w`.
    origin
        LPS point of the first voxel of the first slice, mm.
    axes
        `(3, 3)`: its columns are the directions `(u, v, w)` along a row, along a column, and from slice to slice.
    spacing
        Pixel size along u and v, mm.
    shape
        `(rows, columns)`.
    w
        `(n_slices,)` place of each, mm, from 0.
    """

    files: tuple[Found, ...]
    origin: np.ndarray
    axes: np.ndarray
    spacing: tuple[float, float]
    shape: tuple[int, int]
    w: np.ndarray

    @property
    def even(self) -> bool:
        """Whether the slices lie as if they were equally far apart."""
        return float(np.abs(self.w - np.linspace(0.0, self.w[-1], len(self.w))).max()) <= UNEVEN

    @property
    def step(self) -> float:
        """Distance of even slices, mm; the least where they are not."""
        gaps = np.diff(self.w)
        return float(self.w[-1] / len(gaps) if self.even else gaps.min())


def stack_of(files: Sequence[Found]) -> Stack:
    """Sort slices by their places, and check that they make a volume."""
    rows = []
    for found in files:
        with reading(found.path, "CT slice"):
            place = numbers(found.header, "ImagePositionPatient", "the slice", 3)
            axes = numbers(found.header, "ImageOrientationPatient", "the slice", 6).reshape(2, 3)
            dv, du = numbers(found.header, "PixelSpacing", "the slice", 2)
            size = [int(number(found.header, key, "the slice")) for key in ("Rows", "Columns")]
            if min(dv, du) <= 0 or min(size) < 1:
                raise InputError(f"PixelSpacing, Rows and Columns must be positive, got {dv:g} x {du:g} mm and {size[0]} x {size[1]}")
            thick = number(found.header, "SliceThickness", "the slice") if found.header.get("SliceThickness") is not None else 0.0
        rows.append((place, axes, (float(du), float(dv)), (size[0], size[1]), thick))
    places = np.array([row[0] for row in rows])
    axes = rows[0][1] / np.linalg.norm(rows[0][1], axis=1, keepdims=True)
    if not abs(float(axes[0] @ axes[1])) <= PARALLEL:
        raise InputError(f"{files[0].path}: its rows and columns are not perpendicular (ImageOrientationPatient); export the CT anew")
    for found, (_, own, spacing, shape, _) in zip(files, rows, strict=True):
        if np.abs(own - rows[0][1]).max() > PARALLEL:
            raise InputError(f"slices lie in different directions: {files[0].path} and {found.path}; export one CT in a series")
        if shape != rows[0][3] or np.abs(np.subtract(spacing, rows[0][2])).max() > 1e-4:
            raise InputError(f"slices differ in size or pixel spacing: {files[0].path} and {found.path}; export one CT in a series")
    normal = np.cross(axes[0], axes[1])
    order = np.argsort(places @ normal, kind="stable")
    places, ordered = places[order], tuple(files[i] for i in order)
    along = normal
    if len(files) > 1:
        _check_places(places @ normal, ordered)
        along = (places[-1] - places[0]) / np.linalg.norm(places[-1] - places[0])
    w = (places - places[0]) @ along
    off = np.linalg.norm(places - places[0] - w[:, None] * along, axis=1)
    if off.max() > OFF_LINE:
        raise InputError(
            f"slice {ordered[int(off.argmax())].path} lies {off.max():.3g} mm beside the line of the others; the series is no volume, "
            "resample or export it anew"
        )
    _check_gaps(w, np.array([rows[i][4] for i in order]), ordered)
    return Stack(ordered, places[0], np.stack((axes[0], axes[1], along), axis=1), rows[0][2], rows[0][3], w)


def _check_places(d: np.ndarray, files: Sequence[Found]) -> None:
    """Raise where two slices lie in the same place."""
    i = int(np.diff(d).argmin())
    if d[i + 1] - d[i] < SAME_PLACE:
        many = int((np.diff(d) < SAME_PLACE).sum())
        raise InputError(
            f"two slices of the series lie in the same place, {many} times: {files[i].path} and {files[i + 1].path}; it holds several "
            "images (phases of breathing, two reconstructions): keep one of them"
        )


def _check_gaps(w: np.ndarray, thick: np.ndarray, files: Sequence[Found]) -> None:
    """Raise where slices are missing: a gap that is wider than usual and than its slices are thick."""
    gaps = np.diff(w)
    if len(gaps) < 2:
        return
    usual = float(np.median(gaps))
    wide = np.flatnonzero((gaps > MISSING * usual) & (gaps > 1.2 * np.maximum(thick[1:], thick[:-1])))
    if len(wide):
        i = int(wide[0])
        lost = sum(round(float(gaps[j]) / usual) - 1 for j in wide)
        raise InputError(
            f"{lost} slice{'s are' if lost > 1 else ' is'} missing: {files[i].path.name} and {files[i + 1].path.name} are {gaps[i]:.4g} mm "
            f"apart, at {_place(files[i])} and {_place(files[i + 1])}, others {usual:.4g} mm; export the series whole"
        )


def _place(found: Found) -> str:
    return "(" + ", ".join(f"{float(x):.6g}" for x in found.header.ImagePositionPatient) + ")"


def read_stack(stack: Stack) -> tuple[np.ndarray, Stack]:
    """The CT numbers of a stack `(slices, rows, columns)`, HU, float32, on even slices, and where these lie."""
    n, (rows, columns) = len(stack.w), stack.shape
    check_memory(f"a CT of {n} slices of {rows} x {columns}", 12.0 * n * rows * columns, "cpu", "take a machine with more, or fewer slices")
    hu = np.empty((n, rows, columns), dtype=np.float32)
    blank = np.zeros(n, dtype=bool)
    low = 0
    for k, found in enumerate(stack.files):
        values = slice_hu(found, stack.shape)
        blank[k] = float(np.ptp(values)) == 0.0
        low += int((values < AIR).sum())
        np.maximum(values, AIR, out=hu[k])
    if low:
        logger.info("%d voxels are below %g HU: not scanned, or streaks; they are taken as air", low, AIR)
    _check_blank(blank, stack.files, hu)
    return (hu, stack) if stack.even or n < 3 else _evened(hu, stack)


def _check_blank(blank: np.ndarray, files: Sequence[Found], hu: np.ndarray) -> None:
    """Raise where a slice within the body, or the whole CT, holds nothing."""
    if float(hu.max()) < -900.0:
        raise InputError(f"the CT of {files[0].path.parent} has no voxel above -900 HU: it is empty; export it anew")
    filled = np.flatnonzero(~blank)
    inside = [int(k) for k in np.flatnonzero(blank) if len(filled) and filled[0] < k < filled[-1]]
    if inside:
        raise InputError(
            f"slice {files[inside[0]].path} is empty, every voxel is {hu[inside[0], 0, 0]:g} HU, between slices that are not"
            f"{f' ({len(inside)} such slices)' if len(inside) > 1 else ''}; export the series anew"
        )


def slice_hu(found: Found, shape: tuple[int, int]) -> np.ndarray:
    """CT numbers of one slice `(rows, columns)`, HU, float32, by its own rescale slope and intercept."""
    path = found.path
    with reading(path, "CT slice"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        file = read_dataset(path, force=True)
        if "RescaleSlope" not in file and "ModalityLUTSequence" in file:
            raise InputError("its CT numbers come by a table (ModalityLUTSequence); export it with rescale slope and intercept")
        slope, intercept = (
            number(file, key, "the slice") if file.get(key) is not None else usual
            for key, usual in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))
        )
        if slope == 0.0:
            raise InputError("RescaleSlope is 0, so that every voxel would be the same; export it anew")
        try:
            stored = stored_pixels(file, "the slice")
        except InputError:
            raise
        except Exception as error:
            return _by_gdcm(found, error, shape)
        if stored.shape != (1, *shape):
            raise InputError(f"the slice has {stored.shape[0]} frames of {stored.shape[1:]} pixels, one of {shape} is needed")
        return stored[0].astype(np.float32) * np.float32(slope) + np.float32(intercept)


def _by_gdcm(found: Found, error: Exception, shape: tuple[int, int]) -> np.ndarray:
    """CT numbers of a slice in a compression that pydicom has no decoder for: by GDCM, which is part of SimpleITK (JPEG, JPEG-LS)."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(found.path))
    reader.SetImageIO("GDCMImageIO")
    try:
        with without_chatter():
            values = sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError:
        syntax = getattr(getattr(found.header, "file_meta", None), "TransferSyntaxUID", None)
        raise InputError(
            f"its pixels cannot be decoded (transfer syntax {getattr(syntax, 'name', 'unknown')}: {str(error).splitlines()[0][:120]}); "
            "write it anew without compression, e.g. gdcmconv --raw IN OUT"
        ) from None
    if values.shape[-2:] != shape or values.size != shape[0] * shape[1]:
        raise InputError(f"the slice has {values.shape} pixels, one frame of {shape} is needed")
    return values.reshape(shape).astype(np.float32)


def _evened(hu: np.ndarray, stack: Stack) -> tuple[np.ndarray, Stack]:
    """Uneven slices averaged onto even ones, as far apart as the nearest two."""
    w, step = stack.w, stack.step
    middle = 0.5 * (w[1:] + w[:-1])
    edges = np.concatenate(([w[0] - (middle[0] - w[0])], middle, [w[-1] + (w[-1] - middle[-1])]))
    count = int(np.ceil((edges[-1] - edges[0]) / step - 1e-6))
    check_memory(f"the CT on {count} even slices", 4.0 * count * hu[0].size, "cpu", "take a machine with more memory")
    logger.warning(
        "the slices lie unevenly, %.4g to %.4g mm apart: they are averaged onto %d even ones, %.4g mm apart", np.diff(w).min(),
        np.diff(w).max(), count, step,
    )  # fmt: skip
    even = np.zeros((count, *hu.shape[1:]), dtype=np.float32)
    for k in range(count):
        low, high = edges[0] + k * step, edges[0] + (k + 1) * step
        share = np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0.0, None)
        share /= share.sum()
        for i in np.flatnonzero(share):
            even[k] += np.float32(share[i]) * hu[i]
    first = edges[0] + 0.5 * step
    return even, replace(stack, origin=stack.origin + first * stack.axes[:, 2], w=step * np.arange(count))
