"""The walk through a .mat file before scipy reads it: what scipy writes passes, what would end the process or fill the memory does not."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat
from scipy.sparse import csc_array

from torchimpt import matfile
from torchimpt.checks import InputError
from torchimpt.io import read_matrad
from torchimpt.machine import read_matrad_machine
from torchimpt.matfile import check_mat, load_mat

HEAD = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
DOUBLE, UINT32, INT32, INT8, MATRIX, COMPRESSED = 9, 6, 5, 1, 14, 15


def element(kind: int, content: bytes, size: int | None = None) -> bytes:
    return struct.pack("<II", kind, len(content) if size is None else size) + content + b"\0" * (-len(content) % 8)


def array(kind: int, dimensions: tuple[int, ...], content: bytes, name: bytes = b"a") -> bytes:
    flags, sizes = struct.pack("<II", kind, 0), struct.pack(f"<{len(dimensions)}i", *dimensions)
    return element(MATRIX, element(UINT32, flags) + element(INT32, sizes) + element(INT8, name) + content)


def write(path: Path, *elements: bytes) -> Path:
    path.write_bytes(HEAD + b"".join(elements))
    return path


@pytest.mark.parametrize("packed", [False, True])
def test_what_scipy_writes_is_read(tmp_path, packed):
    cell = np.empty((2, 1), dtype=object)
    cell[0, 0], cell[1, 0] = np.arange(3, dtype=np.uint8), "text é"
    content = {"a": {"b": {"c": 1.5, "d": np.zeros((2, 0))}, "e": cell}, "f": csc_array(np.eye(3)), "g": np.array([1 + 2j]), "h": ""}
    savemat(tmp_path / "m.mat", content, do_compression=packed)
    found = load_mat(tmp_path / "m.mat")
    assert found["a"].b.c == 1.5 and found["a"].e[1] == "text é" and found["g"] == 1 + 2j and found["f"].sum() == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(array(6, (1, 1), element(0x30, b"\0" * 8)), "numbers have type 48", id="type"),
        pytest.param(array(6, (1, 1), element(0, b"\0" * 8)), "numbers have type 0", id="no type"),
        pytest.param(array(90, (1, 1), element(DOUBLE, b"\0" * 8)), "class 90", id="class"),
        pytest.param(array(6, (2**30, 2**30), element(DOUBLE, b"\0" * 8)), "8 bytes are no 1152921504606846976 numbers", id="dimensions"),
        pytest.param(array(6, (1, -1), element(DOUBLE, b"")), "dimensions", id="negative"),
        pytest.param(array(4, (2**30, 4), element(INT8, b"")), "a text of 4294967296 characters has none", id="blanks"),
        pytest.param(array(1, (2**30, 1), b""), "1073741824 arrays do not fit into 0 bytes", id="cells"),
        pytest.param(array(6, (1, 1), element(DOUBLE, b"\0" * 8, 2**31 - 8)), "are no 1 numbers", id="size"),
        pytest.param(element(MATRIX, b"\0" * 8, 2**31), "a variable has type 14", id="variable"),
        pytest.param(element(3, b"\0" * 8), "a variable has type 3", id="no array"),
        pytest.param(element(COMPRESSED, b"no zlib"), "Error -3", id="no stream"),
    ],
)
def test_damage_is_told_and_scipy_does_not_see_it(tmp_path, content, message):
    """The first three end the process in scipy 1.17, or take what lies in memory behind its tables."""
    path = write(tmp_path / "m.mat", content)
    for read in (check_mat, read_matrad, read_matrad_machine):
        with pytest.raises(InputError, match=rf"m\.mat is a damaged \.mat file: .*{message}.*; copy or write it anew"):
            read(path)


def test_arrays_within_arrays_without_end(tmp_path):
    inner = array(6, (1, 1), element(DOUBLE, b"\0" * 8), b"")
    for _ in range(100):
        inner = array(1, (1, 1), inner, b"")
    with pytest.raises(InputError, match="arrays are within each other"):
        check_mat(write(tmp_path / "m.mat", inner))


def test_what_unpacks_to_more_than_memory_is_refused(tmp_path, monkeypatch):
    """A megabyte that unpacks to an eighth of a gigabyte; the limit is lowered to half of it, so that the test is short."""
    count = 2**24
    packer = zlib.compressobj(1)
    whole = array(6, (count, 1), element(DOUBLE, b"", 8 * count))
    # sizes of the elements around it as if its content were there
    head = whole[:4] + struct.pack("<I", len(whole) - 8 + 8 * count) + whole[8:]
    stream = packer.compress(head) + b"".join(packer.compress(bytes(2**20)) for _ in range(8 * count // 2**20)) + packer.flush()
    path = write(tmp_path / "m.mat", struct.pack("<II", COMPRESSED, len(stream)) + stream)
    assert path.stat().st_size < 2e6
    monkeypatch.setattr(matfile, "MOST_BYTES", 2**26)
    with pytest.raises(InputError, match=r"its parts would take more than 0\.1 GB"):
        read_matrad(path)
