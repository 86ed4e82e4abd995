"""What are moving spots worth, against uniform grids and against their strong rival, a fine grid pruned and optimized again?

    python experiments/joint_vs_uniform.py [--cases tg119,openkbp_109,openkbp_17,openkbp_95] [--scenarios 1,9] [--out runs/joint_vs_uniform]

For each case and number of scenarios, with one objective, one tolerance and one dose code (moving grids have 200 iterations, all other
plans up to 600):

    uniform    square grids of every spacing, weights only
    staggered  the same, each energy layer's grid offset against the others' (`ti.stagger`), weights only
    joint      weights and positions, from the staggered grids
    jittered   weights and positions, from square grids shifted at random, three seeds
    pruned     the square 5 mm grid pruned to n spots as `joint.spots` does it, weights optimized again, each at the minimum MU or above
    l1         the same grid pruned by a reweighted L1 penalty, weights optimized again, at the minimum MU or above
    moved      a staggered 7 mm grid pruned the same way to n spots that move, at the minimum MU or above
    fixed      the same, positions fixed

Final plans are computed again on a grid of half the voxel size, where target and organ metrics are taken in all nine scenarios (of
3 mm and 3 %) or in the nominal one. Dose grid 4 mm in the optimization, margin 8 mm: at 5 mm the uniform grids lack spots at the edge,
which spots that move make up for (OpenKBP 109, nine scenarios, uniform 5 mm: objective 3835 with a margin of 5 mm, 1596 with 8 mm).
`results.json` holds every plan; `joint_tables.py` makes tables, verdicts and curves from it. About 90 minutes for everything on 2 idle
cores; `--asking 1` has the mean-dose objectives ask for 0 Gy. With `--parts grids` (pruned, moved, fixed), only those series are made, and
others of the same case stay in `results.json` as they were.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torchimpt as ti
from torchimpt.dose.scenarios import ScenarioDoses
from torchimpt.objectives import RobustObjective
from torchimpt.optim import Composite, Penalized, minimize
from torchimpt.runs.about import about
from torchimpt.runs.folder import write_json
from torchimpt.schemes.moving import MovingSpots
from torchimpt.schemes.schemes import optimize
from torchimpt.schemes.settings import Limits, Motion
from torchimpt.schemes.weights import jacobi_scale
from torchimpt.spots.pruning import sparsity_cost
from torchimpt.studies.bench import Bench
from torchimpt.studies.flags import flags

log = logging.getLogger("torchimpt.studies")
CASES = Path(__file__).parent / "cases"


@dataclass(frozen=True)
class Config:
    """Flags."""

    cases: str = "tg119,openkbp_109,openkbp_17,openkbp_95"
    scenarios: str = "1,9"
    out: str = "runs/joint_vs_uniform"
    grid: float = 4.0
    margin: float = 8.0
    spacings: str = "4,5,8,12"
    base: float = 5.0
    moving_base: float = 7.0
    shares: str = "0.5,0.25,0.12"
    penalties: str = "0.4,4"
    jitter: str = "12:1,12:2,12:3"
    min_mu: float = 0.01
    iterations: int = 200
    fixed_iterations: int = 600
    tolerance: float = 1e-4
    asking: int = 0
    parts: str = "grids,pruned,moved,fixed"


def uniform_and_joint(bench: Bench, spacing: float) -> None:
    """The same grid with weights only and with weights and positions."""
    for series, motion in (("uniform", None), ("staggered", None), ("joint", Motion())):
        begin = time.perf_counter()
        spots = bench.place(spacing)
        spots = spots if series == "uniform" else ti.stagger(spots, spacing)
        doses = bench.doses(spots)
        linear = doses.at(spots.position, "matrix") if motion is None else None
        optimized = optimize(doses, bench.robust, spots, bench.fixed if motion is None else bench.solver, motion, linear=linear)
        bench.add(series, f"{spacing:g} mm", spots, optimized, time.perf_counter() - begin)
        del linear


def jittered(bench: Bench, spacing: float, seed: int) -> None:
    """Joint from a grid that is shifted at random by up to half a spacing."""
    begin = time.perf_counter()
    spots = bench.place(spacing, 0.5 * spacing, seed)
    optimized = optimize(bench.doses(spots), bench.robust, spots, bench.solver, Motion())
    bench.add("jittered", f"{spacing:g} mm, seed {seed}", spots, optimized, time.perf_counter() - begin)


def pruned_plans(bench: Bench, spots: ti.Spots, series: dict[str, float], counts: list[int], penalties: list[float]) -> None:
    """One warm start, pruned to fewer and fewer spots with boxes by `series`, all at the minimum MU."""
    begin = time.perf_counter()
    doses = bench.doses(spots)
    warm = optimize(doses, bench.robust, spots, replace(bench.solver, max_iterations=20)).spots
    common = time.perf_counter() - begin
    start = warm.spots(spots)
    least = bench.model.min_weight(spots, bench.machine)
    for n in counts:
        for name, box in series.items():
            begin = time.perf_counter()
            motion = Motion(box_mm=box, spots=n, warm_iterations=0)
            optimized = optimize(doses, bench.robust, start, bench.fixed, motion, limits=Limits(least), uniform=False)
            bench.add(name, f"{n} of {spots.n_spots}", spots, optimized, common + time.perf_counter() - begin)
    for penalty in penalties:
        begin = time.perf_counter()
        sparse = reweighted_l1(doses, bench.robust, warm, penalty)
        placed, limits = sparse.spots(spots), Limits(least[sparse.index])
        optimized = optimize(doses.subset(sparse.index), bench.robust, placed, bench.fixed, limits=limits, uniform=False)
        bench.add("l1", f"penalty {penalty:g}", placed, optimized, common + time.perf_counter() - begin, spots.n_spots)


def reweighted_l1(
    doses: ScenarioDoses, objective: RobustObjective, spots: MovingSpots, penalty: float, rounds: int = 4, iterations: int = 40
) -> MovingSpots:
    """Spots that stay under a price of their weights, taken anew in each round (`torchimpt.spots.pruning.sparsity_cost`)."""
    for _ in range(rounds):
        part = doses.subset(spots.index)
        problem = Composite(part.at(spots.position), objective)
        cost = sparsity_cost(spots.weight, problem.value_and_grad(spots.weight)[0], penalty)
        scale = jacobi_scale(part[part.nominal], spots.position, objective)
        found = minimize(
            Penalized(problem, cost), spots.weight, method="quasi_newton", scale=scale, max_iterations=iterations, tolerance=1e-4
        )
        spots = replace(spots, weight=found.x).keep(found.x > 1e-3 * found.x.max())
    return spots


def main(config: Config) -> dict:
    """Run what is asked for, write `results.json` after each case."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    results = {"about": about(), "config": asdict(config), "cases": {}}
    path = out / "results.json"
    if path.is_file():
        results["cases"] = json.loads(path.read_text())["cases"]
    numbers, parts = [float(s) for s in config.spacings.split(",") if s], config.parts.split(",")
    for name in config.cases.split(","):
        for n_scenarios in map(int, config.scenarios.split(",")):
            key = f"{name}, {n_scenarios} scenarios" + (", asking" if config.asking else "")
            log.info("%s", key)
            bench = Bench.of(
                CASES / f"{name}.toml", n_scenarios, grid=config.grid, margin=config.margin, asking=bool(config.asking),
                min_mu=config.min_mu, iterations=config.iterations, fixed_iterations=config.fixed_iterations, tolerance=config.tolerance,
            )  # fmt: skip
            earlier = results["cases"].get(key, {"plans": []})["plans"]
            if "grids" in parts:
                for spacing in numbers:
                    uniform_and_joint(bench, spacing)
                for entry in filter(None, config.jitter.split(",")):
                    jittered(bench, *(f(v) for f, v in zip((float, int), entry.split(":"), strict=True)))
            shares, penalties = ([float(s) for s in text.split(",") if s] for text in (config.shares, config.penalties))
            rows = [*(row for row, _ in bench.plans), *earlier]
            uniform = {row["label"]: row for row in reversed(rows) if row["series"] == "uniform"}
            reference = uniform.get(f"{config.base:g} mm", next(iter(uniform.values())))
            counts = [max(1, int(share * reference["delivered"])) for share in shares]
            if "pruned" in parts:
                pruned_plans(bench, bench.place(config.base), {"pruned": 0.0}, counts, penalties)
            boxes = {series: box for series, box in (("moved", 10.0), ("fixed", 0.0)) if series in parts}
            if boxes:
                pruned_plans(bench, ti.stagger(bench.place(config.moving_base), config.moving_base), boxes, counts, [])
            bench.judge(config.grid / 2)
            plans = [row for row, _ in bench.plans]
            kept = [row for row in earlier if row["series"] not in {row["series"] for row in plans}]
            results["cases"][key] = {"prescription": bench.case.prescription(), "plans": [*kept, *plans]}
            write_json(path, results)
    return results


if __name__ == "__main__":
    main(flags(Config, __doc__))
