"""RT Ion Plans and RT Doses: written small by the tests, broken one by one, and those of other programs."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import dicom_files
import numpy as np
import pydicom
import pytest
import torch
from dicom_files import VALUES, save

from torchimpt.checks import InputError
from torchimpt.geometry import Beam, RangeShifter
from torchimpt.io.dicom import is_dicom, read_ion_plan, read_rt_dose
from torchimpt.io.plan import read_plan
from torchimpt.machine import Calibration, generic

ENERGY = torch.tensor([70.0, 240.0], dtype=torch.float64)
MACHINE = dataclasses.replace(generic(), sad=(2000.0, 2560.0), calibration=Calibration(ENERGY, ENERGY / 20.0))
"""One MU is E / 20 million protons."""


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return save(dicom_files.ion_plan(), tmp_path / "RP.dcm")


def test_fields_as_the_file_has_them(plan):
    found = read_ion_plan(plan)
    assert (found.label, found.fractions, len(found.fields)) == ("two fields", 4, 2)
    first, second = found.fields
    assert first.beam == Beam(30.0, 10.0, (1.0, -2.0, 3.0), position="HFS")
    assert second.beam == Beam(270.0, 0.0, (1.0, -2.0, 3.0), position="HFS")
    assert (first.number, first.name, first.sad, first.unit, first.devices) == (1, "f1", (2000.0, 2560.0), "MU", ())
    # the spot of weight zero is left out, and so are the second control points
    assert first.energy.tolist() == [110.0, 110.0, 100.0]
    assert (first.x.tolist(), first.y.tolist()) == ([-8.0, 9.0, 0.0], [3.0, 1.0, 0.0])
    assert first.meterset.tolist() == [10.0, 30.0, 10.0]  # shares 2, 6 and 2 of 10 in 50 MU
    assert second.meterset.tolist() == [16.0, 4.0]


def test_spots_have_the_courses_protons(plan):
    spots = read_plan(plan, machine=MACHINE, dtype=torch.float64)
    assert spots.beams == tuple(Beam(*angles, (1.0, -2.0, 3.0), position="HFS") for angles in ((30.0, 10.0), (270.0, 0.0)))
    assert spots.layer_energy.tolist() == [110.0, 100.0, 105.0] and spots.beam.tolist() == [0, 0, 0, 1, 1]
    assert spots.position.tolist() == [[-8.0, 3.0], [9.0, 1.0], [0.0, 0.0], [5.0, 5.0], [-5.0, 2.0]]
    expected = [4 * mu * e / 20 for mu, e in ((10, 110), (30, 110), (10, 100), (16, 105), (4, 105))]
    torch.testing.assert_close(spots.weight.detach(), torch.tensor(expected, dtype=torch.float64))
    assert read_plan(plan, machine=MACHINE).weight.dtype == torch.float32


def test_numbers_of_protons_need_no_calibration(tmp_path):
    file = dicom_files.ion_plan()
    for field in file.IonBeamSequence:
        field.PrimaryDosimeterUnit = "NP"
    for beam in file.FractionGroupSequence[0].ReferencedBeamSequence:
        beam.BeamMeterset = 1e9
    spots = read_ion_plan(save(file, tmp_path / "RP.dcm")).spots(generic(), dtype=torch.float64)
    torch.testing.assert_close(spots.weight.detach(), torch.tensor([800.0, 2400, 800, 3200, 800], dtype=torch.float64))


def test_the_cases_beams_take_the_place_of_the_files(plan, caplog):
    found = read_ion_plan(plan)
    with caplog.at_level(logging.WARNING):
        beams = found.spots(MACHINE, [Beam(0.0), Beam(270.0, 0.0, (9.0, 8.0, 7.0))]).beams
    assert beams == (Beam(0.0, 0.0, (1.0, -2.0, 3.0), position="HFS"), Beam(270.0, 0.0, (9.0, 8.0, 7.0), position="HFS"))
    assert "gantry 30, couch 10" in caplog.text and "gantry 0, couch 0" in caplog.text
    caplog.clear()
    assert found.beams([Beam(30.0, 10.0), Beam(270.0)]) == found.beams() and not caplog.text
    with pytest.raises(InputError, match=r"has 2 beams, the case 1; give a \[\[beam\]\] for each, in the file's order, or none"):
        found.beams([Beam(0.0)])


def test_other_virtual_sources_are_told(plan, caplog):
    caplog.set_level("WARNING", logger="torchimpt")  # other tests' commands may have left it lower
    found = read_ion_plan(plan)
    found.spots(MACHINE)
    assert not caplog.text
    found.spots(dataclasses.replace(MACHINE, sad=(2000.0, 2000.0)))
    assert "virtual sources at 2000 and 2560 mm, machine 'generic' at 2000 and 2000 mm" in caplog.text


def test_what_a_machine_must_have(plan):
    with pytest.raises(
        InputError, match=r"RP\.dcm, beam 1 'f1' has its weights in MU, and machine 'generic' has no calibration of its own"
    ):
        read_plan(plan, machine=generic())
    curves = dataclasses.replace(MACHINE.curves, **{
        name: getattr(MACHINE.curves, name)[..., :6, :] if name in ("shape", "variance", "fraction") else getattr(MACHINE.curves, name)[:6]
        for name in ("energy", "r80", "integral", "shape", "variance", "fraction")
    })  # fmt: skip
    with pytest.raises(
        InputError, match=r"energies of 100 to 110 MeV, machine 'generic' of 70 to 95 MeV; take the machine that the plan was"
    ):
        read_plan(plan, machine=dataclasses.replace(MACHINE, curves=curves))
    with pytest.raises(InputError, match="an RT Ion Plan needs a machine, whose calibration makes protons of its MU"):
        read_plan(plan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: setattr(p, "SOPClassUID", dicom_files.PLAN), "is a plan for photons or electrons .RT Plan Storage.; torchimpt reads an RT Ion"),
        (lambda p: setattr(p, "Modality", "CT"), "modality CT; an RT Ion Plan is needed"),
        (lambda p: delattr(p, "IonBeamSequence"), "the plan has no IonBeamSequence"),
        (lambda p: p.IonBeamSequence.pop(), "the plan has 1 beams of 2; the file is cut off"),
        (lambda p: p.FractionGroupSequence.append(p.FractionGroupSequence[0]), "2 fraction groups, one can be read"),
        (lambda p: delattr(p.FractionGroupSequence[0], "NumberOfFractionsPlanned"), "the fraction group has no NumberOfFractionsPlanned"),
        (lambda p: setattr(p.FractionGroupSequence[0], "NumberOfFractionsPlanned", 0), "NumberOfFractionsPlanned must be 1 or more"),
        (lambda p: delattr(p.FractionGroupSequence[0].ReferencedBeamSequence[1], "BeamMeterset"), "beam 2 'f2' has no BeamMeterset"),
        (lambda p: p.FractionGroupSequence[0].ReferencedBeamSequence.pop(), "beam 2 'f2' has no BeamMeterset"),
        (lambda p: setattr(p.PatientSetupSequence[0], "PatientPosition", "LFP"), "the patient's position is LFP; a plan for one of HFS, HFP"),
        (lambda p: setattr(p.IonBeamSequence[1], "PrimaryDosimeterUnit", "MINUTE"), "must be MU or NP, got 'MINUTE'"),
        (lambda p: setattr(p.IonBeamSequence[1], "RadiationType", "ION"), "beam 2 'f2' is of ION; torchimpt plans with protons"),
        (lambda p: setattr(p.IonBeamSequence[1], "ScanMode", "UNIFORM"), "has scan mode UNIFORM; only fields of scanned spots"),
        (lambda p: p.IonBeamSequence[0].IonControlPointSequence.pop(), "has 3 control points of 4; the file is cut off"),
        (lambda p: setattr(p.IonBeamSequence[0], "FinalCumulativeMetersetWeight", 12.0), "weights sum up to 10, but .* is 12; spots are missing"),
        (lambda p: setattr(p.IonBeamSequence[0].IonControlPointSequence[2], "GantryAngle", 31.0), "GantryAngle is 31; fields that rotate"),
        (lambda p: setattr(p.IonBeamSequence[0].IonControlPointSequence[0], "TableTopPitchAngle", 2.0), "TableTopPitchAngle is 2; fields that"),
        (lambda p: delattr(p.IonBeamSequence[0].IonControlPointSequence[0], "NominalBeamEnergy"), "no NominalBeamEnergy above zero"),
        (lambda p: delattr(p.IonBeamSequence[0].IonControlPointSequence[0], "IsocenterPosition"), "beam 1 'f1' has no IsocenterPosition"),
        (lambda p: setattr(p.IonBeamSequence[0].IonControlPointSequence[0], "ScanSpotPositionMap", [1.0, 2.0]), "must be 6 finite numbers, got 2"),
        (lambda p: setattr(p.IonBeamSequence[0].IonControlPointSequence[0], "ScanSpotMetersetWeights", [12.0, 0.0, -2.0]), "a weight of -2"),
        (lambda p: [setattr(b, "TreatmentDeliveryType", "SETUP") for b in p.IonBeamSequence], "no field for treatment"),
    ],
)  # fmt: skip
def test_plans_that_are_refused(tmp_path, change, message):
    file = dicom_files.ion_plan()
    change(file)
    with pytest.raises(InputError, match=message) as error:
        read_ion_plan(save(file, tmp_path / "RP.dcm"))
    assert "RP.dcm" in str(error.value)


def settings(point, **values):
    """Settings of range shifter 1 at a control point."""
    item = pydicom.Dataset()
    item.ReferencedRangeShifterNumber = 1
    for key, value in values.items():
        setattr(item, key, value)
    point.RangeShifterSettingsSequence = [*(point.get("RangeShifterSettingsSequence") or ()), item]


IN = {"RangeShifterSetting": "IN", "RangeShifterWaterEquivalentThickness": 34.3, "IsocenterToRangeShifterDistance": 135.9}


def test_range_shifter_holds_until_it_is_changed(tmp_path):
    file = dicom_files.ion_plan()
    first, second = (field.IonControlPointSequence for field in file.IonBeamSequence)
    settings(first[0], **IN)
    settings(first[2], RangeShifterSetting="OUT")
    settings(second[0], **IN)
    for field in file.IonBeamSequence:
        field.NumberOfRangeShifters = 1
    path = save(file, tmp_path / "RP.dcm")
    fields = read_ion_plan(path).fields
    shifter = RangeShifter(34.3, 135.9)
    assert [f.shifter for f in fields] == [shifter, shifter] and all(f.devices == () for f in fields)
    assert fields[0].shifted.tolist() == [True, True, False] and fields[1].shifted.tolist() == [True, True]
    spots = read_plan(path, machine=MACHINE)
    assert [beam.shifter for beam in spots.beams] == [shifter, shifter]
    # what goes through the shifter comes after what does not
    assert spots.layer_energy.tolist() == [100.0, 110.0, 105.0] and spots.layer_shifted.tolist() == [False, True, True]


def test_the_cases_range_shifter_counts(tmp_path, caplog):
    file = dicom_files.ion_plan()
    settings(file.IonBeamSequence[0].IonControlPointSequence[0], **IN)
    found = read_ion_plan(save(file, tmp_path / "RP.dcm"))
    beams = [Beam(30.0, 10.0, shifter=RangeShifter(40.0)), Beam(270.0, shifter=RangeShifter(20.0, 99.0))]
    with caplog.at_level(logging.WARNING):
        spots = found.spots(MACHINE, beams)
    assert [beam.shifter for beam in spots.beams] == [RangeShifter(40.0, 135.9), RangeShifter(20.0, 99.0)]
    assert spots.shifted.all() and "34.3 mm of water at 135.9 mm in the file" in caplog.text
    caplog.clear()
    # the machine's, where it is needed: the file knows where that is
    auto = [Beam(30.0, 10.0, shifter=RangeShifter(45.0, rule="layers")), Beam(270.0, shifter=RangeShifter(45.0, rule="layers"))]
    assert found.beams(auto) == found.beams() and not caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([{}], "control point 0 puts in a range shifter without its RangeShifterWaterEquivalentThickness; export the plan with it"),
        ([IN, {**IN, "ReferencedRangeShifterNumber": 2}], "control point 0 has 2 range shifters in the beam at once; fields with one can"),
        ([{**IN, "RangeShifterWaterEquivalentThickness": -3.0}], "must be thicker than 0 and at most 400 mm of water, got -3"),
        ([{**IN, "IsocenterToRangeShifterDistance": -3.0}], "must lie 0 to 5000 mm upstream of the isocentre, got -3"),
    ],
)
def test_range_shifters_that_are_refused(tmp_path, changes, message):
    file = dicom_files.ion_plan()
    for change in changes:
        settings(file.IonBeamSequence[0].IonControlPointSequence[0], **change)
    with pytest.raises(InputError, match=message):
        read_ion_plan(save(file, tmp_path / "RP.dcm"))


def test_range_shifters_that_change_in_a_field_are_refused(tmp_path):
    file = dicom_files.ion_plan()
    points = file.IonBeamSequence[0].IonControlPointSequence
    settings(points[0], **IN)
    settings(points[2], RangeShifterWaterEquivalentThickness=50.0)
    with pytest.raises(
        InputError, match=r"beam 1 'f1' has range shifters of 34\.3 mm of water at 135\.9 mm, 50 mm of water at 135\.9 mm; fields"
    ):
        read_ion_plan(save(file, tmp_path / "RP.dcm"))


def test_range_shifter_that_is_not_told_well_enough(tmp_path):
    file = dicom_files.ion_plan()
    file.IonBeamSequence[1].NumberOfRangeShifters = 1
    found = read_ion_plan(save(file, tmp_path / "RP.dcm"))
    assert found.fields[1].devices == ("range shifter",)
    remedy = r"give range_shifter_mm and range_shifter_distance_mm in the case's \[\[beam\]\]"
    with pytest.raises(InputError, match=rf"beam 2 'f2' has a range shifter, but not the settings; {remedy}"):
        found.spots(MACHINE)
    assert found.spots(MACHINE, [Beam(30.0, 10.0), Beam(270.0, shifter=RangeShifter(20.0, 99.0))]).shifted.tolist() == 3 * [False] + 2 * [
        True
    ]
    settings(file.IonBeamSequence[1].IonControlPointSequence[0], RangeShifterWaterEquivalentThickness=50.0)
    found = read_ion_plan(save(file, tmp_path / "RP.dcm"))
    with pytest.raises(InputError, match=rf"has a range shifter, but not the distance from the isocentre; {remedy}"):
        found.spots(MACHINE)


@pytest.mark.parametrize(
    ("key", "what", "told"),
    [
        ("NumberOfRangeModulators", "range modulator", "has a range modulator, which come with a later version"),
        ("NumberOfBlocks", "aperture", "has an aperture, through which no dose can be computed"),
    ],
)
def test_devices_in_the_beam_are_told_and_not_computed(tmp_path, key, what, told):
    file = dicom_files.ion_plan()
    setattr(file.IonBeamSequence[1], key, 1)
    found = read_ion_plan(save(file, tmp_path / "RP.dcm"))
    assert found.fields[0].devices == () and found.fields[1].devices == (what,)
    with pytest.raises(InputError, match=f"beam 2 'f2' {told}"):
        found.spots(MACHINE)


def test_what_is_aimed_beside_an_aperture(tmp_path, caplog):
    """Of the second field's spots, (5, 5) of weight 4 and (-5, 2) of weight 1, the opening leaves the first."""
    file = dicom_files.ion_plan()
    block = pydicom.Dataset()
    block.BlockType, block.BlockNumber, block.BlockNumberOfPoints = "APERTURE", 1, 3
    block.BlockData = [0.0, 0.0, 20.0, 0.0, 0.0, 20.0]
    file.IonBeamSequence[1].NumberOfBlocks, file.IonBeamSequence[1].IonBlockSequence = 1, [block]
    found = read_ion_plan(save(file, tmp_path / "RP.dcm"))
    assert found.fields[0].beside is None and found.fields[1].beside == pytest.approx(0.2)
    spots = found.spots(MACHINE, ignore_apertures=True)
    assert spots.n_spots == 5 and "20.0% of its meterset are aimed beside the opening" in caplog.text


