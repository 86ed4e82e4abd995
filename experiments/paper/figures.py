"""The paper's pictures of a case: DVH bands of the three plans (Fig. 3 to 5), and their dose in a transverse slice (Fig. 6 to 8).

    python experiments/paper/figures.py --case hn [--runs runs/paper] [--out docs/paper]

Needs what `plans.py` and `judge.py` leave in the runs' folder. A line is the nominal DVH, a band what lies between the lowest and the
highest over the nine scenarios, a triangle a limit of Table 1. Maps: above the nominal dose, below with 3 % overshoot and the patient moved
to inferior by the setup error, in the slice with most of the target. Colours are told apart by those who do not see red or green (Okabe and
Ito; viridis).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import PLANS, STUDIES, Study, read
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke

import torchimpt as ti
from torchimpt.dose.scenarios import scenario_doses
from torchimpt.evaluate.dvh import Metric
from torchimpt.planning.load import dose_options, load_machine, load_patient
from torchimpt.report.slices import WINDOW
from torchimpt.report.style import INK, MUTED, mute, new_figure, rc
from torchimpt.scenarios import NOMINAL, Scenario
from torchimpt.studies.flags import flags

COLORS = {"ptv": "#D55E00", "voxelwise": "#7A7A7A", "nine": "#0072B2"}
LIMIT = "#111111"
LEFT = 40.0
"""Pixels for the names of rows."""
HALO = [Stroke(linewidth=2.4, foreground="black", alpha=0.6), Normal()]


@dataclass(frozen=True)
class Config:
    """Flags."""

    case: str = "hn"
    runs: str = "runs/paper"
    out: str = "docs/paper"
    dpi: int = 120


def dvh_figure(study: Study, found: Mapping[str, Any]) -> Figure:
    """A panel a ROI, in each the three plans' bands."""
    width, height = 1080, 330
    with rc():
        figure = new_figure(width, height)
        for number, roi in enumerate(study.shown):
            axes = figure.add_axes(((52 + number * 352) / width, 46 / height, 300 / width, 232 / height))
            _dvh_panel(axes, roi, found)
            if number:
                axes.set_ylabel("")
        handles = [axes.plot([], [], color=COLORS[plan], linewidth=6, alpha=0.5, label=PLANS[plan])[0] for plan in found]
        figure.legend(handles=handles, loc="upper right", ncols=len(handles), bbox_to_anchor=(0.995, 1.0), fontsize=9)
        figure.text(0.012, 0.955, f"{study.title}: DVH bands over nine scenarios", fontsize=10.5, color=INK, va="center")
    return figure


def _dvh_panel(axes: Axes, roi: str, found: Mapping[str, Any]) -> None:
    """Bands of one ROI, their widths, and the limits that Table 1 sets."""
    limits = [goal for goal in next(iter(found.values()))["table"] if goal["roi"] == roi]
    is_target = any("min" in goal for goal in limits)
    ends = []
    for order, (plan, row) in enumerate(found.items()):
        band = {key: np.array(value) for key, value in row["bands"][roi].items() if key != "width_gy"}
        axes.fill_between(band["dose_gy"], band["low"], band["high"], color=COLORS[plan], alpha=0.28, linewidth=0, zorder=2 + order)
        axes.plot(band["dose_gy"], band["nominal"], color=COLORS[plan], linewidth=1.7, zorder=20 + order)
        # a target's curves from where the first leaves 99.5 %, which single cold voxels do not move
        seen = (band["high"] > 0.05) & (band["low"] < (99.5 if is_target else 100.0))
        ends += [float(dose) for dose in band["dose_gy"][seen][[0, -1]]] if seen.any() else [0.0]
        text = f"{row['bands'][roi]['width_gy']:.2f} Gy"
        place = {"x": 0.05, "y": 0.21 - 0.075 * order} if is_target else {"x": 0.97, "y": 0.81 - 0.075 * order, "ha": "right"}
        axes.text(s=text, transform=axes.transAxes, color=COLORS[plan], fontsize=8.5, fontweight="bold", zorder=40, **place)
    place = {"x": 0.05, "y": 0.285} if is_target else {"x": 0.97, "y": 0.885, "ha": "right"}
    axes.text(s="Width of the band", transform=axes.transAxes, color=MUTED, fontsize=8, zorder=40, **place)
    for goal in limits:
        metric, side = Metric.parse(goal["metric"]), "min" if "min" in goal else "max"
        volume = {"min": 100.0, "max": 0.0}.get(metric.kind, metric.argument or 0.0)
        ends.append(goal[side])
        marker = ">" if side == "min" else "<"
        axes.plot(goal[side], volume, marker, color=LIMIT, markersize=6.5, markeredgecolor="white", zorder=60, clip_on=False)
    low, high = min(ends) if is_target else 0.0, max(ends)
    axes.set_xlim(low - (0.1 * (high - low) if is_target else 0.0), high + 0.04 * (high - low))
    axes.set_ylim(0, 102)
    axes.set_xlabel("Dose, Gy(RBE)")
    axes.set_ylabel("Volume, %")
    axes.set_title(roi, fontsize=9.5, loc="left", color=INK)


