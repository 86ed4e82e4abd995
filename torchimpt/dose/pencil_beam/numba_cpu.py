"""The pair kernel on the CPU: numba, SIMD over contiguous runs of compacted rows, threads over rows (dose) or spots (gradient).

Same formula as `torchimpt.dose.pencil_beam.kernel`, equal to it in the tests. Results do not depend on the number of threads: a row,
or a share of a layer's spots, is one thread's own.
"""

from __future__ import annotations

import numba
import numpy as np
import torch

from torchimpt.dose.cutoff import cut
from torchimpt.dose.inlines import exp_minus, row_turns, run
from torchimpt.dose.pencil_beam.compact import BLOCK, compact, longest_row, row_reach, whole_blocks
from torchimpt.dose.pencil_beam.tables import PairTables
from torchimpt.dose.rows import CELL_WIDTH, ROW_HEIGHT
from torchimpt.loops import FAST, plus, use_torch_threads

_SHARE = 256
"""Most spots of a layer that a thread takes at once for their gradient: they share the layer's compacted rows."""


@numba.njit(fastmath=FAST, inline="always")
def _add_run(sums, p, q, ratio, falloff, x, y, w, cut, zero):  # pragma: no cover
    for i in range(sums.shape[0]):
        dx = p[i] - x
        dy = q[i] - y
        t = falloff[i] * (dx * dx + ratio[i] * dy * dy)
        e = exp_minus(t) - cut.edge  # not inside the condition, where LLVM may leave the loop scalar
        sums[i] += w * (e if t < cut.t_max else zero)


@numba.njit(parallel=True, fastmath=FAST, cache=True)
def _forward(
    dose, p, q, ratio, cells, left, width, first, height, ratio_min, amplitude, falloff, reach, layer_start, x, y, w, cut, zero, turn
):  # pragma: no cover
    for k in numba.prange(turn.shape[0]):
        row = turn[k]
        begin, end = cells[row, 0], cells[row, cells.shape[1] - 1]
        own = np.zeros(end - begin, dose.dtype)  # rows that are neighbours share a cache line of `dose`
        packed, sums = np.empty((5, end - begin + BLOCK), dose.dtype), np.empty(end - begin + BLOCK, dose.dtype)
        at, before = np.empty(end - begin + 1, np.uint32), np.empty(end - begin + 1, np.uint32)
        for layer in range(amplitude.shape[0]):
            far, n = reach[layer], -1
            if far == 0.0:
                continue
            for s in range(layer_start[layer], layer_start[layer + 1]):
                if w[s] == zero:
                    continue
                lo, hi = run(cells, left, width, first, height, ratio_min, row, x[s], y[s], far)
                if hi <= lo:
                    continue
                if n < 0:  # the first spot of the layer that reaches the row
                    r, a, f = ratio[min(layer, ratio.shape[0] - 1)], amplitude[layer], falloff[layer]
                    n, least = compact(packed, at, before, p[begin:end], q[begin:end], r[begin:end], a[begin:end], f[begin:end], zero)
                    if n == 0:
                        break
                    sums[: n + BLOCK] = zero
                    far = row_reach(far, cut.t_max, least)
                    lo, hi = run(cells, left, width, first, height, ratio_min, row, x[s], y[s], far)
                    if hi <= lo:
                        continue
                lo, hi = before[lo - begin], before[hi - begin]
                if hi > lo:
                    hi = whole_blocks(lo, hi, BLOCK)
                    _add_run(
                        sums[lo:hi],
                        packed[0, lo:hi],
                        packed[1, lo:hi],
                        packed[2, lo:hi],
                        packed[4, lo:hi],
                        x[s],
                        y[s],
                        w[s] * cut.gain,
                        cut,
                        zero,
                    )
            for j in range(n):
                own[at[j]] += packed[3, j] * sums[j]
        dose[begin:end] += own


@numba.njit(fastmath=FAST, inline="always")
def _sum_run(p, q, ratio, pull, falloff, x, y, cut, zero):  # pragma: no cover
    g_w, g_x, g_y = zero, zero, zero
    for i in range(p.shape[0]):
        dx = p[i] - x
        dy = q[i] - y
        ry = ratio[i] * dy
        t = falloff[i] * (dx * dx + ry * dy)
        e = exp_minus(min(t, cut.t_max))
        r = pull[i] if t < cut.t_max else zero
        g_w = plus(g_w, r * (e - cut.edge))
        e *= r * falloff[i]
        g_x = plus(g_x, e * dx)
        g_y = plus(g_y, e * ry)
    return g_w, g_x, g_y


