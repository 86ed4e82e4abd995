"""Sections of the case file about the plan: `[dose]`, `[spots]`, `[[beam]]`, `[optimizer]`, `[joint]`, `[delivery]`, `[output]`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from torchimpt.case.sections.base import Section
from torchimpt.case.values import (
    Count,
    ExistingPath,
    Flag,
    OneOf,
    Point,
    PositiveCount,
    Protons,
    Real,
    as_grid,
    as_layer_spacing,
    as_names,
    as_rbe,
    as_shifter,
)
from torchimpt.checks import InputError
from torchimpt.dose.cutoff import DEFAULT_CUTOFF, LARGEST_CUTOFF, LEAST_CUTOFF
from torchimpt.dose.engines import AUTO, NAMES
from torchimpt.dose.models import DEFAULT_MODEL, MODELS
from torchimpt.dose.scenarios import GRADIENTS
from torchimpt.geometry import FARTHEST, Beam, RangeShifter
from torchimpt.optim import METHODS
from torchimpt.optim.augmented import FEASIBILITY
from torchimpt.schemes.schemes import SCHEMES
from torchimpt.schemes.settings import Motion, Solver
from torchimpt.spots.delivery import MACHINES, DeliveryModel


class DoseConfig(Section):
    """[dose]: the grid, the cut-off and the arithmetic of the dose computation."""

    grid_mm: Annotated[float | tuple[float, float, float] | None, BeforeValidator(lambda v: None if v is None else as_grid(v))] = None
    """Voxel size of the dose grid, one number or [x, y, z]; omitted: the CT's."""
    target_grid_mm: Annotated[Real, Field(gt=0)] | Literal["auto", "off"] = "auto"
    """How finely targets are looked at: their voxels, and those around them, are cut into parts of this size at most, other ROIs' at their
    outline. auto: the width of the narrowest Bragg peak, 1.5 to 2 mm; off: the middles of voxels."""
    check_mm: Annotated[
        float | tuple[float, float, float] | Literal["off"] | None, BeforeValidator(lambda v: v if v in (None, "off") else as_grid(v))
    ] = None
    """Voxel size of the grid that a finished plan is checked on, or "off"; omitted: half of the dose grid's."""
    cutoff_sigma: Annotated[Real, Field(ge=LEAST_CUTOFF, le=LARGEST_CUTOFF)] = DEFAULT_CUTOFF
    """Lateral cut-off of a spot, in sigmas."""
    engine: Annotated[str, OneOf(NAMES)] = AUTO
    """Stored influence matrices, in full precision (matrix) or in 16 bits (compressed, within 0.03 % of the dose), or dose computed anew
    in each iteration (matrix_free). auto: what is faster and fits, compressed where it can be, and the run tells which."""
    memory_gb: Annotated[Real, Field(gt=0)] | None = None
    """What matrices may take with engine "auto"; scenarios beyond it are computed anew in each iteration. Omitted: 1.5 GB, or half of the
    memory that is free where that is less."""
    gpu_memory_gb: Annotated[Real, Field(ge=0)] | None = None
    """GB of a GPU's memory that tables and matrices of scenarios may take with --device auto; those of the other scenarios stay on the CPU,
    which works at the same time. Omitted: 80 % of what is free."""
    gradient: Annotated[str, OneOf(GRADIENTS)] = "analytic"
    """Hand-derived gradient, or torch's, in every stage; the same numbers. Torch's looks at every pair of spot and voxel: matrix-free
    whatever the engine, for small cases."""
    dtype: Literal["float32", "float64"] = "float32"
    """Floating-point type of matrices and doses; geometry and tables are always built in float64."""
    model: Annotated[str, OneOf(MODELS)] = DEFAULT_MODEL
    """Dose model of plans and of given spots. pencil_beam: each voxel has the WEPL of its own ray."""
    rbe: Annotated[float | str, BeforeValidator(as_rbe)] = 1.1
    """Constant factor on the physical dose (1.0 gives Gy), or a model that weights it by LETd, dose per fraction and alpha/beta:
    "mcnamara", "wedenberg", "carabe"."""
    alpha_beta_gy: Annotated[Real, Field(ge=0.1, le=50)] = 2.0
    """Photons' alpha/beta of all tissue that no [[tissue]] names, for RBE models."""
    ignore_apertures: Flag = False
    """Compute fields of a given RT Ion Plan without their apertures, which are not modelled: beside their openings the dose is too high."""
    letd_least_gy: Annotated[Real, Field(gt=0)] | None = None
    """Physical dose below which LETd fades to zero; omitted: 1 % of the highest prescription, 0.1 Gy where there is none."""


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
    start_margin_mm: Annotated[Real, Field(ge=0)] | None = None
    """How far outside the target spots have weight at the start; those beyond are there for the optimizer, which starts them at zero.
    Omitted: all have weight."""
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
    range_shifter_mm: Annotated[Literal["auto"] | float | None, BeforeValidator(as_shifter)] = None
    """Water-equivalent thickness of a range shifter that all of the beam's layers go through, or "auto": the machine's own, for the
    layers that need it, by the machine's rule. Omitted or 0: none, or that of a given plan."""
    range_shifter_distance_mm: Annotated[Real, Field(ge=0, le=FARTHEST)] | None = None
    """From the isocentre to its downstream face; omitted: the machine's, or as near as 5 cm to the body."""

    @model_validator(mode="after")
    def _distance(self) -> BeamConfig:
        if self.range_shifter_distance_mm is not None and not self.range_shifter_mm:
            raise ValueError("range_shifter_distance_mm says where a range shifter is; give range_shifter_mm, too")
        return self

    def beam(self, own: RangeShifter | None = None) -> Beam:
        """The field; `own` is the machine's range shifter."""
        shifter, place = None, self.range_shifter_distance_mm
        if self.range_shifter_mm == "auto":
            if own is None:
                raise InputError(
                    "range_shifter_mm = 'auto' is the machine's range shifter, and this machine's files tell of none; give a number, its "
                    "thickness in mm of water"
                )
            shifter = own if place is None else dataclasses.replace(own, distance=place)
        elif self.range_shifter_mm:
            # another thickness on the same snout
            shifter = RangeShifter(self.range_shifter_mm, own.distance if place is None and own is not None else place)
        return Beam(self.gantry_deg, self.couch_deg, self.isocenter_mm, shifter)


