"""What is left of a plan that is killed at any moment, and does it go on to the same plan?

    python experiments/kill.py --kills 100 --seed 0

A small case with moving spots is planned once to its end. Then it is planned again and again, each time in a process that is killed
(SIGKILL, as by a machine that goes down) after a random part of the time that the first took. A folder with metrics.json must hold the
first plan, bit for bit. One without must be told to be incomplete by one of `watch`, `compare`, `export` and, without a plan, `evaluate`,
and `plan --resume` (some of these are killed, too) or, where no checkpoint had been written, `plan` must come to the first plan, bit for
bit. Prints how often which happened; an `AssertionError` where anything is otherwise. A second or two a kill.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from torchimpt.studies.flags import flags

if __name__ == "__main__":  # before any kernel is imported: threads do not outlive a fork
    os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "NUMBA_THREADING_LAYER": "workqueue"}
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from tiny_case import command

CASE = """
title = "Killed"
[patient]
source = "phantom"
name = "water"
[dose]
grid_mm = 10.0
target_grid_mm = "off"
check_mm = "off"
[spots]
target = "Target"
spacing_mm = 16.0
layer_spacing = 12.0
[[beam]]
gantry_deg = 0
[[beam]]
gantry_deg = 75
[robustness]
setup_mm = 0.0
range_percent = 3.5
[joint]
warm_iterations = 6
box_mm = 6.0
[optimizer]
max_iterations = 25
tolerance = 1e-9
log_every = 2
[[objective]]
roi = "Target"
kind = "uniform"
dose_gy = 60.0
weight = 100.0
[[objective]]
roi = "External"
kind = "mean_dose"
dose_gy = 2.0
"""

STOPPED = 3
"""Exit status of this case, whose tolerance is out of reach."""

RESULTS = ("plan.json", "dose.mha", "dvh.csv")
"""What must come out the same, bit for bit."""


TOLD = ("before it was complete", "incomplete", "did not finish", "holds no plan.json", "no run folder", "nothing has started there")
"""Words of which a command uses some that is asked about a run that is not complete."""


@dataclass(frozen=True)
class Config:
    """The flags."""

    kills: int = 100
    seed: int = 0


def start(folder: Path, *arguments: str) -> int:
    """The command in a process of its own that needs not import anything; its number. What it says on stderr goes to `folder/stderr`."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        found = command(*arguments, cwd=folder)
        status = found.status
        (folder / "stderr").write_text(found.err)
    finally:
        os._exit(status)


def waited(child: int) -> int:
    """Its exit status once it has ended; minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def done(folder: Path, *arguments: str) -> int:
    """The command to its end, in a process of its own."""
    return waited(start(folder, *arguments))


def killed(folder: Path, after: float, *arguments: str) -> bool:
    """Run a command and kill it after so many seconds; whether it still ran. One that ran to its end must have come to it well."""
    child = start(folder, *arguments)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    status = waited(child)
    assert status in (STOPPED, -signal.SIGKILL), (status, (folder / "stderr").read_text())
    return status != STOPPED


def check_incomplete(folder: Path, rng: Random) -> None:
    """A command that reads a run says that this one is not complete; a plan that is there is the plan."""
    commands = [("watch", "run"), ("compare", "run", "first"), ("export", "run", "--to", "away", "--format", "mcsquare")]
    if (folder / "run" / "plan.json").is_file():  # written whole, and evaluate needs no more
        check_same(folder, ("plan.json",))
    else:
        commands.append(("evaluate", "run"))
    arguments = rng.choice(commands)
    status, text = done(folder, *arguments), (folder / "stderr").read_text()
    assert status == 2 and "Traceback" not in text, (arguments, status, text)
    assert any(words in text for words in TOLD), (arguments, text)


def check_same(folder: Path, names: Sequence[str] = RESULTS) -> None:
    """The run's files are the first one's."""
    for name in names:
        assert (folder / "run" / name).read_bytes() == (folder / "first" / name).read_bytes(), name


def trial(folder: Path, seconds: float, rng: Random) -> str:
    """One plan that is killed, once or more often; what became of it, in a word."""
    plan, resume, found = ("plan", "case.toml", "--out", "run", "--quiet"), (), "done before it was killed"
    while killed(folder, rng.uniform(0.0, 1.05 * seconds), *plan, *resume):
        run = folder / "run"
        if (run / "metrics.json").is_file():
            check_same(folder)
            return "killed when it was complete"
        check_incomplete(folder, rng)
        resume = ("--resume",) if (run / "checkpoint.pt").is_file() else ()
        found = "resumed" if resume else "no checkpoint yet"
        if rng.random() < 0.6:
            status = done(folder, *plan, *resume)
            assert status == STOPPED, (status, (folder / "stderr").read_text())
            break
    check_same(folder)
    return found


def main(config: Config) -> Counter:
    """Kill and compare; how often which happened."""
    counts: Counter = Counter()
    rng = Random(config.seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "case.toml").write_text(CASE)
        for _ in range(2):  # the first compiles
            begin = time.monotonic()
            first = command("plan", "case.toml", "--out", "first", "--quiet", cwd=folder)
            seconds = time.monotonic() - begin
        assert first.status == STOPPED, first
        while sum(counts.values()) < config.kills:
            counts[trial(folder, seconds, rng)] += 1
            for path in sorted((folder / "run").rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
    for name, count in counts.most_common():
        print(f"{count:5} {name}")
    return counts


if __name__ == "__main__":
    main(flags(Config, __doc__))
