"""The commands' work: plan, dose and evaluate, each with its folder of results."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from torchimpt.case import Case
from torchimpt.checks import InputError
from torchimpt.evaluate.tables import write_dvh_csv
from torchimpt.io.image import write_image
from torchimpt.io.plan import read_plan, write_plan
from torchimpt.machine import Machine
from torchimpt.patient import Patient
from torchimpt.planning.assess import Assessment, assess
from torchimpt.planning.build import PlanningProblem
from torchimpt.planning.load import Compute, load_machine, load_patient, resolve_beams, set_up
from torchimpt.planning.metrics import dose_metrics
from torchimpt.planning.plan import PlanResult, plan
from torchimpt.report.figures import dvh_figure
from torchimpt.report.page import ReportData, write_report
from torchimpt.report.style import roi_colors, shown_rois
from torchimpt.runs.about import versions
from torchimpt.runs.checkpoint import Checkpoint, check_start, read_checkpoint
from torchimpt.runs.folder import open_run, write_json
from torchimpt.scenarios import NOMINAL, Scenario
from torchimpt.schemes.stages import Callback
from torchimpt.spots import Spots
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
    """Plan a case into a run folder. An interrupt writes the checkpoint and goes on up as `KeyboardInterrupt`."""
    progress = progress or Progress(enabled=False)
    case.check_plan()
    compute = set_up(case, device, threads)
    out = Path(out)
    saved = read_checkpoint(out / "checkpoint.pt", case) if resume else None
    with open_run(out, case, compute.device):
        if not resume:
            (out / "history.jsonl").unlink(missing_ok=True)
        watchers = _Watchers(out, saved)
        try:
            result = plan(
                case, device=str(compute.device), threads=threads, progress=progress, watch=watchers.of,
                state=None if saved is None else saved["solver"],
            )  # fmt: skip
        finally:
            watchers.write_checkpoint()
        with progress.stage("Files and report"):
            write_plan(
                out / "plan.json", result.spots, result.machine, title=case.title, rbe=case.dose.rbe, fractions=case.delivery.fractions
            )
            home = None if case.joint is None else result.home
            parts = case, result.patient, result.machine, result.spots, result.assessment, result.metrics
            _write_results(out, *parts, watchers.history.rows, home)
        watchers.finish(result)
        write_json(out / "metrics.json", result.metrics)
    return RunResult(result.metrics)


class _Watchers:
    """What watches a planning run: history, TensorBoard, log, checkpoint."""

    history: History

    def __init__(self, out: Path, saved: dict | None) -> None:
        self._out, self._saved = out, saved
        self._board: TensorBoard | None = None
        self._checkpoint: Checkpoint | None = None

    def of(self, problem: PlanningProblem) -> Callback:
        """The callback, made when the problem is known."""
        case, out, placed = problem.case, self._out, problem.spots.state_dict()
        if self._saved is not None:
            check_start(self._saved, placed, out / "checkpoint.pt")
        every = case.optimizer.log_every
        last = None if self._saved is None else self._saved["last"]
        self.history = History(out / "history.jsonl", terms=lambda iteration: problem.terms(iteration.doses()), last=last)
        if case.output.tensorboard:
            self._board = TensorBoard(
                out / "tensorboard", terms=lambda iteration: problem.terms(iteration.doses()),
                doses=lambda iteration: problem.nominal_doses(iteration.doses()),
                motion=None if case.joint is None else problem.moving, every=every,
            )  # fmt: skip
        self._checkpoint = Checkpoint(out / "checkpoint.pt", case, placed, every=every)
        return together(self.history, self._board, Log(every), self._checkpoint)

    def write_checkpoint(self) -> None:
        """The last iterate's state, if there is any."""
        if self._checkpoint is not None:
            self._checkpoint.write()

    def finish(self, result: PlanResult) -> None:
        """TensorBoard's last pictures and numbers."""
        if self._board is None:
            return
        case, doses = result.case, result.assessment.roi_doses
        shown = shown_rois(result.patient, doses[NOMINAL.name], case.placement.targets)
        figure = dvh_figure(doses, shown, roi_colors(result.patient, case.placement.targets))
        self._board.figure("dvh/band", figure, result.solution.iterations)
        self._board.hyperparameters(
            {"method": case.optimizer.method or "suited", "spacing_mm": case.placement.spacing_mm, "seed": case.seed},
            {"objective": result.solution.value, "seconds": result.metrics["time_s"]["total"]},
        )
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
    """Forward dose of a given plan or spot list on the case's patient and machine, in the case's scenarios."""
    progress, plan_path, out = progress or Progress(enabled=False), Path(plan_path), Path(out)
    if not case.beam and plan_path.suffix.lower() != ".json":
        raise InputError(f"{case.label}: a spot list needs the case's [[beam]] sections, there is none")
    compute = set_up(case, device, threads)
    with open_run(out, case, compute.device):
        return _dose_of(case, plan_path, out, case.scenarios(), compute, progress)


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
    """Doses, DVHs and goals of a run's plan in other scenarios, written to `folder`."""
    progress, run, folder = progress or Progress(enabled=False), Path(run), Path(folder)
    if not (run / "plan.json").is_file():
        raise InputError(f"{run} holds no plan.json: it is no run folder, or its run did not finish")
    compute = set_up(case, device, threads)
    with open_run(folder, case, compute.device):
        return _dose_of(case, run / "plan.json", folder, scenarios, compute, progress)


