"""Feeds a reader bad inputs, one after the other, and says what became of each; as a program it is the child process of a run of many.

    python bad_inputs.py KIND SEED FIRST LAST    one line of JSON an input: number, outcome, what was said

Input number n of a kind is made by a generator of its own, from seed, kind and n: any of them can be made again alone.
"""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
PATHS = [str(HERE.parents[1]), str(HERE), str(HERE.parent), *(str(HERE.parent / name) for name in ("machine", "io"))]
"""Where the package and the tests' own builders of files lie."""

ROOM = 2 * 2**30
"""Bytes that a reader may take besides what the process holds when it has read the valid input."""

ACCEPTED, REFUSED, TRACEBACK, MEMORY, WRONG, HANG = "accepted", "refused", "traceback", "memory", "wrong", "hang"

SHORT_OF_MEMORY = re.compile(r"\b[Aa]llocate\b|out of memory|more than there is memory for")
"""In messages of libraries that were not given the memory that they asked for."""

NET = "something in it is not as it must be"
"""In messages that `torchimpt.files.reading` makes of errors that no reader foresaw."""


class Outcome(NamedTuple):
    """What became of an input, and what was said."""

    kind: str
    text: str


class Subject:
    """A kind's valid input in a folder, and the changed ones that take its place for a moment.

    Parameters
    ----------
    name
        A key of `inputs.KINDS`.
    folder
        Empty.
    seed
        Of all its inputs.
    """

    def __init__(self, name: str, folder: Path, seed: int) -> None:
        from inputs import KINDS

        self.kind, self.folder, self._seed = KINDS[name], folder, seed
        self.good = {path: path.read_bytes() for path in self.kind.build(folder)}
        self.kind.read(folder)

    def changed(self, number: int) -> tuple[Path, bytes]:
        """The file that input `number` changes, and its content."""
        from inputs import bad

        rng = Random(f"{self._seed} {self.kind.name} {number}")
        path = rng.choice(list(self.good))
        return path, bad(path, self.good[path], rng)

    def outcome(self, number: int) -> Outcome:
        """Read input `number`."""
        path, content = self.changed(number)
        path.write_bytes(content)
        try:
            return self._read()
        finally:
            path.unlink(missing_ok=True)
            path.write_bytes(self.good[path])

    def _read(self) -> Outcome:
        from inputs import Refused

        from torchimpt.checks import InputError

        try:
            with quiet():
                self.kind.read(self.folder)
        except (InputError, Refused) as error:
            text = str(error)
            if "\n" in text or len(text) < 15:
                return Outcome(TRACEBACK, f"no clear line: {text!r}")
            return Outcome(MEMORY if SHORT_OF_MEMORY.search(text) else REFUSED, text)
        except MemoryError as error:
            return Outcome(MEMORY, f"{error} {_where(error)}")
        except AssertionError as error:
            return Outcome(TRACEBACK if "this should not happen" in str(error) else WRONG, f"{error} {_where(error)}")
        except Exception as error:
            return Outcome(TRACEBACK, f"{type(error).__name__}: {error} {_where(error)}")
        return Outcome(ACCEPTED, "")


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))


@contextmanager
def quiet() -> Iterator[None]:
    """Warnings and logs of readers that go on say what they are for; here they would be thousands."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def limit_memory(room: int) -> None:
    """Let this process's address space grow by so many bytes and no more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + room,) * 2)


def main(name: str, seed: int, first: int, last: int) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    with tempfile.TemporaryDirectory() as folder:
        subject = Subject(name, Path(folder), seed)
        limit_memory(ROOM)
        print(json.dumps([None, "ready", ""]), file=answers)
        for number in range(first, last):
            print(json.dumps([number, *subject.outcome(number)]), file=answers)


if __name__ == "__main__":
    sys.path[:0] = PATHS
    main(sys.argv[1], *map(int, sys.argv[2:]))
