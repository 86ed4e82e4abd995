"""Where the spots lie and how much they carry: one small map an energy layer, and the weight of each layer.

Positions are those of the isocentre plane of the gantry frame, mm; x points to the right, y up. `home` is where spots were placed.
"""

from __future__ import annotations

import math

import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from torchimpt.report.style import ACCENT, INK, MUTED, mute, new_figure, rc
from torchimpt.spots import Spots

FAINT = "#b9c3c6"
SHARE = 1e-3
"""Spots below this share of the heaviest carry nothing to speak of: no disc to be seen, and no path."""


def layer_weights(spots: Spots) -> torch.Tensor:
    """Total weight of each energy layer `(n_layers,)`, 10^6 protons."""
    return torch.zeros(spots.n_layers, dtype=torch.float64).index_add_(0, spots.layer.cpu(), spots.weight.detach().cpu().double())


def layer_weights_figure(spots: Spots, width: float = 1100, height: float = 150) -> Figure:
    """Total weight of each energy layer, one panel a beam.

    Parameters
    ----------
    spots
        The plan.
    width, height
        CSS pixels.
    """
    weight = layer_weights(spots)
    energy, beam = spots.layer_energy.cpu(), spots.layer_beam.cpu()
    n_beams = len(spots.beams)
    with rc():
        figure = new_figure(width, height)
        panels = figure.subplots(1, n_beams, squeeze=False, sharey=True)[0]
        figure.subplots_adjust(left=0.055, right=0.995, top=0.86, bottom=0.26, wspace=0.08)
        for number, axes in enumerate(panels):
            own = beam == number
            axes.vlines(energy[own], 0, weight[own], color=ACCENT, linewidth=3.2)
            axes.set_xlim(float(energy.min()) - 3, float(energy.max()) + 3)
            axes.set_ylim(0, 1.05 * float(weight.max()) or 1.0)
            axes.set_title(f"Beam {number}, gantry {spots.beams[number].gantry:g}°", fontsize=8.5, color=INK, loc="left")
            axes.set_xlabel("Energy, MeV")
            axes.grid(axis="x", visible=False)
        panels[0].set_ylabel("10⁶ protons")
    return figure


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


def spot_maps_figure(spots: Spots, beam: int, columns: int = 10, width: float = 1100, home: torch.Tensor | None = None) -> Figure:
    """One beam's spots, a panel an energy layer, in the beam's-eye view at the isocentre.

    A disc's area follows the weight, relative to the beam's heaviest spot; spots without weight are faint points. Where spots moved, a line
    leads from where each was placed to where it is.

    Parameters
    ----------
    spots
        The plan.
    beam
        Counted from 0; it has at least one spot.
    columns
        Panels in a row.
    width
        CSS pixels; the height follows.
    home
        Where the spots were placed, `(n_spots, 2)`, mm; None when they did not move.
    """
    own = (spots.beam == beam).cpu()
    position, weight, layer = (t.detach().cpu()[own] for t in (spots.position, spots.weight, spots.layer))
    start = position if home is None else home.detach().cpu()[own]
    layers = layer.unique()
    place = torch.searchsorted(layers, layer)
    side, head = width / columns, 17.0
    height = math.ceil(len(layers) / columns) * (side + head)
    both = torch.cat((position, start))
    low, high = both.min(0).values, both.max(0).values
    reach = float((high - low).max()) / 2 + 6.0
    scale = (side - 6.0) / (2 * reach)

    def local(point: torch.Tensor) -> torch.Tensor:
        centred = (point.double() - (low + high) / 2) * scale
        x = place % columns * side + side / 2 + centred[:, 0]
        return torch.stack((x, place // columns * (side + head) + head + (side - 6.0) / 2 - centred[:, 1]), dim=1)

    relative = (weight.double() / max(float(weight.max()), 1e-30)).clamp(0, 1)
    full = (0.66 * spacing(start, layer) * scale) ** 2
    with rc():
        figure = new_figure(width, height)
        axes = figure.add_axes((0, 0, 1, 1))
        for number, index in enumerate(layers.tolist()):
            left, top = number % columns * side, number // columns * (side + head)
            axes.add_patch(Rectangle((left + 3, top + head), side - 6, side - 6, facecolor="#f6f5f2", edgecolor="none"))
            axes.text(left + side / 2, top + head - 4, spots.layer_name(index), fontsize=7, color=MUTED, ha="center", va="baseline")
        draw_spots(axes, local(position), None if home is None else local(start), relative, full, line=0.5)
        axes.set_xlim(0, width)
        axes.set_ylim(height, 0)
        mute(axes)
    return figure
