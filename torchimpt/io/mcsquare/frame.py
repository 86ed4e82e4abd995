"""From LPS to MCsquare's frame; the package says how it lies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from torchimpt.geometry import Grid


def turned(values: np.ndarray) -> np.ndarray:
    """An array `(z, y, x)` from LPS to MCsquare's order, and back: x and y reversed."""
    return np.ascontiguousarray(values[:, ::-1, ::-1])


def in_frame(point: Sequence[float], grid: Grid) -> tuple[float, float, float]:
    """An LPS point in the frame of a CT on this grid, mm."""
    x, y, z = point
    low = [o - s / 2 for o, s in zip(grid.origin, grid.spacing, strict=True)]
    return x - low[0], low[1] + grid.spacing[1] * grid.shape[1] - y, z - low[2]
