"""The sections of the case file, typed: every key, its unit, its default and what is allowed.

Units are in the keys' names (`_mm`, `_deg`, `_gy`, `_percent`); inside the package they are those of the physics. `load_case` reads TOML;
`Case(...)` takes the same tree from Python. A key that is unknown or a value that cannot be is an `InputError` of one line.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from torchimpt.case.values import Count, ExistingPath, Flag, OneOf, Point, PositiveCount, Real, Text, as_grid, as_layer_spacing, as_names
from torchimpt.checks import nearest
from torchimpt.dose.scenarios import ENGINES
from torchimpt.evaluate.dvh import Metric
from torchimpt.evaluate.goals import Goal
from torchimpt.io.patient import SOURCES
from torchimpt.machine import READERS as MACHINE_READERS
from torchimpt.objectives import KINDS, MODES, Term
from torchimpt.optim import METHODS
from torchimpt.schemes.settings import SCHEMES, Motion, Solver
from torchimpt.spots.delivery import DeliveryModel


class Section(BaseModel):
    """A section of the case file: no key that is not declared, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class PatientConfig(Section):
    """[patient]: whom to plan for, a built-in phantom or a patient's files."""

    source: Annotated[str, OneOf(SOURCES)]
    """Where the patient comes from."""
    path: ExistingPath | None = None
    """Folder or file; not for a phantom."""
    name: Text | None = None
    """Name of the phantom; for the others a name for titles and files."""

    @model_validator(mode="after")
    def _complete(self) -> PatientConfig:
        if self.source == "phantom" and (self.name is None or self.path is not None):
            raise ValueError("source = 'phantom' takes a name, e.g. name = 'hn', and no path")
        if self.source != "phantom" and self.path is None:
            raise ValueError(f"source = '{self.source}' needs a path")
        return self


class MachineConfig(Section):
    """[machine]: the generic machine, or one from a file, and how HU become stopping power."""

    name: Literal["generic"] | None = None
    """A machine that is part of the package; what is taken when no file is named."""
    format: Annotated[str, OneOf(tuple(MACHINE_READERS))] | None = None
    """Format of a machine from a file; needs path."""
    path: ExistingPath | None = None
    """The machine's file or folder."""
    hu_table: ExistingPath | None = None
    """CSV with columns hu and rsp (or rsp_100MeV); omitted: the machine's or the CT's own, else the default table."""

    @model_validator(mode="before")
    @classmethod
    def _default(cls, data: Any) -> Any:
        """The generic machine where neither a name nor a file is given."""
        plain = isinstance(data, Mapping) and not {"name", "format", "path"} & data.keys()
        return {"name": "generic", **data} if plain else data

    @model_validator(mode="after")
    def _one(self) -> MachineConfig:
        if (self.format is None) != (self.path is None):
            raise ValueError("a machine from a file takes both format and path")
        if (self.name is None) == (self.format is None):
            raise ValueError("give either name = 'generic', or format and path")
        return self


class DoseConfig(Section):
    """[dose]: the grid, the cut-off and the arithmetic of the dose computation."""

    grid_mm: Annotated[float | tuple[float, float, float] | None, BeforeValidator(lambda v: None if v is None else as_grid(v))] = None
    """Voxel size of the dose grid, one number or [x, y, z]; omitted: the CT's."""
    cutoff_sigma: Annotated[Real, Field(gt=0, le=20)] = 4.0
    """Lateral cut-off of a spot, in sigmas."""
    engine: Annotated[str, OneOf(tuple(name for name in ENGINES if name != "autograd"))] = "matrix"
    """Stored influence matrices, or dose computed anew in each iteration."""
    gradient: Literal["analytic", "autograd"] = "analytic"
    """Hand-derived gradient, or torch's; the same numbers."""
    dtype: Literal["float32", "float64"] = "float32"
    """Floating-point type of matrices and doses; geometry and tables are always built in float64."""
    sub_spots: Flag | None = None
    """Compute final doses with every spot's protons on many rays of their own: closer to Monte Carlo behind lateral steps, slower, on the
    CPU. Omitted: `torchimpt dose` of a CSV spot list does; plans are optimized and evaluated with each voxel's own ray."""
    rbe: Annotated[Real, Field(ge=0.1, le=5)] = 1.1
    """Constant factor on the physical dose; 1.0 gives Gy."""


