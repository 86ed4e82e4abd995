"""Paths that are wrong, writes that fail."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from torchimpt.checks import InputError
from torchimpt.files import input_file, input_folder, reader, reading, whole_folder, whole_or_nothing


def test_a_missing_file_names_what_lies_beside(tmp_path: Path) -> None:
    (tmp_path / "plan.json").touch()
    with pytest.raises(InputError, match=r"^plan: no file .*/plan\.jsn \(did you mean 'plan\.json'\?\)$"):
        input_file(tmp_path / "plan.jsn", "plan")
    with pytest.raises(InputError, match=r"no file .*zzz$"):
        input_file(tmp_path / "zzz", "plan")


def test_a_missing_folder_says_how_far_the_path_exists(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"no folder .*/a/b/pt \(the path exists up to {tmp_path}\)"):
        input_folder(tmp_path / "a" / "b" / "pt", "patient")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="no folder"):
        input_folder(tmp_path / "file" / "pt", "patient")


def test_file_for_folder_and_folder_for_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a folder, a file is needed"):
        input_file(tmp_path, "plan")
    with pytest.raises(InputError, match="is a file, a folder is needed"):
        input_folder(tmp_path / "file", "patient")
    with pytest.raises(InputError, match="is a device or a pipe"):
        input_file("/dev/null", "plan")


def test_no_permission_to_read(common_folder: Path, as_nobody) -> None:
    file, folder = common_folder / "file", common_folder / "folder"
    file.touch()
    folder.mkdir()
    file.chmod(0)
    folder.chmod(0)
    with as_nobody():
        with pytest.raises(InputError, match=r"cannot read .*file: Permission denied; check the permissions"):
            input_file(file, "plan")
        with pytest.raises(InputError, match=r"cannot read .*folder: Permission denied"):
            input_folder(folder, "patient")
        with pytest.raises(InputError, match=r"cannot read .*inner: Permission denied"):
            input_file(folder / "inner", "plan")
    folder.chmod(0o700)


def test_what_was_written_appears_whole_with_ordinary_permissions(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "plan.json"
    with whole_or_nothing(path) as scratch:
        assert scratch.parent == path.parent and scratch.name.endswith("-plan.json")
        scratch.write_text("all")
        assert not path.exists(), "nothing appears before the end"
    assert path.read_text() == "all"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    assert os.listdir(path.parent) == ["plan.json"]


@pytest.mark.parametrize("error", [ValueError("solver"), KeyboardInterrupt()])
def test_an_error_inside_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "plan.json"
    path.write_text("old")
    with pytest.raises(type(error)), whole_or_nothing(path) as scratch:
        scratch.write_text("half")
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["plan.json"]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, full_disk) -> None:
    path = tmp_path / "plan.json"
    path.write_text("old")
    with (
        full_disk(1000),
        pytest.raises(InputError, match=r"cannot write .*plan\.json: File too large; .*make room"),
        whole_or_nothing(path) as scratch,
    ):
        scratch.write_text("x" * 5000)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["plan.json"]


def test_no_permission_to_write(common_folder: Path, as_nobody) -> None:
    common_folder.chmod(0o555)
    message = r"cannot write .*: Permission denied; choose another folder"
    with as_nobody(), pytest.raises(InputError, match=message), whole_or_nothing(common_folder / "plan.json"):
        pass
    with as_nobody(), pytest.raises(InputError, match=message), whole_or_nothing(common_folder / "run" / "plan.json"):
        pass
    assert os.listdir(common_folder) == []


def test_a_file_where_a_folder_is_needed_and_the_reverse(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(InputError, match="cannot write"), whole_or_nothing(tmp_path / "file" / "plan.json"):
        pass
    assert (tmp_path / "file").read_text() == "precious"
    with pytest.raises(InputError, match="it is a folder"), whole_or_nothing(tmp_path):
        pass


def test_a_pipe_or_device_is_not_replaced(tmp_path: Path) -> None:
    """Root could put a file in the place of /dev/null, for every program on the machine."""
    os.mkfifo(tmp_path / "pipe")
    with (
        pytest.raises(InputError, match=r"cannot write .*pipe: it is a device or a pipe; choose another name"),
        whole_or_nothing(tmp_path / "pipe"),
    ):
        pass
    assert (tmp_path / "pipe").is_fifo() and os.listdir(tmp_path) == ["pipe"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied"), "plan: cannot read a/b: Permission denied; check the permissions"),
        (
            UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
            "plan: a/b is not text in UTF-8 (invalid start byte at byte 0); save",
        ),
        (KeyError("x"), "plan: a/b cannot be read, something in it is not as it must be (KeyError: 'x'); mend it or write it anew"),
        (RecursionError("deep\ndeeper"), "plan: a/b cannot be read, something in it is not as it must be (RecursionError: deep\\ndeeper)"),
        (InputError("no energy"), "a/b: no energy"),
        (InputError("in a/b: no energy"), "in a/b: no energy"),
    ],
)
def test_whatever_a_file_makes_its_reader_stumble_over_names_the_file(error: Exception, message: str) -> None:
    @reader("plan")
    def read(path: str) -> None:
        raise error

    for call in (lambda: read("a/b"), lambda: read(path="a/b")):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value).startswith(message)
        assert caught.value is error or caught.value.__cause__ is error


@pytest.mark.parametrize("error", [MemoryError(), UserWarning("as an error"), KeyboardInterrupt()])
def test_what_is_not_the_files_fault_goes_through(error: BaseException) -> None:
    with pytest.raises(type(error)), reading("a/b", "plan"):
        raise error


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out"
    for _ in range(2):  # where nothing is, and where an empty folder is
        with whole_folder(path) as scratch:
            (scratch / "a.txt").write_text("a")
            assert scratch.parent == path.parent and not (path / "a.txt").exists()
        umask = os.umask(0)
        os.umask(umask)
        assert (path / "a.txt").read_text() == "a" and stat.S_IMODE(path.stat().st_mode) == 0o777 & ~umask
        (path / "a.txt").unlink()
    with pytest.raises(RuntimeError), whole_folder(path) as scratch:
        (scratch / "b.txt").write_text("b")
        raise RuntimeError
    assert list(path.parent.iterdir()) == [path] and not any(path.iterdir())


def test_a_folder_that_is_in_use_or_cannot_be(tmp_path: Path, common_folder: Path, as_nobody, full_disk) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=rf"^{tmp_path} is not empty; choose another folder"), whole_folder(tmp_path):
        pass
    with pytest.raises(InputError, match="it is no folder"), whole_folder(tmp_path / "file"):
        pass
    with pytest.raises(InputError, match=r"cannot write .*/file/out: File exists"), whole_folder(tmp_path / "file" / "out"):
        pass
    with (
        full_disk(1000),
        pytest.raises(InputError, match=r"cannot write .*/out: File too large"),
        whole_folder(tmp_path / "out") as scratch,
    ):
        (scratch / "big").write_bytes(bytes(2000))
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "mine"
    common_folder.chmod(0o555)
    with as_nobody(), pytest.raises(InputError, match="Permission denied"), whole_folder(common_folder / "out"):
        pass
