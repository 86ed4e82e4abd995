"""The commands' work: plan, dose and evaluate, each with its folder of results."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from torchimpt.checks import InputError
from torchimpt.config import Case
from torchimpt.evaluate.tables import write_dvh_csv
from torchimpt.io.image import write_image
from torchimpt.io.plan import read_plan, write_plan
from torchimpt.machine import Machine
from torchimpt.monitor import History, Log, Progress, TensorBoard, together
from torchimpt.patient import Patient
from torchimpt.planning.assess import Assessment, assess
from torchimpt.planning.checkpoint import Checkpoint, check_start, read_checkpoint
from torchimpt.planning.metrics import dose_metrics, plan_metrics
from torchimpt.planning.plan import Prepared, prepare, timed_assess, timed_solve
from torchimpt.planning.prepare import load_machine, load_patient, resolve_beams, settings
from torchimpt.planning.runfolder import open_run, versions, write_json
from torchimpt.report.figures import dvh_figure
from torchimpt.report.page import ReportData, write_report
from torchimpt.report.style import roi_colors, shown_rois
from torchimpt.scenarios import NOMINAL, Scenario
from torchimpt.spots import Spots

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
    dtype: str | None = None,
    threads: int | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> RunResult:
    """Plan a case into a run folder. An interrupt writes the checkpoint and goes on up as `KeyboardInterrupt`."""
    progress = progress or Progress(enabled=False)
    case.check_plan()
    how = settings(device, dtype or case.dose.dtype, threads, case.seed)
    out = Path(out)
    saved = read_checkpoint(out / "checkpoint.pt", case) if resume else None
    times: dict[str, float] = {}
    begin = time.perf_counter()
    with open_run(out, case, how.device):
        ready = prepare(case, how, progress, times)
        if not resume:
            (out / "history.jsonl").unlink(missing_ok=True)
        if saved is not None:
            check_start(saved, ready.spots.state_dict(), out / "checkpoint.pt")
        last = None if saved is None else saved["last"]
        history = History(out / "history.jsonl", terms=ready.terms, last=last)
        board = _tensorboard(ready, out)
        checkpoint = Checkpoint(out / "checkpoint.pt", case, ready.spots.state_dict(), every=case.optimizer.log_every)
        watchers = together(history, board, Log(case.optimizer.log_every), checkpoint)
        try:
            optimized = timed_solve(ready, progress, times, watchers, None if saved is None else saved["solver"])
            checkpoint.write()
        except KeyboardInterrupt:
            checkpoint.write()
            raise
        solution = optimized.solution
        spots, found = timed_assess(ready, optimized.plan, progress, times)
        times["total"] = time.perf_counter() - begin
        metrics = plan_metrics(ready, optimized, spots, found, times)
        with progress.stage("Files and report"):
            write_plan(out / "plan.json", spots, ready.machine, title=case.title, rbe=case.dose.rbe)
            home = None if case.joint is None else optimized.plan.home.cpu()
            _write_results(out, case, ready.patient, ready.machine, spots, found, metrics, history.rows, home)
        if board is not None:
            shown = shown_rois(ready.patient, found.roi_doses[NOMINAL.name], case.spots.targets)
            board.figure("dvh/band", dvh_figure(found.roi_doses, shown, roi_colors(ready.patient, case.spots.targets)), solution.iterations)
            board.hyperparameters(
                {"method": case.optimizer.method, "spacing_mm": case.spots.spacing_mm, "seed": case.seed},
                {"objective": solution.value, "seconds": times["total"]},
            )
            board.close()
        write_json(out / "metrics.json", metrics)
    return RunResult(metrics)


def run_dose(
    case: Case,
    plan_path: Path,
    out: Path,
    *,
    device: str = "auto",
    dtype: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Forward dose of a given plan or spot list on the case's patient and machine, in the case's scenarios."""
    progress, plan_path, out = progress or Progress(enabled=False), Path(plan_path), Path(out)
    if not case.beam and plan_path.suffix.lower() != ".json":
        raise InputError(f"{case.label}: a spot list needs the case's [[beam]] sections, there is none")
    how = settings(device, dtype or case.dose.dtype, threads, case.seed)
    with open_run(out, case, how.device):
        return _dose_of(case, plan_path, out, case.scenarios(), how, progress)


