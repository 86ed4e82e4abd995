"""A machine from a clinic's emittance table: one CSV row per nominal energy, with the beam on one plane upstream of the isocentre.

Columns, by their names in a line of the file's head (`#` and quotation marks around them do no harm, other lines that start with `#` are
left alone): `Energy nominal [MeV]`, `E real [MeV]`, `E real sigma [MeV]`, `protons/MU`, and for each scan direction `sigma x [mm]`,
`sigma x' [rad]` and `cor(x x')`. A head that names the table's plane, `BMODPOS 600.0 mm`, has to agree with what the reader is told.

Beam, depth doses and spread become a machine as `torchimpt.machine.upstream` says.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np

from torchimpt.checks import InputError, nearest
from torchimpt.columns import number
from torchimpt.files import input_file, reader
from torchimpt.machine.machine import Machine
from torchimpt.machine.upstream import check_beams, check_plane, upstream_machine

COLUMNS = {
    "nominal": "Energy nominal [MeV]", "real": "E real [MeV]", "spread": "E real sigma [MeV]", "protons": "protons/MU",
    "sigma_x": "sigma x [mm]", "sigma_y": "sigma y [mm]", "divergence_x": "sigma x' [rad]", "divergence_y": "sigma y' [rad]",
    "correlation_x": "cor(x x')", "correlation_y": "cor(y y')",
}  # fmt: skip
"""The table's columns, by what they are called here."""


@reader("machine")
def read_emittance_machine(
    path: str | Path, *, plane_mm: float, curves: str | Path, sad_mm: tuple[float, float], air: bool = True
) -> Machine:
    """Read a machine from an emittance table (see the module).

    Parameters
    ----------
    path
        The CSV table.
    plane_mm
        How far upstream of the isocentre the table's plane lies, mm.
    curves
        Folder of a CSV machine (`torchimpt.machine.csv_folder`) whose depth doses and widths are taken. Its `beam_model.csv` has to tell
        their energy spread, in the column `energy_spread_MeV_1sigma`.
    sad_mm
        Distances of the virtual sources `(x, y)` from the isocentre, mm.
    air
        Whether the energies are those on that plane, and the air behind it takes off what it does; False: they hold at the patient.

    Returns
    -------
    Machine of the table's nominal energies, as far as the curves have the real ones; with the table's calibration, and spots of their own
    width along x and y. Where the curves are broader than the table's spread they stay so, with a `PhysicsWarning`.
    """
    path = input_file(path, "machine")
    check_plane(path, "plane_mm", plane_mm)
    return upstream_machine(path, _read_table(path, plane_mm), plane_mm, curves, sad_mm, air)


def _read_table(path: Path, plane: float) -> dict[str, np.ndarray]:
    """The columns `(n_rows,)`, checked."""
    names: list[str] = []
    rows: list[list[float]] = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file)
        for cells in lines:
            if not any(cell.strip() for cell in cells):
                continue
            if cells[0].lstrip().startswith("#") or not (names or rows):
                words = [_plain(cell) for cell in cells]
                names = words if words[0] == _plain(COLUMNS["nominal"]) else names
                _check_plane(path, words, plane)
                continue
            rows.append([number(f"{path}, line {lines.line_num}", cell) for cell in cells])
    place = {}
    for key, column in COLUMNS.items():
        if _plain(column) not in names:
            has = ", ".join(names) or "none that it names in its head"
            raise InputError(f"{path} has no column '{column}'{nearest(_plain(column), names)}; it has {has}")
        place[key] = names.index(_plain(column))
    if not rows or {len(row) for row in rows} != {len(names)}:
        raise InputError(f"{path} must have rows of {len(names)} numbers under its head, got {len(rows)} of {len(rows[-1]) if rows else 0}")
    columns = {key: np.array([row[i] for row in rows]) for key, i in place.items()}
    check_beams(path, columns, COLUMNS)
    return columns


def _plain(cell: str) -> str:
    """A name in the head without comment and quotation marks, in small letters, with single blanks."""
    return " ".join(re.sub(r'[#"]', " ", cell).lower().split())


def _check_plane(path: Path, words: list[str], plane: float) -> None:
    """The head's own word on the plane."""
    said = re.fullmatch(r"bmodpos ([\d.]+) mm", words[0])
    if said and abs(float(said[1]) - plane) > 0.5:
        raise InputError(f"{path} says that its plane lies {said[1]} mm upstream of the isocentre, but plane_mm is {plane:g}; give its own")
