"""Where a beam's range shifter can stand: upstream of the body, as near to it as it may come."""

from __future__ import annotations

import math

import torch

from torchimpt.checks import InputError
from torchimpt.geometry import Beam, magnification, to_bev
from torchimpt.patient import Patient
from torchimpt.spots.spots import Spots

CLEARANCE = 50.0
"""Air between a range shifter that moves and the body, mm, as clinics leave it at least: every centimetre more widens the spots."""

AROUND = 50.0
"""How far around a field's spots the body keeps its clearance from a shifter that moves, mm: the snout is wider than the field."""

BESIDE = 15.0
"""How far around its spots a field is looked at for a body that reaches into the shifter, mm: two sigmas of a spot behind one."""

ROUND = 10.0
"""Places of a shifter that moves are whole multiples of this, mm."""


def surface(patient: Patient, beam: Beam, sad: tuple[float, float], positions: torch.Tensor, around: float) -> float:
    """`Zg` of the body's most upstream point before a field, mm; -inf where there is none.

    Parameters
    ----------
    patient, beam, sad
        Whose body, seen from where.
    positions
        `(n, 2)`, the field's spots in the isocentre plane, mm.
    around
        How far outside their bounding box counts, mm.
    """
    points = patient.grid.centers(patient.body.flatten().nonzero().flatten())
    u, v, depth = to_bev(points, beam).unbind(1)
    m_x, m_y = magnification(depth, sad)
    seen = torch.stack((u / m_x, v / m_y), dim=1)
    low, high = positions.amin(dim=0) - around, positions.amax(dim=0) + around
    depth = depth[((seen >= low) & (seen <= high)).all(dim=1)]
    return float(depth.max()) if len(depth) else -math.inf


def nearest_place(patient: Patient, beam: Beam, sad: tuple[float, float], positions: torch.Tensor) -> float:
    """Distance, mm, from the isocentre at which the downstream face of a shifter that moves is `CLEARANCE` from the body, rounded up."""
    return max(ROUND * math.ceil((surface(patient, beam, sad, positions, AROUND) + CLEARANCE) / ROUND), 0.0)


def check_gaps(patient: Patient, spots: Spots, sad: tuple[float, float]) -> None:
    """Raise where a range shifter in use reaches into the body."""
    position, beam_of, shifted = spots.position.detach().cpu().double(), spots.beam.cpu(), spots.shifted.cpu()
    for number, beam in enumerate(spots.beams):
        own = shifted & (beam_of == number)
        if beam.shifter is None or beam.shifter.distance is None or not bool(own.any()):
            continue
        reaches = surface(patient, beam, sad, position[own], BESIDE)
        if reaches > beam.shifter.distance:
            raise InputError(
                f"beam {number} (gantry {beam.gantry:g}, couch {beam.couch:g}): its range shifter's downstream face, "
                f"{beam.shifter.distance:g} mm from the isocentre, lies inside the body, which reaches {reaches:.0f} mm upstream; give "
                f"range_shifter_distance_mm = {math.ceil(reaches):g} or more"
            )