class OptimizerConfig(Section):
    """[optimizer]: the solver, when it stops, and how the objectives are counted."""

    method: Annotated[str, OneOf(METHODS)] | None = None
    """Projected conjugate gradients in the best form, in the plain form of Xu et al. 2020 (dyhs_cg), projected L-BFGS (quasi_newton), or
    SciPy's L-BFGS-B (lbfgs), in every stage. Omitted: projected_cg for weights or positions alone, quasi_newton for both at once and
    where spots have a price."""
    max_iterations: Count = 1000
    """Where to stop at the latest; spots that move are optimized in several stages, each of which stops there."""
    max_evaluations: PositiveCount | None = None
    """Most evaluations of objective and gradient, those of all stages; omitted: no limit."""
    tolerance: Annotated[Real, Field(gt=0, lt=1)] = 1e-4
    """Relative decrease of the objective in an iteration below which the plan has converged, whatever the method."""
    feasibility_gy: Annotated[Real, Field(gt=0)] = FEASIBILITY
    """How far a constraint may be violated and count as met; of other quantities than dose in their unit."""
    normalize: Flag = True
    """Divide each objective by its ROI's voxel count."""
    overlap: Literal["exclude", "keep"] = "exclude"
    """Whether an organ's objectives leave out the target's voxels."""
    sample_above: Count = 5000
    """A max_dose objective of a ROI with more voxels than this, besides those that other objectives need, is computed on a sample of them
    that has all hot ones, and is checked against all."""
    log_every: PositiveCount = 10
    """Iterations between two looks at the DVHs and between two checkpoints."""

    def solver(self) -> Solver:
        """The solver's settings."""
        return Solver(self.method, self.max_iterations, self.max_evaluations, self.tolerance, self.feasibility_gy)


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
    """A plan file (plan.json, RT Ion Plan, spot list) whose spots are the start, in the place of [spots]' lattice. But for a spot list
    [[beam]] may be left out: the beams are the file's."""

    def motion(self) -> Motion:
        """Scheme and limits of the motion."""
        return Motion(**{name: value for name, value in self if name != "start"})


