"""What becomes of bad input? Every reader is fed damaged files by the thousand.

    python experiments/fuzz.py --inputs 10000 --seed 0

The inputs are shared out among the readers of `tests/fuzz/inputs.py`, each of which begins with a valid input that a test of its own
builds: bytes are flipped, cut off, put in, doubled, spliced; numbers become nan, inf, huge or negative; keys and values of case files and
plans are exchanged (`tests/fuzz/mutations.py`). A child process reads one after the other, with 2 GB of memory above what it holds when
it has read the valid input, and ten seconds of the processor for each; a child that ends or takes longer is replaced. `--only NAME` runs
one reader, `--show 5` prints five messages of each outcome, `--number N` (with `--only`) says which file input N changes and writes it to
stdout.

The table is in docs/fuzzing.md, with what it counts. One core, a quarter of an hour.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torchimpt.studies.flags import flags

FUZZ = Path(__file__).resolve().parents[1] / "tests" / "fuzz"
sys.path.insert(0, str(FUZZ))

from bad_inputs import ACCEPTED, HANG, MEMORY, NET, PATHS, REFUSED, TRACEBACK, WRONG, Outcome, Subject  # noqa: E402

sys.path[:0] = PATHS

PATIENCE, WARM_UP, ASLEEP = 10.0, 300.0, 1800.0
"""Seconds of the processor for an input, and for a child to import and read the valid one; seconds by the clock for either."""

COLUMNS = {
    ACCEPTED: "accepted",
    REFUSED: "refused",
    TRACEBACK: "tracebacks",
    HANG: "over 10 s",
    MEMORY: "over 2 GB",
    WRONG: "silently wrong",
}


@dataclass(frozen=True)
class Config:
    """The flags."""

    inputs: int = 10000
    seed: int = 0
    only: str = ""
    show: int = 0
    number: int = -1


class Child:
    """A process that reads inputs `first` to `last` of a kind, and its answers."""

    def __init__(self, name: str, seed: int, first: int, last: int) -> None:
        command = [sys.executable, str(FUZZ / "bad_inputs.py"), name, *map(str, (seed, first, last))]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
        self.said = tempfile.TemporaryFile()  # noqa: SIM115  # `end` reads it
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.said, env=environment)
        self._rest = b""

    def _seconds(self) -> float:
        """Of the processor that it has taken, so that other programs on the machine are not counted."""
        words = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def answer(self, patience: float) -> list | None:
        """Its next line; None where the time is over. `EOFError` where it has ended."""
        pipe, worked, begin = self.process.stdout, self._seconds(), time.monotonic()
        assert pipe is not None
        while b"\n" not in self._rest:
            if not select.select([pipe], [], [], 0.5)[0]:
                if self._seconds() - worked > patience or time.monotonic() - begin > ASLEEP:
                    return None
                continue
            if not (more := os.read(pipe.fileno(), 65536)):
                raise EOFError(self.process.wait())
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)

    def end(self) -> str:
        """Kill it where it lives; the end of what it said on stderr."""
        self.process.kill()
        self.process.wait()
        self.said.seek(0)
        return self.said.read().decode("utf-8", "replace")[-400:]


def outcomes(name: str, count: int, seed: int) -> Iterator[tuple[int, Outcome]]:
    """Each input of a kind, and what became of it."""
    at = 0
    while at < count:
        child, ready = Child(name, seed, at, count), False
        try:
            ready = child.answer(WARM_UP) is not None
            if not ready:
                raise TimeoutError(f"'{name}' is not ready after {WARM_UP:g} s")
            for number in range(at, count):
                found = child.answer(PATIENCE)
                at = number + 1
                yield number, Outcome(HANG, f"no answer within {PATIENCE:g} s") if found is None else Outcome(*found[1:])
                if found is None:
                    break
        except EOFError as error:
            text = child.end()
            if not ready:
                raise RuntimeError(f"'{name}' did not start: {text}") from None
            yield at, Outcome(TRACEBACK, f"the process ended with status {error}: {text}")
            at += 1
        finally:
            child.end()


def shares(total: int, names: list[str]) -> dict[str, int]:
    """How many inputs each kind gets; all together `total`."""
    from inputs import KINDS

    weights = [KINDS[name].share for name in names]
    ends = [round(total * sum(weights[: i + 1]) / sum(weights)) for i in range(len(weights))]
    return {name: end - start for name, start, end in zip(names, [0, *ends], ends, strict=False)}


def table(counts: dict[str, Counter], nets: Counter) -> str:
    """Markdown, a row a reader."""
    lines = ["| reader | inputs | " + " | ".join(COLUMNS.values()) + " | by the last net |", "|---|" + "---:|" * (len(COLUMNS) + 2)]
    rows = {**counts, "**all**": sum(counts.values(), Counter())}
    for name, count in rows.items():
        cells = [f"{count[key]:,}" for key in COLUMNS]
        net = sum(nets.values()) if name not in counts else nets[name]
        lines.append(f"| {name} | {sum(count.values()):,} | {' | '.join(cells)} | {net:,} |")
    return "\n".join(lines)


def main(config: Config) -> dict[str, Counter]:
    """Run all, print what went wrong as it comes, and the table; the counts of outcomes by kind."""
    from inputs import KINDS

    if config.number >= 0:
        with tempfile.TemporaryDirectory() as folder:
            path, content = Subject(config.only, Path(folder), config.seed).changed(config.number)
            print(path.relative_to(folder), len(content), "bytes", file=sys.stderr)
            sys.stdout.buffer.write(content)
        return {}
    names = [config.only] if config.only else list(KINDS)
    counts: dict[str, Counter] = {name: Counter() for name in names}
    nets: Counter = Counter()
    shown: defaultdict = defaultdict(int)
    for name, count in shares(config.inputs, names).items():
        for number, outcome in outcomes(name, count, config.seed):
            counts[name][outcome.kind] += 1
            nets[name] += NET in outcome.text
            shown[name, outcome.kind] += 1
            if outcome.kind not in (ACCEPTED, REFUSED) or shown[name, outcome.kind] <= config.show:
                print(f"{name} {number}: {outcome.kind}: {outcome.text[:1000]}", file=sys.stderr, flush=True)
    print(table(counts, nets))
    return counts


if __name__ == "__main__":
    main(flags(Config, __doc__))
