"""`torchimpt export RUN --to FOLDER` in DICOM: import and dose again, identifiers, dciodvfy, and what other programs make of the files.

Other programs run in environments of their own, as their pydicom or NumPy is another: `TORCHIMPT_DICOMPYLER`, `TORCHIMPT_PYMCHELPER` and
`TORCHIMPT_OPENTPS` name a Python that has each (`.ci/peers.sh` makes them). dciodvfy (dicom3tools) and plastimatch are Debian's.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from tiny_case import command, write_tiny

from torchimpt.geometry import Grid
from torchimpt.io import read_dose, read_image, read_plan, read_rt_dose, write_image

GRID = Grid((13, 15, 17), (8.0, 7.0, 9.0), (-62.0, -51.0, -50.0))
"""No two sizes alike, and off the middle."""

CASE = """
[patient]
source = "dicom"
path = "{path}"

[dose]
target_grid_mm = "off"

[delivery]
fractions = 35
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Holds `run`, a plan of two beams, of which the second has a range shifter, for a patient from images; and `dicom`, its export."""
    path = tmp_path_factory.mktemp("export")
    body, target, organ = (torch.zeros(GRID.shape, dtype=torch.bool) for _ in range(3))
    body[1:-1, 1:-1, 1:-1] = True
    target[5:9, 6:10, 5:9] = True
    organ[4:10, 4:12, 9:15] = True
    organ[4:10, 7, 12] = False
    (path / "patient").mkdir()
    write_image(path / "patient" / "ct.mha", torch.where(body, 12.3, -1000.0) + 60.0 * organ, GRID)
    for name, mask in (("External", body), ("Target", target), ("Organ", organ)):
        write_image(path / "patient" / f"{name}.mha", mask, GRID)
    write_tiny(path, ('source = "phantom"\nname = "water"', 'source = "image"\npath = "patient"'), ("grid_mm = 8.0\n", ""))
    flags = ("beam.1.range_shifter_mm=20.0", "beam.1.range_shifter_distance_mm=160.5", "optimizer.max_iterations=20")
    sets = [flag for override in flags for flag in ("--set", override)]
    assert command("plan", "tiny.toml", "--out", "run", *sets, cwd=path).status in (0, 3)
    done = command("export", "run", "--to", "dicom", cwd=path)
    assert done.status == 0 and "has no calibration of its monitor units" in done.err, done.err
    assert "13 CT slices, not for clinical use" in done.out and "NP" in done.out
    return path


def planned(folder: Path):
    return read_plan(folder / "run" / "plan.json").weighted()


def test_dose_of_the_import_is_the_runs(folder):
    (folder / "back.toml").write_text(CASE.format(path="dicom"))
    done = command("dose", "back.toml", "--plan", "dicom/RP.dcm", "--out", "back", cwd=folder)
    assert done.status == 0, done.err
    (mine, grid), (back, other) = read_dose(folder / "run" / "dose.mha"), read_dose(folder / "back" / "dose.mha")
    assert other.shape == grid.shape and np.allclose([*other.spacing, *other.origin], [*grid.spacing, *grid.origin], rtol=1e-12)
    # weights are rounded to single precision twice (1.2e-7), CT numbers to 2^-5 HU (0.016 HU: 1.5e-5 of a range of 100 mm, 1.5e-3 mm): a
    # distal edge falls by 5 % of the maximum a mm
    assert float((back - mine).abs().max()) < 2e-4 * float(mine.max())
    assert float((back - mine).abs().mean()) < 1e-5 * float(mine.max())


def test_files_hold_the_runs_doses(folder):
    mine, _ = read_dose(folder / "run" / "dose.mha")
    plan, beams = read_rt_dose(folder / "dicom" / "RD.dcm"), [read_rt_dose(folder / "dicom" / f"RD_beam{i}.dcm").dose for i in (1, 2)]
    assert float((plan.dose - mine).abs().max()) <= float(mine.max()) * (0.5 / 65535 + 1e-6)
    # each of the three has half a step of its own
    assert float((sum(beams) - plan.dose).abs().max()) <= 1.5 / 65535 * float(mine.max()) * 1.01
    assert min(float(beam.max()) for beam in beams) > 0.2 * float(mine.max())


def test_import_is_exported_under_its_identifiers(folder, tmp_path):
    """A dose of the DICOM folder, exported again: patient, study, frame and structure set are the first export's, instances are new."""
    (tmp_path / "case.toml").write_text(CASE.format(path=folder / "dicom"))
    assert command("dose", "case.toml", "--plan", folder / "dicom" / "RP.dcm", "--out", "run", cwd=tmp_path).status == 0
    done = command("export", "run", "--to", "again", cwd=tmp_path)
    assert done.status == 0 and f"CT and structure set: {folder / 'dicom'}" in done.out
    assert {path.name for path in (tmp_path / "again").iterdir()} == {"RP.dcm", "RD.dcm", "RD_beam1.dcm", "RD_beam2.dcm"}
    for name in ("RP.dcm", "RD.dcm"):
        first, second = (pydicom.dcmread(path / name) for path in (folder / "dicom", tmp_path / "again"))
        for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
            assert first[keyword].value == second[keyword].value
        assert first.SOPInstanceUID != second.SOPInstanceUID and first.SeriesInstanceUID != second.SeriesInstanceUID
    plan = pydicom.dcmread(tmp_path / "again" / "RP.dcm")
    structures = pydicom.dcmread(folder / "dicom" / "RS.dcm")
    assert plan.ReferencedStructureSetSequence[0].ReferencedSOPInstanceUID == structures.SOPInstanceUID


