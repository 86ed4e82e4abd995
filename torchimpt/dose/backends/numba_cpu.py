"""The pair kernel on the CPU: numba, SIMD over contiguous runs, threads over rows (dose) or spots (gradient).

Same formula as `torchimpt.dose.kernel`, equal to it in the tests. Results do not depend on the number of threads: a row,
or a spot, is one thread's own.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from torchimpt.dose.backends.threads import use_torch_threads
from torchimpt.dose.rows import CELL_WIDTH, ROW_HEIGHT, PairTables

_LOG2E = 1.0 / math.log(2.0)
_C = tuple(math.log(2.0) ** k / math.factorial(k) for k in range(13))
FAST = {"nnan", "ninf", "nsz", "contract"}
"""What fast math may change: not the order of operations. numba hands a process that compiles a kernel code that LLVM has optimized
once, and saves code that it has optimized twice; with `reassoc` beside `contract` the two differ in the last bits, so a plan's dose
would not come back from its file bit for bit. Sums that have to vectorize go through `plus`."""

_TURNS = (0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15)
"""Numbers below 16 with their bits reversed: any contiguous share of them is spread evenly."""


@intrinsic
def _power_of_two(typingctx, n, like):  # pragma: no cover
    """`2^n` for an int32 `n`, by writing the exponent's bits: the one step of exp that LLVM can't vectorize from Python."""
    bits, bias, mantissa = (32, 127, 23) if like == types.float32 else (64, 1023, 52)

    def codegen(context, builder, signature, args):
        whole = ir.IntType(bits)
        n = args[0] if bits == args[0].type.width else builder.sext(args[0], whole)
        exponent = builder.shl(builder.add(n, ir.Constant(whole, bias)), ir.Constant(whole, mantissa))
        return builder.bitcast(exponent, ir.FloatType() if bits == 32 else ir.DoubleType())

    return like(types.int32, like), codegen


@numba.njit(fastmath={"reassoc"})
def plus(a, b):  # pragma: no cover
    """`a + b` of a sum whose order is free, so that LLVM can vectorize it."""
    return a + b


def _exp_minus(t):
    """`exp(-t)` for `0 <= t < 80`: `2^n` times the Taylor polynomial of `2^f`, `|f| <= 1/2`.

    Degree 6 leaves 1e-7 in float32, degree 12 leaves 2e-16 in float64. `math.exp` would be 3 to 4 times slower: it does
    not vectorize here.
    """
    raise NotImplementedError("compiled only")


@overload(_exp_minus, inline="always")
def _overload_exp_minus(t):  # pragma: no cover
    if t == types.float32:

        def single(t):
            e = -t * np.float32(_LOG2E)
            n = np.int32(e - np.float32(0.5))
            f = e - np.float32(n)
            r = np.float32(_C[6])
            r = r * f + np.float32(_C[5])
            r = r * f + np.float32(_C[4])
            r = r * f + np.float32(_C[3])
            r = r * f + np.float32(_C[2])
            r = r * f + np.float32(_C[1])
            r = r * f + np.float32(1.0)
            return r * _power_of_two(n, f)

        return single

    def double(t):
        e = -t * _LOG2E
        n = np.int32(e - 0.5)
        f = e - np.float64(n)
        r = _C[12] * f + _C[11]
        r = r * f + _C[10]
        r = r * f + _C[9]
        r = r * f + _C[8]
        r = r * f + _C[7]
        r = r * f + _C[6]
        r = r * f + _C[5]
        r = r * f + _C[4]
        r = r * f + _C[3]
        r = r * f + _C[2]
        r = r * f + _C[1]
        r = r * f + 1.0
        return r * _power_of_two(n, f)

    return double


@numba.njit(inline="always")
def _run(cells, left, width, first, height, ratio_min, row, x, y, reach):  # pragma: no cover
    """The run `[low, high)` of a row that a spot of this reach can touch: the cells of the row's chord of the reach circle."""
    bottom = first + row * height
    gap = max(0.0, bottom - y, y - (bottom + height))
    half = reach * reach - ratio_min * gap * gap
    if half <= 0.0:
        return 0, 0
    half = math.sqrt(half)
    last = cells.shape[1] - 1
    begin, end = math.floor((x - half - left) / width), math.floor((x + half - left) / width) + 1
    return cells[row, max(0, min(begin, last))], cells[row, max(0, min(end, last))]


@numba.njit(inline="always")
def _row_range(first, height, n_rows, ratio_min, y, reach):  # pragma: no cover
    span = reach / math.sqrt(ratio_min)
    return max(0, math.floor((y - span - first) / height)), min(n_rows, math.floor((y + span - first) / height) + 1)


@numba.njit(fastmath=FAST, inline="always")
def _add_run(dose, p, q, ratio, amplitude, falloff, x, y, w, t_max, zero):  # pragma: no cover
    for i in range(dose.shape[0]):
        dx = p[i] - x
        dy = q[i] - y
        t = falloff[i] * (dx * dx + ratio[i] * dy * dy)
        e = _exp_minus(min(t, t_max))  # not inside the condition, where LLVM may leave the loop scalar
        dose[i] += w * amplitude[i] * (e if t < t_max else zero)


