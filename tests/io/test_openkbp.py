"""OpenKBP: orientation read off the anatomy of real patients, every voxel of a small one, and broken folders."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from torchimpt.checks import InputError
from torchimpt.io import read_openkbp

PATIENTS = ("pt_17", "pt_95", "pt_109")


@pytest.fixture(scope="module", params=PATIENTS)
def real(request: pytest.FixtureRequest, shared: Path):
    return read_openkbp(shared / "data" / "openkbp" / request.param)


def test_anatomy_tells_the_axes(real) -> None:
    """Left is +x, posterior is +y, superior is +z: each from organs whose order is the same in everyone."""
    center = {name: real.centroid(name) for name in real.rois}
    assert center["LeftParotid"][0] > center["Brainstem"][0] + 30 > center["RightParotid"][0] + 60
    assert center["Brainstem"][1] > center["Mandible"][1] + 30
    assert center["SpinalCord"][1] > center["Larynx"][1] + 20
    assert center["Brainstem"][2] > center["Mandible"][2] + 20
    assert center["Brainstem"][2] > center["Larynx"][2] + 60 > center["Esophagus"][2] + 60
    assert center["Brainstem"][2] > center["SpinalCord"][2]


def test_ct_numbers_are_hounsfield_units(real) -> None:
    def median(name: str) -> float:
        return float(real.hu[real.roi(name).mask].median())

    assert 0 < median("Brainstem") < 80
    assert -80 < median("LeftParotid") < 60
    assert median("Mandible") > 300
    assert float(real.hu.min()) == -1000.0 and float(real.hu.max()) <= 3071.0
    assert (real.hu[~real.body] == -1000.0).all()


def test_roles_and_external(real) -> None:
    assert "PTV70" in real.targets and all(name.startswith("PTV") for name in real.targets)
    assert real.external.name == "External"
    assert torch.equal(real.external.mask, real.hu > -1000)
    assert real.roi("Brainstem").role == "oar"
    assert real.name in PATIENTS
    assert not {"ct", "voxel_dimensions"} & set(real.rois)


def test_sizes_and_place(real, shared: Path) -> None:
    dy, dx, dz = np.loadtxt(shared / "data" / "openkbp" / real.name / "voxel_dimensions.csv")
    assert real.grid.shape == (128, 128, 128)
    assert real.grid.spacing == (dx, dy, dz)
    for axis in "xyz":
        assert float(real.grid.axis(axis).mean()) == pytest.approx(0, abs=1e-9), "the array's middle is LPS 0"


def test_every_voxel_against_csv_lines_read_one_by_one(shared: Path) -> None:
    """The cord and a thousand CT lines, unravelled by hand: x = axis 1, y = axis 0, z = minus axis 2."""
    folder = shared / "data" / "openkbp" / "pt_109"
    patient = read_openkbp(folder)

    def place(flat: int) -> tuple[int, int, int]:
        posterior, left, inferior = flat // 128 // 128, flat // 128 % 128, flat % 128
        return 127 - inferior, posterior, left

    cord = {place(int(line.split(",")[0])) for line in (folder / "SpinalCord.csv").read_text().split()[1:]}
    assert cord == {tuple(v) for v in patient.roi("SpinalCord").mask.nonzero().tolist()}
    lines = (folder / "ct.csv").read_text().split()[1:]
    for line in lines[:: len(lines) // 1000]:
        flat, value = line.split(",")
        assert float(patient.hu[place(int(flat))]) == float(value) - 1000.0


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A well-formed folder with few voxels."""
    folder = tmp_path / "pt_1"
    folder.mkdir()
    write(folder, "voxel_dimensions.csv", "4.0\n3.0\n2.0\n")
    write(folder, "ct.csv", ",data\n0,1000.0\n129,1040.0\n2097151,4071.0\n")
    write(folder, "PTV70.csv", ",data\n129,\n")
    write(folder, "Cochlea.csv", ",data\r\n129.0,\r\n\r\n2097151,\r\n")
    return folder


