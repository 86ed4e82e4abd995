"""Does a plan whose spots move take longer than the uniform plan that it matches?

    python experiments/joint_time.py [--cases tg119,openkbp_109,openkbp_17,openkbp_95] [--scenarios 9] [--repeats 3] [--out runs/joint_time]

The rival is the uniform 5 mm grid, weights only, with influence matrices, until its objective stands still (tolerance 1e-4); within
1 % of that end is told, too. The moving plan starts from a staggered 12 mm grid, a quarter or less of the spots, and stops as soon as
its objective is that of the uniform plan. Both times hold everything after the patient is read: placement, ray tracing, tables, matrices,
optimization. The two take turns; prints medians, the ratio and its range. About 10 minutes on 2 idle cores.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torchimpt as ti
from torchimpt.runs.about import about
from torchimpt.runs.folder import write_json
from torchimpt.schemes.schemes import optimize
from torchimpt.schemes.settings import Motion
from torchimpt.studies.bench import Bench
from torchimpt.studies.flags import flags


@dataclass(frozen=True)
class Config:
    """Flags."""

    cases: str = "tg119,openkbp_109,openkbp_17,openkbp_95"
    scenarios: int = 9
    uniform: float = 5.0
    moving: float = 12.0
    grid: float = 4.0
    margin: float = 8.0
    repeats: int = 3
    out: str = "runs/joint_time"


def uniform_plan(bench: Bench, spacing: float) -> dict:
    """Weights only, to the end."""
    begin = time.perf_counter()
    spots = bench.place(spacing)
    doses = bench.doses(spots)
    linear = doses.at(spots.position, "matrix")
    setup = time.perf_counter() - begin
    found = optimize(doses, bench.robust, spots, bench.fixed, linear=linear).solution
    seconds = time.perf_counter() - begin
    near = next(row["seconds"] for row in found.history if row["value"] <= 1.01 * found.value)
    return {
        "spots": spots.n_spots,
        "objective": found.value,
        "seconds": seconds,
        "within_1_percent_s": seconds - found.history[-1]["seconds"] + near,
        "setup_s": setup,
    }


def moving_plan(bench: Bench, spacing: float, objective: float) -> dict:
    """Weights and positions, until the objective is reached."""
    begin = time.perf_counter()
    spots = ti.stagger(bench.place(spacing), spacing)
    doses = bench.doses(spots)
    setup = time.perf_counter() - begin
    found = optimize(doses, bench.robust, spots, bench.fixed, Motion(), callback=lambda at: at.value <= objective).solution
    seconds = time.perf_counter() - begin
    return {
        "spots": spots.n_spots,
        "objective": found.value,
        "seconds": seconds,
        "evaluations": found.evaluations,
        "setup_s": setup,
        "reached": found.value <= objective,
    }


def summary(rows: list[dict]) -> dict:
    """Medians and the range of the ratio."""
    ratios = [row["moving"]["seconds"] / row["uniform"]["seconds"] for row in rows]
    return {
        "uniform_s": statistics.median(row["uniform"]["seconds"] for row in rows),
        "moving_s": statistics.median(row["moving"]["seconds"] for row in rows),
        "ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios),
        "ratio_to_within_1_percent": statistics.median(row["moving"]["seconds"] / row["uniform"]["within_1_percent_s"] for row in rows),
    }  # fmt: skip


def main(config: Config) -> dict:
    """Time, print, write `results.json`."""
    results = {"about": about(), "config": asdict(config), "cases": {}}
    print(results["about"])
    for name in config.cases.split(","):
        bench = Bench.of(Path(__file__).parent / "cases" / f"{name}.toml", config.scenarios, grid=config.grid, margin=config.margin)
        bench.doses(ti.stagger(bench.place(3 * config.moving), config.moving))  # what has to be compiled or loaded
        rows = []
        for _ in range(config.repeats):
            fixed = uniform_plan(bench, config.uniform)
            rows.append({"uniform": fixed, "moving": moving_plan(bench, config.moving, fixed["objective"])})
        found = {"rows": rows, **summary(rows)}
        results["cases"][name] = found
        fixed, moving = rows[-1]["uniform"], rows[-1]["moving"]
        print(
            f"{name}, {config.scenarios} scenarios: uniform {fixed['spots']} spots {found['uniform_s']:.1f} s to {fixed['objective']:.1f}, "
            f"moving {moving['spots']} spots {found['moving_s']:.1f} s to {moving['objective']:.1f}"
            f"{'' if moving['reached'] else ' (NOT REACHED)'}; ratio {found['ratio']:.2f} ({found['low']:.2f} to {found['high']:.2f}), "
            f"to within 1 % of the uniform plan's end {found['ratio_to_within_1_percent']:.2f}"
        )
        Path(config.out).mkdir(parents=True, exist_ok=True)
        write_json(Path(config.out) / "results.json", results)
    return results


if __name__ == "__main__":
    main(flags(Config, __doc__))
