"""`metrics.json`: numbers of a run, units in the names, only what was measured."""

from __future__ import annotations

from typing import Any

import torch

from torchimpt.evaluate.tables import letd_table, scenario_table, worst_table
from torchimpt.machine import Machine
from torchimpt.memory import peak_memory
from torchimpt.planning.assess import Assessment
from torchimpt.planning.build import PlanningProblem
from torchimpt.planning.load import Compute
from torchimpt.schemes.stages import Optimized
from torchimpt.spots import Spots
from torchimpt.spots.delivery import DeliveryModel, delivered, delivery_time


def spot_counts(spots: Spots, machine: Machine, model: DeliveryModel, home: torch.Tensor | None = None) -> dict:
    """Spots of the plan, those that are delivered, the energy layers that hold any of these, and how far these are from home."""
    used = delivered(spots, machine, model)
    moved = torch.zeros(1) if home is None else (spots.position.detach() - home)[used].norm(dim=1)
    return {
        "count": spots.n_spots,
        "nonzero": int(used.sum()),
        "energy_layers": int(spots.layer[used].unique().numel()),
        "moved_mm": {"mean": float(moved.mean()), "max": float(moved.max())} if len(moved) else {"mean": 0.0, "max": 0.0},
    }


def dose_metrics(
    spots: Spots,
    machine: Machine,
    model: DeliveryModel,
    assessment: Assessment,
    times: dict[str, float],
    compute: Compute,
    home: torch.Tensor | None = None,
) -> dict:
    """What holds of any plan, optimized here or not; `home` `(n_spots, 2)` is where its spots were placed, if they moved.

    `hottest_outside_targets` is what `torchimpt.evaluate.hottest` returns: the hottest 1 cm^3 with its dose, place and scenario.
    """
    scenarios = scenario_table(assessment.roi_doses)
    return {
        "spots": spot_counts(spots, machine, model, home),
        "scenarios": scenarios,
        "worst": worst_table(scenarios),
        "hottest_outside_targets": assessment.hottest,
        "goals": assessment.goals,
        **({} if assessment.letd is None else {"letd": letd_table(assessment.roi_letd)}),
        "delivery": delivery_time(spots, machine, model),
        "matrix": {"discarded_fraction": assessment.discarded_fraction},
        "time_s": {name: round(seconds, 4) for name, seconds in times.items()},
        "peak_memory_bytes": peak_memory(),
        "device": str(compute.device),
        "threads": torch.get_num_threads(),
        "dtype": str(compute.dtype).removeprefix("torch."),
    }


def shared_metrics(problem: PlanningProblem, optimized: Optimized) -> dict[str, Any]:
    """What all processes have to be asked for, all at once: the `terms` of the objective and what it is a smooth form of (`exact`), the
    matrices' `nonzeros` and `bytes`; of several `processes` the `count`, the bytes that each has in matrices and has exchanged, the
    seconds that this took, waiting for others included, and the peak memory of each so far.
    """
    now, whole, team = problem.now, optimized.whole, problem.team
    found: dict[str, Any] = {"terms": problem.terms(optimized.doses) if whole is None else problem.named(whole.terms)}
    if problem.objective.smoothed:
        found["exact"] = float(now.objective.exact_value(optimized.doses)) if whole is None else whole.exact
    numbers = torch.tensor([now.linear.n_nonzeros, now.linear.n_bytes, *team.traffic, peak_memory()], dtype=torch.float64)
    nonzeros, n_bytes, exchanged, seconds, peak = team.each(numbers).T.tolist()
    found["matrix"] = {"nonzeros": int(sum(nonzeros)), "bytes": int(sum(n_bytes))}
    if team.size > 1:
        found["processes"] = {
            "count": team.size, "matrix_bytes": [int(b) for b in n_bytes], "exchanged_bytes": [int(b) for b in exchanged],
            "exchange_s": [round(s, 4) for s in seconds], "peak_memory_bytes": [int(p) for p in peak],
        }  # fmt: skip
    return found


def plan_metrics(
    problem: PlanningProblem,
    optimized: Optimized,
    shared: dict[str, Any],
    spots: Spots,
    assessment: Assessment,
    times: dict[str, float],
    fine: dict[str, Any] | None = None,
) -> dict:
    """The whole of a planning run's metrics; `shared` are the `shared_metrics`, `fine` is what `torchimpt.planning.fine` found on a finer
    grid.

    Where the objective was sampled, `objective` is that of all voxels, and `sampling` tells how many voxels were optimized on (`voxels`),
    of how many that are asked about (`of`), and the objective that the solver saw there at the end (`objective`). The first iterations do
    without the sampled terms, so that `objective.initial` is without them. Where robust modes are smooth, `objective.exact` is the
    objective with the maxima themselves. `constraints` is what `Constraints.rows` returns, where there are any; they are in no objective.
    """
    solution, case = optimized.solution, problem.case
    home = optimized.spots.home.cpu()
    metrics = {
        "title": case.title,
        "converged": solution.converged,
        "stop_reason": solution.message,
        "iterations": solution.iterations,
        "evaluations": solution.evaluations,
        "objective": {
            "initial": solution.history[0]["value"],
            "final": solution.value,
            "normalized": case.optimizer.normalize,
            "projected_gradient_norm": solution.projected_gradient_norm,
            "terms": shared["terms"],
        },
        "steps": optimized.steps,
        **dose_metrics(spots, problem.machine, case.delivery.model(), assessment, times, problem.compute, home),
    }
    constraints = problem.now.objective.constraints
    if constraints:
        metrics["constraints"] = constraints.rows(optimized.violations, problem.doses.names, case.optimizer.feasibility_gy)
    if "exact" in shared:
        metrics["objective"]["exact"] = shared["exact"]
    if solution.remaining is not None:
        # the share of it that it may still fall by, estimated from its fall
        metrics["objective"]["remaining_percent"] = 100.0 * solution.remaining
    metrics["spots"]["placed"] = problem.spots.n_spots
    metrics["device"] = ", ".join(dict.fromkeys(share.device.type for share in problem.doses.shares))
    engine = " and ".join(dict.fromkeys(choice.engine for choice in problem.engines))
    metrics["matrix"] |= {**shared["matrix"], "engine": engine, "why": problem.engines[0].why}
    if "processes" in shared:
        metrics["processes"] = shared["processes"]
    if problem.sampling is not None and optimized.whole is not None:
        sampled = optimized.steps[-1]["objective"]
        metrics["sampling"] = {"voxels": len(problem.sampling.points), "of": problem.sampling.n_all, "objective": sampled}
    if fine is not None:
        metrics["fine"] = fine
    return metrics