def test_truncated_files_end_in_one_line(plan, tmp_path):
    """Wherever the file is cut, it is refused or it is whole: never a plan with fewer spots."""
    whole, content = read_ion_plan(plan), plan.read_bytes()
    cut = tmp_path / "cut.dcm"
    refused = 0
    for length in range(0, len(content), 37):
        cut.write_bytes(content[:length])
        try:
            found = read_ion_plan(cut)
        except InputError as error:
            refused += 1
            assert "cut.dcm" in str(error) and "\n" not in str(error)
        else:
            assert [f.meterset.tolist() for f in found.fields] == [f.meterset.tolist() for f in whole.fields]
            assert found.fractions == whole.fractions
    assert refused > 0.9 * len(content) / 37


def test_dicom_is_known_by_name_or_content(plan, tmp_path):
    bare = tmp_path / "RP.1.2.752.243"
    bare.write_bytes(plan.read_bytes())
    assert is_dicom(bare) and is_dicom("not_there.DCM") and not is_dicom(tmp_path / "plan.json") and not is_dicom(tmp_path)
    assert read_plan(bare, machine=MACHINE).n_spots == 5
    (tmp_path / "text.dcm").write_text("beam,energy_mev")
    with pytest.raises(InputError, match="is no DICOM file; an RT Ion Plan is needed"):
        read_plan(tmp_path / "text.dcm", machine=MACHINE)
    with pytest.raises(InputError, match=r"RT Ion Plan: no file .*RQ\.dcm \(did you mean 'RP\.dcm'"):
        read_plan(tmp_path / "RQ.dcm", machine=MACHINE)


