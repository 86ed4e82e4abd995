"""RT Doses (DICOM PS3.3, C.8.8.3): a dose on a grid of its own, in Gy.

Voxels are `integer * DoseGridScaling`. Frames lie at ImagePositionPatient's z plus their GridFrameOffsetVector along the normal, or, where
the vector starts with that z itself, at its values.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from torchimpt.checks import InputError
from torchimpt.geometry import Grid
from torchimpt.io.dicom.dataset import dataset, number, numbers, stored_pixels

if TYPE_CHECKING:
    from pydicom import Dataset

OBLIQUE = 1e-4
"""Largest direction cosine off the axes."""

UNEVEN = 1e-3
"""Greatest difference between frames' distances, mm: headers are rounded."""


@dataclass(frozen=True, eq=False)
class RTDose:
    """A dose as the file tells it.

    Attributes
    ----------
    dose
        `(z, y, x)`, Gy, float32, ascending LPS coordinates.
    grid
        Where its voxels lie.
    summation
        Of what: `"PLAN"`, `"FRACTION"`, `"BEAM"`, ...
    kind
        `"PHYSICAL"`, or `"EFFECTIVE"` with a biological factor in it.
    beam
        Number of the one beam that it is of, as in its plan; None where it is of several or the file does not say.
    """

    dose: torch.Tensor
    grid: Grid
    summation: str
    kind: str
    beam: int | None


def read_rt_dose(path: str | os.PathLike) -> RTDose:
    """Read a DICOM RT Dose.

    Parameters
    ----------
    path
        The file. Its grid must lie along the patient's axes and its frames evenly; reversed axes are turned.
    """
    with dataset(path, "RT Dose", "RTDOSE", "RT Dose Storage") as file:
        unit = str(file.get("DoseUnits", "unknown"))
        if unit != "GY":
            raise InputError(f"its dose is in {unit}, and must be in GY; export it as absolute dose")
        scaling = number(file, "DoseGridScaling", "the dose")
        if not scaling > 0:
            raise InputError(f"DoseGridScaling must be positive, got {scaling:g}")
        values = stored_pixels(file, "the dose").astype(np.float64)
        grid, reverse = _grid(file, values.shape)
        dose = np.flip(values * scaling, tuple(reverse)).astype(np.float32)
        kind = str(file.get("DoseType", "PHYSICAL"))
        return RTDose(torch.from_numpy(np.ascontiguousarray(dose)), grid, str(file.get("DoseSummationType", "")), kind, _beam(file))


def _grid(file: Dataset, shape: tuple[int, ...]) -> tuple[Grid, list[int]]:
    """Where ascending voxels lie, and the array's axes to reverse for that."""
    origin = numbers(file, "ImagePositionPatient", "the dose", 3)
    axes = numbers(file, "ImageOrientationPatient", "the dose", 6).reshape(2, 3)
    dy, dx = numbers(file, "PixelSpacing", "the dose", 2)  # between rows, between columns
    if max(abs(np.abs(axes) - [[1, 0, 0], [0, 1, 0]]).flat) > OBLIQUE:
        raise InputError(
            f"its axes must be those of the patient, rows along x and columns along y, got {axes.flatten().tolist()}; resample it"
        )
    sign_x, sign_y = np.sign(axes[0, 0]), np.sign(axes[1, 1])
    along_z = _frames(file, shape[0], origin[2], sign_x * sign_y)
    steps = np.diff(along_z)
    if len(steps) and (np.abs(steps - steps[0]).max() > UNEVEN or abs(steps[0]) <= UNEVEN):
        i = int(np.abs(steps - steps[0]).argmax())
        raise InputError(
            f"its frames must lie evenly, but frames {i} and {i + 1} are {abs(steps[i]):g} mm apart, the first two {abs(steps[0]):g} mm; "
            "export it on an even grid"
        )
    dz = abs(along_z[-1] - along_z[0]) / len(steps) if len(steps) else number(file, "SliceThickness", "the dose of one frame")
    first = (
        origin[0] if sign_x > 0 else origin[0] - dx * (shape[2] - 1),
        origin[1] if sign_y > 0 else origin[1] - dy * (shape[1] - 1),
        along_z.min(),
    )
    reverse = [axis for axis, descends in ((0, along_z[-1] < along_z[0]), (1, sign_y < 0), (2, sign_x < 0)) if descends]
    return Grid(shape, (float(dx), float(dy), float(dz)), (float(first[0]), float(first[1]), float(first[2]))), reverse


def _frames(file: Dataset, count: int, z: float, normal: float) -> np.ndarray:
    """The frames' z `(count,)`, mm."""
    if count == 1 and file.get("GridFrameOffsetVector") is None:
        return np.array([z])
    offsets = numbers(file, "GridFrameOffsetVector", "the dose", count)
    # C.8.8.3.2: relative vectors start with 0; absolute ones with the z of ImagePositionPatient
    return z + normal * offsets if offsets[0] == 0 else offsets


def _beam(file: Dataset) -> int | None:
    """The one beam that the dose refers to."""
    found = [
        int(beam.ReferencedBeamNumber)
        for plan in file.get("ReferencedRTPlanSequence") or ()
        for group in plan.get("ReferencedFractionGroupSequence") or ()
        for beam in group.get("ReferencedBeamSequence") or ()
    ]
    return found[0] if len(found) == 1 else None
