"""What does a sweep save over as many plans?

    python benchmarks/sweep.py [--case experiments/cases/hn.toml] [--grid 4] [--spacing 7] [--members 8] [--iterations 40]

A sweep over the weight of the first objective, and one plan of each weight, every command in a process of its own with one thread: CPU
seconds, which other programs on the machine change little, peak memory, and how far the objectives are apart. Some minutes.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from torchimpt.runs.about import about
from torchimpt.runs.folder import write_json
from torchimpt.studies.flags import flags


@dataclass(frozen=True)
class Config:
    """Flags."""

    case: str = "experiments/cases/hn.toml"
    grid: float = 4.0
    spacing: float = 7.0
    members: int = 8
    iterations: int = 40
    out: str = "runs/sweep.json"


def cpu_seconds(*arguments: str) -> float:
    """Of a command; how it ends is for its files to tell."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "torchimpt", *arguments, "--threads", "1", "--quiet"], capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(config: Config) -> None:
    """Measure, print, write."""
    where = about()
    print(json.dumps(where))
    keys = {
        "dose.grid_mm": config.grid, "spots.spacing_mm": config.spacing, "optimizer.max_iterations": config.iterations,
        "optimizer.tolerance": 1e-9, "dose.check_mm": "off", "output.tensorboard": "false",
    }  # fmt: skip
    settings = [part for key, value in keys.items() for part in ("--set", f"{key}={value}")]
    weights = [200 * (i + 1) for i in range(config.members)]
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        over = f"objective.0.weight={','.join(map(str, weights))}"
        together = cpu_seconds("sweep", config.case, "--over", over, "--out", str(out / "sweep"), *settings)
        rows = json.loads((out / "sweep/sweep.json").read_text())["members"]
        alone, apart, peak = 0.0, 0.0, 0
        for weight, row in zip(weights, rows, strict=True):
            alone += cpu_seconds("plan", config.case, "--set", f"objective.0.weight={weight}", "--out", str(out / str(weight)), *settings)
            told = json.loads((out / str(weight) / "metrics.json").read_text())
            apart = max(apart, abs(row["objective"] / told["objective"]["final"] - 1.0))
            peak = max(peak, told["peak_memory_bytes"])
    most = max(row["peak_memory_bytes"] for row in rows)
    print(
        f"{config.members} members: {together:.0f} CPU s, {most / 1e9:.2f} GB as a sweep; {alone:.0f} s, {peak / 1e9:.2f} GB as plans "
        f"({together / alone:.2f}); objectives {100 * apart:.2g} % apart at most after {config.iterations} iterations"
    )
    numbers = {"together_s": together, "alone_s": alone, "together_bytes": most, "alone_bytes": peak, "apart": apart}
    write_json(Path(config.out), {"about": where, "config": asdict(config), **numbers})


if __name__ == "__main__":
    main(flags(Config, __doc__))
