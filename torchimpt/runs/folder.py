"""What a run leaves behind: the files of the run folder, of one run at a time, `metrics.json` last.

A command holds the folder's lock as long as it runs. It writes nothing until its input is known to be good; then all that an earlier run
left goes, and only what is this run's own is written. So whenever a run ends, by an error, an interrupt or a kill, the folder holds the
earlier run whole, or nothing but the new one's files.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import platform
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from torchimpt.case import Case
from torchimpt.checks import InputError
from torchimpt.files import whole_or_nothing
from torchimpt.runs.about import commit, device_name, processor, versions

LOCK = ".lock"
EVALUATION = "evaluation"
"""Where `torchimpt evaluate` writes inside a run folder, unless it is told otherwise."""

RESULTS = (
    r"metrics\.json",
    r"report\.html",
    r"(letd_)?dvh\.csv",
    r"letd\.mha",
    r"dose(_beam\d+|_([xyz]|range)[+-].*)?\.mha",
    r"plan\.json",
)
"""Patterns of the names of a run's results, in the order in which they go when another run takes the folder."""

STATE = (r"checkpoint\.pt", r"history\.jsonl")
"""What `--resume` goes on from."""

log = logging.getLogger(__name__)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with whole_or_nothing(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def plain(value: Any) -> Any:
    """The value for JSON: NaN and infinity, which JSON lacks, become None."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    write_text(path, json.dumps(plain(value), indent=1) + "\n")


@contextmanager
def open_run(folder: Path, case: Case, device: torch.device, *, resume: bool = False) -> Iterator[Callable[[], None]]:
    """Lock the run folder, and give the function that starts writing into it.

    Parameters
    ----------
    folder
        Made where it is missing, and taken away again when the run ends without having written anything.
    case, device
        What `case.toml` and `run.json` tell.
    resume
        Whether the earlier run's checkpoint, history, TensorBoard events and log are this run's own.

    Yields
    ------
    `begin`, to be called when the input is known to be good, and before anything is written: it takes away what an earlier run left, writes
    `case.toml` and `run.json`, and lets the log, which has waited, into `log.txt`. Called again it does nothing.
    """
    about = {
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": versions(),
        "commit": commit(),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.platform()},
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "seed": case.seed,
    }
    try:
        with locked(folder):
            logger, handler = logging.getLogger("torchimpt"), _RunLog(folder / "log.txt", anew=not resume)
            if logger.level == logging.NOTSET:
                logger.setLevel(logging.INFO)

            def begin() -> None:
                if handler.waiting is None:
                    return
                _clear(folder, keep_state=resume)
                write_text(folder / "case.toml", case.to_toml())
                write_json(folder / "run.json", about)
                handler.begin()

            logger.addHandler(handler)
            try:
                yield begin
            except Exception as error:
                if not isinstance(error, InputError):  # no one else keeps it
                    handler.handle(logger.makeRecord(log.name, logging.ERROR, __file__, 0, "the run ends", (), sys.exc_info()))
                raise
            finally:
                logger.removeHandler(handler)
                handler.close()
    except OSError as error:
        raise InputError(f"cannot finish the run in {folder}: {error.strerror or error}; make room, or choose another --out") from error


def is_result(path: Path, folder: Path) -> bool:
    """Whether a run that is started in `folder` takes `path` away."""
    path, folder = path.resolve(), folder.resolve()
    return path.parent in (folder, folder / EVALUATION) and any(re.fullmatch(pattern, path.name) for pattern in (*RESULTS, *STATE))


def _clear(folder: Path, *, keep_state: bool = False) -> None:
    """Take away what an earlier run left, `metrics.json` first and `case.toml` never: a folder that is left halfway is an unfinished run's.

    Only names that are a run's own go; other files and folders stay.
    """
    with os.scandir(folder) as entries:
        names = {entry.name for entry in entries}
    for name in (name for name in names if name.startswith(".partial-")):
        (folder / name).unlink()
    order = RESULTS if keep_state else (*RESULTS, *STATE)
    for name in (name for pattern in order for name in sorted(names) if re.fullmatch(pattern, name)):
        (folder / name).unlink()
    if "tensorboard" in names and not keep_state:
        for path in (folder / "tensorboard").glob("events.out.tfevents.*"):
            path.unlink()
    if EVALUATION in names and (folder / EVALUATION / "run.json").is_file():
        with locked(folder / EVALUATION):
            _clear(folder / EVALUATION)
            for name in ("case.toml", "run.json", "log.txt"):
                (folder / EVALUATION / name).unlink(missing_ok=True)
        with suppress(OSError):  # it may hold files of others
            (folder / EVALUATION).rmdir()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; an error where another process does. The folder is made where it is missing, and goes if it stays empty.

    The lock is the system's, on the open file `.lock`: it ends with its process, however that ends. The file's content is for the message.
    """
    path, made = folder / LOCK, _make(folder)
    handle = _take(folder, path)
    try:
        with suppress(OSError):  # a disk may be full
            os.truncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(handle)
        for parent in made:
            with suppress(OSError):  # not empty: the run has written
                parent.rmdir()


def _make(folder: Path) -> list[Path]:
    """Make the folder; returns the folders that were made, the innermost first."""
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    return missing


def _unwritable(folder: Path, error: OSError) -> InputError:
    return InputError(f"cannot write the run folder {folder}: {error.strerror}; choose another --out")


def _take(folder: Path, path: Path) -> int:
    """Open the lock's file and lock it."""
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise _unwritable(folder, error) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
            os.close(handle)  # its owner has ended and taken it away since it was opened
        except FileNotFoundError:
            os.close(handle)
        except BlockingIOError:
            owner = os.read(handle, 200).decode("utf-8", "replace") or "another process"
            os.close(handle)
            raise InputError(f"{folder} is in use: {owner} writes there; wait for its end, or choose another --out") from None
        except OSError as error:
            log.warning("%s cannot be locked (%s); let no other command write there", folder, error.strerror)
            return handle


class _RunLog(logging.FileHandler):
    """The run's log: it waits for `begin`. One that cannot be written, as on a full disk, ends the run; the standard handler would go on.

    Attributes
    ----------
    waiting
        Records so far; None once the file is open.
    """

    def __init__(self, path: Path, *, anew: bool) -> None:
        super().__init__(path, mode="w" if anew else "a", encoding="utf-8", errors="backslashreplace", delay=True)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self.waiting: list[logging.LogRecord] | None = []
        self._thread = threading.get_ident()

    def begin(self) -> None:
        """Open the file and write what has waited."""
        waiting, self.waiting = self.waiting or [], None
        self.stream = self._open()
        for record in waiting:
            self.handle(record)

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread != self._thread:  # another run's, of a sweep
            return
        if self.waiting is not None:
            self.waiting.append(record)
        else:
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        raise