def run_evaluate(
    case: Case,
    run: Path,
    folder: Path,
    *,
    scenarios: Sequence[Scenario],
    device: str = "auto",
    dtype: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Doses, DVHs and goals of a run's plan in other scenarios, written to `folder`."""
    progress, run, folder = progress or Progress(enabled=False), Path(run), Path(folder)
    if not (run / "plan.json").is_file():
        raise InputError(f"{run} holds no plan.json: it is no run folder, or its run did not finish")
    how = settings(device, dtype or case.dose.dtype, threads, case.seed)
    with open_run(folder, case, how.device):
        return _dose_of(case, run / "plan.json", folder, scenarios, how, progress)


def _dose_of(case: Case, plan_path: Path, out: Path, scenarios: Sequence[Scenario], how, progress: Progress) -> RunResult:
    """Read a plan, compute and assess its dose, write all but a solver's part."""
    times: dict[str, float] = {}
    begin = time.perf_counter()
    with progress.stage("Patient, machine and plan"):
        patient, machine = load_patient(case), load_machine(case)
        spots = read_plan(plan_path, resolve_beams(case, patient, plan_path), dtype=how.dtype)
    times["load"] = time.perf_counter() - begin
    # a spot list has no planned dose to repeat, so it gets the model closest to Monte Carlo; a plan gets the one it was made with
    sub_spots = plan_path.suffix.lower() == ".csv" if case.dose.sub_spots is None else case.dose.sub_spots
    log.info("dose model: %s", "sub-spots, each on its own ray" if sub_spots else "each voxel's own ray")
    found = assess(case, patient, machine, spots, scenarios, how, progress, case.output.scenarios_dose, sub_spots)
    times["dose"] = time.perf_counter() - begin - times["load"]
    times["total"] = time.perf_counter() - begin
    metrics = {"title": case.title, **dose_metrics(spots, machine, case.delivery.model(), found, times, how)}
    write_plan(out / "plan.json", spots, machine, title=case.title, rbe=case.dose.rbe)
    _write_results(out, case, patient, machine, spots, found, metrics, [])
    write_json(out / "metrics.json", metrics)
    return RunResult(metrics)


def _tensorboard(ready: Prepared, out: Path) -> TensorBoard | None:
    if not ready.case.output.tensorboard:
        return None
    motion = ready.moving if ready.case.joint is not None else None
    every = ready.case.optimizer.log_every
    return TensorBoard(out / "tensorboard", terms=ready.terms, doses=ready.nominal_doses, motion=motion, every=every)


def _write_results(
    out: Path,
    case: Case,
    patient: Patient,
    machine: Machine,
    spots: Spots,
    found: Assessment,
    metrics: dict,
    history: list[dict],
    home: torch.Tensor | None = None,
) -> None:
    """Doses, DVHs and the report page."""
    write_image(out / "dose.mha", found.dose, patient.grid)
    if case.output.scenarios_dose:
        for name, dose in found.scenario_doses.items():
            if name != NOMINAL.name:
                # signs and decimals stay: x-3mm and x+3mm are two files
                write_image(out / f"dose_{name.replace('/', '_').replace('%', '')}.mha", dose, patient.grid)
    write_dvh_csv(out / "dvh.csv", found.roi_doses)
    targets = case.spots.targets if case.spots else patient.targets
    angles = ", ".join(f"{beam.gantry:g}°" for beam in spots.beams)
    used = spots.weight.detach() > 0 if bool((spots.weight > 0).any()) else torch.ones(spots.n_spots, dtype=torch.bool)
    data = ReportData(
        title=case.title or patient.name or "Plan",
        patient=patient,
        dose=found.dose,
        roi_doses=found.roi_doses,
        targets=targets,
        prescription=case.prescription(),
        goals=found.goals,
        metrics=metrics,
        history=history,
        spots=spots.subset(used),
        home=None if home is None else home[used],
        subtitle=f"{patient.name or 'Patient'} · {machine.name} machine · gantry {angles}",
        case=case.to_toml(),
        versions=versions(),
    )
    write_report(out / "report.html", data)