def test_joint_optimization_starts_from_the_import(folder):
    """Without [[beam]], which are the plan's; moved spots are better than the plan's own."""
    text = (folder / "tiny.toml").read_text()
    head, beams = text.split("[[beam]]", 1)
    case = head + "[robustness]" + beams.split("[robustness]", 1)[1] + '\n[joint]\nbox_mm = 3.0\nstart = "dicom/RP.dcm"\n'
    (folder / "joint.toml").write_text(case)
    flags = ("optimizer.max_iterations=10", "joint.warm_iterations=2", "delivery.fractions=30")
    done = command("plan", "joint.toml", "--out", "moved", *[f for flag in flags for f in ("--set", flag)], cwd=folder)
    assert done.status in (0, 3), done.err
    assert "RP.dcm is for 35 fractions, the case for 30" in done.err
    before, after = (json.loads((folder / run / "metrics.json").read_text()) for run in ("run", "moved"))
    assert after["objective"]["final"] < before["objective"]["final"] and 0.1 < after["spots"]["moved_mm"]["max"] <= 3.0 * 2**0.5
    moved = read_plan(folder / "moved" / "plan.json")
    assert moved.beams == planned(folder).beams and moved.n_spots <= planned(folder).n_spots


def test_failures_leave_nothing(folder, tmp_path, full_disk):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    done = command("export", folder / "run", "--to", "taken", cwd=tmp_path)
    assert done.status == 2 and "taken is not empty; choose another folder, or empty it" in done.err and len(done.err.splitlines()) == 1
    with full_disk(3000):
        done = command("export", folder / "run", "--to", "small", cwd=tmp_path)
    assert done.status == 2 and "cannot write" in done.err and "Traceback" not in done.err
    assert {path.name for path in tmp_path.iterdir()} == {"taken"}


def test_locale_stays(folder, tmp_path):
    """A writer that sets another decimal point would break every number that is written after it."""
    import locale

    before = locale.setlocale(locale.LC_ALL)
    assert command("export", folder / "run", "--to", "x", cwd=tmp_path).status == 0
    assert locale.setlocale(locale.LC_ALL) == before


# Other programs ----------------------------------------------------------------------------------------------------------------------------


def program(name: str, package: str) -> str:
    """A program of Debian's; the test is skipped where it is not there."""
    found = shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not installed (apt-get install {package})")
    return found


