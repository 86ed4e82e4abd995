"""Sections of the case file about what is wanted: `[robustness]`, `[[objective]]`, `[[goal]]`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator

from torchimpt.case.sections.base import OpenSection, Section
from torchimpt.case.values import (
    Flag,
    OneOf,
    PositiveCount,
    Real,
    Seed,
    Text,
)
from torchimpt.evaluate.dvh import Metric
from torchimpt.evaluate.goals import Goal
from torchimpt.objectives import KINDS, MODES, UNITS, RobustMode, Term
from torchimpt.scenarios import SETS, Scenario


class RobustnessConfig(OpenSection):
    """[robustness]: the setup and range errors that the plan has to bear; a mode's parameters are keys, too."""

    names = "mode"
    registry = MODES

    setup_mm: Annotated[Real, Field(ge=0, lt=100)] = 3.0
    """Setup error along each patient axis; 0 leaves the setup scenarios out."""
    range_percent: Annotated[Real, Field(ge=0, lt=50)] = 3.0
    """Range error, percent of the stopping power (the scenario range+3% is the shorter range); 0 leaves the range scenarios out."""
    mode: Annotated[str, OneOf(MODES)] = "sum"
    """What becomes of the scenarios' objectives; sum: all added up (Xu et al. 2020, Eq. 4)."""
    set: Annotated[str, OneOf(SETS)] = "boundary"
    """Which errors at once. boundary: one at a time, nine; grid21: each of the seven setups with three ranges; grid81: with setups along
    x, y and z at once; random: Gaussian. The nominal scenario is the first of each."""
    samples: Annotated[PositiveCount, Field(le=100000)] | None = None
    """random: how many besides the nominal one; omitted: 20."""
    seed: Seed | None = None
    """random: of the draw; omitted: the case's."""
    sigmas: Annotated[Real, Field(ge=0.5, le=10)] | None = None
    """random: how many standard deviations setup_mm (along each axis) and range_percent are; omitted: 2."""

    @model_validator(mode="after")
    def _valid(self) -> RobustnessConfig:
        self.robust_mode()
        for name in ("samples", "seed", "sigmas"):
            if self.set != "random" and getattr(self, name) is not None:
                raise ValueError(f"set = '{self.set}' takes no {name}; it is of set = 'random'")
        return self

    def scenarios(self, seed: int) -> tuple[Scenario, ...]:
        """The scenarios, nominal first; `seed` is the case's."""
        sizes = (self.setup_mm, self.range_percent)
        if self.set != "random":
            return SETS[self.set](*sizes)
        given = {"samples": self.samples, "seed": seed if self.seed is None else self.seed, "sigmas": self.sigmas}
        return SETS[self.set](*sizes, **{name: value for name, value in given.items() if value is not None})

    def robust_mode(self) -> RobustMode:
        """The mode."""
        return MODES[self.mode](**self.own)


_LEVELS = {"letd": "letd_kev_um", "letd_dose": "letd_dose_gy_kev_um"}
"""Keys of an objective's level in another unit than Gy, by quantity."""


class ModeConfig(OpenSection):
    """The robust mode of one objective; its parameters are keys, too."""

    names = "name"
    registry = MODES

    name: Annotated[str, OneOf(MODES)]
    """What becomes of the objective's values in the scenarios."""

    @model_validator(mode="after")
    def _valid(self) -> ModeConfig:
        self.robust_mode()
        return self

    def robust_mode(self) -> RobustMode:
        """The mode."""
        return MODES[self.name](**self.own)


class ObjectiveConfig(OpenSection):
    """[[objective]]: what is asked of a ROI's dose, and how much it matters; a kind's parameters are keys, too (`volume_percent`, `a`)."""

    names = "kind"
    registry = KINDS
    given = tuple(field.name for field in dataclasses.fields(Term))

    roi: Text
    """Name of the ROI."""
    kind: Annotated[str, OneOf(KINDS)]
    """What is asked of its dose."""
    quantity: Annotated[str, OneOf(UNITS)] = "dose"
    """What is asked about: dose as [dose] rbe weights it, letd, letd_dose (LETd x physical dose), or the dose weighted by a model."""
    dose_gy: Annotated[Real, Field(ge=0)] | None = None
    """Dose level, total course, RBE-weighted."""
    letd_kev_um: Annotated[Real, Field(ge=0)] | None = None
    """Level of LETd, keV/um in water; for quantity letd, in the place of dose_gy."""
    letd_dose_gy_kev_um: Annotated[Real, Field(ge=0)] | None = None
    """Level of LETd x dose, total course; for quantity letd_dose, in the place of dose_gy."""
    weight: Annotated[Real, Field(ge=0)] = 1.0
    """Importance."""
    mode: Annotated[ModeConfig | None, BeforeValidator(lambda value: {"name": value} if isinstance(value, str) else value)] = None
    """A robust mode of its own: a name, or a table of name and parameters; omitted: that of [robustness]."""
    constraint: Flag = False
    """Whether it has to hold, in every scenario (with mode nominal: in the nominal one), whatever it costs the other objectives. Its weight
    is the penalty that it starts with, or the heaviest objective's where that is more."""

    @model_validator(mode="after")
    def _valid(self) -> ObjectiveConfig:
        self.term()
        return self

    @property
    def level(self) -> float:
        """The level, in the quantity's unit."""
        key = _LEVELS.get(self.quantity, "dose_gy")
        for other in ("dose_gy", *_LEVELS.values()):
            if other != key and getattr(self, other) is not None:
                raise ValueError(f"quantity = '{self.quantity}' takes no {other}; give {key}")
        level = getattr(self, key)
        if level is None:
            raise ValueError(f"'{key}' is missing (level of the objective, {UNITS[self.quantity]})")
        return level

    def term(self) -> Term:
        """The objective's term."""
        mode = None if self.mode is None else self.mode.robust_mode()
        return KINDS[self.kind](
            self.roi, self.level, weight=self.weight, mode=mode, quantity=self.quantity, constraint=self.constraint, **self.own
        )


class GoalConfig(Section):
    """[[goal]]: a clinical requirement that the report checks."""

    roi: Text
    """Name of the ROI."""
    metric: str
    """d(q) in Gy, v(d) in %, mean, max, min, hi or ci; of another quantity than dose in its unit."""
    quantity: Annotated[str, OneOf(UNITS)] = "dose"
    """What is checked: as in [[objective]]."""
    min: Real | None = None
    """The least that passes."""
    max: Real | None = None
    """The most that passes."""

    @model_validator(mode="after")
    def _valid(self) -> GoalConfig:
        self.goal()
        return self

    def goal(self) -> Goal:
        """The goal to check."""
        return Goal(self.roi, Metric.parse(self.metric), self.min, self.max, self.quantity, UNITS[self.quantity])
