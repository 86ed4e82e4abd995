"""From a case to what is computed with: patient on the dose grid, machine, beams, and where to compute."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from torchimpt.case import Case
from torchimpt.checks import InputError, PhysicsWarning
from torchimpt.dose.shares import Place
from torchimpt.geometry import Beam, Grid
from torchimpt.hu_table import read_hu_table
from torchimpt.io.patient import read_patient
from torchimpt.loops import use_torch_threads
from torchimpt.machine import READERS, Machine, generic
from torchimpt.margins import with_roi
from torchimpt.patient import Patient
from torchimpt.planning.devices import resolve
from torchimpt.processes import ALONE, Team
from torchimpt.resampling import resample
from torchimpt.scenarios import Scenario

DTYPES = {"float32": torch.float32, "float64": torch.float64}

THREADS_A_CORE = 8
"""More threads on a core than this are a slip of the keyboard; a few more than one are no faster, and do no harm."""


@dataclass(frozen=True)
class Compute:
    """Where and how precisely to compute.

    Attributes
    ----------
    device
        Where the solver's vectors and the scenarios' doses are, and whatever is computed in one place.
    dtype
        Of tables, matrices and doses.
    places
        What the planned scenarios are shared out to; the device alone when left out.
    """

    device: torch.device
    dtype: torch.dtype
    places: tuple[Place, ...] = ()


def set_up(case: Case, device: str = "auto", threads: int | None = None, team: Team = ALONE) -> Compute:
    """Resolve `"auto"`, set the number of CPU threads (`THREADS_A_CORE` on each core at most) and the seed.

    Of several processes on this machine, each gets its part of the cores where `threads` does not say how many.
    """
    if threads is None and team.size > 1:
        threads = max(1, len(os.sched_getaffinity(0)) // team.local_size) if hasattr(os, "sched_getaffinity") else 1
    if threads is not None:
        cores = os.cpu_count() or 1
        if not 1 <= threads <= cores * THREADS_A_CORE:
            raise InputError(
                f"threads must be 1 to {cores * THREADS_A_CORE} on this machine of {cores} cores, got {threads}; more only wait for "
                "each other: leave it out to use every core"
            )
        torch.set_num_threads(threads)
    use_torch_threads()  # before any kernel, whose first call could give torch every core
    torch.manual_seed(case.seed)
    places = resolve(device, case)
    return Compute(places[0].device, DTYPES[case.dose.dtype], places)


def dose_options(case: Case, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What `scenario_doses` and `scenario_operators` take of a case."""
    return {"cutoff": case.dose.cutoff_sigma, "dtype": dtype, "device": device, "model": case.dose.model}


def load_machine(case: Case) -> Machine:
    """The case's machine, with its own HU table where the case names one."""
    config = case.machine
    machine = generic() if config.format is None or config.path is None else READERS[config.format](config.path, **config.own)
    return machine if config.hu_table is None else replace(machine, hu_table=read_hu_table(config.hu_table))


def load_patient(case: Case) -> Patient:
    """The case's patient on its dose grid, with the materials that it tells; every ROI that the case names is there and has a voxel."""
    config = case.patient
    read = _with_rois(case, read_patient(config.source, config.path, config.name, config.position, **config.own))
    case.check_rois(read.rois)
    if case.material:
        # at the end, in the case's order: the later one's counts
        known = {m.roi: replace(read.roi(m.roi), rsp=m.rsp) for m in case.material}
        read = replace(read, rois={**{name: roi for name, roi in read.rois.items() if name not in known}, **known})
    case.check_goals()
    patient = read if case.dose.grid_mm is None else resample(read, case.dose.grid_mm)
    _check_voxels(case, read, patient)
    return patient


def _with_rois(case: Case, patient: Patient) -> Patient:
    """The patient with the case's own ROIs."""
    for i, made in enumerate(case.roi):
        parts = made.parts()
        case.check_rois(patient.rois, [(f"roi[{i}].{key}", name) for key, names in parts.items() for name in names])
        try:
            patient = with_roi(patient, made.name, parts["of"], margin=made.margin_mm, without=parts["without"], role=made.role)
        except InputError as error:
            raise InputError(f"{case.label}: roi[{i}]: {error}") from None
    return patient


def _check_voxels(case: Case, read: Patient, patient: Patient) -> None:
    """Raise where a ROI that the case names is empty on the dose grid; tell of those that reach out of the body."""
    for key, name in case.used_rois():
        if patient.roi(name).mask.any():
            continue
        size, volume = " x ".join(f"{s:g}" for s in patient.grid.spacing), read.volume(name) / 1000.0
        raise InputError(
            f"{case.label}: {key}: ROI '{name}' ({volume:.2g} cm3) fills no voxel of the dose grid, {size} mm, by half; "
            "use a finer dose.grid_mm, or leave it out"
        )
    body, external = patient.body, patient.external
    for name in dict.fromkeys(name for _, name in case.used_rois()):
        mask = patient.roi(name).mask
        outside = int((mask & ~body).sum())
        if outside and external is not None:
            warnings.warn(
                f"ROI {name}: {outside} of its {int(mask.sum())} voxels lie outside the body '{external.name}'; objectives and goals "
                "count them, with the dose that the model gives in air, in every scenario; crop the contour where that is not meant",
                PhysicsWarning,
                stacklevel=3,
            )


def resolve_beams(case: Case, patient: Patient, plan: Path | None = None) -> tuple[Beam, ...]:
    """The case's beams with their isocenters: their own, or the plan file's where it has any (they stay open here), or the target's
    centroid (all targets' where the case names none); and with the patient's position, likewise.
    """
    shifted = any(beam.range_shifter_mm for beam in case.beam)
    beams = case.beams(load_machine(case).shifter if shifted else None)
    if plan is not None and plan.suffix.lower() != ".csv":
        return beams
    beams = tuple(beam.on(patient.position) for beam in beams)
    if not any(beam.isocenter is None for beam in beams):
        return beams
    names = case.spots.targets if case.spots else patient.targets
    if not names:
        raise InputError(f"{case.label}: a beam has no isocenter_mm, and there is no target to take the centroid of; give isocenter_mm")
    center = patient.centroid(names)
    return tuple(beam.at(center) for beam in beams)


def check_shifts(scenarios: Iterable[Scenario], grid: Grid) -> None:
    """Raise where a scenario moves the patient by as much as the dose grid is long, or more."""
    for scenario in scenarios:
        for axis, shift, count, spacing in zip("xyz", scenario.shift, reversed(grid.shape), grid.spacing, strict=True):
            if abs(shift) >= count * spacing:
                raise InputError(
                    f"scenario '{scenario.name}' shifts the patient by {shift:+g} mm along {axis}, where the dose grid is "
                    f"{count * spacing:g} mm long: nothing would be where it was; give a smaller setup error (robustness.setup_mm)"
                )
