"""Voxel means: running means of curves in closed form, and the integral of one layer on coarse grids at any angle."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import torchimpt as ti
from torchimpt.dose.scenarios import scenario_operators
from torchimpt.dose.voxel_mean import widened
from torchimpt.geometry import Grid
from torchimpt.patient import Patient
from torchimpt.scenarios import NOMINAL, Scenario

MACHINE = ti.machine.generic()


def test_a_voxel_widens_the_spot_by_its_second_moment():
    tables = MACHINE.layers([90.0, 150.0])
    beam = ti.Beam(0.0, isocenter=(0.0, 0.0, 0.0))
    means = widened(tables, (2.0, 4.0, 3.0), beam)
    assert not means.round and means.optics_variance_y is not None
    torch.testing.assert_close(means.optics_variance, tables.optics_variance + 4.0 / 12, rtol=1e-12, atol=0)
    torch.testing.assert_close(means.optics_variance_y, tables.optics_variance + 9.0 / 12, rtol=1e-12, atol=0)
    tilted = ti.Beam(33.0, 20.0, isocenter=(0.0, 0.0, 0.0))
    assert widened(tables, (3.0, 3.0, 3.0), tilted).round, "a cube has the same second moment in every direction"


@pytest.mark.parametrize("scale", [1.0, 1.03])
def test_along_an_axis_the_dose_is_the_mean_over_the_voxel(scale):
    """Against 41 thin voxels in the place of each."""
    beam = ti.Beam(0.0, isocenter=(0.0, 0.0, 0.0))
    grid, thin = (Grid((1, n, 1), (400.0, 120.0 / n, 400.0), (0.0, -60.0 + 60.0 / n, 0.0)) for n in (24, 24 * 41))
    spots = ti.Spots.from_columns([beam], *(torch.tensor(v) for v in ([0, 0], [80.0, 100.0], [0.0, 0.0], [0.0, 0.0], [2.0, 1.0])))
    scenario = Scenario("range", range_scale=scale)
    dose = []
    for on, means in ((grid, True), (thin, False)):
        patient = Patient(torch.zeros(on.shape), on)
        options = {"dtype": torch.float64, "means": means}
        operator = next(scenario_operators(patient, MACHINE, spots, torch.arange(on.n_voxels), (scenario,), **options))
        if means:  # across it is not the point
            tables = [replace(t, falloff=t.falloff, amplitude=t.amplitude / t.falloff) for t in operator.tables]
        else:
            tables = [replace(t, falloff=t.falloff, amplitude=t.amplitude / t.falloff) for t in operator.tables]
        (table,) = tables
        curve = torch.zeros(2, on.n_voxels, dtype=torch.float64)
        curve[:, table.order] = table.amplitude.sum(0)
        dose.append(curve)
    expected = dose[1].view(2, 24, 41).mean(2)
    torch.testing.assert_close(dose[0], expected, rtol=0, atol=3e-3 * float(expected.max()))
    assert float((dose[0] - dose[1][:, 20::41]).abs().max()) > 0.05 * float(expected.max()), "a middle is not the mean"


def water(spacing: float) -> Patient:
    """A tank of 120 x 120 x 120 mm."""
    n = math.ceil(120.0 / spacing)
    middle = -0.5 * (n - 1) * spacing
    grid = Grid((n, n, n), (spacing,) * 3, (middle, middle + 0.37 * spacing, middle))
    return Patient(torch.zeros(grid.shape), grid)


def integral(spacing: float, gantry: float, couch: float, means: bool, aside: float = -20.0) -> float:
    """Sum of one layer's dose over the grid, times the voxel, over what the curve says."""
    # no spot enters where two faces meet: within 6 mm of an edge 5 mm grids are off by 1 %
    patient, beam = water(spacing), ti.Beam(gantry, couch, (aside, 0.0, 0.0))
    energy, n = 85.0, 4
    column = torch.zeros(n)
    spots = ti.Spots.from_columns([beam], column.long(), column.double() + energy, 4 * torch.arange(n) - 6.0, column, column + 1.0)
    voxels = torch.arange(patient.grid.n_voxels)
    operator = next(scenario_operators(patient, MACHINE, spots, voxels, (NOMINAL,), dtype=torch.float64, means=means))
    dose = operator.dose(spots.position.detach().double(), spots.weight.detach().double())
    tables = MACHINE.layers([energy])
    whole = n * float(tables.depth_step[0] * (tables.idd[0].sum() - 0.5 * tables.idd[0, 0]))
    return float(dose.sum()) * spacing**3 / whole


ANGLES = [(0.0, 0.0), (90.0, 0.0), (45.0, 0.0), (26.565, 0.0), (17.0, 0.0), (60.0, 33.0)]


@pytest.mark.parametrize("spacing", [1.5, 3.0, 4.0, 5.0])
@pytest.mark.parametrize(("gantry", "couch"), ANGLES)
def test_the_integral_of_a_layer_is_kept(spacing, gantry, couch):
    """Within the issue's 0.5 %; a peak 2.2 mm wide at 80 %."""
    aside = 25.0 if couch else -20.0
    assert integral(spacing, gantry, couch, True, aside) == pytest.approx(1.0, abs=5e-3)


def test_in_the_middles_it_is_not():
    assert max(abs(integral(spacing, 0.0, 0.0, means=False) - 1.0) for spacing in (3.0, 4.0, 5.0)) > 0.01
