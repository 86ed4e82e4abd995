"""Patient, doses and matrices that plans share: those of a sweep whose members have one geometry and one set of spots."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from torchimpt.case import Case
from torchimpt.dose.engines import Choice
from torchimpt.dose.linear import LinearDose, StoredDose
from torchimpt.dose.scenarios import ScenarioDoses
from torchimpt.patient import Patient
from torchimpt.planning.load import load_patient
from torchimpt.points import Points
from torchimpt.schemes.lockstep import Lockstep
from torchimpt.spots import Spots

Made = tuple[ScenarioDoses, LinearDose, Choice]
"""Doses, their linear map, and what computes it."""


def geometry(case: Case) -> str:
    """All of a case that its doses come from: plans that have the same can share them. Not what is asked of them, nor the solver."""
    sections = ("patient", "material", "machine", "dose", "spots", "beam", "seed")
    start = (case.joint.start, case.joint.motion().moves) if case.joint is not None else None
    return repr([*(getattr(case, name) for name in sections), case.scenarios(), start])


class SharedDoses:
    """The patient, doses and their linear maps at points, made once and kept; for cases of one `geometry`, planned in lockstep.

    Parameters
    ----------
    lockstep
        Where stored matrices do the plans' products together.
    """

    def __init__(self, lockstep: Lockstep) -> None:
        self._made: dict[str, Made] = {}
        self._patients: dict[str, Patient] = {}
        self._lockstep = lockstep

    def patient(self, case: Case) -> Patient:
        """The case's patient on its dose grid, read once for all cases that name the same ROIs."""
        named = repr((case.used_rois(), case.goal, [objective.kind for objective in case.objective]))
        if named not in self._patients:
            self._patients[named] = load_patient(case)
        return self._patients[named]

    def get(self, what: tuple[str, ...], spots: Spots, points: Points, make: Callable[[], Made]) -> Made:
        """What was made for the same spots and points before, or is made now.

        Parameters
        ----------
        what
            What else decides: amplitude, gradient and engine.
        spots, points
            Where the doses come from and where they are looked at; compared by their bits.
        make
            Makes them.
        """
        seen = hashlib.sha256(repr(what).encode())
        for tensor in (spots.position, spots.layer, spots.layer_energy, points.volume, *points.places):
            seen.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        key = seen.hexdigest()
        if key not in self._made:
            doses, linear, engine = make()
            self._made[key] = doses, self._lockstep.of(linear) if isinstance(linear, StoredDose) else linear, engine
        return self._made[key]
