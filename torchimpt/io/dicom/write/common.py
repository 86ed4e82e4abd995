"""What every DICOM file has: identifiers, dates, who wrote it, and values in the forms that the standard allows (PS3.5, 6.2)."""

from __future__ import annotations

import time
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from torchimpt.version import __version__

if TYPE_CHECKING:
    from pydicom import Dataset, FileDataset

    from torchimpt.io.dicom.write.identity import Identity

WARNING = "NOT FOR CLINICAL USE"
"""Stands in every file."""

LABEL = "NOT FOR CLINICAL"
"""As much of it as a label (SH) holds: 16 characters."""


def text(value: str, most: int) -> str:
    """Text as an element takes it: without control characters and backslashes, which part values, `most` characters at most."""
    return "".join(c if c.isprintable() and c != "\\" else " " for c in value).strip()[:most].strip()


def decimal(value: float) -> str:
    """A number as a decimal string (DS): as many digits as 16 characters hold, 10 at the least, so that it is off by 1e-10 of itself at
    most, and by 1e-13 where it is neither tiny nor huge.
    """
    from pydicom.valuerep import format_number_as_ds

    return format_number_as_ds(float(value))


def decimals(values: Iterable[float]) -> list[str]:
    """Numbers as decimal strings."""
    return [decimal(value) for value in values]


def fresh_uid() -> str:
    """A UID that no other object has (PS3.5, B.2)."""
    from pydicom.uid import generate_uid

    return str(generate_uid(prefix=None))


def item(**elements: object) -> Dataset:
    """A sequence's item, or elements to be added, by their keywords."""
    from pydicom import Dataset

    made = Dataset()
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def new_file(sop_class: str, modality: str, identity: Identity, series: str, number: int, description: str) -> FileDataset:
    """A file of its own, with the patient, the study and the frame of reference of `identity`.

    Parameters
    ----------
    sop_class
        Name of its SOP class, e.g. `"RTIonPlanStorage"`.
    modality
        E.g. `"RTPLAN"`.
    series, number, description
        Of its series.
    """
    from pydicom import uid
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = getattr(uid, sop_class), uid.UID(fresh_uid())
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    file = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    file.SpecificCharacterSet = "ISO_IR 192"
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.InstanceCreationDate, file.InstanceCreationTime = time.strftime("%Y%m%d"), time.strftime("%H%M%S")
    for keyword, value in identity.elements.items():
        setattr(file, keyword, value)
    file.FrameOfReferenceUID, file.PositionReferenceIndicator = identity.frame, ""
    file.Modality, file.SeriesInstanceUID, file.SeriesNumber = modality, series, number
    file.SeriesDescription = text(f"{WARNING} {description}", 64)
    file.OperatorsName = ""
    file.Manufacturer, file.ManufacturerModelName, file.SoftwareVersions = "torchimpt", "torchimpt", __version__
    return file


def save(file: FileDataset, path: Path) -> None:
    """Write a file: pydicom into memory, as it makes its own error of a full disk."""
    buffer = BytesIO()
    file.save_as(buffer, enforce_file_format=True)
    path.write_bytes(buffer.getbuffer())
