"""Progress of a job on the terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torchimpt.schemes.stages import PlanIteration

_LOG = logging.getLogger("torchimpt")


class Stage:
    """One stage of a job as its worker sees it; a stage that nobody watches does nothing."""

    def advance(self, steps: int = 1) -> None:
        """So many steps are done."""

    def note(self, text: str) -> None:
        """A short remark beside the bar."""

    def __call__(self, iteration: PlanIteration) -> None:
        """As a solver's callback: an iteration is a step, its objective the remark."""
        if iteration.iteration > 0:
            self.advance()
        self.note(f"objective {iteration.value:,.5g}")


class _Bar(Stage):
    """A stage with a bar on the terminal."""

    def __init__(self, progress: Any, task: Any) -> None:
        self._progress, self._task = progress, task

    def advance(self, steps: int = 1) -> None:
        self._progress.advance(self._task, steps)

    def note(self, text: str) -> None:
        self._progress.update(self._task, note=text)


class Progress:
    """Progress of a job on stderr: a bar a stage where stderr is a terminal, one log line a stage everywhere.

    Parameters
    ----------
    enabled
        False for none; None asks whether stderr is a terminal.
    """

    def __init__(self, enabled: bool | None = None) -> None:
        self.enabled = sys.stderr.isatty() if enabled is None else enabled

    @contextmanager
    def stage(self, label: str, total: int | None = None) -> Iterator[Stage]:
        """Watch one stage.

        Parameters
        ----------
        label
            What is being done, e.g. `"Influence matrices"`.
        total
            Number of steps; None when it is not known.
        """
        _LOG.info("%s", label)
        if not self.enabled:
            yield Stage()
            return
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[note]}"),
        )
        with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
            yield _Bar(bars, bars.add_task(label, total=total, note=""))
