"""What a run or a measurement was made with: machine, commit, versions."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from torchimpt.version import __version__

_PACKAGES = ("torch", "numpy", "scipy", "numba", "pydantic", "SimpleITK")


def versions() -> dict[str, str]:
    """Name to version of what computed: torchimpt, Python, the packages."""
    return {"torchimpt": __version__, "python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


def rounding() -> dict[str, str]:
    """What decides how sums of a solver are rounded, on this machine."""
    known = versions()
    return {
        "processor": torch.backends.cpu.get_cpu_capability(),
        **{f"{name} version": known[name] for name in ("torchimpt", "torch", "numpy")},
    }


def about() -> dict[str, Any]:
    """What a measurement was made with: machine, its load, threads, commit and versions."""
    return {
        "processor": processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "load at the start": round(os.getloadavg()[0], 2), "commit": commit(), **versions(),
    }  # fmt: skip


def processor() -> str:
    """The CPU's name as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    """The GPU's name, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def commit() -> str | None:
    """The commit of the checkout that the package is run from, or None outside one."""
    here = Path(__file__).resolve().parent
    try:
        asked = subprocess.run(["git", "-C", os.fspath(here), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return asked.stdout.strip() or None


def remake() -> list[str]:
    """Lines for a shell: the commit to check out, where there is one, and the command that runs."""
    program, *arguments = sys.argv
    own = Path(program).name in ("torchimpt", "__main__.py")
    command = shlex.join([*(["torchimpt"] if own else ["python", program]), *arguments])
    found = commit()
    return [command] if found is None else [f"git checkout {found}", command]
