"""The commands' work: plan, dose and evaluate, each with its folder of results."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchimpt.case import Case
from torchimpt.checks import InputError
from torchimpt.io.plan import fractions_of, read_plan, write_plan
from torchimpt.machine import Machine
from torchimpt.patient import Patient
from torchimpt.planning.assess import assess, help_assess
from torchimpt.planning.build import PlanningProblem
from torchimpt.planning.load import Compute, load_machine, load_patient, resolve_beams, set_up
from torchimpt.planning.metrics import dose_metrics
from torchimpt.planning.plan import PlanResult, help_plan, plan
from torchimpt.planning.shared import SharedDoses
from torchimpt.planning.way import tell_way
from torchimpt.processes import ALONE, Team
from torchimpt.runs.about import rounding
from torchimpt.runs.checkpoint import Checkpoint, check_start, fingerprint, read_checkpoint
from torchimpt.runs.folder import is_result, open_run, write_json
from torchimpt.runs.live import LivePictures, final_numbers, hyperparameters, last_pictures, live_goals
from torchimpt.runs.results import write_results
from torchimpt.scenarios import Scenario
from torchimpt.schemes.stages import Callback, PlanIteration
from torchimpt.spots import Spots
from torchimpt.watch import History, Log, Progress, TensorBoard, together

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """What a command came to: the content of its `metrics.json`; empty in a process that does not lead."""

    metrics: dict


def run_plan(
    case: Case,
    out: Path,
    *,
    device: str = "auto",
    threads: int | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    team: Team = ALONE,
    shared: SharedDoses | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> RunResult:
    """Plan a case into a run folder, which no other command may be writing into.

    An earlier run's results stay until the problem is built, with `resume` until the solver goes on: what is wrong with the input is found
    before. An interrupt writes the checkpoint and goes on up as `KeyboardInterrupt`. Several processes all call this; the one that leads
    writes, and one that is lost ends the run as an interrupt does. `shared` are doses and matrices of plans of the same geometry,
    `parameters` what TensorBoard tells besides of what the run was made with.
    """
    progress = progress or Progress(enabled=False)
    case.check_plan()
    compute = set_up(case, device, threads, team)
    out = Path(out)
    if not team.leads:
        team.agree(_same(case))
        saved = read_checkpoint(out / "checkpoint.pt", case, compute.device) if resume else None
        watchers = _Watchers(out, saved, lambda: None)
        state = None if saved is None else saved["solver"]
        help_plan(case, device=str(compute.device), threads=threads, watch=watchers.of_helper, state=state, team=team)
        return RunResult({})
    if case.joint is not None and case.joint.start is not None and is_result(case.joint.start, out):
        raise InputError(f"{case.label}: joint.start lies in {out}, whose plan this run would replace; choose another --out")
    with open_run(out, case, compute.device, resume=resume) as begin:
        team.agree(_same(case))
        saved = read_checkpoint(out / "checkpoint.pt", case, compute.device) if resume else None
        watchers = _Watchers(out, saved, begin)
        try:
            result = plan(
                case, device=str(compute.device), threads=threads, progress=progress, watch=watchers.of,
                state=None if saved is None else saved["solver"], team=team, shared=shared,
            )  # fmt: skip
        finally:
            watchers.write_checkpoint()
        begin()
        with progress.stage("Files and report"):
            write_plan(
                out / "plan.json", result.spots, result.machine, title=case.title, rbe=case.dose.rbe, fractions=case.delivery.fractions
            )
            home = None if case.joint is None else result.home
            write_results(
                out, case, result.patient, result.machine, result.spots, result.assessment, result.metrics, scenarios=case.scenarios(),
                compute=compute, history=watchers.history.rows, home=home,
            )  # fmt: skip
        watchers.finish(result, parameters or {})
        write_json(out / "metrics.json", result.metrics)
    return RunResult(result.metrics)


def _same(case: Case) -> dict[str, str]:
    """What has to be the same in all processes of a run: they decide alike only where they round alike."""
    return {"case": fingerprint(case), **rounding()}


class _Terms:
    """The objective's terms and the constraints' violations at an iteration, computed once for all who ask: several processes are asked at
    the same time.
    """

    def __init__(self, problem: PlanningProblem) -> None:
        self._problem = problem
        self._of: PlanIteration | None = None
        self._rows: list[dict] = []
        self._violations: dict[str, float] = {}

    def _look(self, iteration: PlanIteration) -> None:
        if iteration is not self._of:
            doses = iteration.doses()
            self._of, self._rows, self._violations = iteration, self._problem.terms(doses), self._problem.violations(doses)

    def __call__(self, iteration: PlanIteration) -> list[dict]:
        self._look(iteration)
        return self._rows

    def violations(self, iteration: PlanIteration) -> dict[str, float]:
        """As of `PlanningProblem.violations`."""
        self._look(iteration)
        return self._violations


class _Watchers:
    """What watches a planning run: history, TensorBoard, log, checkpoint."""

    history: History

    def __init__(self, out: Path, saved: dict | None, begin: Callable[[], None]) -> None:
        self._out, self._saved, self._begin = out, saved, begin
        self._board: TensorBoard | None = None
        self._checkpoint: Checkpoint | None = None

    def of(self, problem: PlanningProblem) -> Callback:
        """The callback, made when the problem is known."""
        case, out = problem.case, self._out
        if self._saved is None:
            self._begin()
        else:
            check_start(self._saved, problem, out / "checkpoint.pt")
        every = case.optimizer.log_every
        last = None if self._saved is None else self._saved["last"]
        terms = _Terms(problem)
        self.history = History(
            out / "history.jsonl", terms=terms, last=last, goals=lambda iteration: live_goals(problem, iteration), every=every
        )
        if case.output.tensorboard:
            self._board = TensorBoard(
                out / "tensorboard", terms=terms,
                doses=lambda iteration: problem.nominal_doses(iteration.doses()),
                violations=terms.violations if problem.objective.constraints else None,
                motion=None if case.joint is None else problem.moving, pictures=LivePictures(problem), every=every,
            )  # fmt: skip
        self._checkpoint = Checkpoint(out / "checkpoint.pt", problem, every=every)
        return together(lambda _: self._begin(), self.history, self._board, Log(every), self._checkpoint)

    def of_helper(self, problem: PlanningProblem) -> Callback:
        """The callback of a process that does not lead: nothing is written, but the terms are asked of all."""
        if self._saved is not None:
            check_start(self._saved, problem, self._out / "checkpoint.pt")
        return together(lambda iteration: bool(_Terms(problem)(iteration)) and None)

    def write_checkpoint(self) -> None:
        """The last iterate's state, if there is any."""
        if self._checkpoint is not None:
            self._checkpoint.write()

    def finish(self, result: PlanResult, parameters: Mapping[str, Any]) -> None:
        """TensorBoard's last pictures and numbers."""
        if self._board is None:
            return
        for tag, figure in last_pictures(result).items():
            self._board.figure(tag, figure, result.solution.iterations)
        self._board.hyperparameters({**hyperparameters(result.case), **parameters}, final_numbers(result.metrics))
        self._board.close()


