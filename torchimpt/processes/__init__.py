"""Several processes on one plan, each with the doses of its own scenarios."""

from torchimpt.processes.group import joined
from torchimpt.processes.team import ALONE, Team

__all__ = ["ALONE", "Team", "joined"]
