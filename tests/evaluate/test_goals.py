"""Goals: what passes, which scenario is the worst."""

from __future__ import annotations

import pytest
import torch

from torchimpt.checks import InputError
from torchimpt.evaluate import Goal, Metric, check_goals

DOSES = {
    "nominal": {"PTV": torch.full((10,), 70.0), "Cord": torch.full((5,), 40.0)},
    "range+3%": {"PTV": torch.full((10,), 66.0), "Cord": torch.full((5,), 46.0)},
    "x-3mm": {"PTV": torch.full((10,), 68.0), "Cord": torch.full((5,), 30.0)},
}


def goal(roi, metric, **limits):
    return Goal(roi, Metric.parse(metric), **limits)


def test_nominal_and_worst_in_the_goals_own_direction():
    low, high = check_goals([goal("PTV", "d(95)", min=67.0), goal("Cord", "max", max=45.0)], DOSES)
    assert (low["nominal"], low["worst"], low["worst_scenario"]) == (70.0, 66.0, "range+3%")
    assert low["passed_nominal"] and not low["passed"] and low["limit"] == "≥ 67 Gy"
    assert (high["nominal"], high["worst"], high["passed"]) == (40.0, 46.0, False) and high["limit"] == "≤ 45 Gy"


def test_the_limit_itself_passes():
    (row,) = check_goals([goal("PTV", "mean", min=66.0)], DOSES)
    assert row["passed"] is True


def test_two_limits_take_the_scenario_nearest_to_either():
    (row,) = check_goals([goal("PTV", "mean", min=60.0, max=70.5)], DOSES)
    assert row["worst_scenario"] == "nominal" and row["passed"] and row["limit"] == "60 to 70.5 Gy"


def test_ci_takes_prescription_and_body():
    body = {name: rois["PTV"] for name, rois in DOSES.items()}
    (row,) = check_goals([goal("PTV", "ci", min=0.9)], DOSES, prescriptions={"PTV": 70.0}, body=body)
    assert row["nominal"] == 1.0 and row["worst"] == 0.0 and row["unit"] == ""


def test_a_metric_without_value_fails():
    (row,) = check_goals([goal("PTV", "hi", max=0.1)], {"nominal": {"PTV": torch.zeros(3)}})
    assert not row["passed"]


def test_goals_that_cannot_be():
    with pytest.raises(InputError, match="needs min or max"):
        goal("PTV", "mean")
    with pytest.raises(InputError, match="nothing can pass"):
        goal("PTV", "mean", min=3.0, max=2.0)
    with pytest.raises(InputError, match="did you mean 'Cord'"):
        check_goals([goal("Chord", "mean", max=1.0)], DOSES)
    with pytest.raises(InputError, match="at least one scenario"):
        check_goals([goal("PTV", "mean", max=1.0)], {})
