"""`torchimpt export --format matrad`, and the way back: `torchimpt dose` and `inspect` with a matRad file. All in float64."""

from __future__ import annotations

import json

import matrad_files
import numpy as np
import pytest
import torch
from scipy.io import loadmat, savemat
from tiny_case import command

from torchimpt.case import load_case
from torchimpt.geometry import bev_rotation
from torchimpt.io import read_dose, read_matrad, read_matrad_objectives, read_plan
from torchimpt.phantoms import phantom
from torchimpt.resampling import values_on

CASE = """
title = "Two beams"

[patient]
source = "phantom"
name = "water"

[dose]
grid_mm = 5.0
target_grid_mm = "off"
dtype = "float64"

[delivery]
fractions = 30

[spots]
target = "Target"

[[beam]]
gantry_deg = 20
isocenter_mm = [3.0, -4.0, 5.0]

[[beam]]
gantry_deg = 285
couch_deg = 15
range_shifter_mm = 30.0
range_shifter_distance_mm = 150.0

[[objective]]
roi = "Target"
kind = "min_dose"
dose_gy = 50.0
weight = 100.0

[[objective]]
roi = "Target"
kind = "max_dvh"
dose_gy = 53.0
volume_percent = 5.0
constraint = true

[[objective]]
roi = "External"
kind = "gEUD"
dose_gy = 10.0
a = 4.0
weight = 3.0
mode = "nominal"

[[objective]]
roi = "External"
kind = "max_dose"
quantity = "letd"
letd_kev_um = 8.0
"""

SPOTS = """beam,energy_mev,x_mm,y_mm,weight,range_shifter_mm
0,120.0,1.25,-3.5,700.3,0
0,120.0,-6.1,2.7,961.7,0
0,101.5,-6.1,2.7,0.0,0
0,101.5,1.25,-3.5,490.1,0
0,101.5,-9.3,0.1,90.9,0
1,131.0,4.4,6.6,1234.5,30
1,118.0,4.4,6.6,987.6,0
1,131.0,-5.0,-7.7,0.1,30
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds `run`, the dose of spots at odd places, some behind a range shifter, and `m`, the run for matRad."""
    path = tmp_path_factory.mktemp("matrad")
    (path / "case.toml").write_text(CASE)
    (path / "spots.csv").write_text(SPOTS)
    done = command("dose", "case.toml", "--plan", "spots.csv", "--out", "run", cwd=path)
    assert done.status == 0, done.err
    done = command("export", "run", "--to", "m", "--format", "matrad", cwd=path)
    assert done.status == 0, done.err
    assert "8 spots on 5 rays" in done.out and "left out: max_dose of External" in done.out and "protons_generic.mat" in done.out
    return path


@pytest.fixture(scope="module")
def variables(folder):
    return loadmat(folder / "m" / "plan.mat", squeeze_me=True, struct_as_record=False)


def test_spots_come_back_bit_for_bit(folder) -> None:
    ours, back = read_plan(folder / "run" / "plan.json"), read_plan(folder / "m" / "plan.mat", dtype=torch.float64)
    assert ours.weight.dtype == torch.float64 and ours.beams == back.beams
    for name in ("position", "weight", "layer", "layer_beam", "layer_energy", "layer_shifted"):
        assert torch.equal(getattr(ours, name), getattr(back, name)), name
    # the test would see weights that came back through a fraction's
    assert any(weight / 30 * 30 != weight for weight in ours.weight.tolist())


def test_patient_comes_back(folder) -> None:
    water, back = phantom("water"), read_matrad(folder / "m" / "plan.mat")
    water = water.original or water  # as it was read: rays are traced through that
    assert back.grid == water.grid and torch.equal(back.hu, water.hu)
    assert {name: roi.role for name, roi in back.rois.items()} == {name: roi.role for name, roi in water.rois.items()}
    assert all(torch.equal(roi.mask, water.roi(name).mask) for name, roi in back.rois.items())


def test_what_matrad_reads(variables) -> None:
    """Fields by the names and in the units of matRad's sources."""
    pln, result = variables["pln"], variables["resultGUI"]
    assert (pln.radiationMode, pln.machine, pln.numOfFractions) == ("protons", "generic", 30)
    assert pln.propStf.isoCenter.tolist()[0] == [3.0, -4.0, 5.0] and pln.propOpt.quantityOpt == "RBExDose"
    for beam, place in zip(variables["stf"], pln.propStf.isoCenter, strict=True):
        assert beam.isoCenter.tolist() == place.tolist()
        assert beam.numOfRays == len(beam.ray) and beam.totalNumOfBixels == np.sum(beam.numOfBixelsPerRay)
        for ray in beam.ray:
            # the source, the point in the isocentre plane and the target point are on one line, in the beam's frame and the patient's
            for source, point, beyond in (
                (beam.sourcePoint_bev, ray.rayPos_bev, ray.targetPoint_bev),
                (beam.sourcePoint, ray.rayPos, ray.targetPoint),
            ):
                assert np.allclose(point - source, 0.5 * (beyond - source), atol=1e-9)
    assert sum(beam.totalNumOfBixels for beam in variables["stf"]) == len(result.w)
    # in the order beam, ray, energy: one ray's energies ascend, behind the range shifter last
    second = variables["stf"][1]
    assert [np.atleast_1d(ray.energy).tolist() for ray in second.ray] == [[131.0], [118.0, 131.0]]
    thickness = [[plate.eqThickness for plate in np.atleast_1d(ray.rangeShifter)] for ray in second.ray]
    assert thickness == [[30.0], [0.0, 30.0]] and second.ray[0].rangeShifter.sourceRashiDistance == second.SAD - 150.0
    assert result.w[-3:] * 30 == pytest.approx([0.1, 987.6, 1234.5])


