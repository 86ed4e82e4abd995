"""A DICOM file as pydicom reads it, with errors that name the file and what it lacks.

pydicom is imported when the first file is read: most commands never need it.
"""

from __future__ import annotations

import io
import os
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torchimpt.checks import InputError
from torchimpt.files import input_file, reading
from torchimpt.unpacked import MOST_BYTES, check_inflated

if TYPE_CHECKING:
    from pydicom import Dataset

MAGIC_AT, MAGIC = 128, b"DICM"
"""Where a DICOM file says what it is (DICOM PS3.10, 7.1)."""

SUFFIXES = (".dcm", ".dicom", ".ima")

DEFLATED, _META_BYTES = "1.2.840.10008.1.2.1.99", 2**16
"""The transfer syntax of a file whose dataset is deflated, and within how many bytes it is told."""


def is_dicom(path: str | os.PathLike) -> bool:
    """Whether a file is DICOM, by its name or its first bytes: many are named after a UID, without a suffix of their own."""
    path = Path(path)
    if path.suffix.lower() in SUFFIXES:
        return True
    if not path.is_file():
        return False
    with reading(path, "plan"), path.open("rb") as file:
        file.seek(MAGIC_AT)
        return file.read(len(MAGIC)) == MAGIC


@contextmanager
def dataset(path: str | os.PathLike, what: str, modality: str, sop_class: str) -> Iterator[Dataset]:
    """Open a DICOM file of a kind.

    Parameters
    ----------
    path
        The file.
    what
        What it must be, for messages, e.g. `"RT Ion Plan"`.
    modality
        Its Modality, e.g. `"RTPLAN"`.
    sop_class
        Name of its SOP class, e.g. `"RT Ion Plan Storage"`.

    Yields
    ------
    The dataset. Elements are decoded as they are asked for, so all is read inside the block: there pydicom's warnings about values that
    break the standard in small things (a number of 17 digits) are silent, and what is wrong ends as an `InputError` with the file's name.
    """
    from pydicom.uid import UID

    with opened(path, what) as found:
        own = UID(str(found.get("SOPClassUID", ""))).name or "no SOP class"
        if own == "RT Plan Storage":
            raise InputError(f"{path} is a plan for photons or electrons ({own}); torchimpt reads an {what}")
        if own != sop_class or found.get("Modality") != modality:
            raise InputError(f"{path} is {own}, modality {found.get('Modality', 'unknown')}; an {what} is needed")
        yield found


@contextmanager
def opened(path: str | os.PathLike, what: str) -> Iterator[Dataset]:
    """Open a DICOM file of any kind, likewise."""
    from pydicom.errors import InvalidDicomError

    path = input_file(path, what)
    with reading(path, what), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            found = read_dataset(path)
        except InvalidDicomError:
            raise InputError(f"{path} is no DICOM file; an {what} is needed") from None
        except EOFError:
            raise InputError(f"{path} is cut off; copy or export it anew") from None
        yield found


def read_dataset(path: str | os.PathLike, **options: Any) -> Dataset:
    """`pydicom.dcmread`, but for a file that is deflated as a whole (PS3.5, A.5) and would be too large when it is unpacked."""
    from pydicom import filereader

    with open(path, "rb") as file:
        if DEFLATED.encode() in file.read(_META_BYTES):
            file.seek(0)
            filereader.read_preamble(file, True)
            filereader.read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
            check_inflated(path, [iter(lambda: file.read(_META_BYTES), b"")], -zlib.MAX_WBITS)
    with io.FileIO(path) as raw, _Rest(raw, os.fstat(raw.fileno()).st_size) as file:
        return filereader.dcmread(file, **options)


class _Rest(io.BufferedReader):
    """A file whose `read` takes no more memory than is left of it, whatever length a damaged element tells."""

    def __init__(self, raw: io.FileIO, size: int) -> None:
        super().__init__(raw)
        self._end = size

    def read(self, size: int | None = -1, /) -> bytes:
        """As a file's."""
        rest = max(0, self._end - self.tell())
        return super().read(rest if size is None or size < 0 else min(size, rest))


def need(item: Dataset, keyword: str, where: str) -> Any:
    """An element that must be there and not be empty; `where` names the item, e.g. `"beam 1"`."""
    value = item.get(keyword)
    if value is None or (hasattr(value, "__len__") and len(value) == 0):
        raise InputError(f"{where} has no {keyword}; the file may be cut off, export it anew")
    return value


def numbers(item: Dataset, keyword: str, where: str, count: int | None = None) -> np.ndarray:
    """An element's finite numbers, float64; as many as `count` where that is given."""
    value = need(item, keyword, where)
    values = np.atleast_1d(np.asarray(value, dtype=np.float64))
    if not np.isfinite(values).all() or (count is not None and len(values) != count):
        raise InputError(f"{where}: {keyword} must be {'' if count is None else f'{count} '}finite numbers, got {len(values)} values")
    return values


def number(item: Dataset, keyword: str, where: str) -> float:
    """An element that is one finite number."""
    return float(numbers(item, keyword, where, 1)[0])


def stored_pixels(file: Dataset, what: str) -> np.ndarray:
    """A file's stored values `(frames, rows, columns)`, uncompressed.

    pydicom decodes what needs no further library (RLE, deflated), or one that is here (JPEG 2000 through pillow).
    """
    rows, columns, bits = (int(number(file, key, what)) for key in ("Rows", "Columns", "BitsAllocated"))
    frames = int(file.get("NumberOfFrames") or 1)
    stored, needed = len(need(file, "PixelData", what)), rows * columns * frames * bits // 8
    if min(rows, columns, frames, bits) < 1 or needed > MOST_BYTES:
        size = f"{frames} frames of {rows} x {columns} values of {bits} bits"
        raise InputError(f"{what} has {size}, {MOST_BYTES / 1e9:.1f} GB at most are read")
    if not file.file_meta.TransferSyntaxUID.is_compressed and stored < needed:
        raise InputError(f"{what} has {stored} bytes of {needed}; the file is cut off, copy or export it anew")
    return file.pixel_array.reshape(frames, rows, columns)
