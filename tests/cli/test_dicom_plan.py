"""`torchimpt dose CASE.toml --plan RP.dcm`: the file's beams or the case's, its fractions, a dose per beam, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import dicom_files
import numpy as np
import pytest
import torch
from tiny_case import command

from torchimpt.case import load_case
from torchimpt.io.dicom import read_ion_plan
from torchimpt.io.image import read_dose
from torchimpt.io.plan import read_plan
from torchimpt.machine import generic

CASE = """
[patient]
source = "phantom"
name = "water"

[dose]
grid_mm = 6.0

[output]
beams_dose = true
"""


def written(folder: Path, case: str = CASE, unit: str = "NP") -> Path:
    """Case and plan in the folder; with numbers of protons, any machine will do."""
    (folder / "case.toml").write_text(case)
    file = dicom_files.ion_plan()
    for field in file.IonBeamSequence:
        field.PrimaryDosimeterUnit = unit
    for beam in file.FractionGroupSequence[0].ReferencedBeamSequence:
        beam.BeamMeterset = 1e9 * float(beam.BeamMeterset)
    return dicom_files.save(file, folder / "RP.dcm")


def test_plan_as_the_file_has_it(tmp_path):
    plan = written(tmp_path)
    found = command("dose", "case.toml", "--plan", "RP.dcm", "--out", "run", cwd=tmp_path)
    assert found.status == 0, found.err
    run = tmp_path / "run"
    assert "beam 1 'f1' at gantry 30, couch 10, 3 spots, 5e+10 NP a fraction, 4 fractions" in (run / "log.txt").read_text()
    spots, own = read_plan(run / "plan.json"), read_ion_plan(plan).spots(generic())
    assert spots.beams == own.beams and torch.equal(spots.weight, own.weight) and torch.equal(spots.position, own.position)
    # four fractions, the file's own, not the case file's default
    assert json.loads((run / "plan.json").read_text())["fractions"] == 4 and load_case(run).delivery.fractions == 4
    total, parts = read_dose(run / "dose.mha")[0], [read_dose(run / f"dose_beam{i}.mha")[0] for i in (0, 1)]
    assert all(float(part.max()) > 0.2 * float(total.max()) for part in parts)
    np.testing.assert_allclose(sum(parts).numpy(), total.numpy(), rtol=1e-5, atol=1e-6 * float(total.max()))
    # the run is computed again without: the beams' doses of the one before go
    assert command("dose", "case.toml", "--plan", "RP.dcm", "--out", "run", "--set", "output.beams_dose=false", cwd=tmp_path).status == 0
    assert (run / "dose.mha").is_file() and not list(run.glob("dose_beam*"))


def test_beams_of_the_case_count(tmp_path):
    case = CASE + "[[beam]]\ngantry_deg = 0\n\n[[beam]]\ngantry_deg = 180\nisocenter_mm = [0.0, 5.0, 0.0]\n\n[delivery]\nfractions = 7\n"
    written(tmp_path, case)
    found = command("dose", "case.toml", "--plan", "RP.dcm", "--out", "run", cwd=tmp_path)
    assert found.status == 0, found.err
    assert "gantry 30, couch 10" in found.err and "4 fractions, not 7" in found.err
    first, second = read_plan(tmp_path / "run" / "plan.json").beams
    assert (first.gantry, first.isocenter) == (0.0, (1.0, -2.0, 3.0)) and (second.gantry, second.isocenter) == (180.0, (0.0, 5.0, 0.0))


@pytest.mark.parametrize(
    ("case", "unit", "message"),
    [
        (CASE, "MU", "has its weights in MU, and machine 'generic' has no calibration of its own"),
        (CASE + "[[beam]]\ngantry_deg = 0\n", "NP", "has 2 beams, the case 1"),
    ],
)
def test_refused_in_one_line(tmp_path, case, unit, message):
    written(tmp_path, case, unit)
    found = command("dose", "case.toml", "--plan", "RP.dcm", "--out", "run", cwd=tmp_path)
    assert found.status == 2 and message in found.err and "Traceback" not in found.err
    assert not (tmp_path / "run").exists()


def test_photon_plan_is_refused(tmp_path):
    path = written(tmp_path)
    file = dicom_files.ion_plan()
    file.SOPClassUID = dicom_files.PLAN
    dicom_files.save(file, path)
    found = command("dose", "case.toml", "--plan", "RP.dcm", "--out", "run", cwd=tmp_path)
    assert found.status == 2 and "is a plan for photons or electrons" in found.err
