"""What stands in a beam's way, or is missing there, that the dose does not know of: told before it is computed.

Matter outside the body's outline (a couch, a mask) stops protons in the room and not here. A body that the image cuts off has less tissue
here than in the room: how much, is estimated as if its outline in a slice were an ellipse that goes on beyond the image's edge.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from torchimpt.case import Case
from torchimpt.geometry import Beam
from torchimpt.io.patient import BUILT_IN
from torchimpt.machine import Machine
from torchimpt.patient import Patient
from torchimpt.physics.stopping import relative_stopping_power, table_of
from torchimpt.physics.wepl import ray_directions, wepl
from torchimpt.planning.look import targets_mask

RAYS = 1000
"""Rays of a beam, to voxels spread over the target."""

MATTER = -700.0
"""What is less dense counts as air, HU: lung is about as thin, and does not lie outside the body."""

TOLD = 1.0
"""Mean water-equivalent path outside the body that is told, mm: what a range margin is made for, and more than contours differ by."""

TOLD_SHARE = 0.01
"""Share of rays through the image's edge that is told."""

WIDEST = 0.95
"""Where the cut is this wide, of the body's width, an ellipse says nothing of how far it went on."""

log = logging.getLogger(__name__)


def tell_way(case: Case, patient: Patient, machine: Machine, beams: Sequence[Beam]) -> None:
    """Log a warning for each beam with matter outside the body, or with tissue missing, on its way to the case's targets.

    Parameters
    ----------
    case
        Built-in phantoms are whole as they are, even where they fill their grid.
    patient, machine, beams
        What is planned; beams with their isocenters.
    """
    voxels = targets_mask(case, patient).flatten().nonzero().flatten()
    if case.patient.source in BUILT_IN or not len(voxels):
        return
    points = patient.grid.centers(voxels[:: max(1, len(voxels) // RAYS)])
    ct = patient.traced
    matter = _matter(ct, machine)
    for number, beam in enumerate(beams):
        label = f"beam {number} (gantry {beam.gantry:g}, couch {beam.couch:g})"
        direction, _ = ray_directions(points, beam, machine.sad)
        _tell_cut(ct, points, direction, label)
        path = None if matter is None else wepl(matter, ct.grid, beam, machine.sad, points)
        if path is not None and float(path.mean()) > TOLD:
            log.warning(
                "%s: in the CT %.1f mm of water (at most %.1f mm) lie in its way outside the body's outline, as a couch or a mask, and "
                "are not counted; take them into the outline, or draw them as a ROI with a [[material]], where they are there in treatment",
                label, float(path.mean()), float(path.max()),
            )  # fmt: skip


def _matter(ct: Patient, machine: Machine) -> Tensor | None:
    """Relative stopping power `(z, y, x)` of what lies outside the body's outline and has none there; None where there is nothing."""
    if ct.external is None:
        return None
    rsp = relative_stopping_power(ct, machine)
    outside = (rsp == 0) & ~ct.external.mask & (ct.hu > MATTER)
    rsp.zero_()
    rsp[outside] = table_of(ct, machine)(ct.hu[outside])
    return rsp if bool(outside.any()) else None


def _tell_cut(ct: Patient, points: Tensor, direction: Tensor, label: str) -> None:
    """Warn of rays that come into the image inside the body."""
    body = ct.body if ct.external is not None else ct.hu > MATTER
    size = torch.tensor(ct.grid.spacing, dtype=torch.float64)
    low = torch.tensor(ct.grid.origin, dtype=torch.float64) - 0.5 * size
    high = low + size * torch.tensor(ct.grid.shape[::-1], dtype=torch.float64)
    way = torch.where(direction > 0, high - points, low - points) / direction
    way = torch.where(direction == 0, torch.inf, way)
    length, axis = way.min(dim=1)
    index = ((points + length[:, None] * direction - low) / size).floor().long()
    x, y, z = (index[:, i].clamp(0, ct.grid.shape[2 - i] - 1) for i in range(3))
    cut = body[z, y, x]
    share = float(cut.double().mean())
    if share < TOLD_SHARE:
        return
    ends = cut & (axis == 2)
    if bool(ends.any()):
        log.warning(
            "%s: the CT ends inside the body in its way, at its upper or lower end, for %.0f %% of the rays to the target: how much is "
            "missing there cannot be told; take a longer CT, or another angle",
            label, 100.0 * float(ends.double().mean()),
        )  # fmt: skip
    missing = []
    for ray in (cut & (axis < 2)).nonzero().flatten().tolist():
        i = int(axis[ray])
        beyond = _beyond(body[z[ray]], i, bool(direction[ray, i] > 0), ct.grid.spacing)
        missing.append(beyond / abs(float(direction[ray, i])))
    if missing:
        known = [m for m in missing if m < float("inf")]
        if known:
            told = f"about {sum(known) / len(known):.0f} mm of tissue (at most {max(known):.0f} mm) are missing"
        else:
            told = "so much is missing that the outline does not tell how far it went on"
        log.warning(
            "%s: the body is cut off by the CT's edge in its way, for %.0f %% of the rays to the target: %s, and ranges are too long by "
            "that; take a CT of a wider field of view, or another angle",
            label, 100.0 * len(missing) / len(points), told,
        )  # fmt: skip


def _beyond(body: Tensor, axis: int, above: bool, spacing: tuple[float, ...]) -> float:
    """How far a body went on beyond an edge of the image, mm: of an ellipse that is as wide as the body at its widest, and at the edge as
    wide as the cut; infinite where the cut is as good as the widest.

    Parameters
    ----------
    body
        Mask `(y, x)` of a slice.
    axis, above
        Which edge: of x (0) or y (1), at its upper or lower end.
    spacing
        Voxel size.
    """
    width = body.sum(dim=axis).double() * spacing[1 - axis]  # across, at each place along the axis
    width = width.flip(0) if above else width
    at = float((width == width.max()).nonzero().double().mean())  # outlines are steps: as wide in a few voxels
    share = float(width[0] / width.max())
    if share >= WIDEST:
        return float("inf")
    return (at + 0.5) * spacing[axis] * (1.0 / (1.0 - share**2) ** 0.5 - 1.0)
