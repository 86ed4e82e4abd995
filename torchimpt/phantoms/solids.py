"""Solids to build phantoms from, and the canvas that they are painted on.

A solid answers, for LPS points in mm, whether they lie inside; `|`, `&` and `-` join solids. A solid knows a box that holds it, so that
painting looks only there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from torchimpt.checks import InputError, positive
from torchimpt.geometry import Grid
from torchimpt.patient import ROI, Patient
from torchimpt.resampling import resample

Point = Sequence[float]
_MOST_VOXELS = 10_000_000
_FINENESS = 3
"""Sub-voxels a side, so that edges get a scan's partial-volume numbers. Odd: an even number ties at one half and swells every ROI."""


@dataclass(frozen=True)
class Part:
    """A piece of a solid: `inside(x, y, z)` on broadcastable coordinates, mm, and the corners `low`, `high` of a box around it."""

    inside: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    low: Point
    high: Point

    def within(self, grid: Grid) -> tuple[tuple[slice, ...], torch.Tensor] | None:
        """Array slices of the part's box on the grid, and whether each voxel centre in it lies inside; None beside the grid."""
        where: list[slice] = []
        axes: list[torch.Tensor] = []
        for i, name in enumerate("xyz"):
            centers = grid.axis(name).float()
            near = ((centers >= self.low[i]) & (centers <= self.high[i])).nonzero().flatten()
            if len(near) == 0:
                return None
            where.insert(0, slice(int(near[0]), int(near[-1]) + 1))
            axes.append(centers[near].reshape([-1 if j == 2 - i else 1 for j in range(3)]))
        shape = tuple(s.stop - s.start for s in where)
        return tuple(where), self.inside(*axes).expand(shape)


