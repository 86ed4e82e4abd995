"""The HU table of a plan as a curve, over the CT numbers that it was looked up for."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure

from torchimpt.hu_table import HuTable
from torchimpt.report.style import ACCENT, MUTED, new_figure, rc

LEAST_SHOWN = (-1000.0, 1600.0)
"""Air to cortical bone, HU: what the axis covers at least."""
_BINS = 120
_LEAST_SHARE = 1e-3
"""Bottom of the logarithmic axis of shares, %."""


def hu_figure(table: HuTable, hu: torch.Tensor, size: tuple[float, float] = (1100, 330)) -> Figure:
    """Relative stopping power over CT number, thick from the lowest to the highest CT number of the patient; beneath, their histogram.

    Which part of the table is used shows in widths and heights, not in colours.

    Parameters
    ----------
    table
        HU to relative stopping power; beyond its ends the end values hold.
    hu
        CT numbers that are looked up, HU, any shape, may be empty (then there is no thick part, and the histogram has no bars).
    size
        CSS pixels.
    """
    used = hu.detach().flatten().double().cpu().numpy()
    ends = (float(used.min()), float(used.max())) if used.size else LEAST_SHOWN
    shown = min(ends[0], LEAST_SHOWN[0]), max(ends[1], LEAST_SHOWN[1])
    with rc():
        figure = new_figure(*size)
        left, width = 60 / size[0], 1 - 78 / size[0]
        curve = figure.add_axes((left, 0.47, width, 0.5))
        curve.plot(*_part(table, *shown), color=MUTED, linewidth=1.0, gid="hu-table")
        if used.size:
            curve.plot(*_part(table, *ends), color=ACCENT, linewidth=3.2, solid_capstyle="round", gid="hu-used")
        curve.set_ylim(bottom=0)
        curve.set_ylabel("Rel. stopping power")
        curve.tick_params(labelbottom=False)
        histogram = figure.add_axes((left, 0.14, width, 0.27), sharex=curve)
        counts, edges = np.histogram(used, bins=_BINS, range=shown)
        share = 100 * counts / max(used.size, 1)
        histogram.stairs(np.maximum(share, _LEAST_SHARE), edges, baseline=_LEAST_SHARE, fill=True, color=ACCENT)
        histogram.set_yscale("log")
        histogram.minorticks_off()
        histogram.set_ylim(_LEAST_SHARE, 100)
        histogram.set_yticks([0.01, 1, 100], ["0.01", "1", "100"])
        histogram.set_ylabel("Voxels, %")
        histogram.set_xlabel("CT number, HU")
        histogram.set_xlim(*shown)
    return figure


def _part(table: HuTable, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """HU and relative stopping power from `low` to `high`: the table's entries in between, and both ends."""
    hu, rsp = table.hu.numpy(), table.rsp.numpy()
    inside = (hu > low) & (hu < high)
    first, last = np.interp([low, high], hu, rsp)
    return np.array([low, *hu[inside], high]), np.array([first, *rsp[inside], last])
