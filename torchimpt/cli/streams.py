"""stdout and stderr as they may be: closed, a pipe whose reader has gone, a full disk, a terminal that knows ASCII only."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from torchimpt.checks import InputError, one_line

_IN_ASCII = {"≥": ">=", "≤": "<=", "–": "-", "−": "-", "×": "x", "✓": "yes", "✕": "no", "°": " deg", "·": "-"}
"""What becomes of our own signs where a stream cannot encode them; other characters become escapes."""


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_IN_ASCII.get(c) or c.encode("ascii", "backslashreplace").decode("ascii") for c in text), error.end


def set_up_streams() -> None:
    """Open what is closed, on the null device, and let no character end a command.

    A closed descriptor would go to the next file that is opened, and what is meant for the terminal into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    codecs.register_error("torchimpt", _in_ascii)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="torchimpt")


def follows() -> bool:
    """Whether a launcher started this process as one of several that does not lead: it is silent."""
    return os.environ.get("WORLD_SIZE", "1") != "1" and os.environ.get("RANK", "0") != "0"


def mute() -> int:
    """Send stdout and stderr to the null device; returns what `unmute` takes."""
    voice = os.dup(2)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        discard(stream)
    return voice


def unmute(voice: int) -> None:
    """Give stderr back: there is something that nobody else can tell."""
    os.dup2(voice, sys.stderr.fileno())


@contextmanager
def printing() -> Iterator[None]:
    """For a block that prints to stdout: a reader that has gone, as with `| head`, is no error; a disk that is full is one."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        discard(sys.stdout)
    except OSError as error:
        discard(sys.stdout)
        raise InputError(f"cannot write to stdout: {error.strerror}; what was computed is in its files") from error


def complain(text: str) -> None:
    """A line on stderr; there is nowhere to tell that this failed."""
    try:
        print(one_line(text), file=sys.stderr)
    except OSError:
        discard(sys.stderr)


def discard(stream: TextIO) -> None:
    """Send what a stream still holds, and all that comes, to the null device: Python writes it out once more at its end."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
