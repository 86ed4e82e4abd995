"""The run folder: of one command at a time, and of one run at a time."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch
from tiny_case import tiny

from torchimpt.checks import InputError
from torchimpt.runs.folder import is_result, open_run

CPU = torch.device("cpu")

EARLIER = (
    "metrics.json", "plan.json", "dose.mha", "dose_x+3mm_range-3.5.mha", "dvh.csv", "report.html", "history.jsonl", "checkpoint.pt",
    "tensorboard/events.out.tfevents.1.host", ".partial-ab12-plan.json",
    "evaluation/metrics.json", "evaluation/run.json", "evaluation/case.toml", "evaluation/log.txt", "evaluation/dose.mha",
)  # fmt: skip
FOREIGN = ("dose_photons.mha", "notes.txt", "plan.json.bak", "tensorboard/mine", "evaluation/mine")


def fill(folder: Path, *names: str) -> None:
    """Files whose content is their name."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_run_takes_away_what_an_earlier_one_left_and_nothing_else(tmp_path):
    folder = tmp_path / "run"
    fill(folder, *EARLIER, *FOREIGN, "case.toml", "run.json", "log.txt")
    with open_run(folder, tiny(tmp_path), CPU) as begin:
        assert files(folder) == {*EARLIER, *FOREIGN, "case.toml", "run.json", "log.txt", ".lock"}, "not before it begins"
        begin()
        assert files(folder) == {*FOREIGN, "case.toml", "run.json", "log.txt", ".lock"}
        assert "Tiny" in (folder / "case.toml").read_text() and (folder / "log.txt").read_text() == ""
        fill(folder, "plan.json")
        begin()
    assert files(folder) == {*FOREIGN, "case.toml", "run.json", "log.txt", "plan.json"}


def test_a_resumed_run_keeps_its_state(tmp_path):
    folder = tmp_path / "run"
    fill(folder, *EARLIER, "case.toml", "run.json", "log.txt")
    with open_run(folder, tiny(tmp_path), CPU, resume=True) as begin:
        logging.getLogger("torchimpt").info("goes on")
        begin()
    kept = {"history.jsonl", "checkpoint.pt", "tensorboard/events.out.tfevents.1.host", "case.toml", "run.json", "log.txt"}
    assert files(folder) == kept
    assert (folder / "log.txt").read_text().startswith("log.txt") and "goes on" in (folder / "log.txt").read_text()


@pytest.mark.parametrize("error", [InputError("no such ROI"), KeyboardInterrupt()])
def test_a_run_that_does_not_begin_leaves_the_folder_as_it_was(tmp_path, error):
    folder = tmp_path / "run"
    fill(folder, *EARLIER, *FOREIGN, "case.toml", "run.json", "log.txt")
    with pytest.raises(type(error)), open_run(folder, tiny(tmp_path), CPU):
        logging.getLogger("torchimpt").info("reading the patient")
        raise error
    assert files(folder) == {*EARLIER, *FOREIGN, "case.toml", "run.json", "log.txt"}
    assert all((folder / name).read_text() == name for name in files(folder))
    with pytest.raises(type(error)), open_run(tmp_path / "new" / "run", tiny(tmp_path), CPU):
        raise error
    assert not (tmp_path / "new").exists()


def test_the_log_waits_for_the_run_to_begin(tmp_path, monkeypatch):
    monkeypatch.setattr(logging.getLogger("torchimpt"), "propagate", False)  # xdist can't carry half a character in what pytest captures
    with open_run(tmp_path / "run", tiny(tmp_path), CPU) as begin:
        logging.getLogger("torchimpt").info("before")
        begin()
        logging.getLogger("torchimpt").info("after, \udcff")
    lines = (tmp_path / "run" / "log.txt").read_text().splitlines()
    assert [line.split("INFO ")[1] for line in lines] == ["before", r"after, \udcff"]


def test_a_log_that_cannot_be_written_ends_the_run(tmp_path, full_disk):
    with (
        pytest.raises(InputError, match=r"cannot finish the run in .*run: File too large"),
        open_run(tmp_path / "run", tiny(tmp_path), CPU) as begin,
    ):
        begin()
        with full_disk(4000):
            logging.getLogger("torchimpt").info("." * 5000)


def test_what_nobody_foresaw_is_in_the_log(tmp_path):
    with pytest.raises(ZeroDivisionError), open_run(tmp_path / "run", tiny(tmp_path), CPU) as begin:
        begin()
        raise ZeroDivisionError("unforeseen")
    text = (tmp_path / "run" / "log.txt").read_text()
    assert "Traceback" in text and "ZeroDivisionError: unforeseen" in text


def test_one_command_at_a_time(tmp_path):
    case, folder = tiny(tmp_path), tmp_path / "run"
    with open_run(folder, case, CPU):
        with (
            pytest.raises(InputError, match=rf"run is in use: process {os.getpid()} on .* writes there; wait for its end, or choose"),
            open_run(folder, case, CPU),
        ):
            pass
        with open_run(tmp_path / "other", case, CPU):
            pass
    with open_run(folder, case, CPU):
        pass
    assert not folder.exists()


def test_an_evaluation_is_not_taken_away_while_it_is_written(tmp_path):
    case, folder = tiny(tmp_path), tmp_path / "run"
    fill(folder, *EARLIER)
    with (
        open_run(folder / "evaluation", case, CPU),
        pytest.raises(InputError, match="evaluation is in use"),
        open_run(folder, case, CPU) as begin,
    ):
        begin()


HOLDS = """
import sys, time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from torchimpt.runs.folder import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(1000)
"""


@pytest.mark.slow
def test_the_lock_of_a_killed_process_does_not_block(tmp_path):
    case, folder = tiny(tmp_path), tmp_path / "run"
    child = subprocess.Popen([sys.executable, "-c", HOLDS, folder], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None and child.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"in use: process {child.pid} on "), open_run(folder, case, CPU):
            pass
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    assert files(folder) == {".lock"}
    with open_run(folder, case, CPU) as begin:
        begin()
    assert files(folder) == {"case.toml", "run.json", "log.txt"}


def test_which_files_a_run_takes_away(tmp_path):
    run = tmp_path / "run"
    for name in ("plan.json", "dose.mha", "dose_range+3.5.mha", "checkpoint.pt", "evaluation/plan.json"):
        assert is_result(run / name, run), name
        assert is_result(run / "x" / ".." / name, run) and not is_result(tmp_path / name, run)
    for name in ("case.toml", "spots.csv", "other/plan.json", "dose_photons.mha"):
        assert not is_result(run / name, run), name


def test_a_folder_that_may_not_be_written_is_told(tmp_path, common_folder, as_nobody):
    """A run's own folder, and one that the new folder would lie in."""
    case = tiny(tmp_path)
    with as_nobody():
        try:
            version("torch")
        except PackageNotFoundError:
            pytest.skip("the packages lie in a folder that root alone may read: an ordinary user could not run anything")
    (common_folder / "run").mkdir(mode=0o555)
    common_folder.chmod(0o555)
    for name in ("run", "new"):
        with (
            as_nobody(),
            pytest.raises(InputError, match=rf"cannot write the run folder .*/{name}: Permission denied; choose another --out"),
        ):
            open_run(common_folder / name, case, CPU).__enter__()
    common_folder.chmod(0o755)
    assert sorted(os.listdir(common_folder)) == ["run"] and os.listdir(common_folder / "run") == []
