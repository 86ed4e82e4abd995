"""MCsquare's dose, back on the patient's grid."""

from __future__ import annotations

import os

import numpy as np
import SimpleITK as sitk
import torch

from torchimpt.checks import InputError, finite
from torchimpt.constants import MEV_PER_GRAM_TO_GY
from torchimpt.files import input_file, reader
from torchimpt.geometry import Grid
from torchimpt.io.image import read_volume
from torchimpt.io.mcsquare.frame import turned

SPACING_SLACK = 1e-4
"""MCsquare writes spacings with six decimals, after computing with them in cm and single precision."""


@reader("dose")
def read_mcsquare_dose(path: str | os.PathLike, grid: Grid, protons: float) -> torch.Tensor:
    """Physical dose `(z, y, x)` in LPS, Gy, of MCsquare's `Dose.mhd`, which is in eV/g per proton of the plan.

        D = 1.602e-16 Gy/(eV/g) N d

    Parameters
    ----------
    path
        The file; its numbers lie in MCsquare's order, and it says nothing about where they are.
    grid
        The CT's that MCsquare was given.
    protons
        N, those of the whole course. (MCsquare itself multiplies by a fraction's protons and the number of fractions.)
    """
    image = read_volume(input_file(path, "dose"))
    values = sitk.GetArrayFromImage(image)
    off = max(abs(a - b) for a, b in zip(image.GetSpacing(), grid.spacing, strict=False)) if values.ndim == 3 else 0.0
    if values.shape != grid.shape or off > SPACING_SLACK * max(grid.spacing):
        raise InputError(
            f"{path} has {values.shape} voxels (z, y, x) of {image.GetSpacing()} mm, the run {grid.shape} of {grid.spacing}; "
            "it must be MCsquare's dose on the CT that `torchimpt export` wrote"
        )
    dose = torch.from_numpy(turned(values).astype(np.float64))
    return finite(f"the dose of {path}", dose) * (1e-6 * MEV_PER_GRAM_TO_GY * protons)
