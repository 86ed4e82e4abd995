"""Whole jobs through the command line, on a case of a second: what is written, that it reads back, that a rerun repeats it."""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_case import INTERRUPTIBLE, command, tiny, write_tiny

from torchimpt.case import load_case
from torchimpt.io.image import read_dose
from torchimpt.io.plan import read_plan, write_plan
from torchimpt.machine import generic
from torchimpt.runs.checkpoint import fingerprint

FILES = {
    "case.toml",
    "checkpoint.pt",
    "dose.mha",
    "dvh.csv",
    "history.jsonl",
    "log.txt",
    "metrics.json",
    "plan.json",
    "report.html",
    "run.json",
}


def metrics_of(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Holds `tiny.toml`, and the module's runs."""
    path = tmp_path_factory.mktemp("end_to_end")
    write_tiny(path)
    return path


@pytest.fixture(scope="module")
def run(folder) -> Path:
    """The tiny case planned, by the installed command in a process of its own."""
    program = Path(sys.executable).with_name("torchimpt")
    done = subprocess.run([program, "plan", "tiny.toml", "--out", "run", "--threads", "1"], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for text in ("Tiny", "D95 ≥ 47.5 Gy", "converged", "Hottest 1 cm3 outside the targets: ", "Report: run/report.html"):
        assert text in done.stdout
    return folder / "run"


def test_run_folder_holds_every_file(run):
    assert {path.name for path in run.iterdir()} == FILES
    log = (run / "log.txt").read_text()
    assert "spots in" in log and "iteration    0  objective" in log and "converged" in log
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == list(range(len(rows)))
    assert all(b["value"] <= a["value"] for a, b in itertools.pairwise(rows))
    about = json.loads((run / "run.json").read_text())
    assert (
        about["seed"] == 3 and torch.__version__.startswith(about["versions"]["torch"]) and about["command"][1:3] == ["plan", "tiny.toml"]
    )


def test_metrics_have_the_keys_of_the_interface(run):
    metrics = metrics_of(run)
    assert set(metrics) >= {
        "title", "converged", "stop_reason", "iterations", "evaluations", "objective", "spots", "scenarios", "worst", "goals", "delivery",
        "matrix", "time_s", "peak_memory_bytes", "device", "threads", "dtype",
    }  # fmt: skip
    assert metrics["title"] == "Tiny" and metrics["converged"] and metrics["device"] == "cpu" and metrics["dtype"] == "float32"
    objective = metrics["objective"]
    assert objective["final"] < 0.1 * objective["initial"]
    assert set(objective["terms"][0]) >= {"roi", "kind", "scenario", "value"}
    assert sum(term["value"] for term in objective["terms"]) == pytest.approx(objective["final"], rel=1e-5)
    names = ["nominal", "range-3.5%", "range+3.5%"]
    assert {term["scenario"] for term in objective["terms"]} == set(names)
    assert [scenario["name"] for scenario in metrics["scenarios"]] == names
    of_roi = {"voxels", "d95_gy", "d98_gy", "d2_gy", "mean_gy", "min_gy", "max_gy"}
    assert all(set(scenario["rois"]["Target"]) >= of_roi for scenario in metrics["scenarios"])
    worst = metrics["worst"]["Target"]
    assert set(worst) >= {"d95_gy", "d98_gy", "d2_gy", "max_gy"}
    assert worst["d95_gy"] == min(scenario["rois"]["Target"]["d95_gy"] for scenario in metrics["scenarios"])
    assert worst["max_gy"] == max(scenario["rois"]["Target"]["max_gy"] for scenario in metrics["scenarios"])
    assert [goal["passed"] for goal in metrics["goals"]] == [True, False]
    assert set(metrics["goals"][0]) >= {"roi", "metric", "nominal", "worst"}
    assert metrics["goals"][0]["nominal"] == pytest.approx(metrics["scenarios"][0]["rois"]["Target"]["d95_gy"])
    spots = metrics["spots"]
    assert 0 < spots["nonzero"] <= spots["count"] and spots["energy_layers"] >= 6 and spots["moved_mm"] == {"mean": 0.0, "max": 0.0}
    assert set(metrics["time_s"]) >= {"load", "dose", "optimize", "evaluate", "total"}
    matrix = metrics["matrix"]
    assert matrix["engine"] == "compressed" and matrix["bytes"] > 2 * matrix["nonzeros"] > 0 and 0 < matrix["discarded_fraction"] < 0.01
    assert metrics["delivery"]["mu"] > 0 and metrics["peak_memory_bytes"] > 1e7


def test_dose_file_and_dvh_agree_with_the_metrics(run):
    rois = metrics_of(run)["scenarios"][0]["rois"]
    dose, grid = read_dose(run / "dose.mha")
    assert dose.dtype == torch.float32 and grid.spacing == (8.0, 8.0, 8.0)
    assert float(dose.max()) == pytest.approx(rois["External"]["max_gy"], rel=1e-6)
    with (run / "dvh.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["scenario"] == "nominal" and row["roi"] == "Target"]
    above = [float(row["dose_gy"]) for row in rows if float(row["volume_percent"]) >= 95.0]
    assert max(above) == pytest.approx(rois["Target"]["d95_gy"], abs=0.2)


def test_plan_reads_back_bit_for_bit_and_gives_the_same_dose(run, folder):
    spots = read_plan(run / "plan.json")
    write_plan(folder / "again.json", spots, generic(), title="Tiny", fractions=35)
    assert (folder / "again.json").read_bytes() == (run / "plan.json").read_bytes()
    done = command("dose", "tiny.toml", "--plan", "run/plan.json", "--out", "forward", cwd=folder)
    assert (done.status, done.err) == (0, "")
    assert torch.equal(read_dose(folder / "forward" / "dose.mha")[0], read_dose(run / "dose.mha")[0])
    forward, planned = metrics_of(folder / "forward"), metrics_of(run)
    assert forward["scenarios"] == planned["scenarios"] and forward["goals"] == planned["goals"]
    assert "objective" not in forward and "converged" not in forward
    assert (folder / "forward" / "plan.json").read_bytes() == (run / "plan.json").read_bytes()


def test_plan_gives_its_dose_on_another_grid(run, folder):
    """The beams' isocentres, which the case leaves open, are the plan's: the target's centroid differs between the grids."""
    done = command("dose", "tiny.toml", "--plan", "run/plan.json", "--out", "finer", "--set", "dose.grid_mm=3", cwd=folder)
    assert (done.status, done.err) == (0, "")
    assert read_plan(folder / "finer" / "plan.json").beams == read_plan(run / "plan.json").beams
    coarse, fine = (metrics_of(path)["scenarios"][0]["rois"]["Target"] for path in (run, folder / "finer"))
    assert fine["voxels"] > 2 * coarse["voxels"] and fine["mean_gy"] == pytest.approx(coarse["mean_gy"], rel=0.05)


@pytest.mark.slow
def test_compiling_process_and_later_ones_plan_the_same_bits(folder):
    """numba optimizes what it saves once more than what it runs at once (see `numba_cpu.FAST`)."""
    program = Path(sys.executable).with_name("torchimpt")
    own_cache = {**os.environ, "NUMBA_CACHE_DIR": str(folder / "cache")}
    for name in ("compiling", "compiled"):
        subprocess.run(
            [program, "plan", "tiny.toml", "--out", name, "--threads", "1"], cwd=folder, env=own_cache, check=True, capture_output=True
        )
    assert (folder / "compiled" / "plan.json").read_bytes() == (folder / "compiling" / "plan.json").read_bytes()
    assert (folder / "compiled" / "dose.mha").read_bytes() == (folder / "compiling" / "dose.mha").read_bytes()


def test_spot_list_gives_the_dose_of_its_plan(run, folder):
    write_plan(folder / "spots.csv", read_plan(run / "plan.json"), generic())
    done = command("dose", "tiny.toml", "--plan", "spots.csv", "--out", "from_list", cwd=folder)
    assert (done.status, done.err) == (0, "")
    assert torch.equal(read_dose(folder / "from_list" / "dose.mha")[0], read_dose(run / "dose.mha")[0])


def test_evaluate_in_other_scenarios(run, folder):
    done = command("evaluate", "run", "--scenarios", "x+4mm,z-4mm/range+3.5%", cwd=folder)
    assert (done.status, done.err) == (0, "")
    found = metrics_of(run / "evaluation")["scenarios"]
    assert [scenario["name"] for scenario in found] == ["nominal", "x+4mm", "z-4mm/range+3.5%"]
    assert found[0] == metrics_of(run)["scenarios"][0]
    assert found[2]["rois"]["Target"]["d95_gy"] < found[0]["rois"]["Target"]["d95_gy"] - 1.0
    assert (run / "evaluation" / "report.html").is_file() and metrics_of(run)["converged"]
    planned = command("evaluate", "run", "--out", "same", cwd=folder)
    assert planned.status == 0 and metrics_of(folder / "same")["scenarios"] == metrics_of(run)["scenarios"]


def test_dose_with_the_hu_table_of_a_file(run, folder):
    """The report names the table; one that is no table is refused in a line."""
    arguments = "dose", "tiny.toml", "--plan", "run/plan.json", "--set", "machine.hu_table=clinic.hlut", "--out"
    (folder / "clinic.hlut").write_text("# HU RSP\n-1000 0.001\n0 1.0\n3000 2.4\n")
    assert command(*arguments, "hlut", cwd=folder).status == 0
    page = (folder / "hlut" / "report.html").read_text(encoding="utf-8")
    assert f"from the HU table {folder / 'clinic.hlut'}:" in page and 'id="hu-data"' in page
    (folder / "clinic.hlut").write_text("-1000 0.1\n0 100\n")
    refused = command(*arguments, "percent", cwd=folder)
    assert refused.status == 2 and refused.err.count("\n") == 1 and "gives water (0 HU) a relative stopping power of 100" in refused.err


def test_one_seed_gives_one_plan(run, folder):
    # here in another process, which has planned before; float32 sums depend on the number of threads, and on nothing else
    assert command("plan", "tiny.toml", "--out", "twin", "--threads", "1", cwd=folder).status == 0
    for name in ("case.toml", "plan.json", "dvh.csv"):
        assert (folder / "twin" / name).read_bytes() == (run / name).read_bytes(), name
    assert torch.equal(read_dose(folder / "twin" / "dose.mha")[0], read_dose(run / "dose.mha")[0])
    ours, theirs = metrics_of(run), metrics_of(folder / "twin")
    for metrics in (ours, theirs):
        for name in ("time_s", "peak_memory_bytes", "threads"):
            del metrics[name]
        for step in metrics["steps"]:
            del step["seconds"]
    assert ours == theirs


def test_out_of_iterations_is_3_with_every_file_written(run, folder):
    options = ("--set", "optimizer.max_iterations=4", "--set", "output.tensorboard=true")
    (folder / "short").mkdir()
    (folder / "short" / "history.jsonl").write_text('{"iteration": 9, "value": 1.0}\n')  # of an earlier run, longer than this one
    done = command("plan", "tiny.toml", "--out", "short", *options, cwd=folder)
    assert done.status == 3 and done.err == "" and "raise max_iterations" in done.out
    assert {path.name for path in (folder / "short").iterdir()} == FILES | {"tensorboard"}
    metrics = metrics_of(folder / "short")
    assert not metrics["converged"] and metrics["iterations"] == 4 and "max_iterations" in metrics["stop_reason"]
    assert list((folder / "short" / "tensorboard").glob("events*"))
    assert len((folder / "short" / "history.jsonl").read_text().splitlines()) == 5
    done = command("compare", "run", "short", "--out", "page.html", cwd=folder)
    assert (done.status, done.err) == (0, "")
    assert "run" in done.out and "short" in done.out and "Target" in done.out and (folder / "page.html").stat().st_size > 10_000


def test_scenario_doses_on_request(folder):
    case = ("--set", "output.scenarios_dose=true", "--set", "optimizer.max_iterations=2", "--dtype", "float64", "--verbose")
    done = command("plan", "tiny.toml", "--out", "doses", *case, cwd=folder)
    assert done.status == 3 and "iteration    0  objective" in done.err
    files = {path.name for path in (folder / "doses").glob("dose*.mha")}
    assert files == {"dose.mha", "dose_range-3.5.mha", "dose_range+3.5.mha"}
    metrics = metrics_of(folder / "doses")
    assert metrics["dtype"] == "float64"
    for scenario, name in zip(metrics["scenarios"], ("dose.mha", "dose_range-3.5.mha", "dose_range+3.5.mha"), strict=True):
        dose, _ = read_dose(folder / "doses" / name)
        assert dose.dtype == torch.float64 and float(dose.max()) == pytest.approx(scenario["rois"]["External"]["max_gy"], rel=1e-12)


@pytest.mark.slow
def test_a_new_case_plans(tmp_path):
    assert command("new", "first", cwd=tmp_path).status == 0
    small = ("dose.grid_mm=9", "spots.spacing_mm=16", "spots.layer_spacing=20", "robustness.setup_mm=0", "optimizer.max_iterations=3")
    done = command("plan", "first.toml", "--out", "run", "--quiet", *(f for s in small for f in ("--set", s)), cwd=tmp_path)
    assert (done.status, done.err) == (3, "")
    assert metrics_of(tmp_path / "run")["title"] == "first"


MOVING = ("dose.grid_mm=10", "spots.spacing_mm=16", "optimizer.max_iterations=8", "joint.warm_iterations=4", "joint.box_mm=6")


def sets(*overrides):
    return [flag for override in overrides for flag in ("--set", override)]


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("joint.spots=30", "joint.merge_mm=9", "delivery.min_mu=0.3", "delivery.min_layer_share=0.02")])
def test_plan_of_moving_spots_reads_back_bit_for_bit_and_gives_the_same_dose(tmp_path, options):
    write_tiny(tmp_path)
    done = command("plan", "tiny.toml", "--out", "run", *sets(*MOVING, *options), cwd=tmp_path)
    assert done.status in (0, 3) and done.err == "" and "spots placed" in done.out and "they moved" in done.out
    spots, metrics = read_plan(tmp_path / "run" / "plan.json"), metrics_of(tmp_path / "run")
    write_plan(tmp_path / "again.json", spots, generic(), title="Tiny", fractions=35)
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "run" / "plan.json").read_bytes()
    assert spots.n_spots == metrics["spots"]["count"] == metrics["steps"][-1]["spots"] <= metrics["spots"]["placed"]
    assert metrics["spots"]["moved_mm"]["max"] > 0.5 and metrics["steps"][-1]["objective"] == metrics["objective"]["final"]
    done = command("dose", "tiny.toml", "--plan", "run/plan.json", "--out", "forward", *sets(*MOVING, *options), cwd=tmp_path)
    assert (done.status, done.err) == (0, "")
    assert torch.equal(read_dose(tmp_path / "forward" / "dose.mha")[0], read_dose(tmp_path / "run" / "dose.mha")[0])
    forward = metrics_of(tmp_path / "forward")
    assert forward["scenarios"] == metrics["scenarios"] and forward["goals"] == metrics["goals"]
    assert forward["delivery"] == metrics["delivery"] and metrics["delivery"]["seconds"] > 0
    assert forward["spots"]["nonzero"] == metrics["spots"]["nonzero"]
    assert (tmp_path / "forward" / "plan.json").read_bytes() == (tmp_path / "run" / "plan.json").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "rows"),
    [
        pytest.param((), 12, id="weights"),
        pytest.param((*MOVING, "joint.spots=40"), 60, id="joint"),
        pytest.param((*MOVING, "joint.scheme=alternating", "joint.weight_iterations=3"), 30, id="alternating"),
    ],
)
def test_interrupt_and_resume_give_the_uninterrupted_plan(tmp_path, scheme, rows):
    write_tiny(tmp_path)
    limits = sets("optimizer.max_iterations=1000000", "optimizer.tolerance=1e-30")
    endless = [*sets(*scheme), *limits, "--dtype", "float64", "--threads", "1"]
    child = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, "plan", "tiny.toml", "--out", "run", *endless],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    history = tmp_path / "run" / "history.jsonl"
    deadline = time.monotonic() + 120
    while not (history.is_file() and len(history.read_bytes().splitlines()) > rows) and child.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=120)
    assert (child.returncode, out, err) == (130, "", "torchimpt: interrupted\n")
    assert (tmp_path / "run" / "checkpoint.pt").is_file() and not (tmp_path / "run" / "metrics.json").exists()
    saved = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    reached = saved["last"]
    assert reached >= rows - 1  # an interrupt between the two leaves the history a row ahead
    with history.open("a") as file:  # as after a kill: an iteration past the checkpoint, and half a line
        file.write(f'{{"iteration": {reached + 1}, "value": 0.0}}\n{{"iteration": {reached + 2}, "val')

    to_go = [*endless, "--set", f"optimizer.max_iterations={reached + 10}", "--set", "optimizer.tolerance=1e-30"]
    resumed = command("plan", "tiny.toml", "--out", "run", "--resume", *to_go, cwd=tmp_path)
    straight = command("plan", "tiny.toml", "--out", "straight", *to_go, cwd=tmp_path)
    assert (resumed.status, straight.status) == (3, 3)
    for name in ("plan.json", "dvh.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes(), name
    found, expected = (
        [
            {k: v for k, v in json.loads(line).items() if k != "seconds"}
            for line in (tmp_path / r / "history.jsonl").read_text().splitlines()
        ]
        for r in ("run", "straight")
    )
    assert str(found) == str(expected)  # as text, because the beta of a quasi-Newton step is NaN
    assert metrics_of(tmp_path / "run")["evaluations"] == metrics_of(tmp_path / "straight")["evaluations"]


def test_case_of_a_run_is_the_case(run, folder):
    assert fingerprint(load_case(run)) == fingerprint(load_case(folder / "tiny.toml"))


def test_fingerprint_ignores_limits_and_nothing_else(tmp_path):
    key = fingerprint(tiny(tmp_path))
    for same in ("title=x", "optimizer.max_iterations=7", "optimizer.tolerance=0.2", "output.tensorboard=true", "goal=[]"):
        assert fingerprint(tiny(tmp_path, same)) == key, same
    for other in ("seed=4", "dose.dtype=float64", "dose.engine=matrix_free", "objective[0].weight=101", "optimizer.method=lbfgs"):
        assert fingerprint(tiny(tmp_path, other)) != key, other


@pytest.mark.parametrize("pattern", [r"<script[^>]+src=", r"<link[^>]+href=", r"url\(http", r"<img[^>]+src=.http"])
def test_report_is_self_contained(run, pattern):
    assert not re.search(pattern, (run / "report.html").read_text())
