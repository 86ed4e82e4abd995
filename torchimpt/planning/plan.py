"""The main job in memory: a case in, an optimized and assessed plan out. `workflow` wraps it in a run folder."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

import torch

from torchimpt.checks import InputError
from torchimpt.config import Case
from torchimpt.dose.influence import influence_matrices
from torchimpt.dose.operator import DoseOperator, dose_operators
from torchimpt.machine import Machine
from torchimpt.monitor import Callback, Progress, Stage, together
from torchimpt.objectives import Objective
from torchimpt.optim import Composite, Solution, minimize
from torchimpt.patient import Patient
from torchimpt.placement import place_spots
from torchimpt.planning.assess import Assessment, assess
from torchimpt.planning.engine import AutogradEngine, Engine, MatrixEngine, MatrixFreeEngine
from torchimpt.planning.prepare import Settings, load_machine, load_patient, resolve_beams, settings
from torchimpt.planning.weights import best_uniform_weight, jacobi_scale, weight_problem
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
    engine, objective, problem
        Doses of the scenarios, the robust objective on them, and both together as a function of the weights.
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
    problem: Composite

    def terms(self, weight: torch.Tensor) -> list[dict]:
        """The objective's terms at these weights, each with the scenario's name."""
        rows = self.objective.terms(self.problem.image(weight))
        return [{**row, "scenario": self.scenarios[row["scenario"]].name} for row in rows]

    def nominal_doses(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Nominal doses of the ROIs that the objective looks at, `{roi: (n_roi,)}`, Gy."""
        dose = self.problem.image(weight)[0]
        place = torch.full((self.patient.grid.n_voxels,), -1)
        place[self.voxels] = torch.arange(len(self.voxels))
        found = {}
        for name in dict.fromkeys(term.roi for term in self.case.terms()):
            index = place[self.patient.roi(name).voxels]
            found[name] = dose[index[index >= 0].to(dose.device)]
        return found


@dataclass(frozen=True)
class PlanResult:
    """A finished plan.

    Attributes
    ----------
    spots
        With the weights found.
    solution
        The solver's outcome.
    assessment
        Doses and goals.
    metrics
        The content of `metrics.json`.
    """

    case: Case
    patient: Patient
    machine: Machine
    spots: Spots
    solution: Solution
    assessment: Assessment
    metrics: dict = field(repr=False)


def prepare(case: Case, how: Settings, progress: Progress, times: dict[str, float]) -> Prepared:
    """Load, place, trace and build what the solver needs; the seconds go into `times`."""
    case.check_plan()
    if case.joint is not None:
        raise InputError(f"{case.label}: [joint] comes with a later version; leave the section out to plan with fixed positions")
    begin = time.perf_counter()
    with progress.stage("Patient, machine and spots"):
        patient, machine = load_patient(case), load_machine(case)
        beams, scenarios = resolve_beams(case, patient), case.scenarios()
        config = case.spots
        spots = place_spots(
            patient, machine, beams, config.targets, config.spacing_mm, pattern=config.pattern, margin=config.margin_mm,
            layer_spacing=config.layer_spacing, scenarios=scenarios, dtype=how.dtype,
        ).to(how.device)  # fmt: skip
        log.info("%d spots in %d energy layers of %d beams", spots.n_spots, spots.n_layers, len(beams))
        objective = Objective(case.terms(), normalize=case.optimizer.normalize, overlap=case.optimizer.overlap)
        voxels = objective.voxels(patient)
        robust = RobustObjective(objective.on(patient, voxels))
    times["load"] = time.perf_counter() - begin
    begin = time.perf_counter()
    with progress.stage("Influence matrices" if case.dose.engine == "matrix" else "Dose tables"):
        operators = dose_operators(
            patient, machine, spots, voxels, scenarios, cutoff=case.dose.cutoff_sigma, rbe=case.dose.rbe, dtype=how.dtype,
            device=how.device,
        )  # fmt: skip
        if case.dose.gradient == "autograd":
            engine = AutogradEngine(operators, spots.position)
        elif case.dose.engine == "matrix":
            engine = MatrixEngine(influence_matrices(operators, spots.position))
            operators = operators[:1]
        else:
            engine = MatrixFreeEngine(operators, spots.position)
    times["dose"] = time.perf_counter() - begin
    problem = weight_problem(engine, robust)
    return Prepared(case, how, patient, machine, scenarios, spots, voxels, tuple(operators), engine, robust, problem)


def solve(ready: Prepared, stage: Stage, callback: Callback | None = None, state: dict | None = None) -> Solution:
    """Optimize the weights from the best uniform ones."""
    config, spots = ready.case.optimizer, ready.spots
    position = spots.position.detach()
    start = best_uniform_weight(ready.engine, ready.objective, spots.weight.detach())
    scale = jacobi_scale(ready.operators[0], position, ready.objective.bound)
    return minimize(
        ready.problem, start, method=config.method, scale=scale, max_iterations=config.max_iterations,
        max_evaluations=config.max_evaluations, tolerance=config.tolerance, callback=together(stage, callback), state=state,
    )  # fmt: skip


def finish(ready: Prepared, weight: torch.Tensor) -> Spots:
    """The placed spots with these weights, on the CPU."""
    spots = ready.spots
    return Spots(spots.position.cpu(), weight.cpu(), spots.layer.cpu(), spots.layer_beam.cpu(), spots.layer_energy.cpu(), spots.beams)


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
    solution = timed_solve(ready, progress, times, callback)
    spots, assessment = timed_assess(ready, solution, progress, times)
    times["total"] = time.perf_counter() - begin
    metrics = plan_metrics(ready, solution, spots, assessment, times)
    return PlanResult(case, ready.patient, ready.machine, spots, solution, assessment, metrics)


def timed_solve(
    ready: Prepared, progress: Progress, times: dict[str, float], callback: Callback | None = None, state: dict | None = None
) -> Solution:
    """`solve` with a progress bar and its seconds."""
    begin = time.perf_counter()
    with progress.stage("Optimizing weights", total=ready.case.optimizer.max_iterations) as stage:
        solution = solve(ready, stage, callback, state)
    times["optimize"] = time.perf_counter() - begin
    log.info("%s: objective %.6g after %d iterations", solution.status.value, solution.value, solution.iterations)
    return solution


def timed_assess(ready: Prepared, solution: Solution, progress: Progress, times: dict[str, float]) -> tuple[Spots, Assessment]:
    """`assess` the solution's plan, with its seconds."""
    begin = time.perf_counter()
    spots = finish(ready, solution.x)
    whole = ready.case.output.scenarios_dose
    sub_spots = bool(ready.case.dose.sub_spots)
    found = assess(ready.case, ready.patient, ready.machine, spots, ready.scenarios, ready.how, progress, whole, sub_spots)
    times["evaluate"] = time.perf_counter() - begin
    return spots, found
