"""Small CT series and structure sets, as scanners and planning systems write them: what the tests of DICOM patients change and read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from dicom_files import new_file, save
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import generate_uid

from torchimpt.geometry import Grid
from torchimpt.patient import Patient

CT, STRUCTURES = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.481.3"

Drawn = Mapping[str, tuple[str, Sequence[np.ndarray]]]
"""Interpreted type and contours, LPS points `(n, 3)`, of each ROI."""

UPRIGHT = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
"""Directions of rows and columns."""


def ct_slice(
    hu: np.ndarray, place: Sequence[float], spacing: Sequence[float], *, frame: str, series: str, axes=UPRIGHT, position="HFS",
    thickness=3.0, rescale=(1.0, -1024.0), number=1,
) -> FileDataset:  # fmt: skip
    """One slice of CT numbers `(rows, columns)`, HU, whose first voxel lies at `place`; `spacing` is along rows and columns."""
    file = new_file(CT, "CT")
    file.PatientID, file.PatientName, file.StudyInstanceUID = "p1", "Phantom", "1.2.3"
    file.SeriesInstanceUID, file.FrameOfReferenceUID, file.InstanceNumber, file.SeriesDescription = series, frame, number, "Head"
    file.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    file.Rows, file.Columns = hu.shape
    file.BitsAllocated = file.BitsStored = 16
    file.HighBit, file.PixelRepresentation, file.SamplesPerPixel, file.PhotometricInterpretation = 15, 0, 1, "MONOCHROME2"
    file.ImagePositionPatient = [f"{v:.10g}" for v in place]
    file.ImageOrientationPatient = [f"{v:.8f}" for axis in axes for v in axis]
    file.PixelSpacing = [spacing[1], spacing[0]]  # rows lie as far apart as columns' pixels
    file.SliceThickness, file.PatientPosition = thickness, position
    slope, intercept = rescale
    file.RescaleSlope, file.RescaleIntercept = slope, intercept
    file.PixelData = np.round((hu - intercept) / slope).astype("<u2").tobytes()
    return file


def ct_series(hu: np.ndarray, grid: Grid, **given) -> list[FileDataset]:
    """A CT `(z, y, x)`, slice by slice from below."""
    ids = {"frame": generate_uid(), "series": generate_uid(), "thickness": grid.spacing[2], **given}
    x, y, z = grid.origin
    return [ct_slice(plane, (x, y, z + k * grid.spacing[2]), grid.spacing[:2], number=len(hu) - k, **ids) for k, plane in enumerate(hu)]


def structure_set(rois: Drawn, slices: Sequence[FileDataset], label: str = "Planning") -> FileDataset:
    """The ROIs, drawn on these slices."""
    file = new_file(STRUCTURES, "RTSTRUCT")
    file.PatientID, file.PatientName, file.StructureSetLabel = "p1", "Phantom", label
    images = [Dataset() for _ in slices]
    for image, one in zip(images, slices, strict=True):
        image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = CT, one.SOPInstanceUID
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID, series.ContourImageSequence = slices[0].SeriesInstanceUID, images
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = slices[0].FrameOfReferenceUID, [study]
    file.ReferencedFrameOfReferenceSequence = [frame]
    file.StructureSetROISequence, file.ROIContourSequence, file.RTROIObservationsSequence = [], [], []
    for number, (name, (kind, contours)) in enumerate(rois.items(), start=1):
        roi, drawn, observed = Dataset(), Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = number, name, frame.FrameOfReferenceUID
        drawn.ReferencedROINumber = observed.ReferencedROINumber = observed.ObservationNumber = number
        observed.RTROIInterpretedType = kind
        drawn.ContourSequence = [_contour(points) for points in contours]
        file.StructureSetROISequence.append(roi)
        file.ROIContourSequence.append(drawn)
        file.RTROIObservationsSequence.append(observed)
    return file


def _contour(points: np.ndarray) -> Dataset:
    contour = Dataset()
    contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR" if len(points) > 1 else "POINT", len(points)
    contour.ContourData = [f"{v:.9g}" for v in np.asarray(points).flatten()]
    return contour


def circle(x: float, y: float, z: float, radius: float, count: int = 180) -> np.ndarray:
    """A contour in the plane z, LPS `(count, 3)`, mm."""
    angle = np.linspace(0.0, 2.0 * np.pi, count, endpoint=False)
    return np.stack((x + radius * np.cos(angle), y + radius * np.sin(angle), np.full(count, z)), axis=1)


def box(low: Sequence[float], high: Sequence[float], z: float) -> np.ndarray:
    """A rectangle in the plane z."""
    (a, b), (c, d) = low, high
    return np.array([[a, b, z], [c, b, z], [c, d, z], [a, d, z]])


def sphere(center: Sequence[float], radius: float, planes: Sequence[float]) -> list[np.ndarray]:
    """A sphere's contours on these planes."""
    x, y, z = center
    return [circle(x, y, plane, float(np.sqrt(radius**2 - (plane - z) ** 2))) for plane in planes if abs(plane - z) < radius]


def contours_of(mask: np.ndarray, grid: Grid) -> list[np.ndarray]:
    """A mask `(z, y, x)` as the runs of voxels in its rows, each a rectangle: contours of just the mask's volume."""
    found = []
    (x, y, z), (dx, dy, dz) = grid.origin, grid.spacing
    for k, plane in enumerate(mask):
        for j, row in enumerate(plane):
            step = np.diff(np.concatenate(([0], row.astype(int), [0])))
            for begin, end in zip(np.flatnonzero(step == 1), np.flatnonzero(step == -1), strict=True):
                low, high = (x + (begin - 0.5) * dx, y + (j - 0.5) * dy), (x + (end - 0.5) * dx, y + (j + 0.5) * dy)
                found.append(box(low, high, z + k * dz))
    return found


def as_dicom(patient: Patient, **given) -> tuple[list[FileDataset], FileDataset]:
    """A patient's CT and ROIs."""
    slices = ct_series(patient.hu.numpy(), patient.grid, **given)
    kinds = {"target": "CTV", "external": "EXTERNAL", "oar": "ORGAN"}
    rois = {name: (kinds[roi.role], contours_of(roi.mask.numpy(), patient.grid)) for name, roi in patient.rois.items()}
    return slices, structure_set(rois, slices)


def write(folder: Path, files: Sequence[FileDataset], names: Sequence[str] = ()) -> Path:
    """Write files under these names, or under numbers; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, file in enumerate(files):
        path = folder / (names[i] if names else f"{file.Modality}{i}")
        path.parent.mkdir(parents=True, exist_ok=True)
        save(file, path)
    return folder
