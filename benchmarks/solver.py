"""How low does each solver get after as many evaluations of objective and gradient?

    python benchmarks/solver.py [--cases tg119,openkbp_109] [--out runs/solver.json]

The weight problems of TG-119 (matRad's file and machine) and OpenKBP 109, nine scenarios, from the same start: the objective after 10, 25,
50, 100, 200 and 400 evaluations for `projected_cg` (the default), `dyhs_cg` (the plain form of Xu et al. 2020) and SciPy's L-BFGS-B
(20 pairs). An evaluation is one product with every A and one with every A'; what a solver spends besides on its line searches is in the
column "products". The aim: the default within 1 % of L-BFGS-B at every count. Without the data beside the checkout the head-and-neck
phantom is taken. About five minutes on 2 cores.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from measure import DATA, built_case

from torchimpt.optim import Composite, minimize
from torchimpt.planning.build import PlanningProblem
from torchimpt.runs.about import about
from torchimpt.runs.folder import write_json
from torchimpt.schemes.weights import best_uniform_weight, jacobi_scale
from torchimpt.studies.flags import flags

METHODS = ("projected_cg", "dyhs_cg", "lbfgs")
WITHIN = 1.01
"""The aim: objective of the default over that of L-BFGS-B."""


@dataclass(frozen=True)
class Config:
    """Flags; `grid` and `spacing` of zero are the case's own."""

    cases: str = ""
    counts: str = "10,25,50,100,200,400"
    grid: float = 0.0
    spacing: float = 0.0
    out: str = "runs/solver.json"


def after(history: list[dict], count: int) -> float:
    """The least objective that was reached with at most `count` evaluations."""
    return min((row["value"] for row in history if row["evaluations"] <= count), default=math.nan)


def curves(built: PlanningProblem, counts: list[int]) -> dict[str, dict]:
    """Every method's objective after so many evaluations, from the same start."""
    start = best_uniform_weight(built.linear, built.objective, built.spots.weight.detach())
    scale = jacobi_scale(built.doses[built.doses.nominal], built.spots.position.detach(), built.objective)
    found = {}
    for method in METHODS:
        problem = Composite(built.linear, built.objective)
        begin = time.perf_counter()
        solution = minimize(
            problem, start, method=method, scale=scale, tolerance=0.0, max_iterations=10 * max(counts), max_evaluations=max(counts)
        )
        found[method] = {
            "objective": {str(count): after(solution.history, count) for count in counts},
            "evaluations": solution.evaluations,
            "products": problem.products,
            "seconds": time.perf_counter() - begin,
            "stopped": solution.status.value,
        }
    return found


def show(found: dict[str, dict], counts: list[int]) -> dict[str, bool]:
    """Print a case's table; returns whether the aim is met at each count."""
    print(f"{'evaluations':16s}" + "".join(f"{count:>12d}" for count in counts) + f"{'products':>10s}{'s':>8s}")
    for method, row in found.items():
        values = "".join(f"{row['objective'][str(count)]:12.5g}" for count in counts)
        print(f"{method:16s}{values}{row['products']:10d}{row['seconds']:8.1f}")
    ratio = {count: found[METHODS[0]]["objective"][str(count)] / found["lbfgs"]["objective"][str(count)] for count in counts}
    print(f"{'over L-BFGS-B':16s}" + "".join(f"{ratio[count]:12.4f}" for count in counts))
    met = {str(count): ratio[count] <= WITHIN for count in counts}
    print(f"{'within 1 %':16s}" + "".join(f"{'met' if met[str(count)] else 'missed':>12s}" for count in counts) + "\n", flush=True)
    return met


def main(config: Config) -> dict:
    """Solve every case with every method, print the tables, write the numbers."""
    machine = about()
    print(", ".join(f"{name} {value}" for name, value in machine.items()) + "\n")
    counts = [int(count) for count in config.counts.split(",")]
    names = (config.cases or ("tg119,openkbp_109" if DATA.is_dir() else "hn")).split(",")
    own = {"dose.grid_mm": config.grid, "spots.spacing_mm": config.spacing}
    cases = {}
    for name in names:
        built = built_case(name, [f"{key}={value}" for key, value in own.items() if value > 0])
        print(
            f"{name}: {built.spots.n_spots:,} spots, {len(built.points):,} points, {len(built.scenarios)} scenarios, "
            f"{built.linear.n_nonzeros:,} entries"
        )
        found = curves(built, counts)
        cases[name] = {"methods": found, "met": show(found, counts)}
    results = {"machine": machine, "config": asdict(config), "cases": cases}
    write_json(Path(config.out), results)
    print(f"wrote {config.out}")
    return results


if __name__ == "__main__":
    main(flags(Config, __doc__))
