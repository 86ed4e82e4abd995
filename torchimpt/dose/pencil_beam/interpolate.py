"""Amplitude, fall-off and ratio of the axes of every layer at every voxel, by linear interpolation in the machine's uniform tables.

One loop in numba, because a head-and-neck body on a 3 mm grid has 10^7 layer-voxel entries per scenario; the tests hold
it against `torch` interpolation.
"""

from __future__ import annotations

import math

import numba
import torch

from torchimpt.loops import use_torch_threads
from torchimpt.machine import LayerTables


@numba.njit(cache=True)
def _integral(curve, area, step, z):  # pragma: no cover
    """`int_0^z` of a piecewise linear curve; before 0 it has its first value, behind its end 0."""
    if z <= 0.0:
        return curve[0] * z
    last = curve.shape[0] - 1
    d = z / step
    if d >= last:
        return area[last]
    j = int(d)
    off = (d - j) * step
    return area[j] + off * (curve[j] + 0.5 * (curve[j + 1] - curve[j]) * (d - j))


@numba.njit(cache=True)
def _mean(curve, area, step, p, q):  # pragma: no cover
    """Mean of the curve from p to q; where they are one the curve itself, but for rounding."""
    if abs(q - p) < 1e-3:
        p, q = 0.5 * (p + q) - 5e-4, 0.5 * (p + q) + 5e-4
    return (_integral(curve, area, step, q) - _integral(curve, area, step, p)) / (q - p)


@numba.njit(parallel=True, cache=True)
def _fill(
    z,
    depth,
    m,
    of_magnification,
    step,
    idd,
    variance,
    fraction,
    o_start,
    o_step,
    optics,
    optics_y,
    drift,
    face,
    spread,
    area,
    amplitude,
    falloff,
    ratio,
):  # pragma: no cover
    """Spots are round where `optics_y` has no rows; `ratio` is left alone then. There is no range shifter where `drift` has none.
    The dose is that in the middle of voxels where `spread` has no rows."""
    n_components, n_layers, n_samples = variance.shape
    last = optics.shape[1] - 1
    elliptic, shifter, means = optics_y.shape[0] > 0, drift.shape[0] > 0, spread.shape[0] > 0
    for layer in numba.prange(n_layers):
        for i in range(z.shape[0]):
            d = z[i] / step[layer]
            j = int(d)
            dose = 0.0
            if means:
                before, behind, curve, sums = 0.5 * spread[0, i], 0.5 * spread[1, i], idd[layer], area[layer]
                for at in (z[i] - spread[2, i], z[i] + spread[2, i]):
                    dose += 0.25 * _mean(curve, sums, step[layer], at - before, at)
                    dose += 0.25 * _mean(curve, sums, step[layer], at, at + behind)
                if dose > 0.0 and j >= n_samples - 1:  # behind the end, but not all of the voxel
                    d = n_samples - 1.0
                    j = n_samples - 2
            if j >= n_samples - 1:
                for k in range(n_components):
                    amplitude[k, layer, i] = 0.0
                    falloff[k, layer, i] = 1.0
                    if elliptic:
                        ratio[k, layer, i] = of_magnification[i]
                continue
            f = d - j
            o = min(max((depth[i] - o_start) / o_step, 0.0), float(last))
            oj = min(int(o), last - 1)
            of = o - oj
            if not means:
                dose = (1.0 - f) * idd[layer, j] + f * idd[layer, j + 1]
            spot = (1.0 - of) * optics[layer, oj] + of * optics[layer, oj + 1]
            for k in range(n_components):
                s2 = spot + (1.0 - f) * variance[k, layer, j] + f * variance[k, layer, j + 1]
                if shifter:
                    gap = max(face - depth[i], 0.0)
                    s2 += gap * (drift[k, layer, 0] + gap * drift[k, layer, 1])
                share = (1.0 - f) * fraction[k, layer, j] + f * fraction[k, layer, j + 1]
                amplitude[k, layer, i] = dose * share / (2.0 * math.pi * s2)
                falloff[k, layer, i] = m[i] * m[i] / (2.0 * s2)
                if elliptic:
                    spot_y = (1.0 - of) * optics_y[layer, oj] + of * optics_y[layer, oj + 1]
                    squeeze = s2 / (s2 + spot_y - spot)
                    amplitude[k, layer, i] = dose * share / (2.0 * math.pi * s2) * math.sqrt(squeeze)
                    ratio[k, layer, i] = of_magnification[i] * squeeze


def spot_shapes(
    z: torch.Tensor,
    depth: torch.Tensor,
    magnification: torch.Tensor,
    ratio: torch.Tensor,
    layers: LayerTables,
    dtype: torch.dtype,
    spread: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`A`, `f` and `r` of `torchimpt.dose.pencil_beam.kernel`, each `(n_components, n_layers, n)`; `r` `(1, 1, n)` where spots are round.

    Parameters
    ----------
    z
        `(n,)` WEPL, mm, float64, with the scenario's range scale in it.
    depth
        `(n,)` `Zg`, mm, float64.
    magnification
        `(n,)` `m_x`, float64.
    ratio
        `(n,)` `(m_y / m_x)^2`, float64.
    layers
        The machine's tables, float64; zero dose beyond their end.
    dtype
        Of what is returned.
    spread
        `(3, n)` of `torchimpt.dose.voxel_mean`, with the scenario's range scale in it: the depth dose's mean over each voxel; None: its
        value in the middle.
    """
    use_torch_threads()
    shape = (*layers.variance.shape[:2], z.numel())
    amplitude, falloff = torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype)
    optics = layers.optics_variance
    drift = layers.variance[:0] if layers.drift is None else layers.drift
    optics_y = optics[:0] if layers.optics_variance_y is None else layers.optics_variance_y
    depths = area = torch.zeros((0, 0), dtype=torch.float64)
    if spread is not None:
        depths = spread
        trapezoids = 0.5 * layers.depth_step[:, None] * (layers.idd[:, 1:] + layers.idd[:, :-1])
        area = torch.nn.functional.pad(trapezoids.cumsum(1), (1, 0))
    found = ratio.to(dtype)[None, None] if layers.round else torch.empty(shape, dtype=dtype)
    _fill(
        z.numpy(), depth.numpy(), magnification.numpy(), ratio.numpy(), layers.depth_step.numpy(), layers.idd.numpy(),
        layers.variance.numpy(), layers.fraction.numpy(), float(layers.optics_start), float(layers.optics_step), optics.numpy(),
        optics_y.numpy(), drift.numpy(), float(layers.face), depths.numpy(), area.numpy(),
        amplitude.numpy(), falloff.numpy(), found.numpy(),
    )  # fmt: skip
    return amplitude, falloff, found