@numba.njit(parallel=True, fastmath=FAST, cache=True)
def _forward(
    dose, p, q, ratio, cells, left, width, first, height, ratio_min, amplitude, falloff, reach, layer_start, x, y, w, t_max, zero, turn
):  # pragma: no cover
    for k in numba.prange(turn.shape[0]):
        row = turn[k]
        begin, end = cells[row, 0], cells[row, cells.shape[1] - 1]
        own = np.zeros(end - begin, dose.dtype)  # rows that are neighbours share a cache line of `dose`
        for layer in range(amplitude.shape[0]):
            a, c, far = amplitude[layer], falloff[layer], reach[layer]
            if far == 0.0:
                continue
            for s in range(layer_start[layer], layer_start[layer + 1]):
                if w[s] == zero:
                    continue
                lo, hi = _run(cells, left, width, first, height, ratio_min, row, x[s], y[s], far)
                if hi > lo:
                    out = own[lo - begin : hi - begin]
                    _add_run(out, p[lo:hi], q[lo:hi], ratio[lo:hi], a[lo:hi], c[lo:hi], x[s], y[s], w[s], t_max, zero)
        dose[begin:end] += own


@numba.njit(fastmath=FAST, inline="always")
def _sum_run(residual, p, q, ratio, amplitude, falloff, x, y, t_max, zero):  # pragma: no cover
    g_w, g_x, g_y = zero, zero, zero
    for i in range(residual.shape[0]):
        dx = p[i] - x
        dy = q[i] - y
        ry = ratio[i] * dy
        t = falloff[i] * (dx * dx + ry * dy)
        e = residual[i] * amplitude[i] * _exp_minus(min(t, t_max)) if t < t_max else zero
        g_w = plus(g_w, e)
        e *= falloff[i]
        g_x = plus(g_x, e * dx)
        g_y = plus(g_y, e * ry)
    return g_w, g_x, g_y


@numba.njit(fastmath=FAST, inline="always")
def _sum_run_weight(residual, p, q, ratio, amplitude, falloff, x, y, t_max, zero):  # pragma: no cover
    g_w = zero
    for i in range(residual.shape[0]):
        dx = p[i] - x
        dy = q[i] - y
        t = falloff[i] * (dx * dx + ratio[i] * dy * dy)
        g_w = plus(g_w, residual[i] * amplitude[i] * _exp_minus(min(t, t_max)) if t < t_max else zero)
    return g_w


@numba.njit(parallel=True, fastmath=FAST, cache=True)
def _backward(
    gradient, residual, p, q, ratio, cells, left, width, first, height, ratio_min, amplitude, falloff, reach, layer, x, y, w, t_max, zero,
    move,
):  # fmt: skip  # pragma: no cover
    n_rows = cells.shape[0]
    for s in numba.prange(x.shape[0]):
        a, c, far = amplitude[layer[s]], falloff[layer[s]], reach[layer[s]]
        if far == 0.0:
            continue
        from_row, to_row = _row_range(first, height, n_rows, ratio_min, y[s], far)
        g_w, g_x, g_y = 0.0, 0.0, 0.0
        for row in range(from_row, to_row):
            lo, hi = _run(cells, left, width, first, height, ratio_min, row, x[s], y[s], far)
            if hi > lo and move:
                b_w, b_x, b_y = _sum_run(residual[lo:hi], p[lo:hi], q[lo:hi], ratio[lo:hi], a[lo:hi], c[lo:hi], x[s], y[s], t_max, zero)
                g_w += b_w
                g_x += b_x
                g_y += b_y
            elif hi > lo:
                g_w += _sum_run_weight(residual[lo:hi], p[lo:hi], q[lo:hi], ratio[lo:hi], a[lo:hi], c[lo:hi], x[s], y[s], t_max, zero)
        gradient[0, s] += g_w
        gradient[1, s] += 2.0 * w[s] * g_x
        gradient[2, s] += 2.0 * w[s] * g_y


def row_turns(n_rows: int) -> np.ndarray:
    """All rows, in an order of which threads take contiguous shares; in their own order threads idle where a target fills few rows."""
    return np.concatenate([np.arange(first, n_rows, len(_TURNS)) for first in _TURNS])


def _arguments(tables: PairTables, component: int, cutoff: float) -> tuple:
    """The arguments that the two kernels share."""
    reach = torch.nan_to_num(cutoff * tables.sigma[component], posinf=0.0)
    return (
        tables.p.numpy(), tables.q.numpy(), tables.ratio.numpy(), tables.cells.numpy(), tables.left, CELL_WIDTH,
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
    turn = row_turns(len(tables.cells))
    for k in range(tables.amplitude.shape[0]):
        _forward(mine, *_arguments(tables, k, cutoff), start, x, y, weight.contiguous().numpy(), kind(0.5 * cutoff**2), kind(0), turn)
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
            kind(0.5 * cutoff**2), kind(0), move,
        )  # fmt: skip
