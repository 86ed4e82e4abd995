"""RT Ion Plans (DICOM PS3.3, C.8.8.25 RT Ion Beams): fields of scanned spots, with their monitor units.

Coordinates are the patient's, LPS, mm; gantry and couch angles are those of IEC 61217, for the position that the patient setup says, and
the Scan Spot Position Map is `(x, y)` of the gantry frame in the isocentre plane: as everywhere here. Control points come in pairs, the
first with the weights of what is delivered up to the second, whose weights are zero; energy and angles hold until a control point changes
them.
A spot's meterset in a fraction is `weight / FinalCumulativeMetersetWeight * BeamMeterset`, in the field's own unit: MU, or numbers of
protons (`NP`). Range shifters: `torchimpt.io.dicom.range_shifter`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from torchimpt.checks import InputError
from torchimpt.geometry import POSITIONS, Beam, RangeShifter
from torchimpt.io.dicom.aperture import aimed_beside
from torchimpt.io.dicom.dataset import dataset, need, number, numbers
from torchimpt.io.dicom.range_shifter import field_shifter
from torchimpt.machine import Machine
from torchimpt.machine.machine import ROUNDING
from torchimpt.spots import Spots

if TYPE_CHECKING:
    from pydicom import Dataset

UNITS = ("MU", "NP")
"""Primary Dosimeter Units that can be made protons of."""

WEIGHTS_OFF = 1e-3
"""Share by which a field's weights may differ from what they should sum up to: sums of single-precision numbers differ by 1e-6."""

SOURCES_OFF = 1.0
"""Difference in a virtual source's distance, mm, that is worth a word: it moves spots 20 cm off the axis by 0.005 mm at 10 cm depth."""

_DEVICES = {
    "NumberOfRangeShifters": "range shifter", "NumberOfRangeModulators": "range modulator", "NumberOfBlocks": "aperture",
    "NumberOfCompensators": "compensator", "NumberOfWedges": "wedge",
}  # fmt: skip

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class IonField:
    """One field of a plan.

    Attributes
    ----------
    number, name
        As the file has them.
    beam
        Its angles and isocentre.
    sad
        Distances of the virtual sources `(x, y)` from the isocentre, mm; None where the file does not say.
    unit
        Of the meterset: `"MU"` or `"NP"`.
    devices
        What stands in the beam and is not told well enough, or not known here, e.g. `("aperture",)`; a range shifter without settings.
    shifter
        The range shifter that some layers go through; without a distance where the file has none.
    shifted
        `(n_spots,)` bool: whether it is in the beam.
    beside
        Share of the meterset that is aimed beside the opening of the aperture, where its edge is told.
    energy, x, y, meterset
        `(n_spots,)` float64: nominal energy, MeV; place, mm; meterset in a fraction. Spots without meterset are not there.
    weight
        `(n_spots,)` float64: 10^6 protons in the course, where a file of another format tells them; None: the meterset does.
    """

    number: int
    name: str
    beam: Beam
    sad: tuple[float, float] | None
    unit: str
    devices: tuple[str, ...]
    shifter: RangeShifter | None
    shifted: torch.Tensor
    beside: float | None
    energy: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor
    meterset: torch.Tensor
    weight: torch.Tensor | None = None

    @property
    def label(self) -> str:
        """For messages."""
        return f"beam {self.number} '{self.name}'"


