"""Values in the forms that the standard allows (PS3.5, 6.2), and what marks every file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom import Dataset

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


def put_decimals(dataset: Dataset, keyword: str, values: Iterable[float]) -> None:
    """Many numbers, with ten digits, as an element of decimal strings: text at once, as an object for each takes ten times as long."""
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    data = "\\".join([f"{value:.10g}" for value in values]).encode("ascii")
    data += b" " * (len(data) % 2)
    tag = Tag(keyword)
    dataset[tag] = RawDataElement(tag, "DS", len(data), data, 0, True, True)


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
