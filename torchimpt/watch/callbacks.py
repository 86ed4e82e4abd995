"""Callbacks that keep numbers of a run while it goes on: history and log.

A callback takes the stages' `PlanIteration` and returns nothing, or True to stop. `together` joins several into one.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torchimpt.checks import InputError
from torchimpt.files import whole_or_nothing
from torchimpt.schemes.stages import Callback, PlanIteration

Terms = Callable[[PlanIteration], Sequence[Mapping[str, Any]]]
"""From an iteration to the objective's terms, each with `roi` and `value`."""

Goals = Callable[[PlanIteration], Sequence[Mapping[str, Any]]]
"""From an iteration to the goals, each with `roi`, `metric`, `limit`, `value` and `passed`."""

_LOG = logging.getLogger("torchimpt")


def together(*callbacks: Callback | None) -> Callback:
    """One callback that calls all (None is skipped) and asks to stop when any of them does."""
    active = [callback for callback in callbacks if callback is not None]

    def call(iteration: PlanIteration) -> bool:
        return any([bool(callback(iteration)) for callback in active])

    return call


def by_roi(terms: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The terms' values added up over kinds and scenarios."""
    sums: dict[str, float] = {}
    for term in terms:
        sums[term["roi"]] = sums.get(term["roi"], 0.0) + term["value"]
    return sums


class History:
    """Rows of numbers, one an iteration, also as JSON lines in a file, so that a resumed run has its whole past.

    Parameters
    ----------
    path
        The file; lines that are there already are taken up. None keeps the rows in memory only.
    terms
        What each row notes besides: the objective's share of every ROI, as `terms`.
    goals
        What every `every`-th row notes besides: the goals as they stand, as `goals`.
    last
        Iteration to take lines up to, that of the checkpoint which a run goes on from; None for all. The file is cut to what is taken
        up: a run that was killed leaves lines that come again, and perhaps half a line.

    Attributes
    ----------
    rows
        `iteration`, `evaluations`, `value`, `step_length`, `beta`, `projected_gradient_norm`, `seconds`, and `terms` and `goals`.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        terms: Terms | None = None,
        last: int | None = None,
        goals: Goals | None = None,
        every: int = 10,
    ) -> None:
        self._path = Path(path) if path is not None else None
        self._terms, self._goals, self._every = terms, goals, every
        self.rows: list[dict[str, Any]] = []
        if self._path is not None and self._path.is_file():
            self._take_up(self._path, math.inf if last is None else last)

    def _take_up(self, path: Path, last: float) -> None:
        """Read the rows up to iteration `last`, and cut the file to them."""
        text = path.read_text(encoding="utf-8", errors="replace")
        for number, line in enumerate(text.split("\n")[:-1], start=1):  # what follows the last line's end is half a line or nothing
            try:
                row = json.loads(line)
                if row["iteration"] <= last:
                    self._add(row)
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{path}: line {number} is no row of a history; remove the file to go on without it") from error
        kept = "".join(json.dumps(row) + "\n" for row in self.rows)
        if kept != text:
            with whole_or_nothing(path) as scratch:
                scratch.write_text(kept, encoding="utf-8")

    def _add(self, row: dict[str, Any]) -> None:
        """Append a row; those of the same or a later iteration, left by a run that was cut off, go."""
        while self.rows and self.rows[-1]["iteration"] >= row["iteration"]:
            self.rows.pop()
        self.rows.append(row)

    def __call__(self, iteration: PlanIteration) -> None:
        row: dict[str, Any] = iteration.numbers()
        if self._terms is not None:
            row["terms"] = by_roi(self._terms(iteration))
        if self._goals is not None and iteration.iteration % self._every == 0:
            row["goals"] = list(self._goals(iteration))
        self._add(row)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


class Log:
    """A line to the log every few iterations.

    Parameters
    ----------
    every
        Iterations between two lines.
    """

    def __init__(self, every: int = 10) -> None:
        self._every = every

    def __call__(self, iteration: PlanIteration) -> None:
        if iteration.iteration % self._every == 0:
            _LOG.info(
                "iteration %4d  objective %.6g  projected gradient %.3g  step %.3g  %d evaluations  %.1f s",
                iteration.iteration,
                iteration.value,
                iteration.projected_gradient_norm,
                iteration.step_length,
                iteration.evaluations,
                iteration.seconds,
            )
