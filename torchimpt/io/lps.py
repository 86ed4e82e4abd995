"""Volumes on axes of their own, turned to the patient's: LPS, ascending."""

from __future__ import annotations

import numpy as np

from torchimpt.geometry import Grid

OBLIQUE = 1e-3
"""Largest direction cosine off the axes: 0.06 degrees, what single-precision headers round to, and far below a voxel over a patient."""


def tilt(direction: np.ndarray) -> float:
    """By how many degrees axes, the columns of `direction` `(3, 3)`, are off the patient's; those within `OBLIQUE` are not: 0."""
    index_of = np.abs(direction).argmax(axis=1)
    rest = np.abs(direction)
    rest[np.arange(3), index_of] = 0.0
    if sorted(index_of) == [0, 1, 2] and rest.max() <= OBLIQUE:
        return 0.0
    return float(np.degrees(np.arcsin(min(1.0, rest.max()))))


def turned(array: np.ndarray, direction: np.ndarray, spacing: np.ndarray, origin: np.ndarray) -> tuple[np.ndarray, Grid]:
    """A volume whose axes are permuted or reversed, in the order `(z, y, x)` with ascending LPS coordinates.

    Parameters
    ----------
    array
        `(k, j, i)`.
    direction
        Its columns are the LPS directions of i, j and k; `tilt` of them must be 0.
    spacing, origin
        Voxel size along i, j and k, and the LPS point of voxel `[0, 0, 0]`, mm.
    """
    spacing, origin = np.array(spacing, dtype=np.float64), np.array(origin, dtype=np.float64)
    index_of = np.abs(direction).argmax(axis=1)
    cosines = direction[np.arange(3), index_of]
    # numpy's axes run (k, j, i) where an image's run (i, j, k)
    array = array.transpose([2 - index_of[axis] for axis in (2, 1, 0)])
    spacing = spacing[index_of]
    for axis in range(3):
        if cosines[axis] < 0:
            array = np.flip(array, axis=2 - axis)
            origin[axis] -= spacing[axis] * (array.shape[2 - axis] - 1)
    return np.ascontiguousarray(array), Grid(array.shape, tuple(spacing.tolist()), tuple(origin.tolist()))
