"""Constraints of a plan in words, from the rows of `metrics.json`'s `constraints`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torchimpt.report.numbers import scenario_text


def constraint_label(row: Mapping[str, Any]) -> str:
    """What is asked: `max ≤ 45 Gy`, `D95 ≥ 66.5 Gy`, of another quantity than dose with its name."""
    number = f"D{row['volume_percent']:g}" if "volume_percent" in row else row["kind"].removesuffix("_dose")
    sign = "≥" if row["kind"].startswith("min_") else "≤"
    return f"{row['quantity'] + ' ' if 'quantity' in row else ''}{number} {sign} {row['level']:g} {row['unit']}"


def constraint_verdict(row: Mapping[str, Any]) -> str:
    """Whether it is met, and by how much it is not."""
    return "met" if row["met"] else f"not met by {row['violation']:.2g} {row['unit']}"


def constraints_verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """The constraints together, in a sentence."""
    held = sum(row["met"] for row in rows)
    if held == len(rows):
        return f"All {held} constraints met" if held > 1 else "Constraint met"
    worst = max(rows, key=lambda row: row["violation"])
    where = f"{worst['roi']} {constraint_label(worst)} {constraint_verdict(worst)} ({scenario_text(worst['worst_scenario'])})"
    return f"{held} of {len(rows)} constraints met; {where}"
