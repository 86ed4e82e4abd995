"""`torchimpt inspect`: what it tells, that nothing ends it, and that the case it proposes runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from dicom_files import PLAN, dose, ion_plan, new_file
from dicom_patient import circle, ct_series, sphere, structure_set, write
from pydicom.dataset import Dataset
from tiny_case import command, write_tiny

from torchimpt.case import load_case
from torchimpt.checks import InputError
from torchimpt.geometry import Grid
from torchimpt.inspection import inspect
from torchimpt.inspection.propose import propose
from torchimpt.inspection.sections import Region
from torchimpt.io import write_image

GRID = Grid((16, 40, 40), (4.0, 4.0, 5.0), (-78.0, -78.0, -37.5))
PLANES = GRID.axis("z").tolist()


def head(position: str = "HFS"):
    """A ball of water with a target on its left side: slices and structure set."""
    x, y, z = GRID.centers().T.numpy()
    hu = np.where(x**2 + y**2 + (1.5 * z) ** 2 < 70.0**2, 10.0, -1000.0).reshape(GRID.shape)
    rois = {
        "Skin": ("EXTERNAL", [circle(0, 0, z, float(np.sqrt(70.0**2 - (1.5 * z) ** 2))) for z in PLANES]),
        "PTV": ("PTV", sphere((38, 0, 0), 17.0, PLANES)),
        "CTV_5400": ("CTV", sphere((38, 0, 0), 13.0, PLANES)),
        "Cord": ("ORGAN", [circle(0, 15, z, 6.0) for z in PLANES[4:12]]),
    }
    slices = ct_series(hu, GRID, position=position)
    return slices, structure_set(rois, slices)


def photon_plan():
    """A plan of one photon beam."""
    plan = new_file(PLAN, "RTPLAN")
    beam, point = Dataset(), Dataset()
    beam.BeamNumber, beam.BeamName, beam.RadiationType = 1, "AP", "PHOTON"
    point.GantryAngle, point.NominalBeamEnergy = 0.0, 6.0
    beam.ControlPointSequence = [point]
    plan.RTPlanLabel, plan.BeamSequence = "3D", [beam]
    return plan


def rows(found, title: str) -> list[tuple[str, ...]]:
    """The rows of the section whose title begins so."""
    (section,) = [section for section in found.sections if section.title.startswith(title)]
    return list(section.rows)


def test_a_folder_of_dicom(tmp_path):
    slices, structures = head("FFS")
    write(tmp_path, [*slices, structures, ion_plan(), dose(), photon_plan()])
    (tmp_path / "bad.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 50)
    found = inspect(tmp_path)
    assert rows(found, "CT")[0][:7] == ("Head", "p1", "16", "40 x 40", "4 x 4 x 5", "-37.5 to 37.5", "FFS")
    rois = {row[0]: row[1:] for row in rows(found, "Structure set 'Planning'")}
    assert list(rois) == ["Skin", "PTV", "CTV_5400", "Cord"] and rois["Cord"][:2] == ("ORGAN", "oar")
    assert rois["Cord"][2] == "4.52" and rois["Cord"][3:] == ("-6.0 to 6.0", "9.0 to 21.0", "-20.0 to 20.0")  # pi 36 40 mm3
    first, second = rows(found, "RT Ion Plan 'two fields'")
    assert first == ("1 f1", "30", "10", "100.0 to 110.0", "2", "3", "50.00 MU", "-", "1, -2, 3") and second[:2] == ("2 f2", "270")
    (photon,) = [section for section in found.sections if section.title.startswith("RT Plan '3D'")]
    assert (
        photon.rows == (("1 AP", "PHOTON", "0", "-", "6", "-"),)
        and "torchimpt plans with protons, and this is a plan of photons" in photon.remarks[0]
    )
    assert rows(found, "RT Dose")[0][:6] == ("BEAM", "2", "PHYSICAL", "11.500", "4 x 3 x 2", "2 x 3 x 5")
    (broken,) = [section for section in found.sections if section.title.startswith("Files that begin like DICOM")]
    assert broken.remarks[0].startswith("bad.dcm: ")
    # the target lies on the left, and who lies feet first has his left to the other side
    assert "gantry 240, 300 degrees" in found.proposal.remarks[1]


def test_files_of_other_kinds(tmp_path, shared: Path):
    image = tmp_path / "anna"
    grid = Grid((4, 5, 6), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0))
    write_image(image / "ct.mha", torch.zeros(grid.shape), grid)
    mask = torch.zeros(grid.shape, dtype=torch.bool)
    mask[1:3, 1:4, 2:5] = True
    write_image(image / "CTV.mha", mask, grid)
    write_image(tmp_path / "some dose.nii.gz", torch.ones(grid.shape), grid)
    shutil.copytree(
        shared / "data" / "mc", tmp_path / "machine", ignore=lambda _, names: [n for n in names if n.startswith(("water", "step", "asym"))]
    )
    shutil.copy(shared / "data" / "dicom" / "bdl" / "BDL_matrad.txt", tmp_path / "bdl.txt")
    write_tiny(tmp_path)
    found = inspect(tmp_path)
    titles = [section.title for section in found.sections]
    assert [title.split(" (")[0] for title in titles] == ["Patient 'anna'", "Machine 'machine'", "Machine", "Case file 'Tiny'", "Images"], (
        titles
    )
    assert rows(found, "Patient 'anna'") == [("CTV", "target", "0.144", "3.0 to 9.0", "1.0 to 7.0", "1.0 to 5.0")]
    assert rows(found, "Images") == [("some dose.nii.gz", "6 x 5 x 4", "2 x 2 x 2", "0, 0, 0", "1 to 1")]
    assert "No outline of the body" in found.proposal.remarks[-1]


def test_nothing_ends_it(tmp_path):
    """Files that are nothing, or broken ones of every kind."""
    for name in (
        "a.dcm",
        "b.mat",
        "c.mha",
        "d.nii.gz",
        "e.toml",
        "f.json",
        "g.csv",
        "h.txt",
        "i",
        "voxel_dimensions.csv",
        "ct.csv",
        "case.toml",
        "plan.json",
    ):
        (tmp_path / name).write_bytes(bytes(range(256)) * 3)
    folder = tmp_path / "machine"
    folder.mkdir()
    for name in ("beam_model.csv", "idd.csv", "machine.toml"):
        (folder / name).write_text("torchimpt")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "round").symlink_to(tmp_path, target_is_directory=True)
    whole = inspect(tmp_path)
    assert whole.proposal is None and whole.reason == "there is no patient with a target"
    for path in [*tmp_path.iterdir(), folder]:
        if path.exists():
            assert inspect(path).sections
    (tmp_path / "empty").mkdir()
    assert inspect(tmp_path / "empty").sections[0].title == "Nothing that torchimpt reads"
    with pytest.raises(InputError, match="no file or folder"):
        inspect(tmp_path / "gone")


def region(name: str, role: str, low, high, kind: str = "") -> Region:
    box = np.array([low, high], dtype=float)
    return Region(name, kind, role, float(np.prod(box[1] - box[0])), box)


def test_the_proposed_case(tmp_path):
    body = region("Body", "external", (-100, -100, -100), (100, 100, 100))
    middle = region("PTV70", "target", (-20, -20, -20), (20, 20, 20))
    organs = [region(f"O{i}", "oar", (21 + 9 * i, 0, 0), (25 + 9 * i, 9, 9)) for i in range(9)]
    path = tmp_path / "case.toml"

    def case(regions):
        proposal = propose("image", tmp_path, "one", regions)
        path.write_text(proposal.text)
        return load_case(path), proposal.remarks

    found, remarks = case([body, middle, *organs])
    assert [beam.gantry_deg for beam in found.beam] == [0.0, 90.0, 270.0] and found.spots.targets == ("PTV70",)
    assert [(o.roi, o.dose_gy) for o in found.objective] == [
        ("PTV70", 70.0),
        ("PTV70", 73.5),
        *((f"O{i}", 49.0) for i in range(6)),
        ("Body", 73.5),
    ]
    assert "A PTV's margins are made for photons" in remarks[-1]
    left = region("CTV", "target", (50, -10, -20), (90, 10, 20))
    found, remarks = case([body, middle, left])
    assert [beam.gantry_deg for beam in found.beam] == [60.0, 120.0] and found.spots.targets == ("CTV",)
    assert found.objective[0].dose_gy == 60.0 and "CTV, 60 Gy (a guess" in remarks[0] and "also drawn: PTV70" in remarks[0]
    assert propose("image", tmp_path, "one", [body, *organs]) is None


def test_on_the_command_line(tmp_path):
    slices, structures = head()
    write(tmp_path / "files", [*slices, structures])
    done = command("inspect", "files", cwd=tmp_path)
    assert done.status == 0 and done.err == "" and not (tmp_path / "case.toml").exists()
    assert "Structure set 'Planning'" in done.out and "CTV_5400" in done.out and "torchimpt inspect files --case CASE.toml" in done.out
    done = command("inspect", "files", "--case", "case.toml", cwd=tmp_path)
    assert done.status == 0 and "Wrote case.toml. Next: torchimpt plan case.toml --out runs/case" in done.out
    case = load_case(tmp_path / "case.toml")
    assert case.spots.targets == ("CTV_5400",) and case.objective[0].dose_gy == 54.0
    done = command("inspect", "files", "--case", "case.toml", cwd=tmp_path)
    assert done.status == 2 and "case.toml exists already" in done.err and done.out == ""
    done = command("inspect", "gone", cwd=tmp_path)
    assert done.status == 2 and "no file or folder gone" in done.err


@pytest.mark.slow
def test_the_proposed_case_runs(tmp_path):
    """As it stands but for a coarser grid, for a patient who lies feet first: the dose comes from his left, where the target is."""
    slices, structures = head("FFS")
    write(tmp_path / "files", [*slices, structures])
    assert command("inspect", "files", "--case", "case.toml", cwd=tmp_path).status == 0
    coarse = ("dose.grid_mm=8", "spots.spacing_mm=12", "optimizer.tolerance=1e-2", "dose.check_mm=off")
    flags = [flag for override in coarse for flag in ("--set", override)]
    done = command("plan", "case.toml", "--out", "run", *flags, cwd=tmp_path)
    assert done.status == 0, done.err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["goals"][0]["roi"] == "CTV_5400" and metrics["scenarios"][0]["rois"]["CTV_5400"]["mean_gy"] > 50.0
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert [beam["patient_position"] for beam in plan["beams"]] == ["FFS", "FFS"]
    found = inspect(tmp_path / "run")
    assert found.sections[0].title.startswith("Run folder") and [row[3] for row in found.sections[0].rows] == ["FFS", "FFS"]
