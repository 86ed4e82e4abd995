"""Doses of a finished plan: one rule for all voxels of a ROI, in every scenario."""

from __future__ import annotations

import pytest
import torch
from tiny_case import tiny, write_images

import torchimpt as ti
from torchimpt.checks import InputError, PhysicsWarning
from torchimpt.machine import generic
from torchimpt.physics.stopping import relative_stopping_power
from torchimpt.planning.assess import assess
from torchimpt.planning.load import load_patient, set_up
from torchimpt.scenarios import NOMINAL, Scenario
from torchimpt.watch import Progress

IMAGE = ("patient={source='image', path='ct'}", "dose.grid_mm=10", "goal=[{roi='Target', metric='d(95)', min=40}]")


@pytest.mark.parametrize("body", ["objective[2].roi=Target", "objective[2].roi=External"], ids=["rois", "whole body"])
def test_a_target_that_reaches_out_of_the_body_has_its_dose_there_in_every_scenario(tmp_path, body):
    """The layer in air had 0 Gy in the nominal scenario only: D95 0 there, and 47 Gy in one shifted by 0.01 mm."""
    target = torch.zeros((12, 12, 12), dtype=torch.bool)
    target[4:8, 0:8, 4:8] = True  # (z, y, x): one layer of eight before the body, which begins at y = 1
    write_images(tmp_path / "ct", target=target)
    case = tiny(tmp_path, *IMAGE, body, "optimizer.max_iterations=30")
    with pytest.warns(PhysicsWarning, match="ROI Target: 16 of its 128 voxels lie outside the body 'External'"):
        result = ti.plan(case)
    near = (NOMINAL, Scenario("x+0.01mm", shift=(0.01, 0.0, 0.0)))
    found = assess(case, result.patient, result.machine, result.spots, near, set_up(case), Progress(enabled=False))
    nominal, shifted = (rois["Target"] for rois in found.roi_doses.values())
    assert float(nominal.min()) > 5.0, "in air, too"
    # dose changes by less than 10 Gy/mm in these penumbras
    assert float((nominal - shifted).abs().max()) < 0.1
    assert found.goals[0]["worst"] == pytest.approx(found.goals[0]["nominal"], abs=0.1)
    assert float(found.dose.flatten()[result.patient.roi("Target").voxels].min()) > 5.0, "in dose.mha, too"


@pytest.mark.parametrize("looks", ["off", "4"])
@pytest.mark.parametrize("told", [False, True])
def test_the_body_has_numbers_of_all_its_voxels_or_none(tmp_path, looks, told):
    """Every point of the target is in the body, too."""
    case = tiny(
        tmp_path, f"dose.target_grid_mm={looks}", "objective.2.roi=Target", f"goal.1.roi={'External' if told else 'Target'}",
        "optimizer.max_iterations=1",
    )  # fmt: skip
    result = ti.plan(case)
    rois = result.metrics["scenarios"][1]["rois"]
    assert set(rois) == ({"Target", "External"} if told else {"Target"})
    if told:
        assert rois["External"]["voxels"] == int(result.patient.body.sum())


def test_a_hot_spot_where_nothing_is_asked_is_told(tmp_path):
    """Half of the target is asked for; the organ before it gets more than any target, and that is what the plan says."""
    organ = torch.zeros((12, 12, 12), dtype=torch.bool)
    organ[4:8, 1:4, 4:8] = True
    write_images(tmp_path / "ct", organ=organ)
    asked = ("objective=[{roi='Target', kind='min_dose', dose_gy=50, weight=100}]", "beam=[{gantry_deg=0}]", "optimizer.max_iterations=30")
    found = ti.plan(tiny(tmp_path, *IMAGE, *asked))
    told = found.metrics["hottest_outside_targets"]
    outside = ~found.patient.roi("Target").mask
    for name in ("nominal", "worst"):
        assert told[name]["d1cm3_gy"] > 50.0 and told[name]["percent"] == pytest.approx(2.0 * told[name]["d1cm3_gy"])
    hottest = float(found.assessment.dose[outside].max())
    assert told["nominal"]["max_gy"] == hottest, "a voxel is 1 cm3"
    assert told["worst"]["d1cm3_gy"] >= hottest


def test_a_material_of_the_case_counts(tmp_path):
    """In the case's order: the target within the body, not the body over the target."""
    case = tiny(tmp_path, "material=[{roi='External', rsp=1.6}, {roi='Target', rsp=0.5}]")
    patient = load_patient(case)
    rsp = relative_stopping_power(patient, generic())
    target, body = patient.roi("Target").mask, patient.body
    assert (rsp[target] == 0.5).all() and (rsp[body & ~target] == 1.6).all() and (rsp[~body] == 0).all()
    with pytest.raises(InputError, match=r"material\[0\]\.roi: the patient has no ROI 'Plate'"):
        load_patient(tiny(tmp_path, "material=[{roi='Plate', rsp=1.6}]"))
