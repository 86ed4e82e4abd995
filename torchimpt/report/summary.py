"""What heads the page: the verdict in words, a few numbers, and at its end what the run was made with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torchimpt.evaluate.dvh import Metric
from torchimpt.geometry import Grid
from torchimpt.report.constraints import constraints_verdict
from torchimpt.report.course import beam_seconds, delivery_text, motion_text
from torchimpt.report.numbers import amount, bytes_text, gy, scenario_text, seconds

Goals = Sequence[Mapping[str, Any]]
"""Rows of `check_goals`."""


def goal_name(goal: Mapping[str, Any]) -> str:
    """`D95 ≥ 66.5 Gy`, with the quantity in front where it is not dose."""
    quantity = f"{goal['quantity']} " if "quantity" in goal else ""
    return f"{quantity}{Metric.parse(goal['metric']).label} {goal['limit']}"


def goal_value(goal: Mapping[str, Any], value: float) -> str:
    """A value of the goal's metric as its tables show it, without unit; a dash for none."""
    return "–" if math.isnan(value) else f"{value:.1f}" if goal["unit"] else f"{value:.3f}"


def _with_unit(goal: Mapping[str, Any], value: float) -> str:
    return f"{goal_value(goal, value)} {goal['unit']}".strip()


def headline(goals: Goals, n_scenarios: int) -> str:
    """How many goals hold, in a sentence; empty where there is none."""
    if not goals:
        return ""
    held, total = sum(goal["passed"] for goal in goals), len(goals)
    nominal = sum(goal["passed_nominal"] for goal in goals)
    where = f"in all {n_scenarios} scenarios" if n_scenarios > 1 else "in the nominal scenario"
    whole = "The goal is met" if total == 1 else f"All {total} goals met"
    text = f"{whole} {where}" if held == total else f"{held} of {total} goals met {where}"
    return text + (f", {nominal} in the nominal one" if n_scenarios > 1 and nominal != held else "")


def failures(goals: Goals, n_scenarios: int) -> list[str]:
    """Each goal that fails, with its nominal and its worst value."""
    told = []
    for goal in goals:
        if goal["passed"]:
            continue
        worst = f", {_with_unit(goal, goal['worst'])} in {scenario_text(goal['worst_scenario'])}" if n_scenarios > 1 else ""
        told.append(f"{goal['roi']} {goal_name(goal)}: {_with_unit(goal, goal['nominal'])} nominal{worst}")
    return told


def tightest(goals: Goals) -> str:
    """Of goals that all hold the one that is nearest to its limit, relative to it; empty where one fails."""
    if not goals or not all(goal["passed"] for goal in goals):
        return ""

    def room(goal: Mapping[str, Any]) -> float:
        return min(abs(goal["worst"] - goal[side]) / max(abs(goal[side]), 1e-9) for side in ("min", "max") if side in goal)

    goal = min(goals, key=room)
    return f"Closest to its limit: {goal['roi']} {goal_name(goal)}, {_with_unit(goal, goal['worst'])} in {goal['worst_scenario']}"


