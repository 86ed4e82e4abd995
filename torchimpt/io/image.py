"""CT images with one mask file per ROI, and doses, through SimpleITK.

A patient is a folder: `ct.mha` (or `.mhd`, `.nii.gz`, `.nii`, `.nrrd`), CT numbers in HU, and one mask `<ROI>.<ext>` on the CT's grid for
each ROI, 0 outside. SimpleITK speaks LPS, mm, whatever the file's own convention (NIfTI's is RAS). Images whose axes are permuted or
reversed are turned to the order `(z, y, x)` with ascending LPS coordinates; oblique ones are refused, since resampling would change them.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

from torchimpt.checks import InputError, PhysicsWarning, finite
from torchimpt.files import input_file, input_folder, reader, whole_or_nothing
from torchimpt.geometry import Grid
from torchimpt.io.lps import tilt, turned
from torchimpt.io.meta_header import check_meta_header
from torchimpt.io.roles import role_of
from torchimpt.patient import ROI, Patient
from torchimpt.unpacked import MOST_BYTES

EXTENSIONS = (".mha", ".mhd", ".nii.gz", ".nii", ".nrrd")
_WRITABLE = (".mha", ".nii.gz", ".nii", ".nrrd")

_LARGEST_VALUE = 8
"""Bytes of a voxel, of float64."""

_GRID_SLACK = 1e-3
"""Fraction of a voxel by which a mask's grid may differ from the CT's: headers are rounded."""


@reader("image patient")
def read_image(folder: str | os.PathLike) -> Patient:
    """Read a folder of images: the CT and its ROIs.

    Parameters
    ----------
    folder
        Holds `ct.<ext>` and one `<ROI>.<ext>` per ROI, if any; other files are left alone.

    Returns
    -------
    A patient named after the folder. Roles go by name: External, Body or Skin is the external; PTV*, CTV*, GTV*, ITV* and names with
    "target" are targets; the rest are OARs. A mask counts as inside where it is not 0.
    """
    folder = input_folder(folder, "image patient")
    files = _images(folder)
    ct_file = files.pop("ct", None)
    if ct_file is None:
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise InputError(f"{folder} has no CT: a file named {' or '.join('ct' + e for e in EXTENSIONS)} is needed; it has {found}")
    values, grid = _read(ct_file)
    hu = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    tell_unscaled(hu, ct_file)
    rois = {name: ROI(name, _read_mask(file, grid), role_of(name)) for name, file in sorted(files.items())}
    return Patient(hu, grid, rois, name=folder.resolve().name)


def write_image(path: str | os.PathLike, values: torch.Tensor, grid: Grid) -> None:
    """Write a volume with its place in LPS, compressed where the format can, whole or not at all.

    Parameters
    ----------
    path
        Ends in `.mha`, `.nii.gz`, `.nii` or `.nrrd`.
    values
        `(z, y, x)` on `grid`; bool is written as 0 and 1.
    grid
        Where the voxels lie.
    """
    path = Path(path)
    if not path.name.lower().endswith(_WRITABLE):
        raise InputError(f"cannot write {path}: the name must end in {', '.join(_WRITABLE)}")
    if tuple(values.shape) != grid.shape:
        raise InputError(f"cannot write {path}: values have shape {tuple(values.shape)}, the grid {grid.shape} (z, y, x)")
    array = (values.to(torch.uint8) if values.dtype == torch.bool else values).detach().cpu().numpy()
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    with whole_or_nothing(path) as scratch:
        try:
            sitk.WriteImage(image, str(scratch), useCompression=True)
            # ITK's NIfTI writer does not notice a full disk: what was written is read back.
            written = sitk.GetArrayFromImage(sitk.ReadImage(str(scratch)))
        except RuntimeError as error:
            raise InputError(f"cannot write {path}: {_reason(error)}; is the disk full?") from error
        if not np.array_equal(written, array, equal_nan=True):
            raise InputError(f"cannot write {path}: it reads back otherwise than it was written; is the disk full?")


@reader("dose")
def read_dose(path: str | os.PathLike) -> tuple[torch.Tensor, Grid]:
    """Read a dose (or any scalar volume) and its grid.

    Parameters
    ----------
    path
        A file in any of `EXTENSIONS`.

    Returns
    -------
    The values `(z, y, x)` in the file's own type (integers become float32), and their grid.
    """
    values, grid = _read(input_file(path, "dose"))
    dose = torch.from_numpy(values if values.dtype == np.float64 else values.astype(np.float32))
    return finite(f"the dose of {path}", dose), grid


def tell_unscaled(hu: torch.Tensor, source: str | os.PathLike) -> None:
    """Warn where CT numbers look as if their intercept had been forgotten."""
    if hu.isfinite().all() and float(hu.min()) >= 0 and float(hu.max()) > 1000:
        warnings.warn(
            f"{source} has no CT number below 0 HU, though air is -1000; its rescale intercept (often -1024) may be missing",
            PhysicsWarning,
            stacklevel=4,
        )


def _images(folder: Path) -> dict[str, Path]:
    """The folder's image files by their name without extension."""
    files: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        extension = next((e for e in EXTENSIONS if file.name.lower().endswith(e)), None)
        if extension is None or not file.is_file() or file.name.startswith("."):
            continue
        name = file.name[: -len(extension)]
        if name in files:
            raise InputError(f"{folder} has '{name}' twice, as {files[name].name} and {file.name}; keep one")
        files[name] = file
    return files