class SpotsConfig(Section):
    """[spots]: which ROI is covered with spots, and how densely."""

    target: Annotated[str | list[str], BeforeValidator(as_names)]
    """The ROI that is covered with spots, or a list (their union)."""
    pattern: Literal["square", "hexagonal"] = "square"
    """Lattice of the spots in the beam's-eye view."""
    spacing_mm: Annotated[Real, Field(gt=0)] = 5.0
    """Distance between neighbouring spots in the isocentre plane."""
    margin_mm: Annotated[Real, Field(ge=0)] = 5.0
    """How far outside the target spots are placed."""
    stagger: Flag | None = None
    """Offset each energy layer's lattice against the others'; omitted: where spots move."""
    jitter_mm: Annotated[Real, Field(ge=0)] = 0.0
    """Put every spot this far at most off its lattice point along x and y, at random by the case's seed."""
    layer_spacing: Annotated[Literal["bragg80"] | float, BeforeValidator(as_layer_spacing)] = "bragg80"
    """Width of the Bragg peak at 80 % of its height, or a number in mm of water."""

    @property
    def targets(self) -> tuple[str, ...]:
        """The target's ROIs, always as a tuple."""
        return (self.target,) if isinstance(self.target, str) else tuple(self.target)


class BeamConfig(Section):
    """[[beam]]: a field's angles, isocentre and range shifter."""

    gantry_deg: Real
    """IEC 61217 gantry angle."""
    couch_deg: Real = 0.0
    """IEC 61217 couch angle."""
    isocenter_mm: Point | None = None
    """LPS; omitted: the target's centroid."""
    range_shifter_mm: Annotated[Real, Field(ge=0)] = 0.0
    """Water-equivalent thickness."""


class RobustnessConfig(Section):
    """[robustness]: the setup and range errors that the plan has to bear."""

    setup_mm: Annotated[Real, Field(ge=0, lt=100)] = 3.0
    """Setup error along each patient axis; 0 leaves the setup scenarios out."""
    range_percent: Annotated[Real, Field(ge=0, lt=50)] = 3.0
    """Range error; 0 leaves the range scenarios out."""
    mode: Annotated[str, OneOf(tuple(MODES))] = "sum"
    """What becomes of the scenarios' objectives; sum: all added up (Xu et al. 2020, Eq. 4)."""


class OptimizerConfig(Section):
    """[optimizer]: the solver, when it stops, and how the objectives are counted."""

    method: Annotated[str, OneOf(tuple(METHODS))] = "projected_cg"
    """Projected conjugate gradients in the best form, in the plain form of Xu et al. 2020 (dyhs_cg), projected L-BFGS (quasi_newton), or
    SciPy's L-BFGS-B (lbfgs)."""
    max_iterations: Count = 300
    """Where to stop at the latest; spots that move are optimized in several stages, each of which stops there."""
    max_evaluations: PositiveCount | None = None
    """Most evaluations of objective and gradient, those of all stages; omitted: no limit."""
    tolerance: Annotated[Real, Field(gt=0, lt=1)] = 1e-4
    """Relative decrease of the objective below which the plan has converged."""
    normalize: Flag = True
    """Divide each objective by its ROI's voxel count."""
    overlap: Literal["exclude", "keep"] = "exclude"
    """Whether an organ's objectives leave out the target's voxels."""
    log_every: PositiveCount = 10
    """Iterations between two looks at the DVHs and between two checkpoints."""

    def solver(self) -> Solver:
        """The solver's settings."""
        return Solver(self.method, self.max_iterations, self.max_evaluations, self.tolerance)


class JointConfig(Section):
    """[joint]: spots that move."""

    scheme: Annotated[str, OneOf(SCHEMES)] = "joint"
    """Positions and weights at once; by turns, as published; or at once with ever fewer spots."""
    box_mm: Annotated[Real, Field(ge=0, le=100)] = 10.0
    """How far a spot may go from where it was placed, along x and along y; never out of the
    rectangle around its beam's placed spots. 0: nowhere."""
    spots: PositiveCount | None = None
    """How many of the placed spots to keep: the heaviest, by steps, each after iterations in which every spot has its price; omitted: all,
    or as many as price_percent asks."""
    price_percent: Annotated[Real, Field(ge=0)] = 1.0
    """prune_and_move without a number of spots: how much the objective may rise for fewer spots."""
    warm_iterations: Count = 20
    """Weight iterations before spots are pruned and begin to move."""
    weight_iterations: PositiveCount = 10
    """alternating: weight iterations in a turn."""
    position_steps: PositiveCount = 1
    """alternating: position steps in a turn."""
    merge_mm: Annotated[Real, Field(ge=0)] = 0.0
    """Merge spots of a layer that end up closer than this, and optimize the weights again; 0: never."""
    start: ExistingPath | None = None
    """A plan file whose spots are the start, in the place of [spots]' lattice."""

    def motion(self) -> Motion:
        """Scheme and limits of the motion."""
        return Motion(**{name: value for name, value in self if name != "start"})


