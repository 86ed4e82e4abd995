"""The case file as one tree: the sections together, what they become for planning, and `load_case`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import Field, PrivateAttr, ValidationError, model_validator

from torchimpt.case.sections import (
    BeamConfig,
    DeliveryConfig,
    DoseConfig,
    GoalConfig,
    JointConfig,
    MachineConfig,
    MaterialConfig,
    ObjectiveConfig,
    OptimizerConfig,
    OutputConfig,
    PatientConfig,
    RobustnessConfig,
    RoiConfig,
    Section,
    SpotsConfig,
    TissueConfig,
)
from torchimpt.case.text import apply_overrides, describe, dump_toml, read_toml, resolve_paths
from torchimpt.case.values import Seed, Text
from torchimpt.checks import InputError, nearest
from torchimpt.evaluate.goals import Goal
from torchimpt.geometry import Beam, RangeShifter
from torchimpt.objectives import KINDS, RobustMode, Sum, Term
from torchimpt.quantities import ConstantRBE, Quantity
from torchimpt.scenarios import NOMINAL, Scenario


class Case(Section):
    """A planning case: the whole case file. Sections may be given as dicts."""

    title: Text = ""
    """Heads the report."""
    seed: Seed = 1
    """Of every random number."""
    patient: PatientConfig
    """The section that says whom to plan for."""
    roi: list[RoiConfig] = Field(default_factory=list)
    """ROIs made of others."""
    material: list[MaterialConfig] = Field(default_factory=list)
    """ROIs of known material; where two overlap, the later one's counts."""
    tissue: list[TissueConfig] = Field(default_factory=list)
    """ROIs with an alpha/beta of their own; where two overlap, the later one's counts."""
    machine: MachineConfig = MachineConfig()
    """The machine."""
    dose: DoseConfig = DoseConfig()
    """The dose computation."""
    spots: SpotsConfig | None = None
    """Where spots are placed; `torchimpt dose` does without."""
    beam: list[BeamConfig] = Field(default_factory=list)
    """The fields."""
    robustness: RobustnessConfig | None = None
    """The uncertainties; omitted: nominal only."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The solver."""
    joint: JointConfig | None = None
    """Moving spots; omitted: positions stay fixed."""
    delivery: DeliveryConfig = DeliveryConfig()
    """The machine's pace and limits."""
    output: OutputConfig = OutputConfig()
    """What is written."""
    objective: list[ObjectiveConfig] = Field(default_factory=list)
    """What is optimized."""
    goal: list[GoalConfig] = Field(default_factory=list)
    """What is checked and reported."""

    _label: str = PrivateAttr(default="the case")

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise InputError(describe(error, type(self), "the case")) from None

    @model_validator(mode="after")
    def _modes(self) -> Case:
        """Robust modes are for as many scenarios as there are."""
        own = {f"objective[{i}].mode": objective.mode.robust_mode() for i, objective in enumerate(self.objective) if objective.mode}
        for key, mode in {"robustness": self.mode(), **own}.items():
            try:
                mode.check(len(self.scenarios()))
            except InputError as error:
                raise ValueError(f"{key}: {error}") from None
        return self

    @property
    def placement(self) -> SpotsConfig:
        """The section [spots], which planning needs."""
        if self.spots is None:
            raise InputError(f"{self.label}: planning needs [spots]")
        return self.spots

    @property
    def label(self) -> str:
        """The case file's path, for messages."""
        return self._label

    def beams(self, shifter: RangeShifter | None = None) -> tuple[Beam, ...]:
        """The fields, in the file's order; `shifter` is the machine's range shifter."""
        found = []
        for i, beam in enumerate(self.beam):
            try:
                found.append(beam.beam(shifter))
            except InputError as error:
                raise InputError(f"{self.label}: beam[{i}]: {error}") from None
        return tuple(found)

    def in_fractions(self, fractions: int) -> Case:
        """The case with another number of fractions."""
        return self.model_copy(update={"delivery": self.delivery.model_copy(update={"fractions": fractions})})

    def scenarios(self) -> tuple[Scenario, ...]:
        """What is planned with, nominal first."""
        return self.robustness.scenarios(self.seed) if self.robustness else (NOMINAL,)

    def mode(self) -> RobustMode:
        """What becomes of the scenarios' objectives."""
        return self.robustness.robust_mode() if self.robustness else Sum()

    def quantity(self) -> Quantity:
        """What objectives and goals ask about; where an RBE model weights the dose, the constant 1.1 that is near it: to search with, not
        to tell (`torchimpt.planning.letd`).
        """
        return ConstantRBE(1.1 if isinstance(self.dose.rbe, str) else self.dose.rbe)

    def letd_quantities(self) -> frozenset[str]:
        """Quantities of objectives and goals that need LETd, `"dose"` among them where an RBE model weights it."""
        named = {objective.quantity for objective in self.objective} | {goal.quantity for goal in self.goal}
        return frozenset(named - {"dose"} | ({"dose"} if isinstance(self.dose.rbe, str) else set()))

    @property
    def tells_letd(self) -> bool:
        """Whether LETd of a plan is computed."""
        return self.output.letd or bool(self.letd_quantities())

    def terms(self) -> tuple[Term, ...]:
        """The objectives' terms, in the file's order."""
        return tuple(objective.term() for objective in self.objective)

    def goals(self) -> tuple[Goal, ...]:
        """The goals, in the file's order."""
        return tuple(goal.goal() for goal in self.goal)

    def prescriptions(self) -> dict[str, float]:
        """Gy by ROI: the highest dose that an objective asks for which prescribes one (min_dose, min_dvh, uniform)."""
        doses: dict[str, float] = {}
        for term in self.terms():
            if term.prescribes and term.quantity == "dose":
                doses[term.roi] = max(term.dose, doses.get(term.roi, 0.0))
        return doses

    def highest_prescription(self) -> float | None:
        """The highest dose that any objective prescribes, Gy; None where none does."""
        return max(self.prescriptions().values(), default=None)

    def prescription(self) -> float | None:
        """The spots' target's prescription, Gy (the highest of several); None where no objective says one."""
        doses = self.prescriptions()
        own = [doses[name] for name in (self.spots.targets if self.spots else ()) if name in doses]
        return max(own or doses.values(), default=None)

    def check_plan(self) -> None:
        """Raise when a section that planning needs is missing."""
        given = self.joint is not None and self.joint.start is not None and self.joint.start.suffix.lower() != ".csv"
        needed = {"[spots]": self.spots, "[[beam]]": self.beam or given, "[[objective]]": self.objective}
        missing = [name for name, section in needed.items() if not section]
        if missing:
            raise InputError(f"{self.label}: planning needs {', '.join(needed)}; missing: {', '.join(missing)}")

    def used_rois(self) -> list[tuple[str, str]]:
        """Key and name of every ROI that the case names."""
        used = [("spots.target", name) for name in (self.spots.targets if self.spots else ())]
        used += [(f"material[{i}].roi", material.roi) for i, material in enumerate(self.material)]
        used += [(f"tissue[{i}].roi", tissue.roi) for i, tissue in enumerate(self.tissue)]
        used += [(f"objective[{i}].roi", objective.roi) for i, objective in enumerate(self.objective)]
        return used + [(f"goal[{i}].roi", goal.roi) for i, goal in enumerate(self.goal)]

    def check_rois(self, names: Iterable[str], used: Iterable[tuple[str, str]] | None = None) -> None:
        """Raise when a ROI that the case names, or one of `used` (keys and names), is none of the patient's `names`; the key, the nearest
        and all are told.
        """
        names = sorted(names)
        for key, name in self.used_rois() if used is None else used:
            if name not in names:
                has = ", ".join(names) or "none"
                raise InputError(f"{self.label}: {key}: the patient has no ROI '{name}'{nearest(name, names)}; it has {has}")

    def check_goals(self) -> None:
        """Raise when a goal asks for what the case does not say."""
        prescribed = self.prescriptions()
        for i, goal in enumerate(self.goal):
            if goal.metric == "ci" and goal.quantity != "dose":
                raise InputError(f"{self.label}: goal[{i}].metric: 'ci' is of the dose, not of '{goal.quantity}'; take out quantity")
            if goal.goal().metric.kind == "ci" and goal.roi not in prescribed:
                raise InputError(
                    f"{self.label}: goal[{i}].metric: 'ci' of '{goal.roi}' needs its prescription; give it an [[objective]] of kind "
                    f"{', '.join(name for name, term in KINDS.items() if term.prescribes)}"
                )

    def to_toml(self) -> str:
        """The case with every default written out and every path absolute; it loads back to an equal case."""
        return dump_toml(self.model_dump())


def load_case(path: str | Path, overrides: Iterable[str] = ()) -> Case:
    """Read a case file.

    Parameters
    ----------
    path
        TOML; its relative paths start at the file's own folder. A run folder stands for its `case.toml`.
    overrides
        `"section.key=value"` pairs that replace what the file says; a relative path in them starts at the file's folder too.
    """
    path = Path(path)
    path = path / "case.toml" if (path / "case.toml").is_file() else path
    data = read_toml(path)
    apply_overrides(data, overrides)
    resolve_paths(data, Case, path.absolute().parent)
    try:
        case = Case(**data)
    except InputError as error:
        raise InputError(str(error).replace("the case: ", f"{path}: ", 1)) from None
    case._label = str(path)
    return case