def test_dose_and_its_grid(tmp_path):
    found = read_rt_dose(save(dicom_files.dose(), tmp_path / "RD.dcm"))
    assert found.dose.dtype == torch.float32 and np.array_equal(found.dose.numpy(), 0.5 * VALUES)
    assert (found.grid.shape, found.grid.spacing, found.grid.origin) == ((2, 3, 4), (2.0, 3.0, 5.0), (-10.0, 20.0, 30.0))
    assert (found.summation, found.kind, found.beam) == ("BEAM", "PHYSICAL", 2)


def test_dose_of_a_plan_has_no_beam_and_wide_integers(tmp_path):
    file = dicom_files.dose()
    del file.ReferencedRTPlanSequence[0].ReferencedFractionGroupSequence
    file.DoseSummationType, file.BitsAllocated, file.BitsStored, file.HighBit = "PLAN", 32, 32, 31
    file.PixelData = (VALUES.astype(np.uint32) * 100_000).tobytes()
    found = read_rt_dose(save(file, tmp_path / "RD.dcm"))
    assert found.beam is None and float(found.dose.max()) == pytest.approx(0.5 * 23e5)


@pytest.mark.parametrize(
    ("orientation", "offsets", "origin", "axes"),
    [
        ([1, 0, 0, 0, 1, 0], [30.0, 35.0], (-10.0, 20.0, 30.0), ()),  # absolute
        ([1, 0, 0, 0, 1, 0], [0.0, -5.0], (-10.0, 20.0, 25.0), (0,)),
        ([1, 0, 0, 0, -1, 0], [0.0, 5.0], (-10.0, 14.0, 25.0), (0, 1)),  # the normal points down
        ([-1, 0, 0, 0, -1, 0], [0.0, 5.0], (-16.0, 14.0, 30.0), (1, 2)),
    ],
)
def test_dose_with_reversed_axes_is_turned(tmp_path, orientation, offsets, origin, axes):
    file = dicom_files.dose()
    file.ImageOrientationPatient, file.GridFrameOffsetVector = orientation, offsets
    found = read_rt_dose(save(file, tmp_path / "RD.dcm"))
    assert found.grid.origin == origin and found.grid.spacing == (2.0, 3.0, 5.0)
    assert np.array_equal(found.dose.numpy(), np.flip(0.5 * VALUES, axes))


