"""The one pipeline: a case in, an optimized and assessed plan out. The command adds a run folder and what watches."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from torchimpt.case import Case
from torchimpt.machine import Machine
from torchimpt.optim import Solution
from torchimpt.patient import Patient
from torchimpt.planning.assess import Assessment, assess, help_assess
from torchimpt.planning.build import PlanningProblem, build
from torchimpt.planning.fine import fine_check
from torchimpt.planning.load import set_up
from torchimpt.planning.metrics import plan_metrics, shared_metrics
from torchimpt.planning.shared import SharedDoses
from torchimpt.processes import ALONE, Team
from torchimpt.schemes.schemes import optimize
from torchimpt.schemes.settings import Limits
from torchimpt.schemes.stages import Callback, Optimized
from torchimpt.spots import Spots
from torchimpt.watch import Progress, together

log = logging.getLogger(__name__)


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


def plan(
    case: Case,
    *,
    device: str = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
    callback: Callback | None = None,
    watch: Callable[[PlanningProblem], Callback] | None = None,
    state: dict | None = None,
    team: Team = ALONE,
    shared: SharedDoses | None = None,
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
    watch
        Called with the planning problem before it is optimized, for a further callback: for those who need to know the problem.
    state
        From an iteration's `state()`, to go on.
    team
        The processes of the plan (`torchimpt.processes.joined`), in the one that leads; the others call `help_plan` at the same time.
    shared
        Doses and matrices of plans of the same geometry.
    """
    progress = progress or Progress(enabled=False)
    compute = set_up(case, device, threads, team)
    times: dict[str, float] = {}
    begin = time.perf_counter()
    problem = build(case, compute, progress, times, team, shared)
    optimized = _optimize(problem, progress, times, together(callback, watch and watch(problem)), state)
    of_all = shared_metrics(problem, optimized)
    problem.now.linear.release()  # what comes now needs tables of the whole body, and no matrices
    started = time.perf_counter()
    spots = optimized.spots.spots(problem.spots).cpu()
    assessment = assess(
        case, problem.patient, problem.machine, spots, problem.scenarios, compute, progress, whole=case.output.scenarios_dose, team=team
    )
    times["evaluate"] = time.perf_counter() - started
    started = time.perf_counter()
    fine = fine_check(case, problem.patient, problem.machine, spots, assessment, compute, progress)
    times["check"] = time.perf_counter() - started
    times["total"] = time.perf_counter() - begin
    metrics = plan_metrics(problem, optimized, of_all, spots, assessment, times, fine)
    home = optimized.spots.home.cpu()
    return PlanResult(case, problem.patient, problem.machine, spots, home, optimized.solution, optimized.steps, assessment, metrics)


def help_plan(
    case: Case,
    *,
    device: str = "auto",
    threads: int | None = None,
    watch: Callable[[PlanningProblem], Callback] | None = None,
    state: dict | None = None,
    team: Team,
) -> None:
    """The part of `plan` that falls to a process which does not lead: the same solver on the doses of its own scenarios.

    What the leading process asks of all in its callbacks, `watch` asks here.
    """
    compute, progress = set_up(case, device, threads, team), Progress(enabled=False)
    problem = build(case, compute, progress, {}, team)
    optimized = _optimize(problem, progress, {}, together(watch and watch(problem)), state)
    shared_metrics(problem, optimized)
    problem.now.linear.release()
    spots = optimized.spots.spots(problem.spots).cpu()
    whole = case.output.scenarios_dose
    help_assess(case, problem.patient, problem.machine, spots, problem.scenarios, compute, whole=whole, team=team)


def _optimize(problem: PlanningProblem, progress: Progress, times: dict[str, float], callback: Callback, state: dict | None) -> Optimized:
    """Weights, and positions where the case has `[joint]`, with a progress bar and its seconds."""
    case, spots, begin = problem.case, problem.spots, time.perf_counter()
    least = case.delivery.model().min_weight(spots, problem.machine) if case.delivery.min_mu > 0 else None
    given = case.joint is not None and case.joint.start is not None
    what = "Optimizing weights" if case.joint is None else "Optimizing weights and positions"
    with progress.stage(what, total=case.optimizer.max_iterations) as stage:
        optimized = optimize(
            problem.doses, problem.objective, spots, case.optimizer.solver(), None if case.joint is None else case.joint.motion(),
            limits=Limits(least, case.delivery.min_layer_share), linear=problem.linear, uniform=not given,
            sampling=problem.sampling, callback=together(stage, callback), state=state,
        )  # fmt: skip
    times["optimize"] = time.perf_counter() - begin
    for step in optimized.steps:
        log.info("%s: %d spots, objective %.6g, %d evaluations", step["step"], step["spots"], step["objective"], step["evaluations"])
    solution = optimized.solution
    log.info("%s: objective %.6g after %d iterations", solution.status.value, solution.value, solution.iterations)
    return optimized
