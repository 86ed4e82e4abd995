"""DICOM out, part by part: contours of masks, CT numbers, monitor units, range shifters, identifiers; every file read back."""

from __future__ import annotations

import logging
import warnings
from dataclasses import replace

import numpy as np
import pydicom
import pytest
import torch
from dicom_patient import as_dicom, write

from torchimpt.checks import InputError
from torchimpt.contours import boundaries, closed, coverage, keyholed
from torchimpt.geometry import Beam, Grid, RangeShifter
from torchimpt.io import read_dicom, read_ion_plan, read_plan, read_rt_dose
from torchimpt.io.dicom.write import carried_over, export_dicom, new_identity
from torchimpt.io.dicom.write.ct import rescale
from torchimpt.io.dicom.write.structures import kind_of
from torchimpt.io.dicom.write.values import decimal, text
from torchimpt.machine import generic
from torchimpt.machine.machine import Calibration
from torchimpt.patient import ROI, Patient
from torchimpt.spots import Spots

GRID = Grid((6, 9, 11), (7.0, 8.0, 9.0), (-33.3, -31.7, -20.1))
"""No two sizes alike, so that axes that are taken for one another show."""


def patient(position: str = "HFS") -> Patient:
    """A block with a target, an organ with a hole in it, and CT numbers that are not whole."""
    body, target, organ = (torch.zeros(GRID.shape, dtype=torch.bool) for _ in range(3))
    body[:, 1:-1, 1:-1] = True
    target[2:4, 3:6, 2:5] = True
    organ[1:5, 2:7, 5:10] = True
    organ[1:5, 4, 7] = False
    organ[4, 7, 9] = True  # touches in an edge
    hu = torch.where(body, 12.3 + torch.arange(GRID.n_voxels).reshape(GRID.shape) % 7, -1000.0)
    rois = {"Body": ROI("Body", body, "external"), "CTV": ROI("CTV", target, "target"), "PTV ring": ROI("PTV ring", organ, "oar")}
    return Patient(hu, GRID, rois, "Müller", position=position)


SPOTS = Spots.from_columns(
    (Beam(0.0, 0.0, (1.5, -2.5, 3.5)), Beam(283.25, 350.0, (1.5, -2.5, 3.5), RangeShifter(30.0, 135.9))),
    beam=[0, 0, 0, 1, 1, 1],
    energy=[100.123456789, 100.123456789, 90.0, 120.0, 110.0, 110.0],
    x=[1.1, -2.2, 3.3, 4.4, 1e-7, 5.5],
    y=[0.1, 7.7, -6.6, 1.0, 2.0, 3.0],
    weight=[10.1, 0.0, 3.3, 1e-3, 250.7, 7.0],
    shifted=[False, False, False, False, True, True],
)
"""One of no weight; a range shifter that some layers of the second beam go through."""


def exported(folder, *, machine=None, spots=SPOTS, position="HFS", identity=None, rbe: float | str = 1.1, fractions=5):
    """Files in a folder, with doses that rise with the voxels' index."""
    dose = torch.linspace(0.0, 71.0, GRID.n_voxels).reshape(GRID.shape)
    spots = replace_positions(spots, position)
    export_dicom(
        folder, patient(position), machine or generic(), spots, dose, {0: 0.25 * dose, 1: 0.75 * dose}, identity or new_identity("Müller"),
        fractions, rbe=rbe, title="Try \\ it", prescriptions={"CTV": 60.0},
    )  # fmt: skip
    return folder


def replace_positions(spots: Spots, position: str) -> Spots:
    beams = tuple(replace(beam, position=position) for beam in spots.beams)
    return Spots(spots.position, spots.weight, spots.layer, spots.layer_beam, spots.layer_energy, beams, spots.layer_shifted)


