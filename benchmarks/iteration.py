"""What does an iteration of the default solver cost, in products with the matrices?

    python benchmarks/iteration.py [--case paper/lung] [--grid 5] [--spacing 5] [--engine matrix] [--out runs/iteration.json]

Runs the solver on a case with a stop-watch around everything that it calls: products with A (one an iteration, with the direction), with
A' (one), and with the few columns that the bounds cut off; the objective's ray, the looks along it, and its value and gradient; the rest
is the solver's own. An iteration's aim is 1.15 of one product with A and one with A'; of the dose-volume goals, that they are less than a
tenth of it. The lung case of Xu et al. by default, on a coarser grid than its own, so that its matrices fit a small machine; the entries
of a voxel, which the ratio depends on, are the case's. About a minute.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from measure import built_case, read_bandwidth

from torchimpt.objectives import dose_volume
from torchimpt.optim import Composite, minimize
from torchimpt.runs.about import about
from torchimpt.runs.folder import write_json
from torchimpt.schemes.weights import best_uniform_weight, jacobi_scale
from torchimpt.studies.flags import flags

AIM, AIM_SORTING = 1.15, 0.1


@dataclass(frozen=True)
class Config:
    """Flags; `grid` and `spacing` of zero are the case's own."""

    case: str = "paper/lung"
    grid: float = 5.0
    spacing: float = 5.0
    engine: str = "matrix"
    iterations: int = 40
    out: str = "runs/iteration.json"


class Watch:
    """Seconds and calls of what it is put around."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()

    def around(self, name: str, work: Callable) -> Callable:
        """The same function, timed."""

        def timed(*args: Any) -> Any:
            begin = time.perf_counter()
            found = work(*args)
            self.seconds[name] += time.perf_counter() - begin
            self.calls[name] += 1
            return found

        return timed

    def clear(self) -> None:
        """Begin anew."""
        self.seconds.clear()
        self.calls.clear()


class Timed:
    """A linear map or an objective with a watch around its methods."""

    def __init__(self, inner: Any, names: dict[str, str], watch: Watch) -> None:
        for method, name in names.items():
            setattr(self, method, watch.around(name, getattr(inner, method)))


def watched(built: Any, watch: Watch) -> Composite:
    """The case's problem, timed."""
    linear = Timed(built.linear, {"forward": "A d", "adjoint": "A' r", "columns": "columns"}, watch)
    outer = Timed(built.objective, {"value_and_grad": "value and gradient", "along": "ray, made"}, watch)
    make = outer.along
    outer.along = lambda image, rate: watch.around("ray, looked along", make(image, rate))
    make_ray = watch.around("of these, dose-volume goals", dose_volume.excused_ray)
    dose_volume.excused_ray = lambda *goal: watch.around("of these, dose-volume goals", make_ray(*goal))
    dose_volume.excused_value_and_grad = watch.around("of these, dose-volume goals", dose_volume.excused_value_and_grad)
    return Composite(linear, outer)


def main(config: Config) -> dict:
    """Measure, print, write."""
    machine, watch = about(), Watch()
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    own = {"dose.grid_mm": config.grid, "spots.spacing_mm": config.spacing}
    built = built_case(config.case, [f"{key}={value}" for key, value in own.items() if value > 0] + [f"dose.engine={config.engine}"])
    bandwidth = read_bandwidth(5)[0]
    print(
        f"{config.case}: {built.spots.n_spots:,} spots, {len(built.points):,} points, {len(built.scenarios)} scenarios, "
        f"{built.linear.n_nonzeros:,} entries, {built.linear.n_bytes / 1e9:.2f} GB; read bandwidth {bandwidth:.1f} GB/s\n"
    )
    start = best_uniform_weight(built.linear, built.objective, built.spots.weight.detach())
    scale = jacobi_scale(built.doses[built.doses.nominal], built.spots.position.detach(), built.objective)
    problem = watched(built, watch)
    minimize(problem, start, scale=scale, max_iterations=3, tolerance=0.0)
    watch.clear()
    begin = time.perf_counter()
    solution = minimize(problem, start, scale=scale, max_iterations=config.iterations, tolerance=0.0)
    seconds, n = time.perf_counter() - begin, solution.iterations
    products = watch.seconds["A d"] / watch.calls["A d"] + watch.seconds["A' r"] / watch.calls["A' r"]
    print(f"{'':28s}{'ms / iteration':>16s}{'calls / iteration':>20s}{'of one A and one A^T':>23s}")
    rest = seconds - sum(s for name, s in watch.seconds.items() if not name.startswith("of these"))
    for name, spent in [*watch.seconds.items(), ("the solver's own", rest), ("whole iteration", seconds)]:
        print(f"{name:28s}{1e3 * spent / n:16.2f}{watch.calls[name] / n:20.2f}{spent / n / products:23.3f}")
    ratio, sorting = seconds / n / products, watch.seconds["of these, dose-volume goals"] / seconds
    print(f"\nan iteration is {ratio:.3f} of one A and one A^T product, aim {AIM}: {'met' if ratio <= AIM else 'missed'}")
    print(f"dose-volume goals {sorting:.3f} of it, aim below {AIM_SORTING}: {'met' if sorting < AIM_SORTING else 'missed'}")
    found = {
        "machine": machine, "config": asdict(config), "iterations": n, "seconds": dict(watch.seconds), "calls": dict(watch.calls),
        "whole_s": seconds, "ratio": ratio, "selection_share": sorting, "read_bandwidth_gb_s": bandwidth,
    }  # fmt: skip
    write_json(Path(config.out), found)
    return found


if __name__ == "__main__":
    main(flags(Config, __doc__))
