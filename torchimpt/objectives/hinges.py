"""Sums of squared hinges on the CPU, each in one pass over the doses: what plain torch takes six or more for.

    f_k = sum_j gain_j max(0, sign_j (d_kj - level_j))^2

Sums accumulate in float64, in blocks that are one thread's own, whose order does not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np
import torch
from torch import Tensor

from torchimpt.loops import HONEST, plus, use_torch_threads

_BLOCK = 4096
"""Hinges that a thread takes at once: their gradient stays in the first-level cache from slot to slot."""


@numba.njit(parallel=True, fastmath=HONEST, cache=True)
def _value_and_grad(dose, level, sign, gain, grad, parts):  # pragma: no cover
    n_blocks = parts.shape[1]
    for block in numba.prange(parts.shape[0] * n_blocks):
        k, begin = block // n_blocks, block % n_blocks * _BLOCK
        end = min(begin + _BLOCK, dose.shape[1])
        d, g, value = dose[k, begin:end], grad[k, begin:end], 0.0
        for j in range(level.shape[0]):
            p, s, c = level[j, begin:end], sign[j, begin:end], gain[j, begin:end]
            for i in range(end - begin):
                excess = max(s[i] * (d[i] - p[i]), p.dtype.type(0))
                pull = c[i] * excess
                value = plus(value, np.float64(pull * excess))
                g[i] += (pull + pull) * s[i]
        parts[k, block % n_blocks] = value


@numba.njit(parallel=True, fastmath=HONEST, cache=True)
def _ray(start, rate, kept, length, parts):  # pragma: no cover
    n_blocks = kept.shape[1]
    for block in numba.prange(kept.shape[0] * n_blocks):
        k, begin = block // n_blocks, block % n_blocks * _BLOCK
        end = begin + kept[k, block % n_blocks]
        s, r, value, slope = start[k, begin:end], rate[k, begin:end], 0.0, 0.0
        for i in range(end - begin):
            excess = max(s[i] + length * r[i], 0.0)
            value = plus(value, excess * excess)
            slope = plus(slope, excess * r[i])
        parts[0, k, block % n_blocks], parts[1, k, block % n_blocks] = value, 2.0 * slope


@numba.njit(parallel=True, fastmath=HONEST, cache=True)
def _along(dose, rate, at, level, root, start, change, kept):  # pragma: no cover
    for block in numba.prange(dose.shape[0] * kept.shape[1]):
        k, begin = block % dose.shape[0], block // dose.shape[0] * _BLOCK
        m = begin
        for j in range(begin, min(begin + _BLOCK, at.shape[0])):
            i = np.uint64(at[j])  # an index that may be negative is looked at twice
            s, r = root[j] * (np.float64(dose[k, i]) - level[j]), root[j] * np.float64(rate[k, i])
            start[k, m], change[k, m] = s, r
            m += not (s <= 0.0 and r <= 0.0)  # what is not a number is kept
        kept[k, begin // _BLOCK] = m - begin


def _n_blocks(n: int) -> int:
    return -(-n // _BLOCK)


def value_and_grad(dose: Tensor, level: Tensor, sign: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    """`f_k` `(n_scenarios,)`, float64, and its gradient, for the doses `(n_scenarios, n)` and `slots` hinges a dose, `(slots, n)` each."""
    use_torch_threads()
    parts, grad = np.empty((len(dose), _n_blocks(dose.shape[1]))), torch.zeros_like(dose)
    _value_and_grad(dose.detach().numpy(), level.numpy(), sign.numpy(), gain.numpy(), grad.numpy(), parts)
    return torch.from_numpy(parts.sum(1)), grad


def along(dose: Tensor, rate: Tensor, at: Tensor, level: Tensor, root: Tensor) -> Callable[[float], tuple[Tensor, Tensor]]:
    """`sum_j max(0, s_kj + l r_kj)^2` of each scenario and its slope in `l >= 0`, `(n_scenarios,)` each, float64, on a ray of doses.

    Hinges that stay at zero all along it, `s <= 0` and `r <= 0`, are left out once: the larger part, where most voxels are far below their
    limits.

    Parameters
    ----------
    dose, rate
        The ray `dose + l rate`, `(n_scenarios, n)` each.
    at, level, root
        Hinge `j` is `(root_j (d - level_j))^2` where that is positive, of the dose `at[j]`; `(n_hinges,)` each, float64 but for `at`.
    """
    use_torch_threads()
    start, change = np.empty((2, len(dose), len(at)))
    kept = np.empty((len(dose), _n_blocks(len(at))), dtype=np.int64)
    _along(*(t.detach().contiguous().numpy() for t in (dose, rate, at, level, root)), start, change, kept)

    def restricted(length: float) -> tuple[Tensor, Tensor]:
        use_torch_threads()
        parts = np.empty((2, *kept.shape))
        _ray(start, change, kept, length, parts)
        return torch.from_numpy(parts[0].sum(1)), torch.from_numpy(parts[1].sum(1))

    return restricted
