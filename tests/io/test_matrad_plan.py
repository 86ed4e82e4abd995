"""matRad's plans: a small `stf` whose rays were worked out by hand, the isocentre's two frames, objectives of both versions, refusals."""

from __future__ import annotations

import logging
import math

import matrad_files
import numpy as np
import pytest
import torch
from matrad_files import FIRST, STEP, TARGET, WEIGHTS, aim, beam, cell, content, ray, save, structs, two_beams

from torchimpt.checks import InputError
from torchimpt.geometry import Beam, RangeShifter, from_bev
from torchimpt.io import read_matrad, read_matrad_objectives, read_plan
from torchimpt.io.matrad import read_matrad_plan


def test_a_plan_by_hand(tmp_path) -> None:
    spots = read_plan(save(tmp_path / "plan.mat"), dtype=torch.float64)
    first, second = spots.beams
    at = tuple(TARGET.tolist())
    assert first == Beam(0.0, 0.0, at, None, "HFS")
    # the plate ends at SAD - sourceRashiDistance from the isocentre
    assert second == Beam(90.0, 90.0, at, RangeShifter(30.0, 300.0), "HFS")
    # by beam, then by falling energy, those behind the range shifter last; weights are those of five fractions
    assert spots.beam.tolist() == [0, 0, 0, 1, 1, 1]
    assert spots.energy.tolist() == [120.0, 100.0, 100.0, 110.0, 110.0, 90.0]
    assert spots.position.tolist() == [[-7, -11], [-7, -11], [7, 11], [-8, 7], [8, -7], [-8, 7]]
    assert spots.weight.tolist() == [5.0 * WEIGHTS[i] for i in (0, 1, 2, 3, 5, 4)]
    assert spots.shifted.tolist() == [False] * 5 + [True]
    # where a spot is in the patient, by our own frame: the ray of the second beam goes through the isocentre + rayPos
    there = from_bev(torch.tensor([[-8.0, 7.0, 0.0]], dtype=torch.float64), second)
    assert torch.allclose(there, torch.from_numpy(TARGET + np.array([7.0, -8.0, 0.0]))[None], atol=1e-9)


def test_without_its_own_beams(tmp_path) -> None:
    """Beams of the case count, in the file's order; a number of beams that is not the file's is refused."""
    path = save(tmp_path / "plan.mat")
    spots = read_plan(path, (Beam(10.0), Beam(20.0)))
    assert [(b.gantry, b.isocenter) for b in spots.beams] == [(10.0, tuple(TARGET)), (20.0, tuple(TARGET))]
    with pytest.raises(InputError, match="has 2 beams, the case 1"):
        read_plan(path, (Beam(10.0),))


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("off", [(0.0, 0.0, 0.0), (6.0, -5.0, 4.0)])
def test_both_frames_of_the_isocentre(tmp_path, version: int, off: tuple[float, float, float]) -> None:
    """Version 2 counts from one voxel before the first. The isocentre need not be in the target's middle: the rays then are not, either."""
    isocenter = TARGET + np.array(off)
    told = isocenter if version == 3 else isocenter - FIRST + STEP
    x, y, z = off
    # the target's middle is at -off from the isocentre
    rays = [ray(-7.0 - x, -11.0 - z, [-7.0 - x, 0.0, -11.0 - z], [100.0]), ray(7.0 - x, 11.0 - z, [7.0 - x, 0.0, 11.0 - z], [100.0])]
    other = [ray(-8.0 - y, -11.0 - z, [0.0, -8.0 - y, -11.0 - z], [100.0]), ray(8.0 - y, 11.0 - z, [0.0, 8.0 - y, 11.0 - z], [100.0])]
    stf = [beam(0.0, 0.0, told, rays), beam(90.0, 0.0, told, other)]
    path = save(tmp_path / "plan.mat", content(stf, resultGUI={"w": np.ones((4, 1))}))
    for one in read_plan(path).beams:
        assert one.isocenter == pytest.approx(tuple(isocenter), abs=1e-9)


def test_without_axes_the_frame_is_what_matrad_makes_of_it(tmp_path) -> None:
    """Then matRad has the first voxel's centre at minus half the size; the patient here has the middle at 0: half a voxel apart."""
    variables = content()
    for name in "xyz":
        del variables["ct"][name]
    size = STEP * np.array([matrad_files.CELLS[i] for i in (1, 0, 2)])
    told = TARGET - FIRST - 0.5 * size
    path = save(tmp_path / "plan.mat", variables | {"stf": structs(two_beams(told))})
    patient = read_matrad(path)
    assert read_plan(path).beams[0].isocenter == pytest.approx(patient.centroid("CTV"), abs=1e-9)


def test_frames_that_cannot_be_told_apart_are_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="which frame they are in is not clear"):
        read_plan(save(tmp_path / "plan.mat", content(two_beams(TARGET + 300.0))))
    rows = content()
    rows["cst"][1, 2] = "OAR"
    with pytest.raises(InputError, match="no ROI is of type TARGET"):
        read_plan(save(tmp_path / "none.mat", rows))


