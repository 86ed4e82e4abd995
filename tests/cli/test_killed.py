"""A plan that is killed at a random moment goes on to the same plan, bit for bit: a few of the kills of `experiments/kill.py`, which checks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "kill.py"


@pytest.mark.slow
def test_killed_plans_come_to_the_same_plan():
    done = subprocess.run([sys.executable, SCRIPT, "--kills", "5", "--seed", "4"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    assert sum(int(count) for count, _ in told) == 5 and "resumed" in {what for _, what in told}, done.stdout
