"""What a folder or file holds: for `torchimpt inspect`."""

from torchimpt.inspection.inspect import Inspection, inspect
from torchimpt.inspection.sections import Region, Section

__all__ = ["Inspection", "Region", "Section", "inspect"]
