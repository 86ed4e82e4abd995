"""The hottest 1 cm3 outside the targets: how hot, where, and when it is too hot."""

from __future__ import annotations

import pytest
import torch

from torchimpt.evaluate.hottest import hottest_outside_targets, hottest_text
from torchimpt.geometry import Grid
from torchimpt.patient import ROI, Patient

SHAPE = (10, 10, 10)


def box(*ranges):
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[tuple(slice(*r) for r in ranges)] = True
    return mask


PATIENT = Patient(
    torch.zeros(SHAPE),
    Grid(SHAPE, (5.0, 5.0, 5.0), (0.0, 0.0, 0.0)),  # 8 voxels are 1 cm^3
    {
        "Body": ROI("Body", box((0, 10), (0, 10), (0, 10)), "external"),
        "PTV": ROI("PTV", box((4, 7), (4, 7), (4, 7)), "target"),
        "Neck": ROI("Neck", box((0, 3), (0, 10), (0, 10))),
        "Larynx": ROI("Larynx", box((0, 2), (0, 2), (0, 2))),
    },
)


def doses(hot, place):
    nominal = torch.full(SHAPE, 10.0)
    nominal[4:7, 4:7, 4:7] = 200.0  # the target's own maximum is none of it
    scenario = nominal.clone()
    scenario[place] = hot
    return [("nominal", nominal), ("x+3mm", scenario)]


def test_an_organ_that_is_hot_in_one_scenario():
    hot = torch.arange(160.0, 168.0).reshape(2, 2, 2)
    found = hottest_outside_targets(PATIENT, doses(hot, (slice(0, 2),) * 3), ["PTV"], 70.0)
    assert found["nominal"]["d1cm3_gy"] == 10.0 and found["nominal"]["scenario"] == "nominal"
    worst = found["worst"]
    assert (worst["scenario"], worst["d1cm3_gy"], worst["max_gy"], worst["roi"]) == ("x+3mm", 160.0, 167.0, "Larynx")
    assert worst["position_mm"] == [5.0, 5.0, 5.0] and worst["percent"] == pytest.approx(100 * 160 / 70)
    assert "1 cm3 gets 160.0 Gy or more, 229 % of 70 Gy (x+3mm), at (5, 5, 5) mm LPS, in Larynx" in found["warning"]


def test_seven_voxels_are_less_than_1_cm3():
    hot = torch.full((2, 2, 2), 160.0)
    hot[0, 0, 0] = 20.0
    worst = hottest_outside_targets(PATIENT, doses(hot, (slice(0, 2),) * 3), ["PTV"], 70.0)["worst"]
    assert (worst["d1cm3_gy"], worst["max_gy"]) == (20.0, 160.0)


def test_tissue_without_a_roi():
    hot = torch.full((2, 2, 2), 74.0)
    hot[0, 0, 0] = 74.5
    found = hottest_outside_targets(PATIENT, doses(hot, (slice(8, 10),) * 3), ["PTV"], 70.0)
    assert found["worst"]["roi"] is None and found["warning"] is None, "106 %"
    assert hottest_text(found) == "74.0 Gy (106 % of the prescription) in the scenario x+3mm, at (40, 40, 40) mm LPS, in no ROI"


def test_without_a_prescription_and_without_anything_outside():
    found = hottest_outside_targets(PATIENT, doses(160.0, (slice(8, 10),) * 3), ["PTV"], None)
    assert found["warning"] is None and "percent" not in found["worst"] and hottest_text(found).startswith("160.0 Gy in the scenario")
    assert hottest_outside_targets(PATIENT, doses(160.0, 0), ["Body"], 70.0) == {}
