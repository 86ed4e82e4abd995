"""The pair kernel on the CPU: numba, SIMD over contiguous runs, threads over rows (dose) or spots (gradient).

Same formula as `torchimpt.dose.pencil_beam.kernel`, equal to it in the tests. Results do not depend on the number of threads: a row,
or a spot, is one thread's own.
"""

from __future__ import annotations

import numba
import numpy as np
import torch

from torchimpt.dose.cutoff import cut
from torchimpt.dose.inlines import FAST, exp_minus, plus, row_range, row_turns, run, use_torch_threads
from torchimpt.dose.pencil_beam.tables import PairTables
from torchimpt.dose.rows import CELL_WIDTH, ROW_HEIGHT


@numba.njit(fastmath=FAST, inline="always")
def _add_run(dose, p, q, ratio, amplitude, falloff, x, y, w, cut, zero):  # pragma: no cover
    for i in range(dose.shape[0]):
        dx = p[i] - x
        dy = q[i] - y
        t = falloff[i] * (dx * dx + ratio[i] * dy * dy)
        e = exp_minus(t) - cut.edge  # not inside the condition, where LLVM may leave the loop scalar
        dose[i] += w * amplitude[i] * (e if t < cut.t_max else zero)


@numba.njit(parallel=True, fastmath=FAST, cache=True)
def _forward(
    dose, p, q, ratio, cells, left, width, first, height, ratio_min, amplitude, falloff, reach, layer_start, x, y, w, cut, zero, turn
):  # pragma: no cover
    for k in numba.prange(turn.shape[0]):
        row = turn[k]
        begin, end = cells[row, 0], cells[row, cells.shape[1] - 1]
        own = np.zeros(end - begin, dose.dtype)  # rows that are neighbours share a cache line of `dose`
        for layer in range(amplitude.shape[0]):
            a, c, far = amplitude[layer], falloff[layer], reach[layer]
            if far == 0.0:
                continue
            r = ratio[min(layer, ratio.shape[0] - 1)]
            for s in range(layer_start[layer], layer_start[layer + 1]):
                if w[s] == zero:
                    continue
                lo, hi = run(cells, left, width, first, height, ratio_min, row, x[s], y[s], far)
                if hi > lo:
                    out = own[lo - begin : hi - begin]
                    _add_run(out, p[lo:hi], q[lo:hi], r[lo:hi], a[lo:hi], c[lo:hi], x[s], y[s], w[s] * cut.gain, cut, zero)
        dose[begin:end] += own


@numba.njit(fastmath=FAST, inline="always")
def _sum_run(residual, p, q, ratio, amplitude, falloff, x, y, cut, zero):  # pragma: no cover
    g_w, g_x, g_y, inside = zero, zero, zero, zero
    for i in range(residual.shape[0]):
        dx = p[i] - x
        dy = q[i] - y
        ry = ratio[i] * dy
        t = falloff[i] * (dx * dx + ry * dy)
        r = residual[i] * amplitude[i]
        e = r * exp_minus(t) if t < cut.t_max else zero
        g_w = plus(g_w, e)
        inside = plus(inside, r if t < cut.t_max else zero)
        e *= falloff[i]
        g_x = plus(g_x, e * dx)
        g_y = plus(g_y, e * ry)
    return g_w - cut.edge * inside, g_x, g_y


@numba.njit(fastmath=FAST, inline="always")
def _sum_run_weight(residual, p, q, ratio, amplitude, falloff, x, y, cut, zero):  # pragma: no cover
    g_w = zero
    for i in range(residual.shape[0]):
        dx = p[i] - x
        dy = q[i] - y
        t = falloff[i] * (dx * dx + ratio[i] * dy * dy)
        g_w = plus(g_w, residual[i] * amplitude[i] * (exp_minus(t) - cut.edge) if t < cut.t_max else zero)
    return g_w


