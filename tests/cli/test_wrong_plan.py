"""No command reports a plan that is not the case's: stale results, checkpoints and plans of other cases, machines and doses."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_case import command, write_tiny

from torchimpt.io.plan import read_plan

COARSE = ("dose.grid_mm=10", "spots.spacing_mm=18", "optimizer.max_iterations=3", "optimizer.log_every=1")


def sets(*overrides: str) -> list[str]:
    return [flag for override in overrides for flag in ("--set", override)]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with `tiny.toml` and a finished, evaluated run."""
    folder = tmp_path_factory.mktemp("finished")
    write_tiny(folder)
    assert command("plan", "tiny.toml", "--out", "run", *sets(*COARSE, "output.tensorboard=true"), cwd=folder).status == 3
    assert command("evaluate", "run", "--scenarios", "x+3mm", cwd=folder).status == 0
    return folder


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    """A copy of it for one test."""
    return Path(shutil.copytree(finished, tmp_path / "here"))


@pytest.fixture
def refused(folder):
    """A command that ends with one line and status 2; returns the line."""

    def call(*arguments: object) -> str:
        done = command(*arguments, cwd=folder)
        assert done.status == 2 and done.out == "" and done.err.count("\n") == 1, done
        return done.err

    return call


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("spots.target=Targt", "no ROI 'Targt'"),
        ("goal[0].roi=Heart", "no ROI 'Heart'"),
        ("beam[1].isocenter_mm=[0,0,900]", "misses the target"),
        ("machine={format='csv', path='.'}", "no file .*beam_model.csv"),
        ("dose.rbe=9", "dose.rbe must be"),
    ],
)
def test_a_case_that_is_wrong_leaves_a_finished_run_as_it_was(folder, refused, change, message):
    before = contents(folder)
    assert re.search(message, refused("plan", "tiny.toml", "--out", "run", *sets(*COARSE, change)))
    assert contents(folder) == before


def test_a_resumed_run_that_has_nothing_to_do_leaves_the_folder_as_it_was(folder, refused):
    before = contents(folder / "run")
    refused("plan", "tiny.toml", "--out", "run", "--resume", *sets(*COARSE, "spots.spacing_mm=20"))
    assert contents(folder / "run") == before


KILLED = """
import os, signal, sys
from torchimpt.cli.app import main
from torchimpt.schemes import schemes
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
schemes.best_uniform_weight = die
main()
"""


@pytest.mark.slow
def test_a_second_plan_that_is_killed_early_leaves_nothing_of_the_first(folder, refused):
    other = (*COARSE, "title=Other", "beam[0].gantry_deg=40")
    program = [sys.executable, "-c", KILLED, "plan", "tiny.toml", "--out", "run", *sets(*other)]
    assert subprocess.run(program, cwd=folder, capture_output=True).returncode == -9
    (folder / "run" / ".partial-x-plan.json").write_text("")
    assert "Other" in (folder / "run" / "case.toml").read_text()
    assert "holds no plan.json" in refused("evaluate", "run")
    for overrides in (COARSE, other):
        assert "no checkpoint at run/checkpoint.pt" in refused("plan", "tiny.toml", "--out", "run", "--resume", *sets(*overrides))
    assert {name for name in contents(folder / "run") if not name.startswith(".")} == {"case.toml", "run.json", "log.txt"}
    assert command("plan", "tiny.toml", "--out", "run", *sets(*other), cwd=folder).status == 3
    assert not [name for name in contents(folder / "run") if name.startswith(".")], "what the killed run left is gone"


@pytest.mark.slow
def test_two_runs_in_one_folder(folder):
    write = [sys.executable, "-c", "from torchimpt.cli.app import main; main()", "plan", "tiny.toml", "--out", "both"]
    endless = sets("optimizer.max_iterations=1000000", "optimizer.tolerance=1e-30", *COARSE[:2], "optimizer.log_every=1")
    first = subprocess.Popen([*write, *endless], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 120
        while not (folder / "both" / "checkpoint.pt").exists():
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        done = command("plan", "tiny.toml", "--out", "both", *sets(*COARSE), cwd=folder)
        assert done.status == 2 and re.fullmatch(
            rf"torchimpt: both is in use: process {first.pid} on .* writes there; wait for its end, or choose another --out\n", done.err
        )
    finally:
        first.kill()
        first.communicate()
    done = command("plan", "tiny.toml", "--out", "both", "--resume", *endless, "--set", "optimizer.max_iterations=1", cwd=folder)
    assert done.status in (2, 3) and "in use" not in done.err, done


@pytest.mark.parametrize("place", [0.02, 0.3, 0.6, 0.9, 1.0])
def test_one_flipped_bit_in_a_checkpoint_is_found(folder, refused, place):
    path = folder / "run" / "checkpoint.pt"
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)
    before = contents(folder / "run")
    message = "run/checkpoint.pt is no readable checkpoint, its checksum does not fit: it is damaged"
    assert message in refused("plan", "tiny.toml", "--out", "run", "--resume", *sets(*COARSE, "optimizer.max_iterations=5"))
    assert contents(folder / "run") == before


