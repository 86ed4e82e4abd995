"""Machines: the generic one from formulas, commissioned ones from files."""

from torchimpt.machine.csv_folder import read_csv_machine
from torchimpt.machine.generic import generic
from torchimpt.machine.machine import Machine
from torchimpt.machine.matrad import read_matrad_machine
from torchimpt.machine.tables import LayerTables

__all__ = ["LayerTables", "Machine", "generic", "read_csv_machine", "read_matrad_machine"]
