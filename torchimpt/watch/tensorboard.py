"""Scalars and pictures of a run for TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from torchimpt.evaluate.dvh import RoiDose, d, mean_dose
from torchimpt.report.motion import fullest_layers, motion_figure, moved
from torchimpt.report.style import slug
from torchimpt.schemes.stages import PlanIteration
from torchimpt.spots import Spots
from torchimpt.watch.callbacks import Terms, by_roi

Motion = Callable[[PlanIteration], tuple[Spots, Tensor]]
"""From an iteration to the spots and where each was placed, `(n_spots, 2)`, mm."""


class TensorBoard:
    """For TensorBoard: `objective/total`, `objective/<roi>`, `optim/...` and, now and then, `dvh/<roi>_d95`, `_d2`, `_mean`.

    With spots that move also their `spots/count`, `spots/moved_mm_mean` (of those that carry weight) and, now and then, `spots/motion`: a
    picture of the layer of each beam that carried the most when the first was drawn. What `pictures` draws comes ever more rarely: at
    iteration `every` and at each four times the last, so that a thousand iterations have four of them.

    Parameters
    ----------
    folder
        Where the event file goes.
    terms
        The objective's terms at an iteration.
    doses
        The nominal doses at an iteration, by ROI, Gy.
    violations
        The constraints' largest violations at an iteration, by ROI and kind, Gy: `constraints/<roi>.<kind>`; None where there are none.
    motion
        The spots at an iteration and where they were placed; None where none moves.
    pictures
        Figures by tag at an iteration.
    every
        Iterations between two looks at doses and spots.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        terms: Terms | None = None,
        doses: Callable[[PlanIteration], Mapping[str, RoiDose]] | None = None,
        violations: Callable[[PlanIteration], Mapping[str, float]] | None = None,
        motion: Motion | None = None,
        pictures: Callable[[PlanIteration], Mapping[str, Figure]] | None = None,
        every: int = 10,
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes half a second, and only this class needs it

        self._writer = SummaryWriter(str(folder))
        self._terms, self._doses, self._violations, self._motion, self._every = terms, doses, violations, motion, every
        self._pictures, self._next = pictures, every
        self._layers: list[int] = []

    def __call__(self, iteration: PlanIteration) -> None:
        step = iteration.iteration
        scalars = {"objective/total": iteration.value}
        for name in ("step_length", "beta", "projected_gradient_norm", "evaluations", "seconds"):
            scalars[f"optim/{name}"] = getattr(iteration, name)
        if self._terms is not None:
            scalars |= {f"objective/{slug(roi)}": value for roi, value in by_roi(self._terms(iteration)).items()}
        if self._violations is not None:
            scalars |= {f"constraints/{slug(name)}": value for name, value in self._violations(iteration).items()}
        if self._doses is not None and step % self._every == 0:
            for roi, dose in self._doses(iteration).items():
                d95, d2 = d(dose, 95.0, 2.0)
                name = f"dvh/{slug(roi)}"
                scalars |= {f"{name}_d95": d95, f"{name}_d2": d2, f"{name}_mean": mean_dose(dose)}
        if self._motion is not None:
            spots, home = self._motion(iteration)
            way = moved(spots, home)
            scalars |= {"spots/count": spots.n_spots, "spots/moved_mm_mean": float(way.mean())}
            if step % self._every == 0 and bool(way.any()):
                self._layers = self._layers or fullest_layers(spots)
                self.figure("spots/motion", motion_figure(spots, home, self._layers, width=990), step)
        if self._pictures is not None and step >= self._next:
            while self._next <= step:
                self._next *= 4
            for tag, figure in self._pictures(iteration).items():
                self.figure(tag, figure, step)
        for tag, value in scalars.items():
            if value is not None and math.isfinite(value):
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
        file_writer: Any = self._writer.file_writer
        for summary in hparams(plain, numbers):
            file_writer.add_summary(summary)
        for tag, value in numbers.items():
            self._writer.add_scalar(tag, value)

    def close(self) -> None:
        """Write what is pending."""
        self._writer.close()
