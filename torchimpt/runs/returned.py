"""Doses of a run's plan that other programs computed, as records to compare the run with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from torchimpt.checks import InputError
from torchimpt.evaluate.dvh import dvh_curves
from torchimpt.evaluate.goals import check_goals
from torchimpt.evaluate.noise import noise
from torchimpt.evaluate.tables import roi_doses, scenario_table
from torchimpt.io.image import read_dose
from torchimpt.io.mcsquare.dose import read_mcsquare_dose
from torchimpt.report.compare import RunRecord, read_run, read_runs, short_names
from torchimpt.runs.finished import FinishedRun, read_dose_on, read_finished
from torchimpt.scenarios import NOMINAL
from torchimpt.sums import mean, total

MCSQUARE, GRAY = ".mhd", ".mha"
"""Names that end so are MCsquare's dose as it wrote it, and a dose in Gy (RBE-weighted, of the whole course) with its place in LPS."""

LOOK_AT = 0.1
"""Share of the run's highest dose from which on voxels count in the differences."""

MOST = 3.0
"""A mean dose that is further from the run's than this factor is in another unit, or of another plan."""


def read_records(paths: Sequence[str | Path]) -> list[RunRecord]:
    """Runs to compare, with their doses where their folders hold them; or one run, and doses of its plan that came back."""
    doses = [Path(path) for path in paths if Path(path).suffix.lower() in (MCSQUARE, GRAY) and not Path(path).is_dir()]
    folders = [Path(path) for path in paths if Path(path) not in doses]
    if not doses:
        return [_with_dose(record, folder) for record, folder in zip(read_runs(folders), folders, strict=True)]
    if len(folders) != 1:
        raise InputError(f"a dose is compared with the run whose plan it is of: name that one run folder, got {len(folders)}")
    names = short_names([*folders, *doses])
    record, finished = read_run(folders[0], names[0]), read_finished(folders[0])
    planned = read_dose_on(folders[0] / "dose.mha", finished.patient.grid)
    own, *others = (_record(path, record, finished, planned.double()) for path in (folders[0] / "dose.mha", *doses))
    # like with like: what the run says of itself is of points in its ROIs, what comes back is of the dose grid's voxels
    of_itself = {**record.metrics, **{key: own.metrics[key] for key in ("scenarios", "goals")}}
    told = [replace(own, metrics=of_itself), *others]
    return [replace(one, name=name) for one, name in zip(told, names, strict=True)]


def _with_dose(record: RunRecord, folder: Path) -> RunRecord:
    if not (folder / "dose.mha").is_file():
        return record
    dose, grid = read_dose(folder / "dose.mha")
    return replace(record, dose=dose, grid=grid)


def _read(path: Path, finished: FinishedRun) -> torch.Tensor:
    """The dose `(z, y, x)`, Gy, RBE-weighted as the run's."""
    grid = finished.patient.grid
    if isinstance(finished.case.dose.rbe, str) and path.suffix.lower() == MCSQUARE:
        raise InputError(
            f"{path} is physical dose, and the run's is weighted by the model '{finished.case.dose.rbe}', which needs LETd, too; compare "
            "with a run of constant rbe"
        )
    if path.suffix.lower() == MCSQUARE:
        protons = 1e6 * float(total(finished.spots.weight.detach().double()))
        return finished.case.quantity().value(read_mcsquare_dose(path, grid, protons))
    return read_dose_on(path, grid).double()


def _record(path: Path, run: RunRecord, finished: FinishedRun, planned: torch.Tensor) -> RunRecord:
    """The dose's DVHs and metrics, the goals at this dose, and how far it is from the run's nominal one."""
    case, patient = finished.case, finished.patient
    dose = _read(path, finished)
    high = planned > LOOK_AT * float(planned.max())
    if not bool(high.any()):
        raise InputError(f"the dose of run '{run.name}' is 0 everywhere; there is nothing to compare {path} with")
    ratio = float(total(dose[high])) / float(total(planned[high]))
    if not 1.0 / MOST <= ratio <= MOST:
        unit = "eV/g per proton in MCsquare's order" if path.suffix.lower() == MCSQUARE else "Gy, RBE-weighted, of the whole course"
        raise InputError(f"{path} is {ratio:.3g} times the run's dose where that is high; it must be of the run's plan, and in {unit}")
    doses = roi_doses(patient, {NOMINAL.name: dose})
    inside = {NOMINAL.name: dose[patient.body_and_rois]}
    goals = check_goals([goal for goal in case.goals() if goal.quantity == "dose"], doses, prescriptions=case.prescriptions(), body=inside)
    off = (dose - planned)[high]
    metrics: dict[str, Any] = {
        "scenarios": scenario_table(doses),
        # it is of one scenario, which tells nothing of the worst
        "goals": [{**goal, "worst": None} for goal in goals],
        "difference": {
            "ratio": ratio, "mean_gy": float(mean(off)), "rms_gy": float(mean(off.square())) ** 0.5,
            "noise_gy": noise(dose - planned, high), "max_gy": float(off.abs().max()),
        },
    }  # fmt: skip
    return RunRecord(path.name, metrics, dvh_curves(doses), run.case, dose, finished.patient.grid)
