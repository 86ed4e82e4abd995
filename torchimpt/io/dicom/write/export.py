"""A plan with its doses, and the patient where they did not come from DICOM, as a folder of DICOM files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import torch

from torchimpt.checks import InputError
from torchimpt.files import whole_folder
from torchimpt.geometry import Grid
from torchimpt.io.dicom.write.ct import write_ct
from torchimpt.io.dicom.write.dose import rt_dose
from torchimpt.io.dicom.write.file import save
from torchimpt.io.dicom.write.identity import Identity
from torchimpt.io.dicom.write.plan import ion_plan
from torchimpt.io.dicom.write.structures import structure_set
from torchimpt.io.dicom.write.values import fresh_uid
from torchimpt.machine import Machine
from torchimpt.patient import Patient
from torchimpt.spots import Spots

PLAN, STRUCTURES, DOSE = "RP.dcm", "RS.dcm", "RD.dcm"


@dataclass(frozen=True)
class Exported:
    """What was written: the files' names, but for the CT's slices, and how many of these there are; spots, energy layers, and each field's
    meterset of a fraction, by its number, in `unit`.
    """

    files: tuple[str, ...]
    slices: int
    spots: int
    layers: int
    metersets: Mapping[int, float]
    unit: str


def export_dicom(
    folder: str | Path,
    patient: Patient,
    machine: Machine,
    spots: Spots,
    dose: torch.Tensor,
    beam_doses: Mapping[int, torch.Tensor],
    identity: Identity,
    fractions: int,
    *,
    rbe: float | str = 1.1,
    title: str = "",
    prescriptions: Mapping[str, float] = MappingProxyType({}),
    own_rois: Sequence[str] = (),
) -> Exported:
    """Write an RT Ion Plan, RT Doses, and, where `identity` has none yet, CT and structure set, into a new folder, all or nothing.

    Parameters
    ----------
    folder
        Must be empty, or not be there.
    patient, machine
        On the dose grid, with the CT as it was read in `original`; what the plan is for.
    spots
        Weights of the whole course; spots without weight, and beams without spots, are left out.
    dose, beam_doses
        `(z, y, x)` on the dose grid, Gy, RBE-weighted, of the whole course: of the plan, and of its beams by their index.
    identity
        Who the patient is.
    fractions, rbe, title
        As of `ion_plan` and `rt_dose`.
    prescriptions
        Gy of targets by their names.
    own_rois
        ROIs that the structure set of a patient from DICOM does not have: they get one of their own.
    """
    spots = spots.weighted().cpu()
    if not bool((spots.weight > 0).any()):
        raise InputError("no spot of the plan has a weight; there is nothing to export")
    with whole_folder(folder) as scratch:
        names, read = [PLAN], patient.original or patient
        numbers: dict[int, tuple[str, float]] = {}
        if identity.source is None:
            series = fresh_uid()
            identity = replace(identity, series=series, slices=write_ct(scratch, read, identity, series))
        else:
            read = replace(read, rois={name: read.roi(name) for name in own_rois})
        if read.rois:
            drawn = structure_set(read, identity)
            save(drawn, scratch / STRUCTURES)
            names.append(STRUCTURES)
        if read.rois and not identity.structures:
            identity = replace(identity, structures=str(drawn.SOPInstanceUID))
            numbers = {i: (name, prescriptions[name]) for i, name in enumerate(read.rois, start=1) if name in prescriptions}
        found = {index: _at(beam_doses[index], patient.grid, spots.beams[index].isocenter) for index in set(spots.beam.tolist())}
        at_isocenter = {index: value for index, value in found.items() if value is not None}
        plan = ion_plan(spots, machine, patient, identity, fractions, title, numbers, at_isocenter)
        save(plan, scratch / PLAN)
        series, uid = fresh_uid(), str(plan.SOPInstanceUID)
        for index in (None, *(int(beam.BeamNumber) - 1 for beam in plan.IonBeamSequence)):
            name = DOSE if index is None else f"RD_beam{index + 1}.dcm"
            values, number = (dose, None) if index is None else (beam_doses[index], index + 1)
            save(rt_dose(values, patient.grid, identity, series, uid, rbe, fractions, number), scratch / name)
            names.append(name)
    metersets = {int(beam.BeamNumber): float(beam.FinalCumulativeMetersetWeight) for beam in plan.IonBeamSequence}
    return Exported(
        tuple(names), len(identity.slices), spots.n_spots, spots.n_layers, metersets, str(plan.IonBeamSequence[0].PrimaryDosimeterUnit)
    )


def _at(dose: torch.Tensor, grid: Grid, point: tuple[float, float, float] | None) -> float | None:
    """The dose in the voxel that holds an LPS point; None outside the grid."""
    assert point is not None
    x, y, z = (round((p - o) / s) for p, o, s in zip(point, grid.origin, grid.spacing, strict=True))
    inside = all(0 <= i < n for i, n in zip((z, y, x), grid.shape, strict=True))
    return float(dose[z, y, x]) if inside else None
