"""The few argument checks, and the two warnings and errors of our own.

An error says which argument, what it must be, what it got, and what to do. Checks stand at the public border once.
"""

from __future__ import annotations

import difflib
import math
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # errors are needed at once, torch is not
    import torch


class PhysicsWarning(UserWarning):
    """A number that may be off: the computation goes on, the user should look."""


class InputError(ValueError):
    """The user's input is wrong. One line: what, where, what is allowed. The command line prints it and exits with 2."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """`text` without line breaks and control characters: what a file or a name puts there is written as an escape, e.g. `\\n`.

    So a message is one line whatever it quotes, and no name can move a terminal's cursor.
    """
    return "".join(c if is_plain(c) else c.encode("unicode_escape").decode("ascii") for c in text)


def is_plain(text: str) -> bool:
    """Whether `text` is free of control characters, line breaks, unpaired surrogates, and marks that turn the writing direction."""
    return not any(unicodedata.category(c) in _CONTROL or c in _TURNING for c in text)


_CONTROL = {"Cc", "Cs", "Zl", "Zp"}
_TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def nearest(name: str, allowed: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the allowed name closest to `name`, or an empty string."""
    match = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f" (did you mean '{match[0]}'?)" if match else ""


def positive(name: str, value: float) -> float:
    """Return `value`, or raise when it is not a positive finite number."""
    if not (value > 0 and value < float("inf")):
        raise InputError(f"{name} must be a positive number, got {value}")
    return float(value)


def triple(name: str, value: float | Sequence[float]) -> tuple[float, float, float]:
    """One number or three, as three finite floats."""
    values = (value,) * 3 if isinstance(value, (int, float)) else tuple(value)
    if len(values) != 3 or not all(math.isfinite(float(v)) for v in values):
        raise InputError(f"{name} must be one finite number or three [x, y, z], got {value!r}")
    x, y, z = (float(v) for v in values)
    return x, y, z


def finite(name: str, value: torch.Tensor) -> torch.Tensor:
    """Return `value`, or raise with the count of NaN and infinite entries."""
    bad = int((~value.isfinite()).sum())
    if bad:
        raise InputError(f"{name} has {bad} values that are NaN or infinite of {value.numel()}; mend them before planning")
    return value
