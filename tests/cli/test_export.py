"""`torchimpt export`, and `torchimpt compare` with a dose that came back.

MCsquare itself (the binary in opentps-core 2.0.0) has read and run such folders; the tests can't, and put this package's own dose in its
place, written as MCsquare would. With the machine of `shared/data/mc`, beams at gantry 0 and at gantry 75, couch 10, isocentre off the
middle: in water gamma 2 %/2 mm 99.98 %, integral 0.996, centroids within 0.02 mm (4 million protons, 1.3 % of noise); in the head-and-neck
phantom with an implant 99.3 % inside the body, integral 0.992, centroids 0.05, 0.42 (depth) and 0.06 mm off (2 million, 1.5 %).
"""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from tiny_case import command, write_tiny

from torchimpt.geometry import Grid
from torchimpt.io.image import read_dose, write_image
from torchimpt.io.plan import read_plan

MCSQUARE = ("--format", "mcsquare")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds `run`, the tiny case planned with an isocentre off the middle, on voxels of three sizes."""
    path = tmp_path_factory.mktemp("export")
    write_tiny(path)
    flags = ("dose.grid_mm=[8,9,10]", "beam.0.isocenter_mm=[9,-7,12]", "beam.1.isocenter_mm=[9,-7,12]", "robustness.range_percent=0")
    sets = [flag for override in flags for flag in ("--set", override)]
    assert command("plan", "tiny.toml", "--out", "run", *sets, cwd=path).status in (0, 3)
    return path


def refused(folder, *arguments) -> str:
    done = command(*arguments, cwd=folder)
    assert done.status == 2 and done.out == "" and len(done.err.splitlines()) == 1, done
    return done.err


def as_mcsquare(folder, factor: float = 1.0) -> str:
    """The run's dose, times a factor, as MCsquare would write it: eV/g per proton, physical, x and y reversed."""
    dose, grid = read_dose(folder / "run" / "dose.mha")
    protons = 1e6 * float(read_plan(folder / "run" / "plan.json").weight.detach().double().sum())
    values = factor * dose.double().numpy()[:, ::-1, ::-1] / (1.1 * 1.602176634e-16 * protons)
    values.astype("<f4").tofile(folder / "Dose.raw")
    size, spacing = (" ".join(map(str, v)) for v in (grid.shape[::-1], grid.spacing))
    (folder / "Dose.mhd").write_text(
        f"ObjectType = Image\nNDims = 3\nDimSize = {size}\nElementSpacing = {spacing}\nElementType = MET_FLOAT\n"
        "ElementByteOrderMSB = False\nElementDataFile = Dose.raw\n"
    )
    return "Dose.mhd"


def test_export_says_what_it_wrote(folder):
    done = command("export", "run", "--to", "for/mc", *MCSQUARE, cwd=folder)
    assert (done.status, done.err) == (0, "")
    spots = read_plan(folder / "run" / "plan.json")
    used = int((spots.weight > 0).sum())
    assert f"{used:,} spots" in done.out and "35 fractions" in done.out and "Next: run MCsquare in for/mc" in done.out
    names = {"BDL.txt", "CT.mhd", "CT.raw", "HU_Density_Conversion.txt", "HU_Material_Conversion.txt", "PlanPencil.txt", "README.txt"}
    assert {path.name for path in (folder / "for" / "mc").iterdir()} == {*names, "config.txt"}
    config = dict(line.split() for line in (folder / "for" / "mc" / "config.txt").read_text().splitlines() if line[0] != "#")
    assert all((folder / "for" / "mc" / value).is_file() for key, value in config.items() if key.endswith("_File"))
    # protons start upstream of every corner of the CT
    lines = (folder / "for" / "mc" / "BDL.txt").read_text().splitlines()
    assert float(lines[lines.index("Nozzle exit to Isocenter distance") + 1]) > 76.0
    assert "is not empty" in refused(folder, "export", "run", "--to", "for/mc", *MCSQUARE)


def test_formats(folder):
    text = refused(folder, "export", "run", "--to", "x", "--format", "mcsqare")
    assert "export format must be one of dicom, mcsquare, matrad, got 'mcsqare' (did you mean 'mcsquare'?)" in text
    assert not (folder / "x").exists()


def test_runs_and_folders_that_cannot_be(folder, tmp_path, full_disk):
    assert "no folder nowhere" in refused(folder, "export", "nowhere", "--to", "x", *MCSQUARE)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "case.toml").write_text((folder / "run" / "case.toml").read_text())
    text = refused(tmp_path, "export", "half", "--to", "x", *MCSQUARE)
    assert "half has no metrics.json, plan.json, dose.mha: it is no run folder, or its run did not finish" in text
    (tmp_path / "file").touch()
    assert "it is no folder" in refused(folder, "export", "run", "--to", str(tmp_path / "file"), *MCSQUARE)
    with full_disk(5000):
        assert "File too large" in refused(folder, "export", "run", "--to", str(tmp_path / "x"), *MCSQUARE)
    assert {path.name for path in tmp_path.iterdir()} == {"half", "file"}


