"""What the benchmarks share: repeats with their spread, this machine's read bandwidth, cases built."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from torchimpt.case import load_case
from torchimpt.planning.build import PlanningProblem, build
from torchimpt.planning.load import set_up
from torchimpt.watch import Progress

CASES = Path(__file__).resolve().parents[1] / "experiments" / "cases"
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
"""Patients and machines beside a developer's checkout; only phantoms are part of the project."""


@dataclass(frozen=True)
class Repeats:
    """Seconds of equal work."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of the seconds."""
        return statistics.median(self.seconds)

    def rate(self, amount: float) -> tuple[float, float, float]:
        """Median, least and most of `amount` per second."""
        rates = [amount / s for s in self.seconds]
        return amount / self.median, min(rates), max(rates)


def repeat(work: Callable[[], object], times: int) -> Repeats:
    """Time `work` so many times; call it once before where there is anything to compile."""
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin)
    return Repeats(tuple(taken))


def read_bandwidth(times: int, n_bytes: int = 2**29) -> tuple[float, float, float]:
    """Median, least and most GB/s of reading memory that no cache holds: a sum, which reads and does next to nothing else."""
    values = torch.ones(n_bytes // 4)
    values.sum()
    return repeat(values.sum, times).rate(n_bytes / 1e9)


def built_case(name: str, overrides: list[str]) -> PlanningProblem:
    """A case of `experiments/cases`, or a case file, built as `torchimpt plan` does."""
    path = CASES / f"{name}.toml" if (CASES / f"{name}.toml").is_file() else Path(name)
    case = load_case(path, overrides)
    return build(case, set_up(case, "cpu"), Progress(enabled=False), {})
