"""The planning problem of a case: patient, machine and spots loaded and placed, doses tabulated, the objective bound."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from torchimpt.case import Case
from torchimpt.dose.body import BodyDoses, body_doses
from torchimpt.dose.engines import AUTO, PAYS_AFTER, Choice, choose
from torchimpt.dose.joined import JoinedLinear, joined
from torchimpt.dose.linear import LinearDose
from torchimpt.dose.scenarios import ScenarioDoses, scenario_doses
from torchimpt.dose.shares import Place
from torchimpt.evaluate.dvh import RoiDose
from torchimpt.evaluate.tables import point_doses
from torchimpt.io.plan import fractions_of, read_plan
from torchimpt.machine import Machine
from torchimpt.objectives import (
    BoundObjective,
    MixedObjective,
    Objective,
    PlanObjective,
    RobustObjective,
    Split,
    largest,
    letd_entries,
    seen_whole,
)
from torchimpt.patient import Patient
from torchimpt.planning.devices import fastest, placement
from torchimpt.planning.letd import quantity
from torchimpt.planning.load import Compute, check_shifts, dose_options, load_machine, load_patient, resolve_beams
from torchimpt.planning.look import case_points, targets_mask
from torchimpt.planning.shared import Made, SharedDoses
from torchimpt.planning.way import tell_way
from torchimpt.points import Points
from torchimpt.processes import ALONE, Team
from torchimpt.scenarios import NOMINAL, Scenario
from torchimpt.schemes.sampling import FIRST, Sampling
from torchimpt.schemes.stages import PlanIteration
from torchimpt.spots import Spots
from torchimpt.spots.placement import place_spots, stagger
from torchimpt.watch import Progress

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlanningProblem:
    """All that the schemes and their watchers need.

    Attributes
    ----------
    case, compute
        What is planned, and where.
    patient, machine, scenarios
        On the dose grid; the beam model; what is planned for, of which the objective may need the first alone (`needed_scenarios`).
    spots
        As placed.
    points
        Where the objective looks.
    doses, linear
        Physical doses in the scenarios, after them LETd x dose where terms need it (`MixedObjective`), and their linear map for the placed
        spots.
    objective
        What is asked of them.
    sampling
        Where the objective is sampled: what `points`, `doses`, `linear` and `objective` are taken from, as they were at the start.
    team
        Processes that the scenarios are shared out among: doses, here and in arguments, are those of this process's scenarios.
    engines
        What computes `linear`, one for each part of its points; those that a sample takes in later come later.
    """

    case: Case
    compute: Compute
    patient: Patient
    machine: Machine
    scenarios: tuple[Scenario, ...]
    spots: Spots
    points: Points
    doses: ScenarioDoses
    linear: LinearDose
    objective: PlanObjective
    sampling: Sampling | None = None
    team: Team = ALONE
    engines: list[Choice] = field(default_factory=list)

    @property
    def now(self) -> PlanningProblem | Sampling:
        """What has the `points`, `doses`, `linear` and `objective` that the solver sees by now."""
        return self.sampling or self

    def named(self, rows: list[dict]) -> list[dict]:
        """Rows of `RobustObjective.terms` with the scenarios' names in the place of their numbers."""
        return [{**row, "scenario": self.doses.names[row["scenario"]]} for row in rows]

    def terms(self, doses: torch.Tensor) -> list[dict]:
        """The objective's terms at an iteration's doses `(n_scenarios, n_voxels)`, each with the scenario's name; asked of all processes at
        once.
        """
        return self.named(self.now.objective.terms(doses))

    def violations(self, doses: torch.Tensor) -> dict[str, float]:
        """The largest violation of each constraint at an iteration's doses, Gy, negative inside, by ROI and kind."""
        held = self.now.objective.constraints
        return {f"{one.term.roi} {one.term.kind}": value for one, value in zip(held, largest(held.violations(doses)), strict=True)}

    def nominal_doses(self, doses: torch.Tensor) -> dict[str, RoiDose]:
        """Of an iteration's doses `(n_scenarios, n_points)` the nominal ones of the ROIs that have objectives, as goals see them; a ROI
        that is sampled is left out. Asked of the process that leads.
        """
        dose, points = self.objective.quantity.value(doses[self.doses.nominal]).cpu(), self.now.points
        sampled = {term.roi for term in self.sampling.limits} if self.sampling is not None else ()
        names = dict.fromkeys(term.roi for term in self.case.terms() if term.roi not in sampled)
        return point_doses(points, {NOMINAL.name: dose}, names)[NOMINAL.name]

    def moving(self, iteration: PlanIteration) -> tuple[Spots, torch.Tensor]:
        """The spots at an iteration, their layers numbered as those of the placed ones, and where each was placed `(n, 2)`, mm."""
        spots, placed = iteration.spots(), self.spots
        layer = placed.layer[spots.index]
        return placed.at(spots.position, spots.weight, layer), spots.home


