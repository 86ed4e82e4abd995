"""Machines: the generic one from formulas, commissioned ones from files."""

from collections.abc import Callable

from torchimpt.machine.bdl import read_bdl_machine
from torchimpt.machine.commissioned import read_commissioned_machine
from torchimpt.machine.csv_folder import read_csv_machine
from torchimpt.machine.emittance import read_emittance_machine
from torchimpt.machine.generic import generic
from torchimpt.machine.machine import Calibration, Machine
from torchimpt.machine.matrad import read_matrad_machine
from torchimpt.machine.tables import LayerTables

READERS: dict[str, Callable[..., Machine]] = {
    "csv": read_csv_machine,
    "matrad": read_matrad_machine,
    "emittance": read_emittance_machine,
    "bdl": read_bdl_machine,
    "torchimpt": read_commissioned_machine,
}
"""Formats of machine files, by their name in a case file: from a path, and what else it needs by name, to the machine."""

__all__ = [
    "READERS",
    "Calibration",
    "LayerTables",
    "Machine",
    "generic",
    "read_bdl_machine",
    "read_commissioned_machine",
    "read_csv_machine",
    "read_emittance_machine",
    "read_matrad_machine",
]
