"""How fast are the parts that a plan's time goes into, and how near to what this machine can do?

    python benchmarks/throughput.py [--case openkbp_109] [--repeats 7] [--out runs/throughput.json]

OpenKBP 109 with nine scenarios where the data lie beside the checkout, else the head-and-neck phantom. Measured: influence matrices in
kept entries per second (the count that comes before included), products with A and A^T in GB/s against the read bandwidth that the same
run measures, the pair kernel in pairs per second for dose and for the three gradients (pairs that its runs visit, and pairs within the
cut-off), iterations of the solver per second, peak memory. Numbers are medians with the range of the repeats; first calls, which compile
or load compiled code, do not count and are told apart. About two minutes on 2 cores.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from measure import DATA, Repeats, built_case, read_bandwidth, repeat
from visits import visits

from torchimpt.dose.influence import influence_matrices
from torchimpt.dose.scenarios import ScenarioDoses, scenario_doses
from torchimpt.memory import peak_memory
from torchimpt.optim import Composite, minimize
from torchimpt.planning.build import PlanningProblem
from torchimpt.runs.about import about
from torchimpt.runs.folder import write_json
from torchimpt.schemes.weights import best_uniform_weight, jacobi_scale
from torchimpt.studies.flags import flags

PAIR_AIMS = {"dose": 1.2, "three gradients": 1.0}
"""1e9 visited pairs a second."""


@dataclass(frozen=True)
class Config:
    """Flags; `grid` and `spacing` of zero are the case's own."""

    case: str = ""
    grid: float = 0.0
    spacing: float = 0.0
    repeats: int = 7
    iterations: int = 50
    out: str = "runs/throughput.json"


@dataclass(frozen=True)
class Row:
    """One line of the table: median, least and most, in the unit, and the least that is aimed at (None: no aim)."""

    name: str
    unit: str
    median: float
    low: float
    high: float
    aim: float | None = None

    def line(self) -> str:
        """As text."""
        verdict = "" if self.aim is None else f"aim {self.aim:g}: {'met' if self.median >= self.aim else 'missed'}"
        return f"{self.name:46s} {self.median:10.4g} {f'({self.low:.4g} to {self.high:.4g})':26s} {self.unit:22s} {verdict}"


def first_and_repeats(work, times: int) -> tuple[float, Repeats]:
    """Seconds of the first call, and the repeats after it."""
    return repeat(work, 1).median, repeat(work, times)


def matrices(built: PlanningProblem, doses: ScenarioDoses, times: int, first: dict[str, float]) -> list[Row]:
    """Assembly, and the products against the read bandwidth."""
    position = built.spots.position.detach()
    entries = sum(m.n_nonzeros for m in influence_matrices(doses, position))
    first["influence matrices"], taken = first_and_repeats(lambda: influence_matrices(doses, position), times)
    rows = [Row("influence matrices", "1e6 kept entries/s", *taken.rate(entries / 1e6), aim=40.0)]
    bandwidth = read_bandwidth(times)
    rows.append(Row("memory read bandwidth", "GB/s", *bandwidth))
    weight = torch.rand(built.spots.n_spots, dtype=built.compute.dtype)
    residual = torch.rand(len(doses), len(built.points), dtype=built.compute.dtype)
    size = built.linear.n_bytes / 2e9  # each product reads one of the two matrices
    for name, work in (("products A w", lambda: built.linear.forward(weight)), ("products A' r", lambda: built.linear.adjoint(residual))):
        first[name], taken = first_and_repeats(work, times)
        rate = taken.rate(size)
        rows.append(Row(name, "GB/s", *rate))
        rows.append(Row(f"{name}, of the read bandwidth", "%", *(100.0 * r / bandwidth[0] for r in rate)))
    return rows