def needed_scenarios(case: Case) -> tuple[Scenario, ...]:
    """Those that any objective looks at: the nominal one, which is the first, where no mode asks for others; else all."""
    modes = [term.mode or case.mode() for term in case.terms()]
    return case.scenarios()[:1] if all(mode.nominal_only for mode in modes) else case.scenarios()


def _start(case: Case, patient: Patient, machine: Machine, scenarios: tuple[Scenario, ...], compute: Compute) -> Spots:
    """The spots that the case starts from: its lattice, jittered or not, or those of a plan file."""
    config, start = case.placement, case.joint.start if case.joint is not None else None
    beams = resolve_beams(case, patient, start)
    if start is not None:
        _tell_fractions(case, start)
        spots = read_plan(
            start, beams, dtype=compute.dtype, machine=machine, rbe=case.dose.rbe, ignore_apertures=case.dose.ignore_apertures
        )
    else:
        spots = place_spots(
            patient, machine, beams, config.targets, config.spacing_mm, pattern=config.pattern, margin=config.margin_mm,
            start_margin=config.start_margin_mm, layer_spacing=config.layer_spacing, scenarios=scenarios, dtype=compute.dtype,
        )  # fmt: skip
        moves = case.joint is not None and case.joint.motion().moves
        if config.stagger or (config.stagger is None and moves):
            spots = stagger(spots, config.spacing_mm)
        if config.jitter_mm > 0:
            noise = torch.rand(spots.position.shape, generator=torch.Generator().manual_seed(case.seed), dtype=torch.float64)
            spots.position.data += (config.jitter_mm * (2.0 * noise - 1.0)).to(spots.position)
    return spots.to(compute.device)


def _tell_fractions(case: Case, start: Path) -> None:
    """Warn where a start whose MU or weights are those of a fraction has another number of fractions than the case."""
    fractions = fractions_of(start)
    if fractions is not None and fractions != case.delivery.fractions:
        log.warning(
            "%s is for %d fractions, the case for %d: it starts with the whole course's weights, and MU of a fraction are the case's",
            start, fractions, case.delivery.fractions,
        )  # fmt: skip


