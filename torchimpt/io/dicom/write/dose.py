"""A dose as RT Dose (DICOM PS3.3, A.18.3): integers of 16 bits times a scaling, Gy, of the whole course."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from torchimpt.checks import InputError
from torchimpt.geometry import Grid
from torchimpt.io.dicom.write.file import new_file
from torchimpt.io.dicom.write.identity import Identity
from torchimpt.io.dicom.write.values import WARNING, decimal, decimals, item, text

if TYPE_CHECKING:
    from pydicom import FileDataset

LARGEST = 65535
"""The stored value of the highest dose, of which the others are rounded by 7.6e-6 at most: 0.6 mGy of 75 Gy. 16 bits are what every program
reads, and the most that dciodvfy can check."""


def rt_dose(
    dose: torch.Tensor, grid: Grid, identity: Identity, series: str, plan: str, rbe: float | str, fractions: int, beam: int | None = None
) -> FileDataset:
    """The dose of a plan, or of one of its beams.

    Parameters
    ----------
    dose
        `(z, y, x)`, Gy, RBE-weighted, of all fractions.
    grid
        Where its voxels lie.
    identity, series
        What it belongs to, and the UID of its series.
    plan
        SOP Instance UID of the plan.
    rbe
        Constant factor, or name of the model, that is in the dose. 1 makes it `PHYSICAL`, else it is `EFFECTIVE`.
    fractions
        For the comment.
    beam
        The beam's number in the plan; None for the plan's dose.
    """
    from pydicom.uid import RTIonPlanStorage

    values = dose.detach().cpu().double().numpy()
    if float(values.min()) < 0.0:
        raise InputError(f"the dose has voxels below zero, down to {float(values.min()):.3g} Gy; DICOM's RT Dose has none")
    file = new_file("RTDoseStorage", "RTDOSE", identity, series, 4, "doses")
    n_z, n_y, n_x = grid.shape
    file.InstanceNumber = 1 if beam is None else beam + 1
    file.ImagePositionPatient, file.ImageOrientationPatient = decimals(grid.origin), [1, 0, 0, 0, 1, 0]
    file.PixelSpacing, file.SliceThickness = decimals((grid.spacing[1], grid.spacing[0])), decimal(grid.spacing[2])
    file.SamplesPerPixel, file.PhotometricInterpretation, file.Rows, file.Columns = 1, "MONOCHROME2", n_y, n_x
    file.NumberOfFrames, file.FrameIncrementPointer = n_z, 0x3004000C
    file.GridFrameOffsetVector = decimals(k * grid.spacing[2] for k in range(n_z))
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 16, 15, 0
    file.DoseUnits, file.DoseType = "GY", "PHYSICAL" if rbe == 1.0 else "EFFECTIVE"
    file.DoseSummationType = "PLAN" if beam is None else "BEAM"
    weighting = "physical" if rbe == 1.0 else f"RBE {rbe}" if isinstance(rbe, str) else f"RBE {rbe:g}"
    file.DoseComment = text(f"{WARNING}; all {fractions} fractions, {weighting}", 64)
    scaling = decimal(float(values.max()) / LARGEST or 1.0)
    file.DoseGridScaling = scaling
    referred = item(ReferencedSOPClassUID=RTIonPlanStorage, ReferencedSOPInstanceUID=plan)
    if beam is not None:
        group = item(ReferencedFractionGroupNumber=1, ReferencedBeamSequence=[item(ReferencedBeamNumber=beam)])
        referred.ReferencedFractionGroupSequence = [group]
    file.ReferencedRTPlanSequence = [referred]
    file.PixelData = np.round(values / float(scaling)).astype("<u2").tobytes()
    return file
