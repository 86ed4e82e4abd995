"""Products with 16-bit matrices whose entries lie in groups of eight, in vector instructions: the loops of `torchimpt.dose.packed`.

A code has the last 5 bits of a float32's exponent and the first 11 of its mantissa, so that `code << 12` is the bit pattern of a float32
between `2^-126` and `2^-95`, and 0 is 0. No table, no gather, no subtraction of an offset: weights and residuals are scaled instead.
The vectors are written out in LLVM's language, and their width is part of the result: the same bits on every processor that has a fused
multiply-add, compiled now or read from the cache.
"""

from __future__ import annotations

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 8
"""Entries of a group, which one vector instruction takes."""

_SUMS = 4
"""Sums that a dot product has under way: each has to wait for its own last addition."""

SHIFT = 12
"""Bits of a float32's mantissa that a code does without."""

_F32, _I16, _I32, _I64 = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_VECTOR, _WORDS, _CODES = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES), ir.VectorType(_I16, LANES)


def _data(context, builder, kind, array):
    """Where an array's entries begin."""
    return context.make_array(kind)(context, builder, array).data


def _vector(builder, pointer, index, vector):
    """A pointer to `LANES` entries."""
    return builder.bitcast(builder.gep(pointer, [index]), vector.as_pointer())


def _decoded(builder, codes, group):
    """A group's codes as float32."""
    at = builder.mul(group, ir.Constant(_I64, LANES))
    words = builder.zext(builder.load(_vector(builder, codes, at, _CODES), align=2), _WORDS)
    return builder.bitcast(builder.shl(words, ir.Constant(_WORDS, [SHIFT] * LANES)), _VECTOR)


def _start(builder, starts, group):
    """Where a group begins."""
    return builder.zext(builder.load(builder.gep(starts, [group])), _I64)


def _in_pairs(builder, terms):
    """The sum of a power of two of numbers or vectors, half of them added to the other half."""
    while len(terms) > 1:
        half = len(terms) // 2
        terms = [builder.fadd(a, b) for a, b in zip(terms[:half], terms[half:], strict=True)]
    return terms[0]


def _fused(builder, a, b, c):
    """`a b + c`, rounded once."""
    fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_VECTOR, [_VECTOR] * 3), f"llvm.fma.v{LANES}f32")
    return builder.call(fma, [a, b, c])


def _splat(builder, value):
    """A number in all lanes."""
    first = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, ir.Constant(_VECTOR, ir.Undefined), ir.Constant(_WORDS, [0] * LANES))


@intrinsic
def _add_groups(typingctx, dose, starts, codes, first, end, factor):  # pragma: no cover
    """`dose[starts[g] + i] += factor * codes[LANES g + i]` for `first <= g < end`, `i < LANES`."""

    def codegen(context, builder, signature, args):
        to, at, of = (_data(context, builder, signature.args[i], args[i]) for i in range(3))
        factors = _splat(builder, args[5])
        with cgutils.for_range_slice(builder, args[3], args[4], ir.Constant(_I64, 1), intp=_I64) as (g, _):
            place = _vector(builder, to, _start(builder, at, g), _VECTOR)
            builder.store(_fused(builder, _decoded(builder, of, g), factors, builder.load(place, align=4)), place, align=4)
        return context.get_dummy_value()

    return types.void(dose, starts, codes, types.int64, types.int64, types.float32), codegen


