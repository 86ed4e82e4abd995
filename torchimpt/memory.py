"""How much memory is free, and how much this process has used at most."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import torch

from torchimpt.checks import InputError


def available_memory(device: torch.device | str = "cpu") -> int:
    """Bytes that can still be allocated on the device, as the operating system or the driver tells; of the host's memory an equal part,
    where a launcher has started several processes on it.
    """
    device = torch.device(device)
    if device.type == "cuda":
        # what torch has taken from the driver and holds in reserve is free, too
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserve
    free = _system_memory()
    limit = _cgroup_headroom()
    here = os.environ.get("LOCAL_WORLD_SIZE", "")
    return (free if limit is None else min(free, limit)) // max(1, int(here) if here.isdigit() else 1)


def check_memory(what: str, size: float, device: torch.device | str, advice: str) -> None:
    """Raise when `size` bytes, which `what` takes, are not free on the device; `advice` says what the user can do."""
    free = available_memory(device)
    if size > free:
        raise InputError(f"{what} would take {size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free{_where(device)}; {advice}")


def _where(device: torch.device | str) -> str:
    device = torch.device(device)
    return "" if device.type == "cpu" else f" on {device} (--device auto leaves to the CPU what a GPU has no room for)"


def peak_memory() -> int:
    """Largest resident size of this process so far, bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _system_memory() -> int:
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cgroup_headroom() -> int | None:
    """What a container's limit leaves (cgroup v2), or None without a limit."""
    root = Path("/sys/fs/cgroup")
    try:
        limit, used = (root / "memory.max").read_text().strip(), int((root / "memory.current").read_text())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else int(limit) - used
