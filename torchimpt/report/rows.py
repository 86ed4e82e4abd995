"""Rows of the page's tables: goals, scenarios, regions, LETd, terms, the finer grid, delivery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from torchimpt.evaluate.dvh import Metric, RoiDose
from torchimpt.evaluate.fine import fine_text
from torchimpt.evaluate.tables import letd_table
from torchimpt.report.constraints import constraint_label, constraint_verdict
from torchimpt.report.course import delivery_parts, delivery_remark
from torchimpt.report.numbers import amount, gy, scenario_text, strip
from torchimpt.report.summary import Goals, goal_name, goal_value

UNKNOWN = "#999999"
"""Colour of a ROI that has none."""


def goal_rows(goals: Goals, colors: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows of `check_goals` with what the table shows besides."""
    return [
        {
            **goal, "name": goal_name(goal), "color": colors.get(goal["roi"], UNKNOWN), "strip": Markup(strip(goal)),
            "nominal_text": goal_value(goal, goal["nominal"]), "worst_text": goal_value(goal, goal["worst"]),
        }
        for goal in goals
    ]  # fmt: skip


def constraint_rows(metrics: Mapping[str, Any], colors: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows of `metrics.json`'s `constraints` with what the table shows besides."""
    return [
        {
            **row, "label": constraint_label(row), "verdict": constraint_verdict(row), "color": colors.get(row["roi"], UNKNOWN),
            "text": scenario_text(row["worst_scenario"]),
        }
        for row in metrics.get("constraints", ())
    ]  # fmt: skip


def _fails(goal: Mapping[str, Any], value: float) -> bool:
    return not (goal.get("min", value) <= value <= goal.get("max", value))


_PLAIN = (("d95_gy", "d(95)", "D95"), ("d98_gy", "d(98)", "D98"), ("d2_gy", "d(2)", "D2"), ("mean_gy", "mean", "Mean"))


def robustness(goals: Goals, scenarios: Sequence[Mapping[str, Any]], targets: Sequence[str]) -> dict[str, Any]:
    """Goals, and the targets' D95, D98, D2 and mean, in every scenario.

    Returns
    -------
    `columns`: `roi`, `name`. `rows`, one a scenario: `name`, `text`, and `cells` with `text` and whether it `fails`.
    """
    columns = [{"roi": goal["roi"], "name": goal_name(goal)} for goal in goals]
    asked = {(goal["roi"], goal["metric"]) for goal in goals if "quantity" not in goal}
    plain = [
        (target, key, label)
        for target in targets if target in scenarios[0]["rois"]
        for key, metric, label in _PLAIN
        if (target, metric) not in asked
    ]  # fmt: skip
    columns += [{"roi": target, "name": f"{label}, Gy"} for target, _, label in plain]
    rows = []
    for scenario in scenarios:
        name = scenario["name"]
        cells = [
            {"text": goal_value(goal, goal["values"][name]), "fails": _fails(goal, goal["values"][name])}
            for goal in goals if name in goal["values"]
        ]  # fmt: skip
        cells += [{"text": gy(scenario["rois"][target][key]), "fails": False} for target, key, _ in plain]
        rows.append({"name": name, "text": scenario_text(name), "cells": cells})
    return {"columns": columns, "rows": rows}


def region_rows(names: Sequence[str], colors: Mapping[str, str], scenarios: Sequence[Mapping], worst: Mapping) -> list[dict]:
    """One row a ROI for the table of doses."""
    return [{"roi": name, "color": colors[name], "nominal": scenarios[0]["rois"][name], "worst": worst[name]} for name in names]


def letd_rows(letd: Mapping[str, Mapping[str, RoiDose]], names: Sequence[str], colors: Mapping[str, str]) -> list[dict]:
    """One row a ROI for the table of LETd: nominal mean, L50 and L2, and the highest mean and L2 of all scenarios."""
    if not letd:
        return []
    tables = [scenario["rois"] for scenario in letd_table(letd)]
    highest = {roi: {key: max(t[roi][key] for t in tables) for key in ("mean_kev_um", "l2_kev_um")} for roi in tables[0]}
    return [{"roi": name, "color": colors[name], "nominal": tables[0][name], "worst": highest[name]} for name in names]


def term_rows(metrics: Mapping[str, Any], colors: Mapping[str, str]) -> list[dict]:
    """The final objective by ROI and kind, summed over scenarios, largest share first."""
    sums: dict[tuple[str, str], float] = {}
    for term in metrics.get("objective", {}).get("terms", ()):
        key = (term["roi"], f"{term['kind']}{' of ' + term['quantity'] if 'quantity' in term else ''}")
        sums[key] = sums.get(key, 0.0) + term["value"]
    total = sum(sums.values()) or 1.0
    ranked = sorted(sums.items(), key=lambda item: -item[1])
    return [{"roi": r, "kind": k, "value": amount(v), "share": 100 * v / total, "color": colors.get(r, UNKNOWN)} for (r, k), v in ranked]


def fine_rows(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """The plan on a finer grid: `text`, `warning`, and `rows` of numbers on both; None where it was not looked at."""
    fine = metrics.get("fine")
    if not fine:
        return None
    rows = []
    for row in fine.get("moved", ()):
        digits = 2 if row["unit"] else 4
        both = {key: f"{row[key]:.{digits}f} {row['unit']}".strip() for key in ("planned", "fine")}
        change = f"{row['percent']:+.2f} %".replace("-", "−")
        rows.append({"roi": row["roi"], "name": Metric.parse(row["metric"]).label, **both, "change": change})
    return {"text": fine_text(fine), "warning": fine["warning"], "rows": rows}


def delivery_rows(delivery: Mapping[str, Any]) -> dict[str, Any] | None:
    """The seconds of a fraction, part by part, and what to say of them; None where they are not known."""
    if not delivery.get("seconds") or "energy_switch_s" not in delivery:
        return None
    parts = [{"name": name, "seconds": value, "share": 100 * value / delivery["seconds"]} for name, value in delivery_parts(delivery)]
    return {"parts": parts, "seconds": delivery["seconds"], "remark": delivery_remark(delivery)}
