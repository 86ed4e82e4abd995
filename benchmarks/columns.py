"""What does a product with several vectors of weights at once bring over one after the other?

    python benchmarks/columns.py [--case hn] [--grid 4] [--spacing 7] [--repeats 15] [--threads 1] [--out runs/columns.json]

The nominal influence matrix of a case, both ways: `k` products of one vector against one of `k` vectors, timed by turns in the process's
CPU seconds, which other programs on the machine change little; the least of each counts. About a minute.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from measure import built_case

from torchimpt.dose.influence import influence_matrices
from torchimpt.runs.about import about
from torchimpt.runs.folder import write_json
from torchimpt.studies.flags import flags


@dataclass(frozen=True)
class Config:
    """Flags."""

    case: str = "hn"
    grid: float = 4.0
    spacing: float = 7.0
    repeats: int = 15
    threads: int = 1
    out: str = "runs/columns.json"


def by_turns(works: dict[str, Callable[[], object]], times: int) -> dict[str, float]:
    """The least seconds of each, done one after the other again and again; the first round does not count."""
    least: dict[str, float] = {}
    for turn in range(times + 1):
        for name, work in works.items():
            begin = time.process_time()
            work()
            if turn:
                least[name] = min(least.get(name, float("inf")), time.process_time() - begin)
    return least


def main(config: Config) -> None:
    """Measure, print, write."""
    torch.set_num_threads(config.threads)
    where = about()
    print(json.dumps(where))
    keys = [f"dose.grid_mm={config.grid}", f"spots.spacing_mm={config.spacing}", "robustness.setup_mm=0", "robustness.range_percent=0"]
    built = built_case(config.case, keys)
    (matrix,) = influence_matrices(built.doses, built.spots.position)
    print(f"{matrix.shape[0]:,} points, {matrix.shape[1]:,} spots, {matrix.n_nonzeros:,} entries")
    rows = []
    for name, map_ in (("A", matrix), ("A'", matrix.T)):
        for k in (2, 4, 8, 16):
            x = torch.rand(map_.shape[1], k)
            one = x[:, 0].contiguous()
            least = by_turns({"one": lambda: map_ @ one, "all": lambda: map_ @ x}, config.repeats)  # noqa: B023
            rows.append({"map": name, "k": k, **least})
            gain = k * least["one"] / least["all"]
            each, together = 1e3 * least["one"], 1e3 * least["all"]
            print(f"{name:2s} {k:2d} vectors: {each:.1f} ms each, {together:.1f} ms together: {gain:.2f} times as fast", flush=True)
    write_json(Path(config.out), {"about": where, "config": asdict(config), "rows": rows})


if __name__ == "__main__":
    main(flags(Config, __doc__))
