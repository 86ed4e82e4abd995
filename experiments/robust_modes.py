"""What does each robust mode, and a constraint on the cord, make of one head-and-neck plan?

    python experiments/robust_modes.py [--case hn] [--grid 4] [--spacing 7] [--iterations 300] [--limit 20] [--d2 15] [--only sum,cvar]

One case, its objectives and its nine scenarios, planned once with every mode; then with the sum again and the cord's maximum as a
constraint, at the level of its objective and at `--limit`, and with its D2 at `--d2`. Each plan is computed again in its nine scenarios and
in 100 random ones (normal errors, the case's being two standard deviations) that it has not seen, on points that it was not optimized on;
the nine also on the middles of voxels of `--check` mm in the cord. Prints one row a plan: D95 of the target, nominal and worst, D2 and
maximum of the cord, worst; points that the plan was made on, GB of its matrices, and processor seconds of the iterations on one thread. A
quarter of an hour on an idle core with the defaults. Writes `results.json`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import torchimpt as ti
from torchimpt.case import Case, load_case
from torchimpt.dose.looks import look_points
from torchimpt.dose.scenarios import scenario_operators
from torchimpt.evaluate.tables import point_doses, scenario_table, worst_table
from torchimpt.objectives import MODES
from torchimpt.patient import Patient
from torchimpt.planning.build import PlanningProblem
from torchimpt.planning.load import dose_options
from torchimpt.planning.plan import PlanResult
from torchimpt.points import Points, cell_points
from torchimpt.resampling import cropped, resample
from torchimpt.runs.about import about
from torchimpt.runs.folder import write_json
from torchimpt.scenarios import Scenario, random_scenarios
from torchimpt.schemes.stages import Callback
from torchimpt.studies.flags import flags

OWN = {"cvar": {"level": 0.8}, "percentile": {"percent": 90.0}}
"""Parameters without a default."""

COLUMNS = (
    "D95 nominal", "D95 worst", "cord D2", "cord max", "finer: cord D2", "cord max", "random: D95 worst", "cord D2", "cord max", "points",
    "GB", "iterations", "CPU s",
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Flags."""

    case: str = "hn"
    target: str = "CTV"
    cord: str = "SpinalCord"
    grid: float = 4.0
    spacing: float = 7.0
    iterations: int = 300
    samples: int = 100
    limit: float = 20.0
    d2: float = 15.0
    check: float = 1.25
    points: str = "auto"
    only: str = ""
    out: str = "runs/robust_modes"


def cases(config: Config) -> dict[str, Case]:
    """What is planned, by its name in the table."""
    path = Path(__file__).parent / "cases" / f"{config.case}.toml"
    common = [
        f"dose.grid_mm={config.grid}", f"spots.spacing_mm={config.spacing}", f"optimizer.max_iterations={config.iterations}",
        "dose.check_mm=off", "output.tensorboard=false", f"dose.target_grid_mm={config.points}",
    ]  # fmt: skip
    found = {}
    for name in MODES:
        own = [f"robustness.{key}={value}" for key, value in OWN.get(name, {}).items()]
        found[name] = load_case(path, [*common, f"robustness.mode={name}", *own])
    cord = next(i for i, o in enumerate(found["sum"].objective) if (o.roi, o.kind) == (config.cord, "max_dose"))
    for level in dict.fromkeys((found["sum"].objective[cord].dose_gy, config.limit)):
        held = [f"objective[{cord}].constraint=true", f"objective[{cord}].dose_gy={level}"]
        found[f"sum, cord max {level:g} Gy a constraint"] = load_case(path, [*common, *held])
    held = [f"objective[{cord}].{one}" for one in ("constraint=true", "kind=max_dvh", "volume_percent=2", f"dose_gy={config.d2}")]
    found[f"sum, cord D2 {config.d2:g} Gy a constraint"] = load_case(path, [*common, *held])
    wanted = config.only.split(",") if config.only else list(found)
    return {name: case for name, case in found.items() if any(name.startswith(one) for one in wanted)}