def _dose_of(case: Case, plan_path: Path, out: Path, scenarios: Sequence[Scenario], compute: Compute, progress: Progress) -> RunResult:
    """Read a plan, compute and assess its dose, write all but a solver's part."""
    times: dict[str, float] = {}
    begin = time.perf_counter()
    with progress.stage("Patient, machine and plan"):
        patient, machine = load_patient(case), load_machine(case)
        spots = read_plan(plan_path, resolve_beams(case, patient, plan_path), dtype=compute.dtype)
    times["load"] = time.perf_counter() - begin
    model = case.dose.final_model(spot_list=plan_path.suffix.lower() == ".csv")
    log.info("dose model: %s", model)
    assessment = assess(case, patient, machine, spots, scenarios, compute, progress, whole=case.output.scenarios_dose, model=model)
    times["dose"] = time.perf_counter() - begin - times["load"]
    times["total"] = time.perf_counter() - begin
    metrics = {"title": case.title, **dose_metrics(spots, machine, case.delivery.model(), assessment, times, compute)}
    write_plan(out / "plan.json", spots, machine, title=case.title, rbe=case.dose.rbe, fractions=case.delivery.fractions)
    _write_results(out, case, patient, machine, spots, assessment, metrics, [])
    write_json(out / "metrics.json", metrics)
    return RunResult(metrics)


def _write_results(
    out: Path,
    case: Case,
    patient: Patient,
    machine: Machine,
    spots: Spots,
    assessment: Assessment,
    metrics: dict,
    history: list[dict],
    home: torch.Tensor | None = None,
) -> None:
    """Doses, DVHs and the report page."""
    write_image(out / "dose.mha", assessment.dose, patient.grid)
    if case.output.scenarios_dose:
        for name, dose in assessment.scenario_doses.items():
            if name != NOMINAL.name:
                # signs and decimals stay: x-3mm and x+3mm are two files
                write_image(out / f"dose_{name.replace('/', '_').replace('%', '')}.mha", dose, patient.grid)
    write_dvh_csv(out / "dvh.csv", assessment.roi_doses)
    targets = case.spots.targets if case.spots else patient.targets
    angles = ", ".join(f"{beam.gantry:g}°" for beam in spots.beams)
    used = spots.weight.detach() > 0 if bool((spots.weight > 0).any()) else torch.ones(spots.n_spots, dtype=torch.bool)
    data = ReportData(
        title=case.title or patient.name or "Plan",
        patient=patient,
        dose=assessment.dose,
        roi_doses=assessment.roi_doses,
        targets=targets,
        prescription=case.prescription(),
        goals=assessment.goals,
        metrics=metrics,
        history=history,
        spots=spots.subset(used),
        home=None if home is None else home[used],
        subtitle=f"{patient.name or 'Patient'} · {machine.name} machine · gantry {angles}",
        case=case.to_toml(),
        versions=versions(),
    )
    write_report(out / "report.html", data)