class DeliveryConfig(Section):
    """[delivery]: the machine's pace and least dose a spot. Where each machine's numbers are from is told in `torchimpt.spots.delivery`."""

    fractions: PositiveCount = 35
    """Fractions of the course; doses and weights are the whole course's, MU of a spot and seconds a fraction's."""
    min_mu: Annotated[Real, Field(ge=0)] = 0.0
    """Least MU of a spot in a fraction; the final plan has none below it. 0: no minimum."""
    min_layer_share: Annotated[Real, Field(ge=0, lt=1)] = 0.0
    """Leave out energy layers that carry less than this share of the heaviest one's weight."""
    machine: Annotated[str, OneOf(MACHINES)] = "synchrotron"
    """Whose pace the delivery time is of; the keys below replace single numbers of it."""
    energy_switch_s: Annotated[Real, Field(ge=0)] | None = None
    """Seconds from one energy layer to the next."""
    spot_s: Annotated[Real, Field(ge=0)] | None = None
    """Seconds that a spot costs besides scanning and irradiation."""
    speed_x_mm_per_s: Annotated[Real, Field(gt=0)] | None = None
    """Scan speed along x."""
    speed_y_mm_per_s: Annotated[Real, Field(gt=0)] | None = None
    """Scan speed along y."""
    protons_per_s: Protons | None = None
    """Protons a second while the beam is on; 6.24e9 are 1 nA."""
    spill_protons: Annotated[float, Field(strict=True, gt=0)] | None = None
    """Protons of a synchrotron's filling; inf for a cyclotron."""
    shifter_s: Annotated[Real, Field(ge=0)] | None = None
    """Seconds that it takes to put a range shifter in."""

    @model_validator(mode="before")
    @classmethod
    def _protons(cls, data: Any) -> Any:
        """MU a second are those of one vendor's monitor."""
        if isinstance(data, Mapping) and "mu_per_s" in data:
            raise ValueError(
                "mu_per_s is gone, as a vendor's MU are not those of this program; give protons_per_s (6.24e9 are 1 nA), or a machine: "
                f"{', '.join(MACHINES)}"
            )
        return data

    def model(self) -> DeliveryModel:
        """The machine's pace."""
        given = {
            "energy_switch_s": self.energy_switch_s, "spot_s": self.spot_s, "speed_x": self.speed_x_mm_per_s,
            "speed_y": self.speed_y_mm_per_s, "protons_per_s": self.protons_per_s, "spill_protons": self.spill_protons,
            "shifter_s": self.shifter_s,
        }  # fmt: skip
        own = {name: value for name, value in given.items() if value is not None}
        return dataclasses.replace(MACHINES[self.machine], fractions=self.fractions, min_mu=self.min_mu, **own)


class OutputConfig(Section):
    """[output]: what the run folder holds besides the plan, the dose and the report."""

    scenarios_dose: Flag = False
    """Write one dose_<scenario>.mha per scenario besides the nominal dose.mha."""
    beams_dose: Flag = False
    """Write one dose_beam<number>.mha per beam, its nominal dose alone; beams count from 0, as in plan.json."""
    letd: Flag = False
    """Compute LETd of the finished plan, and write letd.mha and letd_dvh.csv, also where nothing asks about it."""
    tensorboard: Flag = True
    """Write scalars and figures for TensorBoard."""
