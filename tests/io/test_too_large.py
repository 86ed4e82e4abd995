"""Files that say that they hold more than they do, or unpack to more than memory: refused before any of it is taken."""

from __future__ import annotations

import resource
import zlib
from pathlib import Path

import pytest
import torch
from dicom_files import dose, ion_plan, save
from dicom_patient import as_dicom, write
from pydicom.uid import DeflatedExplicitVRLittleEndian

from torchimpt.checks import InputError
from torchimpt.geometry import Grid
from torchimpt.io import read_dicom, read_dose, read_ion_plan, read_rt_dose, write_image
from torchimpt.io.dicom import dataset
from torchimpt.patient import Patient

GRID = Grid((3, 4, 5), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0))


@pytest.fixture(autouse=True)
def no_more_memory():
    """What is taken stays below a gigabyte: the largest size so far tells."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20


def test_an_image_whose_header_tells_of_a_terabyte(tmp_path):
    write_image(tmp_path / "dose.mha", torch.rand(3, 4, 5), GRID)
    content = (tmp_path / "dose.mha").read_bytes()
    (tmp_path / "dose.mha").write_bytes(content.replace(b"DimSize = 5 4 3", b"DimSize = 9000 9000 3000"))
    with pytest.raises(
        InputError, match=r"dose\.mha says that it has 9000 x 9000 x 3000 voxels, 2\.7e\+08 at most are read; it may be damaged"
    ):
        read_dose(tmp_path / "dose.mha")


def test_a_dose_of_more_frames_than_memory(tmp_path):
    file = dose()
    file.Rows = file.Columns = 65535
    file.NumberOfFrames = 2**20
    with pytest.raises(InputError, match=r"1048576 frames of 65535 x 65535 values of 16 bits, 2\.1 GB at most are read"):
        read_rt_dose(save(file, tmp_path / "RD.dcm"))


def deflated(path: Path, more: int = 0) -> Path:
    """The plan, deflated as a whole, with so many zeros behind it, which belong to no element."""
    plan = ion_plan()
    plan.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    save(plan, path)
    content = path.read_bytes()
    meta = 144 + int.from_bytes(content[140:144], "little")  # the preamble, the group's length, and the group
    plain = zlib.decompress(content[meta:], -zlib.MAX_WBITS)
    packer = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
    parts = [packer.compress(plain), *(packer.compress(bytes(2**20)) for _ in range(more // 2**20)), packer.flush()]
    path.write_bytes(content[:meta] + b"".join(parts))
    return path


def test_a_deflated_plan_that_unpacks_to_more_than_memory(tmp_path, monkeypatch):
    """The limit is lowered, so that the test is short."""
    assert len(read_ion_plan(deflated(tmp_path / "RP.dcm")).fields) == 2
    monkeypatch.setattr("torchimpt.unpacked.MOST_BYTES", 2**25)
    with pytest.raises(InputError, match=r"RP\.dcm would take more than 0\.0 GB when it is unpacked; it may be damaged"):
        read_ion_plan(deflated(tmp_path / "RP.dcm", 2**26))
    assert dataset.MOST_BYTES == 2**31


def test_a_slice_that_unpacks_to_more_than_memory_is_left_out(tmp_path, monkeypatch, caplog):
    slices, _ = as_dicom(Patient(torch.zeros(3, 4, 5), GRID))
    folder = write(tmp_path / "ct", slices)
    deflated(folder / "RP.dcm", 2**26)
    monkeypatch.setattr("torchimpt.unpacked.MOST_BYTES", 2**25)
    assert read_dicom(folder).grid.shape == GRID.shape
    assert "RP.dcm is left out: " in caplog.text and "when it is unpacked" in caplog.text


def test_an_element_that_tells_of_four_gigabytes(tmp_path):
    """Its length is damaged; what is there is read, and no more memory taken than that."""
    path = save(dose(), tmp_path / "RD.dcm")
    content = path.read_bytes()
    place = content.index(b"\x04\x30\x02\x00CS") + 6
    path.write_bytes(content[: place - 2] + b"UT\x00\x00" + (2**32 - 2).to_bytes(4, "little") + content[place + 2 :])
    with pytest.raises(InputError, match="RD"):
        read_rt_dose(path)
