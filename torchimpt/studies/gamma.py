"""The gamma index of one dose against another, by pymedphys (a test extra, imported when it is needed)."""

from __future__ import annotations

import numpy as np
import torch

from torchimpt.geometry import Grid

LEAST_DOSE = 10.0
"""Voxels below this share of the reference's maximum are not looked at, percent."""


def gamma_passed(
    dose: torch.Tensor, reference: torch.Tensor, grid: Grid, percent: float, distance: float, where: torch.Tensor | None = None
) -> float:
    """Percentage of voxels whose global gamma is 1 or less (Low et al., Med Phys 25:656, 1998).

    Parameters
    ----------
    dose, reference
        `(z, y, x)` on the `grid`.
    percent
        Dose criterion, percent of the reference's maximum.
    distance
        Distance criterion, mm.
    where
        Mask `(z, y, x)` of the voxels that are looked at, of those above `LEAST_DOSE`; None for all.
    """
    import pymedphys

    axes = tuple(grid.axis(axis).numpy() for axis in "zyx")
    reference_, dose_ = (values.double().numpy() for values in (reference, dose))
    if where is not None:
        # what is not looked at is made of no dose in the reference; the dose itself stays, to be found by its neighbours
        reference_ = np.where(where.numpy(), reference_, 0.0)
    gamma = pymedphys.gamma(
        axes, reference_, axes, dose_, percent, distance, lower_percent_dose_cutoff=LEAST_DOSE, max_gamma=1.1,
        global_normalisation=float(reference.max()),
    )  # fmt: skip
    valid = gamma[~np.isnan(gamma)]
    return 100.0 * float((valid <= 1.0).mean())
