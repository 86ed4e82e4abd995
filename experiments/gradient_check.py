"""What does the hand-derived gradient cost, and give, against torch's autograd through the same formula?

    python experiments/gradient_check.py [--sizes 1000x50,10000x500] [--repeats 7] [--out runs/gradient_check]

Dose of two crossing beams in a block of water and its gradient with respect to every spot's weight and position, by
`PencilBeamDose(gradient="analytic")` and by `gradient="autograd"` (plain torch, every voxel-spot pair stored), over problem sizes
(voxels x spots). Per size: the largest relative difference of dose, weight and position gradients in float64; seconds of one dose with its
gradient in float32, the median and the range of the repeats; and the memory that it takes at its peak beyond what both have in common (CT,
ray tracing, tables). Every number is measured in a process of its own. For the memory that process first fills up what it has free to the
highest mark it has reached so far, so that `ru_maxrss` moves by what the gradient takes. Compilation and ray tracing come before the clock,
and so does one evaluation, whose memory the repeats use again. Writes `results.json` and `table.md`. Two to three minutes on 2
cores, up to 8 GB; a size whose pairs would not fit in memory is left out, and the table says so.

What came out (see the table that it prints): equal to rounding, 1e-15; the analytic gradient looks at the pairs within the cut-off only,
keeps none, and its advantage grows with the problem.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import torchimpt as ti
from torchimpt.dose.scenarios import PAIR_BYTES
from torchimpt.memory import available_memory
from torchimpt.runs.about import about
from torchimpt.runs.folder import write_json, write_text

FASTER, SMALLER = 3.0, 5.0
"""The aim: analytic at least three times faster, at most a fifth of the memory."""

RETURN_FREED = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""Freed blocks go back to the system at once, so that the peak is what is in use."""

KEEP_FREED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**36)}
"""Freed blocks stay with the process, so that repeats fault no new pages: several times faster for autograd, which allocates most."""


@dataclass(frozen=True)
class Config:
    """Flags."""

    sizes: str = "1000x50,1000x500,10000x50,10000x500,10000x2000,100000x50,100000x500,100000x2000"
    repeats: int = 7
    out: str = "runs/gradient_check"
    seed: int = 1
    threads: int = 0


@dataclass(frozen=True)
class Task:
    """What one process measures."""

    voxels: int
    spots: int
    gradient: str
    measure: str
    repeats: int
    seed: int
    threads: int


def problem(task: Task, dtype: torch.dtype) -> tuple[ti.PencilBeamDose, ti.Spots, torch.Tensor]:
    """A block of water of about so many voxels, exactly so many spots from two sides, and a residual."""
    random = torch.Generator().manual_seed(task.seed)
    patient = ti.phantoms.water(spacing=150.0 / round(task.voxels ** (1 / 3)))
    beams, machine = [ti.Beam(gantry=0.0), ti.Beam(gantry=70.0)], ti.machine.generic()
    placed = ti.place_spots(patient, machine, beams, "Target", 3.0, layer_spacing=5.0, dtype=dtype)
    chosen = torch.zeros(placed.n_spots, dtype=torch.bool)
    chosen[torch.randperm(placed.n_spots, generator=random)[: task.spots]] = True
    spots = placed.subset(chosen)
    with torch.no_grad():
        spots.weight.copy_(torch.rand(spots.n_spots, generator=random, dtype=dtype) + 0.5)
        spots.position.add_(torch.rand(spots.n_spots, 2, generator=random, dtype=dtype) - 0.5)
    dose = ti.PencilBeamDose(patient, machine, spots.beams, gradient=task.gradient)
    dose.operator(spots)
    residual = torch.randn(patient.grid.n_voxels, generator=random, dtype=dtype)
    return dose, spots, residual


def evaluate(dose: ti.PencilBeamDose, spots: ti.Spots, residual: torch.Tensor) -> dict[str, torch.Tensor]:
    """Dose, and the gradient of `sum_v r_v D_v`."""
    spots.zero_grad()
    values = dose(spots)
    values.backward(residual)
    return {"dose": values.detach(), "weight": spots.weight.grad.clone(), "position": spots.position.grad.clone()}


def errors(task: Task) -> dict:
    """Largest difference of the two ways, relative to the largest value, float64."""
    dose, spots, residual = problem(task, torch.float64)
    ours = evaluate(dose, spots, residual)
    dose.gradient = "autograd"
    oracle = evaluate(dose, spots, residual)
    return {name: float((ours[name] - oracle[name]).abs().max() / oracle[name].abs().max()) for name in oracle}


def seconds(task: Task) -> dict:
    """Seconds of every repeat, float32, after one that is not counted."""
    dose, spots, residual = problem(task, torch.float32)
    evaluate(dose, spots, residual)
    taken = []
    for _ in range(task.repeats):
        begin = time.perf_counter()
        evaluate(dose, spots, residual)
        taken.append(time.perf_counter() - begin)
    return {"seconds": taken, "voxels": len(residual), "spots": spots.n_spots}


