"""Which numbers of a plan a finer grid moves, and what is said of it."""

from __future__ import annotations

import math

import pytest

from torchimpt.evaluate.fine import fine_text, fine_warning, moved


def goal(roi: str, metric: str, unit: str, nominal: float) -> dict:
    return {"roi": roi, "metric": metric, "unit": unit, "nominal": nominal}


def rows(target_d95: float = 69.0, cord: float = 20.0, lung: float = 30.0, index: float = 0.05, prescriptions=None) -> list[dict]:
    planned = [goal("Cord", "d(2)", "Gy", 20.0), goal("Lung", "v(20)", "%", 30.0), goal("PTV", "hi", "", 0.05)]
    fine = [goal("Cord", "d(2)", "Gy", cord), goal("Lung", "v(20)", "%", lung), goal("PTV", "hi", "", index)]
    prescribed = {"PTV": 70.0} if prescriptions is None else prescriptions
    return moved({"PTV": {"d95_gy": 69.0}}, {"PTV": {"d95_gy": target_d95}}, (planned, fine), prescribed, ["PTV", "Beside"])


def test_doses_are_measured_by_the_prescription_volumes_by_points_and_indices_by_hundredths():
    percents = [row["percent"] for row in rows(target_d95=68.3, cord=20.7, lung=29.2, index=0.055)]
    assert percents == pytest.approx([-1.0, 1.0, -0.8, 0.5])
    assert [row["percent"] for row in rows(target_d95=68.31, cord=20.2, prescriptions={})][:2] == pytest.approx([-1.0, 1.0])


def test_what_moves_by_more_than_a_per_cent_is_named_the_farthest_first():
    assert fine_warning([1.5] * 3, rows(target_d95=68.35, cord=20.65, lung=30.9, index=0.059)) is None
    told = fine_warning([1.5, 1.5, 2.0], rows(target_d95=64.0, lung=33.0))
    assert told is not None
    assert "on a grid of 1.5 x 1.5 x 2 mm: PTV D95 64.0 Gy, 69.0 Gy as planned; Lung V20 33.0 %, 30.0 % as planned. The dose grid" in told
    assert "and 1 more" in str(fine_warning([1.5] * 3, rows(64.0, 22.0, 33.0, 0.07)))


def test_a_metric_without_a_value_on_one_grid_is_told_and_on_both_left_out():
    assert "HI nan, 0.050 as planned" in str(fine_warning([1.0] * 3, rows(index=math.nan)))
    both = moved({}, {}, ([goal("Air", "hi", "", math.nan)], [goal("Air", "hi", "", math.nan)]), {}, [])
    assert both == [] and fine_warning([1.0] * 3, both) is None
    assert "nothing to compare" in fine_text({"grid_mm": [1.0] * 3, "moved": both})


def test_the_summary_says_how_far_the_farthest_number_moved():
    text = fine_text({"grid_mm": [1.5] * 3, "moved": rows(target_d95=68.86, cord=20.35)})
    assert text == "On a grid of 1.5 mm: PTV D95 68.9 Gy, 69.0 Gy as planned; of 4 numbers none moves by more than 0.5 %"


def test_a_goal_that_is_d95_of_a_target_is_one_row():
    found = moved(
        {"PTV": {"d95_gy": 69.0}}, {"PTV": {"d95_gy": 68.0}}, ([goal("PTV", "d(95)", "Gy", 69.0)], [goal("PTV", "d(95)", "Gy", 68.0)]), {}, ["PTV"]
    )  # fmt: skip
    assert len(found) == 1
