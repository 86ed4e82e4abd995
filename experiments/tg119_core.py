"""TG-119 under nine scenarios: do moving spots spare the core, too, when the objective asks harder?

    python experiments/tg119_core.py

Plans 1,114 moving spots with the core's weight times 1, 1.2, 1.5 and 2, and prints for each the objective with the weights as they were,
and worst-case D95, D98 and D2 on the fine grid, to be held against the uniform 5 mm plan of `joint_vs_uniform.py`. About 3 minutes on
2 idle cores.
"""

from __future__ import annotations

from pathlib import Path

import torchimpt as ti
from torchimpt.schemes.schemes import optimize
from torchimpt.schemes.settings import Motion
from torchimpt.studies.bench import Bench


def main() -> None:
    """Plan, print."""
    bench = Bench.of(Path(__file__).parent / "cases" / "tg119.toml", 9)
    spots = ti.stagger(bench.place(12.0), 12.0)
    doses, settings = bench.doses(spots), bench.case.optimizer
    for factor in (1.0, 1.2, 1.5, 2.0):
        asked = [o.model_copy(update={"weight": o.weight * (factor if o.roi == "Core" else 1.0)}) for o in bench.case.objective]
        terms = bench.case.model_copy(update={"objective": asked}).terms()
        objective = ti.Objective(terms, normalize=settings.normalize, overlap=settings.overlap).at(bench.points, bench.points.volume)
        found = optimize(doses, ti.RobustObjective(objective, quantity=bench.quantity), spots, bench.solver, Motion())
        row = bench.add("joint", f"core x {factor:g}", spots, found, 0.0)
        row["own"] = float(bench.robust.value(found.doses))
    bench.judge(2.0)
    for row, _ in bench.plans:
        doses = {
            roi: " ".join(f"{key[:-3]} {found[key]:.2f}" for key in ("d95_gy", "d98_gy", "d2_gy"))
            for roi, found in row["fine"]["worst"].items()
        }
        print(f"{row['label']:12s} objective as it was {row['own']:.0f}  {doses}")


if __name__ == "__main__":
    main()
