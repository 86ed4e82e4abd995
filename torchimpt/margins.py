"""ROIs made of others: grown or shrunk by a margin, without what lies in others. A PTV, a ring around a target, the tissue beyond it.

    grown by m >= 0    {v : |v - u| <= m for a voxel u of the ROI}
    shrunk by -m > 0   {v : |v - u| > -m for every voxel u outside the ROI}

Distances are Euclidean, between middles of voxels, so that a margin is right to half a voxel; they are taken on the patient as it was read
where that is finer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from scipy.ndimage import distance_transform_edt

from torchimpt.checks import InputError
from torchimpt.patient import ROI, Patient
from torchimpt.resampling import roi_on

_ROUNDING = 1e-6
"""mm: a voxel at exactly the margin belongs to it, whatever the rounding of its distance."""

Box = tuple[slice, ...]


def distances(mask: torch.Tensor, spacing: Sequence[float], reach: float) -> tuple[Box, torch.Tensor]:
    """How far voxels lie from a mask.

    Parameters
    ----------
    mask
        bool `(z, y, x)`, not empty.
    spacing
        Voxel size `(x, y, z)`, mm.
    reach
        mm; what lies farther along an axis is left out.

    Returns
    -------
    tuple
        Array slices of the box that was looked at; distances in it, mm, float64, 0 inside.
    """
    sides = []
    for axis, size in enumerate(reversed(spacing)):
        used = mask.amax(dim=[a for a in range(3) if a != axis]).nonzero().flatten()
        pad = math.ceil(reach / size) + 1
        sides.append(slice(max(0, int(used[0]) - pad), int(used[-1]) + pad + 1))
    box = tuple(sides)
    return box, torch.from_numpy(distance_transform_edt((~mask[box]).numpy(), sampling=tuple(reversed(spacing))))


def within(distance: torch.Tensor, margin: float) -> torch.Tensor:
    """Which voxels lie no farther than the margin, mm, from what `distance` is from."""
    return distance <= margin + _ROUNDING


def with_margin(mask: torch.Tensor, spacing: Sequence[float], margin: float) -> torch.Tensor:
    """The mask `(z, y, x)` grown by `margin` mm, or shrunk where that is negative; voxels are `spacing` `(x, y, z)` mm."""
    if margin == 0 or not mask.any():
        return mask
    box, distance = distances(mask if margin > 0 else ~mask, spacing, abs(margin))
    near = torch.zeros_like(mask)
    near[box] = within(distance, abs(margin))
    return near if margin > 0 else ~near


def with_roi(
    patient: Patient, name: str, of: str | Iterable[str], *, margin: float = 0.0, without: Iterable[str] = (), role: str = "oar"
) -> Patient:
    """The patient with one ROI more, made of others.

    Parameters
    ----------
    patient
        Who has the others, and none of this name.
    name, role
        The new ROI's.
    of
        A ROI, or several (their union).
    margin
        Grown by so much, mm, but not out of the body; shrunk where it is negative.
    without
        ROIs whose inside is left out.

    Examples
    --------
    A PTV, and a ring of 10 mm around it:

    >>> from torchimpt.phantoms import phantom
    >>> patient = with_roi(phantom("water"), "PTV", "Target", margin=6.0, role="target")
    >>> patient = with_roi(patient, "Ring", "PTV", margin=10.0, without=["PTV"])
    >>> patient.volume("Target") < patient.volume("PTV"), bool((patient.roi("Ring").mask & patient.roi("PTV").mask).any())
    (True, False)
    """
    if name in patient.rois:
        raise InputError(f"the patient has a ROI '{name}' already; give the new one another name")
    if not math.isfinite(margin):
        raise InputError(f"the margin of ROI '{name}' must be a number of mm, got {margin}")
    read = patient.original or patient
    others = list(without)
    mask = with_margin(read.union(of), read.grid.spacing, margin)
    if margin > 0:
        mask = mask & (read.body | read.union(of))
    if others:
        mask = mask & ~read.union(others)
    if not mask.any():
        left = f", without {', '.join(others)}" if others else ""
        raise InputError(f"ROI '{name}' is empty: nothing is left of {of} with a margin of {margin:g} mm{left}; give other ROIs or margins")
    roi = ROI(name, mask, role)
    if patient.original is None:
        return replace(patient, rois={**patient.rois, name: roi})
    read = replace(read, rois={**read.rois, name: roi})
    return replace(patient, rois={**patient.rois, name: roi_on(roi, read.grid, patient.grid)}, original=read)
