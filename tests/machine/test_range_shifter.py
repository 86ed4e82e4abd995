"""Tables behind a range shifter: ranges by identity, widths by an integral spelled out, shares that sum to one."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from torchimpt.checks import InputError
from torchimpt.geometry import Beam, RangeShifter
from torchimpt.machine import generic
from torchimpt.physics.bragg import energy_from_range
from torchimpt.physics.scatter import LEXAN_SCATTERING, LEXAN_STOPPING, scattering_moment, scattering_power

ENERGIES = [90.0, 120.0, 180.0]
SHIFTER = RangeShifter(45.0, 210.0)


def depths(tables, layer):
    return float(tables.depth_step[layer]) * np.arange(tables.idd.shape[1])


def total_variance(tables, k, layer, z, gap):
    """What the medium, shifter and gap add to component k, mm^2, `gap` from the shifter's face to the plane."""
    inside = np.interp(z, depths(tables, layer), tables.variance[k, layer].numpy())
    return inside + float(tables.drift[k, layer, 0]) * gap + float(tables.drift[k, layer, 1]) * gap**2


@pytest.mark.parametrize("halo", [False, True])
def test_depth_dose_is_shifted_by_the_thickness(halo):
    plain, behind = generic(halo).layers(ENERGIES), generic(halo).layers(ENERGIES, SHIFTER)
    # identities, but for rounding
    torch.testing.assert_close(behind.r80, plain.r80 - 45.0, rtol=0, atol=1e-9)
    torch.testing.assert_close(behind.peak, plain.peak - 45.0, rtol=0, atol=1e-9)
    torch.testing.assert_close(behind.width80, plain.width80, rtol=0, atol=0)
    for i in range(len(ENERGIES)):
        z = np.linspace(0.0, depths(behind, i)[-1], 999)
        found = np.interp(z, depths(behind, i), behind.idd[i].numpy())
        wanted = np.interp(45.0 + z, depths(plain, i), plain.idd[i].numpy())
        # a linear interpolant sampled anew is off by a quarter of a step's curvature: 1e-4 of the peak measured
        assert np.abs(found - wanted).max() < 5e-4 * wanted.max()


@pytest.mark.parametrize("halo", [False, True])
def test_shares_sum_to_one(halo):
    plain, behind = generic(halo).layers(ENERGIES), generic(halo).layers(ENERGIES, SHIFTER)
    assert behind.n_components == plain.n_components + 1
    torch.testing.assert_close(behind.fraction.sum(dim=0), torch.ones_like(behind.idd), rtol=0, atol=1e-12)
    assert float(behind.fraction.min()) >= 0.0
    # 4.5 cm at 1.2 % a cm, and some more of slow protons; nothing behind the range
    assert float(behind.fraction[-1, :, 0].min()) > 0.054 and float(behind.fraction[-1, :, 0].max()) < 0.10
    assert float(behind.fraction[-1, :, -1].max()) < 1e-3


@pytest.mark.parametrize("energy", ENERGIES)
@pytest.mark.parametrize("gap", [0.0, 80.0, 250.0])
@pytest.mark.parametrize("part", [0.0, 0.5, 0.95])
def test_core_equals_fermi_and_eyges_spelled_out(energy, gap, part):
    """The plane lies `gap` behind the face in air and z of water: the arm of a scatter in the shifter is geometric, one in water is z - u."""
    tables = generic().layers([energy], SHIFTER)
    mean_range = float(generic().r80(energy))
    initial = energy_from_range(mean_range)
    z = part * float(tables.r80[0])

    def power(u):
        return float(scattering_power(energy_from_range(mean_range - u), initial))

    shifter = quad(lambda u: ((45.0 - u) / LEXAN_STOPPING + gap + z) ** 2 * LEXAN_SCATTERING * power(u), 0.0, 45.0, limit=200)[0]
    patient = quad(lambda u: (45.0 + z - u) ** 2 * power(u), 45.0, 45.0 + z, limit=200)[0]
    # quadrature and the interpolation of the machine's tables, 2e-3 as tested without a shifter
    assert total_variance(tables, 0, 0, z, gap + z) == pytest.approx(shifter + patient, rel=4e-3, abs=2e-3)


def test_close_to_highland():
    """45 mm of water-equivalent Lexan, 200 mm of air: Highland's angle times the arm from 45 % of the plate."""
    tables, mean_range = generic().layers([150.0], SHIFTER), float(generic().r80(150.0))
    length = 1.20 * 45.0 / LEXAN_STOPPING / 10.0 / 41.5  # in radiation lengths, g/cm^2

    def inverse_square(u):
        e = float(energy_from_range(mean_range - u))
        return (14.1 / (e * (e + 2 * 938.272) / (e + 938.272))) ** 2 / 45.0

    angle = (1 + math.log10(length) / 9) * math.sqrt(length * quad(inverse_square, 0.0, 45.0)[0])
    arm = 200.0 + 0.45 * 45.0 / LEXAN_STOPPING
    # two parametrisations of one theory, see the tests of scattering in water
    assert math.sqrt(total_variance(tables, 0, 0, 0.0, 200.0)) == pytest.approx(angle * arm, rel=0.07)