@numba.njit(parallel=True, fastmath=FAST, cache=True)
def _backward(
    gradient, residual, p, q, ratio, cells, left, width, first, height, ratio_min, amplitude, falloff, reach, layer, x, y, w, cut, zero,
    move,
):  # fmt: skip  # pragma: no cover
    n_rows = cells.shape[0]
    for s in numba.prange(x.shape[0]):
        a, c, far = amplitude[layer[s]], falloff[layer[s]], reach[layer[s]]
        if far == 0.0:
            continue
        r = ratio[min(layer[s], ratio.shape[0] - 1)]
        from_row, to_row = row_range(first, height, n_rows, ratio_min, y[s], far)
        g_w, g_x, g_y = 0.0, 0.0, 0.0
        for row in range(from_row, to_row):
            lo, hi = run(cells, left, width, first, height, ratio_min, row, x[s], y[s], far)
            if hi > lo and move:
                b_w, b_x, b_y = _sum_run(residual[lo:hi], p[lo:hi], q[lo:hi], r[lo:hi], a[lo:hi], c[lo:hi], x[s], y[s], cut, zero)
                g_w += b_w
                g_x += b_x
                g_y += b_y
            elif hi > lo:
                g_w += _sum_run_weight(residual[lo:hi], p[lo:hi], q[lo:hi], r[lo:hi], a[lo:hi], c[lo:hi], x[s], y[s], cut, zero)
        gradient[0, s] += cut.gain * g_w
        gradient[1, s] += 2.0 * w[s] * cut.gain * g_x
        gradient[2, s] += 2.0 * w[s] * cut.gain * g_y


def _arguments(tables: PairTables, component: int, cutoff: float) -> tuple:
    """The arguments that the two kernels share."""
    reach = torch.nan_to_num(cutoff * tables.sigma[component], posinf=0.0)
    ratio = tables.ratio[min(component, len(tables.ratio) - 1)].numpy()
    return (
        tables.p.numpy(), tables.q.numpy(), ratio, tables.cells.numpy(), tables.left, CELL_WIDTH,
        tables.first, ROW_HEIGHT, tables.ratio_min, tables.amplitude[component].numpy(), tables.falloff[component].numpy(), reach.numpy(),
    )  # fmt: skip


def add_dose(
    dose: torch.Tensor, tables: PairTables, layer: torch.Tensor, position: torch.Tensor, weight: torch.Tensor, cutoff: float
) -> None:
    """Add one beam's dose to `dose` `(n_voxels,)`; `layer` `(S,)` counts from the beam's first layer, ascending."""
    use_torch_threads()
    kind = weight.numpy().dtype.type
    x, y = (position[:, i].contiguous().numpy() for i in (0, 1))
    start = torch.searchsorted(layer, torch.arange(tables.amplitude.shape[1] + 1)).numpy()
    mine = np.zeros(tables.p.numel(), dtype=kind)
    turn, shape = row_turns(len(tables.cells)), cut(cutoff, kind)
    for k in range(tables.amplitude.shape[0]):
        _forward(mine, *_arguments(tables, k, cutoff), start, x, y, weight.contiguous().numpy(), shape, kind(0), turn)
    dose[tables.order] += torch.from_numpy(mine)


def add_gradient(
    gradient: torch.Tensor,
    residual: torch.Tensor,
    tables: PairTables,
    layer: torch.Tensor,
    position: torch.Tensor,
    weight: torch.Tensor,
    cutoff: float,
    move: bool,
) -> None:
    """Add `(dF/dw, dF/dx, dF/dy)` `(3, S)` of one beam, in one pass over the pairs; only the first row unless `move`."""
    use_torch_threads()
    kind = weight.numpy().dtype.type
    x, y = (position[:, i].contiguous().numpy() for i in (0, 1))
    mine = residual[tables.order].numpy()
    for k in range(tables.amplitude.shape[0]):
        _backward(
            gradient.numpy(), mine, *_arguments(tables, k, cutoff), layer.numpy(), x, y, weight.contiguous().numpy(),
            cut(cutoff, kind), kind(0), move,
        )  # fmt: skip
