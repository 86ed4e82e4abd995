"""How finely a plan is looked at: from the peaks of its own energy layers."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from torchimpt.checks import InputError
from torchimpt.machine import Machine
from torchimpt.patient import Patient
from torchimpt.points import Points, cell_points, voxel_points
from torchimpt.spots import Spots

COARSEST, FINEST = 2.0, 1.5
"""Between these, mm: 2 holds what lies between points for a target's outline; what 1.5 leaves open was not seen in a dose (0.5 %)."""


def peak_spacing(machine: Machine, energy: torch.Tensor) -> float:
    """Width at 80 % of the narrowest Bragg peak among energy layers `(n_layers,)`, MeV; mm of water, within `FINEST` and `COARSEST`."""
    return float(machine.width80(energy).min().clamp(FINEST, COARSEST)) if energy.numel() else COARSEST


def look_points(
    patient: Patient,
    machine: Machine,
    spots: Spots,
    rois: Iterable[str],
    targets: Iterable[str],
    *,
    spacing: float | str = "auto",
    n_scenarios: int = 1,
    seed: int = 0,
    whole: Iterable[str] = (),
) -> Points:
    """Points in ROIs, close enough for the peaks of the spots' layers.

    Parameters
    ----------
    patient, machine, spots
        On the dose grid; the beam model; read for its layers.
    rois, targets
        What is looked at, and what of it closely, as in `cell_points`.
    spacing
        Of the parts that voxels are cut into, mm, at most; `"auto"`: `peak_spacing`; `"off"`: the middles of voxels.
    n_scenarios, seed, whole
        As in `cell_points`.
    """
    if spacing == "auto":
        spacing = peak_spacing(machine, spots.layer_energy.detach().cpu())
    if spacing == "off":
        return voxel_points(patient, patient.union(rois).flatten().nonzero().flatten())
    if isinstance(spacing, str) or not spacing > 0:
        raise InputError(f"target_grid_mm must be a positive number of mm, 'auto' or 'off', got {spacing!r}")
    return cell_points(patient, rois, spacing, n_scenarios, targets, seed, whole=whole)
