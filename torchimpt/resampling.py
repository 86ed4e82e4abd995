"""A patient on another grid: the CT averaged over each new voxel, ROIs by majority.

The overlap of a new voxel with the old ones is the product of its overlaps along x, y and z, so both are exact and done axis by axis:
`new = W_z W_y W_x old`, where `W[i, j]` is the length that new interval i and old interval j share.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.nn.functional import grid_sample

from torchimpt.checks import InputError, PhysicsWarning, triple
from torchimpt.geometry import Grid
from torchimpt.memory import check_memory
from torchimpt.patient import ROI, Patient

MOST_VOXELS = 100_000_000
"""A CT of 512 x 512 x 380. What is finer than a CT adds no detail."""

_ROUNDING = 1e-6
"""Fraction of a voxel by which a grid may fall short of the CT's box."""
_TOLD_LOSS = 0.2
"""Share of a ROI's volume whose loss is told."""
_TIE = 1e-5
"""Rounding allowance, so that a voxel filled by exactly one half counts as inside on every machine (fractions are float32)."""


def resample(patient: Patient, spacing: float | Sequence[float]) -> Patient:
    """The patient on a grid of another spacing.

    The new grid has the CT box's centre and covers the box, so it may stick out by up to half a voxel a side. A CT number is the mean over
    the part of its voxel that lies in the box. A voxel belongs to a ROI when at least half of its volume does (what sticks out does not).

    Parameters
    ----------
    patient
        CT and ROIs.
    spacing
        New voxel size, mm: one number, or `[x, y, z]`. Smaller than the CT's is allowed and adds no detail.

    Returns
    -------
    A new patient; the old one itself where the spacing is already this. A ROI too thin for the grid stays in it, empty, with a
    `PhysicsWarning`, so that using it names it; one that loses more than a fifth of its volume is told, too.
    """
    spacing = triple("spacing", spacing)
    if min(spacing) <= 0:
        raise InputError(f"spacing must be positive, mm, got {list(spacing)}")
    old = patient.grid
    if spacing == old.spacing:
        return patient
    grid = _covering(old, spacing)
    # the CT in float64, the volume it is divided by, the CT in its own type, and a byte for each ROI
    needed = grid.n_voxels * (8 + 8 + patient.hu.element_size() + len(patient.rois))
    what = f"the patient on a grid of {' x '.join(f'{s:g}' for s in spacing)} mm ({grid.n_voxels:.2g} voxels, {len(patient.rois)} ROIs)"
    check_memory(what, needed, "cpu", "use a larger spacing (grid_mm)")
    weights = [_overlap(old, grid, axis) for axis in range(3)]

    inside = [w.sum(dim=1) for w in weights]
    hu = _apply(patient.hu.double(), weights)
    hu /= inside[0][:, None, None] * inside[1][None, :, None] * inside[2][None, None, :]
    rois = {name: _resample_roi(roi, grid, weights) for name, roi in patient.rois.items()}
    result = replace(patient, hu=hu.to(patient.hu.dtype), grid=grid, rois=rois, original=patient.original or patient)
    _tell_lost(patient, result)
    return result


def values_on(values: torch.Tensor, grid: Grid, other: Grid) -> torch.Tensor:
    """Values `(z, y, x)` between the middles of a grid's voxels, trilinear, at the middles of another's; 0 beyond the grid's box."""
    if grid == other:
        return values
    place, inside = [], []
    for name, n in zip("xyz", reversed(grid.shape), strict=True):
        i = "xyz".index(name)
        at = (other.axis(name) - grid.origin[i]) / grid.spacing[i]
        inside.append((at >= -0.5) & (at <= n - 0.5))
        place.append(2.0 * at.clamp(0, n - 1) / max(n - 1, 1) - 1.0)
    z, y, x = torch.meshgrid(*reversed(place), indexing="ij")
    points = torch.stack((x, y, z), dim=-1)[None].to(values)
    found = grid_sample(values[None, None], points, mode="bilinear", padding_mode="border", align_corners=True)[0, 0]
    return found * (inside[2][:, None, None] & inside[1][:, None] & inside[0])


def roi_on(roi: ROI, old: Grid, new: Grid) -> ROI:
    """The ROI of the grid `old` on the grid `new`, by majority."""
    return _resample_roi(roi, new, [_overlap(old, new, axis) for axis in range(3)])