@contextmanager
def without_chatter() -> Iterator[None]:
    """ITK's libraries write to the process's stderr what is wrong with a file, besides the error that is raised: there it goes nowhere."""
    try:
        kept = os.dup(2)
    except OSError:  # closed by whoever started the process
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def read_volume(file: Path) -> sitk.Image:
    """The image in a file as SimpleITK has it; one whose header tells of more than there is memory for is refused before it is taken."""
    check_meta_header(file)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        with without_chatter():
            reader.ReadImageInformation()
        count = math.prod(reader.GetSize()) * reader.GetNumberOfComponents()
        if count * _LARGEST_VALUE > MOST_BYTES:
            raise InputError(
                f"{file} says that it has {' x '.join(map(str, reader.GetSize()))} voxels, {MOST_BYTES // _LARGEST_VALUE:.2g} at most are "
                "read; it may be damaged: write it anew, or on a coarser grid"
            )
        with without_chatter():
            return reader.Execute()
    except RuntimeError as error:
        raise InputError(f"cannot read {file}: {_reason(error)}") from error


def _read(file: Path) -> tuple[np.ndarray, Grid]:
    """A scalar volume as `(z, y, x)` with ascending LPS axes, and its grid."""
    image = read_volume(input_file(file, "image"))
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(
            f"{file} has {image.GetDimension()} dimensions and {image.GetNumberOfComponentsPerPixel()} values a voxel; "
            "a volume of 3 dimensions and 1 value is needed"
        )
    array = sitk.GetArrayFromImage(image)
    if np.iscomplexobj(array):
        raise InputError(f"{file} has complex values; real ones are needed")
    spacing, origin = np.array(image.GetSpacing()), np.array(image.GetOrigin())
    direction = np.array(image.GetDirection()).reshape(3, 3)

    if angle := tilt(direction):
        raise InputError(f"{file} is oblique to the patient's axes by {angle:.3g} degrees; resample it to an axis-aligned grid first")
    return turned(array, direction, spacing, origin)


def _read_mask(file: Path, grid: Grid) -> torch.Tensor:
    """A mask on the CT's grid."""
    values, own = _read(file)
    slack = [_GRID_SLACK * s for s in grid.spacing]
    moved = [abs(a - b) for a, b in zip(own.origin, grid.origin, strict=True)]
    # A wrong spacing shows at the far end of the grid.
    grown = [abs(a - b) * n for a, b, n in zip(own.spacing, grid.spacing, reversed(grid.shape), strict=True)]
    if (
        own.shape != grid.shape
        or any(d > s for d, s in zip(moved, slack, strict=True))
        or any(d > s for d, s in zip(grown, slack, strict=True))
    ):
        raise InputError(
            f"mask {file} lies on another grid than the CT: shape {own.shape}, spacing {_short(own.spacing)}, origin {_short(own.origin)}; "
            f"the CT has {grid.shape}, {_short(grid.spacing)}, {_short(grid.origin)}; resample the mask"
        )
    labels = np.unique(values)
    if not np.isfinite(labels).all():
        raise InputError(f"mask {file} has values that are NaN or infinite; a mask is 0 outside and 1 inside")
    labels = labels[labels != 0]
    if labels.size == 0:
        raise InputError(f"mask {file} is 0 everywhere, so the ROI is empty; remove the file or mend it")
    if labels.size > 1:
        raise InputError(f"mask {file} has {labels.size} labels ({labels[0]:g}, {labels[1]:g}, ...); one mask file per ROI is needed")
    return torch.from_numpy(values != 0)


def _short(numbers: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{v:.6g}" for v in numbers) + ")"


def _reason(error: RuntimeError) -> str:
    """The last line of an ITK error, which says what went wrong; those before it say where in ITK."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1].split("ERROR:")[-1].strip() if lines else "SimpleITK failed").rstrip(".")
