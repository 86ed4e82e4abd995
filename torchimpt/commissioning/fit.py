"""The fits of a commissioning: least squares with derivatives in closed form, energy by energy, one table after the other.

- Depth dose: R, s and the five coefficients of `torchimpt.machine.parametric.depth_dose`, from which the mean energy and its spread follow;
  residuals count by `d_i + 0.1 max(d)`, so that the entrance is not sacrificed to the peak.
- Air: sigma, divergence and correlation at the isocentre along x and y from sigma on planes; from one plane the size of a parallel beam.
- Water: the correction of the scattering from the widths of the core, then share and width of the halo, linear in their parameters. What
  the medium adds is the variance less that in air along x. A weak prior, `b_0 = 1 +- 0.5` and `b_1 = 0 +- 1` at widths known to 0.05 mm,
  holds the correction where the beam is so wide that scattering is not seen in it.

Standard errors are `sqrt(diag((J' J)^-1) chi^2 / (n - p))`: of noise and misfit alike, as if residuals were independent. They are NaN where
there are as many numbers as parameters, or where a bound holds the parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import least_squares

from torchimpt.commissioning.tables import CommissioningTables, Table
from torchimpt.machine import Machine
from torchimpt.machine.commissioned import OPTICS, machine_of
from torchimpt.machine.optics import drift
from torchimpt.machine.parametric import DOSE, RANGE, SCATTER, SHARE, WIDE, depth_dose, scatter_basis, share_basis, wide_basis
from torchimpt.physics.bragg import RANGE_POWER, energy_from_range, r80, range_straggling

BIN_POINTS = 9
"""Points that the mean over a bin is the sum of: its error is below 1e-4 of the peak for bins of 1 mm."""

FLOOR = 0.1
"""Depth doses count by their own size and this share of their maximum."""

PRIOR, PRIOR_ERROR, PRESUMED = (1.0, 0.0), (0.5, 1.0), 0.05
"""What is held of the scattering's correction, with its errors, where widths are known to so many mm."""

LEAST_SHARE, LEAST_ROWS = 2e-3, 8
"""Widths of a halo count where it has this share, if so many rows have it; their fit means nothing elsewhere."""

MOST_CORRELATION = 0.999
"""A phase space that is no line."""


@dataclass(frozen=True)
class Residual:
    """A table's curve at one energy: what was given at `(n,)` depths or planes, mm, and what was fitted."""

    table: str
    energy: float
    at: np.ndarray
    given: np.ndarray
    fitted: np.ndarray


@dataclass(frozen=True)
class Commissioning:
    """What came out.

    Attributes
    ----------
    machine
        Ready for use.
    sections
        The machine file's `[curves]`, `[optics]`, `[calibration]`, and the first two's standard errors: columns by name.
    residuals
        Of every fit.
    """

    machine: Machine
    sections: dict[str, dict[str, np.ndarray]]
    residuals: list[Residual]

    @property
    def mean_energy(self) -> np.ndarray:
        """Of the range, by the rule `R = 0.022 E^1.77` mm, MeV; `(n_energies,)`."""
        return energy_from_range(torch.from_numpy(self.sections["curves"]["range_mm"])).numpy()

    @property
    def energy_spread(self) -> np.ndarray:
        """Standard deviation of the energy, MeV, behind the range's spread, by the same rule; zero where straggling is as much."""
        energy, spread = self.mean_energy, self.sections["curves"]["spread_mm"]
        mono = range_straggling(torch.from_numpy(energy)).numpy()
        slope = RANGE_POWER * self.sections["curves"]["range_mm"] / energy
        return np.sqrt(np.maximum(spread**2 - mono**2, 0.0)) / slope


def commission(tables: CommissioningTables) -> Commissioning:
    """Fit a machine to tables; see the module."""
    residuals: list[Residual] = []
    optics, optics_error = _fit_all(tables.air, lambda energy, table: _air(energy, table, residuals))
    halo = "sigma2_mm" in next(iter(tables.water.values()), {})

    def curves_of(energy: float, table: Table) -> tuple[dict[str, float], dict[str, float]]:
        """Parameters of one energy's depth dose and widths in water, and their standard errors."""
        found, errors = _depth_dose(energy, table, tables.bins, residuals)
        air = float(np.interp(energy, optics["energy_mev"], optics["sigma_x_mm"])) ** 2
        for part in (_core, _halo) if halo else (_core,):
            more, more_errors = part(energy, tables.water.get(energy), found, air, residuals)
            found, errors = found | more, errors | more_errors
        return found, errors

    curves, curves_error = _fit_all(tables.depth_dose, curves_of)
    sections = {"curves": curves, "optics": optics}
    if tables.calibration is not None:
        sections["calibration"] = {
            "energy_mev": tables.calibration["energy_MeV"], "protons_per_mu": tables.calibration["protons_per_mu"],
        }  # fmt: skip
    machine = machine_of(tables.name, tables.sad, curves, optics, sections.get("calibration"))
    return Commissioning(machine, sections | {"curves_error": curves_error, "optics_error": optics_error}, residuals)