def test_rays_lie_where_matrads_rotation_has_them(variables, folder) -> None:
    """`R = R_couch R_gantry`, active, gantry about z and couch about y of LPS: written here from matRad's documentation."""
    for stf, beam in zip(variables["stf"], read_plan(folder / "run" / "plan.json").beams, strict=True):
        g, c = np.radians(stf.gantryAngle), np.radians(stf.couchAngle)
        gantry = np.array([[np.cos(g), -np.sin(g), 0], [np.sin(g), np.cos(g), 0], [0, 0, 1]])
        couch = np.array([[np.cos(c), 0, np.sin(c)], [0, 1, 0], [-np.sin(c), 0, np.cos(c)]])
        for ray in stf.ray:
            assert np.allclose(couch @ gantry @ ray.rayPos_bev, ray.rayPos, atol=1e-9)
        assert np.allclose(couch @ gantry @ [1, 0, 0], bev_rotation(beam)[0].numpy())


def test_objectives(folder, variables) -> None:
    rows, remarks = read_matrad_objectives(folder / "m" / "plan.mat")
    told = {(row["roi"], row["kind"]): row for row in rows}
    assert told["Target", "min_dose"] == {"roi": "Target", "kind": "min_dose", "dose_gy": 50.0, "weight": 100.0, "mode": "nominal"}
    assert told["Target", "max_dvh"]["constraint"] and told["Target", "max_dvh"]["volume_percent"] == 5.0
    assert (told["External", "gEUD"]["a"], told["External", "gEUD"]["weight"]) == (4.0, 3.0)
    assert len(rows) == 3 and remarks == ["External: a gEUD below 10 Gy is free here, in matRad it is pulled up"]
    first = {row[1]: np.atleast_1d(row[5])[0] for row in variables["cst"]}["Target"]
    assert first.className == "DoseObjectives.matRad_SquaredUnderdosing" and first.parameters == 50 and first.robustness == "none"


def test_dose_of_the_file_is_the_runs(folder, variables) -> None:
    """Patient, plan and fractions from the file: the same dose to float32's rounding, in which doses are written; and that in the file."""
    case = '[patient]\nsource = "matrad"\npath = "m/plan.mat"\n[dose]\ngrid_mm = 5.0\ntarget_grid_mm = "off"\ndtype = "float64"\n'
    (folder / "back.toml").write_text(case)
    done = command("dose", "back.toml", "--plan", "m/plan.mat", "--out", "back", cwd=folder)
    assert done.status == 0, done.err
    (ours, grid), (back, same) = (read_dose(folder / name / "dose.mha") for name in ("run", "back"))
    assert grid == same and float(ours.max()) > 1.0
    assert float((ours - back).abs().max()) < 1e-6 * float(ours.max())
    assert load_case(folder / "back").delivery.fractions == 30
    assert json.loads((folder / "back" / "plan.json").read_text())["fractions"] == 30
    # a fraction's physical dose on the CT's voxels, in the order (y, x, z)
    patient = read_matrad(folder / "m" / "plan.mat")
    expected = values_on(ours.double(), grid, patient.grid).numpy().transpose(1, 2, 0) / 30
    assert np.abs(variables["resultGUI"].RBExDose - expected).max() < 1e-12
    assert np.abs(variables["resultGUI"].physicalDose * 1.1 - expected).max() < 1e-12


def test_inspect_proposes_the_files_plan(folder) -> None:
    done = command("inspect", "m/plan.mat", "--case", "found.toml", cwd=folder)
    assert done.status == 0, done.err
    assert "30 mm of water at 150 mm, 2 spots" in done.out
    case = load_case(folder / "found.toml")
    first = case.beam[0]
    assert (first.gantry_deg, first.couch_deg, first.isocenter_mm) == (20.0, 0.0, (3.0, -4.0, 5.0))
    assert (case.beam[1].range_shifter_mm, case.beam[1].range_shifter_distance_mm) == (30.0, 150.0)
    assert [(row.roi, row.kind, row.dose_gy) for row in case.objective] == [
        ("External", "gEUD", 10.0), ("Target", "min_dose", 50.0), ("Target", "max_dvh", 53.0),
    ]  # fmt: skip
    assert case.robustness is None and case.delivery.fractions == 30 and case.goal[0].min == 47.5