def peer(name: str, code: str, *arguments: object) -> dict:
    """What Python code prints as JSON in the environment that `TORCHIMPT_<name>` names; the test is skipped where there is none."""
    python = os.environ.get(f"TORCHIMPT_{name}")
    if not python:
        pytest.skip(f"TORCHIMPT_{name} names no Python (.ci/peers.sh makes them)")
    # its packages are its own, and so are its warnings
    done = subprocess.run(
        [python, "-W", "ignore", "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def spot_list(folder: Path, beam: int) -> np.ndarray:
    """Energy, x, y and protons of a fraction `(n_spots, 4)` of a beam of the plan, sorted."""
    spots = planned(folder)
    own = spots.beam == beam
    x, y = spots.position.detach()[own].double().T
    rows = torch.stack((spots.energy[own], x, y, spots.weight.detach()[own].double() * 1e6 / 35), dim=1).numpy()
    return rows[np.lexsort(rows.T[::-1])]


def same_spots(theirs: list, mine: np.ndarray) -> None:
    rows = np.array(theirs)
    rows = rows[np.lexsort(rows.T[::-1])]
    assert rows.shape == mine.shape
    np.testing.assert_allclose(rows[:, :3], mine[:, :3], rtol=1e-7)
    np.testing.assert_allclose(rows[:, 3], mine[:, 3], rtol=2e-7)


def test_dciodvfy_finds_no_error(folder):
    dciodvfy = program("dciodvfy", "dicom3tools")
    files = sorted((folder / "dicom").iterdir())
    assert len(files) == 13 + 5
    for path in (*files[:1], *files[13:]):  # one slice is as the others
        done = subprocess.run([dciodvfy, str(path)], capture_output=True, text=True, check=False)
        kinds = {"CT": "CTImage", "RP": "RTIonPlan", "RS": "RTStructureSet", "RD": "RTDose"}
        assert kinds[path.name[:2]] in done.stderr + done.stdout and "Error" not in done.stderr + done.stdout, (path.name, done.stderr)
    # and that all of them tell the same of patient, study, series and frame
    done = subprocess.run([program("dcentvfy", "dicom3tools"), *map(str, files)], capture_output=True, text=True, check=False)
    assert "Error" not in done.stderr + done.stdout, done.stderr


PYMCHELPER = """
import json, sys
from pathlib import Path
from pymchelper.utils.radiotherapy.plan import load_DICOM_VARIAN
plan = load_DICOM_VARIAN(Path(sys.argv[1]))
print(json.dumps([{"meterset": f.cum_mu, "dose": f.dose, "spots": [[l.energy_nominal, *map(float, s[:3])] for l in f.layers for s in l.spots
                  if s[2] > 0]} for f in plan.fields]))
"""


@pytest.mark.slow
def test_pymchelper_reads_the_spots(folder):
    fields = peer("PYMCHELPER", PYMCHELPER, folder / "dicom" / "RP.dcm")
    assert len(fields) == 2
    for number, field in enumerate(fields):
        mine = spot_list(folder, number)
        same_spots(field["spots"], mine)
        assert field["meterset"] == pytest.approx(mine[:, 3].sum(), rel=2e-7)
        dose, own = read_rt_dose(folder / "dicom" / f"RD_beam{number + 1}.dcm"), planned(folder).beams[number]
        index = [round((p - o) / s) for p, o, s in zip(own.isocenter, GRID.origin, GRID.spacing, strict=True)]
        assert field["dose"] == pytest.approx(float(dose.dose[index[2], index[1], index[0]]) / 35, rel=1e-3)


OPENTPS = """
import json, sys
import numpy as np
from opentps.core.io import dicomIO
folder = sys.argv[1]
plan = dicomIO.readDicomPlan(folder + "/RP.dcm")
dose, rois = dicomIO.readDicomDose(folder + "/RD.dcm"), dicomIO.readDicomStruct(folder + "/RS.dcm")
from pathlib import Path
ct = dicomIO.readDicomCT([str(path) for path in sorted(Path(folder).glob("CT*.dcm"))])
masks = {c.name: c.getBinaryMask(ct.origin, ct.gridSize, ct.spacing).imageArray for c in rois.contours}
beam = plan.beams[-1]
print(json.dumps({
    "fractions": plan.numberOfFractionsPlanned, "gantry": beam.gantryAngle, "couch": beam.patientSupportAngle,
    "isocenter": list(map(float, beam.isocenterPosition)), "machine": plan.treatmentMachineName,
    "shifter": [float(beam.layers[0].rangeShifterSettings.rangeShifterWaterEquivalentThickness),
                float(beam.layers[0].rangeShifterSettings.isocenterToRangeShifterDistance)],
    "spots": [[float(l.nominalEnergy), float(x), float(y), float(m)] for l in beam.layers for x, y, m in zip(l.spotX, l.spotY, l.spotMUs)],
    "dose": dose.imageArray.astype(float).tolist(), "spacing": list(map(float, dose.spacing)), "origin": list(map(float, dose.origin)),
    "hu": ct.imageArray.astype(float).tolist(), "masks": {k: v.astype(int).tolist() for k, v in masks.items()}}))
"""


@pytest.mark.slow
def test_opentps_reads_plan_dose_ct_and_rois(folder):
    """OpenTPS 2.0.0 keeps of a plan the last beam, and that only where it has a range shifter; its arrays are `(x, y, z)`."""
    found = peer("OPENTPS", OPENTPS, folder / "dicom")
    assert (found["fractions"], found["gantry"], found["couch"]) == (35, 75.0, 10.0) and found["machine"] == "generic"
    assert found["isocenter"] == pytest.approx(planned(folder).beams[1].isocenter) and found["shifter"] == [20.0, 160.5]
    same_spots(found["spots"], spot_list(folder, 1))
    mine, patient = read_dose(folder / "run" / "dose.mha")[0].numpy(), read_image(folder / "patient")
    assert found["spacing"] == list(GRID.spacing) and found["origin"] == pytest.approx(GRID.origin)
    np.testing.assert_allclose(np.array(found["dose"]).T, mine, atol=1e-5 * mine.max())
    np.testing.assert_allclose(np.array(found["hu"]).T, patient.hu.numpy(), atol=0.016)
    for name, roi in patient.rois.items():
        theirs = np.array(found["masks"][name]).T.astype(bool)
        assert (theirs == roi.mask.numpy()).all(), name


DICOMPYLER = """
import json, sys, warnings
warnings.simplefilter("ignore")
from dicompylercore import dicomparser, dvhcalc
folder = sys.argv[1]
rs, rd, rp = (folder + name for name in ("/RS.dcm", "/RD.dcm", "/RP.dcm"))
found = {"dose": dicomparser.DicomParser(rd).GetDoseData(), "plan": dicomparser.DicomParser(rp).GetPlan(), "rois": {}}
for number, roi in dicomparser.DicomParser(rs).GetStructures().items():
    dvh = dvhcalc.get_dvh(rs, rd, number)
    found["rois"][roi["name"]] = [float(dvh.volume), float(dvh.mean), float(dvh.max), float(dvh.min)]
print(json.dumps(found, default=str))
"""


@pytest.mark.slow
def test_dicompyler_reads_doses_and_dvhs(folder):
    found = peer("DICOMPYLER", DICOMPYLER, folder / "dicom")
    mine, patient = read_dose(folder / "run" / "dose.mha")[0], read_image(folder / "patient")
    assert found["dose"]["dosetype"] == "EFFECTIVE" and found["dose"]["dosesummationtype"] == "PLAN"
    assert found["dose"]["dosemax"] * found["dose"]["dosegridscaling"] == pytest.approx(float(mine.max()), rel=1e-5)
    assert found["plan"]["label"] == "NOT FOR CLINICAL" and found["plan"]["rxdose"] == pytest.approx(5000.0)
    assert set(found["rois"]) == set(patient.rois)
    for name, roi in patient.rois.items():
        volume, *theirs = found["rois"][name]
        values = mine[roi.mask].double()
        assert volume == pytest.approx(patient.volume(name) / 1000.0, rel=1e-9)
        # its DVHs have bins of 1 cGy
        assert theirs == pytest.approx([float(values.mean()), float(values.max()), float(values.min())], abs=0.011), name


@pytest.mark.slow
def test_plastimatch_reads_doses_and_rois(folder, tmp_path):
    plastimatch = program("plastimatch", "plastimatch")
    dicom = str(folder / "dicom")

    def convert(*arguments: str) -> None:
        subprocess.run([plastimatch, "convert", *arguments], capture_output=True, check=True)

    convert("--input", f"{dicom}/RD.dcm", "--output-dose-img", str(tmp_path / "dose.mha"))
    convert("--input", f"{dicom}/RS.dcm", "--referenced-ct", dicom, "--output-prefix", str(tmp_path / "masks"), "--prefix-format", "mha")
    convert("--input", dicom, "--output-img", str(tmp_path / "ct.mha"))
    mine, patient = read_dose(folder / "run" / "dose.mha")[0], read_image(folder / "patient")
    image = sitk.ReadImage(str(tmp_path / "dose.mha"))
    assert image.GetSpacing() == pytest.approx(GRID.spacing) and image.GetOrigin() == pytest.approx(GRID.origin)
    np.testing.assert_allclose(sitk.GetArrayFromImage(image), mine.numpy(), atol=1e-5 * float(mine.max()))
    hu = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "ct.mha")))
    np.testing.assert_allclose(hu, patient.hu.numpy(), atol=0.016)  # half a step of 2^-5 HU
    for name, roi in patient.rois.items():
        theirs = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "masks" / f"{name}.mha")))
        assert (theirs.astype(bool) == roi.mask.numpy()).all(), name
