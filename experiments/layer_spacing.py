"""What shortens delivery: fewer spots or fewer energy layers?

    python experiments/layer_spacing.py [--case openkbp_109] [--scenarios 9] [--out runs/layer_spacing]

Plans one case with layers as dense as the Bragg peak asks and at 4, 6 and 8 mm of water, on a uniform 5 mm grid and with moving spots
from a staggered 12 mm grid, and prints objective, delivered spots and the parts of the delivery time (`torchimpt.spots.delivery`) on a
synchrotron; the seconds on the other machines are in `results.json`. Dose grid 4 mm. About 5 minutes for nine scenarios on 2 idle cores.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torchimpt as ti
from torchimpt.runs.about import about
from torchimpt.runs.folder import write_json
from torchimpt.schemes.schemes import optimize
from torchimpt.schemes.settings import Motion
from torchimpt.spots.delivery import MACHINES
from torchimpt.studies.bench import Bench
from torchimpt.studies.flags import flags


@dataclass(frozen=True)
class Config:
    """Flags."""

    case: str = "openkbp_109"
    scenarios: int = 9
    layers: str = "bragg80,4,6,8"
    uniform: float = 5.0
    moving: float = 12.0
    grid: float = 4.0
    out: str = "runs/layer_spacing"


def main(config: Config) -> dict:
    """Plan, print, write `results.json`."""
    bench = Bench.of(Path(__file__).parent / "cases" / f"{config.case}.toml", config.scenarios, grid=config.grid)
    facts = about()
    print(facts)
    rows, head = [], ("layers", "spots", "placed", "delivered", "energies", "objective", "seconds", "switching", "spots+scan", "beam on")
    print(("{:>12s}" * len(head)).format(*head))
    for layers in config.layers.split(","):
        spacing = layers if layers == "bragg80" else float(layers)
        for name, pitch in (("uniform", config.uniform), ("moving", config.moving)):
            spots = bench.place(pitch, layer_spacing=spacing)
            spots = spots if name == "uniform" else ti.stagger(spots, pitch)
            solver, motion = (bench.fixed, None) if name == "uniform" else (bench.solver, Motion())
            found = optimize(bench.doses(spots), bench.robust, spots, solver, motion)
            plan = found.spots.spots(spots)
            times = {machine: ti.delivery_time(plan, bench.machine, model) for machine, model in MACHINES.items()}
            time = times["synchrotron"]
            rows.append({"layers": layers, "spots": name, "placed": spots.n_spots, "objective": found.solution.value, "delivery": times})
            print(
                f"{layers:>12s}{name:>12s}{spots.n_spots:12d}{time['spots']:12d}{time['energy_layers']:12d}{found.solution.value:12.1f}"
                f"{time['seconds']:12.0f}{time['energy_switch_s']:12.0f}{time['spot_s'] + time['scan_s']:12.1f}{time['beam_on_s']:12.0f}"
            )
    results = {"about": facts, "config": asdict(config), "rows": rows}
    Path(config.out).mkdir(parents=True, exist_ok=True)
    write_json(Path(config.out) / "results.json", results)
    return results


if __name__ == "__main__":
    main(flags(Config, __doc__))
