"""Where does each solver stop at a tolerance, how far from the minimum is it there, and does the estimate say so?

    python experiments/stop_rule.py [--cases hn,tg119] [--iterations 1000] [--out runs/stop_rule.json]

Every method runs once, far beyond any tolerance that is asked for; the minimum is the least objective that any of them found. Its history
is then cut where each tolerance would have stopped it (`torchimpt.optim.solution.converged`), and what `remaining_fall` says of the history
up to there is set beside the truth. TG-119 needs matRad's file and machine beside the checkout. About five minutes on 2 cores.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from torchimpt.case import load_case
from torchimpt.optim import Composite, minimize
from torchimpt.optim.solution import converged, remaining_fall
from torchimpt.planning.build import PlanningProblem, build
from torchimpt.planning.load import set_up
from torchimpt.runs.about import about
from torchimpt.runs.folder import write_json
from torchimpt.schemes.weights import best_uniform_weight, jacobi_scale
from torchimpt.studies.flags import flags
from torchimpt.watch import Progress

CASES = Path(__file__).parent / "cases"
METHODS = ("projected_cg", "quasi_newton", "lbfgs", "dyhs_cg")
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5)


@dataclass(frozen=True)
class Config:
    """Flags."""

    cases: str = "hn,tg119"
    iterations: int = 1000
    out: str = "runs/stop_rule.json"


def histories(built: PlanningProblem, iterations: int) -> dict[str, list[dict]]:
    """Every method's history, all from one start and with one scale."""
    start = best_uniform_weight(built.linear, built.objective, built.spots.weight.detach())
    scale = jacobi_scale(built.doses[built.doses.nominal], built.spots.position.detach(), built.objective)
    options = {"scale": scale, "tolerance": 1e-8, "max_iterations": iterations}
    return {m: minimize(Composite(built.linear, built.objective), start, method=m, **options).history for m in METHODS}


def stop(history: list[dict], tolerance: float, minimum: float) -> dict | None:
    """Iteration at which this tolerance stops, by which rule, true and estimated share of F above the minimum; None if it never does."""
    for last in range(1, len(history)):
        if status := converged(history[: last + 1], tolerance):
            value, estimate = history[last]["value"], remaining_fall([row["value"] for row in history[: last + 1]])
            return {"iteration": last, "rule": status.value, "above": 1.0 - minimum / value, "estimate": estimate}
    return None


def main(config: Config) -> dict:
    """Print a table for each case, write the numbers."""
    machine = about()
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    cases = {}
    for name in config.cases.split(","):
        case = load_case(CASES / f"{name}.toml")
        found = histories(build(case, set_up(case, "cpu"), Progress(enabled=False), {}), config.iterations)
        minimum = min(row["value"] for history in found.values() for row in history)
        print(
            f"\n{name}: least objective found {minimum:.6g}\n"
            f"{'method':14s}{'tolerance':>10s}{'iteration':>10s}{'above %':>10s}{'estimate %':>11s}  rule"
        )
        rows = {}
        for method, history in found.items():
            rows[method] = {str(t): stop(history, t, minimum) for t in TOLERANCES}
            for tolerance, row in rows[method].items():
                if row is None:
                    print(f"{method:14s}{tolerance:>10s}   not within {len(history) - 1} iterations")
                    continue
                estimate = "-" if row["estimate"] is None else f"{100 * row['estimate']:.3g}"
                print(
                    f"{method:14s}{tolerance:>10s}{row['iteration']:10d}{100 * row['above']:10.3g}{estimate:>11s}  {row['rule']}",
                    flush=True,
                )
        cases[name] = {"minimum": minimum, "methods": rows}
    results = {"machine": machine, "config": asdict(config), "cases": cases}
    write_json(Path(config.out), results)
    return results


if __name__ == "__main__":
    main(flags(Config, __doc__))