def test_boundaries_have_just_the_masks_area(generator):
    for share in (0.2, 0.5, 0.8):
        mask = (torch.rand((13, 17), generator=generator) < share).numpy()
        polygons = boundaries(mask)
        # scan lines run through pixels, never along their edges: no rounding
        np.testing.assert_allclose(coverage(closed(polygons), (0.0, 0.0), (1.0, 1.0), mask.shape), mask, atol=1e-12)
        for polygon in polygons:
            steps = np.sign(np.roll(polygon, -1, axis=0) - polygon)
            assert (np.abs(steps).sum(axis=1) == 1).all(), "every edge runs along an axis"
            assert (np.abs(steps - np.roll(steps, 1, axis=0)).sum(axis=1) == 2).all(), "every corner turns"
        joined = keyholed(polygons)
        np.testing.assert_allclose(coverage(closed(joined), (0.0, 0.0), (1.0, 1.0), mask.shape), mask, atol=1e-12)
        # nothing is left that lies within another: filled one by one they are the mask, too
        each = [coverage(closed([polygon]), (0.0, 0.0), (1.0, 1.0), mask.shape) for polygon in joined]
        np.testing.assert_allclose(np.max(each, axis=0), mask, atol=1e-12)
        assert share < 0.8 or len(joined) < len(polygons) - 5, "there are holes"
    assert keyholed(boundaries(np.zeros((3, 3), dtype=bool))) == []


@pytest.mark.parametrize("position", ["HFS", "FFP"])
def test_patient_comes_back(tmp_path, position):
    mine, back = patient(position), read_dicom(exported(tmp_path / "out", position=position))
    assert back.grid.shape == GRID.shape and back.position == position
    # 16 characters of a decimal string
    np.testing.assert_allclose([*back.grid.spacing, *back.grid.origin], [*GRID.spacing, *GRID.origin], rtol=1e-12)
    # half a step of 2^-k HU, k = 6: -1024 to 19 HU are 66,752 steps of 2^-6, too many; 33,376 of 2^-5 fit
    assert float((back.hu - mine.hu).abs().max()) <= 2.0**-6 * (1 + 1e-6)
    assert list(back.rois) == list(mine.rois)
    for name, roi in mine.rois.items():
        assert bool((back.rois[name].mask == roi.mask).all()) and back.rois[name].role == roi.role, name


def test_stopping_power_comes_back(tmp_path, caplog):
    mine = patient()
    rois = {**mine.rois, "Implant": ROI("Implant", mine.rois["CTV"].mask, rsp=1.5)}
    dose = torch.ones(GRID.shape)
    export_dicom(tmp_path / "out", replace(mine, rois=rois), generic(), SPOTS, dose, {0: dose, 1: dose}, new_identity("x"), 1)
    back = read_dicom(tmp_path / "out")
    assert {name: roi.rsp for name, roi in back.rois.items()} == {"Body": None, "CTV": None, "PTV ring": None, "Implant": 1.5}
    assert "ROI 'Implant' has a relative stopping power of 1.5 in the structure set" in caplog.text


def test_ct_numbers_that_are_whole_stay_as_they_are():
    assert rescale(np.array([-1000.0, 3071.0])) == (1.0, -1024.0)
    assert rescale(np.array([-1500.0, 3071.0])) == (1.0, -1500.0)
    slope, low = rescale(np.array([-1000.0, 3071.5]))
    assert slope == 2.0**-4 and low == -1024.0 and (3071.5 - low) / slope <= 65535 < (3071.5 - low) / slope * 2


def test_plan_comes_back(tmp_path):
    """Numbers of protons, as this machine has no calibration: positions bit for bit, weights but for two roundings to single precision."""
    folder, used = exported(tmp_path / "out"), SPOTS.weighted()
    plan = read_ion_plan(folder / "RP.dcm")
    assert plan.fractions == 5 and [field.unit for field in plan.fields] == ["NP", "NP"]
    back = read_plan(folder / "RP.dcm", machine=generic())
    assert back.n_spots == 5 and back.beams == replace_positions(SPOTS, "HFS").beams
    assert torch.equal(back.position, used.position) and torch.equal(back.layer, used.layer)
    assert torch.equal(back.layer_shifted, used.layer_shifted)
    np.testing.assert_allclose(back.layer_energy, used.layer_energy, rtol=1e-13)
    np.testing.assert_allclose(back.weight.detach(), used.weight.detach(), rtol=2.5e-7)


def test_layers_of_many_spots(tmp_path):
    """More than 64 kB of positions, which the explicit transfer syntaxes cannot hold; and a field of one spot, whose weight is no list."""
    n = 9000
    place = torch.linspace(-100.0, 100.0, n)
    many = Spots.from_columns(SPOTS.beams, [0] * n + [1], [100.0] * (n + 1), [*place, 1.0], [*-place, 2.0], [1.0] * (n + 1))
    back = read_plan(exported(tmp_path / "out", spots=many) / "RP.dcm", machine=generic())
    assert torch.equal(back.position, many.position) and back.layer.bincount().tolist() == [n, 1]