class DeliveryConfig(Section):
    """[delivery]: the machine's pace and least dose a spot; the defaults' source is in `torchimpt.spots.delivery`."""

    fractions: PositiveCount = 35
    """Fractions of the course; doses and weights are the whole course's, MU of a spot and seconds a fraction's."""
    min_mu: Annotated[Real, Field(ge=0)] = 0.0
    """Least MU of a spot in a fraction; the final plan has none below it. 0: no minimum."""
    min_layer_share: Annotated[Real, Field(ge=0, lt=1)] = 0.0
    """Leave out energy layers that carry less than this share of the heaviest one's weight."""
    energy_switch_s: Annotated[Real, Field(ge=0)] = 1.91
    """Seconds from one energy layer to the next."""
    spot_s: Annotated[Real, Field(ge=0)] = 1.93e-3
    """Seconds that a spot costs besides scanning and irradiation."""
    speed_x_mm_per_s: Annotated[Real, Field(gt=0)] = 5900.0
    """Scan speed along x."""
    speed_y_mm_per_s: Annotated[Real, Field(gt=0)] = 19300.0
    """Scan speed along y."""
    mu_per_s: Annotated[Real, Field(gt=0)] = 8.7
    """MU a second while the beam is on."""

    def model(self) -> DeliveryModel:
        """The machine's pace."""
        return DeliveryModel(
            self.energy_switch_s, self.spot_s, self.speed_x_mm_per_s, self.speed_y_mm_per_s, self.mu_per_s, self.fractions, self.min_mu
        )


class ObjectiveConfig(Section):
    """[[objective]]: what is asked of a ROI's dose, and how much it matters."""

    roi: Text
    """Name of the ROI."""
    kind: str
    """What is asked of its dose."""
    dose_gy: Annotated[Real, Field(ge=0)]
    """Dose level, total course, RBE-weighted."""
    volume_percent: Annotated[Real, Field(ge=0, le=100)] | None = None
    """Volume of a dose-volume objective."""
    a: Real | None = None
    """Exponent of a gEUD."""
    weight: Annotated[Real, Field(ge=0)] = 1.0
    """Importance."""

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind not in KINDS:
            raise ValueError(f"must be one of {', '.join(KINDS)}, got '{kind}'{nearest(kind, KINDS)}")
        return kind

    @model_validator(mode="after")
    def _arguments(self) -> ObjectiveConfig:
        """The keys that this kind takes besides dose_gy and weight: no more, no fewer."""
        own = {field.name for field in dataclasses.fields(KINDS[self.kind])}
        for key in ("volume_percent", "a"):
            if (key in own) != (getattr(self, key) is not None):
                raise ValueError(f"kind = '{self.kind}' {'needs' if key in own else 'takes no'} {key}")
        return self

    def term(self) -> Term:
        """The objective's term."""
        extra = {key: getattr(self, key) for key in ("volume_percent", "a") if getattr(self, key) is not None}
        return KINDS[self.kind](self.roi, self.dose_gy, weight=self.weight, **extra)


class GoalConfig(Section):
    """[[goal]]: a clinical requirement that the report checks."""

    roi: Text
    """Name of the ROI."""
    metric: str
    """d(q) in Gy, v(d) in %, mean, max, min, hi or ci."""
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
        return Goal(self.roi, Metric.parse(self.metric), self.min, self.max)


class OutputConfig(Section):
    """[output]: what the run folder holds besides the plan, the dose and the report."""

    scenarios_dose: Flag = False
    """Write one dose_<scenario>.mha per scenario besides the nominal dose.mha."""
    tensorboard: Flag = True
    """Write scalars and figures for TensorBoard."""
