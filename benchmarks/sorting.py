"""When is a selection faster than a sort for dose-volume goals?

    python benchmarks/sorting.py [--sizes 100,...,1000000] [--repeats 7] [--out runs/sorting.json]

Value and gradient of one goal (`torchimpt.objectives.selection`) against what they were made with before: a full sort with a running sum
of volumes, and torch's topk where all volumes are one. Doses as in a lung: most voxels near zero, a tail in the field. Half of the
violating volume is excused, the dearest case; where the goal is met there is nothing to select, which is the column "met". All ways take
turns and must give the same value. Prints the size from which the selection is faster; `benchmarks/iteration.py` tells what goals cost in
an iteration. Under a minute.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from measure import read_bandwidth, repeat

from torchimpt.objectives.selection import excused_value_and_grad
from torchimpt.runs.about import about
from torchimpt.runs.folder import write_json
from torchimpt.studies.flags import flags
from torchimpt.sums import total

LEVEL = 5.0
PAIRS = (("sort", "selection"), ("topk", "equal volumes"))


@dataclass(frozen=True)
class Config:
    """Flags."""

    sizes: str = "100,300,1000,3000,10000,30000,100000,300000,1000000"
    scenarios: int = 9
    repeats: int = 7
    seed: int = 1
    out: str = "runs/sorting.json"


def by_sort(dose: torch.Tensor, volume: torch.Tensor, allowed: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Value and gradient of the goal by a full sort."""
    excess = (dose - LEVEL).clamp_min(0)
    ranked, order = excess.sort(dim=-1, descending=True)
    excess.scatter_(-1, order, ranked.masked_fill_(volume[order].cumsum(-1) <= allowed, 0.0))
    pull = excess * volume.to(dose)
    return total(pull * excess), 2.0 * pull


def by_topk(dose: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same where all volumes are one, by torch's topk."""
    excess = (dose - LEVEL).clamp_min(0)
    excess.scatter_(-1, excess.topk(count, dim=-1, sorted=False).indices, 0.0)
    return total(excess * excess), 2.0 * excess


def measure(n: int, config: Config) -> dict:
    """Seconds of all ways, by turns, at one size."""
    random = torch.Generator().manual_seed(config.seed)
    dose = 60.0 * torch.rand(config.scenarios, n, generator=random) ** 4
    volume = torch.rand(n, generator=random, dtype=torch.float64) + 0.5
    violating = float(((dose > LEVEL) * volume).sum(-1).max())
    count = int(0.5 * violating)
    ways = {
        "sort": lambda: by_sort(dose, volume, 0.5 * violating),
        "selection": lambda: excused_value_and_grad(dose, 1.0, LEVEL, volume, 0.5 * violating),
        "met": lambda: excused_value_and_grad(dose, 1.0, LEVEL, volume, violating + 1e-6),
        "topk": lambda: by_topk(dose, count),
        "equal volumes": lambda: excused_value_and_grad(dose, 1.0, LEVEL, None, count),
    }
    for one, other in PAIRS:
        if not torch.allclose(ways[one]()[0], ways[other]()[0], rtol=1e-5):
            raise SystemExit(f"{one} and {other} differ at {n} voxels")
    turns = [{name: repeat(work, 1).median for name, work in ways.items()} for _ in range(config.repeats)]
    seconds = {name: median(turn[name] for turn in turns) for name in ways}
    return seconds | {f"{one} / {other}": median(turn[one] / turn[other] for turn in turns) for one, other in PAIRS}


def main(config: Config) -> dict:
    """Measure, print, write."""
    machine = about()
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(f"\n{config.scenarios} scenarios, ms of value and gradient; read bandwidth {read_bandwidth(5)[0]:.1f} GB/s")
    columns = ("sort", "selection", "met", "sort / selection", "topk", "equal volumes", "topk / equal volumes")
    width = [max(11, len(name) + 2) for name in columns]
    print(f"{'voxels':>9s}" + "".join(f"{name:>{w}s}" for name, w in zip(columns, width, strict=True)))
    found = {}
    for n in map(int, config.sizes.split(",")):
        found[n] = row = measure(n, config)
        values = (row[name] * (1.0 if "/" in name else 1e3) for name in columns)
        print(f"{n:9,d}" + "".join(f"{value:{w}.3f}" for value, w in zip(values, width, strict=True)), flush=True)
    for one, other in PAIRS:
        slower = max((n for n, row in found.items() if row[f"{one} / {other}"] < 1.0), default=0)
        print(f"selection before {one} from {min((n for n in found if n > slower), default=0):,} voxels on")
    results = {"machine": machine, "config": asdict(config), "sizes": found}
    write_json(Path(config.out), results)
    return results


if __name__ == "__main__":
    main(flags(Config, __doc__))
