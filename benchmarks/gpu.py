"""How fast is a plan on the GPU, and how near are its parts to what the card can do?

    python benchmarks/gpu.py [--cases hn,lung,prostate] [--repeats 9] [--out runs/gpu.json]

The cases of `experiments/cases/paper/` (or any of `experiments/cases`, or case files), each as `torchimpt plan --device auto` would compute
it, to a relative decrease below 1e-4 an iteration: seconds of building and optimizing against a tenth of the paper's on its GPU (3, 38
and 26 s, Titan RTX). Then the parts: products with A and A^T in GB/s, by the kernel of `torchimpt.dose.triton_csr`, by cuSPARSE, and with
values of 16 bits, against the read bandwidth that the same run measures; matrices in kept entries per second; the pair kernel in kept pairs
per second, dose and three gradients. Numbers are medians with the range of the repeats, the GPU waited for; first calls, which compile, do
not count. Without a GPU it says so and ends.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from measure import CASES, Repeats, repeat

from torchimpt.case import load_case
from torchimpt.dose import gpu
from torchimpt.dose.csr import Rows, csr_tensor
from torchimpt.dose.influence import influence_matrices
from torchimpt.dose.scenarios import scenario_doses
from torchimpt.optim import Composite, minimize
from torchimpt.planning.build import PlanningProblem, build
from torchimpt.planning.load import set_up
from torchimpt.runs.about import about
from torchimpt.runs.folder import write_json
from torchimpt.schemes.weights import best_uniform_weight, jacobi_scale
from torchimpt.studies.flags import flags
from torchimpt.watch import Progress

PAPER_S = {"hn": 3.0, "lung": 38.0, "prostate": 26.0}
"""Seconds of Xu et al.'s optimizer on a Titan RTX; a tenth is aimed at."""


@dataclass(frozen=True)
class Config:
    """Flags."""

    cases: str = "hn,lung,prostate"
    repeats: int = 9
    iterations: int = 300
    out: str = "runs/gpu.json"


def timed(work: Callable[[], object], times: int) -> Repeats:
    """Repeats of work on the GPU, which is waited for each time, after a first call."""

    def waited() -> None:
        work()
        torch.cuda.synchronize()

    waited()
    return repeat(waited, times)


def line(name: str, unit: str, rate: tuple[float, float, float], note: str = "") -> dict:
    """Print a row, and give it back."""
    median, low, high = rate
    print(f"  {name:44s} {median:10.4g} ({low:.4g} to {high:.4g}) {unit} {note}")
    return {"name": name, "unit": unit, "median": median, "low": low, "high": high}


