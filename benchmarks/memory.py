"""How much memory does a whole job take with each engine, what do compressed matrices cost, and when do matrices pay?

    python benchmarks/memory.py [--jobs hn,tg119,openkbp_109] [--engines auto,matrix,matrix_free] [--out runs/memory.json]

Each job is `torchimpt plan` in a process of its own, one at a time: the engine that it chose, its peak resident memory against the aim of
3 GB, seconds, objective. `--jobs none` leaves them out. Then, for `--storage CASE` in this process: bytes an entry and products with A and
A^T, stored exactly and compressed, by turns, against the read bandwidth of the same run; the largest dose error of compressed matrices for
weights of the solver, of the prescription; and after how many iterations matrices have paid for their building. Jobs with stored matrices
of a large patient take 10 GB; the default takes half an hour on 2 cores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from measure import CASES, DATA, built_case, read_bandwidth, repeat

from torchimpt.dose.influence import compressed_matrices, influence_matrices
from torchimpt.optim import Composite, minimize
from torchimpt.planning.build import PlanningProblem
from torchimpt.runs.about import about
from torchimpt.runs.folder import write_json
from torchimpt.schemes.weights import best_uniform_weight
from torchimpt.studies.flags import flags

AIM_GB = 3.0
AIM_PERCENT = 0.1
AIM_BANDWIDTH = 80.0

NOMINAL = ("robustness={setup_mm=0, range_percent=0}",)
MATRAD = (
    f"machine={{format='matrad', path='{DATA / 'matrad' / 'protons_Generic.mat'}'}}",
    *(f"beam[{i}].range_shifter_mm=0" for i in range(3)),
)
JOBS: dict[str, tuple[str, tuple[str, ...]]] = {
    "hn": ("hn", ()),
    "tg119": ("tg119", ()),
    "openkbp_109_nominal": ("openkbp_109", NOMINAL),
    "openkbp_109": ("openkbp_109", ()),
    "openkbp_109_joint": ("openkbp_109_joint", ()),
    "openkbp_17": ("openkbp_17", ()),
    "openkbp_109_matrad": ("openkbp_109", MATRAD),
    "openkbp_109_joint_matrad": ("openkbp_109_joint", MATRAD),
    "openkbp_17_matrad": ("openkbp_17", MATRAD),
}
"""Case of `experiments/cases` and overrides of each job; matRad's machine has wide spots, of three times the entries."""


@dataclass(frozen=True)
class Config:
    """Flags; `iterations` of zero are the case's own."""

    jobs: str = "hn,tg119,openkbp_109_nominal,openkbp_109,openkbp_109_joint,openkbp_109_joint_matrad"
    engines: str = "auto,matrix,matrix_free"
    iterations: int = 0
    threads: int = os.cpu_count() or 1
    storage: str = "openkbp_109"
    grid: float = 0.0
    repeats: int = 7
    out: str = "runs/memory.json"


def job(name: str, engine: str, config: Config) -> dict:
    """Plan in a process of its own."""
    case, overrides = JOBS[name]
    told = [*overrides, f"dose.engine={engine}"]
    told += [f"dose.grid_mm={config.grid}"] if config.grid else []
    told += [f"optimizer.max_iterations={config.iterations}"] if config.iterations else []
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "torchimpt",
            "plan",
            str(CASES / f"{case}.toml"),
            "--out",
            f"{folder}/run",
            "--quiet",
        ]
        command += [
            "--out",
            f"{folder}/run",
            "--threads",
            str(config.threads),
            *(flag for override in told for flag in ("--set", override)),
        ]
        begin = time.perf_counter()
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert child.stderr is not None
        error = child.stderr.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        found = {"job": name, "asked": engine, "status": child.returncode, "seconds": time.perf_counter() - begin}
        found["peak_gb"] = usage.ru_maxrss / 1e6
        if child.returncode not in (0, 3):
            return found | {"error": error.strip()}
        metrics = json.loads(Path(folder, "run", "metrics.json").read_text())
    return found | {
        "engine": metrics["matrix"]["engine"], "why": metrics["matrix"]["why"], "spots": metrics["spots"]["placed"],
        "nonzeros": metrics["matrix"]["nonzeros"], "matrix_gb": metrics["matrix"]["bytes"] / 1e9,
        "objective": metrics["objective"]["final"], "iterations": metrics["iterations"], "time_s": metrics["time_s"],
    }  # fmt: skip


def job_line(row: dict) -> str:
    """As text."""
    if "error" in row:
        return f"{row['job']:26s} {row['asked']:12s} {row['error']}"
    verdict = f"aim {AIM_GB:g}: {'met' if row['peak_gb'] <= AIM_GB else 'missed'}"
    return (
        f"{row['job']:26s} {row['asked']:12s} {row['spots']:7,} spots  peak {row['peak_gb']:5.2f} GB ({verdict}), "
        f"matrices {row['matrix_gb']:5.2f} GB, {row['seconds']:6.1f} s, {row['iterations']:4d} iterations, "
        f"objective {row['objective']:.6g}; {row['engine']}: {row['why']}"
    )


