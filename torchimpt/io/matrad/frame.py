"""Where isocentres are: in the frame of `ct.x`, as matRad's version 3 has them, or counted from one voxel before the first (version 2).

A file does not say its version, but the two frames put the isocentre at different points of the patient, and the rays of a beam are those
that reach the target. So the frame is the one in which the middle of the rays lies in the middle of the target as the source sees it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchimpt.checks import InputError
from torchimpt.geometry import Beam, magnification, to_bev
from torchimpt.io.mat import has, number, numbers
from torchimpt.patient import Patient

FARTHEST = 50.0
"""How far the middle of the rays may be from the middle of the target, mm, in the frame that is taken."""

CLEARER = 3.0
"""By this factor the other frame must be worse."""

NEAREST = 500.0
"""No gantry has its source nearer to the isocentre, mm."""

SAME = 0.1
"""Frames that differ by no more than this are one, mm."""


def in_lps(
    path: Path, content: dict[str, Any], patient: Patient, prescribed: Collection[str], beams: Sequence[Any], places: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Each beam's isocentre in the patient's frame `(3,)`, LPS, mm.

    Parameters
    ----------
    path, content
        The file and its variables.
    patient
        As it was read from them.
    prescribed
        ROIs with an objective: of the targets, matRad irradiates these, or all where there is none.
    beams, places
        Elements of `stf`, and where their bixels are in the isocentre plane `(n, 2)`, mm.
    """
    told = [numbers(path, stf, "isoCenter", f"stf({i + 1})", 3) for i, stf in enumerate(beams)]
    origin = np.array(patient.grid.origin)
    world, voxel = _corner(path, content["ct"], patient)
    frames = {"ct.x": origin - world, "a voxel before the first": origin - voxel}
    ours = content.get("torchimpt")
    if np.abs(world - voxel).max() <= SAME or (ours is not None and getattr(ours, "frame", "") == "world"):
        return [point + frames["ct.x"] for point in told]
    names = [name for name in patient.targets if name in prescribed] or list(patient.targets)
    if not names:
        raise InputError(f"{path}: no ROI is of type TARGET, so the frame of its isocentres is not known; save it with the target")
    target = patient.grid.centers(patient.union(names).flatten().nonzero().flatten())
    off = {}
    for name, shift in frames.items():
        off[name] = max(_off(path, stf, i, told[i] + shift, places[i], target) for i, stf in enumerate(beams))
    best, other = sorted(off, key=lambda name: off[name])
    if off[best] > FARTHEST or off[other] < CLEARER * max(off[best], SAME):
        raise InputError(
            f"{path}: isocentres counted from {best} put the rays' middle {off[best]:.1f} mm from the target's, from {other} "
            f"{off[other]:.1f} mm; which frame they are in is not clear, so save the plan with the target that it is for"
        )
    return [point + frames[best] for point in told]


def source_distance(path: Path, stf: Any, what: str) -> float:
    """From the virtual source to the isocentre, mm."""
    sad = number(path, stf, "SAD", what)
    if not NEAREST <= sad <= 1e6:
        raise InputError(f"{path}: {what}.SAD must be {NEAREST:g} mm or more, got {sad:g}")
    return sad


def _corner(path: Path, ct: Any, patient: Patient) -> tuple[np.ndarray, np.ndarray]:
    """Where the first voxel's centre is in matRad's frame of `ct.x`, and counted from a voxel before it `(3,)`, mm."""
    step = np.array(patient.grid.spacing)
    if all(has(ct, name) for name in "xyz"):
        return np.array(patient.grid.origin), step
    info = getattr(ct, "dicomInfo", None)
    if info is not None and has(info, "ImagePositionPatient"):
        return numbers(path, info, "ImagePositionPatient", "ct.dicomInfo", 3), step
    return -0.5 * np.array(patient.grid.shape[::-1]) * step, step  # what matRad takes where nothing is told


def _off(path: Path, stf: Any, i: int, isocenter: np.ndarray, places: np.ndarray, target: torch.Tensor) -> float:
    """Distance between the middles of the rays' and the target's boxes in the isocentre plane, mm."""
    what = f"stf({i + 1})"
    beam = Beam(number(path, stf, "gantryAngle", what), number(path, stf, "couchAngle", what), tuple(isocenter.tolist()), position="HFS")
    sad = source_distance(path, stf, what)
    seen = to_bev(target, beam)
    scale_x, scale_y = magnification(seen[:, 2], (sad, sad))
    plane = torch.stack((seen[:, 0] / scale_x, seen[:, 1] / scale_y), dim=1).numpy()
    middle = [0.5 * (points.min(axis=0) + points.max(axis=0)) for points in (plane, places)]
    return float(np.linalg.norm(middle[0] - middle[1]))
