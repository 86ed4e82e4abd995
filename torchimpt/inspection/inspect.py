"""Everything that a path holds, whatever it is: read only, and nothing in a file ends it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torchimpt.checks import InputError
from torchimpt.files import reading
from torchimpt.geometry import check_position
from torchimpt.inspection.dicom import dicom_sections, structures_section
from torchimpt.inspection.matrad import matrad_plan, told_by_matrad
from torchimpt.inspection.others import (
    case_section,
    images_section,
    is_run,
    machine_format,
    machine_section,
    patient_section,
    patient_source,
    plan_section,
    run_section,
)  # fmt: skip
from torchimpt.inspection.propose import Proposal, propose
from torchimpt.inspection.sections import Section
from torchimpt.io.dicom.catalog import STRUCTURES, Catalog, catalog, walk
from torchimpt.io.dicom.ct import stack_of
from torchimpt.io.image import EXTENSIONS

MOST_SECTIONS = 60
"""Patients, machines and runs that are told one by one."""


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes
    ----------
    sections
        One thing each.
    proposal
        A case file for the first patient that can be planned, if there is one.
    reason
        Why there is none.
    """

    sections: tuple[Section, ...]
    proposal: Proposal | None
    reason: str = ""


def inspect(path: str | os.PathLike) -> Inspection:
    """Say what a folder, and the folders in it, or a file holds.

    Parameters
    ----------
    path
        Anything. A file that cannot be read is told with the reason.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"no file or folder {path}")
    files = [path] if path.is_file() else list(walk(path))
    found = catalog(files)
    folder = path if path.is_dir() else path.parent
    sections = list(dicom_sections(found, folder))
    proposal, reason = _for_dicom(found, folder)
    known = {one.path for one in found.files} | {broken for broken, _ in found.broken}
    rest = [file for file in files if file not in known]
    for section, own in _others(rest, path):
        sections.append(section)
        proposal = proposal or own
        if len(sections) >= MOST_SECTIONS:
            sections.append(Section("More", remarks=("there is more than is told here; inspect a folder in it",)))
            break
    if not sections:
        sections.append(Section("Nothing that torchimpt reads", remarks=(f"{len(files)} files, none of a known kind",)))
    return Inspection(tuple(sections), proposal, "" if proposal is not None else reason or "there is no patient with a target")


def _others(files: Sequence[Path], path: Path) -> Iterator[tuple[Section, Proposal | None]]:
    """What is not DICOM: each folder as a whole first, then files that no folder has taken."""
    folders = dict.fromkeys(file.parent for file in files) if path.is_dir() else {}
    taken: set[Path] = set()
    for folder in folders:
        if any(parent in taken for parent in folder.parents):
            continue
        if is_run(folder):
            taken.add(folder)
            yield run_section(folder), None
            continue
        source, machine = patient_source(folder), machine_format(folder)
        if source:
            yield _patient(folder, source)
        if machine:
            yield machine_section(folder, machine), None
        if source or machine:
            taken.add(folder)
    images = []
    for file in files:
        if file.parent in taken or any(parent in taken for parent in file.parents):
            continue
        if file.name.lower().endswith(EXTENSIONS):
            images.append(file)
            continue
        with suppress(OSError):
            source, machine = patient_source(file), machine_format(file)
            if source:
                yield _patient(file, source)
            if source == "matrad":
                yield from ((section, None) for section in matrad_plan(file))
            if machine:
                yield machine_section(file, machine), None
            if file.suffix.lower() == ".toml":
                yield case_section(file), None
            if file.name.lower().endswith(".json") and _is_plan(file):
                yield plan_section(file), None
    if images:
        yield images_section(images), None


def _is_plan(file: Path) -> bool:
    """Whether a JSON file says that it is a plan of ours."""
    with file.open("rb") as opened:
        return b"torchimpt" in opened.read(200)


def _patient(path: Path, source: str) -> tuple[Section, Proposal | None]:
    section, regions, patient = patient_section(path, source)
    if patient is None:
        return section, None
    told = told_by_matrad(path, patient) if source == "matrad" else None
    return section, propose(source, path, patient.name, regions, patient.position, told=told)


def _for_dicom(found: Catalog, folder: Path) -> tuple[Proposal | None, str]:
    """A case for the first structure set with a target whose CT can be read, or why there is none."""
    reason = ""
    sets = found.of(STRUCTURES)
    for one in sets:
        try:
            with reading(one.path, "structure set"):
                _, regions, files = structures_section(one, found, folder)
                if len(files) < 2:
                    raise InputError("its CT is not here, or one slice of it")
                position = check_position(stack_of(files).files[0].text("PatientPosition") or "HFS")
        except InputError as error:
            reason = reason or str(error)
            continue
        own = {"structures": one.uid} if len(sets) > 1 else {}
        proposal = propose("dicom", folder, one.label or folder.name, regions, position, told=None, **own)
        if proposal is not None:
            return proposal, ""
        reason = reason or f"structure set '{one.label}' has no target"
    return None, reason
