"""What every reader and writer of files needs: errors that name the path, and whole-or-nothing writing."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from torchimpt.checks import InputError, nearest

P = ParamSpec("P")
T = TypeVar("T")


@contextmanager
def reading(path: str | os.PathLike, what: str) -> Iterator[None]:
    """The border to files that others wrote: whatever one of them makes its reader stumble over is an `InputError` that names the file.

    A reader checks what it can say something helpful about; what it did not foresee (a field of another kind, an empty array, an encoding)
    ends here, with the error itself as the cause. An `InputError` goes through, with the path in front where it does not name it.

    Parameters
    ----------
    path
        The file or folder.
    what
        What it should hold, e.g. `"plan"`.
    """
    try:
        yield
    except InputError as error:
        if str(path) in str(error):
            raise
        raise InputError(f"{path}: {error}") from error
    except (MemoryError, Warning):
        raise
    except OSError as error:
        raise InputError(f"{what}: cannot read {path}: {error.strerror or error}; check the permissions") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{what}: {path} is not text in UTF-8 ({error.reason} at byte {error.start}); save it anew as UTF-8") from error
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise InputError(
            f"{what}: {path} cannot be read, something in it is not as it must be ({reason}); mend it or write it anew"
        ) from error


def reader(what: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a function that reads a file or folder, its first argument, with `reading`."""

    def decorate(read: Callable[P, T]) -> Callable[P, T]:
        @wraps(read)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
            with reading(str(args[0] if args else next(iter(kwargs.values()))), what):
                return read(*args, **kwargs)

        return guarded

    return decorate


def input_file(path: str | os.PathLike, what: str) -> Path:
    """`path` if it is a readable file, else an error that says what was looked for and what lies there instead."""
    path, mode = _look(path, what, "file")
    if stat.S_ISDIR(mode):
        raise InputError(f"{what}: {path} is a folder, a file is needed")
    if not stat.S_ISREG(mode):
        raise InputError(f"{what}: {path} is a device or a pipe, a file is needed")
    with reading(path, what), path.open("rb"):
        return path


def input_folder(path: str | os.PathLike, what: str) -> Path:
    """`path` if it is a readable folder, else an error that says what was looked for and what lies there instead."""
    path, mode = _look(path, what, "folder")
    if not stat.S_ISDIR(mode):
        raise InputError(f"{what}: {path} is a file, a folder is needed")
    with reading(path, what), os.scandir(path):
        return path


def _look(path: str | os.PathLike, what: str, kind: str) -> tuple[Path, int]:
    """The path and its mode, or an error when nothing is there."""
    path = Path(path)
    with reading(path, what):
        try:
            return path, path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            pass
    raise InputError(f"{what}: no {kind} {path}{_beside(path)}")


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
        if path.exists() and not path.is_file():  # root could put a file in the place of /dev/null
            raise InputError(f"cannot write {path}: it is a {'folder' if path.is_dir() else 'device or a pipe'}; choose another name")
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".partial-", suffix=f"-{path.name}", dir=path.parent)
        os.close(handle)
        scratch = Path(name)
        yield scratch
        with open(scratch, "rb+") as file:
            os.fsync(file.fileno())
        scratch.chmod(0o666 & ~_umask())
        os.replace(scratch, path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        if scratch is not None:
            scratch.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary folder beside `path` to write files into; it becomes `path` only when the block ends well.

    What lies at `path` must be an empty folder, or nothing. Missing parent folders are made.
    """
    path = Path(os.path.abspath(path))
    scratch: Path | None = None
    try:
        check_free(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".partial-", suffix=f"-{path.name}", dir=path.parent))
        yield scratch
        for name in scratch.iterdir():
            with open(name, "rb+") as file:
                os.fsync(file.fileno())
        scratch.chmod(0o777 & ~_umask())
        os.replace(scratch, path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def check_free(path: str | os.PathLike) -> None:
    """Raise where something lies at `path` that is no empty folder: what `whole_folder` will find, before long work for it."""
    path = Path(path)
    try:
        if path.exists() and not path.is_dir():
            raise InputError(f"cannot write into {path}: it is no folder; choose another name")
        if path.exists() and any(path.iterdir()):
            raise InputError(f"{path} is not empty; choose another folder, or empty it")
    except OSError as error:
        raise _unwritable(path, error) from error


def _umask() -> int:
    """The process's mask of permissions, which can only be read by setting it."""
    umask = os.umask(0)
    os.umask(umask)
    return umask


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(f"cannot write {path}: {error.strerror or error}; choose another folder, or make room and set its permissions")
