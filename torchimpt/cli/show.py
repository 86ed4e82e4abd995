"""Results on the terminal: tables for stdout, built with rich; colours only where stdout is a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from torchimpt.case.text import scalar
from torchimpt.cli.streams import printing
from torchimpt.evaluate.dvh import Metric
from torchimpt.evaluate.fine import fine_text
from torchimpt.evaluate.hottest import hottest_text
from torchimpt.report.compare import Row
from torchimpt.report.constraints import constraint_label, constraint_verdict
from torchimpt.report.course import delivery_text, motion_text
from torchimpt.report.numbers import amount, scenario_note, seconds
from torchimpt.runs.sweep_table import cells_of, columns, short_keys


def console() -> Console:
    """stdout; where it is no terminal, wide enough that no row is broken. A name in brackets or colons is a name, no markup."""
    plain: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}
    out = Console(**plain)
    return out if out.is_terminal else Console(**plain, width=max(out.width, 160))


def goals_table(goals: Sequence[Mapping[str, Any]]) -> Table:
    """Goals with their values in the nominal and the worst scenario."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("Region", "Goal", "Nominal", "Worst", "In", ""):
        table.add_column(name, justify="right" if name in ("Nominal", "Worst") else "left")
    for goal in goals:
        digits = 1 if goal["unit"] else 3
        verdict = Text("met", style="green") if goal["passed"] else Text("not met", style="bold red")
        label = f"{goal['quantity'] + ' ' if 'quantity' in goal else ''}{Metric.parse(goal['metric']).label} {goal['limit']}"
        table.add_row(goal["roi"], label, f"{goal['nominal']:.{digits}f}", f"{goal['worst']:.{digits}f}", goal["worst_scenario"], verdict)
    return table


def constraints_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Constraints with their value in the worst scenario."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("Region", "Constraint", "Worst", "In", ""):
        table.add_column(name, justify="right" if name == "Worst" else "left")
    for row in rows:
        verdict = Text(constraint_verdict(row), style="green" if row["met"] else "bold red")
        table.add_row(row["roi"], constraint_label(row), f"{row['value']:.2f}", row["worst_scenario"], verdict)
    return table


def _regions_table(metrics: Mapping[str, Any]) -> Table:
    """D95, D2 and mean of every ROI, for a run without goals."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("Region", "D95, Gy", "D2, Gy", "Mean, Gy", "Max, Gy"):
        table.add_column(name, justify="left" if name == "Region" else "right")
    for roi, row in metrics["scenarios"][0]["rois"].items():
        table.add_row(roi, *(f"{row[key]:.2f}" for key in ("d95_gy", "d2_gy", "mean_gy", "max_gy")))
    return table


def _spots_text(spots: Mapping[str, Any]) -> str:
    """Spots placed, kept and delivered, as far as known, and how far they moved."""
    counts = f"{spots['nonzero']:,} of {spots['count']:,} spots"
    if "placed" in spots:
        counts = f"{spots['placed']:,} spots placed, {spots['count']:,} kept, {spots['nonzero']:,} delivered"
    moved = f"; they moved {motion_text(spots)}" if motion_text(spots) else ""
    return f"{counts} in {spots['energy_layers']} layers{moved}"


def show_run(metrics: Mapping[str, Any], folder: str | Path) -> None:
    """What a run came to: goals, how the solver stopped, where the report is."""
    with printing():
        _print_run(console(), metrics, folder)


def _print_run(out: Console, metrics: Mapping[str, Any], folder: str | Path) -> None:
    out.print(Text(metrics.get("title") or "Untitled case", style="bold"))
    if metrics.get("goals"):
        out.print(goals_table(metrics["goals"]))
        if note := scenario_note(goal["worst_scenario"] for goal in metrics["goals"]):
            out.print(note)
    elif metrics.get("scenarios"):
        out.print(_regions_table(metrics))
    if metrics.get("constraints"):
        out.print(constraints_table(metrics["constraints"]))
    if hottest := metrics.get("hottest_outside_targets"):
        out.print(f"Hottest 1 cm3 outside the targets: {hottest_text(hottest)}")
        if hottest["warning"]:
            out.print(Text(f"Warning: {hottest['warning']}", style="yellow"))
    if fine := metrics.get("fine"):
        out.print(fine_text(fine))
        if fine["warning"]:
            out.print(Text(f"Warning: {fine['warning']}", style="yellow"))
    if "iterations" in metrics:
        out.print(
            f"{metrics['stop_reason']}\n{metrics['iterations']:,} iterations, {metrics['evaluations']:,} evaluations, objective "
            f"{amount(metrics['objective']['initial'])} to {amount(metrics['objective']['final'])}"
        )
    if "engine" in (matrix := metrics.get("matrix", {})):
        out.print(f"Doses by engine {matrix['engine']} ({matrix['why']})")
    if "spots" in metrics:
        out.print(_spots_text(metrics["spots"]))
    if metrics.get("delivery", {}).get("seconds"):
        out.print(f"Delivery {delivery_text(metrics['delivery'])}")
    if "total" in metrics.get("time_s", {}):
        out.print(f"{' '.join(seconds(metrics['time_s']['total']))} in all")
    report = Path(folder) / "report.html"
    if report.is_file():
        out.print(f"Report: {report}", soft_wrap=True)


def show_sweep(rows: Sequence[Mapping[str, Any]], folder: str | Path) -> None:
    """A sweep's members, a row each, and what went wrong with which."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in (*short_keys(list(rows[0]["values"])).values(), *columns(rows)):
        table.add_column(title, justify="right")
    for row in rows:
        cells = ["" if cell is None else cell if isinstance(cell, str) else amount(cell) for cell in cells_of(row, rows)]
        table.add_row(*(value if isinstance(value, str) else scalar(value) for value in row["values"].values()), *cells)
    with printing():
        out = console()
        out.print(table)
        for row in rows:
            if row["status"] == "failed":
                out.print(f"{row['name']}: {row['error']}", soft_wrap=True)
        out.print(f"Table: {Path(folder) / 'sweep.csv'}", soft_wrap=True)


def show_comparison(names: Sequence[str], rows: Sequence[Row], page: str | Path) -> None:
    """Runs side by side, the best in bold."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    group = None
    for row in rows:
        if row.group != group:
            table.add_section()
            group = row.group
        table.add_row(row.label, *(Text(cell, style="bold" if i in row.best else "") for i, cell in enumerate(row.cells)))
    with printing():
        out = console()
        out.print(table)
        out.print(f"Page: {page}", soft_wrap=True)
