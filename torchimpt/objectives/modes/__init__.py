"""Robust modes by their name in a case file."""

from collections.abc import Callable

from torchimpt.objectives.mode import RobustMode
from torchimpt.objectives.modes.sum import Sum

MODES: dict[str, Callable[..., RobustMode]] = {mode.name: mode for mode in (Sum,)}
"""From the parameters of a mode, which are keys of `[robustness]`, to the mode."""
