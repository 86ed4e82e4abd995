"""Which way of moving spots gets furthest, per evaluation and per second?

    python experiments/schemes.py [--cases tg119,openkbp_109] [--scenarios 1,9] [--evaluations 300] [--out runs/schemes]

The published alternation (weight iterations, then a position step with its own line search) against joint methods on weights and positions
at once: quasi-Newton (ours, the default), the same from a cold start, conjugate gradients with and without scale, SciPy's L-BFGS-B. One
staggered 12 mm grid, one objective, one dose code, no tolerance: each goes on for as many evaluations. An evaluation is one value of the
objective with its gradient; for weights alone it counts the same, though its gradient has one third of the components.
Prints the objective after 25, 50, 100, 200 and 300 evaluations; writes `results.json` and `curves_*.png`. About 3 minutes on 2 idle cores.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

import torchimpt as ti
from torchimpt.optim import minimize
from torchimpt.report.curves import curves_figure, save_figure
from torchimpt.runs.about import about
from torchimpt.runs.folder import write_json
from torchimpt.schemes.moving import MovingSpots
from torchimpt.schemes.schemes import optimize
from torchimpt.schemes.settings import Motion, Solver
from torchimpt.schemes.variables import JOINT, Packing, Room, SpotProblem
from torchimpt.schemes.weights import best_uniform_weight
from torchimpt.studies.bench import Bench
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


def joint_history(bench: Bench, doses, spots: MovingSpots, config: Config, method: str, scaled: bool, used: dict) -> list[dict]:
    """Rows of one joint method from given spots; `used` is what came before."""
    packing, far = Packing(JOINT, spots), torch.full_like(spots.home, torch.inf)
    room = Room(spots, doses, bench.robust, torch.zeros_like(spots.weight), config.box, -far, far)
    problem, (lower, upper) = SpotProblem(doses, bench.robust, packing), packing.bounds(room)
    scale = packing.scale(room) if scaled else None
    left = config.evaluations - used["evaluations"]
    found = minimize(
        problem, packing.pack(spots), lower=lower, upper=upper, method=method, scale=scale, max_iterations=left, max_evaluations=left,
        tolerance=0.0,
    )  # fmt: skip
    return [
        {**row, "evaluations": row["evaluations"] + used["evaluations"], "seconds": row["seconds"] + used["seconds"]}
        for row in found.history
    ]


def compare(bench: Bench, config: Config) -> dict[str, list[dict]]:
    """Histories by method."""
    spots = ti.stagger(bench.place(config.spacing), config.spacing)
    doses = bench.doses(spots)
    cold = MovingSpots.start(spots)
    cold = replace(cold, weight=best_uniform_weight(doses.at(cold.position), bench.robust, cold.weight))
    started = optimize(doses, bench.robust, spots, Solver(max_iterations=config.warm, tolerance=1e-9))
    warm, first, last = started.spots, started.solution.history, started.solution.history[-1]
    nothing = {"evaluations": 0, "seconds": 0.0}
    found = {
        "joint quasi-Newton": first + joint_history(bench, doses, warm, config, "quasi_newton", True, last),
        "joint quasi-Newton, cold start": joint_history(bench, doses, cold, config, "quasi_newton", True, nothing),
        "joint L-BFGS-B (SciPy)": first + joint_history(bench, doses, warm, config, "lbfgs", True, last),
        "joint scaled CG": first + joint_history(bench, doses, warm, config, "projected_cg", True, last),
        "joint plain CG": first + joint_history(bench, doses, warm, config, "dyhs_cg", False, last),
    }
    solver = Solver(max_iterations=config.evaluations, tolerance=1e-9)
    for steps in (1, 5):
        motion = Motion(scheme="alternating", box_mm=config.box, weight_iterations=10, position_steps=steps)
        found[f"alternating, 10 + {steps}"] = optimize(doses, bench.robust, spots, solver, motion).solution.history
    found["weights only"] = optimize(doses, bench.robust, spots, solver).solution.history
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
            bench = Bench.of(Path(__file__).parent / "cases" / f"{name}.toml", n_scenarios, grid=config.grid)
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
