"""Several runs side by side: a table of what matters, their DVHs in one plot, and their doses with the difference to the first."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from torchimpt.checks import InputError
from torchimpt.evaluate.dvh import Metric
from torchimpt.evaluate.tables import read_dvh_csv
from torchimpt.files import reading, whole_or_nothing
from torchimpt.geometry import Grid
from torchimpt.patient import Patient
from torchimpt.report.course import beam_seconds
from torchimpt.report.drawn import dvh_data
from torchimpt.report.figures import Curves
from torchimpt.report.numbers import amount, gy, seconds
from torchimpt.report.page import slices_data, templates
from torchimpt.report.style import colors_by_role, roi_colors


@dataclass(frozen=True)
class RunRecord:
    """A run folder as it was read, or a dose of a run's plan that another program computed (`torchimpt.runs.returned`).

    Attributes
    ----------
    name
        The folder's or file's name, or as much of its path as tells it from the others.
    metrics
        `metrics.json`.
    curves
        `curves[scenario][roi]`: dose in Gy and volume in %.
    case
        The resolved case file as a tree; empty where there is none.
    dose, grid
        Nominal dose `(z, y, x)`, Gy, and where its voxels lie; None where it was not read.
    """

    name: str
    metrics: Mapping[str, Any]
    curves: Mapping[str, Curves]
    case: Mapping[str, Any]
    dose: torch.Tensor | None = None
    grid: Grid | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        """ROIs that spots were placed for."""
        target = self.case.get("spots", {}).get("target", ())
        return (target,) if isinstance(target, str) else tuple(target)


def short_names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    raise InputError(f"two of the runs to compare are the same folder: {', '.join(map(str, folders))}")


def read_runs(folders: Sequence[str | Path]) -> list[RunRecord]:
    """Read run folders; an error says which of them is none, incomplete or damaged."""
    paths = [Path(folder) for folder in folders]
    if len(paths) < 2:
        raise InputError("compare takes two or more run folders, or one and doses of its plan, .mhd (MCsquare's) or .mha (Gy)")
    return [read_run(path, name) for path, name in zip(paths, short_names(paths), strict=True)]


def read_run(path: Path, name: str) -> RunRecord:
    """Read one run folder, to be shown under this name."""
    if not path.is_dir():
        raise InputError(f"no run folder at {path}")
    if not (path / "metrics.json").is_file():
        raise InputError(f"{path} has no metrics.json: the run is incomplete, or the folder is no run folder")
    with reading(path / "metrics.json", "run"):
        metrics = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
    case = {}
    if (path / "case.toml").is_file():
        with reading(path / "case.toml", "run"):
            case = tomllib.loads((path / "case.toml").read_text(encoding="utf-8"))
    run = RunRecord(name, metrics, read_dvh_csv(path / "dvh.csv"), case)
    with reading(path, "run"):  # a value of the wrong kind shows in the run's own table, where its folder is known
        comparison([run])
        _shown([run])
    return run


@dataclass(frozen=True)
class Row:
    """One line of the comparison: a text a run, `"–"` where it has none, and the indices of the best (empty where none is better)."""

    group: str
    label: str
    cells: list[str]
    best: list[int]


def _row(
    group: str,
    label: str,
    runs: Sequence[RunRecord],
    look: Callable[[Mapping[str, Any]], float],
    show: Callable[[float], str],
    better: Callable | None = None,
) -> Row | None:
    """A row of what `look` finds in each run's metrics; None when no run has it. `better` is `min` or `max`."""
    values: list[float | None] = []
    for run in runs:
        try:
            values.append(look(run.metrics))
        except (KeyError, StopIteration):
            values.append(None)
    known = [value for value in values if value is not None]
    if not known:
        return None
    cells = ["–" if value is None else show(value) for value in values]
    top = better(known) if better is not None and len(set(cells)) > 1 and len(known) > 1 else None
    return Row(group, label, cells, [i for i, value in enumerate(values) if top is not None and value == top])


def _nominal(metrics: Mapping[str, Any], roi: str, key: str) -> float:
    return metrics["scenarios"][0]["rois"][roi][key]


