"""A finished run, read back from its folder: what other commands go on from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from torchimpt.case import Case, load_case
from torchimpt.checks import InputError
from torchimpt.files import input_folder
from torchimpt.geometry import Grid
from torchimpt.io.image import read_dose
from torchimpt.io.plan import read_plan
from torchimpt.machine import Machine
from torchimpt.patient import Patient
from torchimpt.planning.load import load_machine, load_patient, resolve_beams
from torchimpt.spots import Spots


@dataclass(frozen=True)
class FinishedRun:
    """The resolved case, and what was planned: patient on the dose grid, machine, spots with the weights of the course."""

    case: Case
    patient: Patient
    machine: Machine
    spots: Spots


def read_finished(run: str | Path) -> FinishedRun:
    """Read a run folder's case and plan, and the patient and the machine that the case names, which must be those of the plan."""
    run = input_folder(run, "run")
    missing = [name for name in ("metrics.json", "case.toml", "plan.json", "dose.mha") if not (run / name).is_file()]
    if missing:
        raise InputError(f"{run} has no {', '.join(missing)}: it is no run folder, or its run did not finish")
    case = load_case(run)
    patient, machine = load_patient(case), load_machine(case)
    beams = resolve_beams(case, patient, run / "plan.json")
    return FinishedRun(case, patient, machine, read_plan(run / "plan.json", beams, machine=machine, rbe=case.dose.rbe, strict=True))


def read_dose_on(path: Path, wanted: Grid) -> torch.Tensor:
    """The dose in a file `(z, y, x)`, which must lie on this grid, in the file's precision."""
    dose, grid = read_dose(path)
    ends = zip((*grid.spacing, *grid.origin), (*wanted.spacing, *wanted.origin), strict=True)
    if grid.shape != wanted.shape or max(abs(a - b) for a, b in ends) > 1e-3:
        raise InputError(
            f"{path} lies on another grid than the run's dose: {grid.shape} voxels (z, y, x) of {grid.spacing} mm from {grid.origin}, "
            f"against {wanted.shape} of {wanted.spacing} from {wanted.origin}; resample it"
        )
    return dose
