"""Where the spots lie and how much they carry: one small map an energy layer, and the weight of each layer."""

from __future__ import annotations

import math

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from torchimpt.report.style import ACCENT, INK, MUTED, mute, new_figure, rc
from torchimpt.spots import Spots


def layer_weights_figure(spots: Spots, width: float = 1100, height: float = 150) -> Figure:
    """Total weight of each energy layer, one panel a beam.

    Parameters
    ----------
    spots
        The plan.
    width, height
        CSS pixels.
    """
    weight = torch.zeros(spots.n_layers, dtype=torch.float64).index_add_(0, spots.layer.cpu(), spots.weight.detach().cpu().double())
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


def _spacing(position: torch.Tensor, layer: torch.Tensor) -> float:
    """About how far the spots of the fullest layer lie apart, mm."""
    fullest = position[layer == layer.mode().values]
    extent = (fullest.max(0).values - fullest.min(0).values).clamp_min(5.0)
    return math.sqrt(float(extent.prod()) / len(fullest))


def spot_maps_figure(spots: Spots, beam: int, columns: int = 10, width: float = 1100) -> Figure:
    """One beam's spots, a panel an energy layer, in the beam's-eye view at the isocentre.

    A disc's area follows the weight, relative to the beam's heaviest spot; spots without weight are faint points.

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
    """
    own = (spots.beam == beam).cpu()
    position, weight, layer = (t.detach().cpu()[own] for t in (spots.position, spots.weight, spots.layer))
    layers = layer.unique()
    place = torch.searchsorted(layers, layer)
    side, head = width / columns, 17.0
    height = math.ceil(len(layers) / columns) * (side + head)
    low, high = position.min(0).values, position.max(0).values
    reach = float((high - low).max()) / 2 + 6.0
    scale = (side - 6.0) / (2 * reach)
    local = (position.double() - (low + high) / 2) * scale
    x = place % columns * side + side / 2 + local[:, 0]
    y = place // columns * (side + head) + head + (side - 6.0) / 2 - local[:, 1]
    relative = (weight.double() / max(float(weight.max()), 1e-30)).clamp(0, 1)
    full = (0.66 * _spacing(position, layer) * scale) ** 2
    with rc():
        figure = new_figure(width, height)
        axes = figure.add_axes((0, 0, 1, 1))
        for number, index in enumerate(layers.tolist()):
            left, top = number % columns * side, number // columns * (side + head)
            axes.add_patch(Rectangle((left + 3, top + head), side - 6, side - 6, facecolor="#f6f5f2", edgecolor="none"))
            energy = f"{float(spots.layer_energy[index]):.1f} MeV"
            axes.text(left + side / 2, top + head - 4, energy, fontsize=7, color=MUTED, ha="center", va="baseline")
        axes.scatter(x, y, s=0.4, color="#b9c3c6", linewidths=0, rasterized=True)
        axes.scatter(x, y, s=full * relative, color=ACCENT, alpha=0.85, linewidths=0, rasterized=True)
        axes.set_xlim(0, width)
        axes.set_ylim(height, 0)
        mute(axes)
    return figure
