"""`torchimpt watch`: a run on the terminal while it goes on; plain lines where stdout is no terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from torchimpt.checks import InputError
from torchimpt.cli.show import console, show_run
from torchimpt.cli.streams import printing
from torchimpt.evaluate.dvh import Metric
from torchimpt.files import reading
from torchimpt.report.numbers import amount, seconds
from torchimpt.runs.following import Following, RunState

PAUSE = 0.5
"""Seconds between two looks."""

_BARS = "▁▂▃▄▅▆▇█"


def spark(values: Sequence[float], width: int = 40) -> str:
    """The last values as a line of bars, on a logarithmic scale between the smallest and the largest that are shown; 0 is the lowest bar.

    >>> spark([1000.0, 100.0, 10.0, 1.0])
    '█▆▃▁'
    """
    step = max(1, math.ceil(len(values) / width))
    shown = list(values)[::-step][::-1]
    logs = [math.log10(value) if value > 0 and math.isfinite(value) else None for value in shown]
    known = [value for value in logs if value is not None]
    if not known:
        return _BARS[0] * len(shown)
    low, span = min(known), max(max(known) - min(known), 1e-12)
    return "".join(_BARS[0] if value is None else _BARS[round(7 * (value - low) / span)] for value in logs)


def _goal_value(goal: Mapping[str, Any]) -> str:
    if goal["value"] is None:
        return "-"
    return f"{goal['value']:.1f}" if goal["unit"] else f"{goal['value']:.3f}"


def _times(state: RunState) -> str:
    told = [] if state.elapsed is None else [f"{' '.join(seconds(state.elapsed))} since the start"]
    if state.left is not None and state.running:
        told.append(f"at most {' '.join(seconds(state.left))} of iterations left")
    return ", ".join(told)


def picture(state: RunState, bars: bool = True) -> RenderableType:
    """The run as it is, for a terminal; without `bars` where it cannot show them."""
    parts: list[RenderableType] = [Text(state.title, style="bold"), Text(state.stage, style="dim", overflow="ellipsis", no_wrap=True)]
    if state.rows:
        last = state.rows[-1]
        line = Table.grid(padding=(0, 2))
        most = "" if state.most is None else f" of at most {state.most:,}"
        cells: list[RenderableType] = [f"Iteration {last['iteration']:,}{most}"]
        if state.most:
            cells.append(ProgressBar(total=state.most, completed=min(last["iteration"], state.most), width=30))
        line.add_row(*cells, f"objective {amount(last['value'])}")
        parts.append(line)
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for name in ("Objective", "Value", "Share", "So far" if bars else ""):
            table.add_column(name, justify="right" if name in ("Value", "Share") else "left")
        rows = {"Total": [row["value"] for row in state.rows]}
        for roi in last.get("terms", {}):
            rows[roi] = [row["terms"].get(roi, 0.0) for row in state.rows if row.get("terms")]
        for name, values in rows.items():
            share = f"{100 * values[-1] / last['value']:.1f} %" if last["value"] else ""
            table.add_row(name, amount(values[-1]), share, spark(values) if bars else "")
        parts.append(table)
    if state.goals:
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for name in ("Region", "Goal, nominal so far", "Value", ""):
            table.add_column(name, justify="right" if name == "Value" else "left")
        for goal in state.goals:
            verdict = Text("met", style="green") if goal["passed"] else Text("not met", style="bold red")
            table.add_row(goal["roi"], f"{Metric.parse(goal['metric']).label} {goal['limit']}", _goal_value(goal), verdict)
        parts.append(table)
    parts.append(Text(_times(state)))
    return Group(*parts)


class Lines:
    """The run in plain lines: each new stage, and about every `every`-th iteration."""

    def __init__(self, out: Console, every: int = 10) -> None:
        self._out, self._every = out, every
        self._title, self._stage, self._told = "", "", -1

    def show(self, state: RunState) -> None:
        """Print what is new since the last call: the title, every so many iterations, the stage."""
        if state.title != self._title:  # at first the folder's name, until the case is there
            self._title = state.title
            self._out.print(state.title, soft_wrap=True)
        for row in state.rows:
            if row["iteration"] > self._told and row["iteration"] % self._every == 0:
                self._told = row["iteration"]
                terms = ", ".join(f"{roi} {amount(value)}" for roi, value in row.get("terms", {}).items())
                goals = row.get("goals")
                met = f"; {sum(goal['passed'] for goal in goals)} of {len(goals)} goals met, nominal" if goals else ""
                told = f"iteration {row['iteration']:,}: objective {amount(row['value'])} ({terms}){met}; {row['seconds']:.1f} s"
                self._out.print(told, soft_wrap=True)
        # the log's own lines on iterations say less
        if state.stage != self._stage and not state.stage.startswith("iteration "):
            self._out.print(state.stage, soft_wrap=True)
        self._stage = state.stage


def follow(folder: Path, wait: bool = False) -> None:
    """Show a run until it ends, then what it came to.

    Parameters
    ----------
    folder
        The run folder.
    wait
        Whether to wait for a run to start where there is none yet, instead of an error.
    """
    following = Following(folder)
    while not following.there:
        if not wait:
            raise InputError(f"no run in {folder}: nothing has started there; check the path, or let --wait wait for one")
        time.sleep(PAUSE)
    with printing():
        out = console()
        state = _watched(following, out) if out.is_terminal else _told(following, out)
    if state.metrics is None:
        raise InputError(f"the run in {folder} has ended before it was complete: {state.stage or 'nothing was logged'}; see its log.txt")
    with reading(folder / "metrics.json", "run's metrics"):
        show_run(state.metrics, folder)


def _watched(following: Following, out: Console) -> RunState:
    bars = (out.encoding or "").lower().startswith("utf")
    state = following.look()
    if state.over:
        return state
    with Live(picture(state, bars), console=out, auto_refresh=False, transient=True) as live:
        while not state.over:
            time.sleep(PAUSE)
            state = following.look()
            live.update(picture(state, bars), refresh=True)
    return state


def _told(following: Following, out: Console) -> RunState:
    lines = Lines(out)
    while True:
        state = following.look()
        lines.show(state)
        out.file.flush()
        if state.over:
            return state
        time.sleep(PAUSE)
