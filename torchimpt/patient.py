"""The patient: a CT on a grid and named regions of interest (ROIs)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce

import torch

from torchimpt.checks import InputError, is_plain, nearest
from torchimpt.contours import Contours
from torchimpt.geometry import Grid, check_position
from torchimpt.hu_table import DENSEST, HuTable

ROLES = ("target", "oar", "external")

FINEST_TRACED = 1.0 / 3.0
"""Voxels of a CT as it was read that rays are traced through, of the dose grid's, along every axis: 1 mm for a dose grid of 3 mm."""


@dataclass(frozen=True)
class ROI:
    """A named mask with a role.

    Attributes
    ----------
    name
        As the data set writes it.
    mask
        bool `(z, y, x)` on the patient's grid.
    role
        `"target"`, `"oar"` or `"external"` (the body's outline, at most one).
    rsp
        Relative stopping power of all that is inside where it is known better than from the CT (an implant, a couch); None: the CT's.
    outline
        What was drawn, where it is known: it is finer than the mask, and tells volumes and where points lie.
    """

    name: str
    mask: torch.Tensor
    role: str = "oar"
    rsp: float | None = None
    outline: Contours | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.name or not is_plain(self.name):
            raise InputError(f"a ROI's name must be text without control characters, got {self.name!r}; rename it")
        if self.role not in ROLES:
            raise InputError(f"ROI '{self.name}': role must be one of {', '.join(ROLES)}, got '{self.role}'{nearest(self.role, ROLES)}")
        if self.mask.dtype != torch.bool:
            raise TypeError(f"ROI '{self.name}': mask must be a bool tensor, got {self.mask.dtype}")
        if self.rsp is not None and not 0.0 <= self.rsp <= DENSEST:
            raise InputError(
                f"ROI '{self.name}': its relative stopping power must lie between 0 and {DENSEST:g} (gold: 10), water is 1; got {self.rsp}"
            )

    @property
    def voxels(self) -> torch.Tensor:
        """Flat indices `(n,)` of the voxels inside, ascending."""
        return self.mask.flatten().nonzero().flatten()


class Regions:
    """What has named ROIs: a patient with voxel masks, or points that lie in them."""

    rois: Mapping[str, ROI]

    def roi(self, name: str) -> ROI:
        """The ROI of this name; an error names those that are there."""
        if name not in self.rois:
            raise InputError(f"the patient has no ROI '{name}'{nearest(name, self.rois)}; it has {', '.join(sorted(self.rois)) or 'none'}")
        return self.rois[name]

    def union(self, names: str | Iterable[str]) -> torch.Tensor:
        """Mask, in the shape of the ROIs' own, of what lies in any of the named ROIs; an error when it is empty."""
        names = [names] if isinstance(names, str) else list(names)
        mask = reduce(torch.logical_or, [self.roi(name).mask for name in names], torch.zeros((), dtype=torch.bool))
        if not mask.any():
            raise InputError(f"ROI {', '.join(names)} has no voxel on this grid; use a finer grid_mm, or another ROI")
        return mask

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the ROIs with the role target."""
        return tuple(name for name, roi in self.rois.items() if roi.role == "target")


@dataclass(frozen=True)
class Patient(Regions):
    """CT numbers on a grid, and ROIs on the same grid.

    Attributes
    ----------
    hu
        CT numbers, HU, float32 `(z, y, x)`.
    grid
        Where the voxels lie.
    rois
        ROIs by name.
    name
        For titles and files.
    hu_table
        The CT's own HU-to-stopping-power table, if its file has one.
    original
        The patient as it was read, where this one is on another grid.
    position
        How the patient lies on the table, one of `torchimpt.geometry.POSITIONS`: what gantry and couch angles start from.

    Examples
    --------
    >>> mask = torch.zeros(4, 4, 4, dtype=torch.bool)
    >>> mask[1:3, 1:3, 1:3] = True
    >>> grid = Grid((4, 4, 4), (5.0, 5.0, 5.0), (0.0, 0.0, 0.0))
    >>> patient = Patient(torch.zeros(4, 4, 4), grid, {"CTV": ROI("CTV", mask, "target")})
    >>> patient.targets, patient.centroid("CTV")
    (('CTV',), (7.5, 7.5, 7.5))
    """

    hu: torch.Tensor
    grid: Grid
    rois: Mapping[str, ROI] = field(default_factory=dict)
    name: str = ""
    hu_table: HuTable | None = None
    original: Patient | None = field(default=None, repr=False)
    position: str = "HFS"

    def __post_init__(self) -> None:
        check_position(self.position)
        if tuple(self.hu.shape) != self.grid.shape:
            raise InputError(f"the CT's shape {tuple(self.hu.shape)} does not fit the grid's {self.grid.shape} (z, y, x)")
        bad = int((~torch.isfinite(self.hu)).sum())
        if bad:
            raise InputError(f"the CT of '{self.name}' has {bad} voxels that are NaN or infinite; mend the image before planning")
        low, high = float(self.hu.min()), float(self.hu.max())
        if low < -2000 or high > 32767:
            raise InputError(
                f"the CT of '{self.name}' spans {low:g} to {high:g}, which are no Hounsfield units (-1024 to about 3071); "
                "check its rescale slope and intercept"
            )
        for roi in self.rois.values():
            if tuple(roi.mask.shape) != self.grid.shape:
                raise InputError(f"ROI '{roi.name}' has shape {tuple(roi.mask.shape)}, the grid {self.grid.shape} (z, y, x)")
        if sum(roi.role == "external" for roi in self.rois.values()) > 1:
            raise InputError("a patient has at most one ROI with the role 'external'")

    @property
    def traced(self) -> Patient:
        """What rays are traced through: the CT as it was read, so that ranges are the same on every dose grid; this one where voxels as
        they were read are smaller than `FINEST_TRACED` of these, as rays then cross too many.
        """
        read = self.original
        sizes = [] if read is None else zip(read.grid.spacing, self.grid.spacing, strict=True)
        coarse = all(own >= (1.0 - 1e-6) * FINEST_TRACED * now for own, now in sizes)
        return read if read is not None and coarse else self

    @property
    def body_and_rois(self) -> torch.Tensor:
        """Mask `(z, y, x)` of the body and every ROI, those that reach out of it too."""
        return self.body | self.union(self.rois) if self.rois else self.body

    def volume(self, name: str) -> float:
        """Volume of the ROI, mm^3: of what was drawn, where the patient is as it was read, else of its voxels."""
        if self.original is None and (drawn := self.roi(name).outline) is not None:
            return drawn.volume
        return float(self.roi(name).mask.sum()) * math.prod(self.grid.spacing)

    @property
    def external(self) -> ROI | None:
        """The body's outline, where the patient has one."""
        return next((roi for roi in self.rois.values() if roi.role == "external"), None)

    @property
    def body(self) -> torch.Tensor:
        """Mask `(z, y, x)` of the voxels that get dose: the external ROI, or everything when there is none."""
        external = self.external
        return external.mask if external is not None else torch.ones(self.grid.shape, dtype=torch.bool)

    def centroid(self, names: str | Iterable[str]) -> tuple[float, float, float]:
        """LPS centroid of the union of the named ROIs, mm: of the ROIs as they were read, so that it is the same on every dose grid."""
        if self.original is not None:
            return self.original.centroid(names)
        voxels = self.union(names).flatten().nonzero().flatten()
        return tuple(self.grid.centers(voxels).mean(dim=0).tolist())
