"""numba uses as many threads as torch does."""

from __future__ import annotations

import numba
import torch


def use_torch_threads() -> int:
    """Give numba torch's thread count (as far as numba has threads) and return it."""
    threads = max(1, min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
    numba.set_num_threads(threads)
    return threads
