"""Where spots went: single energy layers, large enough to see each spot's way from where it was placed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from torchimpt.report.spot_maps import SHARE, draw_spots, layer_weights, spacing
from torchimpt.report.style import INK, MUTED, new_figure, rc
from torchimpt.spots import Spots


def fullest_layers(spots: Spots, count: int = 1) -> list[int]:
    """The `count` layers of each beam that carry the most weight, beam by beam, the heaviest first."""
    weight, beam = layer_weights(spots), spots.layer_beam.cpu()
    held = torch.bincount(spots.layer.cpu(), minlength=spots.n_layers) > 0
    found: list[int] = []
    for number in range(len(spots.beams)):
        own = torch.nonzero((beam == number) & held).flatten()
        found += own[weight[own].argsort(descending=True, stable=True)[:count]].tolist()
    return found


def moved(spots: Spots, home: torch.Tensor) -> torch.Tensor:
    """How far `(n,)` the spots that carry weight are from `home` `(n_spots, 2)`, mm."""
    weight = spots.weight.detach()
    return (spots.position.detach() - home.to(weight))[weight > SHARE * weight.max()].norm(dim=1)


def motion_figure(spots: Spots, home: torch.Tensor, layers: Sequence[int], width: float = 1100) -> Figure:
    """A panel an energy layer: a line from where each spot was placed to where it is, and there a disc, its area by weight.

    All panels of a figure have the same scale. A panel shows all that its beam covers, so that frames of a sequence lie on each other.

    Parameters
    ----------
    spots
        The plan.
    home
        Where its spots were placed, `(n_spots, 2)`, mm.
    layers
        Which to show, at least one.
    width
        CSS pixels of up to three panels in a row; the height follows.
    """
    position, weight, start = (t.detach().cpu().double() for t in (spots.position, spots.weight, home))
    layer, beam = spots.layer.cpu(), spots.layer_beam.cpu()
    windows = [_window(position, start, beam[layer] == beam[index]) for index in layers]
    reach = max(window[1] for window in windows)
    columns = max(1, min(len(layers), 3))
    rows = -(-len(layers) // columns)
    side = width / max(columns, 2)
    inner, left, bottom, head = side - 58.0, 46.0, 36.0, 22.0
    height = rows * (inner + bottom + head)
    scale = inner / (2 * reach)
    with rc():
        figure = new_figure(side * columns, height)
        for number, (index, (middle, _)) in enumerate(zip(layers, windows, strict=True)):
            x, y = number % columns * side + left, height - number // columns * (inner + bottom + head) - head - inner
            axes = figure.add_axes((x / (side * columns), y / height, inner / (side * columns), inner / height))
            own = layer == index
            heaviest = float(weight[own].max()) if bool(own.any()) else 0.0
            full = (0.62 * spacing(start[own], layer[own]) * scale) ** 2 if bool(own.any()) else 0.0
            draw_spots(axes, position[own], start[own], (weight[own] / max(heaviest, 1e-30)).clamp(0, 1), full, line=1.0, dot=2.0)
            axes.set_xlim(float(middle[0]) - reach, float(middle[0]) + reach)
            axes.set_ylim(float(middle[1]) - reach, float(middle[1]) + reach)
            axes.set_xlabel("x, mm")
            if number % columns == 0:
                axes.set_ylabel("y, mm")
            _title(axes, spots, index, position[own] - start[own], weight[own])
    return figure


def _window(position: torch.Tensor, home: torch.Tensor, own: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Middle and half side, mm, of the square around where the spots of a mask are and were; of all where it holds none."""
    own = own | ~own.any()
    both = torch.cat((position[own], home[own]))
    low, high = both.min(0).values, both.max(0).values
    return (low + high) / 2, float((high - low).max()) / 2 + 4.0


def _title(axes: Axes, spots: Spots, index: int, step: torch.Tensor, weight: torch.Tensor) -> None:
    """Beam and energy on the left, what moved how far on the right."""
    name = f"Beam {int(spots.layer_beam[index])}, {spots.layer_name(index)}"
    axes.set_title(name, fontsize=8.5, color=INK, loc="left", y=1.02)
    carries = weight > SHARE * weight.max() if len(weight) else torch.zeros(0, dtype=torch.bool)
    if bool(carries.any()):
        length = step[carries].norm(dim=1)
        text = f"{int(carries.sum())} spots moved {float(length.mean()):.1f} mm"
        axes.set_title(text, fontsize=7.5, color=MUTED, loc="right", y=1.02)