def _worst(metrics: Mapping[str, Any], roi: str, key: str) -> float:
    return metrics["worst"][roi][key]


def _difference(metrics: Mapping[str, Any], key: str) -> float:
    return metrics["difference"][key]


def _goal_rows(runs: Sequence[RunRecord]) -> list[Row | None]:
    """Nominal and worst value of every goal that any run has."""
    rows: list[Row | None] = []
    goals = {(g["roi"], g["metric"], g.get("limit", "")): g for run in runs for g in run.metrics.get("goals", ())}
    for (roi, metric, limit), first in goals.items():

        def find(metrics: Mapping[str, Any], roi: str = roi, metric: str = metric, limit: str = limit) -> Mapping[str, Any]:
            return next(g for g in metrics["goals"] if (g["roi"], g["metric"], g.get("limit", "")) == (roi, metric, limit))

        cells, best = [], []
        for number, run in enumerate(runs):
            try:
                goal = find(run.metrics)
            except (KeyError, StopIteration):
                cells.append("–")
                continue
            digits = 1 if Metric.parse(metric).unit else 3
            # what was NaN is null in metrics.json
            nominal, worst = ("–" if value is None else f"{value:.{digits}f}" for value in (goal["nominal"], goal["worst"]))
            cells.append(f"{nominal}, worst {worst} {'✓' if goal['passed'] else '✕'}")
            best += [number] if goal["passed"] else []
        name = f"{first['quantity']} {Metric.parse(metric).label}" if "quantity" in first else Metric.parse(metric).label
        rows.append(Row("Goals", f"{roi} {name} {limit}".strip(), cells, best if len(best) < len(runs) else []))
    return rows


def _dose_rows(runs: Sequence[RunRecord]) -> list[Row | None]:
    """Organs' doses, and how far doses of the first run's plan are from its own, where that is above a tenth of its maximum."""
    rows: list[Row | None] = []
    for roi in [name for name in _shown(runs) if name not in runs[0].targets]:
        for key, label in (("mean_gy", "mean"), ("d2_gy", "D2")):
            rows.append(_row("Organs", f"{roi} {label}", runs, partial(_nominal, roi=roi, key=key), gy))
    told = {"mean_gy": "mean", "rms_gy": "rms", "noise_gy": "of it noise, about", "max_gy": "largest"}
    for key, label in ((key, f"Difference, {what}") for key, what in told.items()):
        rows.append(_row("Dose above 10 %", label, runs, partial(_difference, key=key), lambda v: f"{v:.2f} Gy"))
    rows.append(_row("Dose above 10 %", "Integral over the run's", runs, partial(_difference, key="ratio"), lambda v: f"{v:.4f}"))
    return rows


def comparison(runs: Sequence[RunRecord]) -> list[Row]:
    """The rows of the table, group by group: plan, targets, goals, organs and differences of doses that came back, cost."""

    def whole(value: float) -> str:
        return f"{value:,.0f}"

    def time(value: float) -> str:
        return " ".join(seconds(value))

    rows = [
        _row("Plan", "Objective", runs, lambda m: m["objective"]["final"], amount, min),
        _row("Plan", "Converged", runs, lambda m: m["converged"], lambda v: "yes" if v else "no"),
        _row("Plan", "Spots placed", runs, lambda m: m["spots"]["placed"], whole),
        _row("Plan", "Spots delivered", runs, lambda m: m["spots"]["nonzero"], whole),
        _row("Plan", "Spots moved, mean", runs, lambda m: m["spots"]["moved_mm"]["mean"], lambda v: f"{v:.2f} mm" if v else "–"),
        _row("Plan", "Energy layers", runs, lambda m: m["spots"]["energy_layers"], whole),
        _row("Plan", "Monitor units", runs, lambda m: m["delivery"]["mu"], whole),
        _row("Plan", "Delivery of a fraction", runs, lambda m: m["delivery"]["seconds"], beam_seconds, min),
        _row("Plan", "of it switching energy", runs, lambda m: m["delivery"]["energy_switch_s"], beam_seconds),
    ]
    for target in dict.fromkeys(name for run in runs for name in run.targets):
        for key, label, better in (("d95_gy", "D95", max), ("d98_gy", "D98", max), ("d2_gy", "D2", None)):
            in_nominal, at_worst = partial(_nominal, roi=target, key=key), partial(_worst, roi=target, key=key)
            rows.append(_row("Targets", f"{target} {label}", runs, in_nominal, gy, better))
            rows.append(_row("Targets", f"{target} {label}, worst", runs, at_worst, gy, better))
    rows += _goal_rows(runs)
    if any("difference" in run.metrics for run in runs):
        rows += _dose_rows(runs)
    rows += [
        _row("Cost", "Iterations", runs, lambda m: m["iterations"], whole),
        _row("Cost", "Evaluations", runs, lambda m: m["evaluations"], whole),
        _row("Cost", "Time optimizing", runs, lambda m: m["time_s"]["optimize"], time, min),
        _row("Cost", "Time in all", runs, lambda m: m["time_s"]["total"], time, min),
        _row("Cost", "Peak memory, GB", runs, lambda m: m["peak_memory_bytes"] / 1e9, lambda v: f"{v:.2f}", min),
    ]
    return [row for row in rows if row is not None and set(row.cells) != {"–"}]


