"""Numbers as a reader wants them: few digits, units apart, and a goal's scenarios as a strip of dots."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any


def gy(value: float) -> str:
    """A dose with one decimal place."""
    return f"{value:.1f}"


def amount(value: float) -> str:
    """A number of any size with four digits: `0.01234`, `12.34`, `12,340`."""
    if value == 0 or value != value:
        return f"{value:g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def seconds(value: float) -> tuple[str, str]:
    """A time and its unit."""
    if value < 120:
        return (f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 10 else f"{value:.0f}"), "s"
    return f"{value / 60:.1f}", "min"


def bytes_text(value: float) -> str:
    """A size in memory, decimal units."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"


RANGES = {"+": "more stopping power, shorter range", "-": "less stopping power, longer range"}
"""What the sign of a range scenario's name means: it is that of the stopping power."""


def scenario_text(name: str) -> str:
    """A scenario's name with what is meant: `range +3 % (more stopping power, shorter range)`; names without a range as they are."""
    return re.sub(r"range([+-])([\d.]+)%", lambda found: f"range {found[1]}{found[2]} % ({RANGES[found[1]]})", name)


def scenario_note(names: Iterable[str]) -> str:
    """What the range scenarios among `names` mean, as a sentence; empty where there are none."""
    meant = [f"{found[0]} is {RANGES[found[1]]}" for name in names if (found := re.search(r"range([+-])[\d.]+%", name))]
    return f"{'; '.join(dict.fromkeys(meant))}." if meant else ""


def strip(goal: Mapping[str, Any], width: int = 122, height: int = 20) -> str:
    """A goal's values over the scenarios on a line, as SVG: the limits as bars, what fails shaded, nominal as a disc, the others as rings.

    Its colours are the page's (`templates/page.css`).

    Parameters
    ----------
    goal
        A row of `check_goals`.
    width, height
        CSS pixels.
    """
    values, limits = goal["values"], [goal[side] for side in ("min", "max") if side in goal]
    numbers = [value for value in values.values() if value == value]
    low, high = min([*numbers, *limits]), max([*numbers, *limits])
    span = (high - low) or max(abs(high), 1.0) * 0.1
    low, span, middle = low - 0.16 * span, 1.32 * span, height / 2

    def place(value: float) -> float:
        return 4 + (width - 8) * (value - low) / span

    parts = [
        f'<svg class="strip" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-label="Values by scenario">'
    ]
    if "min" in goal:
        parts.append(f'<rect class="out" x="0" y="3" width="{place(goal["min"]):.1f}" height="{height - 6}"/>')
    if "max" in goal:
        x = place(goal["max"])
        parts.append(f'<rect class="out" x="{x:.1f}" y="3" width="{width - x:.1f}" height="{height - 6}"/>')
    parts.append(f'<line class="rail" x1="0" x2="{width}" y1="{middle}" y2="{middle}"/>')
    parts += [f'<line class="limit" x1="{place(v):.1f}" x2="{place(v):.1f}" y1="3" y2="{height - 3}"/>' for v in limits]
    nominal = next(iter(values))
    for name, value in [*list(values.items())[1:], (nominal, values[nominal])]:
        if value == value:
            fails = ("min" in goal and value < goal["min"]) or ("max" in goal and value > goal["max"])
            kinds = " ".join([*(["nominal"] if name == nominal else []), *(["failing"] if fails else [])])
            radius = 3.6 if name == nominal else 2.6
            tip = f"<title>{scenario_text(name)}: {value:.2f} {goal['unit']}</title>"
            parts.append(f'<circle class="{kinds}" cx="{place(value):.1f}" cy="{middle}" r="{radius}">{tip}</circle>')
    return "".join([*parts, "</svg>"])