@dataclass(frozen=True, eq=False)
class IonPlan:
    """A plan as the file tells it.

    Attributes
    ----------
    path, label
        The file, and what it calls the plan.
    fractions
        Of the course.
    fields
        In the file's order.
    """

    path: str
    label: str
    fractions: int
    fields: tuple[IonField, ...]

    def beams(self, beams: Sequence[Beam] = ()) -> tuple[Beam, ...]:
        """The fields' beams, or `beams` in their places, of which those without an isocentre or a range shifter get the file's; what
        differs is logged.
        """
        if not beams:
            return tuple(field.beam for field in self.fields)
        if len(beams) != len(self.fields):
            raise InputError(
                f"{self.path} has {len(self.fields)} beams, the case {len(beams)}; give a [[beam]] for each, in the file's order, or none"
            )
        found = []
        for field, beam in zip(self.fields, beams, strict=True):
            own = field.beam
            placed = beam.at(own.isocenter or (0.0, 0.0, 0.0)).on(own.lies)
            found.append(replace(placed, shifter=_shifter_of(own.shifter, beam.shifter)))
            if found[-1] != own:
                logger.warning(
                    "%s of %s: %s in the file; %s in the case, which counts", field.label, self.path, *map(_told, (own, found[-1]))
                )
        return tuple(found)

    def spots(
        self, machine: Machine | None, beams: Sequence[Beam] = (), *, dtype: torch.dtype | None = None, ignore_apertures: bool = False
    ) -> Spots:
        """The plan's spots for a machine, with the whole course's weights.

            weight = meterset * fractions * protons per MU at the nominal energy

        Parameters
        ----------
        machine
            Its energies must enclose the plan's, and its own calibration is needed where the meterset is in MU. None, where the file
            tells protons: neither is looked at.
        beams
            Angles and isocentres in the place of the file's, as for `beams`.
        dtype
            Of position and weight; float32 where it is None.
        ignore_apertures
            Whether fields with an aperture, which no dose here is computed through, are taken without it, with a logged warning; otherwise
            they are refused.
        """
        columns: list[list[torch.Tensor]] = []
        used = self.beams(beams)
        for number_, field in enumerate(self.fields):
            self._check(field, used[number_], machine, ignore_apertures)
            weight = self._weight(field, machine)
            logger.info(
                "%s: %s at gantry %g, couch %g, %d spots, %.6g %s a fraction, %d fractions",
                self.path, field.label, field.beam.gantry, field.beam.couch, len(field.x), float(field.meterset.sum()), field.unit,
                self.fractions,
            )  # fmt: skip
            # a shifter that only the case tells of is in the beam all the time
            shifted = field.shifted if field.shifter else torch.full_like(field.shifted, used[number_].shifter is not None)
            columns.append([torch.full_like(field.energy, number_), field.energy, field.x, field.y, weight, shifted])
        beam, energy, x, y, weight, shifted = (torch.cat(column) for column in zip(*columns, strict=True))
        return Spots.from_columns(used, beam.long(), energy, x, y, weight, dtype or torch.float32, shifted)

    def _weight(self, field: IonField, machine: Machine | None) -> torch.Tensor:
        """The course's weights of a field `(n_spots,)`, 10^6 protons."""
        if field.weight is not None:
            return field.weight
        if field.unit != "MU":
            return field.meterset * self.fractions * 1e-6
        if machine is None:
            raise InputError(f"{self.path}, {field.label} has its weights in MU; give the machine, whose calibration makes protons of them")
        return field.meterset * self.fractions * machine.protons_per_mu(field.energy)

    def _check(self, field: IonField, beam: Beam, machine: Machine | None, ignore_apertures: bool) -> None:
        """What keeps a field from being computed on this machine."""
        what = f"{self.path}, {field.label}"
        if (beam.shifter is None and "range shifter" in field.devices) or (beam.shifter is not None and beam.shifter.distance is None):
            missing = "the settings" if beam.shifter is None else "the distance from the isocentre"
            raise InputError(
                f"{what} has a range shifter, but not {missing}; give range_shifter_mm and range_shifter_distance_mm in the case's [[beam]]"
            )
        unknown = [device for device in field.devices if device != "range shifter"]
        if unknown == ["aperture"]:
            if not ignore_apertures:
                raise InputError(
                    f"{what} has an aperture, through which no dose can be computed; export it without, or set [dose] ignore_apertures = "
                    "true to compute it as if there were none"
                )
            logger.warning(
                "%s: its aperture is left out, as the case says: beside its opening, and at its edge, the dose is too high%s", what,
                "" if field.beside is None else f"; {field.beside:.1%} of its meterset are aimed beside the opening",
            )  # fmt: skip
        elif unknown:
            raise InputError(f"{what} has a {' and a '.join(unknown)}, which come with a later version; export it without")
        if machine is None:
            return
        low, high = float(field.energy.min()), float(field.energy.max())
        if low < machine.energy_min * (1 - ROUNDING) or high > machine.energy_max * (1 + ROUNDING):
            raise InputError(
                f"{what} has energies of {low:g} to {high:g} MeV, machine '{machine.name}' of {machine.energy_min:g} to "
                f"{machine.energy_max:g} MeV; take the machine that the plan was made for"
            )
        if field.unit == "MU" and machine.calibration is None:
            raise InputError(
                f"{what} has its weights in MU, and machine '{machine.name}' has no calibration of its own; take one that has, as "
                "[machine] format = 'emittance' does"
            )
        if field.sad is not None and max(abs(a - b) for a, b in zip(field.sad, machine.sad, strict=True)) > SOURCES_OFF:
            logger.warning(
                "%s has virtual sources at %g and %g mm, machine '%s' at %g and %g mm", what, *field.sad, machine.name, *machine.sad
            )