def run_dose(
    case: Case,
    plan_path: Path,
    out: Path,
    *,
    device: str = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
    team: Team = ALONE,
) -> RunResult:
    """Forward dose of a given plan or spot list on the case's patient and machine, in the case's scenarios.

    A plan that was made with another machine or RBE is computed with the case's, with a warning. Of an RT Ion Plan, and of one of
    matRad's, the number of fractions is its own, as its MU or weights are those of one, and the case's beams, if there are any, take the
    place of its angles and isocentres.
    """
    progress, plan_path, out = progress or Progress(enabled=False), Path(plan_path), Path(out)
    if is_result(plan_path, out):
        raise InputError(f"{plan_path} lies in {out}, whose files this dose would replace; choose another --out")
    if not case.beam and plan_path.suffix.lower() == ".csv":
        raise InputError(f"{case.label}: a spot list needs the case's [[beam]] sections, there is none")
    fractions = fractions_of(plan_path)
    if fractions is not None:
        if "fractions" in case.delivery.model_fields_set and case.delivery.fractions != fractions:
            log.warning("%s is for %d fractions, not %d as the case says: its own count", plan_path, fractions, case.delivery.fractions)
        case = case.in_fractions(fractions)
    compute = set_up(case, device, threads, team)
    if not team.leads:
        return _help_dose(case, plan_path, case.scenarios(), compute, team)
    with open_run(out, case, compute.device) as begin:
        return _dose_of(case, plan_path, out, case.scenarios(), compute, progress, begin, team)


