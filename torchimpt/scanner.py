"""The scanner folders of the Monte Carlo code MCsquare: from CT numbers to densities and materials, and so to stopping powers.

A scanner folder holds two text files of rows of two numbers, with comments after `#`: `HU_Density_Conversion.txt` has HU and mass density,
g/cm^3, piecewise linear; `HU_Material_Conversion.txt` has HU and the number of the material of the CT numbers above it, up to and with the
next row's. What the numbers mean stands in MCsquare's folder `Materials`: `list.dat` has number and name, and `<name>/G4_Stop_Pow.dat` has
energy, MeV, and mass stopping power, MeV cm^2/g. MCsquare has scanners as `Scanners/<name>` beside `Materials`.

Source: the files and the readers of MCsquare, K. Souris, UCLouvain (github.com/e0404/MCsquare: `data_ct.c`, `compute_math.c`,
`data_Stop_Pow.c`, `Materials/`); the formats only.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from torchimpt.checks import InputError
from torchimpt.columns import read_rows
from torchimpt.files import input_file, reader

DENSITIES, MATERIALS = "HU_Density_Conversion.txt", "HU_Material_Conversion.txt"
ENERGY = 100.0
"""Where stopping powers are compared, MeV; their ratio to water's depends little on the energy."""
_STEP = 1e-6
"""Width of the ramp from one material to the next, HU."""


@reader("HU table")
def read_scanner(folder: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Relative stopping power by HU from a scanner folder of MCsquare (see the module).

    `rsp(HU) = density(HU) S(material(HU)) / S(water)`, with mass stopping powers `S` at `ENERGY` and water of 1 g/cm^3.

    Parameters
    ----------
    folder
        With both files. The folder `Materials` is looked for in it, beside it, and beside the folder that it is in.

    Returns
    -------
    hu, rsp
        `(n,)`, float64, from the first to the last density's HU, linear in between: densities and both sides of each step between
        materials. Below the first row of the materials the first one counts.
    """
    folder = Path(folder)
    missing = [name for name in (DENSITIES, MATERIALS) if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{folder} is a folder without {' and '.join(missing)}; a folder as HU table is a scanner of MCsquare, with {DENSITIES} and "
            f"{MATERIALS}; else name a file, CSV or .hlut"
        )
    known, density = _ascending(folder / DENSITIES, "density_g_cm3")
    start, number = _ascending(folder / MATERIALS, "material")
    if density.min() < 0:
        raise InputError(f"{folder / DENSITIES} has a negative density, {density.min():g} g/cm3")
    mass = _relative_mass_stopping_powers(folder, number)
    steps = start[1:][(start[1:] >= known[0]) & (start[1:] < known[-1])]
    hu = np.unique(np.concatenate([known, steps, steps + _STEP]))
    material = np.searchsorted(start, hu, side="left") - 1
    return hu, np.interp(hu, known, density) * mass[np.maximum(material, 0)]


def _ascending(path: Path, value: str) -> tuple[np.ndarray, np.ndarray]:
    """Both columns of a conversion; its HU ascend."""
    columns = read_rows(path, ["HU", value])
    hu = columns["HU"].numpy()
    if len(wrong := np.flatnonzero(np.diff(hu) <= 0)):
        raise InputError(f"{path} must ascend in HU, but {hu[wrong[0] + 1]:g} follows {hu[wrong[0]]:g}")
    return hu, columns[value].numpy()


def _relative_mass_stopping_powers(scanner: Path, numbers: np.ndarray) -> np.ndarray:
    """Mass stopping powers of the numbered materials over that of water, `(n,)`."""
    folder = _materials_folder(scanner)
    names = _material_names(folder / "list.dat")
    missing = [f"{number:g}" for number in numbers if number not in names]
    if missing:
        raise InputError(f"{scanner / MATERIALS} names the material {', '.join(missing)}, which is not in {folder / 'list.dat'}")
    return np.array([_stopping_power(folder, names[number]) for number in numbers]) / _stopping_power(folder, "Water")


def _materials_folder(scanner: Path) -> Path:
    """The folder `Materials` that belongs to a scanner folder."""
    here = Path(os.path.abspath(scanner))
    places = list(dict.fromkeys(folder / "Materials" for folder in (here, here.parent, here.parent.parent)))
    for place in places:
        if (place / "list.dat").is_file():
            return place
    raise InputError(
        f"{scanner} needs MCsquare's folder Materials, with list.dat; looked for it as {', '.join(map(str, places))}; copy or link it there"
    )


@reader("list of materials")
def _material_names(path: Path) -> dict[float, str]:
    """Name by number from `list.dat`."""
    rows = [line.partition("#")[0].split() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    return {float(row[0]): row[1] for row in rows if row}


def _stopping_power(folder: Path, name: str) -> float:
    """Mass stopping power of a material at `ENERGY`, MeV cm^2/g."""
    path = input_file(folder / name / "G4_Stop_Pow.dat", f"stopping power of the material {name}")
    columns = read_rows(path, ["energy_MeV", "stopping_power"])
    energy, power = columns["energy_MeV"].numpy(), columns["stopping_power"].numpy()
    value = float(np.interp(ENERGY, energy, power, left=0.0, right=0.0))
    if not (np.diff(energy) > 0).all() or value <= 0:
        raise InputError(f"{path} must ascend in energy and have a positive stopping power at {ENERGY:g} MeV, got {value:g} MeV cm2/g")
    return value
