"""A plan of scanned spots as an RT Ion Plan (DICOM PS3.3, A.20; RT Ion Beams: C.8.8.25).

An energy layer is a pair of control points: the first has the spots' weights, the second, of the same spots, zeros, and the meterset that
is reached. Weights are the meterset itself, of one fraction: MU by the machine's own calibration, or, where it has none, numbers of
protons (`NP`), as the nominal MU of this package are no machine's. Positions and weights are stored in single precision, all else as
decimal strings.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import torch

from torchimpt.checks import InputError
from torchimpt.geometry import Beam
from torchimpt.io.dicom.write.file import new_file
from torchimpt.io.dicom.write.identity import Identity
from torchimpt.io.dicom.write.values import LABEL, WARNING, decimal, decimals, fresh_uid, item, text
from torchimpt.machine import Machine
from torchimpt.patient import Patient
from torchimpt.spots import Spots
from torchimpt.spots.shifter import nearest_place

if TYPE_CHECKING:
    from pydicom import Dataset, FileDataset

FWHM = 2.0 * (2.0 * np.log(2.0)) ** 0.5
"""Full width at half maximum of a Gaussian, in sigmas."""

TOLERANCES = {"GantryAngleTolerance": 0.5, "PatientSupportAngleTolerance": 0.5, "SnoutPositionTolerance": 5.0}
"""Degrees and mm, as planning systems come with them; a clinic has its own."""

logger = logging.getLogger(__name__)


def ion_plan(
    spots: Spots,
    machine: Machine,
    patient: Patient,
    identity: Identity,
    fractions: int,
    title: str = "",
    prescriptions: Mapping[int, tuple[str, float]] = MappingProxyType({}),
    isocenter_doses: Mapping[int, float] = MappingProxyType({}),
) -> FileDataset:
    """The plan; beam i of `spots` has the number i + 1, and is left out where it has no spot.

    Parameters
    ----------
    spots
        Each with a weight, of the whole course.
    machine
        For metersets, virtual sources and spot sizes.
    patient
        For how far the snout is, where there is no range shifter that tells it.
    identity
        What the plan belongs to; its structure set is referred to.
    fractions
        Of the course.
    title
        For name and description.
    prescriptions
        Name and dose of the course, Gy, of targets, by their ROIs' numbers in the structure set.
    isocenter_doses
        Gy of the course at the isocentre, by beam; those that are missing are not told.
    """
    from pydicom.uid import RTStructureSetStorage

    file = new_file("RTIonPlanStorage", "RTPLAN", identity, fresh_uid(), 3, "plan")
    file.RTPlanLabel, file.RTPlanName = LABEL, text(f"{WARNING} {title}", 64)
    file.RTPlanDescription = text(f"{WARNING}. {title}. Planned by torchimpt for machine {machine.name}.", 1024)
    file.RTPlanDate, file.RTPlanTime = time.strftime("%Y%m%d"), time.strftime("%H%M%S")
    file.PlanIntent, file.ApprovalStatus = "RESEARCH", "UNAPPROVED"
    file.RTPlanGeometry = "PATIENT" if identity.structures else "TREATMENT_DEVICE"
    if identity.structures:
        referred = item(ReferencedSOPClassUID=RTStructureSetStorage, ReferencedSOPInstanceUID=identity.structures)
        file.ReferencedStructureSetSequence = [referred]
    if prescriptions:
        file.DoseReferenceSequence = [_dose_reference(i, *given) for i, given in enumerate(prescriptions.items(), start=1)]
    file.IonToleranceTableSequence = [item(ToleranceTableNumber=1, ToleranceTableLabel="usual", **TOLERANCES)]
    file.PatientSetupSequence = [item(PatientSetupNumber=1, PatientPosition=spots.beams[0].lies)]
    if machine.calibration is None:
        logger.warning(
            "machine '%s' has no calibration of its monitor units: the plan's metersets are numbers of protons (NP), which most delivery "
            "systems do not take; plan with a machine that has one, as [machine] format = 'emittance' does, to get MU", machine.name,
        )  # fmt: skip
    beams = [_beam(number, spots, machine, patient, fractions) for number in sorted(set(spots.beam.tolist()))]
    file.IonBeamSequence = beams
    file.FractionGroupSequence = [item(FractionGroupNumber=1, NumberOfFractionsPlanned=fractions, NumberOfBeams=len(beams))]
    group = file.FractionGroupSequence[0]
    group.NumberOfBrachyApplicationSetups, group.ReferencedBeamSequence = 0, []
    for beam in beams:
        referred = item(ReferencedBeamNumber=beam.BeamNumber, BeamMeterset=beam.FinalCumulativeMetersetWeight)
        if (dose := isocenter_doses.get(int(beam.BeamNumber) - 1)) is not None:
            referred.BeamDose = decimal(dose / fractions)
        group.ReferencedBeamSequence.append(referred)
    return file


def _dose_reference(number: int, roi: int, prescribed: tuple[str, float]) -> Dataset:
    """A target's prescription."""
    name, dose = prescribed
    return item(
        DoseReferenceNumber=number, DoseReferenceStructureType="VOLUME", ReferencedROINumber=roi, DoseReferenceType="TARGET",
        DoseReferenceDescription=text(name, 64), TargetPrescriptionDose=decimal(dose),
    )  # fmt: skip


