"""What compiled loops of all rooms share: how many threads they get, and what they may do to sums."""

from __future__ import annotations

import numba
import torch

FAST = {"nnan", "ninf", "nsz", "contract"}
"""What fast math may change: not the order of operations. numba hands a process that compiles a kernel code that LLVM has optimized
once, and saves code that it has optimized twice; with `reassoc` beside `contract` the two differ in the last bits, so a plan's dose
would not come back from its file bit for bit. Sums that have to vectorize go through `plus`."""

HONEST = FAST - {"nnan", "ninf"}
"""The same for loops over numbers that may not be finite, whose result has to tell."""


@numba.njit(fastmath={"reassoc"})
def plus(a, b):  # pragma: no cover
    """`a + b` of a sum whose order is free, so that LLVM can vectorize it."""
    return a + b


def use_torch_threads() -> int:
    """Give numba torch's thread count (as far as numba has threads) and return it."""
    asked = torch.get_num_threads()
    threads = max(1, min(asked, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    numba.set_num_threads(threads)
    if torch.get_num_threads() != asked:  # where both run on one OpenMP, numba's first call gives torch every core
        torch.set_num_threads(asked)
    return threads