def _shown(runs: Sequence[RunRecord], limit: int = 10) -> list[str]:
    """ROIs to draw: targets, those with goals, those with objectives."""
    wanted = [name for run in runs for name in run.targets]
    wanted += [goal["roi"] for run in runs for goal in run.metrics.get("goals", ())]
    wanted += [objective["roi"] for run in runs for objective in run.case.get("objective", ())]
    everywhere = [roi for run in runs for roi in next(iter(run.curves.values()), {})]
    names = [name for name in dict.fromkeys(wanted) if name in everywhere] or list(dict.fromkeys(everywhere))
    return [name for name in names if name.lower() not in ("external", "body")][:limit]


@dataclass(frozen=True)
class Ground:
    """What the doses of compared runs are looked at on.

    Attributes
    ----------
    patient
        Of the first run, on its dose grid.
    doses
        `(z, y, x)` on this grid, Gy, nominal, by run.
    level
        Prescription, Gy.
    """

    patient: Patient
    doses: Mapping[str, torch.Tensor]
    level: float | None = None


def _verdicts(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """How each run's goals stand, in words, of those that have goals."""
    told = []
    for run in runs:
        goals = run.metrics.get("goals", ())
        if goals and all(goal["worst"] is not None for goal in goals):
            held = sum(bool(goal["passed"]) for goal in goals)
            told.append({"text": f"{run.name}: {held} of {len(goals)} goals met", "good": held == len(goals)})
    return told


def write_comparison(path: str | Path, runs: Sequence[RunRecord], ground: Ground | None = None) -> None:
    """Write table, DVHs and, where there is a `ground`, dose slices as one self-contained page; the file appears only when it is whole."""
    rois, shown = _shown(runs, limit=64), _shown(runs)
    targets = [name for name in dict.fromkeys(name for run in runs for name in run.targets) if name in rois]
    colors = colors_by_role({name: "target" if name in targets else "oar" for name in rois})
    if ground is not None:  # those of the runs' own reports
        colors |= roi_colors(ground.patient, [name for name in targets if name in ground.patient.rois])
    level = None if ground is None else ground.level
    curves = {run.name: run.curves for run in runs}
    slices: dict[str, Any] | None = None
    volumes: dict[str, str] = {}
    if ground is not None:
        outlined = [name for name in rois if name in ground.patient.rois]
        slices, volumes = slices_data(ground.patient, ground.doses, colors, rois=outlined, targets=targets, level=level)
    page = (
        templates()
        .get_template("compare.html")
        .render(
            runs=runs,
            rows=comparison(runs),
            verdicts=_verdicts(runs),
            dvh=dvh_data(curves, rois, colors, shown=shown, targets=targets, level=level) if rois else None,
            slices=slices,
            volumes=volumes,
            dashes=("", "8 3", "2 2.5", "9 3 2 3"),
        )
    )
    with whole_or_nothing(path) as scratch:
        scratch.write_text(page, encoding="utf-8")