def _fit_all(
    tables: Mapping[float, Table], fit: Callable[[float, Table], tuple[dict[str, float], dict[str, float]]]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Columns of the parameters and of their errors, energies ascending."""
    pairs = [fit(energy, table) for energy, table in tables.items()]
    energies = np.array(list(tables))

    def columns(rows: list[dict[str, float]]) -> dict[str, np.ndarray]:
        return {"energy_mev": energies} | {name: np.array([row[name] for row in rows]) for name in rows[0]}

    return columns([values for values, _ in pairs]), columns([errors for _, errors in pairs])


def standard_errors(jacobian: np.ndarray, residual: np.ndarray, held: np.ndarray | None = None) -> np.ndarray:
    """Standard errors of parameters `(p,)` from the Jacobian `(n, p)` and the residual `(n,)` at the minimum; NaN where `held` `(p,)`."""
    free = np.ones(jacobian.shape[1], bool) if held is None else ~held
    found = np.full(jacobian.shape[1], np.nan)
    spare = len(residual) - int(free.sum())
    if spare > 0:
        inverse = np.linalg.pinv(jacobian[:, free].T @ jacobian[:, free], hermitian=True)
        found[free] = np.sqrt(np.diag(inverse).clip(0.0) * float(residual @ residual) / spare)
    return found


def _named(names: tuple[str, ...], values: np.ndarray, errors: np.ndarray) -> tuple[dict[str, float], dict[str, float]]:
    return dict(zip(names, values.tolist(), strict=True)), dict(zip(names, errors.tolist(), strict=True))


def _linear(basis: np.ndarray, given: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The minimum of `|w (B p - y)|^2`, and its standard errors."""
    rows = basis * weight[:, None]
    values = np.linalg.lstsq(rows, given * weight, rcond=None)[0]
    return values, standard_errors(rows, rows @ values - given * weight)


def _depth_dose(energy: float, table: Table, bins: bool, residuals: list[Residual]) -> tuple[dict[str, float], dict[str, float]]:
    """Range, spread and coefficients. The coefficients at the first R and s are the least-squares ones; all move together from there."""
    depth, dose = table["depth_mm"], table["idd_Gy_mm2_per_1e6_protons"]
    middle = np.zeros(1) if not bins else (np.arange(BIN_POINTS) + 0.5) / BIN_POINTS - 0.5
    points = (depth[:, None] + np.gradient(depth)[:, None] * middle).clip(0.0)
    weight = 1.0 / (dose + FLOOR * dose.max())

    def basis(mean_range: float, spread: float) -> tuple[np.ndarray, ...]:
        parts = depth_dose(points.ravel(), mean_range, spread)
        return tuple(part.reshape(*points.shape, -1).mean(axis=1) for part in parts)

    def residual(p: np.ndarray) -> np.ndarray:
        return weight * (basis(p[0], p[1])[0] @ p[2:] - dose)

    def jacobian(p: np.ndarray) -> np.ndarray:
        values, by_range, by_spread = basis(p[0], p[1])
        return weight[:, None] * np.column_stack((by_range @ p[2:], by_spread @ p[2:], values))

    # the spread is that of a beam of 0.6 % of its energy
    start = np.array([r80(torch.from_numpy(depth), torch.from_numpy(dose)), float(range_straggling(energy, 0.006 * energy))])
    coefficients = _linear(basis(*start)[0], dose, weight)[0]
    low = [1.0, 0.05] + [-np.inf] * len(DOSE)
    fit = least_squares(residual, np.concatenate((start, coefficients)), jacobian, bounds=(low, np.inf), x_scale="jac", max_nfev=200)
    residuals.append(Residual("depth_dose", energy, depth, dose, fit.fun / weight + dose))
    return _named((*RANGE, *DOSE), fit.x, standard_errors(fit.jac, fit.fun))


def _air(energy: float, table: Table, residuals: list[Residual]) -> tuple[dict[str, float], dict[str, float]]:
    """Size, divergence and correlation along x and y."""
    z = table.get("z_mm", np.zeros(len(table["sigma_x_mm"])))
    values, errors = np.zeros(0), np.zeros(0)
    for axis in "xy":
        given = table[f"sigma_{axis}_mm"]
        found, error = (np.array([given[0], 0.0, 0.0]), np.full(3, np.nan)) if len(z) == 1 else phase_space(z, given)
        values, errors = np.concatenate((values, found)), np.concatenate((errors, error))
        residuals.append(Residual(f"air_{axis}", energy, z, given, np.sqrt(drift(found[0], found[1], found[2], -z))))
    return _named(OPTICS, values, errors)


def phase_space(z: np.ndarray, sigma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`s` (mm), `s'` (rad), `rho` at `z = 0` of a drifting beam from sigma `(n,)`, mm, on planes `(n,)`, mm upstream; errors."""
    length = float(np.abs(z).max())
    d = -z / length

    def residual(p: np.ndarray) -> np.ndarray:
        return np.sqrt(drift(p[0], p[1], p[2], d)) - sigma

    def jacobian(p: np.ndarray) -> np.ndarray:
        size, grown, rho = p
        slope = np.column_stack((size + rho * grown * d, rho * size * d + grown * d**2, size * grown * d))
        return slope / np.sqrt(drift(size, grown, rho, d))[:, None]

    curve = np.polyfit(d, sigma**2, 2)
    size, grown = np.sqrt(max(curve[2], 1e-2)), np.sqrt(max(curve[0], 1e-4))
    start = (size, grown, np.clip(curve[1] / (2.0 * size * grown), -0.9, 0.9))
    bounds = ([1e-2, 0.0, -MOST_CORRELATION], [np.inf, np.inf, MOST_CORRELATION])
    fit = least_squares(residual, start, jacobian, bounds=bounds, x_scale="jac", xtol=1e-12, ftol=1e-12)
    errors = standard_errors(fit.jac, fit.fun, fit.active_mask != 0)
    return fit.x * (1.0, 1.0 / length, 1.0), errors * (1.0, 1.0 / length, 1.0)


def _core(
    energy: float, table: Table | None, found: dict[str, float], air: float, residuals: list[Residual]
) -> tuple[dict[str, float], dict[str, float]]:
    """The scattering's correction; the formula's own where there is no table."""
    if table is None:
        return _named(SCATTER, np.array(PRIOR), np.full(2, np.nan))
    inside = table["depth_mm"] <= found["range_mm"]
    z, sigma = table["depth_mm"][inside], table["sigma1_mm"][inside]
    weight = 0.5 / sigma  # from a difference of variances to one of widths
    prior = PRESUMED / np.array(PRIOR_ERROR)
    basis = scatter_basis(z, found["range_mm"])
    rows = np.concatenate((basis * weight[:, None], np.diag(prior)))
    wanted = np.concatenate(((sigma**2 - air) * weight, prior * PRIOR))
    values, errors = _linear(rows, wanted, np.ones(len(wanted)))
    residuals.append(Residual("core", energy, z, sigma, np.sqrt(air + (basis @ values).clip(0.0))))
    return _named(SCATTER, values, errors)


def _halo(
    energy: float, table: Table | None, found: dict[str, float], air: float, residuals: list[Residual]
) -> tuple[dict[str, float], dict[str, float]]:
    """Share and width of the halo. Its width is a constant, the rows' median, where too few rows have a halo."""
    assert table is not None
    mean_range, spread = found["range_mm"], found["spread_mm"]
    inside = table["depth_mm"] <= mean_range + 2.0 * spread
    z, share, sigma = (table[name][inside] for name in ("depth_mm", "halo_fraction", "sigma2_mm"))
    basis = share_basis(z, mean_range, spread)
    values, errors = _linear(basis, share, np.ones(len(z)))
    residuals.append(Residual("halo_share", energy, z, share, (basis @ values).clip(0.0, 1.0)))
    enough = share > LEAST_SHARE
    wide, wide_errors = np.array([max(float(np.median(sigma)) ** 2 - air, 0.0), 0.0, 0.0]), np.full(3, np.nan)
    if enough.sum() >= LEAST_ROWS:
        z, share, sigma = z[enough], share[enough], sigma[enough]
        # an error of the width goes as 1 / share
        wide, wide_errors = _linear(wide_basis(z, mean_range), sigma**2 - air, 0.5 * share / sigma)
        residuals.append(Residual("halo_sigma", energy, z, sigma, np.sqrt(air + (wide_basis(z, mean_range) @ wide).clip(0.0))))
    return _named((*SHARE, *WIDE), np.concatenate((values, wide)), np.concatenate((errors, wide_errors)))