def test_weights_that_matrad_changed_count(folder, tmp_path, variables) -> None:
    """After another optimization in matRad, `resultGUI.w` is no longer what our own variable says."""
    raw = loadmat(folder / "m" / "plan.mat")
    raw["resultGUI"][0, 0]["w"][:] *= 2.0
    savemat(tmp_path / "again.mat", {key: raw[key] for key in ("ct", "cst", "stf", "pln", "resultGUI", "torchimpt")})
    ours, back = read_plan(folder / "run" / "plan.json"), read_plan(tmp_path / "again.mat", dtype=torch.float64)
    assert float(back.weight.detach().sum()) == pytest.approx(2.0 * float(ours.weight.detach().sum()))


def test_dose_of_a_hand_made_file(tmp_path) -> None:
    """Beams of the file, physical dose proposed, and the dose where the rays go."""
    matrad_files.save(tmp_path / "plan.mat")
    case = '[patient]\nsource = "matrad"\npath = "plan.mat"\n[dose]\ndtype = "float64"\n[output]\nbeams_dose = true\n'
    (tmp_path / "case.toml").write_text(case)
    done = command("dose", "case.toml", "--plan", "plan.mat", "--out", "run", cwd=tmp_path)
    assert done.status == 0, done.err
    assert read_plan(tmp_path / "run" / "plan.json").beams[1].couch == 90.0
    dose, grid = read_dose(tmp_path / "run" / "dose_beam0.mha")
    # two rays at z = -11 and 11 about the isocentre, gantry 0: dose is mirrored neither in x nor in z, each ray enters from -y
    centers = grid.centers()[dose.flatten() > 0.5 * float(dose.max())] - torch.from_numpy(matrad_files.TARGET)
    assert bool((centers[:, 0] * centers[:, 2] > 0).all()) and len(centers) > 3


def test_patients_who_do_not_lie_on_their_backs_are_refused(folder, tmp_path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("metrics.json", "dose.mha"):
        (run / name).write_bytes((folder / "run" / name).read_bytes())
    (run / "case.toml").write_text((folder / "run" / "case.toml").read_text().replace('name = "water"', 'name = "water"\nposition = "HFP"'))
    plan = (folder / "run" / "plan.json").read_text()
    assert '"patient_position": "HFS"' in plan
    (run / "plan.json").write_text(plan.replace('"patient_position": "HFS"', '"patient_position": "HFP"'))
    done = command("export", "run", "--to", "x", "--format", "matrad", cwd=tmp_path)
    assert done.status == 2 and "head first supine (HFS) only" in done.err and not (tmp_path / "x").exists()


@pytest.mark.slow
def test_tg119_with_matrads_machine(shared, tmp_path) -> None:
    """Physical dose, the patient's own HU table, matRad's machine: in the file as in the run, and as computed anew of the file."""
    data = shared / "data" / "matrad"
    machine = f'[machine]\nformat = "matrad"\npath = "{data / "protons_Generic.mat"}"\n'
    dose = '[dose]\ngrid_mm = 6.0\nrbe = 1.0\ndtype = "float64"\ntarget_grid_mm = "off"\n'
    beams = "[[beam]]\ngantry_deg = 0\n[[beam]]\ngantry_deg = 250\ncouch_deg = 20\n"
    patient = f'[patient]\nsource = "matrad"\npath = "{data / "TG119.mat"}"\n'
    (tmp_path / "case.toml").write_text(f"{patient}{machine}{dose}{beams}")
    places = ((-9.0, 4.0), (6.5, -12.5), (12.0, 20.0))
    rows = [f"{b},{e},{x},{y},{40 + 7 * b + x}" for b in (0, 1) for e in (110.0, 135.0) for x, y in places]
    (tmp_path / "spots.csv").write_text("beam,energy_mev,x_mm,y_mm,weight\n" + "\n".join(rows))
    assert command("dose", "case.toml", "--plan", "spots.csv", "--out", "run", cwd=tmp_path).status == 0
    done = command("export", "run", "--to", "m", "--format", "matrad", cwd=tmp_path)
    assert done.status == 0 and "protons_Generic.mat" in done.out, done.err
    (tmp_path / "back.toml").write_text(f'[patient]\nsource = "matrad"\npath = "m/plan.mat"\n{machine}{dose}')
    done = command("dose", "back.toml", "--plan", "m/plan.mat", "--out", "back", cwd=tmp_path)
    assert done.status == 0, done.err
    (ours, grid), (back, same) = (read_dose(tmp_path / name / "dose.mha") for name in ("run", "back"))
    assert grid == same and float((ours - back).abs().max()) < 1e-6 * float(ours.max())  # float32, in which doses are written
    result = loadmat(tmp_path / "m" / "plan.mat", squeeze_me=True, struct_as_record=False)["resultGUI"]
    ct = read_matrad(data / "TG119.mat").grid
    fractions = load_case(tmp_path / "back").delivery.fractions
    expected = values_on(back.double(), grid, ct).numpy().transpose(1, 2, 0)
    assert np.abs(result.physicalDose * fractions - expected).max() < 1e-6 * expected.max() and not hasattr(result, "RBExDose")
