"""MCsquare's beam data library (BDL), read and written: where its protons start, with what energy, in what phase space.

A text file: `Nozzle exit to Isocenter distance`, `SMX to Isocenter distance` and `SMY to Isocenter distance`, each with its value (mm) in
the next line; for each range shifter, under `Range Shifter parameters`, lines `RS_ID = name` and so on; and under `Beam parameters`, after
the number of energies, a line of names and a row a nominal energy. `MeanEnergy` is in MeV, `EnergySpread` one standard deviation in % of
the nominal energy, `ProtonsMU` the protons of a monitor unit. Protons start in the nozzle's exit plane in one of two Gaussians, of shares
`Weight1` and `Weight2`, each with `SpotSize` (mm), `Divergence` (rad) and `Correlation` along x and y; at the distance d downstream sigma
is that of `torchimpt.machine.optics.drift`.

What MCsquare simulates from there on, another machine's depth doses and widths give here (`torchimpt.machine.upstream`, also for what
becomes of the second Gaussian).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from torchimpt.checks import InputError, nearest
from torchimpt.columns import number
from torchimpt.files import input_file, reader
from torchimpt.geometry import RangeShifter
from torchimpt.machine.machine import Machine
from torchimpt.machine.upstream import check_beams, check_plane, upstream_machine

DISTANCES = {"nozzle": "Nozzle exit to Isocenter distance", "smx": "SMX to Isocenter distance", "smy": "SMY to Isocenter distance"}
"""Lines that name the value in the next one."""

TITLE, PARAMETERS = "--UPenn beam model (double gaussian)--", "Beam parameters"
"""The first line, of the one kind of library that there is, and the line before the table."""

COLUMNS = {
    "nominal": "NominalEnergy", "real": "MeanEnergy", "spread": "EnergySpread", "protons": "ProtonsMU",
    "share": "Weight1",
    "sigma_x": "SpotSize1x", "divergence_x": "Divergence1x", "correlation_x": "Correlation1x",
    "sigma_y": "SpotSize1y", "divergence_y": "Divergence1y", "correlation_y": "Correlation1y",
    "wide_share": "Weight2",
    "wide_sigma_x": "SpotSize2x", "wide_divergence_x": "Divergence2x", "wide_correlation_x": "Correlation2x",
    "wide_sigma_y": "SpotSize2y", "wide_divergence_y": "Divergence2y", "wide_correlation_y": "Correlation2y",
}  # fmt: skip
"""The table's columns in their order, by what they are called here."""

SHIFTER = "Range Shifter parameters"
"""The line before each range shifter: `RS_ID` names it, `RS_WET` is its water-equivalent thickness, mm."""

LEXAN, LEXAN_DENSITY = 66, 1.20
"""Lexan's number in MCsquare's list of materials, and its density, g/cm^3."""

OFF_ONE = 1e-3
"""The two shares of a row add up to one within this: files have three decimals."""


@dataclass(frozen=True)
class BeamDataLibrary:
    """What a library says.

    Attributes
    ----------
    nozzle, smx, smy
        Distances of the nozzle's exit and of the two scan magnets from the isocentre, mm.
    table
        Columns `(n_rows,)` with the keys of `COLUMNS`, in the file's units.
    shifters
        Range shifters' water-equivalent thicknesses, mm, by name. They are written as plates of Lexan.
    """

    nozzle: float
    smx: float
    smy: float
    table: Mapping[str, np.ndarray]
    shifters: Mapping[str, float] = field(default_factory=dict)

    def text(self, comment: str = "") -> str:
        """The file, ten digits a number."""
        count = len(self.table["nominal"])
        head = [TITLE, f"# {comment}" if comment else "#", ""]
        for name, line in DISTANCES.items():
            head += [line, f"{getattr(self, name):.10g}", ""]
        for name, thickness in self.shifters.items():
            made_of = [f"RS_material = {LEXAN}", f"RS_density = {LEXAN_DENSITY:g}", f"RS_WET = {thickness:.10g}"]
            head += [SHIFTER, f"RS_ID = {name}", "RS_type = binary", *made_of, ""]
        rows = [" ".join(f"{self.table[key][i]:.10g}" for key in COLUMNS) for i in range(count)]
        return "\n".join([*head, PARAMETERS, f"{count} energies", "", " ".join(COLUMNS.values()), *rows]) + "\n"