def notes(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What else a reader must know at once, each a `text` and whether it is `good`."""
    told = []
    if rows := metrics.get("constraints"):
        told.append((constraints_verdict(rows), all(row["met"] for row in rows)))
    if (hottest := metrics.get("hottest_outside_targets")) and hottest["warning"]:
        told.append((f"Hot spot outside the targets: {gy(hottest['worst']['d1cm3_gy'])} Gy, {hottest['worst']['percent']:.0f} %", False))
    if (fine := metrics.get("fine")) and fine["warning"]:
        told.append(("Another dose on a finer grid", False))
    if "converged" in metrics:
        n = metrics.get("iterations", 0)
        text = f"Converged in {n:,} iterations" if metrics["converged"] else f"Stopped short after {n:,} iterations"
        told.append((text, bool(metrics["converged"])))
    return [{"text": text, "good": good} for text, good in told]


def tiles(
    metrics: Mapping[str, Any],
    targets: Sequence[str],
    prescription: float | None,
    worst: Mapping[str, Mapping[str, float]],
    scenarios: Sequence[Mapping],
) -> list[dict[str, str]]:
    """The few numbers that head the page: label, value, unit, note."""
    found, many = [], len(scenarios) > 1

    def add(label: str, value: str, unit: str, note: str) -> None:
        found.append({"label": label, "value": value, "unit": unit, "note": note})

    for target in [name for name in targets if name in scenarios[0]["rois"]][:1]:
        own = scenarios[0]["rois"][target]
        share = f"{100 * own['d95_gy'] / prescription:.1f} % of {prescription:g} Gy" if prescription else ""
        lowest = f"worst {gy(worst[target]['d95_gy'])} Gy" if many else ""
        add(f"{target} D95", gy(own["d95_gy"]), "Gy", " · ".join(filter(None, (lowest, share))))
        add(f"{target} D2", gy(own["d2_gy"]), "Gy", f"worst {gy(worst[target]['d2_gy'])} Gy" if many else "")
    objective, spots, time = metrics.get("objective", {}), metrics.get("spots", {}), metrics.get("time_s", {})
    delivery = metrics.get("delivery", {})
    if objective:
        add("Objective", amount(objective["final"]), "", f"from {amount(objective['initial'])}" if "initial" in objective else "")
    if spots:
        note = f"of {spots.get('placed', spots['count']):,} in {spots['energy_layers']} energy layers"
        add("Spots delivered", f"{spots['nonzero']:,}", "", note)
    if delivery.get("seconds"):
        value, unit = beam_seconds(delivery["seconds"]).split()
        switching = delivery.get("energy_switch_s")
        note = f"a fraction, {100 * switching / delivery['seconds']:.0f} % switching energy" if switching is not None else "a fraction"
        add("Delivery", value, unit, note)
    if "total" in time:
        value, unit = seconds(time["total"])
        add("Computing time", value, unit, " ".join(seconds(time["optimize"])) + " of it optimizing" if "optimize" in time else "")
    return found


def facts(metrics: Mapping[str, Any], grid: Grid, versions: Mapping[str, str]) -> list[tuple[str, str]]:
    """Name and value of what the run was made with, where known."""
    matrix, spots, delivery = metrics.get("matrix", {}), metrics.get("spots", {}), metrics.get("delivery", {})
    told = [("Dose grid", f"{' × '.join(map(str, grid.shape[::-1]))} voxels of {' × '.join(f'{s:g}' for s in grid.spacing)} mm")]
    if metrics.get("stop_reason"):
        told.append(("Solver", metrics["stop_reason"]))
    if "evaluations" in metrics:
        told.append(("Evaluations", f"{metrics['evaluations']:,} of objective and gradient"))
    if "engine" in matrix:
        told.append(("Engine", f"{matrix['engine']}: {matrix['why']}"))
    if matrix.get("nonzeros"):
        told.append(("Influence matrices", f"{matrix['nonzeros']:,} non-zeros, {bytes_text(matrix['bytes'])}"))
    if "discarded_fraction" in matrix:
        told.append(("Moved by the cut-off", f"{100 * matrix['discarded_fraction']:.2g} % of the integral dose"))
    if "placed" in spots:
        told.append(("Spots", f"{spots['placed']:,} placed, {spots['count']:,} kept, {spots['nonzero']:,} delivered"))
    if motion_text(spots):
        told.append(("Spots moved", motion_text(spots)))
    if delivery.get("mu"):
        each = f", {delivery['mu_per_fraction']:,.0f} a fraction" if "mu_per_fraction" in delivery else ""
        told.append(("Monitor units", f"{delivery['mu']:,.0f}{each}"))
    if delivery.get("seconds"):
        told.append(("Delivery", delivery_text(delivery)))
    parts = [f"{name} {' '.join(seconds(value))}" for name, value in metrics.get("time_s", {}).items() if name != "total"]
    if parts:
        told.append(("Time", ", ".join(parts)))
    if metrics.get("peak_memory_bytes"):
        told.append(("Peak memory", bytes_text(metrics["peak_memory_bytes"])))
    if "device" in metrics:
        told.append(("Computed on", f"{metrics['device']}, {metrics.get('threads', '?')} threads, {metrics.get('dtype', '')}"))
    if versions:
        told.append(("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    return told
