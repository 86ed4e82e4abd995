"""Sweeps: every combination planned once, whatever happens on the way; one table of what is there."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_case import INTERRUPTIBLE, command, write_tiny

from torchimpt.case.text import apply_overrides, values_of
from torchimpt.planning import build
from torchimpt.runs.sweep import members, parse_over, parse_shard, part_of, run_sweep

QUICK = ["--set", "optimizer.max_iterations=4", "--set", "dose.check_mm=off", "--threads", "1"]
WEIGHTS = ["--over", "objective.Target.min_dose.weight=50,100"]
FAST = ["optimizer.max_iterations=2", "dose.check_mm=off"]
FOLDERS = ["weight=100", "weight=50"]


def test_table_of_two_weights_and_a_wrong_one(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    arguments = ["sweep", "tiny.toml", "--out", "sw", *QUICK]
    found = command(*arguments, "--over", "objective.Target.min_dose.weight=50,100,-1", cwd=tmp_path)
    assert found.status == 3  # of four iterations none converges
    assert "weight=-1: tiny.toml: objective[0].weight must be" in found.out and "not converged" in found.out
    told = json.loads((tmp_path / "sw/sweep.json").read_text())
    assert told["over"] == ["objective.Target.min_dose.weight"]
    assert [row["status"] for row in told["members"]] == ["not converged", "not converged", "failed"]
    with (tmp_path / "sw/sweep.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["objective.Target.min_dose.weight"] for row in table] == ["50", "100", "-1"]
    metrics = {name: json.loads((tmp_path / "sw" / name / "metrics.json").read_text()) for name in FOLDERS}
    assert float(table[0]["objective"]) == metrics["weight=50"]["objective"]["final"] != metrics["weight=100"]["objective"]["final"]
    assert float(table[1]["Target d(95), worst"]) == metrics["weight=100"]["goals"][0]["worst"]
    # a member is the plan that `plan` makes, whose products sum in another order: float32, four iterations
    assert command("plan", "tiny.toml", "--out", "alone", *QUICK, "--set", "objective[0].weight=50", cwd=tmp_path).status == 3
    alone = json.loads((tmp_path / "alone/metrics.json").read_text())
    assert alone["objective"]["final"] == pytest.approx(metrics["weight=50"]["objective"]["final"], rel=1e-4)
    # what is finished stays; more values come in, a changed case does not
    before = (tmp_path / "sw/weight=50/metrics.json").stat().st_mtime_ns
    assert command(*arguments, "--over", "objective.Target.min_dose.weight=50,20", cwd=tmp_path).status == 3
    assert (tmp_path / "sw/weight=50/metrics.json").stat().st_mtime_ns == before and (tmp_path / "sw/weight=20/metrics.json").is_file()
    changed = command(*arguments, *WEIGHTS, "--set", "spots.spacing_mm=11", cwd=tmp_path)
    assert changed.status == 2 and "was planned from another case (spacing_mm = 9.0; now spacing_mm = 11" in changed.err
    other = command(*arguments, "--over", "seed=1,2", cwd=tmp_path)
    assert other.status == 2 and "sw is of another sweep, over objective.Target.min_dose.weight; choose another --out" in other.err


def test_members_of_one_geometry_share_their_matrices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built, scenario_doses = [], build.scenario_doses
    monkeypatch.setattr(build, "scenario_doses", lambda *a, **k: built.append(1) or scenario_doses(*a, **k))
    file = write_tiny(tmp_path)
    over = {"spots.spacing_mm": [12, 15], "objective.Target.min_dose.weight": [50, 100]}
    rows = run_sweep(file, tmp_path / "sw", over, overrides=FAST, threads=1)
    assert [row["name"] for row in rows] == [f"spacing_mm={s},weight={w}" for s in (12, 15) for w in (50, 100)]
    assert all(row["status"] == "not converged" for row in rows) and len(built) == 2


def test_shards_are_all_members_once(tmp_path: Path) -> None:
    file = write_tiny(tmp_path)
    over = {"objective.Target.min_dose.weight": [1, 2, 3], "robustness.range_percent": [2.5, 3.5]}
    every = members(file, [], over)
    names = [member.name for member in every]
    assert len(set(names)) == 6 and names[:3] == [f"weight={w},range_percent=2.5" for w in (1, 2, 3)]  # one geometry, then the other
    parts = [part_of(every, part, 4) for part in range(1, 5)]
    assert [len(part) for part in parts] == [1, 2, 1, 2] and [member for part in parts for member in part] == every
    rows = run_sweep(file, tmp_path / "sw", over, overrides=FAST, shard=(3, 4), threads=1)
    assert [row["status"] for row in rows] == ["open", "open", "open", "not converged", "open", "open"]


@pytest.mark.slow
def test_interrupt_and_going_on(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    long = ["--set", "optimizer.max_iterations=60", "--set", "optimizer.tolerance=1e-9", "--set", "dose.check_mm=off", "--threads", "1"]
    arguments = ["sweep", "tiny.toml", *WEIGHTS, *long, "--set", "optimizer.log_every=5"]
    assert command(*arguments, "--out", "whole", cwd=tmp_path).status in (0, 3)
    process = subprocess.Popen([sys.executable, "-c", INTERRUPTIBLE, *arguments, "--out", "sw"], cwd=tmp_path, stderr=subprocess.DEVNULL)
    while not all((tmp_path / "sw" / name / "checkpoint.pt").is_file() for name in FOLDERS):
        assert process.poll() is None, "ended before it could be interrupted"
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    told = json.loads((tmp_path / "sw/sweep.json").read_text())["members"]
    assert [row["status"] for row in told] == ["open", "open"]
    assert command(*arguments, "--out", "sw", cwd=tmp_path).status in (0, 3)
    for name in FOLDERS:  # bit for bit, as any interrupted run
        assert (tmp_path / "sw" / name / "plan.json").read_bytes() == (tmp_path / "whole" / name / "plan.json").read_bytes()


def test_member_that_breaks_does_not_end_the_sweep(tmp_path: Path) -> None:
    file = write_tiny(tmp_path)
    over = {"objective.Target.min_dose.weight": [50, 100], "delivery.min_mu": [1e9]}
    rows = run_sweep(file, tmp_path / "sw", over, overrides=FAST, threads=1)
    assert all("no spot reaches the minimum MU" in row["error"] for row in rows)
    # in lockstep with one that breaks the other goes on
    over = {"delivery.min_mu": [1e9, 0]}
    rows = run_sweep(file, tmp_path / "sw2", over, overrides=FAST, threads=1)
    assert [row["status"] for row in rows] == ["failed", "not converged"] and rows[1]["iterations"] == 2
    found = command("sweep", "tiny.toml", "--over", "delivery.min_mu=1e9", "--out", "sw3", *QUICK, cwd=tmp_path)
    assert found.status == 2 and "min_mu=1000000000.0: no spot reaches the minimum MU" in found.out


def test_hyperparameters_for_tensorboard(tmp_path: Path) -> None:
    file = write_tiny(tmp_path)
    run_sweep(file, tmp_path / "sw", {"objective.Target.min_dose.weight": [7]}, overrides=[*FAST, "output.tensorboard=true"], threads=1)
    events = EventAccumulator(str(tmp_path / "sw/weight=7/tensorboard")).Reload()
    assert "final/objective" in events.Tags()["scalars"] and "final/Target_d(95)" in events.Tags()["scalars"]
    start = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"objective.Target.min_dose.weight" in start


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--over", "seed"], "--over seed: write key=v1,v2,..."),
        (["--over", "seed="], "--over seed=: there is no value"),
        (["--over", "seed=1,2,1"], "--over seed=1,2,1: the value 1 is there twice"),
        (["--over", "seed=1", "--over", "seed=2"], "the key seed is there twice"),
        (["--over", "spots.spacin_mm=1,2"], "unknown key 'spots.spacin_mm' (did you mean 'spacing_mm'?)"),
        (["--over", "objective.Target.weight=1,2"], "2 entries of [[objective]] are about 'Target'; say which, by kind or number: objective.Target.min_dose"),
        (["--over", "objective.Tarket.weight=1,2"], "objective is a list of 3, counted from 0; it has no 'Tarket'"),
        (["--over", "seed=1,2", "--shard", "3/2"], "--shard 3/2: write i/n, part i of n, counted from 1"),
        (["--over", "seed=1,2", "--shard", "0/2"], "--shard 0/2: write i/n"),
        (["--over", "seed=1,2", "--shard", "half"], "--shard half: write i/n"),
        (["--over", 'title="a b","a_b"'], "two members of the sweep would share the folder title=a_b"),
        (["--over", f"seed={','.join(map(str, range(101)))}", "--over", f"spots.spacing_mm={','.join(map(str, range(1, 101)))}"], "10,100 members"),
    ],
)  # fmt: skip
def test_wrong_sweeps(tmp_path: Path, arguments: list[str], told: str) -> None:
    write_tiny(tmp_path)
    found = command("sweep", "tiny.toml", "--out", "sw", *arguments, cwd=tmp_path)
    assert found.status == 2 and told in found.err and found.err.count("\n") == 1
    assert not (tmp_path / "sw").exists()


def test_wrong_folders(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("precious")
    for out, told in (("mine", "mine is no sweep's folder, and not empty"), ("tiny.toml", "tiny.toml is a file")):
        found = command("sweep", "tiny.toml", "--over", "seed=1,2", "--out", out, cwd=tmp_path)
        assert found.status == 2 and told in found.err


def test_values() -> None:
    assert values_of("5,7.5") == [5, 7.5] and values_of("joint,alternating") == ["joint", "alternating"]
    assert values_of("[3, 3, 2.5],4") == [[3, 3, 2.5], 4] and values_of('"a,b",c') == ["a,b", "c"] and values_of("") == []
    assert parse_over(["patient.path=../pt_1, ../pt_2"]) == {"patient.path": ["../pt_1", "../pt_2"]}
    assert parse_shard(None) == (1, 1) and parse_shard("2/3") == (2, 3)


def test_overrides_by_roi() -> None:
    data = {
        "objective": [{"roi": "A", "kind": "min_dose"}, {"roi": "A", "kind": "max_dose"}, {"roi": "B.2", "kind": "max_dose"}, {"roi": "C"}]
    }
    apply_overrides(data, ["objective.A.max_dose.weight=3", "objective.C.weight=4", "objective[0].weight=5"])
    assert [entry.get("weight") for entry in data["objective"]] == [5, 3, None, 4]