@reader("machine")
def read_beam_data_library(path: str | Path) -> BeamDataLibrary:
    """Read a library; see the module. Only its form is checked: `read_bdl_machine` looks at the numbers."""
    path = input_file(path, "machine")
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    # line numbers stay those of the file
    lines = [(number, line.partition("#")[0].strip()) for number, line in enumerate(text.splitlines(), start=1)]
    lines = [(number, line) for number, line in lines if line]
    if not lines or lines[0][1] != TITLE:
        raise InputError(
            f"{path} must begin with '{TITLE}', got '{lines[0][1][:60] if lines else ''}': of MCsquare's beam data libraries this is the "
            "version that is read"
        )
    distances = {name: _after(path, lines, line) for name, line in DISTANCES.items()}
    start = _place(path, lines, PARAMETERS)
    rest = lines[start + 1 :]
    count = rest[0][1].split()[0] if rest else ""
    names = rest[1][1].split() if len(rest) > 1 else []
    for column in COLUMNS.values():
        if column not in names:
            raise InputError(
                f"{path} has no column {column}{nearest(column, names)} under '{PARAMETERS}'; it has {', '.join(names) or 'none'}"
            )
    rows = [[number(f"{path}, line {at}", word) for word in line.split()] for at, line in rest[2:]]
    wrong = next((at for (at, _), row in zip(rest[2:], rows, strict=True) if len(row) != len(names)), None)
    if wrong is not None:
        raise InputError(f"{path}, line {wrong}: expected {len(names)} numbers, as many as there are columns")
    if not count.isdigit() or int(count) != len(rows) or not rows:
        raise InputError(
            f"{path} must have as many rows as it says under '{PARAMETERS}', '{rest[0][1][:40] if rest else ''}', got {len(rows)}"
        )
    columns = np.array(rows).T
    table = {key: columns[names.index(name)] for key, name in COLUMNS.items()}
    return BeamDataLibrary(table=table, shifters=_shifters(path, lines[:start]), **distances)


@reader("machine")
def read_bdl_machine(path: str | Path, *, curves: str | Path, air: bool = True) -> Machine:
    """Read a machine from a beam data library (see the module).

    Parameters
    ----------
    path
        The text file.
    curves
        Folder of a CSV machine (`torchimpt.machine.csv_folder`) whose depth doses and widths are taken. Its `beam_model.csv` has to tell
        their energy spread, in the column `energy_spread_MeV_1sigma`.
    air
        Whether the energies are those on that plane, and the air behind it takes off what it does; False: they hold at the patient.

    Returns
    -------
    Machine of the library's nominal energies, as far as the curves have the mean ones, with its calibration and the first of its range
    shifters, which whole beams go through. Where it has a second Gaussian there is one lateral component more than the curves have.
    """
    path = input_file(path, "machine")
    library = read_beam_data_library(path)
    table = {name: column for name, column in library.table.items() if name != "share"}
    total = library.table["share"] + table["wide_share"]
    if np.abs(total - 1.0).max() > OFF_ONE:
        i = int(np.abs(total - 1.0).argmax())
        raise InputError(f"{path}: Weight1 and Weight2 of {table['nominal'][i]:g} MeV must add up to 1, got {total[i]:.4g}")
    table["spread"] = table["spread"] * table["nominal"] / 100.0
    check_plane(path, f"'{DISTANCES['nozzle']}'", library.nozzle)
    check_beams(path, table, COLUMNS)
    machine = upstream_machine(path, table, library.nozzle, curves, (library.smx, library.smy), air)
    plates = [RangeShifter(thickness, rule="beam") for thickness in library.shifters.values()]
    return replace(machine, shifter=plates[0]) if plates else machine


def _shifters(path: Path, lines: list[tuple[int, str]]) -> dict[str, float]:
    """Range shifters of the lines before the table: those of a thickness of their own."""
    found: dict[str, float] = {}
    name = ""
    for at, line in lines:
        key, _, value = (part.strip() for part in line.partition("="))
        if line == SHIFTER:
            name = f"range shifter {len(found) + 1}"
        elif name and key == "RS_ID":
            name = value
        elif name and key == "RS_WET":
            found[name] = number(f"{path}, line {at}", value)
    return {name: thickness for name, thickness in found.items() if thickness > 0}


def _place(path: Path, lines: list[tuple[int, str]], name: str) -> int:
    """Where a line stands in the file."""
    place = next((i for i, (_, line) in enumerate(lines) if line == name), None)
    if place is None:
        raise InputError(f"{path} has no line '{name}'{nearest(name, [line for _, line in lines])}; a beam data library needs it")
    return place


def _after(path: Path, lines: list[tuple[int, str]], name: str) -> float:
    """The number in the line after the one that names it."""
    place = _place(path, lines, name)
    line, word = lines[place + 1] if place + 1 < len(lines) else (lines[place][0] + 1, "")
    return number(f"{path}, line {line}", word)
