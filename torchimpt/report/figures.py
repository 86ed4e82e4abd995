"""Figures of doses over scenarios: DVH bands, overlays. Each returns a `Figure`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from torchimpt.evaluate.dvh import Metric, RoiDose, common_axis, dvh_band
from torchimpt.report.style import INK, MUTED, new_figure, rc, slug

Curves = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


def _dvh_axes(axes: Axes, top: float, name: str = "Dose, Gy(RBE)") -> None:
    axes.set_xlim(0, top)
    axes.set_ylim(0, 102)
    axes.set_yticks(range(0, 101, 20))
    axes.set_xlabel(name)
    axes.set_ylabel("Volume, %")


def _mark_prescription(axes: Axes, prescription: float | None) -> None:
    if prescription:
        axes.axvline(prescription, color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)), zorder=1)
        axes.annotate(
            f"{prescription:g} Gy", (prescription, 102), (0, 3), textcoords="offset points", ha="center", fontsize=7.5, color=MUTED
        )


def dvh_figure(
    doses: Mapping[str, Mapping[str, RoiDose]],
    rois: Sequence[str],
    colors: Mapping[str, str],
    *,
    prescription: float | None = None,
    goals: Sequence[Mapping] = (),
    size: tuple[float, float] = (700, 440),
    axis_name: str = "Dose, Gy(RBE)",
) -> Figure:
    """DVHs: the nominal curve, and over it the band between the lowest and the highest volume of all scenarios.

    Parameters
    ----------
    doses
        `doses[scenario][roi]`, Gy; the first scenario is the nominal one.
    rois
        Which to draw, the first on top.
    colors
        By ROI.
    prescription
        Gy; a dotted line.
    goals
        Rows of `check_goals`: a `d(q)` or `v(d)` limit becomes a small triangle that points to where the curve may be.
    size
        CSS pixels.
    axis_name
        What the doses are, with their unit: LETd has the same figure.
    """
    shown = {scenario: {roi: table[roi] for roi in rois} for scenario, table in doses.items()}
    axis = common_axis(shown)
    with rc():
        figure = new_figure(*size)
        axes = figure.add_axes((0.078, 0.115, 0.905, 0.835))
        for order, roi in enumerate(reversed(rois)):
            band = dvh_band([table[roi] for table in shown.values()], axis)
            fill = axes.fill_between(axis, band.low, band.high, color=colors[roi], alpha=0.2, linewidth=0, zorder=2 + order)
            (line,) = axes.plot(axis, band.nominal, color=colors[roi], linewidth=1.6, solid_joinstyle="round", zorder=20 + order)
            fill.set_gid(f"band-{slug(roi)}")
            line.set_gid(f"line-{slug(roi)}")
        for goal in goals:
            if goal["roi"] in rois:
                _goal_marks(axes, goal, colors[goal["roi"]])
        limits = [goal[side] for goal in goals for side in ("min", "max") if side in goal and goal["unit"] == "Gy" and goal["roi"] in rois]
        _dvh_axes(axes, max([float(axis[-1]), *(1.03 * level for level in (prescription or 0.0, *limits))]), axis_name)
        _mark_prescription(axes, prescription)
    return figure


def _goal_marks(axes: Axes, goal: Mapping, color: str) -> None:
    """A triangle at each limit of a `d(q)` (it points along the dose) or a `v(d)` (along the volume)."""
    metric = Metric.parse(goal["metric"])
    argument = metric.argument or 0.0
    for side, along_dose, along_volume in (("min", ">", "^"), ("max", "<", "v")):
        if side in goal and metric.kind in ("d", "v"):
            x, y = (goal[side], argument) if metric.kind == "d" else (argument, goal[side])
            marker = along_dose if metric.kind == "d" else along_volume
            axes.plot([x], [y], marker, markersize=5.5, color=color, markeredgecolor="white", markeredgewidth=0.7, zorder=60, clip_on=False)


def overlay_figure(
    runs: Mapping[str, Mapping[str, Curves]],
    rois: Sequence[str],
    colors: Mapping[str, str],
    *,
    prescription: float | None = None,
    size: tuple[float, float] = (1100, 480),
    named: bool = False,
) -> Figure:
    """DVHs of several runs in one plot: a colour a ROI, a line style a run, each with its band over scenarios.

    Parameters
    ----------
    runs
        `runs[run][scenario][roi]`: `(dose in Gy, volume in %)`, the nominal scenario first, as `read_dvh_csv` returns them.
    rois, colors, prescription, size
        As for `dvh_figure`.
    named
        Whether the picture itself says which colour is which ROI; a page has a legend of its own.
    """
    styles = ["-", (0, (5, 2)), (0, (1.2, 1.4)), (0, (6, 2, 1.2, 2))]
    with rc():
        figure = new_figure(*size)
        axes = figure.add_axes((0.05, 0.11, 0.935, 0.81))
        top = 0.0
        for number, scenarios in enumerate(runs.values()):
            nominal = next(iter(scenarios.values()))
            for roi in (name for name in rois if name in nominal):
                axis, volume = nominal[roi]
                top = max(top, float(axis[-1]))
                volumes = torch.stack([table[roi][1] for table in scenarios.values() if roi in table])
                low, high = volumes.min(dim=0).values, volumes.max(dim=0).values
                axes.fill_between(axis, low, high, color=colors[roi], alpha=0.1, linewidth=0)
                axes.plot(axis, volume, color=colors[roi], linewidth=1.5, linestyle=styles[number % len(styles)])
        for number, name in enumerate(runs):
            axes.plot([], [], color=INK, linewidth=1.4, linestyle=styles[number % len(styles)], label=name)
        if named:
            for roi in rois:
                axes.plot([], [], color=colors[roi], linewidth=0, marker="o", markersize=5, label=roi)
        handles, labels = axes.get_legend_handles_labels()
        above = (1.0, 1.035 if prescription else 1.0)
        axes.legend(handles, labels, loc="lower right", bbox_to_anchor=above, ncols=len(labels), borderaxespad=0.2, columnspacing=1.2)
        _dvh_axes(axes, max(top, 1.04 * (prescription or 0.0)) or 1.0)
        _mark_prescription(axes, prescription)
    return figure
