"""Depth curves of a machine at its tabulated energies, and between them by scaled range.

Bragg curves of neighbouring energies differ mostly in their range. So every tabulated curve is kept against the scaled depth
`t = z / R80`, as the dimensionless `idd R80 / integral` and `variance / R80^2`, and the fractions. Between two tabulated energies these are
blended linearly in energy (a component's variance in proportion to its fraction), and range and integral come from smooth curves through
all energies: range by a cubic spline of log R over log E, exact for `R = alpha E^p`, integral per MeV by a cubic spline over E.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from scipy.interpolate import BSpline, PchipInterpolator, make_interp_spline

from torchimpt.checks import InputError, finite
from torchimpt.machine.optics import WIDEST
from torchimpt.machine.tables import LayerTables
from torchimpt.physics.bragg import peak_position, r80, range_from_energy, width80

SAMPLES = 4096
"""Samples of a tabulated curve over its scaled depth: the peak's width is more than 40 of them."""

LAYER_SAMPLES = 2048
"""Samples of a layer's curve: linear interpolation is wrong by less than 5e-4 of the peak (measured by the tests)."""

END = 1e-6
"""A layer's table ends where its depth dose has fallen below this fraction of the maximum."""

NO_SHARE = 1e-9
"""A component with a smaller fraction gives no dose; its variances are blended without it, to keep them finite."""


DEEPEST = 3500.0
"""No table need reach deeper, mm of water: the range of 1000 MeV is 3260 mm (PSTAR)."""

HIGHEST_LETD = 100.0
"""No proton has more, keV/um: stopping power in water ends at 82."""

RANGE_SLACK = 2.0
"""Factor by which a range may differ from the range rule: beam line and rule make a tenth, another unit ten or more."""


@dataclass(frozen=True, eq=False)
class DepthCurve:
    """Curves in water of one tabulated energy.

    Attributes
    ----------
    energy
        Nominal energy, MeV.
    depth
        `(n,)`, mm of water, ascending from 0, need not be even.
    idd
        `(n,)`, Gy mm^2 per 10^6 protons.
    variance, fraction
        `(n_components, n)`: added lateral variance, mm^2, and share of each lateral Gaussian.
    letd
        `(n,)`, dose-averaged LET, keV/um; None where the machine's files have none.
    """

    energy: float
    depth: torch.Tensor
    idd: torch.Tensor
    variance: torch.Tensor
    fraction: torch.Tensor
    letd: torch.Tensor | None = None

    def __post_init__(self) -> None:
        what = f"a machine's curves of {self.energy:.5g} MeV"
        if not 1.0 <= self.energy <= 1000.0:
            raise InputError(f"a machine's energies must lie between 1 and 1000 MeV, got {self.energy:.5g}")
        for name in ("depth", "idd", "variance", "fraction"):
            finite(f"{what}: {name}", getattr(self, name))
        if float(self.depth[0]) != 0.0 or bool((self.depth.diff() <= 0).any()) or float(self.depth[-1]) > DEEPEST:
            raise InputError(f"{what}: depths must ascend from 0 to at most {DEEPEST:g} mm of water")
        if float(self.idd.min()) < 0:
            at = int(self.idd.argmin())
            raise InputError(
                f"{what}: the depth dose is negative, {float(self.idd[at]):.4g} at {float(self.depth[at]):g} mm; it must be 0 or more"
            )
        if float(self.idd.max()) <= 0 or float(self.idd[-1]) > 0.5 * float(self.idd.max()):
            raise InputError(f"{what}: the depth dose must be positive and fall below half its maximum at the end; extend the table")
        if float(self.fraction.min()) < 0 or float(self.fraction.max()) > 1:
            raise InputError(f"{what}: the shares of the lateral Gaussians must lie between 0 and 1")
        if self.letd is not None:
            finite(f"{what}: LETd", self.letd)
            if float(self.letd.min()) < 0 or float(self.letd.max()) > HIGHEST_LETD:
                raise InputError(f"{what}: LETd must lie between 0 and {HIGHEST_LETD:g} keV/um, got up to {float(self.letd.max()):g}")
        # a component without a share may have any width
        if float(self.variance.min()) < 0 or bool((self.variance[self.fraction > NO_SHARE] > WIDEST**2).any()):
            raise InputError(f"{what}: the lateral sigmas must lie between 0 and {WIDEST:g} mm; check their unit")


