"""ROIs as an RT Structure Set (DICOM PS3.3, A.19): masks as the edges of their voxels, slice by slice, so that they read back as they were.

Holes are joined with their surroundings by slits (keyholes, as the standard has it): some programs count how many contours a point lies in,
others fill each.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from torchimpt.contours import boundaries, keyholed
from torchimpt.io.dicom.structure_set import TARGETS, TOGETHER
from torchimpt.io.dicom.write.file import new_file
from torchimpt.io.dicom.write.identity import Identity
from torchimpt.io.dicom.write.values import LABEL, WARNING, decimals, fresh_uid, item, put_decimals, text
from torchimpt.io.roles import role_of
from torchimpt.patient import ROI, Patient

if TYPE_CHECKING:
    from pydicom import Dataset, FileDataset

COLORS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
"""Of the ROIs, in turn: Okabe and Ito's, which colour-blind people tell apart."""

logger = logging.getLogger(__name__)


def structure_set(patient: Patient, identity: Identity) -> FileDataset:
    """The structure set of all of a patient's ROIs, in their order, numbered from 1.

    Parameters
    ----------
    patient
        On the grid of the CT.
    identity
        What it belongs to, with the CT's series and slices.
    """
    file = new_file("RTStructureSetStorage", "RTSTRUCT", identity, fresh_uid(), 2, "structures")
    file.StructureSetLabel, file.StructureSetName = LABEL, text(f"{WARNING} {patient.name}", 64)
    file.StructureSetDescription = WARNING
    file.StructureSetDate, file.StructureSetTime = time.strftime("%Y%m%d"), time.strftime("%H%M%S")
    images = [_image(uid) for _, uid in identity.slices]
    study = item(
        ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1",
        ReferencedSOPInstanceUID=identity.elements["StudyInstanceUID"],
        RTReferencedSeriesSequence=[item(SeriesInstanceUID=identity.series, ContourImageSequence=images)],
    )
    file.ReferencedFrameOfReferenceSequence = [item(FrameOfReferenceUID=identity.frame, RTReferencedStudySequence=[study])]
    file.StructureSetROISequence, file.ROIContourSequence, file.RTROIObservationsSequence = [], [], []
    for number, roi in enumerate(patient.rois.values(), start=1):
        name = text(roi.name, 64)
        if name != roi.name:
            logger.warning("ROI '%s' is named '%s' in DICOM, whose names are shorter and plainer", roi.name, name)
        file.StructureSetROISequence.append(
            item(ROINumber=number, ReferencedFrameOfReferenceUID=identity.frame, ROIName=name, ROIGenerationAlgorithm="")
        )
        drawn = item(ReferencedROINumber=number, ROIDisplayColor=list(COLORS[(number - 1) % len(COLORS)]))
        contours = _contours(roi, patient, identity.slices)
        if contours:
            drawn.ContourSequence = contours
        else:
            logger.warning("ROI '%s' is empty and has no contour", roi.name)
        file.ROIContourSequence.append(drawn)
        file.RTROIObservationsSequence.append(_observation(number, roi))
    return file


def kind_of(roi: ROI) -> str:
    """A ROI's interpreted type, by which its role is read back: an organ whose name would tell another is to be avoided."""
    if roi.role == "external":
        return "EXTERNAL"
    if roi.role == "target":
        return next((kind for kind in TARGETS if kind in roi.name.upper()), "CTV")
    return "ORGAN" if role_of(roi.name) == "oar" else "AVOIDANCE"


def _observation(number: int, roi: ROI) -> Dataset:
    """What a ROI is, and its stopping power where that is known better than from the CT."""
    found = item(ObservationNumber=number, ReferencedROINumber=number, RTROIInterpretedType=kind_of(roi), ROIInterpreter="")
    if roi.rsp is not None:
        found.ROIPhysicalPropertiesSequence = [item(ROIPhysicalProperty="REL_STOP_RATIO", ROIPhysicalPropertyValue=decimals([roi.rsp])[0])]
    return found


def _image(uid: str) -> Dataset:
    from pydicom.uid import CTImageStorage

    return item(ReferencedSOPClassUID=CTImageStorage, ReferencedSOPInstanceUID=uid)


def _contours(roi: ROI, patient: Patient, slices: Sequence[tuple[float, str]]) -> list[Dataset]:
    """The contours of a mask, LPS, mm, each with the slice that it lies on, where there is one: a CT that was tilted has none."""
    (x, y, z), (dx, dy, dz) = patient.grid.origin, patient.grid.spacing
    found = []
    for k in np.flatnonzero(roi.mask.any(dim=2).any(dim=1).numpy()).tolist():
        images = [_image(uid) for place, uid in slices if abs(place - (z + k * dz)) < TOGETHER]
        for corners in keyholed(boundaries(roi.mask[k].numpy())):
            points = np.column_stack((x + (corners[:, 0] - 0.5) * dx, y + (corners[:, 1] - 0.5) * dy, np.full(len(corners), z + k * dz)))
            contour = item(ContourGeometricType="CLOSED_PLANAR", NumberOfContourPoints=len(points))
            put_decimals(contour, "ContourData", points.flatten().tolist())
            if images:
                contour.ContourImageSequence = images
            found.append(contour)
    return found
