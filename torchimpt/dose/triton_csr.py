"""Products of CSR matrices on NVIDIA GPUs, in Triton: values of 16, 32 or 64 bits, sums that are the same in every run.

A program has a row and reads its entries in order, which is memory at its bandwidth. 16-bit values are half the bytes of float32's values;
the sums are float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from torchimpt.dose.gpu import launch


@triton.jit
def product_kernel(out, start, columns, values, x, BLOCK: tl.constexpr):  # pragma: no cover
    """`out[row] = sum_j values[j] x[columns[j]]` over the row's entries."""
    row = tl.program_id(0)
    begin, end = tl.load(start + row), tl.load(start + row + 1)
    total = tl.zeros((BLOCK,), dtype=out.dtype.element_ty)
    for offset in range(begin, end, BLOCK):
        j = offset + tl.arange(0, BLOCK)
        live = j < end
        column = tl.load(columns + j, mask=live, other=0)
        value = tl.load(values + j, mask=live, other=0.0).to(out.dtype.element_ty)
        total += value * tl.load(x + column, mask=live, other=0.0)
    tl.store(out + row, tl.sum(total, axis=0))


def product(start: torch.Tensor, columns: torch.Tensor, values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """`M x` `(n_rows,)`, of the dtype of `x`, for `M` in CSR with int32 indices."""
    n_rows = len(start) - 1
    out = torch.empty(n_rows, dtype=x.dtype, device=x.device)
    # a block about as long as a row: shorter ones loop, longer ones idle
    mean = len(columns) // max(n_rows, 1)
    block = min(max(triton.next_power_of_2(max(mean, 1)), 64), 1024)
    launch(product_kernel, n_rows, out, start, columns, values, x.contiguous(), BLOCK=block, num_warps=max(1, min(4, block // 128)))
    return out
