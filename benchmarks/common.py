"""What the benchmarks share: the circumstances, timing with spread, targets with their outcome."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from torchimpt.planning.runfolder import commit, processor, versions, write_text


def circumstances() -> dict:
    """Machine, versions, commit, threads and the load when it began; printed first, stored with the results."""
    found = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "commit": commit(),
        "versions": versions(),
    }
    print(f"{found['processor']}, {found['cores']} cores, {found['threads']} threads, load {found['load']}")
    print(", ".join(f"{name} {version}" for name, version in found["versions"].items()))
    return found


def timed(function: Callable[[], object], repeats: int = 7) -> dict[str, float]:
    """Seconds of the first call, with any compilation, and minimum, median and maximum of the following ones."""
    seconds = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - begin)
    rest = seconds[1:]
    return {"first": seconds[0], "min": min(rest), "median": statistics.median(rest), "max": max(rest)}


def row(label: str, unit: str, amount: float, seconds: dict[str, float], target: float | None = None) -> dict:
    """A rate `amount / seconds` with its spread, printed with the target's outcome."""
    rates = {"median": amount / seconds["median"], "low": amount / seconds["max"], "high": amount / seconds["min"]}
    outcome = "" if target is None else f"   aim {target:g}: {'met' if rates['median'] >= target else 'missed'}"
    print(f"{label:44s} {rates['median']:9.3g} ({rates['low']:.3g} to {rates['high']:.3g}) {unit}{outcome}")
    return {"label": label, "unit": unit, **rates, "target": target, "seconds": seconds}


def store(path: Path, result: dict) -> None:
    """Write the results as JSON."""
    write_text(path, json.dumps(result, indent=1) + "\n")
    print(f"Wrote {path}")
