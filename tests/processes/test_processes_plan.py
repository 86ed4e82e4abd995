"""The commands in several processes: the plan of one, to the last bit; one writes and tells, and what goes wrong ends all of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from crew import crew, free_port, torchimpt
from tiny_case import Outcome, command, write_tiny

SHORT = ["--set", "optimizer.max_iterations=12", "--set", "optimizer.log_every=2", "--set", "dose.check_mm=off", "--threads", "1"]
SAMPLED = [
    "--set",
    "output.tensorboard=true",
    "--set",
    'objective.2.kind="max_dose"',
    "--set",
    "objective.2.dose_gy=40",
    "--set",
    "optimizer.sample_above=50",
]
MOVING = ["--set", "joint.scheme=joint", "--set", "joint.warm_iterations=3", "--set", "optimizer.max_iterations=6"]
LETD_TERM = 'objective.2={roi="External", kind="max_dose", quantity="letd_dose", letd_dose_gy_kev_um=100.0}'
LETD = ["--set", LETD_TERM, "--set", "robustness.mode=objectivewise", "--set", "optimizer.max_iterations=6"]
MEAN = 'objective.2={roi="External", kind="mean_dose", dose_gy=3.0, constraint=true, mode="nominal"}'
HELD = ["--set", "objective.1.constraint=true", "--set", "objective.1.dose_gy=51", "--set", MEAN, "--set", "optimizer.max_iterations=60"]
VOXELWISE = ["--set", "robustness.mode=voxelwise", "--set", "dose.engine=matrix_free", "--set", "output.scenarios_dose=true"]


def same_files(one: Path, other: Path) -> None:
    """What a run leaves is the same, bit for bit."""
    images = {path.name for path in one.glob("*.mha")}
    assert images == {path.name for path in other.glob("*.mha")}
    for name in ("plan.json", "dvh.csv", *images):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    told, again = (json.loads((folder / "metrics.json").read_text()) for folder in (one, other))
    for name in ("objective", "stop_reason", "iterations", "evaluations", "goals", "scenarios", "hottest_outside_targets"):
        assert told[name] == again[name], name
    assert told.get("constraints") == again.get("constraints")
    assert told["matrix"]["nonzeros"] == again["matrix"]["nonzeros"]
    rows, others = ([json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()] for folder in (one, other))
    assert [row["terms"] for row in rows] == [row["terms"] for row in others]


def in_both(folder: Path, size: int, *arguments: str) -> list[Outcome]:
    """Plan the tiny case in one process and in several, and hold the folders against each other."""
    write_tiny(folder)
    assert command("plan", "tiny.toml", "--out", "one", *arguments, cwd=folder).status in (0, 3)
    found = [Outcome(*one) for one in crew(size, torchimpt, folder, "plan", "tiny.toml", "--out", "many", *arguments)]
    same_files(folder / "one", folder / "many")
    return found


def test_weights_of_three_processes(tmp_path: Path) -> None:
    found = in_both(tmp_path, 3, *SHORT)
    assert found[0].status == 3 and "Report: many/report.html" in found[0].out  # out of iterations
    assert all(one == (0, "", "") for one in found[1:])
    told = json.loads((tmp_path / "many/metrics.json").read_text())["processes"]
    assert told["count"] == 3 and len(told["matrix_bytes"]) == 3 and min(told["matrix_bytes"]) > 0
    # doses stay where they are: no process exchanges as much in an iteration as one scenario's matrix has
    assert max(told["exchanged_bytes"]) / 12 < min(told["matrix_bytes"])


def test_moving_spots_of_two_processes(tmp_path: Path) -> None:
    in_both(tmp_path, 2, *SHORT, *MOVING)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [SAMPLED, LETD, VOXELWISE, [*MOVING, *VOXELWISE], HELD],
    ids=["sampled", "letd", "voxelwise", "voxelwise, moving", "constraints"],
)
@pytest.mark.parametrize("size", [2, 3])
def test_all_kinds_of_plans(tmp_path: Path, size: int, more: list[str]) -> None:
    in_both(tmp_path, size, *SHORT, *more)


@pytest.mark.slow
def test_checkpoint_goes_on_in_other_numbers_of_processes(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    plan = ["plan", "tiny.toml", *SHORT]
    longer = ["--set", "optimizer.max_iterations=30"]
    assert command(*plan, *longer, "--out", "whole", cwd=tmp_path).status in (0, 3)
    whole = json.loads((tmp_path / "whole/metrics.json").read_text())
    for first, then in ((2, 3), (3, 1), (1, 2)):
        out = f"{first}to{then}"
        for size, more in ((first, []), (then, ["--resume", *longer])):
            arguments = [*plan, *more, "--out", out]
            status = command(*arguments, cwd=tmp_path).status if size == 1 else crew(size, torchimpt, tmp_path, *arguments)[0][0]
            assert status in (0, 3)
        told = json.loads((tmp_path / out / "metrics.json").read_text())
        assert told["iterations"] == whole["iterations"]
        # doses are computed again, where the others were carried along for 12 iterations: float32, and 18 iterations from there
        assert told["objective"]["final"] == pytest.approx(whole["objective"]["final"], rel=2e-3)


@pytest.mark.slow
def test_dose_and_evaluate(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    assert command("plan", "tiny.toml", "--out", "run", *SHORT, cwd=tmp_path).status in (0, 3)
    for do in (["dose", "tiny.toml", "--plan", "run/plan.json"], ["evaluate", "run", "--scenarios", "boundary(2,2)"]):
        assert command(*do, "--out", f"{do[0]}1", cwd=tmp_path).status == 0
        assert [one[0] for one in crew(2, torchimpt, tmp_path, *do, "--out", f"{do[0]}2")] == [0, 0]
        for name in ("plan.json", "dvh.csv", "dose.mha"):
            assert (tmp_path / f"{do[0]}1" / name).read_bytes() == (tmp_path / f"{do[0]}2" / name).read_bytes()


def test_wrong_input_is_told_once(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    found = crew(2, torchimpt, tmp_path, "plan", "tiny.toml", "--out", "run", "--set", "robustness.range_percent=0")
    assert [one[0] for one in found] == [2, 2] and found[1][2] == ""
    assert found[0][2] == (
        "torchimpt: 2 processes were started for 1 scenario: each needs one of its own; start 1 at most\n"
    )  # fmt: skip
    assert not (tmp_path / "run").exists()


def launched(folder: Path, size: int) -> subprocess.Popen:
    """`torchrun` on a plan that goes on for minutes, once it has written a checkpoint."""
    write_tiny(folder)
    long = [
        "--set",
        "optimizer.tolerance=1e-13",
        "--set",
        "optimizer.max_iterations=100000",
        "--set",
        "optimizer.log_every=2",
        "--set",
        "dose.check_mm=off",
    ]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(size), "--master-port", str(free_port())]
    with (folder / "stderr").open("wb") as err:
        process = subprocess.Popen(
            [*launcher, "-m", "torchimpt", "plan", "tiny.toml", "--out", "run", *long], cwd=folder, stdout=subprocess.DEVNULL, stderr=err,
            start_new_session=True,
        )  # fmt: skip
    until = time.monotonic() + 180
    while not (folder / "run/checkpoint.pt").is_file() and time.monotonic() < until and process.poll() is None:
        time.sleep(0.1)
    return process


def worker(launcher: subprocess.Popen, rank: int) -> int:
    """The process of a rank."""
    for folder in (path for path in Path("/proc").iterdir() if path.name.isdigit()):
        parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
        if parent == str(launcher.pid) and f"RANK={rank}".encode() in (folder / "environ").read_bytes().split(b"\0"):
            return int(folder.name)
    raise AssertionError(f"there is no process {rank}: {launcher.poll()}")


@pytest.mark.slow
@pytest.mark.parametrize(("size", "rank"), [(3, 1), (2, 0)])
def test_killed_process_ends_all_and_the_run_goes_on(tmp_path: Path, size: int, rank: int) -> None:
    launcher = launched(tmp_path, size)
    os.kill(worker(launcher, rank), signal.SIGKILL)
    assert launcher.wait(60) != 0  # torchrun kills what is left after 30 s
    told = [line for line in (tmp_path / "stderr").read_text().splitlines() if line.startswith("torchimpt: ")]
    assert len(told) == 1 and f"process {rank} of {size} (on " in told[0] and "was lost: killed, out of memory" in told[0]
    assert "--resume" in told[0] and not (tmp_path / "run/metrics.json").exists()
    saved = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)["last"]
    more = ["--resume", "--set", "optimizer.tolerance=1e-3", "--set", f"optimizer.max_iterations={saved + 5}"]
    assert command("plan", "tiny.toml", "--out", "run", *SHORT, *more, cwd=tmp_path).status in (0, 3)
    assert json.loads((tmp_path / "run/metrics.json").read_text())["iterations"] >= saved


@pytest.mark.slow
def test_interrupt_ends_all(tmp_path: Path) -> None:
    launcher = launched(tmp_path, 2)
    members = [worker(launcher, rank) for rank in (0, 1)]
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(60) != 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in members)
    text = (tmp_path / "stderr").read_text()
    assert text.count("torchimpt: interrupted") == 1 and "this should not happen" not in text
    assert (tmp_path / "run/checkpoint.pt").is_file() and not (tmp_path / "run/.lock").exists()