def overshoot(setup: float) -> Scenario:
    """Ranges 3 % longer, and the patient moved to inferior by the setup error."""
    return Scenario(f"3 % overshoot, {setup:g} mm to inferior", (0.0, 0.0, -setup), 0.97)


def maps_figure(name: str, runs: str) -> Figure:
    """A column a plan, above nominal, below with the error."""
    study, slices, patient, z = STUDIES[name], {}, None, 0
    for plan in PLANS:
        case, spots, _ = read(runs, name, plan)
        if patient is None:
            patient, machine = load_patient(case), load_machine(case)
            z = int(patient.roi("CTV").mask.sum(dim=(1, 2)).argmax())
            inside = torch.zeros(patient.grid.shape, dtype=torch.bool)
            inside[z] = patient.body[z]
            voxels = inside.flatten().nonzero().flatten()
            scenarios = (NOMINAL, overshoot(case.robustness.setup_mm))
        spots = spots.weighted()
        doses = scenario_doses(
            patient, machine, spots, voxels, scenarios, **dose_options(case, torch.device("cpu"), spots.weight.dtype)
        )  # fmt: skip
        for scenario, dose in zip(scenarios, doses.dose(spots.position.detach(), spots.weight.detach()), strict=True):
            flat = torch.zeros(patient.grid.shape[1:])
            flat[inside[z]] = case.quantity().value(dose)
            slices[plan, scenario.name] = flat.numpy()
    return _maps(study, case, patient, z, [s.name for s in scenarios], slices)


def _maps(study: Study, case: ti.Case, patient: ti.Patient, z: int, names: list[str], slices: Mapping[tuple, np.ndarray]) -> Figure:
    prescription = case.prescription()
    x, y = (patient.grid.axis(axis).numpy() for axis in "xy")
    seen = np.maximum.reduce(list(slices.values())) > 0.08 * prescription
    rows, columns = (np.flatnonzero((seen & patient.body[z].numpy()).any(axis=a)) for a in (1, 0))
    bounds = ((x[columns[0]] - 12, x[columns[-1]] + 12), (y[rows[-1]] + 12, y[rows[0]] - 12))
    aspect = (bounds[0][1] - bounds[0][0]) / (bounds[1][0] - bounds[1][1])
    panel = 318.0
    height = panel / aspect
    width, total = LEFT + 3 * (panel + 10) + 70, 2 * (height + 10) + 60
    top = 1.1 * prescription
    with rc():
        figure = new_figure(width, total)
        for j, plan in enumerate(PLANS):
            for i, scenario in enumerate(names):
                place = ((LEFT + j * (panel + 10)) / width, (8 + (1 - i) * (height + 10)) / total, panel / width, height / total)
                axes = figure.add_axes(place)
                image = _map(axes, study, patient, z, slices[plan, scenario], prescription, bounds)
                if i == 0:
                    axes.set_title(PLANS[plan], fontsize=10, color=INK, pad=5)
                if j == 0:
                    axes.set_ylabel(scenario.capitalize().replace(", ", ",\n"), fontsize=8.5, color=INK)
        bar = figure.add_axes(((LEFT + 3 * (panel + 10) + 4) / width, 8 / total, 11 / width, (2 * height + 10) / total))
        ramp = colormaps["viridis"](np.linspace(0, 1, 256))[:, None, :3]
        bar.imshow(ramp, origin="lower", aspect="auto", extent=(0, 1, 0, top))
        mute(bar)
        bar.yaxis.tick_right()
        levels = [f * prescription for f in (0, 0.2, 0.4, 0.6, 0.8, 0.95, 1.07)]
        bar.set_yticks(levels, [f"{level:.0f}" + (" Gy" if level == levels[-1] else "") for level in levels], color=INK)
        bar.tick_params(length=0, pad=4)
        for level, color in ((0.95, "white"), (1.07, "#D55E00")):
            bar.axhline(level * prescription, color=color, linewidth=1.4)
        place = f"{study.title}: dose at z = {float(patient.grid.axis('z')[z]):.0f} mm"
        title = f"{place}; lines: white 95 %, orange 107 % of {prescription:g} Gy, dashed yellow the CTV"
        figure.text(0.012, 1 - 18 / total, title, fontsize=10.5, color=INK, va="center")
    assert image is not None
    return figure


