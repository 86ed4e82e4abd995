"""What do seconds and bytes grow with: spots, voxels, scenarios?

    python benchmarks/scaling.py [--case hn] [--clock wall] [--out runs/scaling.json] [--figure docs/scaling_cost.png]

One case, one thing changed at a time: the spots by their spacing, the voxels by the dose grid, the scenarios from 1 over 9 and 21 to 81. Of
each it measures the pair kernel (dose and three gradients of all scenarios), the building of matrices and their two products, and the bytes
of tables and of matrices; and fits the exponents, `cost ~ size^e`, by least squares of the logarithms. Linear cost has the exponent 1;
a constant part, such as waking threads, makes it smaller, and what no cache holds any more makes it larger. `--clock processor` counts
processor seconds, for a machine that others share. Under three minutes on 2 cores.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from measure import built_case, read_bandwidth

from torchimpt.dose.influence import influence_matrices
from torchimpt.planning.build import PlanningProblem
from torchimpt.runs.about import about
from torchimpt.runs.folder import write_json
from torchimpt.studies.flags import flags

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}
COSTS = ("pair kernel, s", "matrices built, s", "products, s", "tables, bytes", "matrices, bytes")


@dataclass(frozen=True)
class Config:
    """Flags; values of each sweep, separated by commas."""

    case: str = "hn"
    spacings: str = "14,10,7,5"
    grids: str = "6,5,4,3"
    scenarios: str = "1,9,21,81"
    spacing: float = 8.0
    grid: float = 4.0
    repeats: int = 3
    clock: str = "wall"
    out: str = "runs/scaling.json"
    figure: str = ""


SETS = {
    "1": ["robustness.setup_mm=0", "robustness.range_percent=0"],
    "9": [],
    "21": ["robustness.set=grid21"],
    "81": ["robustness.set=grid81"],
}


def timed(work: Callable[[], object], config: Config) -> float:
    """Median seconds after a first call."""
    clock, taken = CLOCKS[config.clock], []
    work()
    for _ in range(config.repeats):
        begin = clock()
        work()
        taken.append(clock() - begin)
    return median(taken)


def measure(built: PlanningProblem, config: Config) -> dict[str, float]:
    """Sizes and costs of one problem."""
    position, doses = built.spots.position.detach(), built.doses
    weight = torch.rand(built.spots.n_spots, dtype=built.compute.dtype) + 0.1
    residual = torch.randn(len(doses), len(built.points), dtype=built.compute.dtype)
    matrices = influence_matrices(list(doses), position)
    return {
        "spots": built.spots.n_spots,
        "voxels": len(built.points),
        "scenarios": len(doses),
        "pair kernel, s": timed(lambda: (doses.dose(position, weight), doses.gradient(residual, position, weight)), config),
        "matrices built, s": timed(lambda: [influence_matrices([o], position) for o in doses], config),
        "products, s": timed(lambda: [(m.forward(weight), m.adjoint(r)) for m, r in zip(matrices, residual, strict=True)], config),
        "tables, bytes": doses.n_bytes,
        "matrices, bytes": sum(m.n_bytes for m in matrices),
    }


def sweeps(config: Config) -> dict[str, list[dict[str, float]]]:
    """Costs along each axis."""

    def case(*changed: str, spacing: float = config.spacing, grid: float = config.grid) -> dict[str, float]:
        own = [f"spots.spacing_mm={spacing}", f"dose.grid_mm={grid}", "dose.target_grid_mm=off", "dose.engine=matrix_free", *changed]
        row = measure(built_case(config.case, own), config)
        print(f"{row['spots']:8,d}{row['voxels']:9,d}{row['scenarios']:11,d}" + "".join(f"{row[c]:19.4g}" for c in COSTS), flush=True)
        return row

    print(f"{'spots':>8s}{'voxels':>9s}{'scenarios':>11s}" + "".join(f"{c:>19s}" for c in COSTS))
    return {
        "spots": [case(spacing=float(s)) for s in config.spacings.split(",")],
        "voxels": [case(grid=float(g)) for g in config.grids.split(",")],
        "scenarios": [case(*SETS[n]) for n in config.scenarios.split(",")],
    }


def exponents(found: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """`e` of `cost ~ size^e` by axis and cost; but along the spots of the cost a spot, since other grids and sets have other spots."""
    return {
        axis: {
            c: float(
                np.polyfit(np.log([r[axis] for r in rows]), np.log([r[c] / (1 if axis == "spots" else r["spots"]) for r in rows]), 1)[0]
            )
            for c in COSTS
        }
        for axis, rows in found.items()
    }


def draw(found: dict[str, list[dict[str, float]]], fits: dict[str, dict[str, float]], machine: str, path: str) -> None:
    """Costs over sizes, an axis each, seconds above and bytes below."""
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    for column, (axis, rows) in enumerate(found.items()):
        for line, unit in enumerate((", s", ", bytes")):
            axes = figure.add_subplot(2, 3, 3 * line + column + 1)
            for cost in (c for c in COSTS if c.endswith(unit)):
                label = f"{cost.rsplit(',', 1)[0]}: exponent {fits[axis][cost]:.2f}"
                axes.loglog([r[axis] for r in rows], [r[cost] for r in rows], "o-", label=label)
            axes.set_xlabel(axis)
            axes.set_ylabel("seconds" if line == 0 else "bytes")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.legend(fontsize=8)
    figure.suptitle(machine, fontsize=8)
    figure.savefig(path, dpi=110)


def main(config: Config) -> dict:
    """Measure, print, draw, write."""
    machine = about()
    line = ", ".join(f"{name} {value}" for name, value in machine.items())
    print(f"{line}\n{config.case}; read bandwidth {read_bandwidth(5)[0]:.1f} GB/s; {config.clock} clock\n")
    found = sweeps(config)
    fits = exponents(found)
    print(f"\n{'exponent with':>28s}" + "".join(f"{c:>19s}" for c in COSTS))
    for axis, row in fits.items():
        print(f"{axis:>28s}" + "".join(f"{row[c]:19.2f}" for c in COSTS))
    if config.figure:
        draw(found, fits, f"{config.case}; {machine['processor']}, {machine['threads']} threads, {config.clock} clock", config.figure)
    results = {"machine": machine, "config": asdict(config), "sweeps": found, "exponents": fits}
    write_json(Path(config.out), results)
    return results


if __name__ == "__main__":
    main(flags(Config, __doc__))
