"""Sums that come out the same, bit for bit, whatever the number of threads, and whatever other sums are made beside them.

torch gives each thread a part of a sum that ends in one number, and adds up the parts: with two threads a plan's objective would round
otherwise than with one, and after a hundred iterations that is another plan. The same goes for dot products in BLAS, which are not used.
"""

from __future__ import annotations

import torch
from torch import Tensor

PARTS = 128
"""Parts of a long sum, each one thread's own: more than threads ever are."""

SHORT = 32768
"""torch gives no sum of fewer numbers to several threads (its grain size)."""


def total(values: Tensor) -> Tensor:
    """Sum over the last dimension, accumulated in float64: `(...)` of `(..., n)`."""
    n = values.shape[-1]
    if n < SHORT:
        return values.sum(-1, dtype=torch.float64)
    whole = n - n % PARTS
    parts = values[..., :whole].unflatten(-1, (PARTS, -1)).sum(-1, dtype=torch.float64)
    return torch.cat((parts, values[..., whole:].double()), dim=-1).sum(-1)


def mean(values: Tensor) -> Tensor:
    """Mean over the last dimension, accumulated in float64: `(...)` of `(..., n)`."""
    return total(values) / values.shape[-1]