@dataclass(frozen=True)
class Solid:
    """The union of its parts."""

    parts: tuple[Part, ...]

    @classmethod
    def of(cls, inside: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor], low: Point, high: Point) -> Solid:
        """A solid from a condition on x, y, z and the box around it; outside the box the condition is not asked."""
        return cls((Part(inside, low, high),))

    def inside(self, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Whether points lie in any part; the coordinates broadcast."""
        found = self.parts[0].inside(x, y, z)
        for part in self.parts[1:]:
            found = found | part.inside(x, y, z)
        return found

    def __or__(self, other: Solid) -> Solid:
        """What lies in either."""
        return Solid(self.parts + other.parts)

    def __and__(self, other: Solid) -> Solid:
        """What lies in both."""
        return Solid(tuple(_both(p, q) for p in self.parts for q in other.parts))

    def __sub__(self, other: Solid) -> Solid:
        """What lies in the first only."""
        return Solid(tuple(_less(part, other) for part in self.parts))

    def mask(self, grid: Grid) -> torch.Tensor:
        """bool `(z, y, x)`: the voxels whose centres lie inside."""
        mask = torch.zeros(grid.shape, dtype=torch.bool)
        for part in self.parts:
            if found := part.within(grid):
                mask[found[0]] |= found[1]
        return mask


def _both(p: Part, q: Part) -> Part:
    low, high = tuple(map(max, p.low, q.low)), tuple(map(min, p.high, q.high))
    return Part(lambda x, y, z: p.inside(x, y, z) & q.inside(x, y, z), low, high)


def _less(part: Part, other: Solid) -> Part:
    return Part(lambda x, y, z: part.inside(x, y, z) & ~other.inside(x, y, z), part.low, part.high)


def _mirrored(part: Part) -> Part:
    low, high = (-part.high[0], *part.low[1:]), (-part.low[0], *part.high[1:])
    return Part(lambda x, y, z: part.inside(-x, y, z), low, high)


def mirrored(solid: Solid) -> Solid:
    """The solid's mirror image across the plane x = 0 (left and right swapped)."""
    return Solid(tuple(_mirrored(part) for part in solid.parts))


def both(solid: Solid) -> Solid:
    """The solid and its mirror image across the plane x = 0."""
    return solid | mirrored(solid)


def box(low: Point, high: Point) -> Solid:
    """An axis-aligned box; infinite corners make slabs and half-spaces."""

    def inside(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        parts = [(c >= a) & (c <= b) for c, a, b in zip((x, y, z), low, high, strict=True)]
        return parts[0] & parts[1] & parts[2]

    return Solid.of(inside, low, high)


def below(z: float) -> Solid:
    """The half-space inferior to `z`."""
    return box((-math.inf,) * 3, (math.inf, math.inf, z))


def ellipsoid(center: Point, radii: Point, *, power: float = 2.0, yaw: float = 0.0, pitch: float = 0.0) -> Solid:
    """`|x/a|^p + |y/b|^p + |z/c|^p <= 1`; a power above 2 squares it off.

    Parameters
    ----------
    center, radii
        mm, LPS.
    power
        p.
    yaw
        Turns +x toward +y, degrees.
    pitch
        Turns +y toward +z, degrees, before the yaw.
    """
    cos_yaw, sin_yaw = math.cos(math.radians(yaw)), math.sin(math.radians(yaw))
    cos_pitch, sin_pitch = math.cos(math.radians(pitch)), math.sin(math.radians(pitch))

    def inside(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        x, y, z = x - center[0], y - center[1], z - center[2]
        x, y = cos_yaw * x + sin_yaw * y, cos_yaw * y - sin_yaw * x
        y, z = cos_pitch * y + sin_pitch * z, cos_pitch * z - sin_pitch * y
        if power == 2.0:
            return (x / radii[0]) ** 2 + (y / radii[1]) ** 2 + (z / radii[2]) ** 2 <= 1
        return (x / radii[0]).abs() ** power + (y / radii[1]).abs() ** power + (z / radii[2]).abs() ** power <= 1

    # Turned, it lies within its box's circumscribed sphere.
    reach = radii if yaw == pitch == 0 else (math.hypot(*radii),) * 3
    low = tuple(c - r for c, r in zip(center, reach, strict=True))
    high = tuple(c + r for c, r in zip(center, reach, strict=True))
    return Solid.of(inside, low, high)


def column(center: tuple[float, float], radii: tuple[float, float], z: tuple[float, float], *, power: float = 2.0) -> Solid:
    """An upright elliptic cylinder between the planes `z[0]` and `z[1]`; a power above 2 squares it off."""

    def inside(x: torch.Tensor, y: torch.Tensor, height: torch.Tensor) -> torch.Tensor:
        across = ((x - center[0]) / radii[0]).abs() ** power + ((y - center[1]) / radii[1]).abs() ** power
        return (across <= 1) & (height >= z[0]) & (height <= z[1])

    return Solid.of(inside, (center[0] - radii[0], center[1] - radii[1], z[0]), (center[0] + radii[0], center[1] + radii[1], z[1]))


def tube(points: Sequence[Point], radius: float | Sequence[float]) -> Solid:
    """All within `radius` of a polyline; with one radius a point, it changes linearly between them. Round ends."""
    radii = [float(radius)] * len(points) if isinstance(radius, (int, float)) else list(radius)
    ends = list(zip(points, radii, strict=True))
    return Solid(tuple(_segment(*start, *end) for start, end in pairwise(ends)))


def _segment(p: Point, r_p: float, q: Point, r_q: float) -> Part:
    """One segment of a tube, from `p` to `q`."""
    d = tuple(b - a for a, b in zip(p, q, strict=True))
    length2 = sum(v * v for v in d)

    def inside(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        x, y, z = x - p[0], y - p[1], z - p[2]
        along = (x * d[0] + y * d[1]) + z * d[2]
        t = (along / length2).clamp_(0, 1)
        # |v - t d|^2 = |v|^2 - t (2 v'd - t |d|^2), with as few whole volumes as can be.
        distance2 = ((x * x + y * y) + z * z) - along.mul_(2).sub_(t * length2).mul_(t)
        return distance2 <= t.mul_(r_q - r_p).add_(r_p).square_()

    low = tuple(min(a - r_p, b - r_q) for a, b in zip(p, q, strict=True))
    high = tuple(max(a + r_p, b + r_q) for a, b in zip(p, q, strict=True))
    return Part(inside, low, high)


class Canvas:
    """A fine grid that solids are painted on, later ones over earlier ones.

    Parameters
    ----------
    size
        Extent `(x, y, z)`, mm; the grid takes the least number of voxels that covers it.
    spacing
        Voxel size of the finished phantom, mm.
    center
        LPS point in the grid's middle.
    """

    def __init__(self, size: Point, spacing: float, center: Point = (0.0, 0.0, 0.0)) -> None:
        self.spacing = positive("a phantom's spacing", spacing)
        counts = [math.ceil(extent / spacing - 1e-6) * _FINENESS for extent in size]
        fine = spacing / _FINENESS
        if min(counts) < 4 * _FINENESS:
            raise InputError(f"a phantom's spacing of {spacing:g} mm is too coarse for its {min(size):g} mm; 2 to 5 mm is usual")
        n_voxels = math.prod(counts) / _FINENESS**3
        if n_voxels > _MOST_VOXELS:
            raise InputError(f"a phantom's spacing of {spacing:g} mm makes {n_voxels:.2g} voxels; 2 to 5 mm is usual")
        origin = tuple(c - 0.5 * (n - 1) * fine for c, n in zip(center, counts, strict=True))
        self.grid = Grid(shape=tuple(reversed(counts)), spacing=(fine,) * 3, origin=origin)
        self.hu = torch.full(self.grid.shape, -1000.0)
        self.rois: dict[str, ROI] = {}

    def fill(self, solid: Solid, hu: float, *, only: torch.Tensor | None = None) -> None:
        """Give the solid this CT number, where the mask `only` allows."""
        for part in solid.parts:
            if found := part.within(self.grid):
                where, inside = found
                self.hu[where].masked_fill_(inside if only is None else inside & only[where], hu)

    def roi(self, name: str, shape: Solid | torch.Tensor, role: str = "oar") -> None:
        """Name a solid or a mask on the fine grid."""
        self.rois[name] = ROI(name, shape.mask(self.grid) if isinstance(shape, Solid) else shape, role)

    def organ(self, name: str, solid: Solid, hu: float, role: str = "oar", *, only: torch.Tensor | None = None) -> None:
        """Fill a solid and name it."""
        mask = solid.mask(self.grid)
        self.roi(name, mask if only is None else mask & only, role)
        self.fill(solid, hu, only=only)

    def finish(self, name: str) -> Patient:
        """The phantom on its own grid: CT averaged, ROIs by majority."""
        return resample(Patient(self.hu, self.grid, self.rois, name=name), self.spacing)
