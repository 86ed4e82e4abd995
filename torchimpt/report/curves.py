"""Curves of one number against another for several series, as objective against spot count, and figures as files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from torchimpt.checks import InputError
from torchimpt.files import whole_or_nothing
from torchimpt.report.style import ACCENT, RC, new_figure, rc

_SERIES = ("#69727a", ACCENT, "#c5283d", "#b98a1d", "#7d55a8", "#2667a8", "#5f7a2b", "#1c2327")
_MARKERS = "osD^vPX*"
_DIGITS = ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 5, 7), (1, 1.5, 2, 3, 4, 5, 6, 8), (1, 1.2, 1.5, 1.7, *(x / 2 for x in range(4, 20))))
LEAST_SPAN = 2.0
"""An axis covers at least this factor, so that a few percent look like a few percent."""


def curves_figure(
    series: Mapping[str, Sequence[tuple[float, float]]],
    x_label: str,
    y_label: str,
    *,
    title: str = "",
    size: tuple[float, float] = (700, 460),
) -> Figure:
    """Several series on logarithmic axes: a line through the points of each, in order of x.

    Parameters
    ----------
    series
        By name in the order of the legend: points `(x, y)`, all positive; a series without points stays in the legend only.
    x_label, y_label
        With units.
    title
        Above the plot.
    size
        CSS pixels.
    """
    for name, points in series.items():
        wrong = [point for point in points if not all(0 < value < math.inf for value in point)]
        if wrong:
            raise InputError(f"series '{name}': logarithmic axes take positive finite numbers, got {wrong[0]}")
    with rc():
        figure = new_figure(*size)
        axes = figure.add_axes((74 / size[0], 50 / size[1], 1 - 88 / size[0], 1 - 80 / size[1]))
        for number, (name, points) in enumerate(series.items()):
            x, y = zip(*sorted(points), strict=True) if points else ((), ())
            marker = _MARKERS[number % len(_MARKERS)] if len(points) <= 30 else ""
            color = _SERIES[number % len(_SERIES)]
            axes.plot(
                x, y, color=color, linewidth=1.5, marker=marker, markersize=5, markeredgecolor="white", markeredgewidth=0.6, label=name
            )
        for axis, values in ((0, [p[0] for s in series.values() for p in s]), (1, [p[1] for s in series.values() for p in s])):
            if values:
                _log_axis(axes, axis, min(values), max(values))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.set_title(title, fontsize=9.5, loc="left")
        if series:
            axes.legend(loc="best")
    return figure


def _log_axis(axes: Axes, number: int, low: float, high: float) -> None:
    """A logarithmic axis (0: x) from `low` to `high` with numbers written out, at least `LEAST_SPAN` wide."""
    span = max(math.log10(high / low), math.log10(LEAST_SPAN))
    middle, half = (math.log10(low) + math.log10(high)) / 2, 0.54 * span
    ends = 10 ** (middle - half), 10 ** (middle + half)
    (axes.set_xscale, axes.set_yscale)[number]("log")
    (axes.set_xlim, axes.set_ylim)[number](*ends)
    axis = (axes.xaxis, axes.yaxis)[number]
    axis.set_major_locator(FixedLocator(_round_numbers(*ends)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"))


def _round_numbers(low: float, high: float, wanted: int = 4) -> list[float]:
    """The roundest numbers between two, `wanted` of them or more where there are that many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    for digits in _DIGITS:
        found = [digit * 10.0**decade for digit in digits for decade in decades]
        found = sorted(value for value in found if low <= value <= high)
        if len(found) >= wanted:
            break
    return found


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write the figure as `path` with the endings `.png` (192 dpi, white) and `.svg`, each whole or not at all, the same bytes every time.

    Parameters
    ----------
    figure
        Of this package.
    path
        With or without an ending, which is replaced.
    """
    for ending in (".png", ".svg"):
        quiet = {"Date": None, "Creator": None} if ending == ".svg" else {"Software": None}
        with matplotlib.rc_context({**RC, "svg.hashsalt": "torchimpt"}), whole_or_nothing(Path(path).with_suffix(ending)) as scratch:
            figure.savefig(scratch, dpi=192, facecolor="white", metadata=quiet)
