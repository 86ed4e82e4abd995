"""LETd against depth: stopping power, limits, other programs' tables, and the Monte Carlo codes' band."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from torchimpt.geometry import RangeShifter
from torchimpt.machine import generic, read_matrad_machine
from torchimpt.physics.bragg import bragg_curve, range_from_energy, range_straggling
from torchimpt.physics.letd import letd_curve, stopping_power, straggling


def test_stopping_power_gives_the_ranges_of_pstar() -> None:
    energy = np.geomspace(1e-3, 250.0, 20000)
    step = np.diff(energy) * 0.5 * (1 / stopping_power(energy[1:]) + 1 / stopping_power(energy[:-1]))
    reached = np.interp([1.0, 10.0, 70.0, 100.0, 150.0, 200.0, 250.0], energy, np.concatenate(([0.0], np.cumsum(step))))
    # PSTAR's CSDA ranges in liquid water, mm; it has more rows than the table here, and nuclear stopping at the very end
    assert reached == pytest.approx([0.02458, 1.230, 40.80, 77.18, 157.7, 259.6, 379.4], rel=4e-3)


@pytest.mark.parametrize("energy", [70.0, 150.0, 240.0])
def test_a_depth_dose_tells_its_straggling(energy: float) -> None:
    sigma = float(range_straggling(energy, 0.005 * energy))
    depth = torch.linspace(0.0, float(range_from_energy(energy)) + 7.0 * sigma, 4000, dtype=torch.float64)
    assert straggling(depth, bragg_curve(depth, energy, 0.005 * energy)) == pytest.approx(sigma, rel=3e-3)


def test_at_the_surface_only_slow_protons_add_to_the_primaries() -> None:
    letd = letd_curve(torch.zeros(1), 157.7, 1.9)
    # evaporated protons: 0.3 x 0.0012/1.19 a mm of 5 MeV and about 20 keV/um
    assert 0.5445 < float(letd) < 0.5445 + 0.1


def test_last_protons_are_slow_ones() -> None:
    letd = letd_curve(torch.tensor([157.7 + 8.0 * 1.9, 400.0]), 157.7, 1.9)
    # ends of range only: (int S^2 dr) / (int S dr) over a few mm
    assert bool((letd > 12.0).all()) and bool((letd < 40.0).all())


def test_layers_take_their_own_range_and_straggling() -> None:
    machine = generic()
    tables, letd = machine.layers([100.0, 200.0]), machine.letd([100.0, 200.0])
    assert letd.shape == tables.idd.shape
    for i, energy in enumerate((100.0, 200.0)):
        z = tables.depth_step[i] * torch.arange(tables.idd.shape[1], dtype=torch.float64)
        sigma = float(range_straggling(energy, (0.975 - 0.0025 * energy) / 100.0 * energy))
        expected = letd_curve(z, float(range_from_energy(energy)), sigma)
        seen = tables.idd[i] > 0.01 * tables.idd[i].max()
        assert letd[i][seen].numpy() == pytest.approx(expected[seen].numpy(), rel=0.02)
    weighted = machine.letd_layers([100.0, 200.0])
    assert torch.equal(weighted.idd, tables.idd * letd) and torch.equal(weighted.variance, tables.variance)


def test_a_range_shifter_takes_away_its_depth() -> None:
    """LETd in the patient is that of the depth t + z in open air, for the layers that go through; the others keep theirs."""
    machine, energies, t = generic(), [110.0, 110.0], 45.0
    shifter = RangeShifter(t, 200.0)
    shifted = torch.tensor([True, False])
    dose, weighted = (made(energies, shifter, shifted) for made in (machine.layers, machine.letd_layers))
    assert torch.equal(weighted.variance, dose.variance) and torch.equal(weighted.fraction, dose.fraction)
    assert torch.equal(weighted.drift, dose.drift) and weighted.face == dose.face
    open_air = machine.layers(energies)
    deep = open_air.depth_step[0] * torch.arange(open_air.idd.shape[1], dtype=torch.float64)
    for i, off in ((0, t), (1, 0.0)):
        z = dose.depth_step[i] * torch.arange(dose.idd.shape[1], dtype=torch.float64)
        found, expected = weighted.idd[i] / dose.idd[i], np.interp((z + off).numpy(), deep.numpy(), machine.letd(energies)[i].numpy())
        seen = dose.idd[i] > 0.01 * dose.idd[i].max()
        # products and quotients of linear interpolations, on samples 0.05 mm apart
        assert found[seen].numpy() == pytest.approx(expected[seen.numpy()], rel=2e-3)
    assert float((weighted.idd[0] / dose.idd[0])[0]) > 1.2 * float((weighted.idd[1] / dose.idd[1])[0]), "slower behind it"


def test_a_files_own_letd_counts(shared: Path) -> None:
    """matRad's generic base data: their own table, and our formula beside it, which has another group's Monte Carlo to compare with."""
    machine = read_matrad_machine(shared / "data" / "matrad" / "protons_Generic.mat")
    assert machine.curves.letd is not None
    energies = machine.curves.energy[[10, 40, 97]]
    tables, own = machine.layers(energies), machine.letd(energies)
    for i in range(3):
        z = tables.depth_step[i] * torch.arange(tables.idd.shape[1], dtype=torch.float64)
        # at 5 mm: read off the file
        assert float(np.interp(5.0, z.numpy(), own[i].numpy())) == pytest.approx([1.214, 0.885, 0.809][i], rel=5e-3)
        formula = letd_curve(z, float(tables.r80[i]), straggling(z, tables.idd[i]))
        seen = (z > 10.0) & (tables.idd[i] > 0.05 * tables.idd[i].max())
        # codes differ by 10 to 20 % at the entrance, and their cuts at the end
        assert float((formula / own[i] - 1.0)[seen].abs().max()) < 0.18
        assert float((formula / own[i] - 1.0)[seen].abs().mean()) < 0.08


@pytest.mark.slow
def test_within_the_band_of_monte_carlo_codes(shared: Path) -> None:
    path = Path(__file__).resolve().parents[2] / "experiments" / "letd_check.py"
    spec = importlib.util.spec_from_file_location("letd_check", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    config = module.Config(data=str(shared / "data"))
    for plan in module.FIELDS:
        found = module.compare(config, plan)
        assert len(found.inside) > 150
        assert bool(found.inside.all()), f"{plan}: {int((~found.inside).sum())} depths outside"