def _three_frames(file, offsets):
    file.NumberOfFrames, file.GridFrameOffsetVector = 3, offsets
    file.PixelData = np.zeros((3, 3, 4), np.uint16).tobytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: _three_frames(d, [0.0, 5.0, 9.0]), "its frames must lie evenly, but frames 1 and 2 are 4 mm apart, the first two 5 mm"),
        (lambda d: _three_frames(d, [0.0, 5.0]), "GridFrameOffsetVector must be 3 finite numbers, got 2"),
        (lambda d: setattr(d, "GridFrameOffsetVector", [0.0, 0.0]), "its frames must lie evenly"),
        (lambda d: delattr(d, "GridFrameOffsetVector"), "the dose has no GridFrameOffsetVector"),
        (lambda d: setattr(d, "DoseUnits", "RELATIVE"), "its dose is in RELATIVE, and must be in GY"),
        (lambda d: setattr(d, "DoseGridScaling", 0.0), "DoseGridScaling must be positive"),
        (lambda d: setattr(d, "ImageOrientationPatient", [0.8, 0.6, 0, -0.6, 0.8, 0]), "its axes must be those of the patient"),
        (lambda d: setattr(d, "PixelData", d.PixelData[:20]), "the dose has 20 bytes of 48; the file is cut off"),
        (lambda d: setattr(d, "Modality", "RTPLAN"), "modality RTPLAN; an RT Dose is needed"),
    ],
)
def test_doses_that_are_refused(tmp_path, change, message):
    file = dicom_files.dose()
    change(file)
    with pytest.raises(InputError, match=message) as error:
        read_rt_dose(save(file, tmp_path / "RD.dcm"))
    assert "RD.dcm" in str(error.value)


