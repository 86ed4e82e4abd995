"""Values of the case file's keys: what is taken, and the types made of it."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from torchimpt.checks import is_plain, nearest
from torchimpt.geometry import THICKEST
from torchimpt.physics.rbe import RBE_MODELS


def as_existing(value: Any) -> Path:
    """An absolute path that exists; the nearest neighbour is named where it does not."""
    if not isinstance(value, (str, Path)) or not str(value):
        raise ValueError(f"must be a path, got {value!r}")
    path = full_path(value)
    try:
        if path.exists():
            return path
        beside = os.listdir(path.parent) if path.parent.is_dir() else []
    except OSError as error:
        raise ValueError(f"cannot look at {path}: {error.strerror}") from error
    raise ValueError(f"no such file or folder: {path}{nearest(path.name, beside)}")


def full_path(value: str | Path, folder: Path | None = None) -> Path:
    """The absolute path that a case file means: `~` is the home folder, a relative path starts at `folder`, or where the program runs."""
    # not Path.expanduser, which has an error for a user that is not there
    path = os.path.expanduser(value)
    return Path(os.path.abspath(path if folder is None else folder / path))


def as_numbers(value: Any, name: str, counts: tuple[int, ...]) -> Any:
    """A number, or a list of as many numbers as `counts` allows."""
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    if len(items) not in counts or any(isinstance(item, bool) or not isinstance(item, (int, float)) for item in items):
        raise ValueError(f"must be {name}, got {short(value)}")
    if not all(-MOST <= item <= MOST for item in items):
        raise ValueError(f"must be {name}, each between -{MOST:g} and {MOST:g}, got {short(value)}")
    return tuple(float(item) for item in items) if isinstance(value, (list, tuple)) else float(value)


def as_names(value: Any) -> Any:
    """A ROI name or a list of them."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)) or not items or not all(isinstance(item, str) and item for item in items):
        raise ValueError(f"must be a ROI's name or a list of names, got {short(value)}")
    return value if isinstance(value, str) else list(value)


def as_layer_spacing(value: Any) -> Any:
    """`"bragg80"` or a positive number."""
    if value == "bragg80" or (isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= MOST):
        return value if isinstance(value, str) else float(value)
    raise ValueError(f"must be 'bragg80' or a positive number of mm of water, got {short(value)}")


def as_shifter(value: Any) -> Any:
    """`"auto"` or a number of mm of water, zero for none."""
    if value is None or value == "auto":
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= THICKEST:
        return float(value)
    raise ValueError(f"must be 'auto' or 0 to {THICKEST:g} mm of water, got {short(value)}")


def as_grid(value: Any) -> Any:
    """One spacing or three, positive."""
    spacing = as_numbers(value, "one number or three [x, y, z], mm", (1, 3))
    if min(spacing if isinstance(spacing, tuple) else (spacing,)) <= 0:
        raise ValueError(f"must be positive, mm, got {short(value)}")
    return spacing


def as_rbe(value: Any) -> Any:
    """A constant factor, or the name of a model."""
    if isinstance(value, str):
        if value not in RBE_MODELS:
            names = ", ".join(f"'{name}'" for name in RBE_MODELS)
            raise ValueError(f"must be a factor near 1.1, or one of {names}, got {short(value)}{nearest(value, RBE_MODELS)}")
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise PydanticCustomError("rbe", "Input should be a number or the name of a model")
    least, most = 0.1, 5.0
    if not value >= least:
        raise PydanticCustomError("rbe", f"Input should be greater than or equal to {least:g}")
    if not value <= most:
        raise PydanticCustomError("rbe", f"Input should be less than or equal to {most:g}")
    return float(value)


def as_text(value: Any) -> Any:
    """Text that fits on one line, whatever shows it."""
    if isinstance(value, str) and not is_plain(value):
        raise ValueError(f"must be one line of text without control characters, got {short(value)}")
    return value


def short(value: Any) -> str:
    """The value as a message quotes it: no more of it than helps."""
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else f"a number of {len(str(abs(value)))} digits"
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


MOST = 1e9
"""No quantity of a plan is larger, in the case file's units; float32 keeps its squares and sums finite."""

Real = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-MOST, le=MOST)]
Protons = Annotated[float, Field(strict=True, gt=0, le=1e18)]
Count = Annotated[int, Field(strict=True, ge=0, le=int(MOST))]
PositiveCount = Annotated[int, Field(strict=True, gt=0, le=int(MOST))]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Text = Annotated[str, BeforeValidator(as_text)]
Flag = Annotated[bool, Field(strict=True)]
ExistingPath = Annotated[Path, BeforeValidator(as_existing)]
Pair = Annotated[tuple[float, float], BeforeValidator(lambda value: as_numbers(value, "two numbers [x, y], mm", (2,)))]
Point = Annotated[tuple[float, float, float], BeforeValidator(lambda value: as_numbers(value, "three numbers [x, y, z], mm", (3,)))]


@dataclass(frozen=True, eq=False)
class OneOf:
    """Marks a key that takes a name out of a registry: `Annotated[str, OneOf(SOURCES)]`.

    The registry is looked at whenever a case is read: what is registered elsewhere, or later, is allowed here.
    """

    names: Collection[str]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._known)

    def _known(self, value: Any) -> str:
        """The name, or the error that `describe` tells with what is allowed and the nearest."""
        if not isinstance(value, str) or value not in self.names:
            raise PydanticCustomError("literal_error", "none of the registered names")
        return value
