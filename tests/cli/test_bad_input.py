"""Bad input: one line on stderr that says what and where, exit status 2, and no `metrics.json`."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from functools import partial

import pytest
import torch
from tiny_case import command, write_images, write_tiny

from torchimpt.dose import influence
from torchimpt.dose.operator import DoseOperator
from torchimpt.dose.pencil_beam import entries
from torchimpt.io.plan import read_plan
from torchimpt.memory import check_memory


@pytest.fixture
def refused(tmp_path):
    """Plan `tiny.toml` with overrides and check that it is refused in one line, after `warned` lines of warnings; returns the line."""

    def call(*overrides, arguments=("plan", "tiny.toml", "--out", "run"), warned=0):
        flags = [flag for override in overrides for flag in ("--set", override)]
        done = command(*arguments, *flags, cwd=tmp_path)
        assert done.status == 2 and done.out == "", done
        lines = done.err.splitlines()
        assert len(lines) == 1 + warned and all(line.startswith("torchimpt: ") for line in lines), done.err
        assert not (tmp_path / "run" / "metrics.json").exists()
        return lines[-1]

    write_tiny(tmp_path)
    return call


@pytest.fixture
def images(tmp_path):
    """`write_images` into `ct`."""
    return partial(write_images, tmp_path / "ct")


IMAGE = ("patient={source='image', path='ct'}", "dose.grid_mm=10", "objective[2].roi=Target")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["patient={source='openkbp', path='pt_109'}"], r"tiny\.toml: patient\.path: no such file or folder: .*pt_109"),
        (["patient={source='phantom', name='watr'}"], r"watr.*did you mean 'water'"),
        (["dose.cutof_sigma=3"], r"tiny\.toml: unknown key 'dose\.cutof_sigma' \(did you mean 'cutoff_sigma'\?\); allowed in \[dose\]: grid_mm"),
        (["spots.target=Targt"], r"tiny\.toml: spots\.target: the patient has no ROI 'Targt' \(did you mean 'Target'\?\); it has External, Target"),
        (["objective[1].roi=Heart"], r"objective\[1\]\.roi: the patient has no ROI 'Heart'.*; it has External, Target"),
        (["goal[0].roi=Heart"], r"goal\[0\]\.roi: the patient has no ROI 'Heart'"),
        (["beam[1].isocenter_mm=[0,0,900]"], r"beam 1 .*misses the target.*isocenter"),
        (["spots.spacing_mm=0"], r"spots\.spacing_mm must be greater than 0, got 0"),
        (["spots.spacing_mm=-5"], r"spots\.spacing_mm must be greater than 0, got -5"),
        (["dose.grid_mm=-3"], r"dose\.grid_mm: must be positive, mm, got -3"),
        (["dose.grid_mm=0"], r"dose\.grid_mm: must be positive"),
        (["spots.layer_spacing=0"], r"'bragg80' or a positive number"),
        (["spots.margin_mm=-1"], r"spots\.margin_mm"),
        (["dose.grid_mm=0.05"], r"a grid of 0\.05 x 0\.05 x 0\.05 mm has 2\.7e\+10 voxels, at most 1e\+08 .*use a spacing \(grid_mm\) 6\.8 times as large"),
        (["objective=[]"], r"tiny\.toml: planning needs .*; missing: \[\[objective\]\]"),
        (["beam=[]"], r"missing: \[\[beam\]\]"),
        (["objective[0].dose_gy=nan"], r"objective\[0\]\.dose_gy"),
        (["beam[0].range_shifter_mm=-30"], r"beam\[0\]\.range_shifter_mm: must be 'auto' or 0 to 400 mm of water, got -30"),
        (["beam[0].range_shifter_mm=390"], r"beam 0 .*: a range shifter of 390 mm of water stops all protons of machine 'generic', whose deepest peak"),
        (["beam[0].range_shifter_mm=300"], r"beam 0 .*the deepest layer needs its peak at .* behind 300 mm of range shifter reaches .*a thinner range"),
        (["beam[0].range_shifter_mm=30", "beam[0].range_shifter_distance_mm=70"], r"beam 0 .*, 70 mm from the isocentre, lies inside the body, which reaches 7\d mm upstream; give range_shifter_distance_mm = 7\d or more"),
        (["joint.bx_mm=5"], r"unknown key 'joint\.bx_mm' \(did you mean 'box_mm'\?\); allowed in \[joint\]: scheme"),
        (["joint.box_mm=-1"], r"joint\.box_mm must be greater than or equal to 0, got -1"),
        (["joint.start=plan.json"], r"joint\.start: no such file or folder: .*plan\.json"),
        (["joint.start=tiny.toml"], r"tiny\.toml: a plan must be plan\.json, a \.csv spot list, a DICOM RT Ion Plan or a \.mat file"),
        (["machine={format='bdl', path='.'}"], "machine: format = 'bdl' needs curves"),
        (["patient={source='dicom', path='.'}"], r"has no CT slice \(CT Image Storage\); it has no DICOM file"),
    ],
)  # fmt: skip
def test_wrong_case(refused, overrides, message):
    assert re.search(message, refused(*overrides))


def test_missing_files(refused):
    assert "no case file at tny.toml (did you mean 'tiny.toml'?)" in refused(arguments=("plan", "tny.toml", "--out", "run"))
    line = refused(arguments=("dose", "tiny.toml", "--plan", "plan.json", "--out", "run"))
    assert "plan: no file plan.json" in line
    line = refused(arguments=("plan", "tiny.toml", "--out", "run", "--resume"))
    assert "no checkpoint at run/checkpoint.pt to resume from; start without --resume" in line


COARSE = ("dose.grid_mm=10", "spots.spacing_mm=18", "optimizer.max_iterations=3", "dose.engine=matrix_free")


@pytest.mark.parametrize("joint", [(), ("joint.warm_iterations=2",)], ids=["fixed", "moving"])
def test_minimum_mu_that_no_spot_reaches(refused, joint):
    line = refused(*COARSE, *joint, "delivery.min_mu=1e6")
    assert re.search(r"no spot reaches the minimum MU: the heaviest of \d+ has [\d.e-]+ of what must stay; lower delivery\.min_mu", line)


def test_start_of_other_beams(refused, tmp_path):
    few = [flag for override in COARSE for flag in ("--set", override)]
    assert command("plan", "tiny.toml", "--out", "first", *few, cwd=tmp_path).status in (0, 3)
    assert "was planned with other beams than the case's" in refused("joint.start=first/plan.json", "beam[0].gantry_deg=5")


@pytest.mark.slow
def test_resumed_from_another_start(refused, tmp_path):
    few = [flag for override in (*COARSE, "optimizer.log_every=1") for flag in ("--set", override)]
    assert command("plan", "tiny.toml", "--out", "first", *few, cwd=tmp_path).status in (0, 3)
    shutil.copy(tmp_path / "first" / "plan.json", tmp_path / "start.json")
    begin = ("plan", "tiny.toml", "--out", "run", *few, "--set", "joint.start=start.json", "--set", "joint.warm_iterations=1")
    assert command(*begin, cwd=tmp_path).status in (0, 3)
    assert command("plan", "tiny.toml", "--out", "second", *few, "--set", "spots.jitter_mm=1", cwd=tmp_path).status in (0, 3)
    shutil.copy(tmp_path / "second" / "plan.json", tmp_path / "start.json")
    before = (tmp_path / "run" / "metrics.json").read_bytes()
    done = command(*begin, "--resume", cwd=tmp_path)
    assert done.status == 2 and done.err.count("\n") == 1
    assert "run/checkpoint.pt started from other spots than the case's now; has joint.start changed?" in done.err
    assert (tmp_path / "run" / "metrics.json").read_bytes() == before  # what was found then is still there


@pytest.mark.parametrize("after", [0, 30])
def test_nan_in_a_gradient_is_told_in_whole_files(tmp_path, monkeypatch, after):
    """Not refused: what was found until then is written, exit status 3, and the reason stands in `metrics.json`."""
    calls, gradient = [], DoseOperator.gradient

    def broken(self, *arguments, **options):
        partials = gradient(self, *arguments, **options)
        calls.append(0)
        if partials.position is not None and len(calls) > after:
            partials = partials._replace(position=partials.position * float("nan"))
        return partials

    monkeypatch.setattr(DoseOperator, "gradient", broken)
    write_tiny(tmp_path)
    flags = [flag for override in (*COARSE, "optimizer.max_iterations=20", "joint.warm_iterations=2") for flag in ("--set", override)]
    done = command("plan", "tiny.toml", "--out", "run", *flags, cwd=tmp_path)
    assert (done.status, done.err) == (3, "") and "the objective or its gradient is NaN or infinite" in done.out
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(), parse_constant=lambda text: pytest.fail(text))
    assert not metrics["converged"] and metrics["stop_reason"].startswith("the objective or its gradient is NaN")
    assert [step["step"] for step in metrics["steps"]] == ["weights, before moving", "joint"]
    assert metrics["objective"]["final"] is not None and metrics["scenarios"][0]["rois"]["Target"]["max_gy"] > 1
    assert bool(torch.isfinite(read_plan(tmp_path / "run" / "plan.json").position).all())


def test_ct_without_a_finite_number(refused, images):
    hu = torch.zeros((12, 12, 12))
    hu[3, 4, 5] = float("nan")
    images(hu=hu)
    assert "has 1 voxels that are NaN or infinite" in refused(*IMAGE)


def test_absurd_ct_numbers(refused, images):
    images(hu=torch.full((12, 12, 12), 60000.0))
    assert "60000, which are no Hounsfield units" in refused(*IMAGE, warned=1)


def test_empty_target(refused, images):
    images(target=torch.zeros((12, 12, 12), dtype=torch.bool))
    assert "Target.mha is 0 everywhere, so the ROI is empty" in refused(*IMAGE)


def test_target_lost_on_the_dose_grid(refused, images):
    target = torch.zeros((12, 12, 12), dtype=torch.bool)
    target[5, 5, 5] = True
    images(target=target)
    line = refused(*IMAGE, "dose.grid_mm=40", warned=1)
    assert (
        "spots.target: ROI 'Target' (1 cm3) fills no voxel of the dose grid, 40 x 40 x 40 mm, by half; use a finer dose.grid_mm, or leave it out"
        in line
    )


@pytest.mark.parametrize(
    "row",
    ["goal=[{roi='Organ', metric='d(2)', max=54}]", "objective=[{roi='Organ', kind='max_dose', dose_gy=54}]"],
    ids=["goal", "objective"],
)
def test_organ_lost_on_the_dose_grid_is_refused_before_the_optimization(refused, images, tmp_path, row):
    """A goal's was missed by the table of goals only, after the optimization, and nothing was written."""
    organ = torch.zeros((12, 12, 12), dtype=torch.bool)
    organ[5, 5, 5] = True
    images(organ=organ)
    line = refused(*IMAGE, "dose.grid_mm=15", row, warned=2)
    assert (
        "[0].roi: ROI 'Organ' (1 cm3) fills no voxel of the dose grid, 15 x 15 x 15 mm, by half; use a finer dose.grid_mm, or leave it out"
        in line
    )
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_a_conformity_index_without_a_prescription_is_refused_before_the_optimization(refused, tmp_path):
    line = refused("goal=[{roi='External', metric='ci', min=0.5}]")
    assert "goal[0].metric: 'ci' of 'External' needs its prescription; give it an [[objective]] of kind min_dose, min_dvh, uniform" in line
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_target_outside_the_body(refused, images):
    target = torch.zeros((12, 12, 12), dtype=torch.bool)
    target[0, 5:7, 5:7] = True
    images(target=target)
    assert "lies outside the body (ROI 'External'); check the contours" in refused(*IMAGE, warned=1)