def memory(task: Task) -> dict:
    """Bytes that one evaluation takes at its peak, float32, beyond the problem itself."""
    dose, spots, residual = problem(task, torch.float32)
    few = spots.subset(torch.arange(spots.n_spots) < 2)  # loads and compiles what there is to load and compile
    evaluate(ti.PencilBeamDose(dose.patient, dose.machine, few.beams, gradient=task.gradient), few, residual)
    ctypes.CDLL(None).malloc_trim(0)
    reached = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    now = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    ballast = torch.ones(max(0, reached - now) // 4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    evaluate(dose, spots, residual)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tables = dose.operator(spots).n_bytes
    return {"bytes": 1024 * (after - before), "tables": tables, "ballast": ballast.numel() * 4}


def child(task: Task) -> dict:
    """Measure in a process of its own, with glibc's allocator set for what is measured."""
    allocator = RETURN_FREED if task.measure == "memory" else KEEP_FREED
    command = [sys.executable, __file__, "--task", json.dumps(asdict(task))]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **allocator}, check=False)
    if done.returncode:
        raise RuntimeError(f"{task}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(config: Config, voxels: int, spots: int) -> dict:
    """All numbers of one size; None for autograd's where its pairs would not fit."""
    row: dict = {"voxels": voxels, "spots": spots}
    pairs = voxels * spots
    fits = pairs * PAIR_BYTES < 0.7 * available_memory()

    def ask(gradient: str, what: str) -> dict:
        return child(Task(voxels, spots, gradient, what, config.repeats, config.seed, config.threads))

    row["errors"] = ask("analytic", "errors") if 2 * pairs * PAIR_BYTES < 0.7 * available_memory() else None
    for gradient in ("analytic", "autograd"):
        if gradient == "analytic" or fits:
            row[gradient] = ask(gradient, "seconds") | ask(gradient, "memory")
            row[gradient]["median"] = statistics.median(row[gradient]["seconds"])
    if fits:
        # a page is the least that can be seen
        row["faster"] = row["autograd"]["median"] / row["analytic"]["median"]
        row["smaller"] = row["autograd"]["bytes"] / max(row["analytic"]["bytes"], 4096)
        row["met"] = row["faster"] >= FASTER and row["smaller"] >= SMALLER
    return row


def cells(row: dict) -> list[str]:
    """One line of the table."""

    def spread(gradient: str) -> str:
        if gradient not in row:
            return "would not fit"
        taken = [1e3 * t for t in row[gradient]["seconds"]]
        return f"{1e3 * row[gradient]['median']:.3g} ({min(taken):.3g} to {max(taken):.3g})"

    error = "not run" if row["errors"] is None else " / ".join(f"{row['errors'][name]:.1e}" for name in ("dose", "weight", "position"))
    sizes = [f"{row[g]['bytes'] / 1e6:.1f}" if g in row else "would not fit" for g in ("analytic", "autograd")]
    ratios = [f"{row['faster']:.1f}", f"{row['smaller']:.0f}", "met" if row["met"] else "missed"] if "faster" in row else ["", "", ""]
    return [f"{row['analytic']['voxels']:,} x {row['analytic']['spots']:,}", error, spread("analytic"), spread("autograd"), *sizes, *ratios]


HEADER = ["voxels x spots", "error: dose / weight / position", "analytic, ms", "autograd, ms", "analytic, MB", "autograd, MB",
          "times faster", "times smaller", f"aim {FASTER:g} and {SMALLER:g}"]  # fmt: skip


def main(config: Config) -> list[dict]:
    """Measure every size, print the table as it grows, write the files; returns the rows."""
    sizes = [tuple(int(n) for n in size.split("x")) for size in config.sizes.split(",")]
    facts = {**about(), "threads": config.threads or torch.get_num_threads()}
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    lines = ["| " + " | ".join(HEADER) + " |", "|" + " --- |" * len(HEADER)]
    print(*lines, sep="\n")
    rows = []
    for voxels, spots in sizes:
        rows.append(measure(config, voxels, spots))
        lines.append("| " + " | ".join(cells(rows[-1])) + " |")
        print(lines[-1], flush=True)
    out = Path(config.out)
    write_json(out / "results.json", {"config": asdict(config), "machine": facts, "rows": rows})
    write_text(out / "table.md", "\n".join(lines) + "\n")
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in asdict(Config()).items():
        parser.add_argument(f"--{name}", default=value, type=type(value))
    parser.add_argument("--task", help=argparse.SUPPRESS)
    flags = vars(parser.parse_args())
    text = flags.pop("task")
    if text is None:
        main(Config(**flags))
    else:
        task = Task(**json.loads(text))
        if task.threads:
            torch.set_num_threads(task.threads)
        print(json.dumps({"errors": errors, "seconds": seconds, "memory": memory}[task.measure](task)))
