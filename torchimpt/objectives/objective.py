"""The planning objective: goals for ROIs, and their binding to the voxels that a dose is computed on.

    F(D) = sum_terms c * rho * sum_{v in roi} H(D_v - p) (D_v - p)^2        (Xu et al. 2020, Eq. 1)

with `c = 1` as in the paper, or `c = 1 / n_voxels(roi)` when the objective is normalized (the default). See `terms` for the goals,
`robust` for scenarios.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from torchimpt.checks import InputError, nearest
from torchimpt.objectives.bound import BoundObjective, BoundTerm
from torchimpt.objectives.constraints import check_consistent
from torchimpt.objectives.term import Term
from torchimpt.objectives.terms import MaxDose
from torchimpt.patient import Patient, Regions

OVERLAPS = ("exclude", "keep")


class Split(NamedTuple):
    """An objective's voxels: two flat masks `(n_grid,)` without a voxel in common, and the `max_dose` terms of the second.

    Attributes
    ----------
    needed
        What every sum has to have.
    pool
        What may be sampled.
    limits
        Terms of positive weight whose ROI is sampled.
    """

    needed: Tensor
    pool: Tensor
    limits: tuple[Term, ...]


@dataclass(frozen=True)
class Objective:
    """A sum of terms, not yet bound to a patient.

    Attributes
    ----------
    terms
        The goals; at least one.
    normalize
        Divide each term by the number of voxels that it sees (True), or sum over voxels as the paper does (False).
    overlap
        `"exclude"`: a term of an ROI that is no target leaves out the voxels of the targets that have a term in this objective, so that
        an organ's limit does not fight the prescription inside the target. A target without a term shields nothing.
        `"keep"`: every term sees its whole ROI.
    """

    terms: Sequence[Term]
    normalize: bool = True
    overlap: str = "exclude"

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", tuple(self.terms))
        if not self.terms:
            raise InputError("there is no objective: give at least one, e.g. a min_dose for the target")
        for term in self.terms:
            if not isinstance(term, Term):
                raise TypeError(f"an objective's terms must be Terms such as MinDose or MaxDose, got {type(term).__name__}")
        if self.overlap not in OVERLAPS:
            raise InputError(f"overlap must be one of {', '.join(OVERLAPS)}, got '{self.overlap}'{nearest(self.overlap, OVERLAPS)}")
        if all(term.constraint for term in self.terms):
            raise InputError(
                "every objective is a constraint: nothing is left to be as good as it can; give one that is none, e.g. a min_dose for the "
                "target"
            )
        if not any(term.weight > 0 for term in self.terms if not term.constraint):
            raise InputError("every objective has weight 0: nothing is left to plan for; give one a positive weight")
        check_consistent([term for term in self.terms if term.constraint])

    def masks(self, regions: Regions, *, some: bool = False) -> list[Tensor]:
        """Flat mask of each term, `(n,)` bool: of the voxels of a patient's grid, or of points, of which `some` ROIs may have none."""
        targets = [term.roi for term in self.terms if regions.roi(term.roi).role == "target"]
        shield = regions.union(targets) if targets and self.overlap == "exclude" else None
        masks = []
        for term in self.terms:
            mask = regions.roi(term.roi).mask if some else regions.union(term.roi)
            if shield is not None and regions.roi(term.roi).role != "target":
                mask = mask & ~shield
                if not (some or mask.any()):
                    raise InputError(
                        f"objective {term.kind} of '{term.roi}' has no voxel outside the targets {', '.join(sorted(set(targets)))}; "
                        "take it out, or set overlap = 'keep'"
                    )
            masks.append(mask.flatten())
        return masks

    def voxels(self, patient: Patient) -> Tensor:
        """Flat grid indices `(n,)`, ascending, of the voxels that any term needs: all that a planning dose has to cover."""
        return torch.stack(self.masks(patient)).any(0).nonzero().flatten()

    def split(self, patient: Patient, above: int) -> Split:
        """Which voxels every term's sum has to have, and which may be sampled: those that only `max_dose` terms see, each of a ROI with
        more than `above` such voxels.
        """
        masks = self.masks(patient)
        needed = torch.zeros(patient.grid.n_voxels, dtype=torch.bool)
        for term, mask in zip(self.terms, masks, strict=True):
            if not isinstance(term, MaxDose):
                needed |= mask
        large = [isinstance(t, MaxDose) and int((m & ~needed).sum()) > above for t, m in zip(self.terms, masks, strict=True)]
        for is_large, mask in zip(large, masks, strict=True):
            if not is_large:
                needed |= mask
        limits = tuple(term for term, is_large in zip(self.terms, large, strict=True) if is_large and term.weight > 0)
        return Split(needed, torch.stack(masks).any(0) & ~needed, limits)

    def on(self, patient: Patient, voxels: Tensor | None = None) -> BoundObjective:
        """Bind the terms to the entries of a dose vector.

        Parameters
        ----------
        patient
            Whose ROIs the terms name.
        voxels
            Flat grid index of each entry of the dose vector `(n_voxels,)`, without repetition; the whole grid in order when left out.
        """
        n_grid = patient.grid.n_voxels
        place = torch.arange(n_grid)
        if voxels is not None:
            place = torch.full((n_grid,), -1)
            place[voxels.cpu()] = torch.arange(len(voxels))
        bound = []
        for term, mask in zip(self.terms, self.masks(patient), strict=True):
            index = place[mask.nonzero().flatten()]
            missing = int((index < 0).sum())
            if missing:
                raise InputError(
                    f"objective {term.kind} of '{term.roi}' needs {missing} voxels that the dose does not cover; "
                    "compute the dose on Objective.voxels(patient)"
                )
            bound.append(BoundTerm(term, index, 1.0 / len(index) if self.normalize else 1.0))
        return BoundObjective(bound, n_grid if voxels is None else len(voxels))

    def at(self, points: Regions, volume: Tensor, counts: Sequence[float | None] | None = None) -> BoundObjective:
        """Bind the terms to points that stand for volumes.

        Parameters
        ----------
        points
            ROIs with masks of the dose vector's entries, `(n_points,)`.
        volume
            `(n_points,)`, in voxels: of points in cells what they stand for; of a sample of voxels the inverse of the probability that one
            came into it, so that the expected sum is that over all voxels (Horvitz and Thompson, J Am Stat Assoc 47:663, 1952).
        counts
            Of each term the voxels that it is divided by when the objective is normalized; None: the volume of its points. For terms that
            see a sample.
        """
        bound = []
        masks = self.masks(points, some=counts is not None)
        for term, mask, count in zip(self.terms, masks, counts or [None] * len(masks), strict=True):
            index = mask.nonzero().flatten()
            own = volume[index].double()
            factor = 1.0 / (count or float(own.sum())) if self.normalize else 1.0
            bound.append(BoundTerm(term, index, factor, None if bool((own == 1.0).all()) else own))
        return BoundObjective(bound, len(volume))
