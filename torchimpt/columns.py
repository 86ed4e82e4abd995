"""Columns of numbers from CSV and plain text files, with errors that name file, line and column."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from torchimpt.checks import InputError, nearest
from torchimpt.files import input_file, reader


@reader("table")
def read_columns(path: str | Path, required: Sequence[str | tuple[str, ...]], optional: Sequence[str] = ()) -> dict[str, torch.Tensor]:
    """Read named columns of a CSV file with a header line; other columns are left alone.

    Parameters
    ----------
    path
        The file.
    required
        Names of the columns. A tuple holds alternatives: the first one in the file is read, and returned under the tuple's first name.
    optional
        Names of columns that may be missing, and are then missing from the result.

    Returns
    -------
    Tensors `(n_rows,)`, float64, by column name; every value finite, one row at least.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no file {path}; it must be a CSV file with the columns {', '.join(_first(r) for r in required)}")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        names = [name.strip() for name in reader.fieldnames or []]
        reader.fieldnames = names
        source = {}
        for column in required:
            alternatives = (column,) if isinstance(column, str) else column
            found = next((name for name in alternatives if name in names), None)
            if found is None:
                wanted = " or ".join(alternatives)
                raise InputError(f"{path} has no column {wanted}{nearest(alternatives[0], names)}; it has {', '.join(names) or 'none'}")
            source[alternatives[0]] = found
        source |= {name: name for name in optional if name in names}
        rows = [[_number(path, line, row, name) for name in source.values()] for line, row in enumerate(reader, start=2)]
    if not rows:
        raise InputError(f"{path} has no row under its header")
    return dict(zip(source, torch.tensor(rows, dtype=torch.float64).T.contiguous(), strict=True))


@reader("table")
def read_rows(path: str | Path, names: Sequence[str], header: bool = False) -> dict[str, torch.Tensor]:
    """Read a text file with rows of numbers separated by white space; empty lines and what follows a `#` are left alone.

    Parameters
    ----------
    path
        The file.
    names
        Of its columns, in order; each row has exactly these.
    header
        Whether lines that are no numbers may stand before the first row.

    Returns
    -------
    Tensors `(n_rows,)`, float64, by column name; every value finite, one row at least.
    """
    path = input_file(path, "table")
    what, rows = " and ".join(names), list[list[float]]()
    for line, text in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        words = text.partition("#")[0].split()
        if not words or (header and not rows and not _is_number(words[0])):
            continue
        if len(words) != len(names):
            raise InputError(
                f"{path}, line {line}: expected {len(names)} numbers separated by white space, {what}, got '{text.strip()[:80]}'"
            )
        row = dict(zip(names, words, strict=True))
        rows.append([_number(path, line, row, name) for name in names])
    if not rows:
        raise InputError(f"{path} has no row of numbers; it must have the columns {what}, separated by white space")
    return dict(zip(names, torch.tensor(rows, dtype=torch.float64).T.contiguous(), strict=True))


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _first(column: str | tuple[str, ...]) -> str:
    return column if isinstance(column, str) else column[0]


def _number(path: Path, line: int, row: Mapping[str, str | None], column: str) -> float:
    """The finite number in a row's column."""
    return number(f"{path}, line {line}, column {column}", row[column])


def number(where: str, word: str | None) -> float:
    """The finite number that a word of a file is, or an error that begins with `where`."""
    try:
        value = float(word or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{where}: expected a number, got '{str(word)[:80]}'")
    return value