def test_a_mirrored_frame_is_refused(tmp_path) -> None:
    stf = two_beams()
    stf[1]["ray"][0, 0]["rayPos"][0, 0] += 0.02
    with pytest.raises(InputError, match=r"stf\(2\)\.ray\(1\)\.rayPos is \[7\.02, .*by IEC 61217"):
        read_plan(save(tmp_path / "plan.mat", content(stf)))
    stf[1]["ray"][0, 0]["rayPos"][0, 0] -= 0.011  # within 0.01 mm
    read_plan(save(tmp_path / "plan.mat", content(stf)))


def test_range_shifters_at_several_distances(tmp_path, caplog: pytest.LogCaptureFixture) -> None:
    rays = [
        ray(-7.0, -11.0, [-7.0, 0.0, -11.0], [100.0, 90.0], [(30.0, 9800.0), (30.0, 9700.0)]),
        ray(7.0, 11.0, [7.0, 0.0, 11.0], [100.0], [(0.0, 0.0)]),
    ]
    path = save(tmp_path / "plan.mat", content([beam(0.0, 0.0, TARGET, rays)], resultGUI={"w": np.array([[1.0], [3.0], [1.0]])}))
    with caplog.at_level(logging.WARNING):
        (only,) = read_plan(path).beams
    assert only.shifter == RangeShifter(30.0, 275.0)  # (200 + 3 * 300) / 4
    assert "200 to 300 mm from the isocentre; the mean, 275 mm" in caplog.text
    rays[0]["rangeShifter"][0, 1]["eqThickness"] = 40.0
    with pytest.raises(InputError, match=r"stf\(1\) has range shifters of 30, 40 mm"):
        read_plan(save(path, content([beam(0.0, 0.0, TARGET, rays)], resultGUI={"w": np.ones((3, 1))})))


