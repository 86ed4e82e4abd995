"""Where an objective looks: points in the patient that each stand for a volume.

A dose grid's voxels are too coarse for a target: its edge runs through them, and Bragg peaks of 3 to 4 mm fall between their middles, so
that an optimizer finds doses that are right at every middle and nowhere else. So voxels are cut into parts. The parts of one voxel that lie
in the same ROIs are a *cell*, of their volume, and every scenario looks at other parts of each cell: by turns, so that all scenarios
together have looked at many. A dose vector has the same entries, ROIs and volumes in every scenario; only where exactly it is looked at
differs, by less than a voxel. (Stratified sampling: Cochran, Sampling Techniques, 1977, chapter 5.) What has to hold everywhere, a
constraint, is looked at in all parts of its cells in every scenario: a limit that holds at one part of each is broken beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import max_pool3d

from torchimpt.geometry import Grid
from torchimpt.memory import check_memory
from torchimpt.patient import ROI, Patient, Regions

LOOKS = 0.5
"""Points a target's volume of `spacing` cubed gets in all scenarios together; each scenario has at least one in every cell."""

MOST_PARTS = 3
"""Along each axis, for the sake of outlines alone."""


@dataclass(frozen=True)
class Points(Regions):
    """Points with volumes, the same number in every scenario.

    Attributes
    ----------
    places
        LPS points `(n_points, 3)`, mm, float64: of each scenario, or one for all.
    volume
        `(n_points,)`, float64: what each stands for, in voxels of the dose grid.
    rois
        ROIs by name, with masks `(n_points,)` in the place of voxel masks.
    """

    places: tuple[Tensor, ...]
    volume: Tensor
    rois: Mapping[str, ROI]

    def __len__(self) -> int:
        return len(self.volume)

    def place(self, scenario: int) -> Tensor:
        """The points `(n_points, 3)` of this scenario."""
        return self.places[scenario % len(self.places)]

    def take(self, index: Tensor) -> Points:
        """The points `index` `(n_taken,)`, in its order."""
        rois = {name: replace(roi, mask=roi.mask[index]) for name, roi in self.rois.items()}
        return Points(tuple(place[index] for place in self.places), self.volume[index], rois)


def voxel_points(patient: Patient, voxels: Tensor, volume: Tensor | None = None) -> Points:
    """The middles of voxels (flat grid indices `(n,)`), of one voxel's volume each or of what they stand for."""
    volume = torch.ones(len(voxels), dtype=torch.float64) if volume is None else volume
    rois = {name: replace(roi, mask=roi.mask.flatten()[voxels]) for name, roi in patient.rois.items()}
    return Points((patient.grid.centers(voxels),), volume, rois)


def together(parts: Sequence[Points]) -> Points:
    """Points one after the other."""
    most = max(len(part.places) for part in parts)
    places = tuple(torch.cat([part.place(k) for part in parts]) for k in range(most))
    rois = {name: replace(roi, mask=torch.cat([part.rois[name].mask for part in parts])) for name, roi in parts[0].rois.items()}
    return Points(places, torch.cat([part.volume for part in parts]), rois)


def parts_of(patient: Patient, spacing: float) -> tuple[int, int, int]:
    """In how many parts a voxel is cut along x, y and z: none is larger than `spacing`, mm, or, with no more than `MOST_PARTS`, than the
    voxels that the ROIs were read on.
    """
    read = (patient.original or patient).grid.spacing
    cuts = (max(1, _ceil(size / spacing), min(MOST_PARTS, _ceil(size / own))) for size, own in zip(patient.grid.spacing, read, strict=True))
    n_x, n_y, n_z = cuts
    return n_x, n_y, n_z


def _ceil(number: float) -> int:
    """Rounded up, but for what is rounding itself."""
    return math.ceil(number - 1e-6)