def _shifter_of(own: RangeShifter | None, said: RangeShifter | None) -> RangeShifter | None:
    """A field's range shifter: the case's where it gives a thickness, else the file's; a distance of the case's counts."""
    if said is None or (own is None and said.rule != "all"):
        return own
    thickness = said.thickness if own is None or said.rule == "all" else own.thickness
    return RangeShifter(thickness, said.distance if said.distance is not None or own is None else own.distance)


def _told(beam: Beam) -> str:
    """A beam in words."""
    text = f"gantry {beam.gantry:g}, couch {beam.couch:g}, isocentre {beam.isocenter}, {beam.lies}"
    if beam.shifter is not None:
        text += f", range shifter of {beam.shifter.thickness:g} mm of water at {beam.shifter.distance} mm"
    return text


def read_ion_plan(path: str | os.PathLike) -> IonPlan:
    """Read a DICOM RT Ion Plan of scanned proton fields.

    Parameters
    ----------
    path
        The file. Plans of photons, of passive or rotating fields, for a patient who neither lies on the back, the front nor a side, or of
        several fraction groups are refused with the reason, as are fields without a meterset.
    """
    with dataset(path, "RT Ion Plan", "RTPLAN", "RT Ion Plan Storage") as plan:
        groups = need(plan, "FractionGroupSequence", "the plan")
        if len(groups) != 1:
            raise InputError(f"the plan has {len(groups)} fraction groups, one can be read; export them one by one")
        fractions = number(groups[0], "NumberOfFractionsPlanned", "the fraction group")
        if fractions != int(fractions) or fractions < 1:
            raise InputError(f"NumberOfFractionsPlanned must be 1 or more, got {fractions:g}")
        position = _position(plan)
        metersets = {int(beam.ReferencedBeamNumber): beam for beam in need(groups[0], "ReferencedBeamSequence", "the fraction group")}
        beams = need(plan, "IonBeamSequence", "the plan")
        fields = [
            _field(beam, metersets, position) for beam in beams if beam.get("TreatmentDeliveryType", "TREATMENT") in ("TREATMENT", "")
        ]
        if not fields:
            raise InputError("the plan has no field for treatment; export the plan that is delivered")
        said = groups[0].get("NumberOfBeams")
        if said is not None and int(said) > len(beams):
            raise InputError(f"the plan has {len(beams)} beams of {int(said)}; the file is cut off, export it anew")
        return IonPlan(str(path), str(plan.get("RTPlanLabel", "")), int(fractions), tuple(fields))


def _position(plan: Dataset) -> str:
    """How the patient lies: HFS where the plan says nothing."""
    told = {str(setup.get("PatientPosition") or "HFS") for setup in plan.get("PatientSetupSequence") or ()} or {"HFS"}
    if len(told) > 1 or not told <= {*POSITIONS}:
        raise InputError(
            f"the patient's position is {' and '.join(sorted(told))}; a plan for one of {', '.join(POSITIONS)} can be read: "
            "export one for each"
        )
    return told.pop()