@numba.njit(fastmath=FAST, inline="always")
def _sum_run_weight(p, q, ratio, pull, falloff, x, y, cut, zero):  # pragma: no cover
    g_w = zero
    for i in range(p.shape[0]):
        dx = p[i] - x
        dy = q[i] - y
        t = falloff[i] * (dx * dx + ratio[i] * dy * dy)
        g_w = plus(g_w, pull[i] * (exp_minus(t) - cut.edge) if t < cut.t_max else zero)
    return g_w


@numba.njit(parallel=True, fastmath=FAST, cache=True)
def _backward(
    gradient, residual, p, q, ratio, cells, left, width, first, height, ratio_min, amplitude, falloff, reach, layer, x, y, w, cut, zero,
    move, share, turn,
):  # fmt: skip  # pragma: no cover
    n_rows = cells.shape[0]
    longest = longest_row(cells)
    for k in numba.prange(turn.shape[0]):
        from_spot, to_spot = share[turn[k]], share[turn[k] + 1]
        mine = layer[from_spot]
        if reach[mine] == 0.0:
            continue
        r, a, c = ratio[min(mine, ratio.shape[0] - 1)], amplitude[mine], falloff[mine]
        packed, pull = np.empty((5, longest + BLOCK), p.dtype), np.empty(longest, p.dtype)
        at, before = np.empty(longest + 1, np.uint32), np.empty(longest + 1, np.uint32)
        sums = np.zeros((3, to_spot - from_spot))
        for row in range(n_rows):
            begin, end, far, n = cells[row, 0], cells[row, cells.shape[1] - 1], reach[mine], -1
            for s in range(from_spot, to_spot):
                lo, hi = run(cells, left, width, first, height, ratio_min, row, x[s], y[s], far)
                if hi <= lo:
                    continue
                if n < 0:  # the first spot that reaches the row
                    for i in range(begin, end):
                        pull[i - begin] = a[i] * residual[i]
                    n, least = compact(
                        packed, at, before, p[begin:end], q[begin:end], r[begin:end], pull[: end - begin], c[begin:end], zero
                    )
                    if n == 0:
                        break
                    far = row_reach(far, cut.t_max, least)
                    lo, hi = run(cells, left, width, first, height, ratio_min, row, x[s], y[s], far)
                    if hi <= lo:
                        continue
                lo, hi = before[lo - begin], before[hi - begin]
                if hi <= lo:
                    continue
                hi, own = whole_blocks(lo, hi, BLOCK), s - from_spot
                if move:
                    b_w, b_x, b_y = _sum_run(
                        packed[0, lo:hi], packed[1, lo:hi], packed[2, lo:hi], packed[3, lo:hi], packed[4, lo:hi], x[s], y[s], cut, zero
                    )
                    sums[0, own] += b_w
                    sums[1, own] += b_x
                    sums[2, own] += b_y
                else:
                    sums[0, own] += _sum_run_weight(
                        packed[0, lo:hi], packed[1, lo:hi], packed[2, lo:hi], packed[3, lo:hi], packed[4, lo:hi], x[s], y[s], cut, zero
                    )
        for s in range(from_spot, to_spot):
            gradient[0, s] += cut.gain * sums[0, s - from_spot]
            gradient[1, s] += 2.0 * w[s] * cut.gain * sums[1, s - from_spot]
            gradient[2, s] += 2.0 * w[s] * cut.gain * sums[2, s - from_spot]


def _shares(layer: torch.Tensor) -> np.ndarray:
    """First spots of the shares `(n_shares + 1,)`: each of one layer, and of `_SHARE` spots at most."""
    _, count = torch.unique_consecutive(layer, return_counts=True)
    start = count.cumsum(0) - count
    first = [torch.arange(int(i), int(i + n), _SHARE) for i, n in zip(start, count, strict=True)]
    return torch.cat([*first, torch.tensor([len(layer)])]).numpy()


def kernel_arguments(tables: PairTables, component: int, cutoff: float) -> tuple:
    """The arguments that the two kernels share, of one component."""
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
        _forward(mine, *kernel_arguments(tables, k, cutoff), start, x, y, weight.contiguous().numpy(), shape, kind(0), turn)
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
    mine, share = residual[tables.order].numpy(), _shares(layer)
    for k in range(tables.amplitude.shape[0]):
        _backward(
            gradient.numpy(), mine, *kernel_arguments(tables, k, cutoff), layer.numpy(), x, y, weight.contiguous().numpy(),
            cut(cutoff, kind), kind(0), move, share, row_turns(len(share) - 1),
        )  # fmt: skip
