"""Tables from CT numbers to relative stopping power (RSP), piecewise linear.

The default table joins air, water and six tissues (ICRU Report 44; spongiosa ICRP Publication 23): lung, adipose tissue, muscle,
cartilage, spongiosa, cortical bone. Their HU come from the stoichiometric relation of Schneider et al. (Phys. Med. Biol. 45:459, 2000,
with k1 = 1.24e-3, k2 = 3.06e-5), their RSP from Bethe's formula at 100 MeV with Bragg-additive mean excitation energies (ICRU Report 37;
water 75 eV). Above cortical bone the last slope goes on to HU 3071. `tests/test_hu_table.py` derives every entry again. A clinic's scanner
has a table of its own: give that.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch

from torchimpt.checks import InputError, PhysicsWarning
from torchimpt.columns import read_columns, read_rows
from torchimpt.files import reader
from torchimpt.scanner import read_scanner

WATER = (0.9, 1.1)
"""What a table that is read from a file may have at 0 HU: scanners put water a few HU from there."""

DENSEST = 15.0
"""Greatest relative stopping power that is taken; what is above is a unit or a typing error."""

_THIN = 0.05
"""A relative stopping power of air and thin foam: what is below a table's first entry may well have it."""


_FALL = 0.1
"""Stopping power grows with HU but for small steps back where a table changes material: 0.017 in MCsquare's scanners."""


@dataclass(frozen=True, eq=False)
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
        if float(self.rsp.diff().min()) < -_FALL:
            row = int(self.rsp.diff().argmin()) + 1
            raise InputError(
                f"{what} falls from rsp {float(self.rsp[row - 1]):g} to {float(self.rsp[row]):g} at {float(self.hu[row]):g} HU (entry "
                f"{row + 1}); stopping power grows with HU: mend or sort its entries, and give a ROI of known material a [[material]]"
            )

    def __call__(self, hu: torch.Tensor) -> torch.Tensor:
        """RSP at CT numbers of any shape and dtype, float64. Beyond the ends the end values hold, and a warning is given."""
        values = hu.to(torch.float64)
        last = "metal, or the table is too short; a [[material]] says what is known of a ROI"
        self._tell(values[values > self.hu[-1]], "above the last", -1, "up", last)
        if self.rsp[0] > _THIN:
            self._tell(values[values < self.hu[0]], "below the first", 0, "down", "the table is too short")
        right = torch.searchsorted(self.hu, values.contiguous(), right=True).clamp(1, len(self.hu) - 1)
        low, high = self.hu[right - 1], self.hu[right]
        weight = ((values - low) / (high - low).clamp_min(1e-300)).clamp(0.0, 1.0)
        return self.rsp[right - 1] + weight * (self.rsp[right] - self.rsp[right - 1])

    def _tell(self, beyond: torch.Tensor, where: str, entry: int, way: str, why: str) -> None:
        """Warn of CT numbers beyond an end of the table."""
        if len(beyond):
            furthest = float(beyond.max() if way == "up" else beyond.min())
            warnings.warn(
                f"{len(beyond)} voxels lie {where} entry of HU table '{self.name}' ({float(self.hu[entry]):g} HU; they go {way} to "
                f"{furthest:g}) and get its relative stopping power {float(self.rsp[entry]):g}: {why}",
                PhysicsWarning,
                stacklevel=3,
            )


@reader("HU table")
def read_hu_table(path: str | Path) -> HuTable:
    """Read a table; what the path is tells the format.

    Parameters
    ----------
    path
        A folder is a scanner of MCsquare (`read_scanner`). A file `.hlut` is one of matRad's (github.com/e0404/matRad, `hluts/`): comments
        after `#`, then rows of HU and relative stopping power, separated by white space, under header lines if any. Every other file is a
        CSV with the columns `hu` and `rsp` (or `rsp_100MeV`); other columns are left alone.

    Returns
    -------
    The table. One whose value at 0 HU (or at its end nearest to that) is far from water's is an error: it is of another quantity or in
    another unit.
    """
    path = Path(path)
    if path.is_dir():
        hu, rsp = (torch.from_numpy(column) for column in read_scanner(path))
    elif path.suffix.lower() == ".hlut":
        hu, rsp = read_rows(path, ["HU", "RSP"], header=True).values()
    else:
        columns = read_columns(path, ["hu", ("rsp", "rsp_100MeV")])
        hu, rsp = columns["hu"], columns["rsp"]
    table = HuTable(hu, rsp, str(path))
    water = float(table(table.hu.new_zeros(()).clamp(table.hu[0], table.hu[-1])))
    low, high = WATER
    if not low <= water <= high:
        raise InputError(
            f"HU table '{path}' gives water (0 HU) a relative stopping power of {water:g}, which must be {low:g} to {high:g}; check that "
            "it holds stopping powers relative to water, not percent or another quantity, and Hounsfield units, which begin at -1000 or so"
        )
    if float(table.rsp.max()) > DENSEST:
        raise InputError(
            f"HU table '{path}' goes up to rsp {float(table.rsp.max()):g}; stopping powers relative to water are {DENSEST:g} at most "
            "(gold: 10)"
        )
    return table


def default_hu_table() -> HuTable:
    """The package's own table (see the module): -999 HU is air, 0 HU is water with an RSP of exactly 1."""
    with resources.as_file(resources.files("torchimpt") / "default_hu_table.csv") as path:
        table = read_hu_table(path)
    return HuTable(table.hu, table.rsp, "default")
