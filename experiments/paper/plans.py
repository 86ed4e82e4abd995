"""The three plans of a case of Xu et al. 2020: PTV margin, voxelwise worst case, and their nine scenarios.

    python experiments/paper/plans.py --case hn [--plans ptv,voxelwise,nine] [--set optimizer.method=dyhs_cg] [--runs runs/paper]

All three have the case file's objectives, weights, margin of the spots, solver and tolerance. Prints the size of the problem beside the
paper's, and of each plan the seconds of its parts, iterations and objective; leaves `plan.json` and `metrics.json` in
`runs/paper/<case>/<plan>`, for `judge.py` and `figures.py`.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

from common import PLANS, folder, paper_case, plan_case, sizes

from torchimpt.io.plan import write_plan
from torchimpt.planning.plan import plan
from torchimpt.runs.about import about
from torchimpt.runs.folder import write_json
from torchimpt.studies.flags import flags


@dataclass(frozen=True)
class Config:
    """Flags."""

    case: str = "hn"
    plans: str = ",".join(PLANS)
    set: str = ""
    """`key=value` pairs that replace what the case file says, with blanks between them."""
    runs: str = "runs/paper"


def told(name: str, row: dict[str, Any]) -> str:
    """A plan in one line."""
    seconds, spots = row["time_s"], row["spots"]
    return (
        f"{name:10s} {row['iterations']:4d} iterations in {seconds['optimize']:.1f} s, objective {row['objective']['final']:.5g}, "
        f"{spots['count']:,} spots, {spots['nonzero']:,} delivered; load {seconds['load']:.1f} s, dose {seconds['dose']:.1f} s, "
        f"all {seconds['total']:.1f} s; {row['peak_memory_bytes'] / 1e9:.1f} GB; {row['stop_reason']}"
    )


def main(config: Config) -> dict[str, Any]:
    """Plan, print, write."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    case, found = paper_case(config.case, config.set.split()), {}
    facts = about()
    print(facts)
    for name in config.plans.split(","):
        own = plan_case(case, name)
        result = plan(own, device="cpu")
        out = folder(config.runs, config.case, name)
        out.mkdir(parents=True, exist_ok=True)
        write_plan(out / "plan.json", result.spots, result.machine, fractions=own.delivery.fractions)
        row = {
            "about": facts, "load": round(os.getloadavg()[0], 2), "case": config.case, "plan": name, "set": config.set,
            "method": own.optimizer.method or "projected_cg", "engine": own.dose.engine, "tolerance": own.optimizer.tolerance,
            **result.metrics,
        }  # fmt: skip
        if name == "nine":
            row["size"] = sizes(config.case, case, result.patient, result.spots.n_spots)
            for key, one in row["size"].items():
                print(f"{key:8s} {one['own']:12,.1f}   paper {one['paper']:12,.1f}   {one['percent']:+.1f} %")
        write_json(out / "metrics.json", row)
        found[name] = row
        print(told(name, row), flush=True)
    return found


if __name__ == "__main__":
    main(flags(Config, __doc__))
