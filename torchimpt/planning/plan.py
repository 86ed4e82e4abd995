"""The main job in memory: a case in, an optimized and assessed plan out. `workflow` wraps it in a run folder."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

import torch

from torchimpt.config import Case
from torchimpt.dose.influence import influence_matrices
from torchimpt.dose.operator import DoseOperator, dose_operators
from torchimpt.io.plan import read_plan
from torchimpt.machine import Machine
from torchimpt.monitor import Callback, Progress, together
from torchimpt.objectives import Objective
from torchimpt.optim import Solution
from torchimpt.patient import Patient
from torchimpt.placement import place_spots, stagger
from torchimpt.planning.assess import Assessment, assess
from torchimpt.planning.engine import AutogradEngine, Engine, MatrixEngine, MatrixFreeEngine
from torchimpt.planning.joint import Moving
from torchimpt.planning.prepare import Settings, load_machine, load_patient, resolve_beams, settings
from torchimpt.planning.schemes import optimize
from torchimpt.planning.stages import Limits, Optimized, View
from torchimpt.planning.weights import weight_problem
from torchimpt.robust import RobustObjective
from torchimpt.scenarios import Scenario
from torchimpt.spots import Spots

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """All that the solver and its watchers need.

    Attributes
    ----------
    voxels
        Flat grid indices that the objective looks at.
    engine, objective
        Doses of the scenarios from the placed spots' weights, and the robust objective on them.
    view
        What the solver is at.
    """

    case: Case
    how: Settings
    patient: Patient
    machine: Machine
    scenarios: tuple[Scenario, ...]
    spots: Spots
    voxels: torch.Tensor
    operators: tuple[DoseOperator, ...]
    engine: Engine
    objective: RobustObjective
    view: View

    def terms(self, x: torch.Tensor) -> list[dict]:
        """The objective's terms at the solver's iterate, each with the scenario's name."""
        rows = self.objective.terms(self.view.problem.image(x))
        return [{**row, "scenario": self.scenarios[row["scenario"]].name} for row in rows]

    def nominal_doses(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Nominal doses at the solver's iterate of the ROIs that the objective looks at, `{roi: (n_roi,)}`, Gy."""
        dose = self.view.problem.image(x)[0]
        place = torch.full((self.patient.grid.n_voxels,), -1)
        place[self.voxels] = torch.arange(len(self.voxels))
        found = {}
        for name in dict.fromkeys(term.roi for term in self.case.terms()):
            index = place[self.patient.roi(name).voxels]
            found[name] = dose[index[index >= 0].to(dose.device)]
        return found

    def moving(self, x: torch.Tensor) -> tuple[Spots, torch.Tensor]:
        """The spots at the solver's iterate, their layers numbered as those of the placed ones, and where each was placed `(n, 2)`, mm."""
        plan, placed = self.view.plan(x), self.spots
        layer = placed.layer[plan.index]
        return Spots(plan.position, plan.weight, layer, placed.layer_beam, placed.layer_energy, placed.beams), plan.home


@dataclass(frozen=True)
class PlanResult:
    """A finished plan.

    Attributes
    ----------
    spots
        With the weights and positions found.
    home
        Where they were placed, `(n_spots, 2)`, mm.
    solution
        The solver's outcome.
    steps
        What each step of the scheme left: `step`, `spots`, `objective`, `iterations`, `evaluations`, `seconds`.
    assessment
        Doses and goals.
    metrics
        The content of `metrics.json`.
    """

    case: Case
    patient: Patient
    machine: Machine
    spots: Spots
    home: torch.Tensor
    solution: Solution
    steps: list[dict]
    assessment: Assessment
    metrics: dict = field(repr=False)


def _start(case: Case, patient: Patient, machine: Machine, scenarios: tuple[Scenario, ...], how: Settings) -> Spots:
    """The spots that the case starts from: its lattice, jittered or not, or those of a plan file."""
    beams, config = resolve_beams(case, patient), case.spots
    if case.joint is not None and case.joint.start is not None:
        spots = read_plan(case.joint.start, beams, dtype=how.dtype)
    else:
        spots = place_spots(
            patient, machine, beams, config.targets, config.spacing_mm, pattern=config.pattern, margin=config.margin_mm,
            layer_spacing=config.layer_spacing, scenarios=scenarios, dtype=how.dtype,
        )  # fmt: skip
        moves = case.joint is not None and case.joint.box_mm > 0
        if config.stagger or (config.stagger is None and moves):
            spots = stagger(spots, config.spacing_mm)
        if config.jitter_mm > 0:
            noise = torch.rand(spots.position.shape, generator=torch.Generator().manual_seed(case.seed), dtype=torch.float64)
            spots.position.data += (config.jitter_mm * (2.0 * noise - 1.0)).to(spots.position)
    return spots.to(how.device)


def prepare(case: Case, how: Settings, progress: Progress, times: dict[str, float]) -> Prepared:
    """Load, place, trace and build what the solver needs; the seconds go into `times`."""
    case.check_plan()
    begin = time.perf_counter()
    with progress.stage("Patient, machine and spots"):
        patient, machine = load_patient(case), load_machine(case)
        scenarios = case.scenarios()
        spots = _start(case, patient, machine, scenarios, how)
        log.info("%d spots in %d energy layers of %d beams", spots.n_spots, spots.n_layers, len(spots.beams))
        objective = Objective(case.terms(), normalize=case.optimizer.normalize, overlap=case.optimizer.overlap)
        voxels = objective.voxels(patient)
        robust = RobustObjective(objective.on(patient, voxels))
    times["load"] = time.perf_counter() - begin
    begin = time.perf_counter()
    stored = case.dose.engine == "matrix" and case.dose.gradient == "analytic" and not _moves_at_once(case)
    with progress.stage("Influence matrices" if stored else "Dose tables"):
        operators = dose_operators(
            patient, machine, spots, voxels, scenarios, cutoff=case.dose.cutoff_sigma, rbe=case.dose.rbe, dtype=how.dtype,
            device=how.device,
        )  # fmt: skip
        if case.dose.gradient == "autograd":
            engine = AutogradEngine(operators, spots.position)
        elif stored:
            engine = MatrixEngine(influence_matrices(operators, spots.position))
        else:
            engine = MatrixFreeEngine(operators, spots.position)
    times["dose"] = time.perf_counter() - begin
    return Prepared(
        case, how, patient, machine, scenarios, spots, voxels, tuple(operators), engine, robust, View(weight_problem(engine, robust))
    )


def _moves_at_once(case: Case) -> bool:
    """Whether too few iterations come before spots move for matrices to pay."""
    return case.joint is not None and case.joint.box_mm > 0 and (case.joint.scheme == "alternating" or case.joint.warm_iterations < 20)


def solve(ready: Prepared, callback: Callback | None = None, state: dict | None = None) -> Optimized:
    """Optimize weights, and positions where the case has `[joint]`."""
    case, spots = ready.case, ready.spots
    least = case.delivery.model().min_weight(spots, ready.machine) if case.delivery.min_mu > 0 else None
    limits = Limits(least, case.delivery.min_layer_share)
    given = case.joint is not None and case.joint.start is not None
    return optimize(
        ready.operators, ready.objective, spots, case.optimizer, case.joint, limits=limits, engine=ready.engine, uniform=not given,
        callback=callback, view=ready.view, state=state,
    )  # fmt: skip


def plan(
    case: Case,
    *,
    device: str = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
    callback: Callback | None = None,
) -> PlanResult:
    """Plan a case, as the command line does, without writing anything.

    Parameters
    ----------
    case
        From `load_case`, or made in Python.
    device
        `"cpu"`, `"cuda"` or `"auto"`.
    threads
        CPU threads; None leaves torch's.
    progress
        Progress bars on stderr; None for none.
    callback
        Called with each of the solver's iterations; returning True stops.
    """
    from torchimpt.planning.metrics import plan_metrics

    progress = progress or Progress(enabled=False)
    how = settings(device, case.dose.dtype, threads, case.seed)
    times: dict[str, float] = {}
    begin = time.perf_counter()
    ready = prepare(case, how, progress, times)
    found = timed_solve(ready, progress, times, callback)
    spots, assessment = timed_assess(ready, found.plan, progress, times)
    times["total"] = time.perf_counter() - begin
    metrics = plan_metrics(ready, found, spots, assessment, times)
    home = found.plan.home.cpu()
    return PlanResult(case, ready.patient, ready.machine, spots, home, found.solution, found.steps, assessment, metrics)


def timed_solve(
    ready: Prepared, progress: Progress, times: dict[str, float], callback: Callback | None = None, state: dict | None = None
) -> Optimized:
    """`solve` with a progress bar and its seconds."""
    begin = time.perf_counter()
    what = "Optimizing weights" if ready.case.joint is None else "Optimizing weights and positions"
    with progress.stage(what, total=ready.case.optimizer.max_iterations) as stage:
        found = solve(ready, together(stage, callback), state)
    times["optimize"] = time.perf_counter() - begin
    for step in found.steps:
        log.info("%s: %d spots, objective %.6g, %d evaluations", step["step"], step["spots"], step["objective"], step["evaluations"])
    solution = found.solution
    log.info("%s: objective %.6g after %d iterations", solution.status.value, solution.value, solution.iterations)
    return found


def timed_assess(ready: Prepared, plan: Moving, progress: Progress, times: dict[str, float]) -> tuple[Spots, Assessment]:
    """`assess` the plan found, on the CPU as spots, with its seconds."""
    begin = time.perf_counter()
    spots = plan.spots(ready.spots).cpu()
    whole = ready.case.output.scenarios_dose
    sub_spots = bool(ready.case.dose.sub_spots)
    found = assess(ready.case, ready.patient, ready.machine, spots, ready.scenarios, ready.how, progress, whole, sub_spots)
    times["evaluate"] = time.perf_counter() - begin
    return spots, found
