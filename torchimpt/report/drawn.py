"""What the page's script draws, as plain data for JSON: DVHs, convergence, spots, the HU table."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from torchimpt.evaluate.dvh import Metric
from torchimpt.hu_table import HuTable
from torchimpt.report.spot_maps import spacing
from torchimpt.spots import Spots

Curves = Mapping[str, Mapping[str, tuple[torch.Tensor, torch.Tensor]]]
"""`curves[scenario][roi]`: dose in Gy and volume in %, on one axis from 0 in equal steps."""

MISSING = 65535
"""Where a run has no curve of a ROI."""


def encoded(values: Any, dtype: str) -> str:
    """Numbers as base64, little-endian, of numpy's `dtype`."""
    return base64.b64encode(np.asarray(values).astype(f"<{dtype}").tobytes()).decode("ascii")


def dvh_data(
    runs: Mapping[str, Curves],
    rois: Sequence[str],
    colors: Mapping[str, str],
    *,
    shown: Sequence[str],
    targets: Sequence[str] = (),
    level: float | None = None,
    goals: Sequence[Mapping[str, Any]] = (),
    axis_name: str = "Dose, Gy(RBE)",
) -> dict[str, Any]:
    """DVHs of one run or of several.

    Parameters
    ----------
    runs
        By name; the nominal scenario first in each. Axes may differ; curves are put on the finest one.
    rois
        All that can be shown.
    colors
        By ROI.
    shown
        Which are drawn at first.
    targets
        ROIs that the plan is for.
    level
        Prescription, Gy.
    goals
        Rows of `check_goals`: `d(q)` and `v(d)` limits become marks.
    axis_name
        What the doses are, with their unit.
    """
    axes = [next(iter(next(iter(curves.values())).values()))[0].double().numpy() for curves in runs.values()]
    step, top = min(float(axis[1]) for axis in axes), max(float(axis[-1]) for axis in axes)
    axis = step * np.arange(math.ceil(top / step - 1e-6) + 1)

    def curve(scenario: Mapping[str, tuple[torch.Tensor, torch.Tensor]], roi: str) -> np.ndarray:
        if roi not in scenario:
            return np.full(len(axis), MISSING)
        doses, volume = (values.double().numpy() for values in scenario[roi])
        return np.round(100.0 * np.interp(axis, doses, volume, right=0.0))

    return {
        "step": step, "n": len(axis), "axis": axis_name, "unit": axis_name.rsplit(", ", 1)[-1].split("(")[0], "level": level,
        "rois": [{"name": name, "color": colors[name], "shown": name in shown, "target": name in targets} for name in rois],
        "runs": [
            {
                "name": run,
                "scenarios": list(curves),
                "curves": encoded([[curve(scenario, roi) for roi in rois] for scenario in curves.values()], "u2"),
            }
            for run, curves in runs.items()
        ],
        "marks": [mark for goal in goals if goal["roi"] in rois for mark in _marks(goal)],
    }  # fmt: skip


