"""Bortfeld's curve against its own definition, its closed-form integral, and the range rule."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from torchimpt.constants import IDD_GY_MM2_PER_MEV_CM2_G
from torchimpt.physics import bragg

ENERGIES = [30.0, 70.0, 100.0, 150.0, 200.0, 240.0]


def curve(energy: float, spread: float = 0.0, samples: int = 20001) -> tuple[torch.Tensor, torch.Tensor]:
    end = float(bragg.range_from_energy(energy)) + 8.0 * float(bragg.range_straggling(energy, spread))
    depth = torch.linspace(0.0, end, samples, dtype=torch.float64)
    return depth, bragg.bragg_curve(depth, energy, spread)


def test_range_and_energy_are_inverse():
    energy = torch.linspace(1.0, 250.0, 100, dtype=torch.float64)
    torch.testing.assert_close(bragg.energy_from_range(bragg.range_from_energy(energy)), energy, rtol=1e-14, atol=0)
    assert float(bragg.energy_from_range(0.0)) == 0.0


def test_range_of_150_mev_is_that_of_the_rule():
    assert float(bragg.range_from_energy(150.0)) == pytest.approx(0.022 * 150**1.77, rel=1e-15)


@pytest.mark.parametrize("energy", ENERGIES)
@pytest.mark.parametrize("percent", [0.0, 0.5, 1.0])
def test_distal_80_percent_lies_at_the_mean_range(energy, percent):
    # Bortfeld 1997, section IV: the distal 80 % depth is the mean range whatever the energy spread; 0.03 mm measured for all of these
    depth, dose = curve(energy, percent / 100 * energy)
    assert bragg.r80(depth, dose) == pytest.approx(float(bragg.range_from_energy(energy)), abs=0.03)


@pytest.mark.parametrize("energy", ENERGIES)
def test_integral_is_the_deposited_energy(energy):
    # the Gaussian carries 5e-5 of it out of the surface at most, where the closed form has a sharp edge
    depth, dose = curve(energy)
    expected = float(bragg.deposited_energy(energy)) * 10.0 * IDD_GY_MM2_PER_MEV_CM2_G
    assert float(torch.trapezoid(dose, depth)) == pytest.approx(expected, rel=1e-4)


def test_deposited_energy_leaves_a_few_percent_to_neutral_secondaries():
    share = bragg.deposited_energy(torch.tensor([70.0, 230.0])) / torch.tensor([70.0, 230.0], dtype=torch.float64)
    assert 0.98 < float(share[0]) < 0.99 and 0.92 < float(share[1]) < 0.94


def test_curve_equals_the_convolution_that_defines_it():
    energy, spread = 120.0, 0.8
    mean_range, sigma = float(bragg.range_from_energy(energy)), float(bragg.range_straggling(energy, spread))
    a, beta = 1 / 1.77, 0.0012

    def smeared(z: float) -> float:
        # t = s^p takes the integrable singularity at the end of the range out
        def integrand(s: float) -> float:
            r = s**1.77
            gauss = np.exp(-((mean_range - r - z) ** 2) / (2 * sigma**2)) / np.sqrt(2 * np.pi) / sigma
            return (a * r ** (a - 1) + beta * (a + 0.6) * r**a) * gauss * 1.77 * s**0.77

        low, high = max(mean_range - z - 10 * sigma, 0.0) ** a, max(mean_range - z + 10 * sigma, 0.0) ** a
        return quad(integrand, low, high, epsabs=1e-13, epsrel=1e-11)[0]

    depths = [0.0, 50.0, mean_range - 13 * sigma, mean_range - 11 * sigma, mean_range - sigma, mean_range, mean_range + 2 * sigma]
    unit = 10.0 * IDD_GY_MM2_PER_MEV_CM2_G / (0.022**a * (1 + beta * mean_range))
    expected = torch.tensor([smeared(z) * unit for z in depths], dtype=torch.float64)
    dose = bragg.bragg_curve(torch.tensor(depths, dtype=torch.float64), energy, spread)
    torch.testing.assert_close(dose, expected, rtol=1e-8, atol=0)


def test_the_series_meets_the_special_function():
    zeta = torch.tensor([bragg._ASYMPTOTIC - 1e-9, bragg._ASYMPTOTIC + 1e-9], dtype=torch.float64)
    for a in (1 / 1.77, 1 + 1 / 1.77):
        low, high = bragg.smeared_power(zeta, a)
        assert float(high / low) == pytest.approx(1.0, rel=1e-9)


def test_nothing_far_beyond_the_range():
    dose = bragg.bragg_curve(torch.tensor([400.0, 1000.0]), 150.0)
    assert dose.dtype == torch.float64 and bool((dose >= 0).all()) and float(dose.max()) < 1e-100


def test_measures_of_a_known_curve():
    # a parabola of height 1 around 3.3: 80 % at +/- sqrt(0.2) * 2
    depth = torch.linspace(0.0, 6.0, 601, dtype=torch.float64)
    dose = (1.0 - ((depth - 3.3037) / 2.0) ** 2).clamp_min(0.0)
    position, height = bragg.peak_position(depth[::7], dose[::7])
    assert position == pytest.approx(3.3037, abs=1e-12) and height == pytest.approx(1.0, abs=1e-12)
    half = 2.0 * 0.2**0.5
    assert bragg.r80(depth, dose) == pytest.approx(3.3037 + half, abs=1e-4)
    assert bragg.width80(depth, dose) == pytest.approx(2 * half, abs=2e-4)


def test_measures_at_the_ends():
    depth = torch.arange(5, dtype=torch.float64)
    rising, falling = torch.tensor([1.0, 2, 3, 4, 5]).double(), torch.tensor([5.0, 4, 3, 2, 1]).double()
    assert bragg.peak_position(depth, rising) == (4.0, 5.0) and bragg.peak_position(depth, falling) == (0.0, 5.0)
    assert bragg.r80(depth, rising) == 4.0 and bragg.crossing(depth, falling, 0.8, "proximal") == 0.0
    assert bragg.r80(depth, falling) == pytest.approx(1.0)
