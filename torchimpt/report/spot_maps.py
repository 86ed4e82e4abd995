"""Where the spots of an energy layer lie and how much they carry, and the weight of each layer.

Positions are those of the isocentre plane of the gantry frame, mm; x points to the right, y up. `home` is where spots were placed.
"""

from __future__ import annotations

import math

import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba

from torchimpt.report.style import ACCENT, INK
from torchimpt.spots import Spots

FAINT = "#b9c3c6"
SHARE = 1e-3
"""Spots below this share of the heaviest carry nothing to speak of: no disc to be seen, and no path."""


def layer_weights(spots: Spots) -> torch.Tensor:
    """Total weight of each energy layer `(n_layers,)`, 10^6 protons."""
    return torch.zeros(spots.n_layers, dtype=torch.float64).index_add_(0, spots.layer.cpu(), spots.weight.detach().cpu().double())


def spacing(position: torch.Tensor, layer: torch.Tensor) -> float:
    """About how far the spots of the fullest layer lie apart, mm."""
    fullest = position[layer == layer.mode().values]
    extent = (fullest.max(0).values - fullest.min(0).values).clamp_min(5.0)
    return math.sqrt(float(extent.prod()) / len(fullest))


def draw_spots(
    axes: Axes, end: torch.Tensor, home: torch.Tensor | None, relative: torch.Tensor, full: float, *, line: float = 0.7, dot: float = 0.4
) -> None:
    """Discs, and for spots that moved a path from a point where each was placed to the middle of its disc; coordinates of the axes.

    Parameters
    ----------
    end, home
        `(n, 2)`; `home` is None where nothing moved.
    relative
        Weights `(n,)` as a share of the heaviest, 0 to 1.
    full
        Area of the heaviest spot's disc, pt².
    line
        Width of a path, pt.
    dot
        Area of the point of a spot without weight, pt².
    """
    carries = relative > SHARE
    (x, y), (x_used, y_used) = end[~carries].T, end[carries].T
    axes.scatter(x, y, s=dot, color=FAINT, linewidths=0, rasterized=True)
    alpha = 0.85 if home is None else 0.5
    axes.scatter(x_used, y_used, s=full * relative[carries], color=ACCENT, alpha=alpha, linewidths=0, rasterized=True)
    if home is not None:
        paths = torch.stack((home[carries], end[carries]), dim=1).numpy()
        # a spot of little weight has a faint path: how far it went matters as little
        color = [to_rgba(INK, 0.2 + 0.8 * min(1.0, 3.0 * share)) for share in relative[carries].tolist()]
        axes.add_collection(LineCollection(list(paths), colors=color, linewidths=line, capstyle="round", rasterized=True), autolim=False)
        axes.scatter(x_used, y_used, s=(1.8 * line) ** 2, color=color, linewidths=0, rasterized=True, zorder=3)