def _marks(goal: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Where the limits of a `d(q)` or a `v(d)` lie, and which way the curve should be: along the dose or the volume."""
    metric = Metric.parse(goal["metric"])
    if metric.kind not in ("d", "v") or metric.argument is None:
        return []
    along_dose = metric.kind == "d"
    ways = {"min": "right" if along_dose else "up", "max": "left" if along_dose else "down"}
    text = f"{goal['roi']} {metric.label} {goal['limit']}"
    places = {side: (goal[side], metric.argument) if along_dose else (metric.argument, goal[side]) for side in ways if side in goal}
    return [{"roi": goal["roi"], "x": x, "y": y, "way": ways[side], "text": text} for side, (x, y) in places.items()]


def convergence_data(history: Sequence[Mapping[str, Any]], colors: Mapping[str, str]) -> dict[str, Any] | None:
    """The objective and each ROI's share of it over iterations; None with fewer than two finite rows, or where all is 0."""
    rows = [row for row in history if math.isfinite(row["value"])]
    if len(rows) < 2 or not any(row["value"] > 0 for row in rows):
        return None
    detailed = [row for row in rows if row.get("terms")]
    lines = [{"name": "Total", "color": "var(--ink)", "values": [row["value"] for row in rows]}]
    for roi in detailed[-1]["terms"] if detailed else ():
        own = [(row["iteration"], row["terms"].get(roi, 0.0)) for row in detailed]
        iterations, values = zip(*own, strict=True)
        lines.append({"name": roi, "color": colors.get(roi, "var(--accent)"), "iterations": iterations, "values": values})
    return {"iterations": [row["iteration"] for row in rows], "lines": lines}


def spots_data(spots: Spots, home: torch.Tensor | None) -> dict[str, Any]:
    """Layers in the order of their beams, energies falling, and of every spot its place in mm / 10, its layer, its weight in 10^6 protons.

    Parameters
    ----------
    spots
        The plan, at least one spot.
    home
        Where they were placed, `(n_spots, 2)`, mm; None where none moved.
    """
    beam, energy = spots.layer_beam.cpu().tolist(), spots.layer_energy.cpu().tolist()
    held = torch.bincount(spots.layer.cpu(), minlength=spots.n_layers).tolist()
    order = sorted((k for k in range(spots.n_layers) if held[k]), key=lambda k: (beam[k], bool(spots.layer_shifted[k]), -energy[k]))
    place = torch.full((spots.n_layers,), -1)
    place[order] = torch.arange(len(order))
    position, weight = spots.position.detach().cpu(), spots.weight.detach().cpu()
    data: dict[str, Any] = {
        "beams": [f"Beam {number}, gantry {one.gantry:g}°, couch {one.couch:g}°" for number, one in enumerate(spots.beams)],
        "layers": [{"beam": beam[k], "energy": round(energy[k], 2), "name": spots.layer_name(k)} for k in order],
        "layer": encoded(place[spots.layer.cpu()], "i2"),
        "weight": encoded(weight, "f4"),
        "x": encoded((10 * position[:, 0]).round(), "i2"),
        "y": encoded((10 * position[:, 1]).round(), "i2"),
        "apart": spacing(position if home is None else home.detach().cpu(), spots.layer.cpu()),
    }
    if home is not None:
        data |= {f"home_{name}": encoded((10 * home[:, i].detach().cpu()).round(), "i2") for i, name in enumerate("xy")}
    return data


LEAST_SHOWN = (-1000.0, 1600.0)
"""Air to cortical bone, HU: what the axis of CT numbers covers at least."""
_BINS = 120


def hu_data(table: HuTable, hu: torch.Tensor) -> dict[str, Any]:
    """The HU table: its curve, the part from the lowest to the highest CT number that is looked up, and these numbers' histogram.

    Parameters
    ----------
    table
        HU to relative stopping power; beyond its ends the end values hold.
    hu
        CT numbers that are looked up, HU, any shape, may be empty (then there is no such part, and the histogram has no bars).

    Returns
    -------
    `table` and `used`, each HU and relative stopping power (`used` None without voxels); `edges` of the bins, HU, and `share`, % of voxels.
    """
    used = hu.detach().flatten().double().cpu().numpy()
    ends = (float(used.min()), float(used.max())) if used.size else LEAST_SHOWN
    shown = min(ends[0], LEAST_SHOWN[0]), max(ends[1], LEAST_SHOWN[1])
    counts, edges = np.histogram(used, bins=_BINS, range=shown)
    share = 100.0 * counts / max(used.size, 1)
    part = _part(table, *ends) if used.size else None
    return {"table": _part(table, *shown), "used": part, "edges": edges.round(2).tolist(), "share": share.round(4).tolist()}


def _part(table: HuTable, low: float, high: float) -> list[list[float]]:
    """HU and relative stopping power from `low` to `high`: the table's entries in between, and both ends."""
    hu, rsp = table.hu.numpy(), table.rsp.numpy()
    inside = (hu > low) & (hu < high)
    first, last = np.interp([low, high], hu, rsp)
    return [[low, *hu[inside].tolist(), high], [float(first), *rsp[inside].tolist(), float(last)]]
