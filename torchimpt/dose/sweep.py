"""Doses of a plan at many voxels, matrix-free and scenario by scenario: for looks at the whole body, not for iterations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from torchimpt.dose.scenarios import scenario_operators
from torchimpt.machine import Machine
from torchimpt.patient import Patient
from torchimpt.scenarios import Scenario
from torchimpt.spots import Spots


def sweep(
    patient: Patient,
    machine: Machine,
    spots: Spots,
    voxels: torch.Tensor,
    scenarios: Sequence[Scenario],
    *,
    cutoff: float,
    done: Callable[[], object] = lambda: None,
    **options: Any,
) -> torch.Tensor:
    """Physical doses `(n_scenarios, n_voxels)`, Gy, on the CPU, of spots as they are.

    Tables are held for one scenario at a time, and at voxels within reach of the spots only: for a whole body that is a twentieth of the
    memory of all tables, and a fraction of the time.

    Parameters
    ----------
    patient, machine, spots, voxels, scenarios, cutoff
        As for `scenario_doses`; spots without weight cost nothing.
    done
        Called after each scenario.
    options
        `dtype`, `device`, `model` and `backend` of `scenario_doses`.
    """
    used = spots.weight.detach() > 0
    spots = spots.subset(used) if bool(used.any()) else spots
    position, weight = spots.position.detach(), spots.weight.detach()
    doses = torch.zeros((len(scenarios), len(voxels)), dtype=weight.dtype)
    order = sorted(range(len(scenarios)), key=lambda k: scenarios[k].shift)
    given = {"dtype": weight.dtype, "device": weight.device, "model": "pencil_beam", "backend": "auto", **options}
    operators = scenario_operators(patient, machine, spots, voxels, [scenarios[k] for k in order], cutoff=cutoff, reach=cutoff, **given)
    for k, operator in zip(order, operators, strict=True):
        doses[k] = operator.dose(position, weight).cpu()
        done()
    return doses
