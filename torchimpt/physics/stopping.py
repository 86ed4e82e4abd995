"""CT numbers to relative stopping power (RSP): piecewise-linear tables, and the map of a patient.

The default table joins water and five tissues of ICRU Report 44 and ICRP Publication 23 (lung, adipose, muscle, cartilage, spongiosa, cortical bone)
and air. Their HU come from the stoichiometric relation of Schneider et al. (Phys. Med. Biol. 45:459, 2000: k1 = 1.24e-3, k2 = 3.06e-5), their
RSP from Bethe's formula at 100 MeV with Bragg-additive mean excitation energies (ICRU Report 37; water 75 eV). Above cortical bone the last
slope goes on to HU 3071. `tests/physics/test_stopping.py` derives every entry again. A clinic's scanner has its own table: give it.
"""

from __future__ import annotations

import csv
import math
import warnings
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from torchimpt.checks import InputError, PhysicsWarning, nearest

if TYPE_CHECKING:
    from torchimpt.machine.machine import Machine
    from torchimpt.patient import Patient

RSP_COLUMNS = ("rsp", "rsp_100MeV")
"""Names that the column of relative stopping powers may have."""


@dataclass(frozen=True)
class HuTable:
    """A piecewise-linear table; two equal HU in a row make a step, whose upper value holds from that HU on.

    Attributes
    ----------
    hu
        `(n,)`, float64, ascending.
    rsp
        `(n,)`, float64, not negative: stopping power over that of water.
    name
        Where the table is from, for messages and logs.
    """

    hu: torch.Tensor
    rsp: torch.Tensor
    name: str = ""

    def __post_init__(self) -> None:
        for field in ("hu", "rsp"):
            object.__setattr__(self, field, torch.as_tensor(getattr(self, field), dtype=torch.float64).flatten())
        what = f"HU table '{self.name}'"
        if len(self.hu) != len(self.rsp) or len(self.hu) < 2:
            raise InputError(f"{what} needs two or more pairs of hu and rsp, got {len(self.hu)} and {len(self.rsp)}")
        if not (torch.isfinite(self.hu).all() and torch.isfinite(self.rsp).all()):
            raise InputError(f"{what} has values that are NaN or infinite")
        if bool((self.hu.diff() < 0).any()):
            row = int((self.hu.diff() < 0).nonzero()[0]) + 1
            raise InputError(f"{what} must ascend in hu, but {float(self.hu[row]):g} follows {float(self.hu[row - 1]):g} (entry {row + 1})")
        if float(self.rsp.min()) < 0:
            raise InputError(f"{what} has a negative rsp, {float(self.rsp.min()):g}; stopping powers relative to water are 0 or more")

    def __call__(self, hu: torch.Tensor) -> torch.Tensor:
        """RSP at CT numbers of any shape and dtype, float64. Beyond the table's ends its end values hold; above the last entry with a warning."""
        values = hu.to(torch.float64)
        above = int((values > self.hu[-1]).sum())
        if above:
            warnings.warn(
                f"{above} voxels lie above the last entry of HU table '{self.name}' ({float(self.hu[-1]):g} HU, up to {float(values.max()):g}) "
                f"and get its relative stopping power {float(self.rsp[-1]):g}: metal, or a table that is too short",
                PhysicsWarning,
                stacklevel=2,
            )
        right = torch.searchsorted(self.hu, values.contiguous(), right=True).clamp(1, len(self.hu) - 1)
        low, high = self.hu[right - 1], self.hu[right]
        weight = ((values - low) / (high - low).clamp_min(1e-300)).clamp(0.0, 1.0)
        return self.rsp[right - 1] + weight * (self.rsp[right] - self.rsp[right - 1])


def read_hu_table(path: str | Path) -> HuTable:
    """Read a CSV table with the columns `hu` and `rsp` (or `rsp_100MeV`); other columns are left alone."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no HU table at {path}; it must be a CSV file with the columns hu and rsp")
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        names = [name.strip() for name in rows.fieldnames or []]
        rows.fieldnames = names
        rsp = next((name for name in RSP_COLUMNS if name in names), None)
        if "hu" not in names or rsp is None:
            missing = "hu" if "hu" not in names else "rsp (or rsp_100MeV)"
            raise InputError(f"{path} has no column {missing}{nearest(missing.split()[0], names)}; it has {', '.join(names) or 'none'}")
        pairs = [(_number(path, i, row, "hu"), _number(path, i, row, rsp)) for i, row in enumerate(rows, start=2)]
    hu, values = zip(*pairs, strict=True) if pairs else ((), ())
    return HuTable(torch.tensor(hu, dtype=torch.float64), torch.tensor(values, dtype=torch.float64), str(path))


def _number(path: Path, line: int, row: dict[str, str | None], column: str) -> float:
    """The finite number in a row's column, or an error that names file, line and column."""
    try:
        value = float(row[column])
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{path}, line {line}, column {column}: expected a number, got '{row[column]}'")
    return value


def default_hu_table() -> HuTable:
    """The package's own table (see the module): -999 HU is air, 0 HU is water with an RSP of exactly 1."""
    with resources.as_file(resources.files("torchimpt.physics") / "default_hu_table.csv") as path:
        table = read_hu_table(path)
    return HuTable(table.hu, table.rsp, "default")


def relative_stopping_power(patient: Patient, machine: Machine) -> torch.Tensor:
    """Relative stopping power of every voxel of a patient.

    Parameters
    ----------
    patient
        With its CT; where it has an ROI of the role external, everything outside that is set to zero (couch, masks and air take no part).
    machine
        Its table counts first, then the patient's own, then the default.

    Returns
    -------
    float64 `(z, y, x)`.
    """
    table = machine.hu_table or patient.hu_table or default_hu_table()
    external = patient.external
    if external is None:
        return table(patient.hu)
    rsp = torch.zeros(patient.grid.shape, dtype=torch.float64)
    rsp[external.mask] = table(patient.hu[external.mask])
    return rsp
