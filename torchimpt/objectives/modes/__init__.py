"""Robust modes by their name in a case file."""

from __future__ import annotations

from collections.abc import Callable

from torchimpt.checks import InputError, nearest
from torchimpt.objectives.mode import RobustMode
from torchimpt.objectives.modes.sum import Sum

MODES: dict[str, Callable[[], RobustMode]] = {mode.name: mode for mode in (Sum,)}
"""Each with its defaults."""


def robust_mode(name: str) -> RobustMode:
    """The mode of this name, with its defaults."""
    if name not in MODES:
        raise InputError(f"robust mode must be one of {', '.join(MODES)}, got '{name}'{nearest(name, MODES)}")
    return MODES[name]()
