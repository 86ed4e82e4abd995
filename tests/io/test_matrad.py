"""matRad files: TG119 against its own arrays read with scipy, small files voxel by voxel, and broken ones."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import loadmat, savemat

from torchimpt.checks import InputError
from torchimpt.io import read_matrad
from torchimpt.patient import Patient


@pytest.fixture(scope="module")
def tg119(shared: Path) -> Patient:
    return read_matrad(shared / "data" / "matrad" / "TG119.mat")


def test_tg119_lies_as_its_axes_say(tg119: Patient, shared: Path) -> None:
    ct = loadmat(shared / "data" / "matrad" / "TG119.mat", squeeze_me=True, struct_as_record=False)["ct"]
    assert tg119.name == "TG119"
    assert tg119.grid.shape == (129, 167, 167)
    assert tg119.grid.spacing == (3.0, 3.0, 2.5)
    for name in "xyz":
        assert np.allclose(tg119.grid.axis(name).numpy(), getattr(ct, name), atol=1e-9)
    rng = np.random.default_rng(1)
    for y, x, z in zip(*(rng.integers(0, n, 300) for n in ct.cubeHU.shape), strict=True):
        assert float(tg119.hu[z, y, x]) == np.float32(ct.cubeHU[y, x, z])


def test_tg119_rois_voxel_by_voxel(tg119: Patient, shared: Path) -> None:
    """1-based linear indices in Fortran order of (y, x, z), unravelled by hand."""
    cst = loadmat(shared / "data" / "matrad" / "TG119.mat", squeeze_me=True, struct_as_record=False)["cst"]
    assert {name: roi.role for name, roi in tg119.rois.items()} == {"Core": "oar", "OuterTarget": "target", "BODY": "external"}
    for row in cst:
        if row[1] == "BODY":
            continue
        expected = {((v - 1) // 167 // 167, (v - 1) % 167, (v - 1) // 167 % 167) for v in row[3].tolist()}
        assert expected == {tuple(v) for v in tg119.roi(row[1]).mask.nonzero().tolist()}
    assert len(tg119.roi("BODY").voxels) == 601736


def test_tg119_shape_is_the_c_around_the_core(tg119: Patient) -> None:
    """The C opens to posterior: the target's centroid is anterior of the core's, and it lies to both sides."""
    target, core = tg119.centroid("OuterTarget"), tg119.centroid("Core")
    assert target[1] < core[1] - 10 and abs(target[0] - core[0]) < 2 and abs(target[2] - core[2]) < 4
    assert not (tg119.roi("OuterTarget").mask & tg119.roi("Core").mask).any()
    assert not (tg119.roi("OuterTarget").mask & ~tg119.body).any()
    assert abs(float(tg119.hu[tg119.roi("OuterTarget").mask].mean())) < 60, "the phantom is of water"


def test_tg119_has_its_own_hu_table(tg119: Patient) -> None:
    table = tg119.hu_table
    assert table.name == "TG119.mat hlut"
    assert table.hu.tolist() == [-1024.0, 200.0, 449.0, 2000.0, 2048.0, 3071.0]
    assert float(table(torch.tensor([200.0]))) == 1.2


def content(**changes: Any) -> dict[str, Any]:
    """A patient of 3 x 4 x 2 voxels (y, x, z); `ct_<field>` and `cst` can be changed, None leaves a field out."""
    ct = {
        "cubeHU": np.arange(24, dtype=float).reshape(3, 4, 2),
        "resolution": {"x": 2.0, "y": 3.0, "z": 4.0},
        "x": 10 + 2.0 * np.arange(4),
        "y": -5 + 3.0 * np.arange(3),
        "z": 7 + 4.0 * np.arange(2),
        "hlut": np.array([[-1000.0, 0.0], [0.0, 1.0], [1000.0, 1.6]]),
    }
    for key, value in changes.items():
        if key.startswith("ct_"):
            ct[key[3:]] = value
    ct = {key: value for key, value in ct.items() if value is not None}
    rows = changes.get("cst", [("Cord", "OAR", [1]), ("CTV", "TARGET", [1, 8, 24]), ("Body", "OAR", list(range(1, 25)))])
    cst = np.empty((len(rows), 6), dtype=object)
    for i, (name, kind, voxels) in enumerate(rows):
        cst[i] = [i, name, kind, np.empty(0, dtype=object), np.zeros(0), np.zeros(0)]
        cell = np.empty((1, 1), dtype=object)
        cell[0, 0] = np.array(voxels, dtype=float).reshape(-1, 1)
        cst[i, 3] = cell
    return {"ct": ct, "cst": cst}


@pytest.fixture
def write(tmp_path: Path):
    def write(**changes: Any) -> Path:
        savemat(tmp_path / "small.mat", content(**changes))
        return tmp_path / "small.mat"

    return write


def test_a_small_file_voxel_by_voxel(write) -> None:
    patient = read_matrad(write())
    assert patient.grid.shape == (2, 3, 4)
    assert patient.grid.spacing == (2.0, 3.0, 4.0) and patient.grid.origin == (10.0, -5.0, 7.0)
    cube = np.arange(24).reshape(3, 4, 2)
    for z in range(2):
        for y in range(3):
            for x in range(4):
                assert float(patient.hu[z, y, x]) == cube[y, x, z]
    # Fortran order of (y, x, z): 8 -> index 7 -> y = 1, x = 2, z = 0; 24 -> the last voxel.
    assert patient.roi("CTV").mask.nonzero().tolist() == [[0, 0, 0], [0, 1, 2], [1, 2, 3]]
    assert patient.roi("CTV").role == "target" and patient.roi("Cord").role == "oar" and patient.external.name == "Body"


def test_descending_axes_are_turned(write) -> None:
    straight = read_matrad(write())
    patient = read_matrad(write(ct_y=1 - 3.0 * np.arange(3), ct_z=11 - 4.0 * np.arange(2)))
    assert patient.grid == straight.grid
    assert torch.equal(patient.hu, straight.hu.flip(0, 1))
    assert torch.equal(patient.roi("CTV").mask, straight.roi("CTV").mask.flip(0, 1))


def test_without_axes_the_middle_is_zero(write) -> None:
    patient = read_matrad(write(ct_x=None, ct_y=None, ct_z=None))
    assert patient.grid.origin == (-3.0, -3.0, -2.0) and patient.grid.spacing == (2.0, 3.0, 4.0)


def test_one_roi_one_slice_and_no_table(write) -> None:
    patient = read_matrad(write(cst=[("CTV", "TARGET", [5])], ct_cubeHU=np.zeros((3, 4, 2)), ct_hlut=None))
    assert list(patient.rois) == ["CTV"] and patient.hu_table is None


def test_of_several_ct_scenarios_the_first_is_read_with_a_word(write, caplog: pytest.LogCaptureFixture) -> None:
    cubes = np.empty((1, 2), dtype=object)
    cubes[0, 0], cubes[0, 1] = np.full((3, 4, 2), 11.0), np.full((3, 4, 2), 22.0)
    with caplog.at_level(logging.WARNING):
        patient = read_matrad(write(ct_cubeHU=cubes))
    assert (patient.hu == 11).all()
    assert "2 CT scenarios; the first is read" in caplog.text


def test_an_empty_roi_is_left_out_with_a_word(write, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        patient = read_matrad(write(cst=[("CTV", "TARGET", [5]), ("Lens", "OAR", [])]))
    assert "Lens" not in patient.rois and "ROI 'Lens' has no voxel and is left out" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ct_cubeHU": None}, r"ct has no field 'cubeHU'$"),
        ({"ct_cubeHU": None, "ct_cube": np.ones((3, 4, 2))}, "no field 'cubeHU'; convert its electron densities"),
        ({"ct_cubeHU": np.zeros((3, 4))}, r"must be a cube of CT numbers, got an array of shape \(3, 4\)"),
        ({"ct_cubeHU": np.full((3, 4, 2), np.nan)}, "24 voxels that are NaN"),
        ({"ct_cubeHU": np.full((3, 4, 2), 1e6)}, "no Hounsfield units"),
        ({"ct_x": np.arange(5.0)}, r"ct\.x must be 4 voxel centres"),
        ({"ct_x": np.array([0, 1, 2, 4.0])}, r"ct\.x is not evenly spaced \(1 to 2 mm\)"),
        ({"ct_x": None, "ct_resolution": None}, "no field 'resolution'"),
        ({"ct_hlut": np.array([1.0, 2, 3])}, r"ct\.hlut must have two columns"),
        ({"ct_hlut": np.array([[0.0, 1.0], [-1000.0, 0.0]])}, "must ascend in hu"),
        ({"cst": [("CTV", "TARGET", [0])]}, "ROI 'CTV' must list voxel indices from 1 to 24"),
        ({"cst": [("CTV", "TARGET", [25])]}, "from 1 to 24"),
        ({"cst": [("CTV", "TARGET", [2.5])]}, "from 1 to 24"),
        ({"cst": [("Body", "OAR", [1]), ("External", "OAR", [1])]}, "at most one ROI with the role 'external'"),
    ],
)
def test_broken_contents_are_named(write, changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_matrad(write(**changes))


def test_files_that_are_no_patient(tmp_path: Path, shared: Path) -> None:
    with pytest.raises(InputError, match=r"matRad patient: no file .*none\.mat"):
        read_matrad(tmp_path / "none.mat")
    (tmp_path / "text.mat").write_text("no matlab\n" * 100)
    with pytest.raises(InputError, match=r"text\.mat is a damaged \.mat file"):
        read_matrad(tmp_path / "text.mat")
    (tmp_path / "empty.mat").touch()
    with pytest.raises(InputError, match=r"empty\.mat is not a readable \.mat file"):
        read_matrad(tmp_path / "empty.mat")
    savemat(tmp_path / "other.mat", {"a": 1})
    with pytest.raises(InputError, match=r"no variable ct and cst, so it is no matRad patient$"):
        read_matrad(tmp_path / "other.mat")
    with pytest.raises(InputError, match=r"it holds a machine, which goes into \[machine\]"):
        read_matrad(shared / "data" / "matrad" / "protons_Generic.mat")
    savemat(tmp_path / "cst.mat", content() | {"cst": np.zeros((2, 3))})
    with pytest.raises(InputError, match="cst must be a cell array"):
        read_matrad(tmp_path / "cst.mat")


def test_a_cut_off_file_is_refused(tmp_path: Path, shared: Path) -> None:
    whole = (shared / "data" / "matrad" / "TG119.mat").read_bytes()
    (tmp_path / "half.mat").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"half\.mat is a damaged \.mat file"):
        read_matrad(tmp_path / "half.mat")


def test_a_matlab_7_3_file_says_how_to_save_it(tmp_path: Path) -> None:
    """Its first 128 bytes tell: version 0x0200, written as MATLAB does, before the HDF5 data."""
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM"
    (tmp_path / "new.mat").write_bytes(header + b"\x00" * 384 + b"\x89HDF\r\n\x1a\n")
    with pytest.raises(InputError, match=r"is a MATLAB 7\.3 file; save it in MATLAB with .*-v7"):
        read_matrad(tmp_path / "new.mat")
