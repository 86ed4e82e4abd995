"""How fast is the engine? Pair kernel, influence matrices, products against this machine's read bandwidth, solver, memory.

    python benchmarks/throughput.py [CASE.toml] [--out FILE.json] [--repeats N]

The default case is OpenKBP 109 with nine scenarios when the reference data lie beside the checkout, else the head-and-neck phantom. Takes
about two minutes on two cores. Medians with their spread over the repeats; first calls, which compile, are stored but not counted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from common import circumstances, row, store, timed

from torchimpt.config import load_case
from torchimpt.dose import assemble
from torchimpt.dose.influence import influence_matrices
from torchimpt.dose.operator import dose_operators
from torchimpt.memory import peak_memory
from torchimpt.monitor import Progress
from torchimpt.optim import minimize
from torchimpt.planning.plan import prepare
from torchimpt.planning.prepare import settings
from torchimpt.planning.weights import best_uniform_weight, jacobi_scale, weight_problem

CASES = Path(__file__).resolve().parents[1] / "experiments" / "cases"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def visited_pairs(operator, position: torch.Tensor) -> int:
    """Pairs that the kernel evaluates for all spots: the runs of their rows."""
    total = 0
    for beam, (begin, end) in enumerate(operator.spans):
        counts = torch.zeros(end - begin, dtype=torch.int64)
        where, _ = assemble._arguments(operator, beam, position)
        assemble._candidates(counts.numpy(), **where)
        total += int(counts.sum())
    return total


def read_bandwidth(repeats: int) -> dict:
    """What this machine's memory gives to a program that only reads: a sum over 1 GiB."""
    block = torch.ones(1 << 28, dtype=torch.float32)
    return row("read bandwidth (sum of 1 GiB)", "GB/s", block.numel() * 4 / 1e9, timed(block.sum, repeats))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = CASES / ("openkbp_109.toml" if SHARED.is_dir() else "hn.toml")
    parser.add_argument("case", nargs="?", type=Path, default=default)
    parser.add_argument("--out", type=Path, default=Path("throughput.json"))
    parser.add_argument("--repeats", type=int, default=7)
    asked = parser.parse_args()
    found = circumstances()
    case = load_case(asked.case)
    ready = prepare(case, settings("cpu", case.dose.dtype, None, case.seed), Progress(enabled=False), {})
    position, weight = ready.spots.position.detach(), ready.spots.weight.detach()
    operators = dose_operators(ready.patient, ready.machine, ready.spots, ready.voxels, ready.scenarios, rbe=case.dose.rbe)
    n_scenarios, first = len(operators), operators[0]
    residual = torch.randn(len(ready.voxels), generator=torch.Generator().manual_seed(1))
    print(f"{case.title}: {ready.spots.n_spots} spots, {len(ready.voxels)} voxels, {n_scenarios} scenarios\n")

    visited = sum(visited_pairs(o, position) for o in operators)
    kept = ready.engine.n_nonzeros
    print(f"{'pairs of all scenarios':44s} {visited / 1e6:.0f} million visited, {kept / 1e6:.0f} million kept ({kept / visited:.0%})")
    rows = []
    forward = timed(lambda: [o.dose(position, weight) for o in operators], asked.repeats)
    rows.append(row("pair kernel, dose", "1e9 visited pairs/s", visited / 1e9, forward, 0.8))
    three = timed(lambda: [o.gradient(residual, position, weight) for o in operators], asked.repeats)
    rows.append(row("pair kernel, gradients for w, x and y", "1e9 visited pairs/s", visited / 1e9, three, 0.8))
    one = timed(lambda: [o.gradient(residual, position, weight, move=False) for o in operators], asked.repeats)
    rows.append(row("pair kernel, gradient for w", "1e9 visited pairs/s", visited / 1e9, one))
    print(f"{'dose and three gradients, all scenarios':44s} {forward['median'] + three['median']:.2f} s")

    build = timed(lambda: influence_matrices(operators[:1], position), min(3, asked.repeats))
    rows.append(row("influence matrix, A and A^T", "1e6 kept non-zeros/s", kept / n_scenarios / 1e6, build, 40.0))

    bandwidth = read_bandwidth(asked.repeats)
    rows.append(bandwidth)
    size = ready.engine.n_bytes / 2e9
    doses = ready.engine.forward(weight)
    for label, function in (
        ("products A w, all scenarios", lambda: ready.engine.forward(weight)),
        ("products A^T r, all scenarios", lambda: ready.engine.adjoint(doses)),
    ):
        rows.append(row(label, "GB/s", size, timed(function, asked.repeats)))
        print(f"{'':44s} {rows[-1]['median'] / bandwidth['median']:.0%} of the read bandwidth")

    start = best_uniform_weight(ready.engine, ready.objective, weight)
    scale = jacobi_scale(first, position, ready.objective.bound)
    iterations = 20
    solver = timed(
        lambda: minimize(weight_problem(ready.engine, ready.objective), start, scale=scale, max_iterations=iterations, tolerance=0.0),
        min(3, asked.repeats),
    )
    rows.append(row("solver, all scenarios in each iteration", "iterations/s", iterations, solver))
    print(f"{'peak memory':44s} {peak_memory() / 1e9:.2f} GB (matrices {ready.engine.n_bytes / 1e9:.2f} GB)")
    result = {"case": case.title, "visited_pairs": visited, "kept_pairs": kept, "scenarios": n_scenarios, "rows": rows}
    store(asked.out, {"circumstances": found, **result, "peak_memory_bytes": peak_memory()})


if __name__ == "__main__":
    sys.exit(main())
