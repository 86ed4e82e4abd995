"""Cases of TROTS, the Radiotherapy Optimisation Test Set: stored dose matrices and what is asked of them, as the file has them.

Source: Breedveld and Heijmen, Data in Brief 12:143, 2017, and the scripts that come with the data (github.com/SebastiaanBreedveld/TROTS),
from which the layout was read; none of their code is here. A file holds `data.matrix`, a struct each with `Name`, `Type` (0: from weights
to doses, 1: of the weights alone, 2: quadratic), `A` `(n_rows, n_weights)`, `b` and `c`; `problem`, a struct each with `dataID` (the number
of its matrix, from 1), `Name`, `Type`, `Minimise`, `IsConstraint`, `Objective`, `Weight`, `Parameters`, `Active`; and `solutionX`, weights
that solve it. Doses are `A x + b`, Gy. A robust matrix has the rows of nine scenarios one after the other; one row is a mean dose.
The files are MATLAB's of version 7.3, HDF5, which take h5py; saved anew with `-v7` they need nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csc_matrix, issparse

from torchimpt.checks import InputError
from torchimpt.files import input_file, reader
from torchimpt.io.mat import load, structs

KINDS = {1: "linear", 2: "quadratic", 3: "gEUD", 4: "LTCP", 5: "DVH", 6: "chain"}
"""What an entry asks about, by its number in the file."""

VARIABLES = ("problem", "data", "solutionX")

_HDF5 = b"\x89HDF\r\n\x1a\n"
_HDF5_AT = 512
"""Where MATLAB's version 7.3 has it."""


@dataclass(frozen=True)
class TrotsEntry:
    """One objective or constraint.

    Attributes
    ----------
    name
        Of the structure.
    kind
        A value of `KINDS`.
    matrix
        Number of its matrix, from 1.
    minimise
        Whether less is better; of linear ones: whether `objective` is a most or a least.
    constraint
        Whether it has to hold.
    objective, weight, parameters
        Level, Gy; importance; the kind's own numbers.
    """

    name: str
    kind: str
    matrix: int
    minimise: bool
    constraint: bool
    objective: float
    weight: float
    parameters: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class TrotsFile:
    """A case as the file has it: its active entries, the matrices that they need by number, and the weights that come with it."""

    path: str
    entries: tuple[TrotsEntry, ...]
    matrices: Mapping[int, csc_matrix]
    kinds: Mapping[int, int]
    solution: np.ndarray | None


@reader("TROTS case")
def read_trots_file(path: str | os.PathLike) -> TrotsFile:
    """Read a case's active entries and their matrices.

    Parameters
    ----------
    path
        The `.mat` file, e.g. `"Protons_01.mat"`. Version 7.3 takes h5py (`pip install 'torchimpt[trots]'`).
    """
    path = input_file(path, "TROTS case")
    with _opened(path) as (problem, matrix, solution):
        entries = tuple(entry for entry in map(_entry, problem) if entry is not None)
        if not entries:
            raise InputError(f"{path} has no active entry in problem; nothing is asked for")
        matrices, kinds = {}, {}
        for entry in entries:
            if not 1 <= entry.matrix <= len(matrix):
                raise InputError(f"{path}: '{entry.name}' has dataID {entry.matrix}, but data.matrix has {len(matrix)} elements")
            if entry.matrix not in matrices:
                found = matrix[entry.matrix - 1]
                kinds[entry.matrix] = int(_one(found, "Type")) if "Type" in found else 0
                matrices[entry.matrix] = _sparse(path, entry, found)
    widths = {found.shape[1] for found in matrices.values()}
    if len(widths) > 1:
        raise InputError(f"{path}: the matrices have {', '.join(map(str, sorted(widths)))} columns; all must have one for each weight")
    if solution is not None and solution.shape != (widths.pop(),):
        raise InputError(f"{path}: solutionX has {solution.size} weights, the matrices have another number of columns")
    return TrotsFile(str(path), entries, matrices, kinds, solution)


def _entry(row: Mapping[str, Any]) -> TrotsEntry | None:
    """One element of `problem`; None where it is not active."""
    if "Active" in row and not _one(row, "Active"):
        return None
    kind = int(_one(row, "Type"))
    parameters = np.asarray(row.get("Parameters", ()), dtype=np.float64).flatten()
    return TrotsEntry(
        name=str(row["Name"]), kind=KINDS.get(kind, f"type {kind}"), matrix=int(_one(row, "dataID")), minimise=bool(_one(row, "Minimise")),
        constraint=bool(_one(row, "IsConstraint")), objective=_one(row, "Objective"), weight=_one(row, "Weight"),
        parameters=tuple(parameters.tolist()),
    )  # fmt: skip


