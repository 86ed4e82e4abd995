"""What do several processes bring, and where does the network become the limit?

    python benchmarks/processes.py [--case experiments/cases/hn.toml] [--grid 4] [--spacing 7] [--iterations 30] [--out runs/processes.json]

Plans the case with 1, 2 and 3 processes (torchrun, one thread each), weights alone, then moving spots: seconds of matrices and of the
optimization, peak memory and matrices of each process, what is exchanged in an iteration and how long that takes, waiting for others
included. Checks that all come to the same plan, bit for bit. Behind it, by the formulas of docs/scaling.md from what one process measured:
9, 21, 81 and 90 scenarios (nine for each of ten breathing phases). Some minutes on 2 cores.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from torchimpt.runs.about import about
from torchimpt.runs.folder import write_json
from torchimpt.studies.flags import flags

PROCESSES = (1, 2, 3)
NETWORK = {"1 Gb/s, 0.1 ms": (125e6, 1e-4), "10 Gb/s, 0.03 ms": (1.25e9, 3e-5)}
"""Bytes a second and seconds until the first arrives."""


@dataclass(frozen=True)
class Config:
    """Flags."""

    case: str = "experiments/cases/hn.toml"
    grid: float = 4.0
    spacing: float = 7.0
    setup: float = 3.0
    iterations: int = 30
    out: str = "runs/processes.json"


def planned(config: Config, folder: Path, processes: int, moving: bool) -> dict:
    """The metrics of one plan."""
    out = folder / f"{'moving' if moving else 'weights'}{processes}"
    keys = {
        "dose.grid_mm": config.grid, "spots.spacing_mm": config.spacing, "robustness.setup_mm": config.setup,
        "robustness.range_percent": 3.0, "optimizer.max_iterations": config.iterations, "optimizer.tolerance": 1e-12,
        "dose.check_mm": "off", "output.tensorboard": "false",
    }  # fmt: skip
    if moving:
        keys |= {"joint.scheme": "joint", "joint.warm_iterations": 5}
    launcher = [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    settings = [part for key, value in keys.items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, *launcher, "-m", "torchimpt", "plan", config.case, "--out", str(out), "--threads", "1", "--quiet", *settings]
    ended = subprocess.run(command, capture_output=True, text=True)
    if not (out / "metrics.json").is_file():
        raise SystemExit(ended.stderr)
    metrics = json.loads((out / "metrics.json").read_text())
    alone = {"count": 1, "matrix_bytes": [metrics["matrix"]["bytes"]], "exchanged_bytes": [0], "exchange_s": [0.0]}
    shared = metrics.get("processes", {**alone, "peak_memory_bytes": [metrics["peak_memory_bytes"]]})
    return {**shared, "time_s": metrics["time_s"], "evaluations": metrics["evaluations"], "spots": metrics["spots"]["count"],
            "plan": (out / "plan.json").read_text(), "scenarios": len(metrics["scenarios"])}  # fmt: skip


def line(name: str, told: dict, alone: dict) -> str:
    """A row of the table: peak memory is each process's, up to the end of the optimization."""
    seconds, one = told["time_s"], alone["time_s"]
    return (
        f"{name:22s} {seconds['dose']:7.1f} s {seconds['optimize']:7.1f} s ({seconds['optimize'] / one['optimize']:.2f})   "
        f"{max(told['matrix_bytes']) / 1e6:7.0f} MB {max(told['peak_memory_bytes']) / 1e6:7.0f} MB   "
        f"{max(told['exchanged_bytes']) / told['evaluations'] / 1e3:7.1f} kB {max(told['exchange_s']) / told['evaluations'] * 1e3:6.1f} ms"
    )


def by_formula(alone: dict, scenarios: int, processes: int) -> str:
    """Memory and seconds of an evaluation, from those of one process: the largest share of scenarios counts, and N hops of the gradient."""
    share = -(-scenarios // processes)
    one = alone["scenarios"]
    matrices = alone["matrix_bytes"][0] / one * share
    seconds = alone["time_s"]["optimize"] / alone["evaluations"] / one * share
    gradient = 4 * alone["spots"]
    hops = processes if processes > 1 else 0
    over = "  ".join(f"{name}: {1e3 * hops * 2 * (gradient / rate + delay):6.2f} ms" for name, (rate, delay) in NETWORK.items())
    return f"{scenarios:4d} scenarios {processes:3d} processes  {matrices / 1e9:6.2f} GB  {1e3 * seconds:8.1f} ms an evaluation   {over}"


def main(config: Config) -> None:
    """Measure, print, write."""
    where = about()
    found: dict[str, dict] = {}
    print(json.dumps(where))
    print(f"{'':22s} {'matrices':>9s} {'optimization (of one)':>17s}   {'matrices':>10s} {'peak':>10s}   exchanged an evaluation")
    with tempfile.TemporaryDirectory() as scratch:
        for moving in (False, True):
            for processes in PROCESSES:
                name = f"{'moving' if moving else 'weights'}, {processes} process{'es' * (processes > 1)}"
                found[name] = planned(config, Path(scratch), processes, moving)
                alone = found[f"{'moving' if moving else 'weights'}, 1 process"]
                print(line(name, found[name], alone), "" if found[name]["plan"] == alone["plan"] else "ANOTHER PLAN", flush=True)
    alone = found["weights, 1 process"]
    print(f"By formula, weights, {alone['spots']} spots; the gradient's way through the network beside it:")
    for scenarios in (9, 21, 81, 90):
        for processes in (1, 3, 9, 27):
            if processes <= scenarios:
                print(by_formula(alone, scenarios, processes))
    kept = {name: {key: value for key, value in told.items() if key != "plan"} for name, told in found.items()}
    write_json(Path(config.out), {"about": where, "config": asdict(config), "measured": kept})


if __name__ == "__main__":
    main(flags(Config, __doc__))
