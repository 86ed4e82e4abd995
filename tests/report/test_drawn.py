"""What the page's script draws is the data."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from torchimpt.evaluate import dvh_curves
from torchimpt.report.drawn import MISSING, convergence_data, dvh_data, spots_data
from torchimpt.report.style import roi_colors


def decoded(text, dtype):
    return np.frombuffer(base64.b64decode(text), dtype)


def test_curves_are_those_of_every_scenario_and_roi(report_data):
    curves, rois = dvh_curves(report_data.roi_doses), ["PTV <1>", "Cord & canal"]
    data = dvh_data({"": curves}, rois, roi_colors(report_data.patient), shown=rois[:1], targets=rois[:1], goals=report_data.goals)
    (run,) = data["runs"]
    found = decoded(run["curves"], "<u2").reshape(3, 2, data["n"]) / 100.0
    for s, scenario in enumerate(run["scenarios"]):
        for r, roi in enumerate(rois):
            assert np.abs(found[s, r] - curves[scenario][roi][1].numpy()).max() <= 0.0051, "hundredths of a percent"
    assert [(roi["name"], roi["shown"]) for roi in data["rois"]] == [("PTV <1>", True), ("Cord & canal", False)]
    assert [(m["roi"], m["x"], m["y"], m["way"]) for m in data["marks"]] == [
        ("PTV <1>", 50.0, 95.0, "right"), ("Cord & canal", 20.0, 2.0, "left"),
    ]  # fmt: skip
    json.dumps(data)


def test_runs_with_other_axes_are_put_on_the_finer_and_longer(report_data):
    fine, coarse = torch.linspace(0, 60, 121, dtype=torch.float64), torch.linspace(0, 80, 41, dtype=torch.float64)
    runs = {"a": {"nominal": {"PTV": (fine, 100 - fine)}}, "b": {"nominal": {"PTV": (coarse, 100 - coarse), "Cord": (coarse, 0 * coarse)}}}
    data = dvh_data(runs, ["PTV", "Cord"], {"PTV": "#000", "Cord": "#111"}, shown=[])
    assert data["step"] == 0.5 and data["n"] == 161
    a, b = (decoded(run["curves"], "<u2").reshape(2, 161) for run in data["runs"])
    assert b[0, 3] == 9850 and a[0, 120] == 4000 and a[0, 121] == 0 and (a[1] == MISSING).all() and b[1, 0] == 0


def test_spots_by_layer_and_where_they_came_from(report_data):
    spots = report_data.spots
    data = spots_data(spots, spots.position.detach() - 1.5)
    assert [(layer["beam"], layer["energy"]) for layer in data["layers"]] == [(0, 90.0), (0, 80.0), (1, 85.0)]
    order = [data["layers"][k]["energy"] for k in decoded(data["layer"], "<i2")]
    assert order == [float(spots.layer_energy[k]) for k in spots.layer]
    for name, axis in (("x", 0), ("y", 1)):
        end, start = decoded(data[name], "<i2") / 10, decoded(data[f"home_{name}"], "<i2") / 10
        assert np.allclose(end, spots.position.detach()[:, axis], atol=0.051) and np.allclose(end - start, 1.5, atol=0.11)
    assert decoded(data["weight"], "<f4").tolist() == spots.weight.tolist()
    assert "home_x" not in spots_data(spots, None)


def test_convergence_leaves_out_what_is_not_finite(report_data):
    rows = [*report_data.history, {"iteration": 4, "value": float("nan")}]
    data = convergence_data(rows, roi_colors(report_data.patient))
    assert data["iterations"] == [0, 1, 2, 3] and [line["name"] for line in data["lines"]] == ["Total", "PTV <1>", "Cord & canal"]
    assert convergence_data([], {}) is None and convergence_data([{"iteration": i, "value": 0.0} for i in range(2)], {}) is None
    late = [{"iteration": 0, "value": 3.0}, {"iteration": 1, "value": 2.0, "terms": {"PTV": 2.0}}]
    assert convergence_data(late, {})["lines"][1] == {"name": "PTV", "color": "var(--accent)", "iterations": (1,), "values": (2.0,)}


# Machado et al., IEEE Trans Vis Comput Graph 15:1291, 2009, severity 1: linear RGB as protanopes, deuteranopes and tritanopes see it.
DEFICIENCIES = {
    "normal": np.eye(3),
    "protan": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "deutan": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
    "tritan": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]),
}


def lab(color, seen):
    """CIE L*a*b* of a colour as it is seen, D65."""
    rgb = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.clip(seen @ np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4), 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("kind", DEFICIENCIES)
def test_the_colours_of_a_usual_plan_are_told_apart_by_every_eye(report_data, kind):
    """Two targets and seven organs: 20 units of CIE 1976 are seen at a glance (2.3 is just seen)."""
    rois = {name: replace(report_data.patient.rois["PTV <1>"], name=name, role="target") for name in ("PTV", "CTV")}
    rois |= {str(k): replace(report_data.patient.rois["PTV <1>"], name=str(k), role="oar") for k in range(7)}
    colors = [lab(color, DEFICIENCIES[kind]) for color in roi_colors(replace(report_data.patient, rois=rois)).values()]
    nearest = min(np.linalg.norm(a - b) for i, a in enumerate(colors) for b in colors[:i])
    assert nearest > 20.0