def check_range(what: str, energy: float, found: float) -> None:
    """A range, mm, that protons of this energy, MeV, may have in water, within `RANGE_SLACK`."""
    known = float(range_from_energy(energy))
    if not known / RANGE_SLACK <= found <= known * RANGE_SLACK:
        raise InputError(f"{what} is {found:.4g} mm, that of protons in water is {known:.4g} mm; check the units of energies and depths")


def _spline(x: np.ndarray, y: np.ndarray) -> BSpline:
    """Interpolating spline through all points, cubic where there are four or more; a constant through one."""
    return make_interp_spline(x, y, k=min(3, len(x) - 1))


@dataclass(frozen=True, eq=False)
class ScaledCurves:
    """Tabulated curves against scaled depth `t = j step`; see the module.

    Attributes
    ----------
    energy, r80, integral
        `(n_energies,)`: MeV, mm, and Gy mm^3 per 10^6 protons.
    step
        Step of the scaled depth.
    shape
        `(n_energies, n_samples)`, `idd r80 / integral`.
    variance, fraction
        `(n_components, n_energies, n_samples)`, variance over `r80^2`, and fraction.
    letd
        `(n_energies, n_samples)`, keV/um, where all tabulated curves have it; else None.
    """

    energy: torch.Tensor
    r80: torch.Tensor
    integral: torch.Tensor
    step: float
    shape: torch.Tensor
    variance: torch.Tensor
    fraction: torch.Tensor
    letd: torch.Tensor | None = None

    @classmethod
    def of(cls, curves: Sequence[DepthCurve]) -> ScaledCurves:
        """From tabulated curves, in any order of energy. All must have the same number of components."""
        curves = sorted(curves, key=lambda c: c.energy)
        ranges = [r80(c.depth, c.idd) for c in curves]
        if any(b <= a for a, b in pairwise(ranges)):
            raise InputError("a machine's ranges must grow with its energies; check its depth doses for exchanged or repeated energies")
        for curve, found in zip(curves, ranges, strict=True):
            check_range(f"a machine's curves of {curve.energy:.5g} MeV: the range", curve.energy, found)
        step = max(float(c.depth[-1]) / r for c, r in zip(curves, ranges, strict=True)) / (SAMPLES - 1)
        t = step * np.arange(SAMPLES)

        def resample(curve: DepthCurve, mean_range: float, values: torch.Tensor, beyond: float | None) -> torch.Tensor:
            z = curve.depth.numpy()
            sampled = PchipInterpolator(z, values.numpy(), axis=-1)(np.minimum(t * mean_range, z[-1]))
            if beyond is not None:
                sampled = np.where(t * mean_range > z[-1], beyond, sampled)
            return torch.from_numpy(sampled)

        shape, variance, fraction, integral = [], [], [], []
        for curve, mean_range in zip(curves, ranges, strict=True):
            idd = resample(curve, mean_range, curve.idd, beyond=0.0)
            integral.append(float(torch.trapezoid(idd, dx=step * mean_range)))
            shape.append(idd * mean_range / integral[-1])
            variance.append(resample(curve, mean_range, curve.variance, beyond=None) / mean_range**2)
            fraction.append(resample(curve, mean_range, curve.fraction, beyond=None))
        as_tensor = lambda v: torch.tensor(v, dtype=torch.float64)  # noqa: E731
        letd = [resample(c, r, c.letd, beyond=None) for c, r in zip(curves, ranges, strict=True) if c.letd is not None]
        return cls(
            as_tensor([c.energy for c in curves]), as_tensor(ranges), as_tensor(integral), step,
            torch.stack(shape), torch.stack(variance, dim=1), torch.stack(fraction, dim=1),
            torch.stack(letd) if len(letd) == len(curves) else None,
        )  # fmt: skip

    @cached_property
    def _range_spline(self) -> BSpline:
        return _spline(np.log(self.energy.numpy()), np.log(self.r80.numpy()))

    @cached_property
    def _integral_spline(self) -> BSpline:
        return _spline(self.energy.numpy(), (self.integral / self.energy).numpy())

    def range_at(self, energy: torch.Tensor) -> torch.Tensor:
        """R80, mm, at energies in MeV, any shape."""
        return torch.as_tensor(np.exp(self._range_spline(np.log(energy.numpy()))))

    def integral_at(self, energy: torch.Tensor) -> torch.Tensor:
        """Depth dose's integral, Gy mm^3 per 10^6 protons, at energies in MeV, any shape."""
        return energy * torch.as_tensor(self._integral_spline(energy.numpy()))

    def energy_at(self, mean_range: torch.Tensor) -> torch.Tensor:
        """Energy, MeV, whose R80 is `mean_range`, mm, any shape: Newton on `range_at`, to rounding. The energy, where there is only one."""
        if len(self.energy) == 1:
            return torch.full_like(mean_range, float(self.energy[0]))
        target = np.log(mean_range.numpy())
        log_energy = np.interp(target, np.log(self.r80.numpy()), np.log(self.energy.numpy()))
        slope = self._range_spline.derivative()
        for _ in range(8):
            log_energy = log_energy - (self._range_spline(log_energy) - target) / slope(log_energy)
        return torch.as_tensor(np.exp(log_energy))

    def layers(
        self,
        energy: torch.Tensor,
        optics_start: float,
        optics_step: float,
        optics_variance: torch.Tensor,
        optics_variance_y: torch.Tensor | None = None,
    ) -> LayerTables:
        """Tables of layers of these energies `(n_layers,)`, MeV, all within the tabulated ones; see `LayerTables` for the optics."""
        index = (torch.searchsorted(self.energy.contiguous(), energy.contiguous(), right=True) - 1).clamp(0, max(len(self.energy) - 2, 0))
        after = (index + 1).clamp_max(len(self.energy) - 1)
        weight = ((energy - self.energy[index]) / (self.energy[after] - self.energy[index]).clamp_min(1e-300)).clamp(0.0, 1.0)[:, None]

        def blend(table: torch.Tensor) -> torch.Tensor:
            return (1.0 - weight) * table[..., index, :] + weight * table[..., after, :]

        fraction, moment = blend(self.fraction), blend(self.fraction * self.variance)
        variance = torch.where(fraction > NO_SHARE, moment / fraction.clamp_min(NO_SHARE), blend(self.variance))
        shape = blend(self.shape)
        t = self.step * torch.arange(shape.shape[1], dtype=torch.float64)
        stretch = self.range_at(energy) / torch.tensor([r80(t, s) for s in shape], dtype=torch.float64)
        last = [int((s > END * s.max()).nonzero()[-1]) for s in shape]
        end = self.step * torch.tensor([min(i + 1, shape.shape[1] - 1) for i in last], dtype=torch.float64)
        fine = end[:, None] / (LAYER_SAMPLES - 1) * torch.arange(LAYER_SAMPLES, dtype=torch.float64) / self.step
        left = fine.long().clamp_max(shape.shape[1] - 2)

        def sample(table: torch.Tensor) -> torch.Tensor:
            at = left.expand(table.shape[:-1] + left.shape[-1:])
            low, high = table.gather(-1, at), table.gather(-1, at + 1)
            return low + (fine - left) * (high - low)

        idd = sample(shape)
        idd[:, -1] = 0.0
        step = end * stretch / (LAYER_SAMPLES - 1)
        idd = idd * (self.integral_at(energy) / (idd.sum(dim=1) - idd[:, 0] / 2) / step)[:, None]
        depth = step[:, None] * torch.arange(LAYER_SAMPLES, dtype=torch.float64)
        measure = lambda f: torch.tensor([f(z, d) for z, d in zip(depth, idd, strict=True)], dtype=torch.float64)  # noqa: E731
        return LayerTables(
            energy=energy, r80=measure(r80), peak=measure(lambda z, d: peak_position(z, d)[0]), width80=measure(width80), depth_step=step,
            idd=idd, variance=sample(variance) * self.range_at(energy)[:, None] ** 2, fraction=sample(fraction),
            optics_start=optics_start, optics_step=optics_step, optics_variance=optics_variance, optics_variance_y=optics_variance_y,
        )  # fmt: skip
