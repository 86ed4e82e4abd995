"""MetaImage headers (`.mha`, `.mhd`), looked at before ITK reads them: damaged ones end its process, or it never comes back.

A header is lines `Key = value` of text, of which `ElementDataFile` is the last (ITK wiki, "MetaIO Documentation").
"""

from __future__ import annotations

import math
from pathlib import Path

from torchimpt.checks import InputError

MOST_DIMENSIONS = 10
"""As many as MetaIO has room for."""

LONGEST = 65_536
"""Bytes of a header that are looked at."""

FARTHEST = 1e9
"""Greatest number of a header, mm: what is above is damage."""

COSINES = ("TransformMatrix", "Rotation", "Orientation")
LENGTHS = ("Offset", "Position", "Origin", "CenterOfRotation", "ElementSpacing", "ElementSize")


def check_meta_header(file: Path) -> None:
    """Raise where dimensions, directions or lengths of a header cannot be; other files, and what has no such header, pass."""
    if file.suffix.lower() not in (".mha", ".mhd"):
        return
    with file.open("rb") as stream:
        head = stream.read(LONGEST)
    for line in head.split(b"\n"):
        key, equals, value = line.decode("latin-1").partition("=")
        key = key.strip()
        if not equals:
            continue
        if key == "ElementDataFile":
            return
        if key == "NDims" and not (value.strip().isdecimal() and 1 <= int(value) <= MOST_DIMENSIONS):
            raise _damaged(file, key, value, f"be a whole number from 1 to {MOST_DIMENSIONS}")
        if key in COSINES and not _within(value, 1.001):
            raise _damaged(file, key, value, "be cosines, from -1 to 1")
        if key in LENGTHS and not _within(value, FARTHEST):
            raise _damaged(file, key, value, "be finite numbers, mm")


def _within(value: str, most: float) -> bool:
    """Whether a value is numbers, none of which is greater."""
    try:
        numbers = [float(word) for word in value.split()]
    except ValueError:
        return False
    return all(math.isfinite(number) and abs(number) <= most for number in numbers)


def _damaged(file: Path, key: str, value: str, must: str) -> InputError:
    return InputError(f"{file} is a damaged MetaImage: {key} must {must}, got '{value.strip()[:40]}'; copy or write it anew")
