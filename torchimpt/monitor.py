"""What is seen of a run while it goes on: callbacks for the solver (history, log, TensorBoard, progress), and progress bars.

A callback takes the solver's `Iteration` and returns nothing, or True to stop. `together` joins several into one.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from torchimpt.checks import InputError
from torchimpt.evaluate.dvh import d
from torchimpt.files import whole_or_nothing
from torchimpt.report.motion import fullest_layers, motion_figure, moved
from torchimpt.report.style import slug
from torchimpt.spots import Spots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from torchimpt.optim.solution import Iteration

Callback = Callable[["Iteration"], "bool | None"]
Terms = Callable[[Tensor], Sequence[Mapping[str, Any]]]
"""From the iterate to the objective's terms, each with `roi` and `value`."""
Motion = Callable[[Tensor], tuple[Spots, Tensor]]
"""From the iterate to the spots and where each was placed, `(n_spots, 2)`, mm."""

_LOG = logging.getLogger("torchimpt")


def together(*callbacks: Callback | None) -> Callback:
    """One callback that calls all (None is skipped) and asks to stop when any of them does."""
    active = [callback for callback in callbacks if callback is not None]

    def call(iteration: Iteration) -> bool:
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
    last
        Iteration to take lines up to, that of the checkpoint which a run goes on from; None for all. The file is cut to what is taken
        up: a run that was killed leaves lines that come again, and perhaps half a line.

    Attributes
    ----------
    rows
        `iteration`, `evaluations`, `value`, `step_length`, `beta`, `projected_gradient_norm`, `seconds`, and `terms`.
    """

    def __init__(self, path: str | Path | None = None, terms: Terms | None = None, last: int | None = None) -> None:
        self._path = Path(path) if path is not None else None
        self._terms = terms
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

    def __call__(self, iteration: Iteration) -> None:
        row: dict[str, Any] = iteration.numbers()
        if self._terms is not None:
            row["terms"] = by_roi(self._terms(iteration.x))
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

    def __call__(self, iteration: Iteration) -> None:
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


class TensorBoard:
    """For TensorBoard: `objective/total`, `objective/<roi>`, `optim/...` and, now and then, `dvh/<roi>_d95`, `_d2`, `_mean`.

    With spots that move also their `spots/count`, `spots/moved_mm_mean` (of those that carry weight) and, now and then, `spots/motion`: a
    picture of the layer of each beam that carried the most when the first was drawn.

    Parameters
    ----------
    folder
        Where the event file goes.
    terms
        The objective's terms at an iterate.
    doses
        The nominal doses at an iterate, `{roi: (n_voxels,)}`, Gy.
    motion
        The spots at an iterate and where they were placed; None where none moves.
    every
        Iterations between two looks at doses and spots.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        terms: Terms | None = None,
        doses: Callable[[Tensor], Mapping[str, Tensor]] | None = None,
        motion: Motion | None = None,
        every: int = 10,
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes half a second, and only this class needs it

        self._writer = SummaryWriter(str(folder))
        self._terms, self._doses, self._motion, self._every = terms, doses, motion, every
        self._layers: list[int] = []

    def __call__(self, iteration: Iteration) -> None:
        step = iteration.iteration
        scalars = {"objective/total": iteration.value}
        for name in ("step_length", "beta", "projected_gradient_norm", "evaluations", "seconds"):
            scalars[f"optim/{name}"] = getattr(iteration, name)
        if self._terms is not None:
            scalars |= {f"objective/{slug(roi)}": value for roi, value in by_roi(self._terms(iteration.x)).items()}
        if self._doses is not None and step % self._every == 0:
            for roi, dose in self._doses(iteration.x).items():
                d95, d2 = d(dose, 95.0, 2.0)
                name = f"dvh/{slug(roi)}"
                scalars |= {f"{name}_d95": d95, f"{name}_d2": d2, f"{name}_mean": float(dose.double().mean())}
        if self._motion is not None:
            spots, home = self._motion(iteration.x)
            way = moved(spots, home)
            scalars |= {"spots/count": spots.n_spots, "spots/moved_mm_mean": float(way.mean())}
            if step % self._every == 0 and bool(way.any()):
                self._layers = self._layers or fullest_layers(spots)
                self.figure("spots/motion", motion_figure(spots, home, self._layers, width=990), step)
        for tag, value in scalars.items():
            if math.isfinite(value):
                self._writer.add_scalar(tag, value, step)

    def figure(self, tag: str, figure: Figure, step: int = 0) -> None:
        """Add a picture, e.g. `dvh/band` or `spots/beam_0`."""
        import numpy as np
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        figure.set_facecolor("white")
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        self._writer.add_image(tag, np.asarray(canvas.buffer_rgba())[..., :3], step, dataformats="HWC")

    def hyperparameters(self, parameters: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Note what the run was made with and what came of it, for TensorBoard's table of runs."""
        from torch.utils.tensorboard.summary import hparams

        plain = {name: value if isinstance(value, (bool, int, float, str)) else str(value) for name, value in parameters.items()}
        numbers = {f"final/{name}": float(value) for name, value in metrics.items() if math.isfinite(value)}
        for summary in hparams(plain, numbers):
            self._writer.file_writer.add_summary(summary)
        for tag, value in numbers.items():
            self._writer.add_scalar(tag, value)

    def close(self) -> None:
        """Write what is pending."""
        self._writer.close()


class Stage:
    """One stage of a job as its worker sees it; a stage that nobody watches does nothing."""

    def advance(self, steps: int = 1) -> None:
        """So many steps are done."""

    def note(self, text: str) -> None:
        """A short remark beside the bar."""

    def __call__(self, iteration: Iteration) -> None:
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