def read_bandwidth(times: int, n_bytes: int = 2**31) -> tuple[float, float, float]:
    """GB/s of reading the GPU's memory: a sum over more than its caches hold."""
    values = torch.ones(n_bytes // 4, device=gpu.GPU)
    return timed(values.sum, times).rate(n_bytes / 1e9)


def case_path(name: str) -> Path:
    """The paper's case of this name, another of the repository, or a file."""
    return next((path for path in (CASES / "paper" / f"{name}.toml", CASES / f"{name}.toml") if path.is_file()), Path(name))


def products(built: PlanningProblem, times: int, bandwidth: float) -> list[dict]:
    """A w and A' r of the first scenario's matrix: by our kernel, by cuSPARSE, and with values of 16 bits."""
    matrix = influence_matrices([built.doses[0]], built.spots.position)[0]
    return [row for name, rows in (("A w", matrix.matrix), ("A' r", matrix.transpose)) for row in product(name, rows, times, bandwidth)]


def product(name: str, rows: Rows, times: int, bandwidth: float) -> list[dict]:
    """One of the two."""
    csr = rows.entries
    x = torch.rand(rows.shape[1], device=csr.device, dtype=csr.dtype)
    short = csr_tensor(csr.crow_indices(), csr.col_indices(), csr.values().half(), tuple(csr.shape))
    ways = {
        "Triton": (lambda: gpu.device_product(csr, x), csr),
        "cuSPARSE": (lambda: torch.mv(csr, x), csr),
        "Triton, 16 bits": (lambda: gpu.device_product(short, x), short),
    }
    found = []
    for way, (work, read) in ways.items():
        n_bytes = sum(t.numel() * t.element_size() for t in (read.crow_indices(), read.col_indices(), read.values()))
        rate = timed(work, times).rate(n_bytes / 1e9)
        found.append(line(f"product {name}, {way}", "GB/s", rate, f"{100 * rate[0] / bandwidth:.0f} % of the bandwidth (aim 80)"))
    whole = ways["Triton"][0]()
    off = float((ways["Triton, 16 bits"][0]() - whole).abs().max() / whole.abs().max())
    print(f"  product {name}: 16 bits are off by {off:.1e} of the largest value")
    return [*found, {"name": f"product {name}, 16 bits", "unit": "deviation", "median": off}]


def kernel(built: PlanningProblem, times: int) -> list[dict]:
    """Matrices and the pair kernel, all scenarios."""
    doses = scenario_doses(
        built.patient, built.machine, built.spots, built.points, built.scenarios,
        cutoff=built.case.dose.cutoff_sigma, dtype=built.compute.dtype, device=gpu.GPU,
    )  # fmt: skip
    where = {"device": gpu.GPU, "dtype": built.compute.dtype}
    position, weight = built.spots.position.detach().to(gpu.GPU), torch.rand(doses.n_spots, **where) + 0.1
    residual = torch.randn(len(doses), doses.n_voxels, **where)
    kept = sum(matrix.n_nonzeros for matrix in influence_matrices(doses, position))
    found = [line("influence matrices", "1e6 kept entries/s", timed(lambda: influence_matrices(doses, position), 3).rate(kept / 1e6))]
    jobs = {"dose": lambda: doses.dose(position, weight), "three gradients": lambda: doses.gradient(residual, position, weight)}
    for name, work in jobs.items():
        taken = timed(work, times)
        found.append(line(f"pair kernel, {name}", "1e9 kept pairs/s", taken.rate(kept / 1e9), f"{1e3 * taken.median:.2f} ms"))
    return found


def optimized(built: PlanningProblem, config: Config) -> dict:
    """Seconds to the stop rule of the paper's comparison, starts and scale included; the second run, as the first compiles."""

    def run():
        torch.cuda.synchronize()
        begin = time.perf_counter()
        start = best_uniform_weight(built.linear, built.objective, built.spots.weight.detach())
        scale = jacobi_scale(built.doses[built.doses.nominal], built.spots.position.detach(), built.objective)
        solution = minimize(
            Composite(built.linear, built.objective), start, scale=scale, max_iterations=config.iterations, tolerance=1e-4
        )  # fmt: skip
        torch.cuda.synchronize()
        return time.perf_counter() - begin, solution

    run()
    taken, solution = run()
    return {"seconds": taken, "iterations": solution.iterations, "objective": float(solution.value)}


def main(config: Config) -> dict:
    """Measure, print, write."""
    machine = about()
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    if not gpu.has_gpu() or not gpu.has_triton():
        sys.exit("no GPU that Triton compiles for: nothing to measure")
    card = torch.cuda.get_device_properties(gpu.GPU)
    print(f"{card.name}, {card.total_memory / 1e9:.0f} GB")
    bandwidth = read_bandwidth(config.repeats)
    found: dict = {"machine": machine, "gpu": card.name, "config": asdict(config), "cases": {}}
    found["read_bandwidth"] = line("read bandwidth", "GB/s", bandwidth)
    for name in config.cases.split(","):
        case = load_case(case_path(name), [])
        times: dict[str, float] = {}
        built = build(case, set_up(case, "auto"), Progress(enabled=False), times)
        where = ", ".join(f"{share.end - share.begin} on {share.device}" for share in built.doses.shares)
        print(f"{name}: {built.spots.n_spots:,} spots, {len(built.points):,} voxels, scenarios: {where}")
        solved = optimized(built, config)
        aim = PAPER_S[name] / 10.0 if name in PAPER_S else None
        verdict = "" if aim is None else f", aim {aim:g} s: {'met' if solved['seconds'] <= aim else 'missed'}"
        print(f"  optimized in {solved['seconds']:.3f} s, {solved['iterations']} iterations{verdict}; built in {times['dose']:.1f} s")
        rows = products(built, config.repeats, bandwidth[0]) + kernel(built, config.repeats)
        found["cases"][name] = {"build_s": times, "optimized": solved, "rows": rows, "where": where}
        del built
        torch.cuda.empty_cache()
    write_json(Path(config.out), found)
    print(f"wrote {config.out}")
    return found


if __name__ == "__main__":
    main(flags(Config, __doc__))
