"""A sparse matrix times several vectors at once: each entry is read once for all of them.

    Y = M X,    X (n_columns, k)

A product with one vector is as fast as memory gives the matrix, and does two operations an entry. With the vectors side by side, an entry
meets a short piece of memory, `k` neighbours of `X`, in one instruction. Each column's sum has the same order whatever the others are, and
however many: the even entries of a row and the odd ones, added up in the end. (MKL's product of this kind is no faster than one vector
after the other up to four of them: `benchmarks/columns.py`.)
"""

from __future__ import annotations

import numba
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from torchimpt.dose.inlines import use_torch_threads


def _row_kernel(width):
    """One row's sums for `width` vectors, in registers: `y[at:] = sum_j values[j] x[width columns[j]:]`, j from begin to end."""

    @intrinsic
    def row(typingctx, begin, end, columns, values, x, y, at):  # pragma: no cover
        def codegen(context, builder, signature, args):
            whole = ir.IntType(64)
            data = [context.make_array(signature.args[i])(context, builder, args[i]).data for i in (2, 3, 4, 5)]
            number = context.get_value_type(values.dtype)
            vector = ir.VectorType(number, width)
            nothing, lanes = ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(ir.IntType(32), width), [0] * width)
            sums = [cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * width)) for _ in range(2)]

            def add(j, into):
                column = builder.sext(builder.load(builder.gep(data[0], [j])), whole)
                one = builder.insert_element(nothing, builder.load(builder.gep(data[1], [j])), ir.Constant(ir.IntType(32), 0))
                place = builder.gep(data[2], [builder.mul(column, ir.Constant(whole, width))])
                here = builder.load(builder.bitcast(place, vector.as_pointer()), align=4)
                product = builder.fmul(here, builder.shuffle_vector(one, nothing, lanes), flags=("contract",))
                builder.store(builder.fadd(builder.load(into), product, flags=("contract",)), into)

            count, one = builder.sub(args[1], args[0]), ir.Constant(whole, 1)
            with cgutils.for_range(builder, builder.ashr(count, one)) as pair:
                j = builder.add(args[0], builder.shl(pair.index, one))
                add(j, sums[0])
                add(builder.add(j, one), sums[1])
            with builder.if_then(builder.trunc(count, ir.IntType(1))):
                add(builder.sub(args[1], one), sums[0])
            out = builder.bitcast(builder.gep(data[3], [args[6]]), vector.as_pointer())
            builder.store(builder.fadd(builder.load(sums[0]), builder.load(sums[1])), out, align=4)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, columns, values, x, y, types.int64), codegen

    return row


_four, _eight = _row_kernel(4), _row_kernel(8)


@numba.njit(parallel=True, cache=True)
def _product_4(start, columns, values, x, y):  # pragma: no cover
    for r in numba.prange(start.shape[0] - 1):
        _four(start[r], start[r + 1], columns, values, x, y, r * 4)


@numba.njit(parallel=True, cache=True)
def _product_8(start, columns, values, x, y):  # pragma: no cover
    for r in numba.prange(start.shape[0] - 1):
        _eight(start[r], start[r + 1], columns, values, x, y, r * 8)


_PRODUCTS = {4: _product_4, 8: _product_8}
"""By how many vectors lie side by side; what lacks is zeros."""


def product(entries: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """`M X` `(n_rows, k)`, for a CSR matrix `entries` `(n_rows, n_columns)` and `x` `(n_columns, k)`, `k` of any size."""
    if entries.device.type != "cpu":
        return torch.mm(entries, x)
    use_torch_threads()
    parts = []
    for piece in x.split(max(_PRODUCTS), dim=1):
        width = next(width for width in _PRODUCTS if width >= piece.shape[1])
        side = x.new_zeros(x.shape[0], width)
        side[:, : piece.shape[1]] = piece
        y = x.new_empty(entries.shape[0], width)
        arrays = (entries.crow_indices(), entries.col_indices(), entries.values(), side.flatten(), y.flatten())
        _PRODUCTS[width](*(array.numpy() for array in arrays))
        parts.append(y[:, : piece.shape[1]])
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