def test_setup_errors_larger_than_the_patient(refused, images, tmp_path):
    """Of 80 mm: when planning on one set or another, and where a plan is given."""
    images(size=(8, 8, 8), target=torch.nn.functional.pad(torch.ones(2, 2, 2, dtype=torch.bool), (3, 3) * 3))
    message = "shifts the patient by -85 mm along x, where the dose grid is 80 mm long: nothing would be where it was; give a smaller setup"
    for more in ("seed=1", "robustness.set=grid21"):
        assert message in refused(*IMAGE, "robustness.setup_mm=85", more)
    (tmp_path / "spots.csv").write_text("beam,energy_mev,x_mm,y_mm,weight\n0,100,0,0,1\n")
    assert message in refused(*IMAGE, "robustness.setup_mm=85", arguments=("dose", "tiny.toml", "--plan", "spots.csv", "--out", "run"))


def test_target_deeper_than_the_highest_energy_reaches(refused, images):
    target = torch.zeros((8, 8, 60), dtype=torch.bool)
    target[2:6, 2:6, 10:14] = True
    images(size=(8, 8, 60), target=target)
    line = refused(*IMAGE, "beam[0].gantry_deg=90", "beam[1].gantry_deg=90", "beam[1].couch_deg=0")
    assert re.search(
        r"beam 0 .*needs its peak at 5\d\d\.\d mm of water .* reaches 3\d\d\.\d mm at its highest energy, \d+ MeV; choose a beam", line
    )


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ("1e12", r"the dose in the scenario nominal reaches .*e\+\d+ Gy; check the weights, which are in 10\^6 protons"),
        ("3e38", "NaN or infinite|reaches"),
    ],
)
def test_a_spot_list_in_other_units(refused, tmp_path, weight, message):
    (tmp_path / "spots.csv").write_text(f"beam,energy_mev,x_mm,y_mm,weight\n0,120,0,0,{weight}\n1,120,0,0,{weight}\n")
    assert re.search(message, refused(arguments=("dose", "tiny.toml", "--plan", "spots.csv", "--out", "run")))


