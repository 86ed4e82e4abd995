"""A machine from measured or simulated tables: what to read, the fits, and what is written."""

from torchimpt.commissioning.fit import Commissioning, commission
from torchimpt.commissioning.tables import CommissioningTables, read_tables
from torchimpt.commissioning.write import summary, write_commissioning

__all__ = ["Commissioning", "CommissioningTables", "commission", "read_tables", "summary", "write_commissioning"]
