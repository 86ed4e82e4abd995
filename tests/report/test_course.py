"""Steps and delivery in words and rows."""

from __future__ import annotations

import pytest

from torchimpt.report.course import beam_seconds, delivery_parts, delivery_remark, delivery_text, motion_text, step_rows

DELIVERY = {"seconds": 100.0, "energy_switch_s": 70.0, "spot_s": 3.0, "scan_s": 1.0, "beam_on_s": 26.0}


def step(name, spots, objective, iterations=20):
    return {"step": name, "spots": spots, "objective": objective, "iterations": iterations, "evaluations": iterations + 1, "seconds": 2.0}


def test_rows_of_steps():
    rows = step_rows([step("weights, before moving", 1949, 1475.0), step("1144 spots", 1144, 1180.0), step("joint", 1000, 590.0, 1200)])
    assert [row["step"] for row in rows] == ["Weights, before moving", "Pruned to 1,144 spots", "Weights and positions"]
    assert [row["change"] for row in rows] == ["", "−20.0 %", "−50.0 %"]
    assert rows[2] == {
        "step": "Weights and positions", "spots": "1,000", "objective": "590", "change": "−50.0 %", "iterations": "1,200",
        "evaluations": "1,201", "seconds": "2.0 s",
    }  # fmt: skip
    assert step_rows([]) == []


def test_an_objective_of_zero_has_no_change_after_it():
    assert [row["change"] for row in step_rows([step("joint", 3, 0.0), step("minimum MU", 3, 1.0)])] == ["", ""]


def test_turns_are_one_row():
    turns = [step(name, 50, 100.0 - k, 10 if name == "weights" else 1) for k in range(4) for name in ("weights", "positions")]
    rows = step_rows([*turns, step("minimum MU", 40, 98.94)])
    assert [row["step"] for row in rows] == ["Weights and positions by turns, 8 of them", "Minimum MU"]
    assert rows[0]["objective"] == "97" and rows[0]["iterations"] == "44" and rows[0]["seconds"] == "16 s" and rows[1]["change"] == "+2.0 %"
    assert len(step_rows(turns[:2])) == 2


def test_parts_of_the_delivery_make_the_whole():
    assert sum(value for _, value in delivery_parts(DELIVERY)) == DELIVERY["seconds"]
    assert delivery_text(DELIVERY) == "100 s a fraction: energy switching 70 s, beam on 26 s, spots and scanning 4.0 s"
    refilled = {**DELIVERY, "refill_s": 6.0, "seconds": 106.0}
    assert sum(value for _, value in delivery_parts(refilled)) == 106.0 and "filling again 6.0 s" in delivery_text(refilled)
    shifted = {**DELIVERY, "shifter_s": 10.0, "seconds": 110.0}
    assert sum(value for _, value in delivery_parts(shifted)) == 110.0 and "range shifters 10 s" in delivery_text(shifted)
    assert delivery_text({"seconds": 3.14}) == "3.1 s a fraction" and beam_seconds(1234.5) == "1,234 s"


@pytest.mark.parametrize(("switching", "said"), [(70.0, True), (51.0, True), (50.0, False), (10.0, False)])
def test_remark_where_energy_switching_dominates(switching, said):
    remark = delivery_remark({**DELIVERY, "energy_switch_s": switching})
    assert bool(remark) == said and (not said or (f"{switching:.0f} % of the delivery time" in remark and "4.0 s" in remark))
    assert delivery_remark({**DELIVERY, "seconds": 0.0}) == ""


def test_motion_in_words():
    assert motion_text({"moved_mm": {"mean": 1.234, "max": 9.0}}) == "1.23 mm on average, 9.00 mm at most"
    assert motion_text({"moved_mm": {"mean": 0.0, "max": 0.0}}) == motion_text({}) == ""
