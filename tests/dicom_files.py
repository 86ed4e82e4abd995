"""Small RT Ion Plans and RT Doses, as a planning system writes them: what the tests of DICOM change and read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

ION_PLAN, PLAN, DOSE = "1.2.840.10008.5.1.4.1.1.481.8", "1.2.840.10008.5.1.4.1.1.481.5", "1.2.840.10008.5.1.4.1.1.481.2"

FIELDS = (
    (30.0, 10.0, [(110.0, [(-8.0, 3.0, 2.0), (4.0, -6.0, 0.0), (9.0, 1.0, 6.0)]), (100.0, [(0.0, 0.0, 2.0)])]),
    (270.0, 0.0, [(105.0, [(5.0, 5.0, 4.0), (-5.0, 2.0, 1.0)])]),
)
"""Gantry, couch, and layers of `(x, y, weight)` by energy: three spots with weight, then two."""

METERSETS = (50.0, 20.0)
"""Of each field in a fraction: five and four times the sums of the weights."""


def new_file(sop_class: str, modality: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID, file.Modality = sop_class, meta.MediaStorageSOPInstanceUID, modality
    return file


def _point(index: int, energy: float, spots: list[tuple[float, float, float]], total: float, on: bool) -> Dataset:
    point = Dataset()
    point.ControlPointIndex, point.CumulativeMetersetWeight = index, total
    if on:  # the second of a pair repeats nothing but what it must
        point.NominalBeamEnergy = energy
    point.NumberOfScanSpotPositions = len(spots)
    point.ScanSpotPositionMap = [float(v) for spot in spots for v in spot[:2]]
    point.ScanSpotMetersetWeights = [spot[2] if on else 0.0 for spot in spots]
    return point


def _field(number: int, gantry: float, couch: float, layers: list) -> Dataset:
    field = Dataset()
    field.BeamNumber, field.BeamName, field.BeamType, field.RadiationType = number, f"f{number}", "STATIC", "PROTON"
    field.PrimaryDosimeterUnit, field.TreatmentDeliveryType, field.ScanMode = "MU", "TREATMENT", "MODULATED"
    field.VirtualSourceAxisDistances = [2000.0, 2560.0]
    field.NumberOfRangeShifters = field.NumberOfBlocks = 0
    points, total = [], 0.0
    for energy, spots in layers:
        points.append(_point(len(points), energy, spots, total, True))
        total += sum(spot[2] for spot in spots)
        points.append(_point(len(points), energy, spots, total, False))
    first = points[0]
    first.GantryAngle, first.PatientSupportAngle, first.IsocenterPosition = gantry, couch, [1.0, -2.0, 3.0]
    field.FinalCumulativeMetersetWeight, field.NumberOfControlPoints, field.IonControlPointSequence = total, len(points), points
    return field


def ion_plan() -> FileDataset:
    """The plan of `FIELDS` in four fractions; beams are numbered 1 and 2."""
    plan = new_file(ION_PLAN, "RTPLAN")
    plan.RTPlanLabel = "two fields"
    plan.IonBeamSequence = [_field(i, *field) for i, field in enumerate(FIELDS, start=1)]
    setup = Dataset()
    setup.PatientPosition, setup.PatientSetupNumber = "HFS", 1
    plan.PatientSetupSequence = [setup]
    group = Dataset()
    group.FractionGroupNumber, group.NumberOfFractionsPlanned, group.NumberOfBeams = 1, 4, len(FIELDS)
    group.ReferencedBeamSequence = []
    for i, meterset in enumerate(METERSETS, start=1):
        beam = Dataset()
        beam.ReferencedBeamNumber, beam.BeamMeterset = i, meterset
        group.ReferencedBeamSequence.append(beam)
    plan.FractionGroupSequence = [group]
    return plan


VALUES = np.arange(2 * 3 * 4, dtype=np.uint16).reshape(2, 3, 4)
"""Stored integers of `dose` `(z, y, x)`."""


def dose() -> FileDataset:
    """A dose of beam 2 with `VALUES`, in steps of 0.5 Gy."""
    file = new_file(DOSE, "RTDOSE")
    file.Rows, file.Columns, file.NumberOfFrames = 3, 4, 2
    file.BitsAllocated = file.BitsStored = 16
    file.HighBit, file.PixelRepresentation, file.SamplesPerPixel, file.PhotometricInterpretation = 15, 0, 1, "MONOCHROME2"
    file.ImagePositionPatient, file.ImageOrientationPatient = [-10.0, 20.0, 30.0], [1, 0, 0, 0, 1, 0]
    file.PixelSpacing = [3.0, 2.0]  # rows lie 3 mm apart, columns 2
    file.GridFrameOffsetVector = [0.0, 5.0]
    file.DoseUnits, file.DoseType, file.DoseSummationType, file.DoseGridScaling = "GY", "PHYSICAL", "BEAM", 0.5
    plan, group, beam = Dataset(), Dataset(), Dataset()
    beam.ReferencedBeamNumber = 2
    group.ReferencedBeamSequence, group.ReferencedFractionGroupNumber = [beam], 1
    plan.ReferencedFractionGroupSequence = [group]
    file.ReferencedRTPlanSequence = [plan]
    file.PixelData = VALUES.tobytes()
    return file


def save(file: FileDataset, path: Path) -> Path:
    """Write the file; its path."""
    file.save_as(path, enforce_file_format=True)
    return path
