"""Clinical goals: limits that are checked and reported, not optimized."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from torchimpt.checks import InputError, nearest
from torchimpt.evaluate.dvh import Metric, RoiDose

Doses = Mapping[str, Mapping[str, RoiDose]]
"""`doses[scenario][roi]`, Gy; the first scenario is the nominal one."""


@dataclass(frozen=True)
class Goal:
    """A limit on a metric of a ROI.

    Attributes
    ----------
    roi
        Its name.
    metric
        What is measured.
    min, max
        The limits, in the metric's unit; at least one. A value on the limit passes.
    quantity, quantity_unit
        What is measured: `"dose"`, or another one's name, and its unit.
    """

    roi: str
    metric: Metric
    min: float | None = None
    max: float | None = None
    quantity: str = "dose"
    quantity_unit: str = "Gy"

    def __post_init__(self) -> None:
        if self.min is None and self.max is None:
            raise InputError(f"the goal {self.metric} of '{self.roi}' needs min or max")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise InputError(f"the goal {self.metric} of '{self.roi}' has min {self.min:g} above max {self.max:g}: nothing can pass")

    def margin(self, value: float) -> float:
        """How far the value lies inside the nearer limit, in the metric's unit; negative when the goal fails, -inf for NaN."""
        if math.isnan(value):
            return -math.inf
        inside = [value - self.min] if self.min is not None else []
        return min(inside + ([self.max - value] if self.max is not None else []))

    @property
    def unit(self) -> str:
        """Of the metric's values."""
        return self.quantity_unit if self.metric.unit == "Gy" else self.metric.unit

    @property
    def limit(self) -> str:
        """The limits in words, e.g. `"≥ 66.5 Gy"`."""
        unit = f" {self.unit}" if self.unit else ""
        unit += "" if self.quantity in ("dose", "letd", "letd_dose") else f" ({self.quantity})"
        if self.min is not None and self.max is not None:
            return f"{self.min:g} to {self.max:g}{unit}"
        return f"≥ {self.min:g}{unit}" if self.min is not None else f"≤ {self.max:g}{unit}"


def check_goals(
    goals: Iterable[Goal],
    doses: Doses,
    *,
    prescriptions: Mapping[str, float] | None = None,
    body: Mapping[str, torch.Tensor] | None = None,
) -> list[dict]:
    """Each goal in the nominal and in the worst scenario, as in `metrics.json`.

    The worst scenario of a goal is the one whose value has the smallest margin to the goal's limits.

    Parameters
    ----------
    goals
        What to check.
    doses
        `doses[scenario][roi]`, Gy; the first scenario is the nominal one.
    prescriptions
        Gy by ROI, for `ci`.
    body
        `body[scenario]`: doses `(n_body,)` of every voxel that has dose, Gy, for `ci`.

    Returns
    -------
    One dict a goal: `roi`, `metric`, `unit`, `min` and `max` (those that are set), `limit`, `nominal`, `worst`, `worst_scenario`,
    `values` (by scenario), `passed_nominal`, and `passed`, which asks for the worst scenario too.
    """
    if not doses:
        raise InputError("goals need the doses of at least one scenario, the nominal one first")
    rows = []
    for goal in goals:
        values = {}
        for scenario, rois in doses.items():
            if goal.roi not in rois:
                raise InputError(f"a goal names the ROI '{goal.roi}'{nearest(goal.roi, rois)}; there are {', '.join(sorted(rois))}")
            values[scenario] = goal.metric(
                rois[goal.roi], prescription=(prescriptions or {}).get(goal.roi), body=(body or {}).get(scenario)
            )
        nominal = next(iter(values.values()))
        worst = min(values, key=lambda name: goal.margin(values[name]))
        limits = {name: value for name, value in (("min", goal.min), ("max", goal.max)) if value is not None}
        rows.append(
            {
                "roi": goal.roi,
                "metric": str(goal.metric),
                **({} if goal.quantity == "dose" else {"quantity": goal.quantity}),
                "unit": goal.unit,
                **limits,
                "limit": goal.limit,
                "nominal": nominal,
                "worst": values[worst],
                "worst_scenario": worst,
                "values": values,
                "passed_nominal": goal.margin(nominal) >= 0,
                "passed": goal.margin(values[worst]) >= 0,
            }
        )
    return rows
