"""What a finer grid says of a plan: which of its numbers move, and by how much.

An optimizer sees a dose at points; what it does between them nobody has asked for. A plan whose numbers hold on a grid that it was not
made on has no such holes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torchimpt.evaluate.dvh import Metric

WARN_PERCENT = 1.0
"""A number that moves by more is told: doses in % of the prescription, volumes in percentage points, indices in hundredths."""

_D95 = Metric.parse("d(95)")


def moved(
    planned: Mapping[str, Mapping[str, float]],
    fine: Mapping[str, Mapping[str, float]],
    goals: tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]],
    prescriptions: Mapping[str, float],
    targets: Sequence[str],
) -> list[dict[str, Any]]:
    """Rows of every target's D95 and every goal on both grids, nominal: `roi`, `metric`, `unit`, `planned`, `fine`, `percent`.

    Parameters
    ----------
    planned, fine
        `{roi: metrics}` on the plan's grid and on the finer one, rows of `scenario_table`.
    goals
        Rows of `check_goals` on both grids, of the same goals.
    prescriptions
        Gy by ROI; the highest is what changes of dose are measured by. Where there is none, a dose is measured by itself.
    targets
        ROIs whose D95 is compared.
    """
    top = max(prescriptions.values(), default=None)
    pairs = [(name, _D95, planned[name]["d95_gy"], fine[name]["d95_gy"]) for name in targets if name in planned and name in fine]
    pairs += [
        (before["roi"], Metric.parse(before["metric"]), before["nominal"], after["nominal"]) for before, after in zip(*goals, strict=True)
    ]
    rows: dict[tuple[str, Metric], dict[str, Any]] = {}
    for roi, metric, before, after in pairs:
        scale = {"Gy": top or abs(before), "%": 100.0}.get(metric.unit, 1.0)
        percent = 100.0 * (after - before) / scale if scale else 0.0
        if before == before or after == after:  # not a metric that is undefined on both grids
            rows[roi, metric] = {
                "roi": roi, "metric": str(metric), "unit": metric.unit, "planned": before, "fine": after, "percent": percent,
            }  # fmt: skip
    return list(rows.values())


def _far(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows that moved by more than `WARN_PERCENT`, the farthest first, and those that exist on one grid only (NaN)."""
    return sorted((row for row in rows if not abs(row["percent"]) <= WARN_PERCENT), key=lambda row: -abs(row["percent"]))


def _number(row: Mapping[str, Any], key: str) -> str:
    unit = f" {row['unit']}" if row["unit"] else ""
    return f"{row[key]:.1f}{unit}" if unit else f"{row[key]:.3f}"


def _told(row: Mapping[str, Any]) -> str:
    return f"{row['roi']} {Metric.parse(row['metric']).label} {_number(row, 'fine')}, {_number(row, 'planned')} as planned"


def _grid(spacing: Sequence[float]) -> str:
    return f"{spacing[0]:g} mm" if len(set(spacing)) == 1 else f"{' x '.join(f'{s:g}' for s in spacing)} mm"


def fine_text(fine: Mapping[str, Any]) -> str:
    """What the check found, in words: D95 of the first target, and how far the farthest of all numbers moved."""
    rows = fine["moved"]
    if not rows:
        return f"On a grid of {_grid(fine['grid_mm'])}: nothing to compare, no target and no goal"
    first, most = rows[0], max(abs(row["percent"]) for row in rows)
    return f"On a grid of {_grid(fine['grid_mm'])}: {_told(first)}; of {len(rows)} numbers none moves by more than {most:.1f} %"


def fine_warning(grid_mm: Sequence[float], rows: Sequence[Mapping[str, Any]], most: int = 3) -> str | None:
    """What to say where rows of `moved` moved far; None where they hold."""
    far = _far(rows)
    if not far:
        return None
    told = "; ".join(
        f"{row['roi']} {Metric.parse(row['metric']).label} {_number(row, 'fine')}, {_number(row, 'planned')} as planned"
        for row in far[:most]
    )
    more = f", and {len(far) - most} more" if len(far) > most else ""
    return (
        f"the nominal dose is another on a grid of {_grid(grid_mm)}: {told}{more}. The dose grid is too coarse for what was "
        "planned on it; use a smaller dose.grid_mm"
    )
