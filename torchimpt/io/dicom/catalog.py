"""What DICOM files a folder holds, whatever they are called and however deep they lie: their headers, without pixels and contours."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from torchimpt.checks import InputError, one_line
from torchimpt.files import reading
from torchimpt.io.dicom.dataset import is_dicom, read_dataset

if TYPE_CHECKING:
    from pydicom import Dataset

MOST_FILES = 100_000
"""Files that are looked at: some hundred patients' CTs."""

CT, STRUCTURES, PLAN, ION_PLAN, DOSE = (
    "CT Image Storage", "RT Structure Set Storage", "RT Plan Storage", "RT Ion Plan Storage", "RT Dose Storage",
)  # fmt: skip
"""Names of the SOP classes that are read or told."""

_HEADER = [
    "SOPClassUID", "SOPInstanceUID", "Modality", "PatientID", "PatientName", "StudyInstanceUID", "StudyDate", "SeriesInstanceUID",
    "SeriesDescription", "FrameOfReferenceUID", "ImageType", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows",
    "Columns", "SliceThickness", "PatientPosition", "StructureSetLabel", "StructureSetName", "StructureSetDate",
    "ReferencedFrameOfReferenceSequence", "RTPlanLabel", "Manufacturer", "ReferencedStructureSetSequence", "ReferencedRTPlanSequence",
]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Found:
    """A DICOM file by its header.

    Attributes
    ----------
    path
        The file.
    header
        Elements that say what it is, of which patient, and where it lies.
    """

    path: Path
    header: Dataset

    def text(self, keyword: str) -> str:
        """An element as text, empty where it is not there."""
        value = self.header.get(keyword)
        return "" if value is None else one_line(str(value)).strip()

    @cached_property
    def kind(self) -> str:
        """Name of its SOP class."""
        from pydicom.uid import UID

        return UID(self.text("SOPClassUID")).name or "no SOP class"

    @property
    def uid(self) -> str:
        """SOP Instance UID, its own name in the world."""
        return self.text("SOPInstanceUID")

    @property
    def label(self) -> str:
        """What a user would call it: label of a structure set or plan, else the series' description."""
        return self.text("StructureSetLabel") or self.text("StructureSetName") or self.text("RTPlanLabel") or self.text("SeriesDescription")


@dataclass(frozen=True, eq=False)
class Catalog:
    """The DICOM files of a folder.

    Attributes
    ----------
    files
        Each once, however many copies there are, in the order of their paths.
    broken
        Files that begin like DICOM and cannot be read, each with the reason.
    """

    files: tuple[Found, ...]
    broken: tuple[tuple[Path, str], ...]

    def of(self, kind: str) -> tuple[Found, ...]:
        """Those of a SOP class."""
        return tuple(found for found in self.files if found.kind == kind)

    @cached_property
    def series(self) -> dict[str, tuple[Found, ...]]:
        """Slices of each CT series by its UID; scout views are none."""
        series: dict[str, list[Found]] = {}
        for found in self.of(CT):
            if "LOCALIZER" not in found.text("ImageType").upper():
                series.setdefault(found.text("SeriesInstanceUID"), []).append(found)
        return {uid: tuple(files) for uid, files in series.items()}


def walk(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Every ordinary file in a folder and the folders in it, in the order of their names; links to folders are not followed.

    Raises
    ------
    InputError
        Where there are more than `MOST_FILES`.
    """
    count = 0
    for parent, folders, names in os.walk(os.fspath(folder)):
        folders.sort()
        for name in sorted(names):
            path = Path(parent, name)
            if path.is_file():
                count += 1
                if count > MOST_FILES:
                    raise InputError(f"{folder} holds more than {MOST_FILES:,} files; name the folder of one patient")
                yield path


def catalog(paths: Iterable[Path]) -> Catalog:
    """The headers of those files that are DICOM."""
    files: dict[str, Found] = {}
    broken = []
    for path in paths:
        try:
            if not is_dicom(path):
                continue
            found = Found(path, _header(path))
            known = found.kind
        except InputError as error:
            broken.append((path, str(error)))
            continue
        if known == "Media Storage Directory Storage":
            continue
        files.setdefault(found.uid or str(path), found)
    return Catalog(tuple(files.values()), tuple(broken))


def _header(path: Path) -> Dataset:
    """The file's header."""
    with reading(path, "DICOM file"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        # force: a file of an old program may lack the 132 bytes in front, and is known by its name only
        found = read_dataset(path, stop_before_pixels=True, specific_tags=list(_HEADER), force=True)
        if not found.get("SOPClassUID"):
            raise InputError("it says nothing of what it is (no SOPClassUID); it is no DICOM file, or cut off")
        for element in found:  # values are decoded when they are asked for: what is broken shows here
            str(element.value)
        return found