def test_a_plan_for_another_machines_energies(refused, tmp_path):
    (tmp_path / "spots.csv").write_text("beam,energy_mev,x_mm,y_mm,weight\n0,120,0,0,1\n1,250,0,0,1\n")
    line = refused(arguments=("dose", "tiny.toml", "--plan", "spots.csv", "--out", "run"))
    assert re.search(r"energy layer 0 of 250 MeV is beyond machine 'generic', which has 70 to 240 MeV .*; take the machine that the", line)


def test_spot_lists_without_a_usable_spot(refused, tmp_path):
    spots = tmp_path / "spots.csv"
    arguments = ("dose", "tiny.toml", "--plan", "spots.csv", "--out", "run")
    head = "beam,energy_mev,x_mm,y_mm,weight\n"
    for rows, message in (
        ("", r"spots\.csv"),
        ("0,120,0,0,-1\n", "weights must not be negative"),
        ("0,120,nan,0,1\n", r"spots\.csv.*(NaN|nan)"),
        ("5,120,0,0,1\n", "names beam 5, but the case has 2"),
        ("0,400,0,0,1\n", "400"),
    ):
        spots.write_text(head + rows)
        assert re.search(message, refused(arguments=arguments)), rows


def test_damaged_plan(refused, tmp_path):
    (tmp_path / "plan.json").write_text('{"format": "torchimpt plan 1", "beams": [')
    assert "is not JSON, it may be cut off" in refused(arguments=("dose", "tiny.toml", "--plan", "plan.json", "--out", "run"))


