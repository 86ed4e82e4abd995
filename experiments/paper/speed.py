"""How many seconds does the nine-scenario plan of a case take, beside the paper's Table 2?

    python experiments/paper/speed.py --case hn [--methods projected_cg,dyhs_cg] [--set dose.memory_gb=6] [--iterations 1000]
                                    [--only-table true]

`dyhs_cg` is the paper's solver as published, `projected_cg` this package's default. The seconds to compare with the paper's are those
until ten iterations in a row decrease the objective by less than 1e-4 of it each, on average, without dose, as the paper's are; the
default's own rule stops later: it also asks what the gradient still promises. `--only-table true` leaves out the objective on the body,
which the paper does not have. Where a method stops by that measure, the seconds that those before it took to the same objective are told,
too. Prints seconds of loading, of dose (matrices or tables) and of the optimization, iterations and objective. Load averages are those of
the machine before and after: on a busy one all seconds are upper bounds. Writes `experiments/results/paper_speed_<case>.json`.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common import BESIDE, RESULTS, STUDIES, paper_case

from torchimpt.optim.solution import WINDOW, fall_is_small
from torchimpt.planning.plan import plan
from torchimpt.runs.about import about
from torchimpt.runs.folder import write_json
from torchimpt.studies.flags import flags


@dataclass(frozen=True)
class Config:
    """Flags."""

    case: str = "hn"
    methods: str = "projected_cg,dyhs_cg"
    set: str = ""
    iterations: int = 1000
    only_table: bool = False
    out: str = str(RESULTS)


FALL = 1e-4
"""Relative decrease an iteration below which the paper's seconds end, as the comparison with them is set."""


def until_small(history: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Iteration, seconds and objective where `WINDOW` iterations decreased the objective by less than `FALL` each; None if nowhere."""
    values = [row["value"] for row in history]
    for last in range(WINDOW, len(values)):
        if fall_is_small(values[last - WINDOW : last + 1], FALL):
            return {"iteration": last, "seconds": history[last]["seconds"], "objective": values[last]}
    return None


def reached(history: list[dict[str, Any]], objective: float) -> float | None:
    """Seconds after which the objective was as low; None if it never was."""
    return next((row["seconds"] for row in history if row["value"] <= objective), None)


def timed(config: Config, method: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One plan's seconds, and the solver's history."""
    case = paper_case(config.case, [*config.set.split(), f"optimizer.method={method}", f"optimizer.max_iterations={config.iterations}"])
    if config.only_table:
        case = case.model_copy(update={"objective": [o for o in case.objective if o.roi not in BESIDE]})
    before = os.getloadavg()[0]
    planned = plan(case, device="cpu")
    metrics = planned.metrics
    row = {
        "method": method, "engine": case.dose.engine, "load average": [round(before, 2), round(os.getloadavg()[0], 2)],
        "objective": metrics["objective"]["final"], "until_small": until_small(planned.solution.history),
        **{key: metrics[key] for key in ("time_s", "iterations", "evaluations", "stop_reason", "converged", "peak_memory_bytes", "matrix")},
    }  # fmt: skip
    return row, planned.solution.history


def main(config: Config) -> dict[str, Any]:
    """Plan, print, write."""
    facts, rows, histories = about(), [], dict[str, list[dict[str, Any]]]()
    print(facts)
    for method in config.methods.split(","):
        row, histories[method] = timed(config, method)
        rows.append(row)
        seconds = row["time_s"]
        print(
            f"{config.case} {method:13s} {row['engine']:12s} load {seconds['load']:6.1f} s, dose {seconds['dose']:6.1f} s, optimization "
            f"{seconds['optimize']:7.1f} s, {row['iterations']} iterations, objective {row['objective']:.5g}, "
            f"{row['peak_memory_bytes'] / 1e9:.1f} GB; {row['stop_reason'].split(':')[0]}; load average {row['load average']}",
            flush=True,
        )
        small = row["until_small"]
        told = "never" if small is None else "after {seconds:.1f} s, {iteration} iterations, objective {objective:.5g}".format(**small)
        print(f"    below 1e-4 an iteration: {told}", flush=True)
        row["others_reached_it"] = {} if small is None else {m: reached(h, small["objective"]) for m, h in histories.items() if m != method}
        for other, seconds in row["others_reached_it"].items():
            print(f"    as low as that, {other}: {'never' if seconds is None else f'after {seconds:.1f} s'}", flush=True)
    cpu, gpu, commercial = STUDIES[config.case].seconds
    print(f"the paper's: {cpu} s on 36 threads, {gpu} s on a GPU; the commercial system {commercial} s")
    results = {"about": facts, "config": asdict(config), "rows": rows, "paper_seconds": [cpu, gpu, commercial]}
    write_json(Path(config.out) / f"paper_speed_{config.case}.json", results)
    return results


if __name__ == "__main__":
    main(flags(Config, __doc__))
