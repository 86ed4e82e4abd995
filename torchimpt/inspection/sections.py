"""What is told about files: sections of a title, a table and remarks, in words and numbers only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from torchimpt.checks import InputError
from torchimpt.contours import Contours
from torchimpt.files import reading
from torchimpt.patient import Patient


@dataclass(frozen=True)
class Section:
    """One thing that was found.

    Attributes
    ----------
    title
        What it is.
    columns, rows
        A table; columns whose name ends in a unit, or that hold numbers, are aligned to the right.
    remarks
        Sentences below it.
    """

    title: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Region:
    """A ROI in numbers.

    Attributes
    ----------
    name, kind, role
        As in the file, what the file calls it, and what it is here.
    volume
        mm^3.
    box
        Least and greatest LPS coordinates `(2, 3)`, mm; None where it is empty.
    """

    name: str
    kind: str
    role: str
    volume: float
    box: np.ndarray | None = field(default=None, repr=False)


def region_of(name: str, kind: str, role: str, drawn: Contours) -> Region:
    """A region between contours."""
    return Region(name, kind, role, drawn.volume, drawn.box if drawn.planes else None)


def regions_of(patient: Patient) -> list[Region]:
    """A patient's ROIs."""
    found = []
    for name, roi in patient.rois.items():
        inside = roi.mask.nonzero().numpy()
        box = None
        if len(inside):
            size, origin = np.array(patient.grid.spacing), np.array(patient.grid.origin)
            box = np.stack((inside.min(axis=0)[::-1] - 0.5, inside.max(axis=0)[::-1] + 0.5)) * size + origin
        found.append(Region(name, "", roi.role, patient.volume(name), box))
    return found


def regions_table(title: str, regions: Sequence[Region], remarks: Iterable[str] = ()) -> Section:
    """ROIs, one a row."""
    kinds = any(region.kind for region in regions)
    columns = ("ROI", *(("Type",) if kinds else ()), "Role", "Volume, cm3", "x, mm", "y, mm", "z, mm")
    rows = []
    for region in regions:
        spans = ["-"] * 3 if region.box is None else [span(*region.box[:, i]) for i in range(3)]
        volume = "-" if region.box is None else amount(region.volume / 1000.0)
        rows.append((region.name, *((region.kind,) if kinds else ()), region.role, volume, *spans))
    return Section(title, columns, tuple(rows), tuple(remarks))


def amount(value: float) -> str:
    """A volume, dose or MU: three digits behind the point for small ones, one for large ones."""
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def span(low: float, high: float) -> str:
    """From where to where, mm."""
    return f"{low:.1f} to {high:.1f}"


def size(numbers: Iterable[float]) -> str:
    """Numbers of a grid, `2 x 2 x 3`."""
    return " x ".join(f"{n:.4g}" if n < 10_000 else f"{n:g}" for n in numbers)


def point(place: Iterable[float] | None) -> str:
    """A point's coordinates, mm."""
    return ", ".join(f"{v:.6g}" for v in place or ())


def told(path: Path, what: str, tell: Callable[[], Section]) -> Section:
    """What `tell` finds out about a file, or why it cannot be read."""
    try:
        with reading(path, what):
            return tell()
    except InputError as error:
        return Section(f"{what[:1].upper()}{what[1:]} {path}", remarks=(f"cannot be read: {error}",))
