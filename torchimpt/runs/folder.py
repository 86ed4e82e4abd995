"""What a run leaves behind: the files of the run folder, `metrics.json` last."""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from torchimpt.case import Case
from torchimpt.checks import InputError
from torchimpt.files import whole_or_nothing
from torchimpt.runs.about import commit, processor, versions


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
def open_run(folder: Path, case: Case, device: torch.device) -> Iterator[None]:
    """Make the run folder ready: an earlier `metrics.json` goes, the case and the circumstances are written, the log is kept."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot write the run folder {folder}: {error.strerror}; choose another --out") from error
    write_text(folder / "case.toml", case.to_toml())
    write_json(
        folder / "run.json",
        {
            "command": sys.argv,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "versions": versions(),
            "commit": commit(),
            "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.platform()},
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "seed": case.seed,
        },
    )
    logger = logging.getLogger("torchimpt")
    try:
        handler = _RunLog(folder / "log.txt", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.INFO)
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            handler.close()
    except OSError as error:
        raise InputError(f"cannot finish the run in {folder}: {error.strerror or error}; make room, or choose another --out") from error


class _RunLog(logging.FileHandler):
    """A log that cannot be written, as on a full disk, ends the run; the standard handler would print tracebacks and go on."""

    def handleError(self, record: logging.LogRecord) -> None:
        raise