def _beam(number: int, spots: Spots, machine: Machine, patient: Patient, fractions: int) -> Dataset:
    """One field."""
    beam, own = spots.beams[number], spots.beam == number
    layers = sorted(set(spots.layer[own].tolist()))
    shifted = bool(spots.layer_shifted[layers].any())
    unit = "NP" if machine.calibration is None else "MU"
    per_unit = machine.protons_per_mu(spots.energy) if unit == "MU" else torch.full_like(spots.energy, 1e-6)
    # what is summed up is what is stored
    meterset = (spots.weight.detach().double() / fractions / per_unit).float()
    points, total = _points(beam, layers, spots, meterset, machine)
    _first(points[0], beam, _snout(number, spots, machine, patient, shifted))
    made = item(
        BeamNumber=number + 1, BeamName=text(f"{number + 1} gantry {beam.gantry:g} couch {beam.couch:g}", 64), BeamDescription=WARNING,
        BeamType="STATIC", RadiationType="PROTON", ScanMode="MODULATED", ModulatedScanModeType="STATIONARY", PrimaryDosimeterUnit=unit,
        TreatmentMachineName=text(machine.name, 16), VirtualSourceAxisDistances=list(machine.sad), TreatmentDeliveryType="TREATMENT",
        NumberOfWedges=0, NumberOfCompensators=0, NumberOfBoli=0, NumberOfBlocks=0, NumberOfRangeShifters=int(shifted),
        NumberOfLateralSpreadingDevices=0, NumberOfRangeModulators=0, PatientSupportType="TABLE", SnoutSequence=[item(SnoutID="snout")],
        FinalCumulativeMetersetWeight=decimal(total), NumberOfControlPoints=len(points), ReferencedPatientSetupNumber=1,
        ReferencedToleranceTableNumber=1, IonControlPointSequence=points,
    )  # fmt: skip
    if shifted:
        assert beam.shifter is not None
        name = text(f"{beam.shifter.thickness:g} mm", 16)
        made.RangeShifterSequence = [item(RangeShifterNumber=1, RangeShifterID=name, RangeShifterType="BINARY")]
    return made


def _snout(number: int, spots: Spots, machine: Machine, patient: Patient, shifted: bool) -> float:
    """How far the snout's face is from the isocentre, mm: that of the range shifter, which it holds, or as near as it may come."""
    beam, own = spots.beams[number], spots.beam == number
    if shifted and beam.shifter is not None and beam.shifter.distance is not None:
        return beam.shifter.distance
    return nearest_place(patient, beam, machine.sad, spots.position.detach().double()[own])


def _first(point: Dataset, beam: Beam, snout: float) -> None:
    """What a field's first control point says for all."""
    assert beam.isocenter is not None
    for axis in ("Gantry", "BeamLimitingDevice", "PatientSupport", "TableTopPitch", "TableTopRoll", "GantryPitch"):
        setattr(point, f"{axis}RotationDirection", "NONE")
    point.GantryAngle, point.PatientSupportAngle = decimal(beam.gantry % 360.0), decimal(beam.couch % 360.0)
    point.BeamLimitingDeviceAngle = "0"
    point.TableTopPitchAngle = point.TableTopRollAngle = point.GantryPitchAngle = 0.0
    # where the table is depends on the room
    point.TableTopVerticalPosition = point.TableTopLongitudinalPosition = point.TableTopLateralPosition = ""
    point.IsocenterPosition, point.SnoutPosition = decimals(beam.isocenter), snout


def _points(beam: Beam, layers: list[int], spots: Spots, meterset: torch.Tensor, machine: Machine) -> tuple[list[Dataset], float]:
    """Pairs of control points, an energy layer each, and the field's meterset."""
    position = spots.position.detach().float()
    widths = spot_widths(machine, spots.layer_energy[layers]).tolist()
    used = bool(spots.layer_shifted[layers].any())
    points: list[Dataset] = []
    total, before = 0.0, None
    for layer, width in zip(layers, widths, strict=True):
        here = (spots.layer == layer).nonzero().flatten()
        weights, now = meterset[here], bool(spots.layer_shifted[layer])
        for values in (weights, torch.zeros_like(weights)):
            if values is not weights:
                total += float(weights.double().sum())
            point = item(
                ControlPointIndex=len(points), CumulativeMetersetWeight=decimal(total), ScanSpotTuneID="1", NumberOfPaintings=1,
                NominalBeamEnergy=decimal(float(spots.layer_energy[layer])), ScanningSpotSize=width, NumberOfScanSpotPositions=len(here),
                ScanSpotPositionMap=position[here].flatten().tolist(), ScanSpotMetersetWeights=values.tolist(),
            )  # fmt: skip
            if used and now != before:
                point.RangeShifterSettingsSequence = [_setting(beam, now)]
            before = now
            points.append(point)
    if not total > 0.0:
        raise InputError(f"the field at gantry {beam.gantry:g} has no meterset that single precision holds; check its weights")
    return points, total


def _setting(beam: Beam, inside: bool) -> Dataset:
    """Whether the range shifter is in the beam from here on, and where."""
    assert beam.shifter is not None and beam.shifter.distance is not None
    made = item(ReferencedRangeShifterNumber=1, RangeShifterSetting="IN" if inside else "OUT")
    if inside:
        made.IsocenterToRangeShifterDistance = beam.shifter.distance
        made.RangeShifterWaterEquivalentThickness = beam.shifter.thickness
    return made


def spot_widths(machine: Machine, energy: torch.Tensor) -> torch.Tensor:
    """Full widths at half maximum of spots in air in the isocentre plane along x and y, mm, `(n_layers, 2)`, without a range shifter.

    Parameters
    ----------
    machine
        Whose optics.
    energy
        `(n_layers,)`, nominal, MeV.
    """
    optics = machine.optics
    x, y = optics.variance(energy), optics.variance_y(energy)
    planes = optics.start + optics.step * np.arange(x.shape[1])
    widths = [[FWHM * float(np.interp(0.0, planes, row)) ** 0.5 for row in along.numpy()] for along in (x, x if y is None else y)]
    return torch.tensor(widths, dtype=torch.float64).T
