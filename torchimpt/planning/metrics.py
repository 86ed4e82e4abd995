"""`metrics.json`: numbers of a run, units in the names, only what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from torchimpt.evaluate.tables import scenario_table, worst_table
from torchimpt.machine import Machine
from torchimpt.memory import peak_memory
from torchimpt.optim import Solution
from torchimpt.planning.assess import Assessment
from torchimpt.planning.prepare import Settings
from torchimpt.spots import Spots

if TYPE_CHECKING:
    from torchimpt.planning.plan import Prepared

NONZERO = 1e-3
"""A spot counts as used when its weight is above this share of the largest."""


def spot_counts(spots: Spots) -> dict:
    """Placed and used spots, and the energy layers that hold any used one."""
    weight = spots.weight.detach()
    used = weight > NONZERO * weight.max()
    return {
        "count": spots.n_spots,
        "nonzero": int(used.sum()),
        "energy_layers": int(spots.layer[used].unique().numel()),
        "moved_mm": {"mean": 0.0, "max": 0.0},
    }


def total_mu(spots: Spots, machine: Machine) -> float:
    """Monitor units of the whole course."""
    return float((spots.weight.detach().double() / machine.protons_per_mu(spots.energy)).sum())


def dose_metrics(spots: Spots, machine: Machine, found: Assessment, times: dict[str, float], how: Settings) -> dict:
    """What holds of any plan, optimized here or not."""
    scenarios = scenario_table(found.roi_doses)
    return {
        "spots": spot_counts(spots),
        "scenarios": scenarios,
        "worst": worst_table(scenarios),
        "goals": found.goals,
        "delivery": {"mu": total_mu(spots, machine)},
        "matrix": {"discarded_fraction": found.discarded_fraction},
        "time_s": {name: round(seconds, 4) for name, seconds in times.items()},
        "peak_memory_bytes": peak_memory(),
        "device": str(how.device),
        "threads": torch.get_num_threads(),
        "dtype": str(how.dtype).removeprefix("torch."),
    }


def plan_metrics(ready: Prepared, solution: Solution, spots: Spots, found: Assessment, times: dict[str, float]) -> dict:
    """The whole of a planning run's metrics."""
    metrics = {
        "title": ready.case.title,
        "converged": solution.converged,
        "stop_reason": solution.message,
        "iterations": solution.iterations,
        "evaluations": solution.evaluations,
        "objective": {
            "initial": solution.history[0]["value"],
            "final": solution.value,
            "normalized": ready.case.optimizer.normalize,
            "projected_gradient_norm": solution.projected_gradient_norm,
            "terms": ready.terms(solution.x),
        },
        **dose_metrics(spots, ready.machine, found, times, ready.how),
    }
    metrics["matrix"] |= {"nonzeros": ready.engine.n_nonzeros, "bytes": ready.engine.n_bytes}
    return metrics