def _one(row: Mapping[str, Any], name: str) -> float:
    """A field that is one finite number."""
    if name not in row:
        raise InputError(f"an element has no field '{name}'; is it a TROTS case?")
    value = np.asarray(row[name])
    if value.size != 1 or value.dtype.kind not in "fiub" or not np.isfinite(value).all():
        raise InputError(f"{name} of '{row.get('Name', '')}' must be one finite number")
    return float(value.item())


def _sparse(path: Path, entry: TrotsEntry, row: Mapping[str, Any]) -> csc_matrix:
    """An element's matrix."""
    if "A" not in row:
        raise InputError(f"{path}: data.matrix({entry.matrix}) has no field 'A'")
    found = row["A"]
    matrix = csc_matrix(found if issparse(found) else np.atleast_2d(np.asarray(found, dtype=np.float64)))
    try:
        matrix.check_format(full_check=True)  # compiled loops go by its indices
    except ValueError as error:
        raise InputError(f"{path}: data.matrix({entry.matrix}).A, '{entry.name}', is damaged: {error}") from None
    if 0 in matrix.shape or not np.isfinite(matrix.data).all():
        raise InputError(f"{path}: data.matrix({entry.matrix}).A, '{entry.name}', must be a matrix of finite numbers")
    if np.any(np.asarray(row.get("b", 0.0)) != 0):
        raise InputError(f"{path}: data.matrix({entry.matrix}) has doses given already (b is not 0), which cannot be planned on top of")
    return matrix


@contextmanager
def _opened(path: Path) -> Iterator[tuple[list[Mapping[str, Any]], list[Mapping[str, Any]], np.ndarray | None]]:
    """Elements of `problem` and `data.matrix`, and `solutionX`, of either version."""
    with path.open("rb") as file:
        file.seek(_HDF5_AT)
        newer = file.read(len(_HDF5)) == _HDF5
    if not newer:
        content = load(path, VARIABLES)
        _check(path, set(content))
        solution = content.get("solutionX")
        matrix = getattr(content["data"], "matrix", None)
        if matrix is None:
            raise InputError(f"{path}: data has no field 'matrix'; is it a TROTS case?")
        yield (
            [vars(one) for one in structs(content["problem"])], [vars(one) for one in structs(matrix)],
            None if solution is None else np.atleast_1d(np.asarray(solution, dtype=np.float64)),
        )  # fmt: skip
        return
    try:
        import h5py
    except ImportError:
        raise InputError(
            f"{path} is a MATLAB file of version 7.3, which takes h5py: pip install 'torchimpt[trots]', or save it in MATLAB with -v7"
        ) from None
    with h5py.File(path, "r") as file:
        _check(path, set(file))
        if "matrix" not in file["data"]:
            raise InputError(f"{path}: data has no field 'matrix'; is it a TROTS case?")
        solution = np.asarray(_value(file, file["solutionX"])).flatten() if "solutionX" in file else None
        yield _elements(file, file["problem"]), _elements(file, file["data"]["matrix"]), solution


def _check(path: Path, names: set[str]) -> None:
    missing = [name for name in ("problem", "data") if name not in names]
    if missing:
        raise InputError(f"{path} has no variable {' and '.join(missing)}, so it is no TROTS case")


def _elements(file: Any, group: Any) -> list[Mapping[str, Any]]:
    """Elements of a struct array in HDF5: each field a list of references to their values, or the values where there is one element."""
    many = all(hasattr(field, "dtype") and field.dtype.kind == "O" and "MATLAB_class" not in field.attrs for field in group.values())
    if not many:
        return [_Lazy(file, dict(group.items()))]
    count = min(field.size for field in group.values())
    fields = {name: field[()].flatten() for name, field in group.items()}
    return [_Lazy(file, {name: file[references[i]] for name, references in fields.items()}) for i in range(count)]


class _Lazy(Mapping[str, Any]):
    """An element whose fields are read when they are asked for: most matrices of a file are not."""

    def __init__(self, file: Any, nodes: Mapping[str, Any]) -> None:
        self._file, self._nodes = file, nodes

    def __getitem__(self, name: str) -> Any:
        return _value(self._file, self._nodes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)


def _value(file: Any, node: Any) -> Any:
    """A value in HDF5 as MATLAB has it: text, a sparse matrix or an array, whose axes are the other way round there."""
    rows = node.attrs.get("MATLAB_sparse")
    if rows is not None:
        starts = node["jc"][()].astype(np.int64)
        if "data" not in node:
            return csc_matrix((int(rows), len(starts) - 1))
        return csc_matrix((node["data"][()].astype(np.float64), node["ir"][()].astype(np.int64), starts), (int(rows), len(starts) - 1))
    if node.attrs.get("MATLAB_empty"):
        return np.zeros(0)
    if node.attrs.get("MATLAB_class") == b"char":
        return "".join(map(chr, node[()].flatten().tolist()))
    return node[()].T
