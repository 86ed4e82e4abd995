"""A run folder as seen from outside while the run goes on: what its files tell so far. Nothing is locked or written."""

from __future__ import annotations

import json
import os
import re
import socket
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from torchimpt.checks import InputError
from torchimpt.runs.folder import LOCK

_LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d [\d:,]+ (?:INFO|WARNING|ERROR) (.*)")


@dataclass
class RunState:
    """What a run has come to.

    Attributes
    ----------
    title
        Of the case.
    stage
        The log's last line.
    rows
        Of `history.jsonl`: `iteration`, `value`, `seconds`, `terms`, and now and then `goals`.
    goals
        The last ones of `rows`.
    most
        Iterations that the case allows.
    started
        When, seconds of the epoch; None where it is not known.
    running
        Whether a process holds the folder.
    metrics
        `metrics.json` once the run is complete.
    """

    title: str = ""
    stage: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)
    goals: list[dict[str, Any]] = field(default_factory=list)
    most: int | None = None
    started: float | None = None
    running: bool = False
    metrics: Mapping[str, Any] | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more will come: the run is complete, or its process has gone."""
        return not self.running

    @property
    def elapsed(self) -> float | None:
        """Seconds since the start; of a run that is over None."""
        return None if self.started is None or self.over else max(0.0, time.time() - self.started)

    @property
    def left(self) -> float | None:
        """Seconds that the remaining iterations would take at the pace of the last ones, all that the case allows; None before two."""
        recent = self.rows[-20:]
        if self.most is None or len(recent) < 2:
            return None
        pace = (recent[-1]["seconds"] - recent[0]["seconds"]) / (recent[-1]["iteration"] - recent[0]["iteration"])
        return max(0.0, pace * (self.most - recent[-1]["iteration"]))


class Following:
    """Reads a run folder again and again, of its history only what is new.

    Parameters
    ----------
    folder
        Of a run that goes on, is over, or is about to start; it need not be there yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._at, self._rest, self._rows = 0, b"", []  # type: ignore[var-annotated]

    @property
    def there(self) -> bool:
        """Whether a command has been in the folder."""
        return any((self.folder / name).is_file() for name in (LOCK, "run.json", "metrics.json"))

    def look(self) -> RunState:
        """The run as it is now. A file that is being replaced at this moment counts as missing."""
        case, about = _toml(self.folder / "case.toml"), _json(self.folder / "run.json")
        self._read_history()
        running = _held(self.folder / LOCK)  # before metrics.json, which is written last: no run that completes now looks broken off
        metrics = _json(self.folder / "metrics.json")
        # a run that has not begun to write leaves an earlier one's files as they are
        rows = [] if running and metrics else list(self._rows)
        goals: list[dict[str, Any]] = next((row["goals"] for row in reversed(rows) if row.get("goals")), [])
        most = case.get("optimizer", {}).get("max_iterations")
        title = case.get("title") or self.folder.name
        return RunState(title, self._stage(), rows, goals, most, _started(about), running, metrics or None)

    def _read_history(self) -> None:
        path = self.folder / "history.jsonl"
        try:
            if path.stat().st_size < self._at:  # another run, or this one resumed from its checkpoint
                self._at, self._rest, self._rows = 0, b"", []
            with path.open("rb") as file:
                file.seek(self._at)
                new = file.read()
        except FileNotFoundError:
            self._at, self._rest, self._rows = 0, b"", []
            return
        self._at += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        for number, line in enumerate(lines, start=len(self._rows) + 1):
            try:
                row = json.loads(line)
                self._rows.append(
                    {**row, "iteration": int(row["iteration"]), "value": float(row["value"]), "seconds": float(row["seconds"])}
                )
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise InputError(f"{path}: line {number} is no row of a history") from error

    def _stage(self) -> str:
        """The last line of the log, which is short: its end is read."""
        try:
            with (self.folder / "log.txt").open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
                lines = file.read().decode("utf-8", "replace").splitlines()
        except OSError:
            return ""
        return next((found[1] for line in reversed(lines) if (found := _LOG_LINE.match(line))), "")


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {type(error).__name__}; the folder cannot be followed") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} is damaged: it holds no table; the folder cannot be followed")
    return value


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}; the folder cannot be followed") from error


def _started(about: Mapping[str, Any]) -> float | None:
    try:
        return datetime.strptime(about["started"], "%Y-%m-%dT%H:%M:%S%z").timestamp()
    except (KeyError, TypeError, ValueError):
        return None


def _held(path: Path) -> bool:
    """Whether the process that the lock's file names lives. The lock itself is not tried: trying it could turn a run away."""
    try:
        owner = re.fullmatch(r"process (\d+) on (.*)", path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return False
    if owner is None or owner[2] != socket.gethostname():  # just being written, or on a machine whose processes cannot be seen
        return True
    try:
        os.kill(int(owner[1]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives, and is another user's
        return True
    return True
