"""Scattering in water against Highland's formula, against a plain quadrature, and in its limits."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import quad

from torchimpt.physics import scatter
from torchimpt.physics.bragg import energy_from_range, range_from_energy


def highland_sigma(depth: float, mean_range: float) -> float:
    """Highland's formula for thick water (Gottschalk et al., Nucl. Instrum. Methods B74:467, 1993): 14.1 MeV, X_0 = 36.08 cm."""

    def integrand(u: float) -> float:
        energy = float(energy_from_range(mean_range - u))
        return ((depth - u) * 14.1 / (energy * (energy + 2 * 938.272) / (energy + 938.272))) ** 2 / 360.8

    return (1 + math.log10(depth / 360.8) / 9) * math.sqrt(quad(integrand, 0, depth, limit=200)[0])


@pytest.mark.parametrize("energy", [100.0, 160.0, 220.0])
@pytest.mark.parametrize("part", [0.3, 0.7, 0.999])
def test_close_to_highland(energy, part):
    # two parametrisations of one theory: they differ by up to 7 % in sigma near the end of the longest ranges
    mean_range = float(range_from_energy(energy))
    sigma = float(scatter.lateral_variance(torch.tensor([part * mean_range]), mean_range).sqrt())
    assert sigma == pytest.approx(highland_sigma(part * mean_range, mean_range), rel=0.07)


@pytest.mark.parametrize("energy", [70.0, 150.0, 230.0])
def test_about_two_percent_of_the_range_at_its_end(energy):
    # the rule of thumb for protons in water; Preston and Koehler (1968) measured 2.2 %
    mean_range = float(range_from_energy(energy))
    assert float(scatter.lateral_variance(torch.tensor([mean_range]), mean_range).sqrt()) == pytest.approx(0.022 * mean_range, rel=0.03)


def test_quadrature_has_converged():
    mean_range = 156.0
    depth = torch.linspace(1.0, mean_range, 60, dtype=torch.float64)
    coarse, fine = scatter.lateral_variance(depth, mean_range), scatter.lateral_variance(depth, mean_range, nodes=600)
    torch.testing.assert_close(coarse, fine, rtol=2e-4, atol=0)


def test_equals_an_adaptive_integral():
    depth, mean_range = 100.0, 156.0
    initial = energy_from_range(mean_range)

    def integrand(u: float) -> float:
        return (depth - u) ** 2 * float(scatter.scattering_power(energy_from_range(mean_range - u), initial))

    expected = quad(integrand, 0, depth, limit=200, epsabs=0, epsrel=1e-8)[0]
    assert float(scatter.lateral_variance(torch.tensor([depth]), mean_range)) == pytest.approx(expected, rel=2e-4)


def test_zero_at_the_surface_then_growing_then_held_beyond_the_range():
    depth = torch.tensor([-5.0, 0.0, 1.0, 50.0, 156.0, 200.0])
    variance = scatter.lateral_variance(depth, 156.0)
    assert variance.dtype == torch.float64
    assert variance[0] == 0 and variance[1] == 0
    assert float(variance[-1]) == pytest.approx(float(variance[-2]), rel=1e-14)  # torch 2.4 rounds them apart
    assert bool((variance[1:-1].diff() > 0).all())


def test_momentum_times_velocity_in_both_limits():
    slow, fast = torch.tensor(1e-3, dtype=torch.float64), torch.tensor(1e7, dtype=torch.float64)
    assert float(scatter.momentum_velocity(slow) / slow) == pytest.approx(2.0, rel=1e-5)
    assert float(scatter.momentum_velocity(fast) / fast) == pytest.approx(1.0, rel=1e-3)


def test_scattering_power_is_finite_and_not_negative_at_the_surface():
    energy = torch.tensor([150.0, 149.999999, 149.0, 1.0, 0.01], dtype=torch.float64)
    power = scatter.scattering_power(energy, energy[0])
    assert bool(torch.isfinite(power).all()) and bool((power >= 0).all())
