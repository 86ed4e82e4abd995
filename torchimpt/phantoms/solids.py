"""Solids to build phantoms from, and the canvas that they are painted on.

A solid answers, for LPS points in mm, whether they lie inside; `|`, `&` and `-` join solids. A solid knows a box that holds it, so that
painting looks only there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from torchimpt.checks import InputError, positive
from torchimpt.geometry import Grid
from torchimpt.patient import ROI, Patient
from torchimpt.resample import resample

Point = tuple[float, float, float]
_FINENESS = 2
"""Sub-voxels a side: edges get the CT's partial-volume numbers, as in a scan."""


@dataclass(frozen=True)
class Solid:
    """A solid: `inside(x, y, z)` on broadcastable coordinates, mm, and the corners `low`, `high` of a box around it."""

    inside: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    low: Point
    high: Point

    def __or__(self, other: Solid) -> Solid:
        """What lies in either."""
        low = tuple(map(min, self.low, other.low))
        high = tuple(map(max, self.high, other.high))
        return Solid(lambda x, y, z: self.inside(x, y, z) | other.inside(x, y, z), low, high)

    def __and__(self, other: Solid) -> Solid:
        """What lies in both."""
        low = tuple(map(max, self.low, other.low))
        high = tuple(map(min, self.high, other.high))
        return Solid(lambda x, y, z: self.inside(x, y, z) & other.inside(x, y, z), low, high)

    def __sub__(self, other: Solid) -> Solid:
        """What lies in the first only."""
        return Solid(lambda x, y, z: self.inside(x, y, z) & ~other.inside(x, y, z), self.low, self.high)

    def mask(self, grid: Grid) -> torch.Tensor:
        """bool `(z, y, x)`: the voxels whose centres lie inside."""
        mask = torch.zeros(grid.shape, dtype=torch.bool)
        box, axes = [], []
        for i, name in enumerate("xyz"):
            centers = grid.axis(name)
            near = ((centers >= self.low[i]) & (centers <= self.high[i])).nonzero().flatten()
            if len(near) == 0:
                return mask
            box.insert(0, slice(int(near[0]), int(near[-1]) + 1))
            axes.append(centers[near].reshape([-1 if j == 2 - i else 1 for j in range(3)]))
        mask[tuple(box)] = self.inside(*axes)
        return mask


def both(solid: Solid) -> Solid:
    """The solid and its mirror image across the plane x = 0."""
    return solid | mirrored(solid)


def mirrored(solid: Solid) -> Solid:
    """The solid's mirror image across the plane x = 0 (left and right swapped)."""
    low = (-solid.high[0], *solid.low[1:])
    high = (-solid.low[0], *solid.high[1:])
    return Solid(lambda x, y, z: solid.inside(-x, y, z), low, high)


def box(low: Point, high: Point) -> Solid:
    """An axis-aligned box; infinite corners make slabs and half-spaces."""

    def inside(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        parts = [(c >= a) & (c <= b) for c, a, b in zip((x, y, z), low, high, strict=True)]
        return parts[0] & parts[1] & parts[2]

    return Solid(inside, low, high)


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
    return Solid(inside, tuple(c - r for c, r in zip(center, reach, strict=True)), tuple(c + r for c, r in zip(center, reach, strict=True)))


def column(center: tuple[float, float], radii: tuple[float, float], z: tuple[float, float], *, power: float = 2.0, yaw: float = 0.0) -> Solid:
    """An upright elliptic cylinder between the planes `z[0]` and `z[1]`."""
    cos, sin = math.cos(math.radians(yaw)), math.sin(math.radians(yaw))

    def inside(x: torch.Tensor, y: torch.Tensor, height: torch.Tensor) -> torch.Tensor:
        x, y = x - center[0], y - center[1]
        x, y = cos * x + sin * y, cos * y - sin * x
        return ((x / radii[0]).abs() ** power + (y / radii[1]).abs() ** power <= 1) & (height >= z[0]) & (height <= z[1])

    reach = radii if yaw == 0 else (math.hypot(*radii),) * 2
    return Solid(inside, (center[0] - reach[0], center[1] - reach[1], z[0]), (center[0] + reach[0], center[1] + reach[1], z[1]))


def tube(points: Sequence[Point], radius: float | Sequence[float]) -> Solid:
    """All within `radius` of a polyline; with one radius a point, it changes linearly between them. Round ends."""
    radii = [float(radius)] * len(points) if isinstance(radius, (int, float)) else list(radius)

    def inside(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        found = torch.zeros(torch.broadcast_shapes(x.shape, y.shape, z.shape), dtype=torch.bool)
        for (p, r_p), (q, r_q) in zip(zip(points, radii, strict=True), list(zip(points, radii, strict=True))[1:], strict=False):
            d = [b - a for a, b in zip(p, q, strict=True)]
            t = (((x - p[0]) * d[0] + (y - p[1]) * d[1] + (z - p[2]) * d[2]) / sum(v * v for v in d)).clamp(0, 1)
            distance2 = (x - p[0] - t * d[0]) ** 2 + (y - p[1] - t * d[1]) ** 2 + (z - p[2] - t * d[2]) ** 2
            found |= distance2 <= (r_p + t * (r_q - r_p)) ** 2
        return found

    low = tuple(min(p[i] - r for p, r in zip(points, radii, strict=True)) for i in range(3))
    high = tuple(max(p[i] + r for p, r in zip(points, radii, strict=True)) for i in range(3))
    return Solid(inside, low, high)


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
        if math.prod(counts) > 200_000_000:
            raise InputError(f"a phantom's spacing of {spacing:g} mm makes {math.prod(counts) / _FINENESS**3:.2g} voxels; 2 to 5 mm is usual")
        origin = tuple(c - 0.5 * (n - 1) * fine for c, n in zip(center, counts, strict=True))
        self.grid = Grid(shape=tuple(reversed(counts)), spacing=(fine,) * 3, origin=origin)
        self.hu = torch.full(self.grid.shape, -1000.0)
        self.rois: dict[str, ROI] = {}

    def fill(self, solid: Solid, hu: float, *, only: torch.Tensor | None = None) -> torch.Tensor:
        """Give the solid this CT number (where the mask `only` allows); return the mask that was painted."""
        mask = solid.mask(self.grid)
        if only is not None:
            mask &= only
        self.hu[mask] = hu
        return mask

    def roi(self, name: str, shape: Solid | torch.Tensor, role: str = "oar") -> None:
        """Name a solid or a mask on the fine grid."""
        self.rois[name] = ROI(name, shape.mask(self.grid) if isinstance(shape, Solid) else shape, role)

    def finish(self, name: str) -> Patient:
        """The phantom on its own grid: CT averaged, ROIs by majority."""
        return resample(Patient(self.hu, self.grid, self.rois, name=name), self.spacing)