def test_another_focus_is_told(tmp_path, caplog: pytest.LogCaptureFixture) -> None:
    stf = two_beams()
    stf[0]["ray"][0, 0]["focusIx"][:] = 2.0
    with caplog.at_level(logging.WARNING):
        read_plan(save(tmp_path / "plan.mat", content(stf)))
    assert "2 spots of beam 0 are not of the machine's first focus" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resultGUI": None}, "no variable resultGUI, so it is no matRad plan"),
        ({"resultGUI": {"physicalDose": np.zeros((2, 2, 2))}}, "resultGUI has no field 'w'"),
        ({"resultGUI": {"w": np.ones((5, 1))}}, r"resultGUI\.w must be 6 finite numbers, got an array of shape \(5,\)"),
        ({"resultGUI": {"w": np.full((6, 1), np.nan)}}, "must be 6 finite numbers"),
        ({"resultGUI": {"w": -np.ones((6, 1))}}, "weights must not be negative"),
        ({"pln": {"radiationMode": "photons", "numOfFractions": 30.0}}, "is a plan of photons"),
        ({"pln": {"radiationMode": "protons", "numOfFractions": 2.5}}, "numOfFractions must be a whole number"),
        ({"stf": structs([{**two_beams()[0], "ray": np.empty((0, 0))}])}, r"stf\(1\) has no field 'ray'"),
        ({"stf": structs([{**two_beams()[0], "gantryAngle": "left"}])}, r"stf\(1\)\.gantryAngle must be one finite number, got 'left'"),
        (
            {"stf": structs([{**two_beams()[0], "SAD": 0.0}]), "resultGUI": {"w": np.ones((3, 1))}},
            r"stf\(1\)\.SAD must be 500 mm or more, got 0",
        ),
        ({"stf": np.zeros((2, 2))}, "stf.1. has no field 'gantryAngle'"),
        ({"ct": None}, "no variable ct"),
    ],
)
def test_what_is_no_plan(tmp_path, changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_plan(save(tmp_path / "plan.mat", content(**changes)))


def test_rays_must_be_whole(tmp_path) -> None:
    bad = ray(1.0, 2.0, [1.0, 0.0, 2.0], [100.0, 90.0])
    bad["rangeShifter"] = structs([{"eqThickness": 0.0, "sourceRashiDistance": 0.0}] * 3)
    with pytest.raises(InputError, match=r"ray\(1\) has 2 energies and 3 range shifters"):
        read_plan(save(tmp_path / "plan.mat", content([beam(0.0, 0.0, TARGET, [bad])])))
    bad = ray(1.0, 2.0, [1.0, 0.0, 2.0], [100.0])
    bad["rayPos_bev"][0, 1] = 3.0
    with pytest.raises(InputError, match="must lie in the isocentre's plane"):
        read_plan(save(tmp_path / "plan.mat", content([beam(0.0, 0.0, TARGET, [bad])])))


def asked(tmp_path, *aims) -> tuple[list[dict], list[str]]:
    return read_matrad_objectives(save(tmp_path / "aims.mat", content(aims=aims)))


def test_objectives_of_version_3(tmp_path) -> None:
    rows, remarks = asked(
        tmp_path,
        aim("SquaredUnderdosing", 60.0, penalty=100.0),
        aim("SquaredOverdosing", 63.0, penalty=50.0, robustness="VWWC"),
        aim("MinDVH", 57.0, 95.0),
        aim("MaxDVH", 66.0, 2.0),
        aim("MeanDose", 0.0, 2.0),
        aim("EUD", 20.0, 8.0),
    )
    base = {"roi": "CTV", "mode": "nominal"}
    assert rows == [
        {**base, "kind": "min_dose", "dose_gy": 60.0, "weight": 100.0},
        {**base, "kind": "max_dose", "dose_gy": 63.0, "weight": 50.0, "mode": "voxelwise"},
        {**base, "kind": "min_dvh", "dose_gy": 57.0, "volume_percent": 95.0, "weight": 1.0},
        {**base, "kind": "max_dvh", "dose_gy": 66.0, "volume_percent": 2.0, "weight": 1.0},
        {**base, "kind": "mean_dose", "dose_gy": 0.0, "weight": 1.0},
        {**base, "kind": "gEUD", "dose_gy": 20.0, "a": 8.0, "weight": 1.0},
    ]
    assert remarks == ["CTV: a gEUD below 20 Gy is free here, in matRad it is pulled up"]


def test_constraints(tmp_path) -> None:
    def limit(name: str, *parameters: float) -> dict:
        return {"className": f"DoseConstraints.matRad_{name}", "parameters": cell(*parameters), "robustness": "none"}

    rows, remarks = asked(
        tmp_path, limit("MinMaxDose", 57.0, 64.0, 1.0), limit("MinMaxDose", 0.0, math.inf, 1.0), limit("MinMaxMeanDose", 10.0, 62.0),
        limit("MinMaxDVH", 60.0, 95.0, 100.0), limit("MinMaxEUD", 5.0, 0.0, 61.0),
    )  # fmt: skip
    base = {"roi": "CTV", "mode": "nominal", "constraint": True}
    assert rows == [
        {**base, "kind": "min_dose", "dose_gy": 57.0},
        {**base, "kind": "max_dose", "dose_gy": 64.0},
        {**base, "kind": "mean_dose", "dose_gy": 62.0},
        {**base, "kind": "min_dvh", "dose_gy": 60.0, "volume_percent": 95.0},
        {**base, "kind": "gEUD", "dose_gy": 61.0, "a": 5.0},
    ]
    assert len(remarks) == 1 and "least mean dose" in remarks[0]


def test_objectives_before_version_2_10(tmp_path) -> None:
    old = structs([
        {"type": "square deviation", "penalty": 800.0, "dose": 60.0, "EUD": math.nan, "volume": math.nan, "robustness": "none"},
        {"type": "max DVH objective", "penalty": 400.0, "dose": 30.0, "EUD": math.nan, "volume": 20.0, "robustness": "none"},
        {"type": "max EUD constraint", "penalty": math.nan, "dose": 25.0, "EUD": 3.0, "volume": math.nan, "robustness": "none"},
    ])  # fmt: skip
    rows, remarks = read_matrad_objectives(save(tmp_path / "old.mat", content(aims=old)))
    assert [(row["kind"], row["dose_gy"]) for row in rows] == [("uniform", 60.0), ("max_dvh", 30.0), ("gEUD", 25.0)]
    assert rows[1]["volume_percent"] == 20.0 and rows[2]["a"] == 3.0 and rows[2]["constraint"] and not remarks


def test_objectives_without_a_counterpart_are_told(tmp_path) -> None:
    rows, remarks = asked(
        tmp_path, aim("EUD", 20.0, -10.0), aim("Fancy", 1.0), aim("MeanDose", 5.0, 1.0), aim("SquaredDeviation", math.nan)
    )
    assert [row["kind"] for row in rows] == ["mean_dose"]
    text = "\n".join(remarks)
    for told in ("exponent -10", "matRad's Fancy has no counterpart", "linear in matRad", "below 5 Gy is free here", "lacks a parameter"):
        assert told in text


def test_tg119s_own_objectives(shared) -> None:
    rows, remarks = read_matrad_objectives(shared / "data" / "matrad" / "TG119.mat")
    assert {(row["roi"], row["kind"], row["dose_gy"], row["weight"]) for row in rows} == {
        ("Core", "max_dose", 25.0, 300.0), ("OuterTarget", "uniform", 50.0, 1000.0), ("BODY", "max_dose", 30.0, 100.0),
    }  # fmt: skip
    assert not remarks


def test_fractions_and_machine(tmp_path) -> None:
    plan = read_matrad_plan(save(tmp_path / "plan.mat"))
    assert plan.fractions == 5 and [field.name for field in plan.fields] == ["Generic", "Generic"]
