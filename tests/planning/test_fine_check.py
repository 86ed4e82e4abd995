"""A plan's check of itself on a finer grid."""

from __future__ import annotations

import pytest
import torch
from tiny_case import command, tiny, write_images, write_tiny

import torchimpt as ti
from torchimpt.checks import PhysicsWarning
from torchimpt.evaluate.tables import roi_metrics
from torchimpt.planning.assess import assess
from torchimpt.planning.load import load_patient, set_up
from torchimpt.resampling import cropped, resample
from torchimpt.scenarios import NOMINAL
from torchimpt.watch import Progress

IMAGE = ("patient={source='image', path='ct'}", "dose.grid_mm=10", "goal=[{roi='Target', metric='d(95)', min=40}]")
SHORT = ("optimizer.max_iterations=40",)


def test_it_is_the_dose_that_the_case_has_on_that_grid(tmp_path):
    """Against the ordinary way on the whole CT, the air around the body with it."""
    write_images(tmp_path / "ct")
    result = ti.plan(tiny(tmp_path, *IMAGE, *SHORT))
    fine = result.metrics["fine"]
    finer = tiny(tmp_path, *IMAGE, "dose.grid_mm=5")
    patient = load_patient(finer)
    seen = assess(finer, patient, result.machine, result.spots, (NOMINAL,), set_up(finer), Progress(enabled=False))
    expected = roi_metrics(seen.roi_doses["nominal"]["Target"])
    assert fine["grid_mm"] == [5.0, 5.0, 5.0] and set(fine["rois"]) == {"Target"}, "not the body"
    # float32 tables of other chunks of voxels
    assert fine["rois"]["Target"] == pytest.approx(expected, rel=1e-5)
    objective = ti.Objective([term for term in finer.terms() if term.roi == "Target"])
    (on_it, on_its_own) = (objective.at(one.points, one.points.volume).value(one.doses["nominal"]) for one in (seen, result.assessment))
    assert fine["objective"] == pytest.approx(float(on_it), rel=1e-4)
    assert fine["objective_planned"] == pytest.approx(float(on_its_own), rel=1e-6)
    assert fine["moved"][0]["planned"] == result.metrics["scenarios"][0]["rois"]["Target"]["d95_gy"]
    assert fine["moved"][0]["fine"] == fine["rois"]["Target"]["d95_gy"]


def test_a_plan_on_too_coarse_a_grid_is_warned_of_in_summary_and_report(tmp_path):
    """One beam of nominal spots, 24 mm apart on 16 mm: cold between the points that the optimizer sees."""
    write_tiny(tmp_path)
    wide = (
        "dose.grid_mm=16",
        "spots.spacing_mm=24",
        "spots.layer_spacing=24",
        "robustness.range_percent=0.1",
        "optimizer.max_iterations=40",
    )
    done = command("plan", "tiny.toml", "--out", "run", *(part for key in wide for part in ("--set", key)), cwd=tmp_path)
    assert "Warning: the nominal dose is another on a grid of 8 mm: Target D95" in done.out
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Another dose on a finer grid" in page and "On a grid of 8 mm" in page


def test_the_grid_can_be_given_and_the_check_left_out(tmp_path):
    given = ti.plan(tiny(tmp_path, "dose.check_mm=[4, 8, 6]", *SHORT)).metrics["fine"]
    assert given["grid_mm"] == [4.0, 8.0, 6.0]
    assert "fine" not in ti.plan(tiny(tmp_path, "dose.check_mm=off", *SHORT)).metrics


def test_a_check_that_would_not_fit_is_told_and_the_plan_is_there(tmp_path):
    with pytest.warns(PhysicsWarning, match=r"the plan was not checked on a finer grid: a grid of 0\.01 .* voxels.*; set dose\.check_mm"):
        result = ti.plan(tiny(tmp_path, "dose.check_mm=0.01", *SHORT))
    assert "fine" not in result.metrics and result.metrics["iterations"] > 0


@pytest.mark.parametrize("value", ["0", "-1", "[1, 2]", "fine"])
def test_a_spacing_that_is_none_is_refused(tmp_path, value):
    write_tiny(tmp_path)
    done = command("plan", "tiny.toml", "--out", "run", "--set", f"dose.check_mm={value}", cwd=tmp_path)
    assert done.status == 2 and "check_mm" in done.err and not (tmp_path / "run").exists()


def test_cropping_leaves_every_voxel_where_it_was(tmp_path):
    write_images(tmp_path / "ct")
    patient = load_patient(tiny(tmp_path, *IMAGE))
    box = cropped(patient, patient.body)
    assert box.grid.shape == (10, 10, 10) and bool(box.body.all())
    assert torch.equal(box.grid.centers(box.roi("Target").voxels), patient.grid.centers(patient.roi("Target").voxels))
    assert resample(box, 5.0).centroid("Target") == pytest.approx(patient.centroid("Target"))
