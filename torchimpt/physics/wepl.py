"""Water-equivalent path length (WEPL) along straight rays through a voxel grid, exact.

    WEPL(v) = int RSP dl    from outside the grid (or a plane in the air before it), along the ray of the beam through v, to v itself

The field diverges from two virtual sources, one per scan magnet: in the gantry frame the ray through `(Xg, Yg, Zg)` is the
straight line whose x-projection comes from `(0, SAD_x)` and whose y-projection comes from `(0, SAD_y)`. RSP is constant inside
a voxel, so the integral is a sum over crossed voxels (Siddon, Med Phys 12:252, 1985). A setup shift moves the patient; the
scale of a range error is the caller's to apply. Everything is float64.
"""

from __future__ import annotations

import numpy as np
import torch

from torchimpt.checks import InputError
from torchimpt.constants import AIR_RSP
from torchimpt.geometry import Beam, Grid, bev_rotation, to_bev
from torchimpt.physics import siddon

_CHUNK = 1 << 22
"""Border crossings per chunk of the torch back-end: 32 MB per temporary."""


def ray_directions(
    points: torch.Tensor, beam: Beam, sad: tuple[float, float], shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors from each point towards its virtual sources.

    In the gantry frame the direction is `(-Xg / (SAD_x - Zg), -Yg / (SAD_y - Zg), 1)`, normalised; with equal SADs it points
    to the one source.

    Parameters
    ----------
    points
        `(n, 3)`, LPS, mm, in the patient's own frame.
    beam
        With its isocenter set.
    sad
        Distance of the isocenter from the virtual sources of x and y, mm.
    shift
        Setup error: the patient lies displaced by this LPS vector, mm.

    Returns
    -------
    Directions `(n, 3)` in LPS, and `(n,)` the length in mm up to the plane of the nearer source, where the ray begins.
    """
    x, y, z = to_bev(points.to(torch.float64), beam, shift).unbind(1)
    if points.shape[0] and float(z.max()) >= min(sad):
        raise InputError(
            f"a point lies {float(z.max()):.0f} mm upstream of the isocenter, at or behind the source (SAD {min(sad):g} mm); "
            "check the isocenter and the machine's SAD"
        )
    direction = torch.stack((-x / (sad[0] - z), -y / (sad[1] - z), torch.ones_like(z)), dim=1)
    length = torch.linalg.vector_norm(direction, dim=1)
    return direction @ bev_rotation(beam).to(direction) / length[:, None], (min(sad) - z) * length


def wepl(
    rsp: torch.Tensor,
    grid: Grid,
    beam: Beam,
    sad: tuple[float, float],
    points: torch.Tensor,
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0),
    *,
    backend: str = "auto",
    air_from: float | None = None,
) -> torch.Tensor:
    """WEPL from the surface to each point along its own ray, mm; or from a plane in the air.

    Parameters
    ----------
    rsp
        Relative stopping power `(z, y, x)`; 0 outside the body.
    grid
        Of `rsp`. Outside it there is nothing to stop a proton.
    beam, sad, points, shift
        As in `ray_directions`. Points may lie outside the grid.
    backend
        `"numba"` (compiled, CPU), `"torch"` (reference, any device) or `"auto"`: numba on the CPU, torch elsewhere.
    air_from
        `Zg` of a plane, mm, from which on all that is not the body is air, of `AIR_RSP`; None: vacuum. The integral from the plane to the
        point is `AIR_RSP` times the way and, over the body's voxels, `RSP - AIR_RSP`: one ray as well. A plane downstream of a body's
        surface is for an energy that protons have there in air: what the air up to it took is given back, down to a WEPL of zero.

    Returns
    -------
    `(n,)`, float64. At a voxel's centre it includes half of the voxel's own crossing.

    Notes
    -----
    WEPL is continuous in the point, except for rays that run along a border between voxels: these take the voxel above it.
    """
    _check(rsp, grid)
    if air_from is not None:
        way = air_way(points, beam, sad, air_from, shift)
        body = wepl(less_air(rsp), grid, beam, sad, points, shift, backend=backend)
        return (body + AIR_RSP * way.to(body.device)).clamp_min(0.0)
    if _backend(backend, rsp) == "torch" or beam.isocenter is None:
        direction, reach = ray_directions(points, beam, sad, shift)
        return ray_wepl(rsp, grid, points, direction, reach, backend="torch")
    points = points.detach().to("cpu", torch.float64).contiguous()
    box, out = _nonzero_box(rsp), np.zeros(points.shape[0])
    if box is not None:
        offset = np.array(shift) - np.array(beam.isocenter)
        origin, spacing, rotation = np.array(grid.origin), np.array(grid.spacing), bev_rotation(beam).contiguous().numpy()
        siddon.integrate_beam(
            _flat(rsp), *grid.shape[:0:-1], np.array(box), points.numpy(), origin, spacing, rotation, offset, *map(float, sad), out
        )
    if np.isnan(out).any():
        ray_directions(points, beam, sad, shift)
    return torch.from_numpy(out)


def less_air(rsp: torch.Tensor) -> torch.Tensor:
    """What the body's voxels stop more than air does; those of no stopping power are outside of it."""
    return torch.where(rsp != 0, rsp.to(torch.float64) - AIR_RSP, 0.0)


def air_way(
    points: torch.Tensor, beam: Beam, sad: tuple[float, float], air_from: float, shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
) -> torch.Tensor:
    """Length `(n,)`, mm, of the rays from the plane `Zg = air_from` to points `(n, 3)`, LPS; negative for points upstream of it."""
    reach = ray_directions(points, beam, sad, shift)[1]
    height = to_bev(points.to(torch.float64), beam, shift)[:, 2]
    return reach * (air_from - height) / (min(sad) - height)


def ray_wepl(
    rsp: torch.Tensor,
    grid: Grid,
    points: torch.Tensor,
    direction: torch.Tensor,
    reach: torch.Tensor,
    *,
    backend: str = "auto",
) -> torch.Tensor:
    """`int_0^reach RSP(p + t u) dt` for rays of any origin, mm.

    Parameters
    ----------
    rsp, grid, backend
        As in `wepl`.
    points, direction
        `p`, `u`: `(n, 3)`, LPS; `u` of unit length.
    reach
        `(n,)`, mm; may be infinite.

    Returns
    -------
    `(n,)`, float64, on the device of `rsp`.
    """
    _check(rsp, grid)
    backend = _backend(backend, rsp)
    points, direction, reach = (v.to(rsp.device, torch.float64) for v in (points, direction, reach))
    box = _nonzero_box(rsp)
    if box is None or points.shape[0] == 0:
        return torch.zeros(points.shape[0], dtype=torch.float64, device=rsp.device)
    start, step = _index_rays(grid, points, direction)
    if backend == "torch":
        return _integrate_torch(rsp.to(torch.float64), box, start, step, reach)
    out = np.empty(points.shape[0])
    _, n_y, n_x = grid.shape
    siddon.integrate(_flat(rsp), n_x, n_y, np.array(box), start.numpy(), step.numpy(), reach.contiguous().numpy(), out)
    return torch.from_numpy(out)


def ray_profile(
    rsp: torch.Tensor, grid: Grid, start: torch.Tensor, direction: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Every voxel that each ray crosses, in order, and the WEPL at which it enters and leaves it.

    Parameters
    ----------
    rsp, grid
        As in `wepl`, on the CPU.
    start, direction
        `(n, 3)`, LPS; the ray begins at `start` (upstream of the grid) and does not end; `direction` of unit length.

    Returns
    -------
    Three tensors `(n, m)`, m the most voxels that any of the rays crosses: flat voxel index (-1 in unused slots), WEPL at entry, WEPL
    at exit, mm.
    """
    _check(rsp, grid)
    n_z, n_y, n_x = grid.shape
    points, step = _index_rays(grid, start.to(torch.float64), direction.to(torch.float64))
    voxels = np.full((points.shape[0], n_x + n_y + n_z), -1, dtype=np.int64)
    depth = np.zeros(voxels.shape)
    siddon.profile(_flat(rsp), n_x, n_y, n_z, points.numpy(), step.numpy(), voxels, depth)
    used = int((voxels >= 0).sum(axis=1).max(initial=0))
    leave = torch.from_numpy(depth[:, :used])
    enter = torch.cat((torch.zeros_like(leave[:, :1]), leave[:, :-1]), dim=1)
    return torch.from_numpy(voxels[:, :used]), enter, leave


def _check(rsp: torch.Tensor, grid: Grid) -> None:
    if tuple(rsp.shape) != grid.shape:
        raise InputError(f"rsp must have the grid's shape {grid.shape} (z, y, x), got {tuple(rsp.shape)}")


def _backend(name: str, rsp: torch.Tensor) -> str:
    if name not in ("auto", "numba", "torch"):
        raise InputError(f"backend must be auto, numba or torch, got '{name}'")
    if name == "numba" and rsp.device.type != "cpu":
        raise InputError(f"backend numba needs rsp on the CPU, got {rsp.device}; use torch or auto")
    return ("numba" if rsp.device.type == "cpu" else "torch") if name == "auto" else name


def _flat(rsp: torch.Tensor) -> np.ndarray:
    return rsp.detach().to(torch.float64).contiguous().numpy().reshape(-1)


def _nonzero_box(rsp: torch.Tensor) -> list[list[int]] | None:
    """Index ranges `[low, high)` of x, y, z outside which rsp is zero; a ray need not step through the air around a body."""
    used = rsp != 0
    plane = used.any(dim=0)
    lines = (plane.any(dim=0), plane.any(dim=1), used.flatten(1).any(dim=1))
    ranges = [line.nonzero().flatten() for line in lines]
    return None if ranges[0].numel() == 0 else [[int(r[0]), int(r[-1]) + 1] for r in ranges]


def _index_rays(grid: Grid, points: torch.Tensor, direction: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """LPS rays in index coordinates: voxel i spans `[i, i + 1)`, direction in voxels per mm."""
    spacing, origin = (torch.tensor(v, dtype=torch.float64, device=points.device) for v in (grid.spacing, grid.origin))
    start = (points - origin) / spacing + 0.5
    nearest = start.round()
    start = torch.where((start - nearest).abs() < siddon.ON_BORDER, nearest, start)
    step = torch.where(direction.abs() < siddon.PARALLEL, 0.0, direction) / spacing
    return start.contiguous(), step.contiguous()


def _integrate_torch(rsp: torch.Tensor, box: list[list[int]], start: torch.Tensor, step: torch.Tensor, reach: torch.Tensor) -> torch.Tensor:
    """Siddon's sum with all border crossings of a ray sorted at once; memory grows with crossings, so rays go in chunks."""
    _, n_y, n_x = rsp.shape
    stride = torch.tensor([1, n_x, n_x * n_y], device=rsp.device)
    low, high = (torch.tensor([b[i] for b in box], dtype=torch.float64, device=rsp.device) for i in (0, 1))
    borders = [torch.arange(a, b + 1, dtype=torch.float64, device=rsp.device) for a, b in box]
    flat, sums = rsp.flatten(), []
    for p, d, end in zip(*(v.split(max(1, _CHUNK // sum(map(len, borders)))) for v in (start, step, reach)), strict=True):
        moving = d != 0
        inside = (moving | ((p >= low) & (p < high))).all(dim=1)
        a, b = (low - p) / d, (high - p) / d
        t0 = torch.where(moving, torch.minimum(a, b), 0.0).amax(dim=1).clamp(min=0.0)
        t1 = torch.minimum(torch.where(moving, torch.maximum(a, b), torch.inf).amin(dim=1), end)
        t1 = torch.where(inside, torch.maximum(t0, t1), t0)[:, None]
        crossings = [torch.where(moving[:, [i]], (k - p[:, [i]]) / d[:, [i]], 0.0) for i, k in enumerate(borders)]
        t = torch.cat((*crossings, t1), dim=1).clamp(min=t0[:, None]).minimum(t1).sort(dim=1).values
        middle = p[:, None] + 0.5 * (t[:, 1:] + t[:, :-1])[..., None] * d[:, None]
        index = torch.minimum(torch.maximum(middle.floor(), low), high - 1).to(torch.int64)
        sums.append((flat[(index * stride).sum(dim=2)] * t.diff(dim=1)).sum(dim=1))
    return torch.cat(sums)
