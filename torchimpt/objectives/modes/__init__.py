"""Robust modes by their name in a case file."""

from collections.abc import Callable

from torchimpt.objectives.mode import RobustMode
from torchimpt.objectives.modes.minimax import Composite, Objectivewise
from torchimpt.objectives.modes.sum import Expected, Nominal, Sum
from torchimpt.objectives.modes.tail import CVaR, Percentile
from torchimpt.objectives.modes.voxelwise import Voxelwise, VoxelwiseInvariant

MODES: dict[str, Callable[..., RobustMode]] = {
    mode.name: mode for mode in (Sum, Nominal, Expected, Composite, Objectivewise, Voxelwise, VoxelwiseInvariant, CVaR, Percentile)
}
"""From the parameters of a mode, which are keys of `[robustness]`, to the mode."""
