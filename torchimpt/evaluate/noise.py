"""How much of the difference of two doses is the noise of a simulation."""

from __future__ import annotations

import torch

from torchimpt.sums import mean


def noise(difference: torch.Tensor, where: torch.Tensor) -> float:
    """Standard deviation of the noise in a difference of doses, from how voxels differ from the mean of their two neighbours.

        sigma = max_axis sqrt(mean_i (2 d_i - d_(i-1) - d_(i+1))^2 / 6)

    Noise that is each voxel's own has that value along every axis, and what changes linearly over three voxels has none. Protons cross many
    voxels of a row, whose noise is alike along the beam: the axis that shows most of it counts. A difference with bends of its own, as at
    edges of the dose, adds to it: where no proton was simulated this says how uneven the difference is.

    Parameters
    ----------
    difference
        `(z, y, x)`, Gy or any unit.
    where
        Mask `(z, y, x)`; voxels count whose neighbours along the axis are in it, too.

    Returns
    -------
    In the difference's unit; 0 where no three voxels in a row are looked at.
    """
    found = [0.0]
    for axis in range(difference.ndim):
        n = difference.shape[axis] - 2
        if n < 1:
            continue
        before, middle, behind = (difference.narrow(axis, start, n) for start in range(3))
        inside = where.narrow(axis, 0, n) & where.narrow(axis, 1, n) & where.narrow(axis, 2, n)
        if bool(inside.any()):
            found.append((float(mean((2.0 * middle - before - behind)[inside].square())) / 6.0) ** 0.5)
    return max(found)