def test_monitor_units_by_the_machines_own_calibration(tmp_path, caplog):
    own = replace(generic(), calibration=Calibration(torch.tensor([70.0, 230.0]).double(), torch.tensor([50.0, 130.0]).double()))
    folder = exported(tmp_path / "mu", machine=own)
    file = pydicom.dcmread(folder / "RP.dcm")
    field = file.IonBeamSequence[0]
    # 90 MeV: 60 million protons a MU; 3.3 million in 5 fractions
    point = next(p for p in field.IonControlPointSequence if float(p.NominalBeamEnergy) == 90.0)
    assert field.PrimaryDosimeterUnit == "MU" and point.ScanSpotMetersetWeights == pytest.approx(3.3 / 5 / 60.0, rel=1e-6)
    assert not caplog.records
    back = read_plan(folder / "RP.dcm", machine=own)
    np.testing.assert_allclose(back.weight.detach(), SPOTS.weighted().weight.detach(), rtol=2.5e-7)
    exported(tmp_path / "np")
    assert "machine 'generic' has no calibration of its monitor units: the plan's metersets are numbers of protons (NP)" in caplog.text


def test_control_points_come_in_pairs(tmp_path):
    file = pydicom.dcmread(exported(tmp_path / "out") / "RP.dcm")
    for field, group in zip(file.IonBeamSequence, file.FractionGroupSequence[0].ReferencedBeamSequence, strict=True):
        points, total = field.IonControlPointSequence, 0.0
        assert field.NumberOfControlPoints == len(points) and [p.ControlPointIndex for p in points] == list(range(len(points)))
        for on, off in zip(points[::2], points[1::2], strict=True):
            weights = np.atleast_1d(on.ScanSpotMetersetWeights)
            assert on.NominalBeamEnergy == off.NominalBeamEnergy and on.ScanSpotPositionMap == off.ScanSpotPositionMap
            assert float(on.CumulativeMetersetWeight) == pytest.approx(total, rel=1e-12) and not np.any(off.ScanSpotMetersetWeights)
            assert weights.min() > 0 and len(weights) == on.NumberOfScanSpotPositions
            total += weights.sum()
            assert float(off.CumulativeMetersetWeight) == pytest.approx(total, rel=1e-12)
        assert float(field.FinalCumulativeMetersetWeight) == float(group.BeamMeterset) == float(points[-1].CumulativeMetersetWeight)
        energies = [float(p.NominalBeamEnergy) for p in points]
        assert list(field.VirtualSourceAxisDistances) == list(generic().sad) and energies[0] > energies[-1]
    # spots of 100 MeV are as wide as the machine says, at the isocentre
    optics = generic().optics
    sigma = float(optics.variance(torch.tensor([energies[0]]).double())[0, round(-optics.start / optics.step)]) ** 0.5
    assert list(points[0].ScanningSpotSize) == pytest.approx([2.3548 * sigma] * 2, rel=1e-4)


def test_range_shifter_in_and_out(tmp_path):
    first, second = pydicom.dcmread(exported(tmp_path / "out") / "RP.dcm").IonBeamSequence
    assert first.NumberOfRangeShifters == 0 and "RangeShifterSequence" not in first
    # 5 cm from the body's surface: y = -23.7 - 4 mm is 25.2 mm upstream of the isocentre
    assert first.IonControlPointSequence[0].SnoutPosition == 80.0
    assert second.NumberOfRangeShifters == 1 and second.IonControlPointSequence[0].SnoutPosition == pytest.approx(135.9)
    told = [
        (i, p.RangeShifterSettingsSequence[0]) for i, p in enumerate(second.IonControlPointSequence) if "RangeShifterSettingsSequence" in p
    ]
    assert [(i, setting.RangeShifterSetting) for i, setting in told] == [(0, "OUT"), (2, "IN")]
    setting = told[1][1]
    assert setting.RangeShifterWaterEquivalentThickness == 30.0 and setting.IsocenterToRangeShifterDistance == pytest.approx(135.9)


