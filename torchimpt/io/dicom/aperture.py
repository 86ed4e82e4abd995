"""The aperture of a field in an RT Ion Plan: no dose is computed through it, but how much is aimed beside its opening can be told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from torchimpt.contours import Contours, Plane, closed
from torchimpt.io.dicom.dataset import numbers

if TYPE_CHECKING:
    from pydicom import Dataset


def aimed_beside(beam: Dataset, x: torch.Tensor, y: torch.Tensor, meterset: torch.Tensor, where: str) -> float | None:
    """Share of a field's meterset whose spots are centred outside the opening of its aperture; None where there is none, or not its edge.

    Parameters
    ----------
    beam
        The field. Block edges are projected onto the isocentre plane (C.8.8.25, Block Data), as spots' places are.
    x, y, meterset
        `(n_spots,)`: places, mm, and metersets.
    where
        The field, for messages.
    """
    inside = torch.ones(len(x), dtype=torch.bool)
    found = False
    for block in beam.get("IonBlockSequence") or ():
        if block.get("BlockType") != "APERTURE" or block.get("BlockData") is None:
            continue
        corners = numbers(block, "BlockData", f"{where}, block {block.get('BlockNumber', '')}")
        if len(corners) < 6 or len(corners) % 2:
            continue
        opening = Contours(np.zeros(3), np.eye(3), (Plane(-1.0, 1.0, closed([corners.reshape(-1, 2)])),))
        inside &= opening.contains(torch.stack((x, y, torch.zeros_like(x)), dim=1))
        found = True
    return float(meterset[~inside].sum() / meterset.sum()) if found else None
