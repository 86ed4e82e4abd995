"""How a plan came about and how it is delivered, as rows and lines of text: the optimization's steps, the seconds of a fraction."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from torchimpt.report.numbers import amount, seconds

_NAMES = {"joint": "Weights and positions", "merged": "Close spots merged"}
_TURNS = ("weights", "positions")


def step_rows(steps: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """What each step left, as texts: `step`, `spots`, `objective`, `change` against the row before, `iterations`, `evaluations`, `seconds`.

    More than two turns of weights and positions in a row are one.

    Parameters
    ----------
    steps
        `metrics.json`'s `steps`.
    """
    rows: list[dict[str, str]] = []
    before = None
    for step in _joined(steps):
        change = "" if not before else f"{100 * (step['objective'] / before - 1):+.1f} %".replace("-", "−")
        before = step["objective"]
        counts = {name: f"{step[name]:,}" for name in ("spots", "iterations", "evaluations")}
        name = _step_name(step["step"])
        rows.append({"step": name, "objective": amount(before), "change": change, "seconds": " ".join(seconds(step["seconds"])), **counts})
    return rows


def _joined(steps: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The steps, turns of the alternating scheme added up."""
    joined: list[Mapping[str, Any]] = []
    for turns, own in groupby(steps, key=lambda step: step["step"] in _TURNS):
        group = list(own)
        if turns and len(group) > 2:
            sums = {name: sum(step[name] for step in group) for name in ("iterations", "evaluations", "seconds")}
            group = [{**group[-1], **sums, "step": f"weights and positions by turns, {len(group)} of them"}]
        joined += group
    return joined


def _step_name(name: str) -> str:
    pruned = re.fullmatch(r"(\d+) spots", name)
    name = f"pruned to {int(pruned[1]):,} spots" if pruned else _NAMES.get(name, name)
    return name[:1].upper() + name[1:]


def delivery_parts(delivery: Mapping[str, float]) -> list[tuple[str, float]]:
    """Name and seconds of a fraction's parts; of those that plans may do without, refilling and range shifters, where there are any."""
    return [
        ("Energy switching", delivery["energy_switch_s"]),
        *([("Filling again", delivery["refill_s"])] if delivery.get("refill_s") else []),
        *([("Range shifters", delivery["shifter_s"])] if delivery.get("shifter_s") else []),
        ("Beam on", delivery["beam_on_s"]),
        ("Spots and scanning", delivery["spot_s"] + delivery["scan_s"]),
    ]


def beam_seconds(value: float) -> str:
    """Seconds of delivery; never minutes, so that parts compare."""
    return f"{value:.1f} s" if value < 10 else f"{value:,.0f} s"


def delivery_text(delivery: Mapping[str, float]) -> str:
    """The seconds of a fraction and, where known, their parts, in a line."""
    text = f"{beam_seconds(delivery['seconds'])} a fraction"
    if "energy_switch_s" not in delivery:
        return text
    parts = (f"{name[0].lower()}{name[1:]} {beam_seconds(value)}" for name, value in delivery_parts(delivery))
    return f"{text}: {', '.join(parts)}"


def delivery_remark(delivery: Mapping[str, float]) -> str:
    """What the number of spots is worth in seconds, where energy switching is more than half of the delivery; else nothing."""
    share = delivery["energy_switch_s"] / delivery["seconds"] if delivery["seconds"] else 0.0
    if share <= 0.5:
        return ""
    spots = beam_seconds(delivery["spot_s"] + delivery["scan_s"])
    return (
        f"Energy switching is {100 * share:.0f} % of the delivery time: fewer spots in the same energy layers can save no more than the "
        f"{spots} of spots and scanning."
    )


def motion_text(spots: Mapping[str, Any]) -> str:
    """How far the delivered spots moved, in words; nothing where none did.

    Parameters
    ----------
    spots
        `metrics.json`'s `spots`.
    """
    way = spots.get("moved_mm", {})
    return f"{way['mean']:.2f} mm on average, {way['max']:.2f} mm at most" if way.get("max") else ""