@pytest.mark.parametrize(
    ("rbe", "kind", "comment"), [(1.0, "PHYSICAL", "physical"), (1.1, "EFFECTIVE", "RBE 1.1"), ("carabe", "EFFECTIVE", "carabe")]
)
def test_doses_come_back(tmp_path, rbe, kind, comment):
    folder = exported(tmp_path / "out", rbe=rbe)
    dose = torch.linspace(0.0, 71.0, GRID.n_voxels).reshape(GRID.shape)
    plan, beams = read_rt_dose(folder / "RD.dcm"), [read_rt_dose(folder / f"RD_beam{i}.dcm") for i in (1, 2)]
    assert (plan.summation, plan.kind, plan.beam) == ("PLAN", kind, None) and [(b.summation, b.beam) for b in beams] == [
        ("BEAM", 1),
        ("BEAM", 2),
    ]
    for found, share in ((plan, 1.0), (beams[0], 0.25), (beams[1], 0.75)):
        np.testing.assert_allclose([*found.grid.spacing, *found.grid.origin], [*GRID.spacing, *GRID.origin], rtol=1e-12)
        # half a step of 16 bits, and float32's rounding
        assert float((found.dose - share * dose).abs().max()) <= share * 71.0 * (0.5 / 65535 + 1e-7)
    file = pydicom.dcmread(folder / "RD_beam2.dcm")
    assert file.DoseComment == f"NOT FOR CLINICAL USE; all 5 fractions, {comment if kind == 'PHYSICAL' or rbe == 1.1 else 'RBE carabe'}"


