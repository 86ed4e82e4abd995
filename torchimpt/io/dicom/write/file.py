"""What every file has: who it is of, what it belongs to, when and by what it was written."""

from __future__ import annotations

import time
import warnings
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from torchimpt.io.dicom.write.identity import Identity
from torchimpt.io.dicom.write.values import WARNING, fresh_uid, text
from torchimpt.version import __version__

if TYPE_CHECKING:
    from pydicom import FileDataset


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
    # the explicit ones hold 64 kB in an element of numbers: 8,191 spots of a layer, or a contour of 3,000 points
    meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian
    file = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    file.SpecificCharacterSet = "ISO_IR 192"
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.InstanceCreationDate, file.InstanceCreationTime = time.strftime("%Y%m%d"), time.strftime("%H%M%S")
    with warnings.catch_warnings():
        # what is carried over stays as it was, even where it breaks the standard: programs find the patient by it
        warnings.simplefilter("ignore", UserWarning)
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