def kernel(built: PlanningProblem, doses: ScenarioDoses, times: int, first: dict[str, float]) -> list[Row]:
    """Pairs per second of dose and gradients."""
    position, weight = built.spots.position.detach(), torch.rand(built.spots.n_spots, dtype=built.compute.dtype) + 0.1
    residual = torch.randn(len(built.points), dtype=built.compute.dtype)
    counts = [visits(o, position) for o in doses]
    seen, kept, behind, rows_of = (sum(column) / 1e9 for column in zip(*counts, strict=True))
    print(
        f"pairs of voxels and spots' components: {seen:.3f}e9 visited, {100 * kept / seen:.0f} % of them within range and cut-off, "
        f"{100 * behind / seen:.1f} % beyond range (aim: at most 10: {'met' if behind <= 0.1 * seen else 'missed'}); rows that are not "
        f"compacted would have {rows_of:.3f}e9\n"
    )
    jobs = {
        "dose": lambda: [o.dose(position, weight) for o in doses],
        "three gradients": lambda: [o.gradient(residual, position, weight) for o in doses],
    }
    rows = []
    for name, work in jobs.items():
        first[f"kernel, {name}"], taken = first_and_repeats(work, times)
        rows.append(Row(f"pair kernel, {name}, pairs visited", "1e9/s", *taken.rate(seen), aim=PAIR_AIMS[name]))
        rows.append(Row(f"pair kernel, {name}, pairs within cut-off", "1e9/s", *taken.rate(kept)))
        rows.append(Row(f"pair kernel, {name}, all scenarios", "s", taken.median, min(taken.seconds), max(taken.seconds)))
    return rows


def solver(built: PlanningProblem, config: Config) -> Row:
    """Iterations per second of the default method."""
    start = best_uniform_weight(built.linear, built.objective, built.spots.weight.detach())
    scale = jacobi_scale(built.doses[built.doses.nominal], built.spots.position.detach(), built.objective)

    def solve(n: int) -> None:
        minimize(Composite(built.linear, built.objective), start, scale=scale, max_iterations=n, tolerance=0.0)

    solve(3)
    taken = repeat(lambda: solve(config.iterations), max(2, config.repeats // 2))
    return Row("solver, projected_cg", "iterations/s", *taken.rate(config.iterations))


def main(config: Config) -> dict:
    """Measure, print, write."""
    machine = about()
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    name = config.case or ("openkbp_109" if (DATA / "openkbp").is_dir() else "hn")
    own = {"dose.grid_mm": config.grid, "spots.spacing_mm": config.spacing}
    built = built_case(name, [f"{key}={value}" for key, value in own.items() if value > 0])
    doses = scenario_doses(
        built.patient, built.machine, built.spots, built.points, built.scenarios,
        cutoff=built.case.dose.cutoff_sigma, dtype=built.compute.dtype,
    )  # fmt: skip
    sizes = {
        "case": name, "spots": built.spots.n_spots, "voxels": len(built.points), "scenarios": len(built.scenarios),
        "entries": built.linear.n_nonzeros, "dtype": str(built.compute.dtype),
    }  # fmt: skip
    print(", ".join(f"{key} {value:,}" if isinstance(value, int) else f"{key} {value}" for key, value in sizes.items()), "\n")
    first: dict[str, float] = {}
    rows = matrices(built, doses, config.repeats, first) + kernel(built, doses, config.repeats, first)
    rows.append(solver(built, config))
    print(*(row.line() for row in rows), sep="\n")
    print("\nfirst calls in this process: " + ", ".join(f"{key} {value:.2f} s" for key, value in first.items()))
    peak = peak_memory()
    print(f"peak memory {peak / 1e9:.2f} GB, of which matrices {built.linear.n_bytes / 1e9:.2f} GB (twice while they are timed)")
    found = {
        "machine": machine, "sizes": sizes, "config": asdict(config), "rows": [asdict(row) for row in rows], "first_calls_s": first,
        "peak_memory_bytes": peak,
    }  # fmt: skip
    write_json(Path(config.out), found)
    print(f"wrote {config.out}")
    return found


if __name__ == "__main__":
    main(flags(Config, __doc__))