def _field(beam: Dataset, metersets: dict[int, Dataset], position: str) -> IonField:
    """One field, its spots in the order of delivery."""
    beam_number = int(number(beam, "BeamNumber", "a beam"))
    name = str(beam.get("BeamName") or "")
    where = f"beam {beam_number} '{name}'"
    if str(beam.get("RadiationType", "PROTON")) != "PROTON":
        raise InputError(f"{where} is of {beam.RadiationType}; torchimpt plans with protons")
    if str(beam.get("ScanMode", "NONE")) not in ("MODULATED", "MODULATED_SPEC"):
        raise InputError(f"{where} has scan mode {beam.get('ScanMode', 'NONE')}; only fields of scanned spots (MODULATED) can be read")
    unit = str(beam.get("PrimaryDosimeterUnit") or "")
    if unit not in UNITS:
        raise InputError(f"{where}: PrimaryDosimeterUnit must be {' or '.join(UNITS)}, got '{unit}'")
    if beam_number not in metersets or metersets[beam_number].get("BeamMeterset") is None:
        raise InputError(f"{where} has no BeamMeterset in the fraction group, so its dose is not known; export the plan with its MU")
    points = need(beam, "IonControlPointSequence", where)
    if int(beam.get("NumberOfControlPoints") or len(points)) != len(points):
        raise InputError(f"{where} has {len(points)} control points of {beam.NumberOfControlPoints}; the file is cut off, export it anew")
    first = points[0]
    spots = _spots(points, where)
    share = number(metersets[beam_number], "BeamMeterset", where) / _final(beam, spots, where)
    sad = numbers(beam, "VirtualSourceAxisDistances", where, 2) if beam.get("VirtualSourceAxisDistances") is not None else None
    gantry, couch = (number(first, key, where) for key in ("GantryAngle", "PatientSupportAngle"))
    isocenter = numbers(first, "IsocenterPosition", where, 3)
    shifter, inside, told = field_shifter(points, where)
    in_beam = np.repeat(inside, [len(numbers(point, "ScanSpotMetersetWeights", where)) for point in points])
    used = spots[3] > 0
    energy, x, y, weight = (torch.from_numpy(np.ascontiguousarray(column)) for column in spots[:, used])
    devices = [device for key, device in _DEVICES.items() if int(beam.get(key) or 0) > 0]
    return IonField(
        number=beam_number,
        name=name,
        beam=Beam(gantry, couch, (float(isocenter[0]), float(isocenter[1]), float(isocenter[2])), shifter, position),
        sad=None if sad is None else (float(sad[0]), float(sad[1])),
        unit=unit,
        devices=tuple(device for device in devices if not (device == "range shifter" and told)),
        shifter=shifter,
        shifted=torch.from_numpy(in_beam[used]),
        beside=aimed_beside(beam, x, y, weight, where),
        energy=energy,
        x=x,
        y=y,
        meterset=weight * share,
    )


def _final(beam: Dataset, spots: np.ndarray, where: str) -> float:
    """The field's final cumulative weight, which its spots' weights sum up to."""
    final = number(beam, "FinalCumulativeMetersetWeight", where)
    total = float(spots[3].sum())
    if not final > 0 or not total > 0:
        raise InputError(f"{where} has no spot with a weight; export the plan with its spots")
    if abs(total / final - 1.0) > WEIGHTS_OFF:
        raise InputError(
            f"{where}: its spots' weights sum up to {total:.6g}, but FinalCumulativeMetersetWeight is {final:.6g}; spots are missing, "
            "export it anew"
        )
    return final


def _spots(points: Sequence[Dataset], where: str) -> np.ndarray:
    """Energy, x, y and weight `(4, n_spots)` of all control points, those of weight zero too."""
    columns, energy = [], None
    fixed: dict[str, float] = {}
    for i, point in enumerate(points):
        here = f"{where}, control point {i}"
        for key in ("GantryAngle", "PatientSupportAngle", "TableTopPitchAngle", "TableTopRollAngle", "GantryPitchAngle"):
            if point.get(key) is not None:
                angle = number(point, key, here)
                if fixed.setdefault(key, 0.0 if key.endswith(("PitchAngle", "RollAngle")) else angle) != angle:
                    raise InputError(
                        f"{here}: {key} is {angle:g}; fields that rotate or tilt cannot be read, only those at one gantry and couch angle"
                    )
        if point.get("NominalBeamEnergy") is not None:
            energy = number(point, "NominalBeamEnergy", here)
        if energy is None or not energy > 0:
            raise InputError(f"{here} has no NominalBeamEnergy above zero; export the plan anew")
        weight = numbers(point, "ScanSpotMetersetWeights", here)
        place = numbers(point, "ScanSpotPositionMap", here, 2 * len(weight)).reshape(-1, 2)
        if (weight < 0).any():
            raise InputError(f"{here} has a weight of {weight.min():g}; weights must not be negative")
        columns.append(np.stack((np.full(len(weight), energy), place[:, 0], place[:, 1], weight)))
    return np.concatenate(columns, axis=1)
