"""Voxel traversal of many rays at once: the compiled kernels behind `wepl.py`.

Exact path lengths (Siddon, Med Phys 12:252, 1985) by stepping from border to border (Amanatides and Woo, Eurographics 1987).
Rays are given in index coordinates: voxel `i` spans `[i, i + 1)` along its axis, and a direction is voxels per mm, so that the
ray parameter `t` is a length in mm. Flat arrays are indexed `(z * n_y + y) * n_x + x`.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange

PARALLEL = 1e-12
"""A direction cosine below this is rounding of a rotation matrix: over a metre it moves a ray by 1e-9 mm."""

ON_BORDER = 1e-9
"""A point this close to a voxel border, in voxels, lies on it, and belongs to the voxel above."""


@njit(cache=True, error_model="numpy")
def _slab(p, d, low, high, t0, t1):
    """Clip `[t0, t1]` to where `low <= p + t d <= high`; an empty interval has t1 < t0."""
    if d == 0.0:
        return (t0, t1) if low <= p < high else (t0, -1.0)
    a, b = (low - p) / d, (high - p) / d
    return max(t0, min(a, b)), min(t1, max(a, b))


@njit(cache=True, error_model="numpy")
def _axis(p, d, low, high, t0, stride):
    """At `t0` along one axis: voxel, t of the next border, t between borders, steps left until outside, flat stride."""
    i = min(max(math.floor(p + t0 * d), low), high - 1)
    if d > 0.0:
        return i, (i + 1 - p) / d, 1.0 / d, high - i, stride
    if d < 0.0:
        return i, (i - p) / d, -1.0 / d, i - low + 1, -stride
    return i, np.inf, 0.0, 1, 0


@njit(cache=True, error_model="numpy")
def _integral(rsp, n_x, n_y, box, px, py, pz, dx, dy, dz, reach):
    """`int_0^reach rsp(p + t d) dt` of one ray."""
    t, end = _slab(px, dx, box[0, 0], box[0, 1], 0.0, reach)
    t, end = _slab(py, dy, box[1, 0], box[1, 1], t, end)
    t, end = _slab(pz, dz, box[2, 0], box[2, 1], t, end)
    total = 0.0
    if end > t:
        ix, tx, ex, left_x, sx = _axis(px, dx, box[0, 0], box[0, 1], t, 1)
        iy, ty, ey, left_y, sy = _axis(py, dy, box[1, 0], box[1, 1], t, n_x)
        iz, tz, ez, left_z, sz = _axis(pz, dz, box[2, 0], box[2, 1], t, n_x * n_y)
        voxel = (iz * n_y + iy) * n_x + ix
        while True:
            border = min(min(tx, ty), min(tz, end))
            total += rsp[voxel] * (border - t)
            t = border
            if border >= end:
                break
            # The counters of steps left, not t, keep the index inside: t carries rounding.
            if tx <= border:
                tx += ex
                voxel += sx
                left_x -= 1
                if left_x == 0:
                    break
            elif ty <= border:
                ty += ey
                voxel += sy
                left_y -= 1
                if left_y == 0:
                    break
            else:
                tz += ez
                voxel += sz
                left_z -= 1
                if left_z == 0:
                    break
    return total


@njit(cache=True, parallel=True, error_model="numpy")
def integrate(rsp, n_x, n_y, box, start, direction, reach, out):
    """`out[r] = int_0^reach rsp(start + t direction) dt`.

    `box` `(3, 2)`: the index range of x, y, z outside which rsp is zero. `start`, `direction` `(n_rays, 3)` in x, y, z.
    """
    for r in prange(start.shape[0]):
        p, d = start[r], direction[r]
        out[r] = _integral(rsp, n_x, n_y, box, p[0], p[1], p[2], d[0], d[1], d[2], reach[r])


@njit(cache=True, error_model="numpy")
def _snap(value):
    """A point within `ON_BORDER` of a voxel border lies on it."""
    border = round(value)
    return border if abs(value - border) < ON_BORDER else value


@njit(cache=True, parallel=True, error_model="numpy")
def integrate_beam(rsp, n_x, n_y, box, points, origin, spacing, rotation, offset, sad_x, sad_y, out):
    """`integrate` along each point's ray of a beam, its set-up compiled too: in tensors that costs twice the traversal.

    `points` `(n_rays, 3)` in LPS; gantry frame `R (p + offset)`; see `wepl.ray_directions`. NaN for points at or behind a source.
    """
    top = min(sad_x, sad_y)
    for r in prange(points.shape[0]):
        qx, qy, qz = points[r, 0] + offset[0], points[r, 1] + offset[1], points[r, 2] + offset[2]
        xg = rotation[0, 0] * qx + rotation[0, 1] * qy + rotation[0, 2] * qz
        yg = rotation[1, 0] * qx + rotation[1, 1] * qy + rotation[1, 2] * qz
        zg = rotation[2, 0] * qx + rotation[2, 1] * qy + rotation[2, 2] * qz
        if not zg < top:
            out[r] = np.nan
            continue
        a, b = -xg / (sad_x - zg), -yg / (sad_y - zg)
        length = math.sqrt(a * a + b * b + 1.0)
        dx = (a * rotation[0, 0] + b * rotation[1, 0] + rotation[2, 0]) / length
        dy = (a * rotation[0, 1] + b * rotation[1, 1] + rotation[2, 1]) / length
        dz = (a * rotation[0, 2] + b * rotation[1, 2] + rotation[2, 2]) / length
        dx = 0.0 if abs(dx) < PARALLEL else dx / spacing[0]
        dy = 0.0 if abs(dy) < PARALLEL else dy / spacing[1]
        dz = 0.0 if abs(dz) < PARALLEL else dz / spacing[2]
        px = _snap((points[r, 0] - origin[0]) / spacing[0] + 0.5)
        py = _snap((points[r, 1] - origin[1]) / spacing[1] + 0.5)
        pz = _snap((points[r, 2] - origin[2]) / spacing[2] + 0.5)
        out[r] = _integral(rsp, n_x, n_y, box, px, py, pz, dx, dy, dz, (top - zg) * length)


@njit(cache=True, parallel=True, error_model="numpy")
def profile(rsp, n_x, n_y, n_z, start, direction, voxels, depth):
    """Every voxel that a ray crosses, in order, and the path integral of rsp where the ray leaves it.

    `voxels` `(n_rays, n_x + n_y + n_z)` must come filled with -1, `depth` alike with 0; unused slots stay so.
    """
    for r in prange(start.shape[0]):
        px, py, pz = start[r, 0], start[r, 1], start[r, 2]
        dx, dy, dz = direction[r, 0], direction[r, 1], direction[r, 2]
        t, end = _slab(px, dx, 0, n_x, 0.0, np.inf)
        t, end = _slab(py, dy, 0, n_y, t, end)
        t, end = _slab(pz, dz, 0, n_z, t, end)
        if end > t:
            ix, tx, ex, left_x, sx = _axis(px, dx, 0, n_x, t, 1)
            iy, ty, ey, left_y, sy = _axis(py, dy, 0, n_y, t, n_x)
            iz, tz, ez, left_z, sz = _axis(pz, dz, 0, n_z, t, n_x * n_y)
            voxel = (iz * n_y + iy) * n_x + ix
            total, slot = 0.0, 0
            while left_x > 0 and left_y > 0 and left_z > 0:
                border = min(tx, min(ty, tz))
                total += rsp[voxel] * (border - t)
                voxels[r, slot] = voxel
                depth[r, slot] = total
                slot += 1
                t = border
                if tx <= border:
                    tx += ex
                    voxel += sx
                    left_x -= 1
                elif ty <= border:
                    ty += ey
                    voxel += sy
                    left_y -= 1
                else:
                    tz += ez
                    voxel += sz
                    left_z -= 1