def test_files_refer_to_each_other(tmp_path):
    folder = exported(tmp_path / "out")
    files = {path.stem: pydicom.dcmread(path) for path in folder.iterdir()}
    slices = [files[name] for name in sorted(files) if name.startswith("CT")]
    plan, structures = files["RP"], files["RS"]
    for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert len({str(file[keyword].value) for file in files.values()}) == 1, keyword
    assert len({file.SOPInstanceUID for file in files.values()}) == len(files) == 6 + 5
    assert str(plan.PatientName) == "Müller^torchimpt"
    (series,) = {file.SeriesInstanceUID for file in slices}
    study = structures.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    assert study.SeriesInstanceUID == series and [i.ReferencedSOPInstanceUID for i in study.ContourImageSequence] == [
        f.SOPInstanceUID for f in slices
    ]
    for drawn in structures.ROIContourSequence:
        for contour in drawn.ContourSequence:
            (own,) = [f for f in slices if f.SOPInstanceUID == contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
            assert own.ImagePositionPatient[2] == contour.ContourData[2]
    assert plan.ReferencedStructureSetSequence[0].ReferencedSOPInstanceUID == structures.SOPInstanceUID
    for name in ("RD", "RD_beam1", "RD_beam2"):
        assert files[name].ReferencedRTPlanSequence[0].ReferencedSOPInstanceUID == plan.SOPInstanceUID
    reference = plan.DoseReferenceSequence[0]
    assert (reference.ReferencedROINumber, reference.TargetPrescriptionDose) == (2, 60.0)
    assert plan.RTPlanLabel == structures.StructureSetLabel == "NOT FOR CLINICAL" and plan.RTPlanDescription.startswith(
        "NOT FOR CLINICAL USE"
    )
    assert plan.RTPlanName == "NOT FOR CLINICAL USE Try   it" and all("NOT FOR CLINICAL USE" in f.SeriesDescription for f in files.values())
    assert plan.PlanIntent == "RESEARCH" and plan.ApprovalStatus == "UNAPPROVED"


def test_identifiers_are_carried_over(tmp_path):
    """Of a patient from DICOM: neither CT nor structure set anew, and what names patient, study, frame and structure set is theirs."""
    slices, structures = as_dicom(patient())
    for file in (*slices, structures):
        file.SpecificCharacterSet, file.PatientName, file.PatientID, file.StudyInstanceUID, file.StudyID = (
            "ISO_IR 100",
            "Müller^Ä",
            "7",
            "1.2.3",
            "S",
        )
    source = write(tmp_path / "source", [*slices, structures])
    folder = exported(tmp_path / "out", identity=carried_over(source))
    assert {path.name for path in folder.iterdir()} == {"RP.dcm", "RD.dcm", "RD_beam1.dcm", "RD_beam2.dcm"}
    for path in folder.iterdir():
        file = pydicom.dcmread(path)
        found = str(file.PatientName), file.PatientID, file.StudyInstanceUID, file.StudyID, file.FrameOfReferenceUID
        assert found == ("Müller^Ä", "7", "1.2.3", "S", slices[0].FrameOfReferenceUID)
    plan = pydicom.dcmread(folder / "RP.dcm")
    assert plan.ReferencedStructureSetSequence[0].ReferencedSOPInstanceUID == structures.SOPInstanceUID and plan.RTPlanGeometry == "PATIENT"
    mine = patient()
    own = replace(mine, rois={**mine.rois, "Ring": ROI("Ring", mine.rois["PTV ring"].mask)})
    dose = torch.ones(GRID.shape)
    export_dicom(tmp_path / "more", own, generic(), SPOTS, dose, {0: dose, 1: dose}, carried_over(source), 1, own_rois=["Ring"])
    more, plan = pydicom.dcmread(tmp_path / "more" / "RS.dcm"), pydicom.dcmread(tmp_path / "more" / "RP.dcm")
    assert [roi.ROIName for roi in more.StructureSetROISequence] == ["Ring"]
    assert plan.ReferencedStructureSetSequence[0].ReferencedSOPInstanceUID == structures.SOPInstanceUID
    write(tmp_path / "both", [*slices, more])
    assert bool((read_dicom(tmp_path / "both").rois["Ring"].mask == own.rois["Ring"].mask).all())
    write(tmp_path / "alone", slices)
    bare = pydicom.dcmread(exported(tmp_path / "bare", identity=carried_over(tmp_path / "alone")) / "RP.dcm")
    assert bare.RTPlanGeometry == "TREATMENT_DEVICE" and "ReferencedStructureSetSequence" not in bare


def test_identifiers_that_break_the_standard_stay_as_they_are(tmp_path):
    odd = {
        "PatientSex": "unknown",
        "PatientBirthDate": "1970",
        "PatientID": 80 * "x",
        "StudyDate": "today",
        "StudyID": "a\\b",
        "PatientName": 70 * "A",
    }
    slices, structures = as_dicom(patient())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for file in (*slices, structures):
            for keyword, value in odd.items():
                setattr(file, keyword, value)
        write(tmp_path / "source", [*slices, structures])
    folder = exported(tmp_path / "out", identity=carried_over(tmp_path / "source"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan, first = pydicom.dcmread(folder / "RP.dcm"), slices[0]
        assert all(plan[keyword].value == first[keyword].value for keyword in odd)


def test_roles_are_told_by_types():
    mask = torch.ones(1, 1, 1, dtype=torch.bool)
    roles = [
        ("PTV70", "target"),
        ("GTVp", "target"),
        ("Tumour", "target"),
        ("Cord", "oar"),
        ("PTV ring", "oar"),
        ("Skin", "oar"),
        ("Hull", "external"),
    ]
    assert [kind_of(ROI(name, mask, role)) for name, role in roles] == ["PTV", "GTV", "CTV", "ORGAN", "AVOIDANCE", "AVOIDANCE", "EXTERNAL"]


def test_text_and_numbers_fit_their_elements():
    assert text("a\\b\nc" + 70 * "d", 16) == "a b c" + 11 * "d"
    for value in (1 / 3, -1 / 3, 1e-30 / 3, -1e200 / 3, 123456789.123456789, -0.1):
        assert len(decimal(value)) <= 16 and float(decimal(value)) == pytest.approx(value, rel=1e-9 if abs(value) > 1e100 else 1e-10)


def test_what_cannot_be_written(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    with pytest.raises(InputError, match="no spot of the plan has a weight"):
        exported(tmp_path / "out", spots=SPOTS.at(SPOTS.position, 0.0 * SPOTS.weight))
    mine = patient()
    with pytest.raises(InputError, match="voxels below zero"):
        export_dicom(tmp_path / "out", mine, generic(), SPOTS, torch.full(GRID.shape, -1.0), {0: mine.hu, 1: mine.hu}, new_identity("x"), 1)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    with pytest.raises(InputError, match="is not empty"):
        exported(tmp_path / "full")
    assert {path.name for path in tmp_path.iterdir()} == {"full"}
