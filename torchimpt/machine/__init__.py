"""Machines: the generic one from formulas, commissioned ones from files."""

from collections.abc import Callable
from pathlib import Path

from torchimpt.machine.csv_folder import read_csv_machine
from torchimpt.machine.generic import generic
from torchimpt.machine.machine import Machine
from torchimpt.machine.matrad import read_matrad_machine
from torchimpt.machine.tables import LayerTables

READERS: dict[str, Callable[[Path], Machine]] = {"csv": read_csv_machine, "matrad": read_matrad_machine}
"""Formats of machine files, by their name in a case file: from a path to the machine."""

LATER = {"bdl": "write its curves to CSV tables and use format = 'csv'"}
"""Formats that are not there yet, and what to do until then."""

__all__ = ["LATER", "READERS", "LayerTables", "Machine", "generic", "read_csv_machine", "read_matrad_machine"]