def _wash() -> ListedColormap:
    """Viridis that fades out towards zero dose."""
    ramp = colormaps["viridis"](np.linspace(0, 1, 256))
    ramp[:, 3] = 0.62 * np.clip(np.linspace(0, 1, 256) / 0.25, 0, 1) ** 0.8
    return ListedColormap(ramp)


def _map(axes: Axes, study: Study, patient: ti.Patient, z: int, dose: np.ndarray, prescription: float, bounds: Any) -> Any:
    """One slice: CT, dose, two isodoses, outlines."""
    x, y = (patient.grid.axis(axis).numpy() for axis in "xy")
    step_x, step_y = patient.grid.spacing[:2]
    extent = (x[0] - step_x / 2, x[-1] + step_x / 2, y[0] - step_y / 2, y[-1] + step_y / 2)
    axes.imshow(patient.hu[z].numpy(), cmap="gray", vmin=WINDOW[0], vmax=WINDOW[1], origin="lower", extent=extent, interpolation="bicubic")
    image = axes.imshow(dose, cmap=_wash(), vmin=0, vmax=1.1 * prescription, origin="lower", extent=extent, interpolation="bilinear")
    for level, color in ((0.95, "white"), (1.07, "#D55E00")):
        if dose.max() > level * prescription:
            axes.contour(x, y, dose, levels=[level * prescription], colors=[color], linewidths=[1.2])
    for roi, line in (("CTV", (0, (2.5, 1.5))), *((name, "solid") for name in study.shown if name != "CTV")):
        mask = patient.roi(roi).mask[z].numpy().astype(float)
        if mask.any():
            drawn = axes.contour(
                x, y, mask, levels=[0.5], colors=["white" if roi != "CTV" else "#FFD23F"], linewidths=[1.3], linestyles=[line]
            )
            drawn.set_path_effects(HALO)
    axes.set_xlim(bounds[0])
    axes.set_ylim(bounds[1])
    mute(axes)
    axes.set_facecolor("black")
    for letter, place in (("R", (0.03, 0.5)), ("L", (0.97, 0.5)), ("A", (0.5, 0.96)), ("P", (0.5, 0.04))):
        axes.text(*place, letter, transform=axes.transAxes, color="white", fontsize=8, ha="center", va="center", path_effects=HALO)
    return image


def main(config: Config) -> None:
    """Draw, write."""
    found = json.loads((Path(config.runs) / config.case / "judged.json").read_text())
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    for kind, figure in (("dvh", dvh_figure(STUDIES[config.case], found)), ("dose", maps_figure(config.case, config.runs))):
        path = out / f"{config.case}_{kind}.png"
        figure.savefig(path, dpi=config.dpi, facecolor="white", metadata={"Software": None})
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(flags(Config, __doc__))