@pytest.mark.slow
def test_resumed_with_other_threads_is_the_same_plan_and_with_other_versions_a_warning(folder):
    more = (*COARSE, "output.tensorboard=true", "optimizer.max_iterations=5")
    saved = read_checkpoint_of(folder)
    assert set(saved["computed"]) == {"device", "torchimpt", "torch", "numpy", "numba"}
    path, resume = folder / "run" / "checkpoint.pt", ("plan", "tiny.toml", "--out", "run", "--resume", *sets(*more))
    version = {**saved["computed"], "numba": "0.1"}
    content = io.BytesIO()
    torch.save({**saved, "computed": version}, content)
    whole, other = path.read_bytes(), content.getvalue()
    path.write_bytes(other + hashlib.sha256(other).digest())
    done = command(*resume, cwd=folder)
    assert done.status == 3 and re.fullmatch(
        r"torchimpt: run/checkpoint.pt was computed with numba 0\.1, now [\d.]+: iterates may differ in the last bits from an "
        r"uninterrupted run's\n",
        done.err,
    )
    assert json.loads((folder / "run" / "metrics.json").read_text())["iterations"] == 5
    assert not (folder / "run" / "evaluation").exists(), "it was of the plan before"
    path.write_bytes(whole)
    threads = torch.get_num_threads() + 1
    done = command(*resume, "--threads", threads, cwd=folder)
    assert (done.status, done.err) == (3, "")
    assert command("plan", "tiny.toml", "--out", "straight", *sets(*more), cwd=folder).status == 3
    assert (folder / "run" / "plan.json").read_bytes() == (folder / "straight" / "plan.json").read_bytes()


def read_checkpoint_of(folder: Path) -> dict:
    return torch.load(folder / "run" / "checkpoint.pt", weights_only=True)


def test_resumed_with_other_machine_tables(folder, refused, shared):
    shutil.copytree(shared / "data" / "mc", folder / "mc")
    csv = ("machine={format='csv', path='mc'}", *COARSE)
    assert command("plan", "tiny.toml", "--out", "csv", *sets(*csv), cwd=folder).status == 3
    model = folder / "mc" / "beam_model.csv"
    head, *rows = model.read_text().splitlines()
    at = head.split(",").index("sigma_x_mm")
    wider = [",".join(str(1.01 * float(v)) if i in (at, at + 1) else v for i, v in enumerate(row.split(","))) for row in rows]
    model.write_text("\n".join([head, *wider]) + "\n")
    assert "computed with other tables of machine 'mc'" in refused(
        "plan", "tiny.toml", "--out", "csv", "--resume", *sets(*csv, "optimizer.max_iterations=5")
    )
    assert "csv/plan.json was made with other tables of machine 'mc'" in refused("evaluate", "csv")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rbe", 1.0, "was made with RBE 1.0, not 1.1"),
        ("machine_tables", "0123456789abcdef", "was made with other tables of machine 'generic'"),
    ],
)
def test_a_plan_of_another_machine_or_rbe(folder, refused, key, value, message):
    path = folder / "run" / "plan.json"
    plan = json.loads(path.read_text())
    path.write_text(json.dumps(plan | {key: value}))
    assert message in refused("evaluate", "run")
    done = command("dose", "tiny.toml", "--plan", "run/plan.json", "--out", "forward", *sets(*COARSE), cwd=folder)
    assert done.status == 0 and message in done.err and done.err.endswith("its dose is not the planned one\n") and done.err.count("\n") == 1
    again = json.loads((folder / "forward" / "plan.json").read_text())
    assert again[key] == plan[key], "the folder's plan.json tells what its dose was computed with"
    done = command("plan", "tiny.toml", "--out", "next", *sets(*COARSE, "joint.start=run/plan.json", "joint.box_mm=0"), cwd=folder)
    assert done.status in (0, 3) and message in done.err


def test_a_spot_with_another_energy_than_its_layer(folder, refused):
    path = folder / "run" / "plan.json"
    text = path.read_text()
    energy = read_plan(path).energy[0].item()
    spot = text.index('"spots"')
    path.write_text(text[:spot] + text[spot:].replace(f'"energy_mev": {energy}', '"energy_mev": 99.5', 1))
    for arguments in (("evaluate", "run"), ("dose", "tiny.toml", "--plan", "run/plan.json", "--out", "r")):
        assert re.search(r"spot 0 has energy_mev 99.5, but its layer 0 has \d+", refused(*arguments))


def test_a_command_does_not_replace_what_it_reads(folder, refused):
    before = contents(folder / "run")
    assert "run is the run itself" in refused("evaluate", "run", "--out", "run")
    assert "run/plan.json lies in run, whose files this dose would replace" in refused(
        "dose", "tiny.toml", "--plan", "run/plan.json", "--out", "run"
    )
    assert "joint.start lies in run" in refused("plan", "tiny.toml", "--out", "run", *sets(*COARSE, "joint.start=run/plan.json"))
    assert contents(folder / "run") == before


def test_more_threads_than_make_sense(folder, refused):
    line = refused("plan", "tiny.toml", "--out", "r", "--threads", 5000)
    assert re.search(r"threads must be 1 to \d+ on this machine of \d+ cores, got 5000; more only wait for each other", line)
    assert not (folder / "r").exists()


def test_threads_asked_for_are_those_used(folder):
    done = command("plan", "tiny.toml", "--out", "one", "--threads", 1, *sets(*COARSE), cwd=folder)
    assert done.status == 3 and json.loads((folder / "one" / "metrics.json").read_text())["threads"] == 1