def run_evaluate(
    case: Case,
    run: Path,
    folder: Path,
    *,
    scenarios: Sequence[Scenario],
    device: str = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
    team: Team = ALONE,
) -> RunResult:
    """Doses, DVHs and goals of a run's plan in other scenarios, written to `folder`, with the machine and the RBE that it was made with."""
    progress, run, folder = progress or Progress(enabled=False), Path(run), Path(folder)
    if not (run / "plan.json").is_file():
        raise InputError(f"{run} holds no plan.json: it is no run folder, or its run did not finish")
    if is_result(run / "plan.json", folder):
        raise InputError(f"{folder} is the run itself, whose files the evaluation would replace; choose another --out")
    compute = set_up(case, device, threads, team)
    if not team.leads:
        return _help_dose(case, run / "plan.json", scenarios, compute, team, strict=True)
    with open_run(folder, case, compute.device) as begin:
        return _dose_of(case, run / "plan.json", folder, scenarios, compute, progress, begin, team, strict=True)


def _read(case: Case, plan_path: Path, compute: Compute, strict: bool) -> tuple[Patient, Machine, Spots]:
    """What a dose is computed of."""
    patient, machine = load_patient(case), load_machine(case)
    beams = resolve_beams(case, patient, plan_path)
    spots = read_plan(
        plan_path, beams, dtype=compute.dtype, machine=machine, rbe=case.dose.rbe, strict=strict,
        ignore_apertures=case.dose.ignore_apertures,
    )  # fmt: skip
    return patient, machine, spots


def _help_dose(
    case: Case, plan_path: Path, scenarios: Sequence[Scenario], compute: Compute, team: Team, *, strict: bool = False
) -> RunResult:
    """The part of `_dose_of` that falls to a process which does not lead."""
    team.agree(_same(case))
    patient, machine, spots = _read(case, plan_path, compute, strict)
    help_assess(case, patient, machine, spots, scenarios, compute, whole=case.output.scenarios_dose, team=team)
    return RunResult({})


def _dose_of(
    case: Case,
    plan_path: Path,
    out: Path,
    scenarios: Sequence[Scenario],
    compute: Compute,
    progress: Progress,
    begin: Callable[[], None],
    team: Team,
    *,
    strict: bool = False,
) -> RunResult:
    """Read a plan, compute and assess its dose, write all but a solver's part."""
    team.agree(_same(case))
    times: dict[str, float] = {}
    started = time.perf_counter()
    with progress.stage("Patient, machine and plan"):
        patient, machine, spots = _read(case, plan_path, compute, strict)
        tell_way(case, patient, machine, spots.beams)
    times["load"] = time.perf_counter() - started
    log.info("dose model: %s", case.dose.model)
    assessment = assess(case, patient, machine, spots, scenarios, compute, progress, whole=case.output.scenarios_dose, team=team)
    times["dose"] = time.perf_counter() - started - times["load"]
    times["total"] = time.perf_counter() - started
    metrics = {"title": case.title, **dose_metrics(spots, machine, case.delivery.model(), assessment, times, compute)}
    begin()
    write_plan(out / "plan.json", spots, machine, title=case.title, rbe=case.dose.rbe, fractions=case.delivery.fractions)
    write_results(out, case, patient, machine, spots, assessment, metrics, scenarios=scenarios, compute=compute)
    write_json(out / "metrics.json", metrics)
    return RunResult(metrics)
