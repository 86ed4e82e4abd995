"""`torchimpt watch`: a run as it goes on, in lines and on a terminal."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from rich.console import Console
from tiny_case import INTERRUPTIBLE, command, write_tiny

from torchimpt.cli import follow as watching
from torchimpt.cli.follow import Lines, picture, spark
from torchimpt.runs.following import RunState

GOAL = {"roi": "PTV", "metric": "d(95)", "unit": "Gy", "limit": "≥ 50 Gy", "value": 48.25, "passed": False}
ROWS = [
    {
        "iteration": k,
        "value": 100.0 / (k + 1),
        "seconds": float(k),
        "terms": {"PTV": 75.0 / (k + 1)},
        **({"goals": [GOAL]} if k == 10 else {}),
    }
    for k in range(13)
]


def printed(thing, **options):
    out = Console(file=io.StringIO(), width=100, **options)
    out.print(thing)
    return out.file.getvalue()


def test_a_line_of_bars_is_logarithmic_and_as_long_as_there_is_room():
    assert spark([1000.0, 100.0, 10.0, 1.0]) == "█▆▃▁" and spark([5.0, 5.0]) == "▁▁" and spark([0.0, 1.0, 10.0]) == "▁▁█"
    assert spark([]) == "" and len(spark([float(k + 1) for k in range(1000)], 40)) == 40
    assert spark([float("nan"), 0.0]) == "▁▁"


def test_what_the_terminal_shows():
    state = RunState("A [b] run", "Optimizing weights", ROWS, [GOAL], 50, time.time() - 90, True)
    text = printed(picture(state))
    for part in (
        "A [b] run",
        "Optimizing weights",
        "Iteration 12 of at most 50",
        "objective 7.692",
        "75.0 %",
        "▁",
        "D95 ≥ 50 Gy",
        "48.2",
        "not met",
    ):
        assert part in text, part
    assert "90 s since the start, at most 38 s of iterations left" in text
    assert "▁" not in printed(picture(state, bars=False))
    assert "Influence" in printed(picture(RunState("A", "Influence matrices", running=True)))


def test_plain_lines_come_once():
    out = Console(file=io.StringIO(), width=200)
    lines = Lines(out)
    lines.show(RunState("A", "Influence matrices"))
    lines.show(RunState("A", "iteration    0  objective 100", ROWS[:3]))
    lines.show(RunState("A", "Dose in every scenario", ROWS))
    lines.show(RunState("A", "Dose in every scenario", ROWS))
    assert out.file.getvalue().splitlines() == [
        "A",
        "Influence matrices",
        "iteration 0: objective 100 (PTV 75); 0.0 s",
        "iteration 10: objective 9.091 (PTV 6.818); 0 of 1 goals met, nominal; 10.0 s",
        "Dose in every scenario",
    ]


@pytest.mark.slow
def test_a_run_is_followed_to_its_end(tmp_path, monkeypatch):
    """From before it starts until it is complete; a finished run is told at once, and one that broke off is an error."""
    monkeypatch.setattr(watching, "PAUSE", 0.05)
    case = write_tiny(tmp_path)
    run = threading.Thread(
        target=lambda: subprocess.run([sys.executable, "-m", "torchimpt", "plan", case, "--out", tmp_path / "run", "-q"], check=False)
    )
    run.start()
    seen = command("watch", "run", "--wait", cwd=tmp_path)
    run.join()
    assert seen.status == 0 and "iteration 10: objective " in seen.out and "of 2 goals met, nominal" in seen.out and "Report: " in seen.out
    again = command("watch", "run", cwd=tmp_path)
    assert again.status == 0 and again.out.splitlines()[-1] == seen.out.splitlines()[-1]
    (tmp_path / "run" / "metrics.json").unlink()
    broken = command("watch", "run", cwd=tmp_path)
    assert broken.status == 2 and "has ended before it was complete: Files and report" in broken.err


def test_metrics_that_were_changed_are_told(tmp_path):
    """What lacks in the file of a finished run is named with it."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.json").write_text('{"title": "Tiny", "goals": [{"roi": "PTV"}]}')
    done = command("watch", "run", cwd=tmp_path)
    assert done.status == 2 and "run/metrics.json cannot be read, something in it is not as it must be (KeyError: " in done.err


def test_nothing_to_watch(tmp_path):
    done = command("watch", "run", cwd=tmp_path)
    assert (done.status, done.out) == (2, "") and "no run in run: nothing has started there" in done.err and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_interrupt_ends_the_watching_and_nothing_else(tmp_path):
    (tmp_path / ".lock").write_text("process 1 on another-machine")
    watch = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, "watch", tmp_path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert watch.stdout.readline() == f"{tmp_path.name}\n"
    watch.send_signal(signal.SIGINT)
    _, err = watch.communicate(timeout=60)
    assert (watch.returncode, err) == (130, "torchimpt: interrupted\n") and os.listdir(tmp_path) == [".lock"]