def products(built: PlanningProblem, times: int) -> list[dict]:
    """Exact and compressed matrices of the first scenario: bytes, seconds by turns, and the share of the read bandwidth."""
    position, scenario = built.spots.position.detach(), built.doses[:1]
    made = {"float32, int32, both ways": influence_matrices(scenario, position)[0]}
    made["16 bits in groups, one copy"] = compressed_matrices(scenario, position)[0]
    weight, residual = torch.rand(built.spots.n_spots), torch.randn(len(built.points))
    rows = {name: {"storage": name, "bytes_an_entry": m.n_bytes / m.n_nonzeros, "A": [], "AT": []} for name, m in made.items()}
    bandwidth = []
    for turn in range(times + 1):
        bandwidth.append(read_bandwidth(1)[0])
        for name, matrix in made.items():
            works: dict[str, Callable[[], object]] = {"A": lambda m=matrix: m.forward(weight), "AT": lambda m=matrix: m.adjoint(residual)}
            for way, work in works.items():
                taken = repeat(work, 3).median
                if turn:
                    rows[name][way].append(taken)
    reads = sorted(bandwidth[1:])[times // 2]
    for name, matrix in made.items():
        row, size = rows[name], matrix.n_bytes / (1 if matrix.n_bytes < 8 * matrix.n_nonzeros else 2) / 1e9
        for way in ("A", "AT"):
            median = sorted(row[way])[times // 2]
            row[way] = {"ms": 1e3 * median, "entries_per_s": matrix.n_nonzeros / median, "percent": 100 * size / median / reads}
        both = "; ".join(_told(product, row[way]) for product, way in (("A w", "A"), ("A' r", "AT")))
        print(f"{name:28s} {row['bytes_an_entry']:5.2f} bytes an entry; {both}")
    print(f"read bandwidth {reads:.1f} GB/s ({min(bandwidth):.1f} to {max(bandwidth):.1f})")
    return [*rows.values(), {"storage": "read bandwidth", "gb_per_s": reads}]


def _told(product: str, row: dict) -> str:
    """A product's seconds and rate."""
    verdict = "met" if row["percent"] >= AIM_BANDWIDTH else "missed"
    rate = f"{row['entries_per_s'] / 1e9:.2f}e9 entries/s"
    return f"{product} {row['ms']:.2f} ms, {rate}, {row['percent']:.0f} % of the read bandwidth (aim {AIM_BANDWIDTH:g}: {verdict})"


def error(built: PlanningProblem) -> dict:
    """Largest error of a compressed dose, for weights that the solver came to, of the highest prescription; the pair kernel is exact."""
    position = built.spots.position.detach()
    compressed = built.doses.at(position, "compressed")
    start = best_uniform_weight(compressed, built.objective, built.spots.weight.detach())
    weight = minimize(Composite(compressed, built.objective), start, max_iterations=60, tolerance=0.0).x
    rounded, exact = compressed.forward(weight), built.doses.dose(position, weight)
    values = [float(built.objective.value(dose)) for dose in (rounded, exact)]
    percent = 100 * built.case.dose.rbe * float((rounded - exact).abs().max()) / built.case.highest_prescription()
    verdict = "met" if percent <= AIM_PERCENT else "missed"
    told = f"largest dose error {percent:.4f} % of the prescription (aim {AIM_PERCENT:g}: {verdict})"
    print(f"{told}; objective {values[0]:.6g}, exactly {values[1]:.6g}")
    return {"percent": percent, "objective": values[0], "objective_exact": values[1]}


def pays(built: PlanningProblem) -> dict:
    """Seconds of building compressed matrices, and of an evaluation with and without them, by turns, in the time of this thread alone."""
    position, before = built.spots.position.detach(), torch.get_num_threads()
    torch.set_num_threads(1)  # so that what other programs take does not count
    weight, residual = torch.rand(built.spots.n_spots), torch.randn(len(built.doses), len(built.points))
    maps = {"compressed": built.doses.at(position, "compressed"), "matrix_free": built.doses.at(position, "matrix_free")}

    def spent(work: Callable[[], object]) -> float:
        begin = time.thread_time()
        work()
        return time.thread_time() - begin

    turns = [{name: spent(lambda m=m: (m.forward(weight), m.adjoint(residual))) for name, m in maps.items()} for _ in range(4)][1:]
    found = {name: sorted(turn[name] for turn in turns)[1] for name in maps}
    found["building"] = spent(lambda: built.doses.at(position, "compressed"))
    found["pays_after"] = found["building"] / (found["matrix_free"] - found["compressed"])
    torch.set_num_threads(before)
    print(
        f"one thread: building {found['building']:.1f} s; dose and gradient {found['compressed']:.3f} s compressed, "
        f"{found['matrix_free']:.3f} s matrix-free: matrices pay after {found['pays_after']:.0f} iterations"
    )
    return found


def main(config: Config) -> dict:
    """Measure, print, write."""
    found: dict = {"machine": about(), "config": asdict(config), "jobs": []}
    print(", ".join(f"{name} {value}" for name, value in found["machine"].items()), "\n")
    for name in config.jobs.split(",") if config.jobs != "none" else ():
        for engine in config.engines.split(","):
            found["jobs"].append(job(name, engine, config))
            print(job_line(found["jobs"][-1]), flush=True)
    if config.storage != "none":
        own = [f"dose.grid_mm={config.grid}"] if config.grid else []
        built = built_case(config.storage, ["dose.engine=matrix_free", *own])
        print(f"\n{config.storage}: {built.spots.n_spots:,} spots, {len(built.points):,} points, {len(built.doses)} scenarios")
        found |= {"products": products(built, config.repeats), "error": error(built), "pays": pays(built)}
    write_json(Path(config.out), found)
    print(f"wrote {config.out}")
    return found


if __name__ == "__main__":
    main(flags(Config, __doc__))
