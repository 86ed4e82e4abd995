"""Files of other kinds: patients as images, OpenKBP folders and matRad files; machines; run folders, plans and case files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from torchimpt.case import load_case
from torchimpt.checks import InputError
from torchimpt.inspection.sections import Region, Section, point, regions_of, regions_table, size, told
from torchimpt.io.image import EXTENSIONS, read_dose
from torchimpt.io.patient import READERS
from torchimpt.io.plan import read_plan
from torchimpt.machine import READERS as MACHINES
from torchimpt.machine import Machine
from torchimpt.machine.bdl import TITLE as BDL_TITLE
from torchimpt.matfile import check_mat
from torchimpt.patient import Patient
from torchimpt.spots import Spots

MOST_IMAGES = 12
"""Images without a CT beside them that are told one by one."""


def patient_source(path: Path) -> str | None:
    """The source of a case file that a folder or file is a patient of, by its files' names; None where it is none."""
    if path.is_dir():
        names = {child.name.lower() for child in path.iterdir()}
        if {"ct.csv", "voxel_dimensions.csv"} <= names:
            return "openkbp"
        return "image" if names & {f"ct{extension}" for extension in EXTENSIONS} else None
    if path.suffix.lower() == ".mat":
        return "matrad" if "cst" in _variables(path) else None
    return None


def patient_section(path: Path, source: str) -> tuple[Section, list[Region], Patient | None]:
    """A patient, ROI by ROI."""
    found: list[Patient] = []

    def tell() -> Section:
        """CT and ROIs; the patient is kept for the case that is proposed."""
        patient = READERS[source](path)
        found.append(patient)
        grid = patient.grid
        voxels, numbers = size(reversed(grid.shape)), f"{float(patient.hu.min()):g} to {float(patient.hu.max()):g} HU"
        remark = f"CT of {voxels} voxels of {size(grid.spacing)} mm, {numbers}"
        return regions_table(f"Patient '{patient.name}' ({path}; source = '{source}')", regions_of(patient), (remark,))

    section = told(path, "patient", tell)
    return section, regions_of(found[0]) if found else [], found[0] if found else None


def machine_format(path: Path) -> str | None:
    """The format of a case file's [machine] that a folder or file is one of; None where it is none."""
    if path.is_dir():
        names = {child.name for child in path.iterdir()}
        return "csv" if {"beam_model.csv", "idd.csv"} <= names else "torchimpt" if "machine.toml" in names else None
    if path.suffix.lower() == ".mat":
        return "matrad" if "machine" in _variables(path) else None
    if path.suffix.lower() == ".txt":
        with path.open("rb") as file:
            return "bdl" if file.read(len(BDL_TITLE)).decode("ascii", "replace") == BDL_TITLE else None
    return None


def machine_section(path: Path, format: str) -> Section:
    """A machine."""
    if format == "bdl":  # needs another machine's curves
        remark = "[machine] format = 'bdl' takes curves, a csv machine, besides"
        return Section(f"Machine ({path}; format = 'bdl')", remarks=(remark,))

    def tell() -> Section:
        """Energies, sources and calibration."""
        machine: Machine = MACHINES[format](path)
        unit = "its own calibration to MU" if machine.calibration is not None else "no calibration to MU of its own"
        facts = f"{machine.energy_min:g} to {machine.energy_max:g} MeV, sources at {size(machine.sad)} mm, {unit}"
        return Section(f"Machine '{machine.name}' ({path}; format = '{format}')", remarks=(facts,))

    return told(path, "machine", tell)


def run_section(path: Path) -> Section:
    """A run folder."""

    def tell() -> Section:
        """How the run ended, and its plan's beams."""
        remarks = []
        if (path / "metrics.json").is_file():
            metrics = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
            goals = metrics.get("goals") or []
            met = sum(bool(goal.get("passed")) for goal in goals)
            remarks.append(f"'{metrics.get('title', '')}': " + (f"{met} of {len(goals)} goals met" if goals else "no goals"))
            if metrics.get("stop_reason"):
                remarks.append(str(metrics["stop_reason"]))
        else:
            remarks.append(
                "not complete: it has no metrics.json; torchimpt plan with --resume goes on from its checkpoint, if there is one"
            )
        spots = read_plan(path / "plan.json") if (path / "plan.json").is_file() else None
        return Section(f"Run folder ({path})", BEAMS, beam_rows(spots) if spots is not None else (), tuple(remarks))

    return told(path, "run folder", tell)


BEAMS = ("Beam", "Gantry, deg", "Couch, deg", "Position", "Layers", "Spots", "Weight, 1e6", "Isocentre, mm")


def beam_rows(spots: Spots) -> tuple[tuple[str, ...], ...]:
    """A plan's beams."""
    rows = []
    for number, beam in enumerate(spots.beams):
        own, layers = spots.beam == number, int((spots.layer_beam == number).sum())
        angles = f"{beam.gantry:g}", f"{beam.couch:g}", beam.lies
        weight = f"{float(spots.weight.detach()[own].sum()):.4g}"
        rows.append((str(number), *angles, str(layers), f"{int(own.sum()):,}", weight, point(beam.isocenter)))
    return tuple(rows)


def case_section(path: Path) -> Section:
    """A case file."""

    def tell() -> Section:
        """What it plans, and the command."""
        case = load_case(path)
        patient, beams = case.patient, ", ".join(f"{beam.gantry_deg:g}" for beam in case.beam) or "none"
        remarks = (
            f"Patient: {patient.source} {patient.path or patient.name}",
            f"Target: {', '.join(case.spots.targets) if case.spots else 'none'}; beams at {beams} degrees",
            f"{len(case.objective)} objectives, {len(case.goal)} goals, {len(case.scenarios())} scenarios",
            f"torchimpt plan {path} --out RUN",
        )
        return Section(f"Case file '{case.title}' ({path})", remarks=remarks)

    return told(path, "case file", tell)


def plan_section(path: Path) -> Section:
    """A plan.json outside of a run folder."""
    return told(path, "plan", lambda: Section(f"Plan ({path})", BEAMS, beam_rows(read_plan(path))))


def images_section(paths: list[Path]) -> Section:
    """Images that are not of a patient's folder: doses, masks."""
    rows, remarks = [], []
    for path in paths[:MOST_IMAGES]:
        try:
            values, grid = read_dose(path)
            extent = f"{float(values.min()):.4g} to {float(values.max()):.4g}"
            rows.append((path.name, size(reversed(grid.shape)), size(grid.spacing), point(grid.origin), extent))
        except InputError as error:
            remarks.append(str(error))
    if len(paths) > MOST_IMAGES:
        remarks.append(f"and {len(paths) - MOST_IMAGES} more")
    return Section("Images", ("File", "Voxels", "Spacing, mm", "Origin, mm", "Values"), tuple(rows), tuple(remarks))


def is_run(path: Path) -> bool:
    """Whether a folder is a run's."""
    return (path / "case.toml").is_file() and any((path / name).is_file() for name in ("run.json", "metrics.json", "plan.json"))


def _variables(path: Path) -> set[str]:
    """Names of a .mat file's variables; none where it cannot be read."""
    from scipy.io import whosmat

    read: Callable = whosmat
    try:
        check_mat(path)
        return {name for name, _, _ in read(path)}
    except Exception:  # scipy raises whatever a broken file makes it stumble over; reading it tells more
        return set()
