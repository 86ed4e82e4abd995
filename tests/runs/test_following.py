"""A run folder from outside: what its files tell while they are written."""

from __future__ import annotations

import json
import os
import socket
import subprocess

import pytest

from torchimpt.checks import InputError
from torchimpt.runs.following import Following


def row(iteration, **more):
    return json.dumps({"iteration": iteration, "value": 100.0 / (iteration + 1), "seconds": 2.0 * iteration, **more}) + "\n"


@pytest.fixture
def folder(tmp_path):
    """A run that goes on: this process holds it."""
    (tmp_path / ".lock").write_text(f"process {os.getpid()} on {socket.gethostname()}")
    (tmp_path / "case.toml").write_text('title = "A"\n[optimizer]\nmax_iterations = 50\n')
    (tmp_path / "run.json").write_text('{"started": "2020-01-01T00:00:00+0000"}')
    (tmp_path / "log.txt").write_text("2020-01-01 00:00:00,000 INFO Influence matrices\n2020-01-01 00:00:01,000 INFO Optim")
    return tmp_path


def test_rows_as_they_come_half_a_line_waits(folder):
    following = Following(folder)
    state = following.look()
    assert (state.title, state.most, state.rows, state.running, state.left) == ("A", 50, [], True, None) and state.elapsed > 1e8
    history, third = folder / "history.jsonl", row(2, goals=[{"roi": "PTV"}])
    history.write_text(row(0) + row(1) + third[:9])
    assert [r["iteration"] for r in following.look().rows] == [0, 1]
    with history.open("a") as file:
        file.write(third[9:] + row(3))
    state = following.look()
    assert [r["iteration"] for r in state.rows] == [0, 1, 2, 3] and state.goals == [{"roi": "PTV"}]
    assert state.left == pytest.approx(2.0 * 47), "two seconds for each of those that are left"


def test_a_run_that_starts_anew_in_the_folder(folder):
    following, history = Following(folder), folder / "history.jsonl"
    history.write_text("".join(map(row, range(5))))
    assert len(following.look().rows) == 5
    history.unlink()
    assert following.look().rows == []
    history.write_text(row(0) + row(1))
    assert len(following.look().rows) == 2
    history.write_text(row(0))
    assert len(following.look().rows) == 1, "cut to a checkpoint"


def test_the_end(folder):
    following = Following(folder)
    (folder / "history.jsonl").write_text(row(0))
    (folder / "metrics.json").write_text('{"title": "A"}')
    state = following.look()
    assert state.running and state.rows == [], "an earlier run's, which the next one has not yet taken away"
    (folder / ".lock").unlink()
    state = following.look()
    assert state.over and state.metrics == {"title": "A"} and len(state.rows) == 1 and state.elapsed is None


def test_a_run_whose_process_is_gone_is_over(folder):
    done = subprocess.Popen(["true"])
    done.wait()
    (folder / ".lock").write_text(f"process {done.pid} on {socket.gethostname()}")
    state = Following(folder).look()
    assert state.over and state.metrics is None
    (folder / ".lock").write_text("process 1 on another-machine")
    assert Following(folder).look().running, "nobody here can tell"


def test_a_folder_that_is_not_there_yet(tmp_path):
    following = Following(tmp_path / "run")
    assert not following.there and following.look().rows == []
    (tmp_path / "run").mkdir()
    assert not following.there
    (tmp_path / "run" / ".lock").touch()
    assert following.there


@pytest.mark.parametrize("file", ["history.jsonl", "metrics.json", "run.json", "case.toml"])
@pytest.mark.parametrize("content", [b"[1]\n", b"{\n", b"\xff\xfe\n", b"[" * 100_000 + b"\n", b'{"iteration": "x"}\n'])
def test_damaged_files_are_named(folder, file, content):
    (folder / file).write_bytes(content)
    if (file, content) in (("case.toml", b"[1]\n"), ("metrics.json", b'{"iteration": "x"}\n'), ("run.json", b'{"iteration": "x"}\n')):
        Following(folder).look()
        return
    with pytest.raises(InputError, match=file):
        Following(folder).look()
