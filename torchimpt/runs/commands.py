"""The commands' work: plan, dose and evaluate, each with its folder of results."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torchimpt.case import Case
from torchimpt.checks import InputError
from torchimpt.io.dicom import is_dicom, read_ion_plan
from torchimpt.io.plan import read_plan, write_plan
from torchimpt.planning.assess import assess
from torchimpt.planning.build import PlanningProblem
from torchimpt.planning.load import Compute, load_machine, load_patient, resolve_beams, set_up
from torchimpt.planning.metrics import dose_metrics
from torchimpt.planning.plan import PlanResult, plan
from torchimpt.runs.checkpoint import Checkpoint, check_start, read_checkpoint
from torchimpt.runs.folder import is_result, open_run, write_json
from torchimpt.runs.live import LivePictures, final_numbers, hyperparameters, last_pictures, live_goals
from torchimpt.runs.results import write_results
from torchimpt.scenarios import Scenario
from torchimpt.schemes.stages import Callback
from torchimpt.watch import History, Log, Progress, TensorBoard, together

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """What a command came to: the content of its `metrics.json`."""

    metrics: dict


def run_plan(
    case: Case,
    out: Path,
    *,
    device: str = "auto",
    threads: int | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> RunResult:
    """Plan a case into a run folder, which no other command may be writing into.

    An earlier run's results stay until the problem is built, with `resume` until the solver goes on: what is wrong with the input is found
    before. An interrupt writes the checkpoint and goes on up as `KeyboardInterrupt`.
    """
    progress = progress or Progress(enabled=False)
    case.check_plan()
    compute = set_up(case, device, threads)
    out = Path(out)
    if case.joint is not None and case.joint.start is not None and is_result(case.joint.start, out):
        raise InputError(f"{case.label}: joint.start lies in {out}, whose plan this run would replace; choose another --out")
    with open_run(out, case, compute.device, resume=resume) as begin:
        saved = read_checkpoint(out / "checkpoint.pt", case, compute.device) if resume else None
        watchers = _Watchers(out, saved, begin)
        try:
            result = plan(
                case, device=str(compute.device), threads=threads, progress=progress, watch=watchers.of,
                state=None if saved is None else saved["solver"],
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
        watchers.finish(result)
        write_json(out / "metrics.json", result.metrics)
    return RunResult(result.metrics)


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
        self.history = History(
            out / "history.jsonl", terms=lambda iteration: problem.terms(iteration.doses()), last=last,
            goals=lambda iteration: live_goals(problem, iteration), every=every,
        )  # fmt: skip
        if case.output.tensorboard:
            self._board = TensorBoard(
                out / "tensorboard", terms=lambda iteration: problem.terms(iteration.doses()),
                doses=lambda iteration: problem.nominal_doses(iteration.doses()),
                motion=None if case.joint is None else problem.moving, pictures=LivePictures(problem), every=every,
            )  # fmt: skip
        self._checkpoint = Checkpoint(out / "checkpoint.pt", problem, every=every)
        return together(lambda _: self._begin(), self.history, self._board, Log(every), self._checkpoint)

    def write_checkpoint(self) -> None:
        """The last iterate's state, if there is any."""
        if self._checkpoint is not None:
            self._checkpoint.write()

    def finish(self, result: PlanResult) -> None:
        """TensorBoard's last pictures and numbers."""
        if self._board is None:
            return
        for tag, figure in last_pictures(result).items():
            self._board.figure(tag, figure, result.solution.iterations)
        self._board.hyperparameters(hyperparameters(result.case), final_numbers(result.metrics))
        self._board.close()


def run_dose(
    case: Case,
    plan_path: Path,
    out: Path,
    *,
    device: str = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Forward dose of a given plan or spot list on the case's patient and machine, in the case's scenarios.

    A plan that was made with another machine or RBE is computed with the case's, with a warning. Of an RT Ion Plan the number of fractions
    is its own, as its MU are those of one, and the case's beams, if there are any, take the place of its angles and isocentres.
    """
    progress, plan_path, out = progress or Progress(enabled=False), Path(plan_path), Path(out)
    if is_result(plan_path, out):
        raise InputError(f"{plan_path} lies in {out}, whose files this dose would replace; choose another --out")
    if not case.beam and plan_path.suffix.lower() == ".csv":
        raise InputError(f"{case.label}: a spot list needs the case's [[beam]] sections, there is none")
    if is_dicom(plan_path):
        fractions = read_ion_plan(plan_path).fractions
        if "fractions" in case.delivery.model_fields_set and case.delivery.fractions != fractions:
            log.warning("%s is for %d fractions, not %d as the case says: its own count", plan_path, fractions, case.delivery.fractions)
        case = case.in_fractions(fractions)
    compute = set_up(case, device, threads)
    with open_run(out, case, compute.device) as begin:
        return _dose_of(case, plan_path, out, case.scenarios(), compute, progress, begin)


def run_evaluate(
    case: Case,
    run: Path,
    folder: Path,
    *,
    scenarios: Sequence[Scenario],
    device: str = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Doses, DVHs and goals of a run's plan in other scenarios, written to `folder`, with the machine and the RBE that it was made with."""
    progress, run, folder = progress or Progress(enabled=False), Path(run), Path(folder)
    if not (run / "plan.json").is_file():
        raise InputError(f"{run} holds no plan.json: it is no run folder, or its run did not finish")
    if is_result(run / "plan.json", folder):
        raise InputError(f"{folder} is the run itself, whose files the evaluation would replace; choose another --out")
    compute = set_up(case, device, threads)
    with open_run(folder, case, compute.device) as begin:
        return _dose_of(case, run / "plan.json", folder, scenarios, compute, progress, begin, strict=True)


def _dose_of(
    case: Case,
    plan_path: Path,
    out: Path,
    scenarios: Sequence[Scenario],
    compute: Compute,
    progress: Progress,
    begin: Callable[[], None],
    *,
    strict: bool = False,
) -> RunResult:
    """Read a plan, compute and assess its dose, write all but a solver's part."""
    times: dict[str, float] = {}
    started = time.perf_counter()
    with progress.stage("Patient, machine and plan"):
        patient, machine = load_patient(case), load_machine(case)
        beams = resolve_beams(case, patient, plan_path)
        spots = read_plan(plan_path, beams, dtype=compute.dtype, machine=machine, rbe=case.dose.rbe, strict=strict)
    times["load"] = time.perf_counter() - started
    log.info("dose model: %s", case.dose.model)
    assessment = assess(case, patient, machine, spots, scenarios, compute, progress, whole=case.output.scenarios_dose)
    times["dose"] = time.perf_counter() - started - times["load"]
    times["total"] = time.perf_counter() - started
    metrics = {"title": case.title, **dose_metrics(spots, machine, case.delivery.model(), assessment, times, compute)}
    begin()
    write_plan(out / "plan.json", spots, machine, title=case.title, rbe=case.dose.rbe, fractions=case.delivery.fractions)
    write_results(out, case, patient, machine, spots, assessment, metrics, scenarios=scenarios, compute=compute)
    write_json(out / "metrics.json", metrics)
    return RunResult(metrics)
