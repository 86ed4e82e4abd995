"""From a case to what is computed with: patient on the dose grid, machine, spots, scenarios, objective."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from torchimpt.checks import InputError
from torchimpt.config import Case
from torchimpt.geometry import Beam
from torchimpt.io.patient import read_patient
from torchimpt.machine import Machine, generic, read_csv_machine, read_matrad_machine
from torchimpt.patient import Patient
from torchimpt.physics.stopping import read_hu_table
from torchimpt.resampling import resample

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Settings:
    """How to compute: device and floating-point type."""

    device: torch.device
    dtype: torch.dtype


def settings(device: str, dtype: str, threads: int | None, seed: int) -> Settings:
    """Resolve `"auto"`, set the number of CPU threads and the seed."""
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device 'cuda' was asked for, but torch sees no NVIDIA GPU; use --device cpu")
    return Settings(torch.device(device), DTYPES[dtype])


def load_machine(case: Case) -> Machine:
    """The case's machine, with its own HU table where the case names one."""
    config = case.machine
    if config.format is None:
        machine = generic()
    elif config.format == "csv":
        machine = read_csv_machine(config.path)
    elif config.format == "matrad":
        machine = read_matrad_machine(config.path)
    else:
        raise InputError(f"{case.label}: machine.format = '{config.format}' comes with a later version; use csv or matrad")
    return machine if config.hu_table is None else replace(machine, hu_table=read_hu_table(config.hu_table))


def load_patient(case: Case) -> Patient:
    """The case's patient on its dose grid; ROIs that the case names are there."""
    config = case.patient
    if config.source == "phantom" and config.name is not None:
        patient = read_patient("phantom", name=config.name)
    else:
        patient = read_patient(config.source, config.path, config.name)
    case.check_rois(patient.rois)
    return patient if case.dose.grid_mm is None else resample(patient, case.dose.grid_mm)


def resolve_beams(case: Case, patient: Patient, plan: Path | None = None) -> tuple[Beam, ...]:
    """The case's beams with their isocenters: their own, or the target's centroid (all targets' where the case names none)."""
    beams = case.beams()
    if not any(beam.isocenter is None for beam in beams):
        return beams
    names = case.spots.targets if case.spots else patient.targets
    if not names:
        if plan is not None and plan.suffix.lower() == ".json":
            return beams
        raise InputError(f"{case.label}: a beam has no isocenter_mm, and there is no target to take the centroid of; give isocenter_mm")
    center = patient.centroid(names)
    return tuple(beam.at(center) for beam in beams)
