"""What does a max_dose on the whole body cost on sampled voxels, and is the plan that of all voxels?

    python benchmarks/external.py [--case hn] [--iterations 300] [--grid 3] [--repeats 3] [--full true] [--out runs/external.json]

Plans a case of `experiments/cases` three ways by turns: without its objective of the body, with it on sampled voxels, and with it on all.
A first plan warms up and is not counted. Prints seconds and processor seconds of each whole plan, the medians of the ratios within a
round, and how far the objective of the sampled plan, on all voxels, is from that of the full one, with the targets' outcome. All ways
take the same number of iterations: by a stop rule the times would be those of different searches. The aims are 1.3 and 1 %.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from measure import CASES

from torchimpt.case import Case, load_case
from torchimpt.planning.plan import plan
from torchimpt.runs.about import about
from torchimpt.runs.folder import write_json
from torchimpt.studies.flags import flags

AIM_TIME, AIM_OBJECTIVE = 1.3, 0.01
BODIES = ("External", "BODY")
"""The body's names in the cases."""


@dataclass(frozen=True)
class Config:
    """Flags."""

    case: str = "hn"
    iterations: int = 300
    tolerance: float = 1e-9
    grid: float = 3.0
    repeats: int = 3
    full: bool = True
    out: str = "runs/external.json"


def ways(config: Config) -> dict[str, Case]:
    """The case three ways."""
    case = load_case(CASES / f"{config.case}.toml", _settings(config))
    full = case.model_copy(update={"optimizer": case.optimizer.model_copy(update={"sample_above": 10**9})})
    without = case.model_copy(update={"objective": [o for o in case.objective if o.roi not in BODIES]})
    return {"without": without, "sampled": case, **({"full": full} if config.full else {})}


def _settings(config: Config) -> list[str]:
    return [f"optimizer.max_iterations={config.iterations}", f"optimizer.tolerance={config.tolerance}", f"dose.grid_mm={config.grid}"]


def timed(case: Case) -> dict:
    """A plan's seconds, processor seconds, and what came of it."""
    wall, processor = time.perf_counter(), time.process_time()
    result = plan(case, device="cpu")
    found, targets = result.metrics, case.spots.targets if case.spots else ()
    return {
        "seconds": time.perf_counter() - wall,
        "processor_seconds": time.process_time() - processor,
        "objective": found["objective"]["final"],
        "iterations": found["iterations"],
        "sampling": found.get("sampling"),
        "hottest": found["hottest_outside_targets"]["worst"],
        "targets": {name: found["worst"][name] for name in targets},
    }


def main(config: Config) -> dict:
    """Time, print, write."""
    facts, cases = about(), ways(config)
    timed(cases["sampled"].model_copy(update={"optimizer": cases["sampled"].optimizer.model_copy(update={"max_iterations": 30})}))
    rounds = [{name: timed(case) for name, case in cases.items()} for _ in range(config.repeats)]
    found: dict = {"about": facts, "config": asdict(config), "rounds": rounds, "ratios": {}}
    print(facts)
    for name in cases:
        last, (wall, processor) = rounds[-1][name], ([r[name][key] for r in rounds] for key in ("seconds", "processor_seconds"))
        told = "; ".join(f"{roi} D95 {row['d95_gy']:.2f}, D2 {row['d2_gy']:.2f} Gy at worst" for roi, row in last["targets"].items())
        hottest = f"{last['hottest']['d1cm3_gy']:.2f} Gy"
        print(
            f"{name}: {median(wall):.1f} s, processor {median(processor):.1f} s, {last['iterations']} iterations, objective "
            f"{last['objective']:.5g}; {told}; hottest 1 cm3 outside {hottest}"
        )
        for key in ("seconds", "processor_seconds"):
            found["ratios"][f"{name}_{key}"] = sorted(r[name][key] / r["without"][key] for r in rounds)
    ratio = median(found["ratios"]["sampled_processor_seconds"])
    print(
        f"sampled against without: {median(found['ratios']['sampled_seconds']):.2f} of the time, {ratio:.2f} of the processor's, "
        f"aim {AIM_TIME}: {'met' if ratio <= AIM_TIME else 'missed'}; {rounds[-1]['sampled']['sampling']}"
    )
    if config.full:
        found["objective"] = off = rounds[-1]["sampled"]["objective"] / rounds[-1]["full"]["objective"] - 1.0
        print(
            f"full against without: {median(found['ratios']['full_seconds']):.2f} of the time; objective of the sampled plan on all "
            f"voxels {100 * off:+.2f} %, aim {100 * AIM_OBJECTIVE:g} %: {'met' if off <= AIM_OBJECTIVE else 'missed'}"
        )
    write_json(Path(config.out), found)
    return found


if __name__ == "__main__":
    main(flags(Config, __doc__))
