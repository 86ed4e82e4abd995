"""Scaled-range interpolation: what is exact, conserved and monotone, and what happens at the edges of the tables."""

from __future__ import annotations

import pytest
import torch

from torchimpt.checks import InputError
from torchimpt.machine.curves import DepthCurve, ScaledCurves
from torchimpt.machine.machine import Machine
from torchimpt.machine.optics import Optics
from torchimpt.physics.bragg import bragg_curve, range_from_energy

FLAT = (0.0, 1.0, torch.ones(1, 1, dtype=torch.float64))


def curve(energy: float, n: int = 1500) -> DepthCurve:
    depth = torch.linspace(0.0, 1.4 * float(range_from_energy(energy)), n, dtype=torch.float64)
    variance = torch.stack((depth**2 * 1e-3, depth * 0 + 100.0))
    fraction = torch.stack((depth * 0 + 0.9, depth * 0 + 0.1))
    return DepthCurve(energy, depth, bragg_curve(depth, energy, 0.01 * energy), variance, fraction)


def test_a_tabulated_energy_comes_back():
    scaled = ScaledCurves.of([curve(100.0), curve(120.0), curve(140.0)])
    tables = scaled.layers(torch.tensor([120.0], dtype=torch.float64), *FLAT)
    z = tables.depth_step[0] * torch.arange(tables.idd.shape[1], dtype=torch.float64)
    exact = bragg_curve(z, 120.0, 1.2)
    assert float((tables.idd[0] - exact).abs().max() / exact.max()) < 3e-4
    torch.testing.assert_close(tables.variance[0, 0], z**2 * 1e-3, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(tables.variance[1, 0], torch.full_like(z, 100.0), rtol=1e-6, atol=0)


def test_order_of_energies_does_not_matter():
    curves = [curve(e) for e in (100.0, 120.0, 140.0)]
    energy = torch.tensor([133.0], dtype=torch.float64)
    first, second = ScaledCurves.of(curves).layers(energy, *FLAT), ScaledCurves.of(curves[::-1]).layers(energy, *FLAT)
    assert torch.equal(first.idd, second.idd)


def test_integral_and_range_between_energies_are_on_the_smooth_curves():
    scaled = ScaledCurves.of([curve(e) for e in (80.0, 100.0, 120.0, 140.0, 160.0)])
    energy = torch.linspace(80.0, 160.0, 33, dtype=torch.float64)
    tables = scaled.layers(energy, *FLAT)
    integral = (tables.idd.sum(dim=1) - tables.idd[:, 0] / 2) * tables.depth_step
    torch.testing.assert_close(integral, scaled.integral_at(energy), rtol=1e-12, atol=0)
    torch.testing.assert_close(tables.r80, scaled.range_at(energy), rtol=0, atol=5e-3)
    assert bool((tables.r80.diff() > 0).all())


def test_a_halo_that_appears_between_two_energies_keeps_its_width():
    # no halo below, with an arbitrary width in its place; between the energies its share is blended but not that width
    low, high = curve(100.0), curve(120.0)
    none = torch.zeros_like(low.depth)
    low = DepthCurve(100.0, low.depth, low.idd, torch.stack((low.variance[0], none + 1e6)), torch.stack((none + 1, none)))
    tables = ScaledCurves.of([low, high]).layers(torch.tensor([110.0], dtype=torch.float64), *FLAT)
    scale = float(range_from_energy(110.0) / range_from_energy(120.0)) ** 2
    torch.testing.assert_close(tables.fraction[1, 0], torch.full_like(tables.idd[0], 0.05), rtol=1e-9, atol=0)
    torch.testing.assert_close(tables.variance[1, 0], torch.full_like(tables.idd[0], 100.0 * scale), rtol=1e-2, atol=0)


def test_a_single_energy():
    machine = Machine("one", (2000.0, 2000.0), ScaledCurves.of([curve(100.0)]), Optics(torch.tensor([100.0]).double(), *FLAT))
    assert float(machine.layers([100.0]).r80) == pytest.approx(float(range_from_energy(100.0)), abs=0.1)
    assert float(machine.energy_for_range(machine.r80(100.0))) == pytest.approx(100.0)
    with pytest.raises(InputError, match="beyond machine 'one'"):
        machine.layers([101.0])


def test_ranges_must_grow_with_energy():
    swapped = DepthCurve(90.0, *(getattr(curve(100.0), name) for name in ("depth", "idd", "variance", "fraction")))
    with pytest.raises(InputError, match="ranges must grow"):
        ScaledCurves.of([swapped, curve(100.0)])


@pytest.mark.parametrize("sad", [(2000.0,), (2000.0, -1.0), (2000.0, float("inf"))])
def test_wrong_sources(sad):
    with pytest.raises(InputError, match="sad must be two positive distances"):
        Machine("m", sad, ScaledCurves.of([curve(100.0)]), Optics(torch.tensor([100.0]).double(), *FLAT))


def test_optics_are_linear_in_energy_and_held_beyond():
    optics = Optics(torch.tensor([100.0, 200.0]).double(), -10.0, 10.0, torch.tensor([[5.0, 6.0], [3.0, 4.0]]).double())
    variance = optics.variance(torch.tensor([50.0, 100.0, 150.0, 200.0, 300.0]).double())
    torch.testing.assert_close(variance.sqrt(), torch.tensor([[5.0, 6.0], [5.0, 6.0], [4.0, 5.0], [3.0, 4.0], [3.0, 4.0]]).double())
