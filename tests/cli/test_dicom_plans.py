"""RT plans of other programs (../shared/data/dicom): told by `torchimpt inspect`, and given a dose, or refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_case import command

from torchimpt.io.plan import read_plan

CASE = """
[patient]
source = "phantom"
name = "water"

[dose]
grid_mm = 6.0
target_grid_mm = "off"
"""

CLINIC = """
[machine]
format = "emittance"
path = "{shared}/data/dicom/DCPT_beam_model__v5.csv"
plane_mm = 600.0
curves = "{shared}/data/mc"
sad_mm = [2000.0, 2560.0]
"""

SHIFTER = "\n[[beam]]\ngantry_deg = 90\nrange_shifter_mm = 30\nrange_shifter_distance_mm = 200\nisocenter_mm = [0, 0, 0]\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "spots", "fractions", "case"),
    [
        # spots with a meterset; positions without are in the files, too
        ("ramp_full/ramped_2Gy_ver2_full.dcm", 18_436, 1, CLINIC),
        ("varian_sobp/RN_178041.dcm", 3_468, 1, CLINIC),
        ("varian_sobp/RN_178320_mono.dcm", 323, 1, CLINIC),
        # numbers of protons, so that any machine will do; a range shifter without settings, which the case tells; an aperture
        ("topas_demo/rtip_demo.dcm", 246, 14, SHIFTER),
    ],
)
def test_ion_plans_are_shown_and_give_a_dose(shared, tmp_path, path, spots, fractions, case):
    plan = shared / "data" / "dicom" / path
    shown = command("inspect", plan, cwd=tmp_path)
    assert shown.status == 0 and "RT Ion Plan" in shown.out and f"{fractions} fractions of" in shown.out
    flags: tuple[str, ...] = ()
    (tmp_path / "case.toml").write_text(CASE + case.format(shared=shared))
    if case == SHIFTER:
        flags = ("--set", "dose.ignore_apertures=true")
        done = command("dose", "case.toml", "--plan", plan, "--out", "run", cwd=tmp_path)
        assert (
            done.status == 2
            and "has an aperture, through which no dose can be computed" in done.err
            and "ignore_apertures = true" in done.err
        )
        assert not (tmp_path / "run").exists()
    done = command("dose", "case.toml", "--plan", plan, "--out", "run", *flags, cwd=tmp_path)
    assert done.status == 0, done.err
    assert ("its aperture is left out" in done.err) == bool(flags)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    target = metrics["scenarios"][0]["rois"]["Target"]
    assert target["max_gy"] > 0.1
    assert read_plan(tmp_path / "run" / "plan.json").n_spots == spots
    # and out again: dose and spots are told by the same numbers
    done = command("export", "run", "--to", "out", cwd=tmp_path)
    assert done.status == 0 and f"{spots:,} spots" in done.out and f"a fraction, of {fractions}" in done.out, done.err


JOINT = """
[spots]
target = "Target"

[delivery]
fractions = 1

[optimizer]
max_iterations = 8

[output]
tensorboard = false

[joint]
box_mm = 5.0
warm_iterations = 2
start = "{plan}"

[[objective]]
roi = "Target"
kind = "uniform"
dose_gy = 2.0
weight = 100.0
"""


@pytest.mark.slow
def test_joint_optimization_starts_from_a_clinics_plan(shared, tmp_path):
    """323 spots of 160 MeV in a square: those of one layer, that leave their lattice."""
    plan = shared / "data" / "dicom" / "varian_sobp" / "RN_178320_mono.dcm"
    (tmp_path / "case.toml").write_text(CASE + CLINIC.format(shared=shared) + JOINT.format(plan=plan))
    done = command("plan", "case.toml", "--out", "run", cwd=tmp_path)
    assert done.status in (0, 3), done.err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["objective"]["final"] < 0.9 * metrics["objective"]["initial"] and metrics["spots"]["moved_mm"]["max"] > 0.1
    assert metrics["spots"]["count"] == 323 and metrics["spots"]["energy_layers"] == 1


def test_photon_plan_is_shown_and_refused(shared, tmp_path):
    plan: Path = shared / "data" / "dicom" / "dicompyler" / "rtplan_photon.dcm"
    shown = command("inspect", plan, cwd=tmp_path)
    assert shown.status == 0 and "this is a plan of photons" in shown.out
    (tmp_path / "case.toml").write_text(CASE)
    done = command("dose", "case.toml", "--plan", plan, "--out", "run", cwd=tmp_path)
    assert done.status == 2 and "is a plan for photons or electrons" in done.err and len(done.err.splitlines()) == 1
