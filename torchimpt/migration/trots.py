"""A case of TROTS as what our solvers minimize: stored matrices and terms.

TROTS adds up `weight * f` of its objectives, `f` the largest or least dose of a structure, or a mean. A term here is the square of what is
above or below a level, so the counterpart of an objective is the squared excess over its `Objective`, weighted alike: another function,
whose minimum is not the file's `solutionX`. Constraints are the same here and there, `A x <= Objective` or `>=` in every row.

    linear, several rows: max_dose (Minimise) or min_dose       linear, one row: mean_dose (Minimise)       gEUD: gEUD, 1 <= a <= 100

Quadratic terms, LTCP, DVH and chains have no counterpart.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import csc_matrix, vstack

from torchimpt.checks import InputError
from torchimpt.dose import csr
from torchimpt.dose.influence import InfluenceMatrix
from torchimpt.dose.linear import StoredDose
from torchimpt.dose.model import SpotRows
from torchimpt.files import reader
from torchimpt.io.trots import TrotsEntry, read_trots_file
from torchimpt.objectives import GEUD, BoundObjective, BoundTerm, MaxDose, MeanDose, MinDose, RobustObjective, Term
from torchimpt.optim import Composite, Solution, minimize
from torchimpt.schemes.weights import best_uniform_weight

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class TrotsCase:
    """A case that can be minimized.

    Attributes
    ----------
    path
        The file.
    terms, rows
        What is asked, and of which rows of the matrix, in the file's order.
    dose
        The products with the matrix, one scenario: all rows that the terms need, one matrix of the file's below the other.
    objective
        The terms bound to the rows, each divided by their number.
    solution
        The file's own weights `(n_weights,)`, where it has them.
    left_out
        Entries without a counterpart.
    """

    path: str
    terms: tuple[Term, ...]
    rows: tuple[slice, ...]
    dose: StoredDose
    objective: RobustObjective
    solution: torch.Tensor | None
    left_out: tuple[str, ...]

    @property
    def n_weights(self) -> int:
        """Number of pencil beams."""
        return int(self.dose.matrices[0].shape[1])  # type: ignore[attr-defined]

    def minimize(self, **options: Any) -> Solution:
        """The weights, zero or more, that our objective is least at, from the best uniform ones; options are those of `optim.minimize`."""
        matrix: Any = self.dose.matrices[0]
        start = best_uniform_weight(self.dose, self.objective, torch.ones(self.n_weights, dtype=matrix.matrix.entries.dtype))
        return minimize(Composite(self.dose, self.objective), start, lower=0.0, **options)


@reader("TROTS case")
def read_trots(path: str | os.PathLike, *, strict: bool = True, dtype: torch.dtype = torch.float32) -> TrotsCase:
    """Read a case of TROTS.

    Parameters
    ----------
    path
        The `.mat` file, e.g. `"Protons_01.mat"`; version 7.3 takes h5py (`pip install 'torchimpt[trots]'`).
    strict
        Whether an entry without a counterpart is an error (True), or left out with a logged warning.
    dtype
        Of the matrix.

    Examples
    --------
    `case = read_trots("Protons_01.mat"); solution = case.minimize(max_iterations=200); doses = case.dose.forward(solution.x)`
    """
    found = read_trots_file(path)
    terms, numbers, left_out = [], [], []
    for entry in found.entries:
        term = _term(entry, found.matrices[entry.matrix].shape[0], found.kinds[entry.matrix])
        if term is None:
            left_out.append(f"{entry.kind} of {entry.name}")
        else:
            terms.append(term)
            numbers.append(entry.matrix)
    if left_out and (strict or not terms):
        raise InputError(
            f"{found.path}: {', '.join(left_out)} {'has' if len(left_out) == 1 else 'have'} no counterpart here; strict=False leaves such "
            "entries out"
        )
    if left_out:
        logger.warning("%s: without a counterpart, and left out: %s", found.path, ", ".join(left_out))
    places, matrix = _stacked(found.matrices, numbers)
    rows = tuple(places[number] for number in numbers)
    bound = [
        BoundTerm(term, torch.arange(own.start, own.stop), 1.0 / (own.stop - own.start)) for term, own in zip(terms, rows, strict=True)
    ]
    objective = RobustObjective(BoundObjective(bound, matrix.shape[0]))
    solution = None if found.solution is None else torch.from_numpy(found.solution.copy())
    return TrotsCase(found.path, tuple(terms), rows, StoredDose([_influence(matrix, dtype)]), objective, solution, tuple(left_out))


def _term(entry: TrotsEntry, n_rows: int, kind: int) -> Term | None:
    """The counterpart of an entry; None where there is none."""
    if kind == 2 or entry.kind not in ("linear", "gEUD"):
        return None
    weight = entry.weight if entry.weight > 0 or not entry.constraint else 1.0
    of: dict[str, Any] = {"weight": weight, "constraint": entry.constraint}
    if entry.kind == "gEUD":
        known = entry.minimise and len(entry.parameters) == 1 and 1 <= entry.parameters[0] <= 100
        return GEUD(entry.name, entry.objective, a=entry.parameters[0], **of) if known else None
    if n_rows == 1 and entry.minimise:
        return MeanDose(entry.name, entry.objective, **of)
    return (MaxDose if entry.minimise else MinDose)(entry.name, entry.objective, **of)


def _stacked(matrices: Mapping[int, csc_matrix], numbers: list[int]) -> tuple[dict[int, slice], csc_matrix]:
    """The matrices that are needed below one another, and the rows of each."""
    places: dict[int, slice] = {}
    end = 0
    for number in dict.fromkeys(numbers):
        places[number] = slice(end, end + matrices[number].shape[0])
        end = places[number].stop
    return places, csc_matrix(vstack([matrices[number] for number in places], format="csc"))


def _influence(matrix: csc_matrix, dtype: torch.dtype) -> InfluenceMatrix:
    """A stored matrix of ours."""
    if matrix.nnz > csr.MAX_NONZEROS:
        raise InputError(f"the case has {matrix.nnz:.3g} entries, more than int32 rows hold (2.1e9)")
    matrix.sum_duplicates()
    rows = SpotRows(np.diff(matrix.indptr).astype(np.int64), matrix.indices.astype(np.int32), matrix.data.astype(np.float64))
    return InfluenceMatrix(*csr.both_ways([rows], matrix.shape, dtype))