def test_a_truncated_dose(tmp_path):
    path = save(dicom_files.dose(), tmp_path / "RD.dcm")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"RD\.dcm"):
        read_rt_dose(path)


def test_plans_of_other_programs(shared):
    folder = shared / "data" / "dicom"
    ramp = read_ion_plan(folder / "ramp_full" / "ramped_2Gy_ver2_full.dcm")
    assert [f.beam.gantry for f in ramp.fields] == [90.0, 270.0]
    assert [len(f.energy) for f in ramp.fields] == [9218, 9218] and [len(f.energy.unique()) for f in ramp.fields] == [22, 22]
    assert [float(f.meterset.sum()) for f in ramp.fields] == pytest.approx([39294.15] * 2, rel=1e-6)
    # its weights are not in MU: 15,720 of them make 17,571 MU
    aria = read_ion_plan(folder / "varian_sobp" / "RN_178041.dcm")
    assert float(aria.fields[0].meterset.sum()) == pytest.approx(17571.2003322833, rel=1e-6) and len(aria.fields[0].energy.unique()) == 12
    demo = read_ion_plan(folder / "topas_demo" / "rtip_demo.dcm")
    assert (demo.fractions, demo.fields[0].unit, demo.fields[0].devices) == (14, "NP", ("range shifter", "aperture"))
    with pytest.raises(InputError, match=r"rtplan_photon\.dcm is a plan for photons or electrons"):
        read_ion_plan(folder / "dicompyler" / "rtplan_photon.dcm")


def test_doses_of_other_programs(shared):
    folder = shared / "data" / "dicom"
    found = {d.beam: d for d in map(read_rt_dose, (folder / "ramp_full").glob("RD*.dcm"))}
    assert set(found) == {None, 1, 2} and found[None].summation == "PLAN" and found[1].kind == "EFFECTIVE"
    assert found[1].grid.shape == (110, 107, 107) and found[1].grid.origin == (-104.5, -105.5, -108.5)
    # stored as integers each by itself, the fields sum up to the plan
    assert float((found[1].dose + found[2].dose - found[None].dose).abs().max()) < 1e-4
    assert (
        pydicom.dcmread(next((folder / "topas_demo").glob("rtdose.dcm"))).Rows
        == read_rt_dose(folder / "topas_demo" / "rtdose.dcm").grid.shape[1]
    )