def test_another_machine_than_the_plans_is_refused(folder, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("case.toml", "metrics.json", "dose.mha"):
        (run / name).write_bytes((folder / "run" / name).read_bytes())
    plan = json.loads((folder / "run" / "plan.json").read_text())
    (run / "plan.json").write_text(json.dumps({**plan, "machine_tables": "0" * 16}))
    assert "was made with other tables of machine 'generic'" in refused(tmp_path, "export", "run", "--to", "x", *MCSQUARE)


def test_the_runs_own_dose_comes_back(folder):
    """Through MCsquare's order, unit and scale, and as Gy; a tenth more shows as a tenth more."""
    dose, grid = read_dose(folder / "run" / "dose.mha")
    write_image(folder / "more.mha", 1.1 * dose, grid)
    done = command("compare", "run", as_mcsquare(folder), "more.mha", "--out", "page.html", cwd=folder)
    assert (done.status, done.err) == (0, "")
    rows = {line[:36].strip(): line[36:].split() for line in done.out.splitlines()}
    table = {key: value for key, value in rows.items() if key}
    labels = " ".join(table)
    assert "Target D95" in labels and "Difference, rms" in labels
    line = next(line for line in done.out.splitlines() if line.startswith(" Integral over the run's") or "Integral over" in line)
    assert line.split()[-2:] == ["1.0000", "1.1000"]
    rms = next(line for line in done.out.splitlines() if "Difference, rms" in line)
    assert re.findall(r"[\d.]+ Gy", rms)[0] == "0.00 Gy"
    d95 = re.findall(r"[\d.]+", next(line for line in done.out.splitlines() if "Target D95 " in line and "≥" not in line))[-3:]
    assert d95[0] == d95[1] and float(d95[2]) == pytest.approx(1.1 * float(d95[0]), abs=0.1)
    assert "Dose.mhd" in (folder / "page.html").read_text()


def test_what_few_protons_leave_is_told_apart(folder, generator):
    """Noise of each voxel's own with sigma proportional to sqrt(dose), as so many protons leave it: all of the difference is that."""
    dose, grid = read_dose(folder / "run" / "dose.mha")
    dose = dose.double()
    sigma = 0.1 * (dose * dose.max()).clamp_min(0.0).sqrt()
    write_image(folder / "few.mha", dose + sigma * torch.randn(dose.shape, dtype=torch.float64, generator=generator), grid)
    done = command("compare", "run", "few.mha", "--out", "page.html", cwd=folder)
    rms, noise = (float(re.search(rf"Difference, {what}.*?([\d.]+) Gy", done.out)[1]) for what in ("rms", "of it noise"))
    expected = float(sigma[dose > 0.1 * dose.max()].square().mean().sqrt())
    assert rms == pytest.approx(expected, rel=0.15)
    # the body is some ten voxels wide: a few hundred of them on each axis, and the largest of the three counts
    assert noise == pytest.approx(rms, rel=0.2)


def test_doses_that_do_not_belong_to_the_run(folder, tmp_path):
    dose, grid = read_dose(folder / "run" / "dose.mha")
    assert "is 10 times the run's dose" in refused(folder, "compare", "run", as_mcsquare(folder, 10.0))
    assert "in eV/g per proton" in refused(folder, "compare", "run", as_mcsquare(folder, 0.0))
    write_image(folder / "shifted.mha", dose, Grid(grid.shape, grid.spacing, (0.0, 0.0, 0.0)))
    assert "lies on another grid than the run's dose" in refused(folder, "compare", "run", "shifted.mha")
    write_image(folder / "small.mha", dose[1:], grid.__class__((grid.shape[0] - 1, *grid.shape[1:]), grid.spacing, grid.origin))
    assert "lies on another grid" in refused(folder, "compare", "run", "small.mha")
    np.full(dose.shape, np.nan, "<f4").tofile(folder / "Dose.raw")
    assert "NaN" in refused(folder, "compare", "run", "Dose.mhd")
    assert "name that one run folder, got 2" in refused(folder, "compare", "run", str(tmp_path), "small.mha")
    assert "name that one run folder, got 0" in refused(folder, "compare", "small.mha")
    assert "no file" in refused(folder, "compare", "run", "nothing.mhd")
    assert "two or more run folders, or one and doses of its plan" in refused(folder, "compare", "run")


def test_a_run_without_dose(folder, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("case.toml", "metrics.json", "dvh.csv", "plan.json"):
        (run / name).write_bytes((folder / "run" / name).read_bytes())
    dose, grid = read_dose(folder / "run" / "dose.mha")
    write_image(run / "dose.mha", 0.0 * dose, grid)
    write_image(tmp_path / "own.mha", dose, grid)
    assert "the dose of run 'run' is 0 everywhere" in refused(tmp_path, "compare", "run", "own.mha")


def test_a_mirrored_dose_would_show(folder):
    """The check can fail: the plan is not its own mirror image."""
    dose, grid = read_dose(folder / "run" / "dose.mha")
    for name, axis in (("z", 0), ("y", 1), ("x", 2)):
        write_image(folder / f"{name}.mha", torch.flip(dose, (axis,)), grid)
        done = command("compare", "run", f"{name}.mha", "--out", "page.html", cwd=folder)
        assert done.status == 2 or float(re.search(r"Difference, rms.*?([\d.]+) Gy", done.out)[1]) > 3.0
