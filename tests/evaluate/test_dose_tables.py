"""Tables over scenarios and ROIs, `dvh.csv`, and scenarios by name."""

from __future__ import annotations

import pytest
import torch

from torchimpt.checks import InputError
from torchimpt.evaluate import common_axis, dvh, parse_scenarios, read_dvh_csv, roi_doses, scenario_table, worst_table, write_dvh_csv
from torchimpt.geometry import Grid
from torchimpt.patient import ROI, Patient
from torchimpt.scenarios import NOMINAL, boundary_scenarios, grid_21, grid_81, random_scenarios


@pytest.fixture
def patient():
    grid = Grid((2, 3, 4), (3.0, 3.0, 3.0), (0.0, 0.0, 0.0))
    flat = torch.arange(24)
    masks = {"External": flat >= 0, "PTV": flat < 6, "Cord": (flat >= 4) & (flat < 9), "Nothing": flat < 0}
    rois = {name: ROI(name, mask.reshape(grid.shape)) for name, mask in masks.items()}
    return Patient(torch.zeros(grid.shape), grid, rois)


def test_roi_doses_from_a_grid_and_from_some_voxels(patient):
    dose = torch.arange(24.0).reshape(2, 3, 4)
    whole = roi_doses(patient, {"nominal": dose})["nominal"]
    assert whole["Cord"].tolist() == [4, 5, 6, 7, 8] and "Nothing" not in whole
    voxels = torch.tensor([8, 7, 6, 20, 5, 4])
    some = roi_doses(patient, {"nominal": voxels.float()}, voxels)["nominal"]
    assert some.keys() == {"Cord"} and some["Cord"].tolist() == [4, 5, 6, 7, 8], "no ROI with made-up doses"
    with pytest.raises(InputError, match="'x' has 3 values, 24"):
        roi_doses(patient, {"x": torch.zeros(3)})


def test_scenarios_and_worst(patient):
    doses = roi_doses(patient, {"nominal": torch.arange(24.0), "range+3%": 2 * torch.arange(24.0)})
    table = scenario_table(doses)
    assert [row["name"] for row in table] == ["nominal", "range+3%"]
    cord = table[0]["rois"]["Cord"]
    assert cord["voxels"] == 5 and cord["mean_gy"] == 6 and cord["min_gy"] == 4 and cord["max_gy"] == 8
    assert set(cord) == {"voxels", "d95_gy", "d98_gy", "d2_gy", "mean_gy", "min_gy", "max_gy"}
    worst = worst_table(table)["Cord"]
    assert worst["max_gy"] == 16 and worst["d95_gy"] == pytest.approx(4.2) and set(worst) == {"d95_gy", "d98_gy", "d2_gy", "max_gy"}


def test_dvh_csv_reads_back(tmp_path, patient):
    doses = roi_doses(patient, {"nominal": torch.arange(24.0), "range+3%": 1.03 * torch.arange(24.0)})
    write_dvh_csv(tmp_path / "dvh.csv", doses)
    assert (tmp_path / "dvh.csv").read_text().splitlines()[0] == "scenario,roi,dose_gy,volume_percent"
    assert [p.name for p in tmp_path.iterdir()] == ["dvh.csv"]
    axis, volume = read_dvh_csv(tmp_path / "dvh.csv")["range+3%"]["Cord"]
    assert torch.allclose(axis, common_axis(doses)) and torch.allclose(volume, dvh(doses["range+3%"]["Cord"], axis), atol=1e-3)


def test_dvh_csv_on_a_full_disk_keeps_the_old_one(tmp_path, patient, full_disk):
    (tmp_path / "dvh.csv").write_text("old")
    doses = roi_doses(patient, {"nominal": torch.arange(24.0)})
    with full_disk(1000), pytest.raises(InputError, match=r"cannot write .*dvh\.csv: File too large"):
        write_dvh_csv(tmp_path / "dvh.csv", doses)
    assert [p.name for p in tmp_path.iterdir()] == ["dvh.csv"] and (tmp_path / "dvh.csv").read_text() == "old"


def test_dvh_csv_that_is_none(tmp_path):
    with pytest.raises(InputError, match="no DVH table"):
        read_dvh_csv(tmp_path / "dvh.csv")
    (tmp_path / "dvh.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="columns"):
        read_dvh_csv(tmp_path / "dvh.csv")


def test_scenarios_by_name():
    assert parse_scenarios("nominal") == (NOMINAL,)
    assert parse_scenarios("boundary(5, 3.5)") == boundary_scenarios(5.0, 3.5)
    found = parse_scenarios(["x+5mm,range-3.5%", "y-2mm/range+3%", "x+5mm"])
    assert [s.name for s in found] == ["nominal", "x+5mm", "range-3.5%", "y-2mm/range+3%"]
    assert found[1].shift == (5.0, 0.0, 0.0) and found[2].range_scale == pytest.approx(0.965)
    assert found[3].shift == (0.0, -2.0, 0.0) and found[3].range_scale == pytest.approx(1.03)
    own = boundary_scenarios(3.0, 3.0)
    again = parse_scenarios(",".join(s.name for s in own))
    assert [(s.name, s.shift) for s in again] == [(s.name, s.shift) for s in own]
    for text in ("x5mm", "w+3mm", "range+3", "boundary(3)", "boundary(3,3,9)", "grid(3,3)", "random(3,3,9,1,2)", "random(3,3,1.5)"):
        with pytest.raises(InputError, match="is none of: nominal"):
            parse_scenarios(text)


def test_sets_of_scenarios_by_name():
    """As in a case file; and each scenario of a set is the same again by its own name."""
    sets = {"grid21(5, 3.5)": grid_21(5.0, 3.5), "grid81(2.5,3%)": grid_81(2.5, 3.0), "random(5mm,3,8,7)": random_scenarios(5.0, 3.0, 8, 7)}
    for text, own in sets.items():
        assert parse_scenarios(text) == own
        again = parse_scenarios(",".join(scenario.name for scenario in own))
        assert [(s.name, s.shift) for s in again] == [(s.name, s.shift) for s in own]
        assert [s.range_scale for s in again] == pytest.approx([s.range_scale for s in own], rel=1e-12)
    assert parse_scenarios("random(5,3,8)") == random_scenarios(5.0, 3.0, 8, 1)
    assert len(parse_scenarios("boundary(5,3),grid21(5,3),x+1mm")) == 22
    with pytest.raises(InputError, match="range error of -100 %, which has to be above -100 %"):
        parse_scenarios("range-100%")
