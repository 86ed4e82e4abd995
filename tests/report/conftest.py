"""A small run's results: a ball of a target and a rod of an organ in water, three scenarios."""

from __future__ import annotations

import pytest
import torch

from torchimpt.evaluate import Goal, Metric, check_goals, roi_doses
from torchimpt.geometry import Beam, Grid
from torchimpt.patient import ROI, Patient
from torchimpt.report import ReportData
from torchimpt.spots import Spots


@pytest.fixture
def report_data():
    grid = Grid((18, 20, 22), (4.0, 4.0, 4.0), (-42.0, -38.0, -34.0))
    point = grid.centers().reshape(*grid.shape, 3)
    target = (point - torch.tensor([8.0, 2.0, -2.0])).norm(dim=-1) < 16
    cord = point[..., :2].norm(dim=-1) < 6
    rois = [
        ROI("Body", torch.ones(grid.shape, dtype=torch.bool), "external"),
        ROI("PTV <1>", target, "target"),
        ROI("Cord & canal", cord & ~target),
        ROI("Empty", torch.zeros(grid.shape, dtype=torch.bool)),
    ]
    patient = Patient(torch.zeros(grid.shape), grid, {roi.name: roi for roi in rois})
    nominal = 60.0 * torch.exp(-(((point - torch.tensor([8.0, 2.0, -2.0])).norm(dim=-1) / 24) ** 4)).float()
    doses = {"nominal": nominal, "range-3%": 0.97 * nominal, "x+3mm": nominal.roll(1, 2)}
    tables = roi_doses(patient, doses)
    goals = [Goal("PTV <1>", Metric.parse("d(95)"), min=50.0), Goal("Cord & canal", Metric.parse("d(2)"), max=20.0)]
    spots = Spots.from_columns([Beam(0, 0, (0, 0, 0)), Beam(90, 0, (0, 0, 0))], [0, 0, 1], [90, 80, 85], [0, 5, 1], [2, 0, 3], [1, 0, 2.5])
    terms = [{"roi": "PTV <1>", "kind": "min_dose", "scenario": name, "value": 2.0} for name in doses]
    return ReportData(
        title="A & B <plan>",
        patient=patient,
        dose=nominal,
        roi_doses=tables,
        targets=("PTV <1>",),
        prescription=60.0,
        goals=check_goals(goals, tables),
        metrics={
            "converged": False,
            "stop_reason": "out of iterations",
            "iterations": 3,
            "evaluations": 4,
            "objective": {"initial": 90.0, "final": 6.0, "terms": terms},
            "spots": {"count": 3, "nonzero": 2, "energy_layers": 3, "moved_mm": {"mean": 0.0, "max": 0.0}},
            "matrix": {"nonzeros": 12, "bytes": 96, "discarded_fraction": 0.001},
            "time_s": {"optimize": 1.0, "total": 130.0},
            "peak_memory_bytes": 2e9,
            "device": "cpu",
            "threads": 2,
            "dtype": "float32",
        },
        history=[{"iteration": k, "value": 90.0 / (k + 1), "terms": {"PTV <1>": 80.0 / (k + 1), "Cord & canal": 0.0}} for k in range(4)],
        spots=spots,
        subtitle="generic machine",
        case='title = "x"',
        versions={"torchimpt": "0.1.0"},
    )
