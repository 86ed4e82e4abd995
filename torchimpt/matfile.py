"""MATLAB's `.mat` files of version 7 and older, as scipy reads them, within bounds: none may hold more than it would be safe to unpack.

Layout (MathWorks, "MAT-File Format", level 5): a header of 128 bytes, whose last two tell the byte order, then elements, each with a tag of
two 32-bit numbers, type and size; those of type 15 are streams of zlib. What scipy makes of the content is arrays, structs and texts:
nothing in a file is run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from torchimpt.checks import InputError
from torchimpt.unpacked import MOST_BYTES, check_inflated

_HEADER, _ORDER, _TAG, _COMPRESSED, _CHUNK = 128, {b"IM": "little", b"MI": "big"}, 8, 15, 2**20


def load_mat(path: str | os.PathLike) -> dict[str, Any]:
    """The file's variables by name, structs as objects with attributes, as `scipy.io.loadmat` has them.

    Raises
    ------
    InputError
        Where the file is larger than `torchimpt.unpacked.MOST_BYTES`, or would be when it is unpacked; other errors are scipy's.
    """
    from scipy.io import loadmat

    size = os.stat(path).st_size
    if size > MOST_BYTES:
        raise InputError(f"{path} has {size / 1e9:.1f} GB, {MOST_BYTES / 1e9:.1f} at most are read; save it with fewer variables")
    with Path(path).open("rb") as file:
        check_inflated(path, _streams(file, size))
    try:
        return loadmat(path, squeeze_me=True, struct_as_record=False)
    except MemoryError:
        raise InputError(f"{path} says that it holds more than there is memory for; it may be damaged: write it anew") from None


def _streams(file: BinaryIO, size: int) -> Iterator[Iterator[bytes]]:
    """The zlib streams of a file of level 5, each in pieces; none where it has another layout, which is for scipy to tell."""
    order = _ORDER.get(file.read(_HEADER)[-2:])
    while order is not None and len(tag := file.read(_TAG)) == _TAG:
        kind, length = (int.from_bytes(tag[i : i + 4], order) for i in (0, 4))  # type: ignore[arg-type]
        end = file.tell() + length
        if kind == _COMPRESSED:
            yield _pieces(file, min(end, size))
        file.seek(end)


def _pieces(file: BinaryIO, end: int) -> Iterator[bytes]:
    while file.tell() < end:
        yield file.read(min(_CHUNK, end - file.tell()))
