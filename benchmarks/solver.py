"""How low does each solver get, after how many evaluations? The objective against SciPy's L-BFGS-B at equal counts.

    python benchmarks/solver.py [CASE.toml ...] [--evaluations N] [--out FILE.json]

The default cases are TG-119 (matRad's file and machine) and OpenKBP 109 with nine scenarios; they need the reference data beside the
checkout. Takes about five minutes on two cores. Every solver starts at the best uniform weights; an evaluation is one value with its
gradient. The aim: the default's last objective is within 1 % of L-BFGS-B's.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from common import circumstances, store

from torchimpt.config import load_case
from torchimpt.monitor import Progress
from torchimpt.optim import minimize
from torchimpt.planning.plan import prepare
from torchimpt.planning.prepare import settings
from torchimpt.planning.weights import best_uniform_weight, jacobi_scale, weight_problem

CASES = Path(__file__).resolve().parents[1] / "experiments" / "cases"
COUNTS = (10, 25, 50, 100, 200, 400)
SOLVERS = {
    "lbfgs": ("lbfgs", False),
    "lbfgs, Jacobi scale": ("lbfgs", True),
    "dyhs_cg (the paper's form)": ("dyhs_cg", False),
    "projected_cg, no scale": ("projected_cg", False),
    "projected_cg (default)": ("projected_cg", True),
}


def compare(path: Path, evaluations: int) -> dict:
    """Objective of every solver after the counts of evaluations, on one case."""
    case = load_case(path)
    ready = prepare(case, settings("cpu", case.dose.dtype, None, case.seed), Progress(enabled=False), {})
    position = ready.spots.position.detach()
    start = best_uniform_weight(ready.engine, ready.objective, ready.spots.weight.detach())
    scale = jacobi_scale(ready.operators[0], position, ready.objective.bound)
    counts = [n for n in COUNTS if n < evaluations] + [evaluations]
    print(f"\n{case.title}: {ready.spots.n_spots} spots, {len(ready.scenarios)} scenarios; objective after evaluations")
    print(f"{'':28s}" + "".join(f"{n:>11d}" for n in counts) + "    seconds")
    table = {}
    for label, (method, scaled) in SOLVERS.items():
        begin = time.perf_counter()
        solution = minimize(
            weight_problem(ready.engine, ready.objective), start, method=method, scale=scale if scaled else None, tolerance=0.0,
            max_iterations=10 * evaluations, max_evaluations=evaluations,
        )  # fmt: skip
        seconds = time.perf_counter() - begin
        values = [min(h["value"] for h in solution.history if h["evaluations"] <= n) for n in counts]
        table[label] = {"counts": counts, "values": values, "seconds": seconds}
        print(f"{label:28s}" + "".join(f"{v:11.5g}" for v in values) + f"{seconds:11.1f}")
    excess = table["projected_cg (default)"]["values"][-1] / table["lbfgs"]["values"][-1] - 1.0
    print(f"default against L-BFGS-B after {evaluations}: {excess:+.2%}   aim at most +1 %: {'met' if excess <= 0.01 else 'missed'}")
    return {"case": case.title, "solvers": table, "excess": excess}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", type=Path, default=[CASES / "tg119.toml", CASES / "openkbp_109.toml"])
    parser.add_argument("--evaluations", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path("solver.json"))
    asked = parser.parse_args()
    found = circumstances()
    store(asked.out, {"circumstances": found, "cases": [compare(path, asked.evaluations) for path in asked.cases]})


if __name__ == "__main__":
    sys.exit(main())