def cell_points(
    patient: Patient,
    names: Iterable[str],
    spacing: float = math.inf,
    n_scenarios: int = 1,
    targets: Iterable[str] = (),
    seed: int = 0,
    jitter: bool = True,
    whole: Iterable[str] = (),
) -> Points:
    """Points in the cells of ROIs.

    Parameters
    ----------
    patient
        On the dose grid; ROIs are taken from what was read (`patient.original`), where that is finer, and from what was drawn.
    names
        ROIs that are looked at, in the voxels of their union.
    spacing
        How close points are, mm; infinite: one in each cell.
    n_scenarios
        How many scenarios look, each at other points.
    targets
        ROIs that are looked at as closely as that, with the voxels around them; others have one point in each cell.
    seed
        Which parts come first, and where in them points lie.
    jitter
        Points anywhere in their parts at random (True), or in the middle.
    whole
        ROIs, of `names`, that every scenario looks at in all parts of their cells.

    Returns
    -------
    Points of `n_scenarios` scenarios, with all of the patient's ROIs.
    """
    names, parts, grid = list(names), parts_of(patient, spacing), patient.grid
    n_parts = math.prod(parts)
    # half of a voxel beside the ROI's may be inside as it was read
    near_by = _beside(patient.union(names)).flatten().nonzero().flatten()
    needed = len(near_by) * n_parts * (len(patient.rois) + 96)
    check_memory(f"{len(near_by) * n_parts:,} parts of voxels", needed, "cpu", "set dose.target_grid_mm")
    at = _parts(grid, near_by, parts, seed if jitter else None)
    masks = _masks(patient.original or patient, at)
    inside = torch.stack([masks[name] for name in names]).any(0).nonzero().flatten()
    voxel, rank = near_by[inside // n_parts], inside % n_parts
    signature, kinds = _signature([mask[inside] for mask in masks.values()])
    _, cell = (voxel * kinds + signature).unique(return_inverse=True)
    order, size = _by_turns(cell, rank, n_parts, seed)
    first = size.cumsum(0) - size

    close = torch.zeros(grid.n_voxels, dtype=torch.bool)
    for target in targets:
        close[voxel[masks[target][inside]]] = True
    is_close = _beside(close.reshape(grid.shape)).flatten()[voxel[order[first]]]
    finer = math.prod(max(1.0, size / spacing) for size in grid.spacing)
    near = max(1, _ceil(LOOKS * finer / n_scenarios))
    count = torch.minimum(torch.where(is_close, near, 1), size)
    for name in whole:
        count = torch.where(masks[name][inside[order[first]]], size, count)

    of = torch.repeat_interleave(count)
    look = torch.arange(len(of)) - (count.cumsum(0) - count)[of]
    places = []
    for k in range(n_scenarios if n_parts > 1 else 1):
        seen = inside[order[first[of] + (k * count[of] + look) % size[of]]]
        places.append(at[seen])
    # the parts of a cell are shared out among its points
    volume = (size[of] // count[of] + (look < size[of] % count[of])).double() / n_parts
    part = inside[order[first]][of]
    return Points(tuple(places), volume, {name: replace(patient.rois[name], mask=mask[part]) for name, mask in masks.items()})


def _beside(mask: Tensor) -> Tensor:
    """A mask `(z, y, x)` and the voxels around it."""
    return max_pool3d(mask[None, None].float(), 3, stride=1, padding=1)[0, 0] > 0


def _parts(grid: Grid, voxels: Tensor, parts: tuple[int, int, int], seed: int | None) -> Tensor:
    """A point in each part of voxels (flat grid indices), LPS `(n_voxels * n_parts, 3)`, mm: its middle, or anywhere in it at random.

    What lies along a voxel's faces is as near to a random point as all else; middles never come nearer than half a part.
    """
    z, y, x = torch.meshgrid(*(torch.arange(n) for n in reversed(parts)), indexing="ij")
    corner = torch.stack((x, y, z), dim=-1).reshape(1, -1, 3).double()
    within = torch.full((1, 1, 1), 0.5, dtype=torch.float64)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        within = torch.rand(len(voxels), corner.shape[1], 3, generator=generator, dtype=torch.float64)
    share = (corner + within) / torch.tensor(parts, dtype=torch.float64) - 0.5
    return (grid.centers(voxels)[:, None] + share * torch.tensor(grid.spacing, dtype=torch.float64)).reshape(-1, 3)


def _masks(read: Patient, points: Tensor) -> dict[str, Tensor]:
    """Masks `(n,)` of the ROIs at points `(n, 3)`: in which voxel these lie as the ROIs were read, and in voxels at an edge on which side
    of what was drawn, where that is known; nowhere outside.
    """
    grid, at, inside = read.grid, [], torch.ones((), dtype=torch.bool)
    for axis, end in enumerate(grid.shape):
        place = ((points[:, 2 - axis] - grid.origin[2 - axis]) / grid.spacing[2 - axis] + 0.5).floor().long()
        inside = inside & (place >= 0) & (place < end)
        at.append(place.clamp(0, end - 1))
    masks = {}
    for name, roi in read.rois.items():
        masks[name] = roi.mask[at[0], at[1], at[2]] & inside
        if roi.outline is not None:
            near = (_at_edge(roi.mask, at) & inside).nonzero().flatten()
            masks[name][near] = roi.outline.contains(points[near])
    return masks


def _at_edge(mask: Tensor, at: Sequence[Tensor]) -> Tensor:
    """Whether voxels at indices `at`, `(n,)` each of z, y and x, have a neighbour on the other side of a mask's edge."""
    own, differs = mask[at[0], at[1], at[2]], torch.zeros(len(at[0]), dtype=torch.bool)
    steps = [(0, j, i) for j in (-1, 0, 1) for i in (-1, 0, 1) if (j, i) != (0, 0)]
    for step in [(-1, 0, 0), (1, 0, 0), *steps]:
        beside = [(place + d).clamp(0, n - 1) for place, d, n in zip(at, step, mask.shape, strict=True)]
        differs |= mask[beside[0], beside[1], beside[2]] != own
    return differs


def _signature(masks: Sequence[Tensor]) -> tuple[Tensor, int]:
    """A number `(n,)` for each combination of masks, and one more than the largest."""
    signature, kinds = torch.zeros(len(masks[0]), dtype=torch.int64), 1
    for mask in masks:
        signature, kinds = 2 * signature + mask, 2 * kinds
        if kinds > 1 << 16:
            found, signature = signature.unique(return_inverse=True)
            kinds = len(found)
    return signature, kinds


def _by_turns(cell: Tensor, rank: Tensor, n_parts: int, seed: int) -> tuple[Tensor, Tensor]:
    """An order of the parts, cell by cell, in which those that follow each other lie apart; and each cell's number of parts."""
    size = torch.bincount(cell)
    turn = torch.randint(n_parts, (len(size),), generator=torch.Generator().manual_seed(seed))
    # a stride without a common factor visits every part once; near the golden section it leaves even gaps
    stride = min((n for n in range(1, n_parts + 1) if math.gcd(n, n_parts) == 1), key=lambda n: abs(n - 0.382 * n_parts))
    return (cell * n_parts + (rank * stride + turn[cell]) % n_parts).argsort(), size
