"""How many delivered spots do moving spots need for the objective of the strongest fixed rival?

    python experiments/headline.py [--cases hn,tg119,openkbp_109] [--scenarios 1,9] [--out runs/headline.json]
    python experiments/headline.py --show experiments/results/headline.json

All plans of a case have one objective, one set of points, one solver, tolerance and minimum MU, and the case's range shifters and layers.
Fixed rivals, each pruned step by step to a number of spots as `[joint] spots` does it, weights optimized at the minimum MU or above:

    pruned, margin 8      square grid of 5 mm, margin 8 mm
    pruned, margin 15     the same, margin 15 mm
    pruned, everywhere    every layer of a beam at every position that any of its layers has, margin 8 mm

    moved, ...            staggered grids of 7 mm with the same margins and candidates, pruned the same way to fewer spots, which move

Finished plans are judged on 1.25 mm, another dose grid and other points. `ratio`: delivered spots that moving plans need for a rival's
objective (log-log between the moving plans' own; a bound, "<", where even the fewest that were tried are as good), over the rival's: by
moving plans of the rival's own margin and candidates, and by all moving plans there are. The strongest rival has the largest. Where an
objective is under 1 Gy2, all is met and nothing is compared: `--asking 1` has the mean-dose objectives ask for 0 Gy. `--shifter 0` takes
the range shifters away. `--show` prints the tables of a file.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from joint_tables import MET, spots_for
from joint_vs_uniform import pruned_plans

import torchimpt as ti
from torchimpt.runs.about import about
from torchimpt.runs.folder import write_json
from torchimpt.studies.bench import Bench
from torchimpt.studies.flags import flags

CASES = Path(__file__).parent / "cases"


@dataclass(frozen=True)
class Config:
    """Flags."""

    cases: str = "hn,tg119,openkbp_109"
    scenarios: str = "1,9"
    grid: float = 3.0
    judge: float = 1.25
    moving: str = "0.04,0.08,0.16"
    fixed: str = "0.12,0.3"
    iterations: int = 300
    tolerance: float = 1e-4
    min_mu: float = 0.01
    margins: str = "8,15,everywhere"
    asking: int = 0
    shifter: int = 1
    out: str = "runs/headline.json"
    show: str = ""


def everywhere(spots: ti.Spots) -> ti.Spots:
    """Every layer of a beam at every position that any of its layers has."""
    columns: list[list[torch.Tensor]] = []
    for beam in range(len(spots.beams)):
        places = spots.position.detach()[spots.beam == beam].double().mul(1e4).round().unique(dim=0) / 1e4
        layers = (spots.layer_beam == beam).nonzero().flatten()
        layer, place = (index.flatten() for index in torch.meshgrid(layers, torch.arange(len(places)), indexing="ij"))
        columns.append([torch.full_like(layer, beam), spots.layer_energy[layer], *places[place].unbind(1), spots.layer_shifted[layer]])
    of_beam, energy, x, y, shifted = (torch.cat(parts) for parts in zip(*columns, strict=True))
    return ti.Spots.from_columns(spots.beams, of_beam, energy, x, y, torch.ones_like(x), spots.weight.dtype, shifted)


def planned(name: str, n_scenarios: int, config: Config) -> dict:
    """All plans of a case, judged."""
    bench = Bench.of(
        CASES / f"{name}.toml", n_scenarios, grid=config.grid, min_mu=config.min_mu, iterations=config.iterations,
        fixed_iterations=config.iterations, tolerance=config.tolerance, asking=bool(config.asking), shifter=bool(config.shifter),
    )  # fmt: skip
    n_square = bench.place(5.0).n_spots
    counts = {kind: [max(20, int(float(s) * n_square)) for s in getattr(config, kind).split(",")] for kind in ("fixed", "moving")}
    placed: dict[str, int] = {}
    for margin in config.margins.split(","):
        places = f"margin {margin}" if margin != "everywhere" else margin
        for kind, spacing, series, box in (("moving", 7.0, f"moved, {places}", 10.0), ("fixed", 5.0, f"pruned, {places}", 0.0)):
            start = everywhere(bench.place(spacing)) if margin == "everywhere" else bench.place(spacing, margin=float(margin))
            placed[series] = start.n_spots
            pruned_plans(bench, ti.stagger(start, spacing) if box else start, {series: box}, counts[kind], [])
    bench.judge(config.judge)
    plans = [row for row, _ in bench.plans]
    rate(plans)
    return {"placed": placed, "target": bench.case.placement.targets[0], "plans": plans}


def rate(plans: list[dict]) -> None:
    """Give every fixed rival its ratios, and whether they are bounds."""
    moving = [plan for plan in plans if plan["series"].startswith("moved")]
    for plan in plans:
        own = [m for m in moving if m["series"].split(", ")[1] == plan["series"].split(", ")[1]]
        for key, rivals in (("ratio", own), ("ratio_any", moving)):
            needed, bound = (None, False) if plan in moving or plan["objective"] < MET else least_spots(rivals, plan["objective"])
            plan[key], plan[f"{key}_bound"] = None if needed is None else needed / plan["delivered"], bound


def least_spots(moving: list[dict], objective: float) -> tuple[float | None, bool]:
    """The fewest delivered spots with which one of the moving series reaches an objective, and whether fewer were not tried."""
    found: list[tuple[float, bool]] = []
    for name in sorted({plan["series"] for plan in moving}):
        own = sorted((plan for plan in moving if plan["series"] == name), key=lambda plan: plan["delivered"])
        if own[0]["objective"] <= objective:
            found.append((own[0]["delivered"], True))
        elif (between := spots_for(own, objective)) is not None:
            found.append((between, False))
    return min(found, default=(None, False))


def told(plan: dict, key: str) -> str:
    """A ratio."""
    return "" if plan[key] is None else f"{'<' if plan[f'{key}_bound'] else ''}{plan[key]:.2f}"


def table(key: str, case: dict) -> str:
    """A case's plans, one a line."""
    lines = [f"{key}, {case['target']}; placed {case['placed']}"]
    lines.append(
        f"{'series':20s}{'delivered':>10s}{'objective':>11s}{'1.25 mm':>9s}  D95, D98, D2 there, nominal  "
        "layers  MU    s a fraction  ratio, any"
    )
    for plan in case["plans"]:
        dose, delivery = plan["fine"]["nominal"][case["target"]], plan["delivery"]
        ratio = " ".join(told(plan, key) for key in ("ratio", "ratio_any"))
        lines.append(
            f"{plan['series']:20s}{plan['delivered']:10d}{plan['objective']:11.2f}{plan['fine']['objective']:9.1f}  "
            f"{dose['d95_gy']:8.2f} {dose['d98_gy']:8.2f} {dose['d2_gy']:8.2f}  {delivery['energy_layers']:8d} {delivery['mu']:8.1f} "
            f"{delivery['seconds']:8.1f} {ratio:>9s}"
        )
    for key, by in (("ratio", "its own margin and candidates"), ("ratio_any", "any")):
        ratios = {p["series"]: told(p, key) for p in sorted(case["plans"], key=lambda p: p[key] or 0.0) if p[key]}
        lines.append(f"ratio of each rival, by moving spots of {by}: {ratios}")
    return "\n".join(lines)


def main(config: Config) -> dict:
    """Plan, judge, print, write after each case; or print what is there."""
    if config.show:
        results = json.loads(Path(config.show).read_text(encoding="utf-8"))
        for key, case in results["cases"].items():
            rate(case["plans"])
            print(table(key, case))
        return results
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("torchimpt.studies").setLevel(logging.INFO)
    results = {"about": about(), "config": asdict(config), "cases": {}}
    print(results["about"])
    for name in config.cases.split(","):
        for n_scenarios in map(int, config.scenarios.split(",")):
            key = f"{name}, {n_scenarios} scenarios" + ", asking" * bool(config.asking) + ", no shifter" * (not config.shifter)
            results["cases"][key] = planned(name, n_scenarios, config)
            write_json(Path(config.out), results)
            print(table(key, results["cases"][key]), flush=True)
    return results


if __name__ == "__main__":
    main(flags(Config, __doc__))
