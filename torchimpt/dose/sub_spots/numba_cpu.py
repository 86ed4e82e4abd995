"""The sub-spot kernel on the CPU (`torchimpt.dose.sub_spots.tables` has the formula): spots to rays, rays to voxels, and both adjoints.

Results do not depend on the number of threads: a layer's rays, a block of rows, a ray or a spot is one thread's own.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import torch

from torchimpt.dose.cutoff import cut
from torchimpt.dose.inlines import FAST, exp_minus, plus, row_range, row_turns, run, use_torch_threads
from torchimpt.dose.rows import CELL_WIDTH, ROW_HEIGHT
from torchimpt.dose.sub_spots.tables import RayTables


@numba.njit(inline="always")
def _window(x, start, pitch, reach, n):  # pragma: no cover
    return max(0, math.ceil((x - reach - start) / pitch)), min(n, math.floor((x + reach - start) / pitch) + 1)


@numba.njit(parallel=True, cache=True)
def _share(fluence, layer_start, x, y, w, x_0, y_0, pitch, spread, cutoff, cut):  # pragma: no cover
    """`fluence[l, j, i] += h^2 w_s N2(X - x_s; sigma_a)`."""
    _, n_y, n_x = fluence.shape
    for layer in numba.prange(fluence.shape[0]):
        a, reach = 0.5 / spread[layer], cutoff * math.sqrt(spread[layer])
        for s in range(layer_start[layer], layer_start[layer + 1]):
            low_x, high_x = _window(x[s], x_0, pitch, reach, n_x)
            low_y, high_y = _window(y[s], y_0, pitch, reach, n_y)
            for j in range(low_y, high_y):
                for i in range(low_x, high_x):
                    t = a * ((x_0 + pitch * i - x[s]) ** 2 + (y_0 + pitch * j - y[s]) ** 2)
                    if t < cut.t_max:
                        fluence[layer, j, i] += w[s] * pitch * pitch * a / math.pi * cut.gain * (math.exp(-t) - cut.edge)


@numba.njit(parallel=True, cache=True)
def _collect(gradient, back, layer, x, y, w, x_0, y_0, pitch, spread, cutoff, cut):  # pragma: no cover
    """The adjoint of `_share` and its derivatives: gradient for weight, x and y."""
    _, n_y, n_x = back.shape
    for s in numba.prange(x.shape[0]):
        variance = spread[layer[s]]
        reach = cutoff * math.sqrt(variance)
        low_x, high_x = _window(x[s], x_0, pitch, reach, n_x)
        low_y, high_y = _window(y[s], y_0, pitch, reach, n_y)
        g_w, g_x, g_y = 0.0, 0.0, 0.0
        for j in range(low_y, high_y):
            for i in range(low_x, high_x):
                dx, dy = x_0 + pitch * i - x[s], y_0 + pitch * j - y[s]
                t = 0.5 * (dx * dx + dy * dy) / variance
                if t < cut.t_max:
                    e = math.exp(-t)
                    share = cut.gain * back[layer[s], j, i] * pitch * pitch / (2.0 * math.pi * variance)
                    slope = share * e / variance
                    g_w += share * (e - cut.edge)
                    g_x += slope * dx
                    g_y += slope * dy
        gradient[0, s] += g_w
        gradient[1, s] += w[s] * g_x
        gradient[2, s] += w[s] * g_y


@numba.njit(fastmath=FAST, inline="always")
def _phi(dx, dy, ratio, m, plane, optics, path, scale, last, idd, share, variance, cut, zero):  # pragma: no cover
    """Dose of one ray at one voxel, per unit of the ray's weight; `scale` is one over the curves' depth step, `last` their last sample."""
    n = np.int32(plane)
    z = min((path[n] + (plane - np.float32(n)) * (path[n + 1] - path[n])) * scale, last)
    j = min(np.int32(z), np.int32(last) - np.int32(1))
    f = z - np.float32(j)
    s2 = optics + variance[j] + f * (variance[j + 1] - variance[j])
    t = m * m * (dx * dx + ratio * dy * dy) / (s2 + s2)
    dose = (idd[j] + f * (idd[j + 1] - idd[j])) * (share[j] + f * (share[j + 1] - share[j])) / s2
    e = exp_minus(t) - cut.edge  # not inside the condition, as in the pair kernel
    return dose * cut.gain * (e if t < cut.t_max else zero)


@numba.njit(fastmath=FAST, inline="always")
def _add_run(dose, fluence, x, y, p, q, ratio, m, plane, optics, path, scale, last, idd, share, variance, cut, zero):  # pragma: no cover
    for i in range(dose.shape[0]):
        dose[i] += fluence * _phi(
            p[i] - x, q[i] - y, ratio[i], m[i], plane[i], optics[i], path, scale, last, idd, share, variance, cut, zero
        )  # fmt: skip


@numba.njit(fastmath=FAST, inline="always")
def _sum_run(residual, x, y, p, q, ratio, m, plane, optics, path, scale, last, idd, share, variance, cut, zero):  # pragma: no cover
    total = zero
    for i in range(residual.shape[0]):
        dose = _phi(p[i] - x, q[i] - y, ratio[i], m[i], plane[i], optics[i], path, scale, last, idd, share, variance, cut, zero)
        total = plus(total, residual[i] * dose)
    return total


@numba.njit(parallel=True, fastmath=FAST, cache=True)
def _forward(
    dose, fluence, x, y, path, p, q, ratio, m, plane, optics, cells, left, width, first, height, ratio_min, reach, scale, last, idd,
    share, variance, cut, zero, turn,
):  # pragma: no cover  # fmt: skip
    n_rows = cells.shape[0]
    for k in numba.prange(turn.shape[0]):
        row = turn[k]
        for layer in range(fluence.shape[0]):
            o, d, h, v = optics[layer], idd[layer], share[layer], variance[layer]
            for b in range(y.shape[0]):
                from_row, to_row = row_range(first, height, n_rows, ratio_min, y[b], reach[layer])
                if not from_row <= row < to_row:
                    continue
                for a in range(x.shape[0]):
                    if fluence[layer, b, a] == zero:
                        continue
                    lo, hi = run(cells, left, width, first, height, ratio_min, row, x[a], y[b], reach[layer])
                    if hi > lo:
                        _add_run(
                            dose[lo:hi], fluence[layer, b, a], x[a], y[b], p[lo:hi], q[lo:hi], ratio[lo:hi], m[lo:hi], plane[lo:hi],
                            o[lo:hi], path[b, a], scale[layer], last, d, h, v, cut, zero,
                        )  # fmt: skip


@numba.njit(parallel=True, fastmath=FAST, cache=True)
def _backward(
    back, wanted, residual, x, y, path, p, q, ratio, m, plane, optics, cells, left, width, first, height, ratio_min, reach, scale, last,
    idd, share, variance, cut, zero,
):  # pragma: no cover  # fmt: skip
    n_rows = cells.shape[0]
    n_layers, n_y, n_x = back.shape
    for line in numba.prange(n_layers * n_y):
        layer, b = line // n_y, line % n_y
        o, d, h, v = optics[layer], idd[layer], share[layer], variance[layer]
        from_row, to_row = row_range(first, height, n_rows, ratio_min, y[b], reach[layer])
        for a in range(n_x):
            if wanted[layer, b, a] == zero:
                continue
            total = 0.0
            for row in range(from_row, to_row):
                lo, hi = run(cells, left, width, first, height, ratio_min, row, x[a], y[b], reach[layer])
                if hi > lo:
                    total += _sum_run(
                        residual[lo:hi], x[a], y[b], p[lo:hi], q[lo:hi], ratio[lo:hi], m[lo:hi], plane[lo:hi], o[lo:hi], path[b, a],
                        scale[layer], last, d, h, v, cut, zero,
                    )  # fmt: skip
            back[layer, b, a] += total


def _arguments(tables: RayTables, fluence: np.ndarray, component: int, cutoff: float) -> tuple:
    """The arguments that the two kernels share, from `x` on."""
    dtype, layers, rays = tables.p.dtype, tables.layers, tables.rays
    kind = fluence.dtype.type
    path = rays.path(torch.from_numpy((fluence != 0).any(axis=0)))
    return (
        rays.x.to(dtype).numpy(), rays.y.to(dtype).numpy(), path.numpy(), tables.p.numpy(), tables.q.numpy(), tables.ratio.numpy(),
        tables.magnification.numpy(), tables.plane.numpy(), tables.optics.numpy(), tables.cells.numpy(), tables.left, CELL_WIDTH,
        tables.first, ROW_HEIGHT, tables.ratio_min, (cutoff * tables.sigma[component]).numpy(), (1.0 / layers.depth_step).numpy(),
        kind(layers.idd.shape[1] - 1), (layers.idd / (2.0 * math.pi)).numpy(), layers.fraction[component].numpy(),
        layers.variance[component].numpy(), cut(cutoff, kind), kind(0),
    )  # fmt: skip


def _lattice(tables: RayTables, cutoff: float) -> tuple:
    """The arguments that `_share` and `_collect` end with."""
    rays = tables.rays
    return float(rays.x[0]), float(rays.y[0]), rays.pitch, tables.spread.numpy(), cutoff, cut(cutoff)


def _fluence(tables: RayTables, layer: torch.Tensor, x: np.ndarray, y: np.ndarray, weight: np.ndarray, cutoff: float) -> np.ndarray:
    """`Phi` `(n_layers, n_y, n_x)`."""
    n_layers = len(tables.spread)
    fluence = np.zeros((n_layers, len(tables.rays.y), len(tables.rays.x)), dtype=weight.dtype)
    start = torch.searchsorted(layer, torch.arange(n_layers + 1)).numpy()
    _share(fluence, start, x, y, weight, *_lattice(tables, cutoff))
    return fluence


def add_dose(
    dose: torch.Tensor, tables: RayTables, layer: torch.Tensor, position: torch.Tensor, weight: torch.Tensor, cutoff: float
) -> None:
    """Add one beam's dose to `dose` `(n_voxels,)`; `layer` `(S,)` counts from the beam's first layer, ascending."""
    use_torch_threads()
    x, y = (position[:, i].contiguous().numpy() for i in (0, 1))
    fluence = _fluence(tables, layer, x, y, weight.contiguous().numpy(), cutoff)
    mine = np.zeros(tables.p.numel(), dtype=fluence.dtype)
    for k in range(tables.layers.n_components):
        _forward(mine, fluence, *_arguments(tables, fluence, k, cutoff), row_turns(len(tables.cells)))
    dose[tables.order] += torch.from_numpy(mine)


def add_gradient(
    gradient: torch.Tensor,
    residual: torch.Tensor,
    tables: RayTables,
    layer: torch.Tensor,
    position: torch.Tensor,
    weight: torch.Tensor,
    cutoff: float,
) -> None:
    """Add `(dF/dw, dF/dx, dF/dy)` `(3, S)` of one beam."""
    use_torch_threads()
    x, y = (position[:, i].contiguous().numpy() for i in (0, 1))
    w = weight.contiguous().numpy()
    wanted = _fluence(tables, layer, x, y, np.ones_like(w), cutoff)
    back, mine = np.zeros_like(wanted), residual[tables.order].numpy()
    for k in range(tables.layers.n_components):
        _backward(back, wanted, mine, *_arguments(tables, wanted, k, cutoff))
    _collect(gradient.numpy(), back, layer.numpy(), x, y, w, *_lattice(tables, cutoff))