def test_a_small_patient_voxel_by_voxel(small: Path) -> None:
    patient = read_openkbp(small)
    assert patient.grid.spacing == (3.0, 4.0, 2.0), "axis 0 of the file is y"
    assert patient.external.mask.nonzero().tolist() == [[0, 127, 127], [126, 0, 1], [127, 0, 0]]
    assert float(patient.hu[127, 0, 0]) == 0.0 and float(patient.hu[126, 0, 1]) == 40.0 and float(patient.hu[0, 127, 127]) == 3071.0
    assert patient.roi("PTV70").role == "target"
    assert patient.roi("Cochlea").mask.nonzero().tolist() == [[0, 127, 127], [126, 0, 1]]


def test_the_data_sets_dose_and_possible_dose_mask_are_no_rois(small: Path) -> None:
    write(small, "dose.csv", ",data\n129,50.0\n")
    write(small, "possible_dose_mask.csv", ",data\n129,\n")
    assert set(read_openkbp(small).rois) == {"External", "PTV70", "Cochlea"}


def test_an_empty_roi_is_left_out_with_a_word(small: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(small, "PTV63.csv", ",data\n")
    write(small, "PTV56.csv", "")
    with caplog.at_level(logging.WARNING):
        patient = read_openkbp(small)
    assert "PTV63" not in patient.rois and "PTV56" not in patient.rois
    assert "read without the ROI 'PTV63'" in caplog.text


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("ct.csv", ",data\n0,1000.0\n1,abc\n", r"ct\.csv is not a list of 'flat index,value'"),
        ("ct.csv", ",data\n0,1000.0\n1\n", r"ct\.csv is not a list"),
        (
            "ct.csv",
            ",data\n0,1000.0\n2097152,5\n",
            r"1 voxel indices that are not whole numbers from 0 to 2097151 \(the first: 2.09715e\+06\)",
        ),
        ("ct.csv", ",data\n-1,1000.0\n", "not whole numbers"),
        ("ct.csv", ",data\n0.5,1000.0\n", r"the first: 0\.5"),
        ("ct.csv", ",data\nnan,1000.0\n", "not whole numbers"),
        ("ct.csv", ",data\n7,nan\n", "1 CT values that are NaN"),
        ("ct.csv", ",data\n7,1e9\n", "no Hounsfield units"),
        ("ct.csv", ",data\n7,1.0\n7,2.0\n", "lists a voxel twice"),
        ("ct.csv", ",data\n", "no CT value above zero"),
        ("ct.csv", ",data\n5,0.0\n", "no CT value above zero"),
        ("PTV70.csv", ",data\n3000000,\n", r"PTV70\.csv has 1 voxel indices"),
        ("PTV70.csv", ",data\nx,\n", r"PTV70\.csv is not a list"),
        ("voxel_dimensions.csv", "3.0\n3.0\n", r"must hold three positive numbers, mm, got \[3\.0, 3\.0\]"),
        ("voxel_dimensions.csv", "3.0\n-3.0\n2.0\n", "three positive numbers"),
        ("voxel_dimensions.csv", "3.0\nnan\n2.0\n", "three positive numbers"),
        ("voxel_dimensions.csv", "a\nb\nc\n", r"voxel_dimensions\.csv must hold three numbers"),
    ],
)
def test_broken_files_are_named(small: Path, name: str, text: str, message: str) -> None:
    write(small, name, text)
    with pytest.raises(InputError, match=message):
        read_openkbp(small)


def test_binary_rubbish_is_refused(small: Path) -> None:
    (small / "ct.csv").write_bytes(bytes(range(256)) * 20)
    with pytest.raises(InputError, match=r"ct\.csv is not a list"):
        read_openkbp(small)


@pytest.mark.parametrize("name", ["ct.csv", "voxel_dimensions.csv"])
def test_missing_files_are_named(small: Path, name: str) -> None:
    (small / name).unlink()
    with pytest.raises(InputError, match=f"OpenKBP patient: no file .*{name}"):
        read_openkbp(small)


def test_a_missing_folder_is_named(small: Path) -> None:
    with pytest.raises(InputError, match=r"no folder .*pt_2 \(did you mean 'pt_1'\?\)"):
        read_openkbp(small.parent / "pt_2")
    with pytest.raises(InputError, match="a folder is needed"):
        read_openkbp(small / "ct.csv")