def worst_of(
    case: Case, result: PlanResult, patient: Patient, points: Points, scenarios: Sequence[Scenario], rois: Sequence[str]
) -> dict[str, dict[str, float]]:
    """The worst of ROIs over scenarios, at points of a patient on any grid."""
    spots, doses = result.spots, {}
    options = dose_options(case, torch.device("cpu"), spots.weight.dtype)
    for operator in scenario_operators(patient, result.machine, spots, points, scenarios, **options):
        dose = operator.dose(spots.position.detach(), spots.weight.detach())
        doses[operator.scenario.name] = case.quantity().value(dose)
    return worst_table(scenario_table(point_doses(points, doses, rois)))


def in_random_scenarios(case: Case, result: PlanResult, config: Config) -> dict[str, dict[str, float]]:
    """The worst of target and cord over the random scenarios, on points of their own."""
    rois = [config.target, config.cord]
    scenarios = random_scenarios(case.robustness.setup_mm, case.robustness.range_percent, samples=config.samples, seed=1234)
    points = look_points(result.patient, result.machine, result.spots, rois, rois[:1], n_scenarios=9, seed=case.seed + 2)
    return worst_of(case, result, result.patient, points, scenarios, rois)


def on_finer_voxels(case: Case, result: PlanResult, config: Config) -> dict[str, float]:
    """The worst of the cord over the plan's scenarios in the middles of voxels of `check` mm."""
    read = result.patient.original or result.patient
    fine = resample(cropped(read, read.body_and_rois), config.check)
    points = cell_points(fine, [config.cord], jitter=False)
    return worst_of(case, result, fine, points, case.scenarios(), [config.cord])[config.cord]


def row(case: Case, config: Config) -> dict[str, float | str]:
    """One plan, and what it is in both sets of scenarios."""
    clock: list[float] = []
    n_points = 0

    def watch(problem: PlanningProblem) -> Callback:
        nonlocal n_points
        n_points = len(problem.now.points)
        return lambda _: clock.append(time.process_time())

    result = ti.plan(case, device="cpu", threads=1, watch=watch)
    planned, unseen, finer = result.metrics["worst"], in_random_scenarios(case, result, config), on_finer_voxels(case, result, config)
    return {
        "nominal_d95": result.metrics["scenarios"][0]["rois"][config.target]["d95_gy"],
        "worst_d95": planned[config.target]["d95_gy"],
        "cord_d2": planned[config.cord]["d2_gy"],
        "cord_max": planned[config.cord]["max_gy"],
        "fine_cord_d2": finer["d2_gy"],
        "fine_cord_max": finer["max_gy"],
        "random_d95": unseen[config.target]["d95_gy"],
        "random_cord_d2": unseen[config.cord]["d2_gy"],
        "random_cord_max": unseen[config.cord]["max_gy"],
        "points": n_points,
        "matrix_gb": result.metrics["matrix"]["bytes"] / 1e9,
        "iterations": result.metrics["iterations"],
        "seconds": clock[-1] - clock[0],
        "stopped": result.solution.status.value,
        "violation": ", ".join(f"{one['violation']:+.2f} Gy" for one in result.metrics.get("constraints", ())),
    }


def main(config: Config) -> dict:
    """Plan, print and write."""
    print(about())
    results = {"about": about(), "config": asdict(config), "plans": {}}
    print("| plan | " + " | ".join(COLUMNS) + " | stopped |\n|" + "---|" * (len(COLUMNS) + 2))
    for name, case in cases(config).items():
        found = row(case, config)
        results["plans"][name] = found
        cells = [f"{value:.1f}" for key, value in found.items() if key.endswith(("d95", "d2", "max"))]
        cells += [f"{found['points']:,}", f"{found['matrix_gb']:.2f}", f"{found['iterations']}", f"{found['seconds']:.0f}"]
        print(f"| {name} | {' | '.join(cells)} | {found['stopped']} {found['violation']} |", flush=True)
        Path(config.out).mkdir(parents=True, exist_ok=True)
        write_json(Path(config.out) / "results.json", results)
    return results


if __name__ == "__main__":
    main(flags(Config, __doc__))
