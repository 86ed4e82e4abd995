"""Sums of squared hinges on the CPU, each in one pass over the doses: what plain torch takes six or more for.

    f_k = sum_j gain_j max(0, sign_j (d_kj - level_j))^2

Sums accumulate in float64, in blocks that are one thread's own, whose order does not depend on the number of threads.
"""

from __future__ import annotations

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
def _ray(start, rate, length, parts):  # pragma: no cover
    n_blocks = parts.shape[2]
    for block in numba.prange(parts.shape[1] * n_blocks):
        k, begin = block // n_blocks, block % n_blocks * _BLOCK
        end = min(begin + _BLOCK, start.shape[1])
        s, r, value, slope = start[k, begin:end], rate[k, begin:end], 0.0, 0.0
        for i in range(end - begin):
            excess = max(s[i] + length * r[i], 0.0)
            value = plus(value, excess * excess)
            slope = plus(slope, excess * r[i])
        parts[0, k, block % n_blocks], parts[1, k, block % n_blocks] = value, 2.0 * slope


@numba.njit(parallel=True, fastmath=HONEST, cache=True)
def _along(dose, rate, at, level, root, start, change):  # pragma: no cover
    for block in numba.prange(dose.shape[0] * ((at.shape[0] + _BLOCK - 1) // _BLOCK)):
        k, begin = block % dose.shape[0], block // dose.shape[0] * _BLOCK
        for j in range(begin, min(begin + _BLOCK, at.shape[0])):
            i = np.uint64(at[j])  # an index that may be negative is looked at twice
            start[k, j] = root[j] * (np.float64(dose[k, i]) - level[j])
            change[k, j] = root[j] * np.float64(rate[k, i])


def _n_blocks(n: int) -> int:
    return -(-n // _BLOCK)


def value_and_grad(dose: Tensor, level: Tensor, sign: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    """`f_k` `(n_scenarios,)`, float64, and its gradient, for the doses `(n_scenarios, n)` and `slots` hinges a dose, `(slots, n)` each."""
    use_torch_threads()
    parts, grad = np.empty((len(dose), _n_blocks(dose.shape[1]))), torch.zeros_like(dose)
    _value_and_grad(dose.detach().numpy(), level.numpy(), sign.numpy(), gain.numpy(), grad.numpy(), parts)
    return torch.from_numpy(parts.sum(1)), grad


def on_ray(start: Tensor, rate: Tensor, length: float) -> tuple[Tensor, Tensor]:
    """Of each scenario `sum_j max(0, s_kj + l r_kj)^2` and its slope in `l`, `(n_scenarios,)` each, float64."""
    use_torch_threads()
    parts = np.empty((2, len(start), _n_blocks(start.shape[1])))
    _ray(start.numpy(), rate.numpy(), length, parts)
    return torch.from_numpy(parts[0].sum(1)), torch.from_numpy(parts[1].sum(1))


def along(dose: Tensor, rate: Tensor, at: Tensor, level: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
    """`s` and `r` of `on_ray` `(n_scenarios, n_hinges)`, float64, for the ray of doses `dose + l rate` `(n_scenarios, n)`.

    Hinge `j` is `(root_j (d - level_j))^2` where that is positive, of the dose `at[j]`; `(n_hinges,)` each, float64 but for `at`.
    """
    use_torch_threads()
    start, change = torch.empty(2, len(dose), len(at), dtype=torch.float64)
    _along(*(t.detach().contiguous().numpy() for t in (dose, rate, at, level, root)), start.numpy(), change.numpy())
    return start, change
