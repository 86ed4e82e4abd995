"""Which way of moving spots gets furthest, per evaluation and per second?

    python experiments/schemes.py [--cases tg119,openkbp_109] [--scenarios 1,9] [--evaluations 300] [--out runs/schemes]

The published alternation (weight iterations, then a position step with its own line search) against joint methods on weights and positions
at once: quasi-Newton (ours, the default), the same from a cold start, conjugate gradients with and without scale, SciPy's L-BFGS-B. One
staggered 12 mm grid, one objective, one dose code, no tolerance: each goes on for as many evaluations. An evaluation is one value of the
objective with its gradient; for weights alone it counts the same, though its gradient has one third of the components.
Prints the objective after 25, 50, 100, 200 and 300 evaluations; writes `results.json` and `curves_*.png`. About 3 minutes on 2 idle cores.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from joint_vs_uniform import Bench
from joint_vs_uniform import Config as BenchConfig
from torchimpt.planning.engine import MatrixFreeEngine
from torchimpt.planning.joint import JointProblem, Moving, joint_scale

import torchimpt as ti
from torchimpt.case.sections import JointConfig, OptimizerConfig
from torchimpt.optim import minimize
from torchimpt.report.curves import curves_figure, save_figure
from torchimpt.runs.about import about
from torchimpt.runs.folder import write_json
from torchimpt.schemes.schemes import optimize
from torchimpt.schemes.weights import best_uniform_weight
from torchimpt.studies.flags import flags

MARKS = (25, 50, 100, 200, 300, 400)


@dataclass(frozen=True)
class Config:
    """Flags."""

    cases: str = "tg119,openkbp_109"
    scenarios: str = "1,9"
    spacing: float = 12.0
    grid: float = 4.0
    box: float = 10.0
    warm: int = 20
    evaluations: int = 300
    out: str = "runs/schemes"


def joint_history(bench: Bench, operators, plan: Moving, config: Config, method: str, scaled: bool, used: dict) -> list[dict]:
    """Rows of one joint method from a plan; `used` is what came before."""
    problem, n = JointProblem(operators, bench.robust, plan.home), plan.n_spots
    lower = torch.cat((torch.zeros(n), torch.full((2 * n,), -config.box)))
    upper = torch.cat((torch.full((n,), math.inf), torch.full((2 * n,), config.box)))
    scale = joint_scale(operators[0], plan, bench.robust) if scaled else None
    left = config.evaluations - used["evaluations"]
    found = minimize(
        problem, problem.pack(plan), lower=lower, upper=upper, method=method, scale=scale, max_iterations=left, max_evaluations=left,
        tolerance=0.0,
    )  # fmt: skip
    return [
        {**row, "evaluations": row["evaluations"] + used["evaluations"], "seconds": row["seconds"] + used["seconds"]}
        for row in found.history
    ]


def compare(bench: Bench, config: Config) -> dict[str, list[dict]]:
    """Histories by method."""
    spots = ti.stagger(bench.place(config.spacing), config.spacing)
    operators = bench.operators(spots)
    cold = Moving.start(spots)
    cold = Moving(
        cold.index, cold.home, cold.position, best_uniform_weight(MatrixFreeEngine(operators, cold.position), bench.robust, cold.weight)
    )
    warm = optimize(operators, bench.robust, spots, OptimizerConfig(max_iterations=config.warm, tolerance=1e-9))
    first, last = warm.solution.history, warm.solution.history[-1]
    nothing = {"evaluations": 0, "seconds": 0.0}
    found = {
        "joint quasi-Newton": first + joint_history(bench, operators, warm.plan, config, "quasi_newton", True, last),
        "joint quasi-Newton, cold start": joint_history(bench, operators, cold, config, "quasi_newton", True, nothing),
        "joint L-BFGS-B (SciPy)": first + joint_history(bench, operators, warm.plan, config, "lbfgs", True, last),
        "joint scaled CG": first + joint_history(bench, operators, warm.plan, config, "projected_cg", True, last),
        "joint plain CG": first + joint_history(bench, operators, warm.plan, config, "dyhs_cg", False, last),
    }
    solver = OptimizerConfig(max_iterations=config.evaluations, tolerance=1e-9)
    for steps in (1, 5):
        joint = JointConfig(scheme="alternating", box_mm=config.box, weight_iterations=10, position_steps=steps)
        found[f"alternating, 10 + {steps}"] = optimize(operators, bench.robust, spots, solver, joint).solution.history
    found["weights only"] = optimize(operators, bench.robust, spots, solver).solution.history
    return found


def after(rows: list[dict], evaluations: int) -> float | None:
    """The objective after so many evaluations; None where the method had not got there."""
    return min(row["value"] for row in rows if row["evaluations"] <= evaluations) if rows[-1]["evaluations"] >= 0.95 * evaluations else None


def main(config: Config) -> dict:
    """Run, print and write."""
    out = Path(config.out)
    results = {"about": about(), "config": asdict(config), "cases": {}}
    print(results["about"])
    for name in config.cases.split(","):
        for n_scenarios in map(int, config.scenarios.split(",")):
            bench = Bench(BenchConfig(grid=config.grid), name, n_scenarios)
            found = compare(bench, config)
            key = f"{name}, {n_scenarios} scenario{'s' if n_scenarios > 1 else ''}"
            marks = [mark for mark in MARKS if mark <= config.evaluations]
            print(f"\n{key}\n{'evaluations':32s}" + "".join(f"{mark:>10d}" for mark in marks) + "   seconds")
            for method, rows in found.items():
                values = [after(rows, mark) for mark in marks]
                print(f"{method:32s}" + "".join(f"{v:10.4g}" if v else f"{'-':>10s}" for v in values) + f"{rows[-1]['seconds']:10.1f}")
            results["cases"][key] = {
                method: {"objective": {str(m): after(rows, m) for m in marks}, "seconds": rows[-1]["seconds"]}
                for method, rows in found.items()
            }
            out.mkdir(parents=True, exist_ok=True)
            write_json(out / "results.json", results)
            series = {
                method: [(row["evaluations"], row["value"]) for row in rows if row["evaluations"] > 0 < row["value"]]
                for method, rows in found.items()
            }
            save_figure(curves_figure(series, "Evaluations", "Objective, Gy²", title=key), out / f"curves_{name}_{n_scenarios}.png")
    return results


if __name__ == "__main__":
    main(flags(Config, __doc__))
