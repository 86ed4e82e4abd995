"""What every reader and writer of files needs: errors that name the path, and whole-or-nothing writing."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torchimpt.checks import InputError, nearest


def input_file(path: str | os.PathLike, what: str) -> Path:
    """`path` if it is a readable file, else an error that says what was looked for and what lies there instead."""
    path, mode = _look(path, what, "file")
    if stat.S_ISDIR(mode):
        raise InputError(f"{what}: {path} is a folder, a file is needed")
    if not stat.S_ISREG(mode):
        raise InputError(f"{what}: {path} is a device or a pipe, a file is needed")
    with _readable(path, what), path.open("rb"):
        return path


def input_folder(path: str | os.PathLike, what: str) -> Path:
    """`path` if it is a readable folder, else an error that says what was looked for and what lies there instead."""
    path, mode = _look(path, what, "folder")
    if not stat.S_ISDIR(mode):
        raise InputError(f"{what}: {path} is a file, a folder is needed")
    with _readable(path, what), os.scandir(path):
        return path


def _look(path: str | os.PathLike, what: str, kind: str) -> tuple[Path, int]:
    """The path and its mode, or an error when nothing is there."""
    path = Path(path)
    with _readable(path, what):
        try:
            return path, path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            pass
    raise InputError(f"{what}: no {kind} {path}{_beside(path)}")


@contextmanager
def _readable(path: Path, what: str) -> Iterator[None]:
    """Turn the system's refusal to read into an error that names the path."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{what}: cannot read {path}: {error.strerror}; check the permissions") from error


def _beside(path: Path) -> str:
    """The name in the same folder that is most like the missing one, or the nearest parent that exists."""
    folder = path.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if folder != path.parent:
        return f" (the path exists up to {folder.resolve()})"
    try:
        return nearest(path.name, os.listdir(folder))
    except OSError:
        return ""


@contextmanager
def whole_or_nothing(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes the place of `path` only when the block ends well.

    A reader so never sees half a file, and an earlier file of that name outlives a failed write. The temporary name ends
    in `path`'s own, because writers choose the format by it. Missing parent folders are made.
    """
    path = Path(path)
    scratch: Path | None = None
    try:
        if path.is_dir():
            raise InputError(f"cannot write {path}: it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".partial-", suffix=f"-{path.name}", dir=path.parent)
        os.close(handle)
        scratch = Path(name)
        yield scratch
        with open(scratch, "rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        scratch.chmod(0o666 & ~umask)
        os.replace(scratch, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"cannot write {path}: {reason}; choose another folder, or make room and set its permissions") from error
    finally:
        if scratch is not None:
            scratch.unlink(missing_ok=True)