def cropped(patient: Patient, mask: torch.Tensor) -> Patient:
    """The patient in the smallest box of voxels that holds the mask `(z, y, x)`; an error where it is empty."""
    if not mask.any():
        raise InputError("nothing to crop to: the body has no voxel")
    box = tuple(_span(mask.any(dim=b).any(dim=a)) for a, b in ((0, 1), (0, 2), (1, 2)))[::-1]
    grid = patient.grid
    origin = tuple(o + part.start * s for o, s, part in zip(grid.origin, grid.spacing, reversed(box), strict=True))
    return replace(
        patient,
        hu=patient.hu[box],
        grid=Grid(shape=tuple(part.stop - part.start for part in box), spacing=grid.spacing, origin=origin),
        rois={name: replace(roi, mask=roi.mask[box]) for name, roi in patient.rois.items()},
    )


def _tell_lost(old: Patient, new: Patient) -> None:
    """Warn of ROIs that have lost much of their volume, or all of it."""
    size, lost, shrunk = " x ".join(f"{s:g}" for s in new.grid.spacing), [], []
    for name in old.rois:
        before, now = old.volume(name), new.volume(name)
        if before > 0 and now == 0:
            lost.append(name)
        elif now < (1.0 - _TOLD_LOSS) * before:
            shrunk.append(f"{name} ({before / 1000:.2g} to {now / 1000:.2g} cm3)")
    if lost:
        told = f"ROI {', '.join(lost)}: no voxel of {size} mm is filled by half, so it is empty on this grid; use a finer grid"
        warnings.warn(told, PhysicsWarning, stacklevel=3)
    if shrunk:
        told = f"ROI {', '.join(shrunk)}: more than a fifth of the volume is lost on voxels of {size} mm, filled by half or not at all"
        warnings.warn(f"{told}; its doses are those of what is left; use a finer grid", PhysicsWarning, stacklevel=3)


def _covering(old: Grid, spacing: tuple[float, float, float]) -> Grid:
    """The smallest grid of this spacing, with the same centre, that covers `old`'s box."""
    counts, origin = [], []
    estimate = math.prod(max(1.0, old.shape[2 - axis] * old.spacing[axis] / spacing[axis]) for axis in range(3))
    if estimate > MOST_VOXELS:
        enough = (estimate / MOST_VOXELS) ** (1 / 3)
        raise InputError(
            f"a grid of {' x '.join(f'{s:g}' for s in spacing)} mm has {estimate:.2g} voxels, at most {MOST_VOXELS:.0e} are taken; use a "
            f"spacing (grid_mm) {1.05 * enough:.2g} times as large"
        )
    for axis in range(3):
        n_old, step = old.shape[2 - axis], old.spacing[axis]
        # The tolerance keeps 100 x 3 mm from becoming 101 voxels of 3 mm by rounding.
        n = max(1, math.ceil(n_old * step / spacing[axis] - _ROUNDING))
        counts.append(n)
        origin.append(old.origin[axis] + 0.5 * (n_old - 1) * step - 0.5 * (n - 1) * spacing[axis])
    return Grid(shape=tuple(reversed(counts)), spacing=spacing, origin=tuple(origin))


def _overlap(old: Grid, new: Grid, axis: int) -> torch.Tensor:
    """`(n_new, n_old)`: the fraction of each new interval along array axis `axis` that each old interval covers."""
    name, step_old, step_new = "zyx"[axis], old.spacing[2 - axis], new.spacing[2 - axis]
    a, b = new.axis(name)[:, None], old.axis(name)[None, :]
    upper = torch.minimum(a + 0.5 * step_new, b + 0.5 * step_old)
    lower = torch.maximum(a - 0.5 * step_new, b - 0.5 * step_old)
    return (upper - lower).clamp(min=0.0) / step_new


def _apply(values: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """`W_z W_y W_x values` for values `(z, y, x)`; the last axis, which is contiguous, first."""
    w_z, w_y, w_x = weights
    values = values @ w_x.T
    values = w_y @ values
    return torch.tensordot(w_z, values, dims=1)


def _resample_roi(roi: ROI, grid: Grid, weights: Sequence[torch.Tensor]) -> ROI:
    """The ROI by majority, worked out inside its own bounding box only."""
    mask = torch.zeros(grid.shape, dtype=torch.bool)
    columns = roi.mask.any(dim=2)
    if not columns.any():
        return replace(roi, mask=mask)
    z, y = (_span(columns.any(dim=i)) for i in (1, 0))
    old_box = (z, y, _span(roi.mask[z, y].flatten(0, 1).any(dim=0)))
    new_box = tuple(_span(w[:, old].sum(dim=1) > 0) for w, old in zip(weights, old_box, strict=True))
    box = [w[new, old].float() for w, new, old in zip(weights, new_box, old_box, strict=True)]
    mask[new_box] = _apply(roi.mask[old_box].float(), box) >= 0.5 - _TIE
    return replace(roi, mask=mask)


def _span(used: torch.Tensor) -> slice:
    """From the first True to the last."""
    index = used.nonzero()
    return slice(int(index[0]), int(index[-1]) + 1)
