"""Phantoms of water and simple shapes."""

from __future__ import annotations

import torch

from torchimpt.checks import InputError, triple
from torchimpt.patient import Patient
from torchimpt.phantoms.solids import Canvas, Point, Solid, box, column


def water(spacing: float = 3.0, *, size: float | Point = 150.0) -> Patient:
    """A block of water (HU 0) that fills its grid, with a 40 mm cube `Target` in the middle, at LPS (0, 0, 0).

    Parameters
    ----------
    spacing
        Voxel size, mm.
    size
        Extent, mm, one number or `(x, y, z)`; rounded up to whole voxels. A beam from gantry 0 enters at `y = -size_y / 2`.
    """
    return _block(spacing, size).finish("water")


def step(spacing: float = 3.0, *, size: float | Point = 150.0, hu: float = -700.0, depth: tuple[float, float] = (30.0, 60.0)) -> Patient:
    """The water block with a lateral density step: a slab of another CT number in its left half, x > 0.

    Parameters
    ----------
    spacing, size
        As for `water`.
    hu
        The slab's CT number; -700 is lung.
    depth
        Where the slab begins and ends below the anterior face, mm.
    """
    canvas = _block(spacing, size)
    if not (0 <= depth[0] < depth[1]):
        raise InputError(f"depth must be two ascending depths from 0, mm, got {depth}")
    face = canvas.grid.origin[1] - 0.5 * canvas.grid.spacing[1]
    far = float("inf")
    canvas.fill(box((0.0, face + depth[0], -far), (far, face + depth[1], far)), hu)
    return canvas.finish("step")


def _block(spacing: float, size: float | Point) -> Canvas:
    """Water, its outline and the cube in the middle."""
    size = triple("size", size)
    if min(size) < 60:
        raise InputError(f"size must be at least 60 mm along each axis, to hold the 40 mm target, got {list(size)}")
    canvas = Canvas(size, spacing)
    canvas.hu.fill_(0.0)
    canvas.roi("External", torch.ones(canvas.grid.shape, dtype=torch.bool), "external")
    canvas.roi("Target", box((-20.0,) * 3, (20.0,) * 3), "target")
    return canvas


def tg119(spacing: float = 3.0) -> Patient:
    """The C-shape of AAPM TG-119 in an oval body of water.

    `Core` is a cylinder of 10 mm radius, 100 mm long; `OuterTarget` an arc from 15 to 37 mm around the same axis, 80 mm long, open to
    posterior over 90 degrees. Source: G. Ezzell et al., "IMRT commissioning: Multiple institution planning and dosimetry comparisons,
    a report from AAPM Task Group 119", Med Phys 36:5359, 2009.

    Parameters
    ----------
    spacing
        Voxel size, mm.
    """
    canvas = Canvas((330.0, 230.0, 180.0), spacing)
    body = column((0.0, 0.0), (155.0, 105.0), (-85.0, 85.0), power=2.3)
    canvas.organ("External", body, 0.0, "external")
    core = column((0.0, 0.0), (10.0, 10.0), (-50.0, 50.0))
    ring = column((0.0, 0.0), (37.0, 37.0), (-40.0, 40.0)) - column((0.0, 0.0), (15.0, 15.0), (-40.0, 40.0))
    opening = Solid.of(lambda x, y, z: (y > x.abs()) & (z.abs() < 50.0), (-50.0,) * 3, (50.0,) * 3)
    canvas.roi("OuterTarget", ring - opening, "target")
    canvas.roi("Core", core)
    return canvas.finish("tg119")