def build(
    case: Case,
    compute: Compute,
    progress: Progress,
    times: dict[str, float],
    team: Team = ALONE,
    shared: SharedDoses | None = None,
) -> PlanningProblem:
    """Load, place, trace and build what the schemes need, doses of this process's scenarios; the seconds go into `times`. What `shared` has
    of another case is not built again.
    """
    case.check_plan()
    begin = time.perf_counter()
    with progress.stage("Patient, machine and spots"):
        patient, machine = load_patient(case) if shared is None else shared.patient(case), load_machine(case)
        scenarios = case.scenarios()
        # each process has to have a scenario of its own
        needed = needed_scenarios(case) if team.size == 1 else scenarios
        team = team.share(len(needed))
        check_shifts(scenarios, patient.grid)
        spots = _start(case, patient, machine, scenarios, compute)
        tell_way(case, patient, machine, spots.beams)
        log.info("%d spots in %d energy layers of %d beams", spots.n_spots, spots.n_layers, len(spots.beams))
        objective = Objective(case.terms(), normalize=case.optimizer.normalize, overlap=case.optimizer.overlap)
        mixed = frozenset(term.quantity for term in case.terms()) & case.letd_quantities()
        # a sample is of doses alone
        split = objective.split(patient, patient.grid.n_voxels if mixed else case.optimizer.sample_above)
    times["load"] = time.perf_counter() - begin
    begin = time.perf_counter()
    sampled = split.limits if bool(split.needed.any()) else ()
    stay = _iterations_at_start(case, bool(sampled))
    if len(compute.places) > 1 and team.size == 1:  # several processes have to agree on a device, which trials may not
        n_asked = sum(int(patient.rois[term.roi].mask.sum()) for term in case.terms())
        compute = replace(compute, device=fastest(compute.places, len(scenarios), n_asked, compute.dtype))
        spots = spots.to(compute.device)
    options = dose_options(case, compute.device, compute.dtype)
    stored = case.dose.engine == "matrix" or (case.dose.engine == AUTO and stay >= PAYS_AFTER)
    where = placement(compute.places or (Place(compute.device),), spots.position.detach(), stored)
    engines: list[Choice] = []
    used = 0

    def bind(bound: BoundObjective) -> RobustObjective:
        return RobustObjective(bound.among(team), case.mode(), case.quantity())

    def tabulate(points: Points, amplitude: str = "dose") -> tuple[ScenarioDoses, LinearDose]:
        nonlocal used
        own: dict[str, Any] = {**options, "device": where, "gradient": case.dose.gradient, "amplitude": amplitude, "team": team}

        def make() -> Made:
            doses = scenario_doses(patient, machine, spots, points, needed, **own)
            engine = _engine(case, doses, spots, stay, used)
            log.info("engine %s at %d points: %s", engine.engine, len(points), engine.why)
            return doses, engine.linear(doses, spots.position), engine

        what = (amplitude, case.dose.gradient, case.dose.engine, str(stay), *(scenario.name for scenario in needed))
        doses, linear, engine = make() if shared is None else shared.get(what, spots, points, make)
        engines.append(engine)
        used += linear.n_bytes if engine.stored else 0
        return doses, linear

    with progress.stage("Dose tables" if case.dose.engine == "matrix_free" else "Dose tables and matrices"):
        sampling: Sampling | None = None
        robust: PlanObjective
        asked = [term for term in objective.terms if term not in sampled]
        whole = seen_whole(asked, patient)
        points = case_points(case, patient, machine, spots, [term.roi for term in asked], len(needed), case.seed, whole)
        if sampled:
            look = _look(case, patient, machine, needed, split, {**options, "team": team})
            sampling = Sampling(patient, objective, split, bind, needed=points, tabulate=tabulate, look=look, seed=case.seed, team=team)
            doses, linear, robust = sampling.doses, sampling.linear, sampling.objective
        else:
            (doses, linear), bound = tabulate(points), objective.at(points, points.volume)
            if not mixed:
                robust = bind(bound)
            else:
                entries = letd_entries(bound, mixed)
                asks = {name: quantity(case, name, points, entries) for name in sorted(mixed)}
                robust = MixedObjective(bound.among(team), asks, entries, case.mode(), case.quantity())
                letd_doses, letd_linear = tabulate(points.take(entries), "letd_dose")
                sizes = [doses.n_voxels, letd_doses.n_voxels]
                doses, linear = joined([doses, letd_doses]), JoinedLinear([linear, letd_linear], sizes)
    times["dose"] = time.perf_counter() - begin
    return PlanningProblem(case, compute, patient, machine, scenarios, spots, points, doses, linear, robust, sampling, team, engines)


def _look(
    case: Case, patient: Patient, machine: Machine, scenarios: tuple[Scenario, ...], split: Split, options: dict[str, Any]
) -> Callable[[Spots], BodyDoses]:
    """What `Sampling` looks at a plan with: doses in the middles of voxels, as its own are."""
    level = min([term.dose for term in split.limits] + [case.highest_prescription() or torch.inf])
    nothing, leave = torch.zeros_like(split.pool), targets_mask(case, patient).flatten() & ~split.pool

    def look(spots: Spots) -> BodyDoses:
        return body_doses(
            patient, machine, spots, scenarios, asked=nothing, level=level, leave=leave, quantity=case.quantity(), **options
        )  # fmt: skip

    return look


def _iterations_at_start(case: Case, sampled: bool) -> int:
    """For how many iterations at most the spots stay where they were placed."""
    iterations, joint = case.optimizer.max_iterations, case.joint
    if joint is None or not joint.motion().moves:
        return iterations
    stay = joint.weight_iterations if joint.scheme == "alternating" else joint.warm_iterations
    return min(iterations, stay + (FIRST if sampled else 0))


def _engine(case: Case, doses: ScenarioDoses, spots: Spots, iterations: int, used: int) -> Choice:
    """How the placed spots' doses are computed, where `used` bytes of matrices are there already."""
    config = case.dose
    if config.engine != AUTO and config.gradient != "autograd":
        return Choice(config.engine, 0 if config.engine == "matrix_free" else len(doses), "as the case asks")
    return choose(doses, spots.position, iterations, None if config.memory_gb is None else int(config.memory_gb * 1e9), used)