@intrinsic
def _dot_groups(typingctx, residual, starts, codes, first, end):  # pragma: no cover
    """`sum_g sum_i residual[starts[g] + i] * codes[LANES g + i]`: `_SUMS` groups by turns, each in lanes of its own; then in pairs."""

    def codegen(context, builder, signature, args):
        of, at, codes_ = (_data(context, builder, signature.args[i], args[i]) for i in range(3))
        first, end = args[3], args[4]
        sums = [cgutils.alloca_once_value(builder, ir.Constant(_VECTOR, [0.0] * LANES)) for _ in range(_SUMS)]

        def add(g, to):
            some = builder.load(_vector(builder, of, _start(builder, at, g), _VECTOR), align=4)
            builder.store(_fused(builder, _decoded(builder, codes_, g), some, builder.load(to)), to)

        turns = ir.Constant(_I64, _SUMS)
        whole = builder.sub(end, builder.srem(builder.sub(end, first), turns))
        with cgutils.for_range_slice(builder, first, whole, turns, intp=_I64) as (g, _):
            for k, to in enumerate(sums):
                add(builder.add(g, ir.Constant(_I64, k)), to)
        with cgutils.for_range_slice(builder, whole, end, ir.Constant(_I64, 1), intp=_I64) as (g, _):
            add(g, sums[0])
        vectors = [builder.load(s) for s in sums]
        parts = [builder.extract_element(_in_pairs(builder, vectors), ir.Constant(_I32, i)) for i in range(LANES)]
        return _in_pairs(builder, parts)

    return types.float32(residual, starts, codes, types.int64, types.int64), codegen


@numba.njit(inline="always")
def _block_dose(b, block, segment, spot, group, starts, codes, factor):  # pragma: no cover
    """What the spots add to block b, in their order; those whose `factor` is zero cost next to nothing."""
    dose = np.zeros(block[b + 1] - block[b] + LANES, np.float32)
    for i in range(segment[b], segment[b + 1]):
        f = factor[spot[i]]
        if f != np.float32(0):
            _add_groups(dose, starts, codes, group[i], group[i + 1], f)
    return dose


@numba.njit(parallel=True, cache=True)
def add_blocks(ordered, turns, block, segment, spot, group, starts, codes, factor):  # pragma: no cover
    """`A w` in the stored order: each block of `ordered` is one thread's own.

    `segment[b]` is block b's first segment; of segment i, `spot[i]` is whose it is and `group[i]` its first group; `starts` counts from
    the block's begin.
    """
    for turn in numba.prange(turns.shape[0]):
        b = turns[turn]
        begin, end = block[b], block[b + 1]
        ordered[begin:end] = _block_dose(b, block, segment, spot, group, starts, codes, factor)[: end - begin]


@numba.njit(cache=True)
def add_few(dose, voxel, block, segment, spot, group, starts, codes, factor):  # pragma: no cover
    """`A w` in the dose's own order, for few spots: by one thread, since others take longer to wake; the same bits."""
    for b in range(block.shape[0] - 1):
        own = _block_dose(b, block, segment, spot, group, starts, codes, factor)
        for i in range(block[b + 1] - block[b]):
            dose[voxel[block[b] + i]] += own[i]


@numba.njit(parallel=True, cache=True)
def dot_blocks(found, turns, block, segment, group, starts, codes, residual):  # pragma: no cover
    """`A^T r`, of each segment its share."""
    for turn in numba.prange(turns.shape[0]):
        b = turns[turn]
        begin, end = block[b], block[b + 1]
        own = np.zeros(end - begin + LANES, np.float32)
        own[: end - begin] = residual[begin:end]
        for i in range(segment[b], segment[b + 1]):
            found[i] = _dot_groups(own, starts, codes, group[i], group[i + 1])


@numba.njit(cache=True)
def gather_spots(gradient, spot, found, factor):  # pragma: no cover
    """`gradient[s] = factor[s] * (sum of the segments of s)`, in their order: a few a spot, so one thread."""
    for i in range(spot.shape[0]):
        gradient[spot[i]] += found[i]
    for s in range(gradient.shape[0]):
        gradient[s] *= factor[s]


@numba.njit(parallel=True, cache=True)
def gather_voxels(dose, place, ordered):  # pragma: no cover
    """`dose[v] = sum_beam ordered[place[beam, v]]`; a place below zero is none."""
    for v in numba.prange(dose.shape[0]):
        total = np.float32(0)
        for beam in range(place.shape[0]):
            if place[beam, v] >= 0:
                total += ordered[place[beam, v]]
        dose[v] = total


@numba.njit(parallel=True, cache=True)
def take(ordered, voxel, residual, factor):  # pragma: no cover
    """`ordered[i] = factor * residual[voxel[i]]`."""
    for i in numba.prange(ordered.shape[0]):
        ordered[i] = factor * residual[voxel[i]]