def test_halo_grows_with_the_gap_as_its_angle():
    tables = generic().layers([120.0], SHIFTER)
    near, far = (math.sqrt(total_variance(tables, 1, 0, 10.0, gap)) for gap in (300.0, 500.0))
    # Monte Carlo: 45 mm at 20 cm behind it, 120 MeV; angles of 0.2 rad
    assert (far - near) / 200.0 == pytest.approx(0.21, rel=0.03)
    assert math.sqrt(total_variance(tables, 1, 0, 2.0, 202.0)) == pytest.approx(45.3, rel=0.05)


def test_some_layers_of_a_beam():
    machine, shifted = generic(halo=True), torch.tensor([False, True, False])
    mixed = machine.layers(ENERGIES, SHIFTER, shifted)
    plain, behind = machine.layers(ENERGIES), machine.layers(ENERGIES, SHIFTER)
    for name in ("energy", "r80", "peak", "depth_step", "idd"):
        assert torch.equal(
            getattr(mixed, name), torch.where(_row(shifted, getattr(plain, name)), getattr(behind, name), getattr(plain, name))
        )
    for name in ("variance", "fraction"):
        assert torch.equal(getattr(mixed, name)[:2, ~shifted], getattr(plain, name)[:, ~shifted])
        assert torch.equal(getattr(mixed, name)[:, shifted], getattr(behind, name)[:, shifted])
    assert not mixed.fraction[2, ~shifted].any() and not mixed.drift[:, ~shifted].any()
    assert machine.layers(ENERGIES, SHIFTER, torch.zeros(3, dtype=torch.bool)) is plain


def _row(mask, like):
    return mask.reshape(-1, *(1,) * (like.dim() - 1)).expand(like.shape)


def test_moments_are_integrals():
    initial = energy_from_range(90.0)
    for n in (0, 1, 2):
        wanted = quad(lambda u, n=n: (30.0 - u) ** n * float(scattering_power(energy_from_range(90.0 - u), initial)), 0.0, 30.0, limit=200)
        assert float(scattering_moment(n, torch.tensor([30.0]), 90.0)) == pytest.approx(wanted[0], rel=1e-3)


def test_thicker_than_the_range():
    with pytest.raises(InputError, match=r"of 80 mm of water stops protons of 90 MeV, whose range is 63\.\d+ mm; take a thinner one"):
        generic().layers(ENERGIES, RangeShifter(80.0, 100.0))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((0.0,), r"thicker than 0 and at most 400 mm of water, got 0"),
        ((-40.0, 100.0), r"thicker than 0 and at most 400 mm of water, got -40"),
        ((4000.0,), r"got 4000"),
        ((float("nan"),), r"got nan"),
        ((40.0, -5.0), r"0 to 5000 mm upstream of the isocentre, got -5"),
        ((40.0, 100.0, "layer"), r"rule must be one of all, layers, beam, got 'layer' \(did you mean 'layers'\?\)"),
    ],
)
def test_impossible_shifters(arguments, said):
    with pytest.raises(InputError, match=said):
        RangeShifter(*arguments)


def test_beams_know_their_shifter():
    assert Beam(0.0, shifter=SHIFTER) != Beam(0.0)
    assert Beam(0.0, shifter=SHIFTER) == Beam(0.0, shifter=dataclasses.replace(SHIFTER, rule="layers"))
    assert Beam(0.0, shifter=SHIFTER).at((0.0, 0.0, 0.0)).shifter == SHIFTER


def test_generic_peaks_reach_the_skin():
    assert generic().shifter.thickness > float(generic().peak_depth(generic().energy_min))


def test_a_wide_gaussian_of_the_beam_itself_stays():
    """A nozzle's second Gaussian has its share in the open beam, and the shifter takes none of it: only what has grown in it is left out."""
    machine = generic(halo=True)
    curves = machine.curves
    wide = torch.full_like(curves.fraction[:1], 0.05)
    fraction = torch.cat((0.95 * curves.fraction, wide))
    variance = torch.cat((curves.variance, 0.01 * torch.ones_like(wide)))
    beam = dataclasses.replace(machine, curves=dataclasses.replace(curves, fraction=fraction, variance=variance))
    plain, behind = beam.layers(ENERGIES), beam.layers(ENERGIES, SHIFTER)
    torch.testing.assert_close(behind.fraction[2], torch.full_like(behind.fraction[2], 0.05), rtol=0, atol=1e-9)
    torch.testing.assert_close(plain.fraction[2], torch.full_like(plain.fraction[2], 0.05), rtol=0, atol=1e-9)
    assert float(behind.fraction[1, :, 0].abs().max()) < 1e-6 < 0.01 < float(plain.fraction[1, :, 1000].min())
