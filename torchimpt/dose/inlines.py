"""What the numba kernels of all dose models share: exp, bits, and which voxels a spot's reach can touch; with `torchimpt.loops`.

The intrinsics and inlines are compiled into the kernels that call them; none is called from Python but `row_turns`.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

_LOG2E = 1.0 / math.log(2.0)
_C = tuple(math.log(2.0) ** k / math.factorial(k) for k in range(13))
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


@intrinsic
def trailing_zeros(typingctx, bits):  # pragma: no cover
    """Place of the lowest bit that is set in a uint64 that is not zero, by the processor's own instruction."""

    def codegen(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), codegen


def exp_minus(t):
    """`exp(-t)` for `0 <= t <= 80` (`LARGEST_EXPONENT`): `2^n` times the Taylor polynomial of `2^f`, `|f| <= 1/2`.

    Beyond, anything may come out, NaN too. Degree 6 leaves 1e-7 in float32, degree 12 leaves 2e-16 in float64. `math.exp` would be 3 to 4
    times slower: it does not vectorize here.
    """
    raise NotImplementedError("compiled only")


@overload(exp_minus, inline="always")
def _overloadexp_minus(t):  # pragma: no cover
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
def run(cells, left, width, first, height, ratio_min, row, x, y, reach):  # pragma: no cover
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
def row_range(first, height, n_rows, ratio_min, y, reach):  # pragma: no cover
    span = reach / math.sqrt(ratio_min)
    return max(0, math.floor((y - span - first) / height)), min(n_rows, math.floor((y + span - first) / height) + 1)


def row_turns(n_rows: int) -> np.ndarray:
    """All rows, in an order of which threads take contiguous shares; in their own order threads idle where a target fills few rows."""
    return np.concatenate([np.arange(first, n_rows, len(_TURNS)) for first in _TURNS])
