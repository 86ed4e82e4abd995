"""`.mat` files as scipy reads them: structs as objects, cells as arrays of objects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from torchimpt.checks import InputError
from torchimpt.matfile import load_mat


def load(path: Path, names: Sequence[str]) -> dict[str, Any]:
    """The file's variables of these names, as many as there are."""
    try:
        return load_mat(path, list(names))
    except NotImplementedError as error:
        raise InputError(f"{path} is a MATLAB 7.3 file; save it in MATLAB with save(name, {_listed(names)}, '-v7')") from error
    except InputError:
        raise
    except Exception as error:  # scipy raises whatever a broken file makes it stumble over
        raise InputError(f"{path} is not a readable .mat file: {error}") from error


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def has(struct: Any, name: str) -> bool:
    """Whether a struct has a field that is not empty."""
    return hasattr(struct, name) and (not isinstance(getattr(struct, name), np.ndarray) or getattr(struct, name).size > 0)


def field(path: Path, struct: Any, name: str, what: str) -> Any:
    """A field of the struct `what`, or an error that names both."""
    if not has(struct, name):
        raise InputError(f"{path}: {what} has no field '{name}'")
    return getattr(struct, name)


def structs(value: Any) -> list[Any]:
    """The elements of a struct array or a cell, one or many; none of an empty one."""
    array = np.atleast_1d(np.asarray(value, dtype=object))
    return list(array.flat)


def numbers(path: Path, struct: Any, name: str, what: str, count: int | None = None) -> np.ndarray:
    """A field of finite numbers `(count,)`, float64."""
    value = np.atleast_1d(np.asarray(field(path, struct, name, what)))
    if value.dtype.kind not in "fiub" or value.ndim != 1 or (count is not None and len(value) != count) or not np.isfinite(value).all():
        wanted = "finite numbers in a row" if count is None else "one finite number" if count == 1 else f"{count} finite numbers"
        raise InputError(f"{path}: {what}.{name} must be {wanted}, got {_short(value)}")
    return value.astype(np.float64)


def number(path: Path, struct: Any, name: str, what: str) -> float:
    """A field that is one finite number."""
    return float(numbers(path, struct, name, what, 1)[0])


def text(struct: Any, *names: str) -> str:
    """The text in the first of the nested fields `names` that is one, as in `text(pln, "propOpt.quantityOpt", "bioModel")`; else empty."""
    for name in names:
        value = struct
        for part in name.split("."):
            value = getattr(value, part, None)
        if isinstance(value, str) and value:
            return value
    return ""


def _short(value: np.ndarray) -> str:
    return f"'{str(value[0])[:40]}'" if value.size == 1 else f"an array of shape {value.shape} and type {value.dtype}"
