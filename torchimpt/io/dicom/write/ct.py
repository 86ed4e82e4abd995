"""A CT as CT Image Storage (DICOM PS3.3, A.3), a file a slice."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from torchimpt.io.dicom.write.file import new_file, save
from torchimpt.io.dicom.write.identity import Identity
from torchimpt.io.dicom.write.values import WARNING, decimal, decimals
from torchimpt.patient import Patient

LOWEST = -1024.0
"""Rescale intercept, HU, where nothing is less."""

MOST = 65535
"""Largest stored value."""


def rescale(hu: np.ndarray) -> tuple[float, float]:
    """Slope and intercept, HU: a slope of 1 where all CT numbers are whole, else the finest power of two that holds them, so that what is
    read is off by half of it at most (0.03 HU for a span of 4095).
    """
    low = min(LOWEST, math.floor(float(hu.min())))
    if bool((hu == np.round(hu)).all()):
        return 1.0, low
    return 2.0 ** -math.floor(math.log2(MOST / (float(hu.max()) - low))), low


def write_ct(folder: Path, patient: Patient, identity: Identity, series: str) -> tuple[tuple[float, str], ...]:
    """Write every slice, from below; returns the z, mm, and the SOP Instance UID of each.

    Parameters
    ----------
    folder
        There must be one.
    patient
        Whose grid the slices lie on.
    identity, series
        What they belong to, and the UID of their series.
    """
    hu, grid = patient.hu.numpy(), patient.grid
    slope, intercept = rescale(hu)
    n_z, n_y, n_x = grid.shape
    x, y, z = grid.origin
    found = []
    for k in range(n_z):
        file = new_file("CTImageStorage", "CT", identity, series, 1, "CT")
        file.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
        file.PatientPosition, file.Laterality, file.ImageComments = patient.position, "", WARNING
        file.AcquisitionNumber, file.InstanceNumber, file.KVP = "", k + 1, ""
        file.ImagePositionPatient = decimals((x, y, z + k * grid.spacing[2]))
        file.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        file.PixelSpacing = decimals((grid.spacing[1], grid.spacing[0]))
        file.SliceThickness = decimal(grid.spacing[2])
        file.SamplesPerPixel, file.PhotometricInterpretation, file.Rows, file.Columns = 1, "MONOCHROME2", n_y, n_x
        file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 16, 15, 0
        file.RescaleSlope, file.RescaleIntercept, file.RescaleType = decimal(slope), decimal(intercept), "HU"
        stored = np.round((hu[k].astype(np.float64) - intercept) / slope)
        file.PixelData = stored.astype("<u2").tobytes()
        save(file, folder / f"CT{k + 1:04d}.dcm")
        found.append((z + k * grid.spacing[2], str(file.SOPInstanceUID)))
    return tuple(found)