def test_matrices_that_would_not_fit_are_refused_before_they_are_made(refused, monkeypatch, tmp_path):
    monkeypatch.setattr(influence, "check_memory", lambda what, size, *rest: check_memory(what, 1e6 * size, *rest))
    monkeypatch.delattr(entries, "rows")
    line = refused(arguments=("plan", "tiny.toml", "--out", "r", "--set", "dose.engine=matrix"))
    assert re.search(
        r"\(3 scenarios, [\d.e+]+ entries\) would take \d+\.\d GB, \d+\.\d GB are free; use \[dose\] engine = \"matrix_free\"", line
    )
    advised = ("--set", "dose.engine=matrix_free", "--set", "optimizer.max_iterations=1")
    assert command("plan", "tiny.toml", "--out", "r", *advised, cwd=tmp_path).status == 3


def test_run_folder_that_cannot_be_made(refused, tmp_path):
    (tmp_path / "file").write_text("")
    for out in ("file", "file/run"):
        assert f"{out}" in refused(arguments=("plan", "tiny.toml", "--out", out))
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.slow
def test_checkpoints_that_do_not_fit(refused, tmp_path):
    limit = ("--set", "optimizer.max_iterations=2", "--set", "optimizer.log_every=1")
    assert command("plan", "tiny.toml", "--out", "run", *limit, cwd=tmp_path).status == 3
    (tmp_path / "run" / "metrics.json").unlink()
    resume = ("plan", "tiny.toml", "--out", "run", "--resume")
    assert "belongs to another case" in refused("spots.spacing_mm=12", arguments=resume)
    assert "belongs to another case" in refused("optimizer.method=lbfgs", arguments=resume)
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    whole = checkpoint.read_bytes()
    for damaged in (b"", b"not a checkpoint", whole[: len(whole) // 2]):
        checkpoint.write_bytes(damaged)
        assert "is no readable checkpoint" in refused(arguments=resume)
    checkpoint.write_bytes(whole)
    assert command(*resume, *limit, cwd=tmp_path).status == 3


LIMITED = (
    "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0})); import sys; sys.dont_write_bytecode = True; "
    "from torchimpt.cli.app import main; main()"
)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Compiled code is in its cache, so that only the run's own files are written."""
    folder = tmp_path_factory.mktemp("compiled")
    write_tiny(folder)
    assert command("plan", "tiny.toml", "--out", "run", "--set", "optimizer.max_iterations=1", "--quiet", cwd=folder).status == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "logged"),
    [
        pytest.param(300, 0, id="case"),
        pytest.param(4000, 5000, id="log"),
        pytest.param(4000, 0, id="checkpoint"),
        pytest.param(30_000, 0, id="dvh"),
        pytest.param(200_000, 0, id="report"),
    ],
)
def test_full_disk(compiled, tmp_path, size, logged):
    """A limit on the size of files stands for a full disk; the id says what fails for it, `logged` how much an earlier run's log has."""
    write_tiny(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.txt").write_text("." * logged)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED.format(size), "plan", "tiny.toml", "--out", "run", "--set", "output.tensorboard=true"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, ""), done
    assert re.fullmatch(r"torchimpt: cannot (write|finish the run in) run.*File too large; .*\n", done.stderr)
    assert not (tmp_path / "run" / "metrics.json").exists() and not list((tmp_path / "run").glob(".partial*"))
