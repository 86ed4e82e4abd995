"""Who the patient is, and what the new objects belong to: carried over from the DICOM that the patient came from, or new."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torchimpt.files import reading
from torchimpt.io.dicom.dataset import read_dataset
from torchimpt.io.dicom.patient import find_patient
from torchimpt.io.dicom.write.values import fresh_uid, text

CARRIED = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
"""Elements of patient and study, all of which a file must have, if only empty."""


@dataclass(frozen=True)
class Identity:
    """Whose objects these are.

    Attributes
    ----------
    elements
        Patient and study, by the keywords of `CARRIED`.
    frame
        UID of the frame of reference.
    structures
        UID of the structure set that is there already; empty where there is none.
    source
        Folder that the CT and the structure set are in; None where they are still to be written.
    series, slices
        UID of the CT's series, and of its slices by their z, mm, where they are there already.
    """

    elements: Mapping[str, str]
    frame: str
    structures: str = ""
    source: Path | None = None
    series: str = ""
    slices: tuple[tuple[float, str], ...] = ()


def new_identity(name: str) -> Identity:
    """Of a patient who did not come from DICOM: of this name, in a study and a frame of reference of their own."""
    known = text(name, 54) or "patient"
    study = {
        "PatientName": known.replace("^", " ").replace("=", " ") + "^torchimpt", "PatientID": known, "StudyInstanceUID": fresh_uid(),
        "StudyDate": time.strftime("%Y%m%d"), "StudyTime": time.strftime("%H%M%S"), "StudyID": "1",
    }  # fmt: skip
    return Identity({**dict.fromkeys(CARRIED, ""), **study}, fresh_uid())


def carried_over(path: str | os.PathLike, structures: str | None = None, series: str | None = None) -> Identity:
    """Of a patient from a folder of DICOM files; arguments as of `read_dicom`, which reads the same CT and structure set."""
    chosen, files = find_patient(path, structures, series)
    first = files[0]
    with reading(first.path, "CT slice"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        header = read_dataset(first.path, stop_before_pixels=True, force=True)
        elements = {keyword: _text(header.get(keyword)) for keyword in CARRIED}
    elements["StudyInstanceUID"] = elements["StudyInstanceUID"] or fresh_uid()
    frame = first.text("FrameOfReferenceUID") or fresh_uid()
    slices = tuple((float(one.header.ImagePositionPatient[2]), one.uid) for one in files)
    return Identity(elements, frame, "" if chosen is None else chosen.uid, Path(path), first.text("SeriesInstanceUID"), slices)


def _text(value: object) -> str:
    """An element's value as it is written; several are parted by backslashes."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "\\".join(map(str, value))
    return "" if value is None else str(value)
