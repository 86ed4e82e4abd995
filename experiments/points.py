"""Does a plan hold on a grid that it was not made on? Middles of voxels against points in cells, judged on 1.25 mm.

    python experiments/points.py [--cases hn,tg119,openkbp_109] [--scenarios 1,9] [--ways off,auto] [--grid 3] [--iterations 300]
                                 [--rounds 1] [--out runs/points.json]

Prints, for each case and way of looking (`[dose] target_grid_mm`; `off`: at the middles of voxels), D95, D98 and D2 of the first target in
the nominal scenario, as planned and on 1.25 mm, how far the three are apart at most, % of the prescription, the matrices' entries, and the
seconds of the whole plan without the check (median over rounds, ways by turns), also over those of the first way.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torchimpt as ti
from torchimpt.planning.plan import plan
from torchimpt.runs.about import about
from torchimpt.runs.folder import write_json
from torchimpt.studies.flags import flags

CASES = Path(__file__).parent / "cases"
KEYS = ("d95_gy", "d98_gy", "d2_gy")


@dataclass(frozen=True)
class Config:
    """Flags."""

    cases: str = "hn,tg119,openkbp_109"
    scenarios: str = "1,9"
    ways: str = "off,auto"
    grid: float = 3.0
    iterations: int = 300
    rounds: int = 1
    out: str = "runs/points.json"


def planned(name: str, n_scenarios: int, way: str, config: Config) -> dict[str, Any]:
    """One plan: its row."""
    settings = [
        f"dose.grid_mm={config.grid}", f"dose.target_grid_mm={way}", "dose.check_mm=1.25", f"optimizer.max_iterations={config.iterations}",
    ]  # fmt: skip
    if n_scenarios == 1:
        settings += ["robustness.setup_mm=0", "robustness.range_percent=0"]
    case = ti.load_case(CASES / f"{name}.toml", settings)
    result = plan(case)
    target, level, metrics = case.placement.targets[0], case.highest_prescription() or 1.0, result.metrics
    seen, fine = (rois[target] for rois in (metrics["scenarios"][0]["rois"], metrics["fine"]["rois"]))
    pairs = [(seen[key], fine[key]) for key in KEYS]
    return {
        "case": name, "scenarios": n_scenarios, "way": way, "target": target,
        "planned": [a for a, _ in pairs], "fine": [b for _, b in pairs],
        "percent": max(abs(a - b) for a, b in pairs) / level * 100.0, "nonzeros": metrics["matrix"]["nonzeros"],
        "seconds": metrics["time_s"]["total"] - metrics["time_s"]["check"], "optimize": metrics["time_s"]["optimize"],
        "iterations": metrics["iterations"],
    }  # fmt: skip


def main(config: Config) -> dict[str, Any]:
    """Plan, print, write."""
    facts, rows = about(), []
    print(facts)
    print(f"{'case':14s}{'scen.':>6s} {'way':8s} D95 planned|1.25 mm   D98              D2              worst   entries seconds of first")
    for name in config.cases.split(","):
        for n_scenarios in map(int, config.scenarios.split(",")):
            runs: dict[str, list[dict[str, Any]]] = {way: [] for way in config.ways.split(",")}
            for _ in range(config.rounds):
                for way, done in runs.items():
                    done.append(planned(name, n_scenarios, way, config))
            first = median(row["seconds"] for row in next(iter(runs.values())))
            for way, done in runs.items():
                seconds = median(row["seconds"] for row in done)
                row = {**done[0], "seconds": seconds, "ratio": seconds / first, "all_seconds": [r["seconds"] for r in done]}
                rows.append(row)
                pairs = "   ".join(f"{a:6.2f}|{b:6.2f}" for a, b in zip(row["planned"], row["fine"], strict=True))
                print(
                    f"{name:14s}{n_scenarios:6d} {way:8s} {pairs}  {row['percent']:5.2f} % {row['nonzeros'] / 1e6:7.1f}M {seconds:7.1f} "
                    f"{row['ratio']:6.2f}",
                    flush=True,
                )
    results = {"about": facts, "config": asdict(config), "rows": rows}
    write_json(Path(config.out), results)
    return results


if __name__ == "__main__":
    main(flags(Config, __doc__))
