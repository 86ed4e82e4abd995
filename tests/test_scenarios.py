"""Uncertainty scenarios: the nine boundary ones of Xu et al. 2020, grids, random ones, and what is refused."""

import pytest
import torch

from torchimpt.checks import InputError
from torchimpt.scenarios import NOMINAL, SETS, Scenario, boundary_scenarios, grid_21, grid_81, random_scenarios


def test_nine_boundary_scenarios():
    scenarios = boundary_scenarios(3.0, 3.5)
    assert len(scenarios) == 9 and scenarios[0] == NOMINAL
    assert len({s.name for s in scenarios}) == 9
    assert [s.range_scale for s in scenarios] == pytest.approx([1.0, 0.965, 1.035, *[1.0] * 6])
    shifts = [s.shift for s in scenarios]
    assert shifts[:3] == [(0.0, 0.0, 0.0)] * 3
    assert shifts[3:] == [(-3.0, 0, 0), (3.0, 0, 0), (0, -3.0, 0), (0, 3.0, 0), (0, 0, -3.0), (0, 0, 3.0)]


def test_names_say_what_they_are():
    names = [s.name for s in boundary_scenarios(2.5, 3.0)]
    assert names == ["nominal", "range-3%", "range+3%", "x-2.5mm", "x+2.5mm", "y-2.5mm", "y+2.5mm", "z-2.5mm", "z+2.5mm"]


@pytest.mark.parametrize(("setup", "range_percent", "count"), [(0.0, 0.0, 1), (3.0, 0.0, 7), (0.0, 3.0, 3), (1e-3, 1e-3, 9)])
def test_a_zero_leaves_its_scenarios_out(setup, range_percent, count):
    scenarios = boundary_scenarios(setup, range_percent)
    assert len(scenarios) == count and scenarios[0] == NOMINAL


def test_opposite_scenarios_mirror_each_other():
    scenarios = boundary_scenarios(4.2, 2.0)[1:]
    for a, b in zip(scenarios[::2], scenarios[1::2], strict=True):
        assert a.range_scale + b.range_scale == pytest.approx(2.0)
        assert [x + y for x, y in zip(a.shift, b.shift, strict=True)] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("arguments", [(-1.0, 3.0), (3.0, -1.0), (150.0, 3.0), (3.0, 60.0), (float("nan"), 3.0), (3.0, float("nan"))])
def test_absurd_uncertainties_are_refused(arguments):
    with pytest.raises(InputError, match="0 to 100 mm"):
        boundary_scenarios(*arguments)
    for make in SETS.values():
        with pytest.raises(InputError, match="0 to 100 mm"):
            make(*arguments)


def test_a_wrong_scenario_is_refused():
    with pytest.raises(InputError, match="shift"):
        Scenario("bad", shift=(1.0, 2.0))
    with pytest.raises(InputError, match="shift"):
        Scenario("bad", shift=(float("nan"), 0.0, 0.0))
    for scale in (0.0, -1.0, 11.0, float("nan")):
        with pytest.raises(InputError, match="range scale"):
            Scenario("bad", range_scale=scale)


def test_a_single_number_shifts_along_every_axis():
    assert Scenario("diagonal", shift=3.0).shift == (3.0, 3.0, 3.0)


@pytest.mark.parametrize(("make", "setups"), [(grid_21, 7), (grid_81, 27)])
def test_grids_are_every_setup_with_every_range(make, setups):
    scenarios = make(3.0, 4.0)
    assert len(scenarios) == 3 * setups == len({s.name for s in scenarios}) and scenarios[0] == NOMINAL
    shifts = {s.shift for s in scenarios}
    assert len(shifts) == setups and {size for shift in shifts for size in shift} == {-3.0, 0.0, 3.0}
    for shift in shifts:
        assert sorted(s.range_scale for s in scenarios if s.shift == shift) == pytest.approx([0.96, 1.0, 1.04])
    assert {(s.shift, s.range_scale) for s in boundary_scenarios(3.0, 4.0)} <= {(s.shift, s.range_scale) for s in scenarios}
    assert [s.name for s in make(0.0, 4.0)] == ["nominal", "range-4%", "range+4%"] and len(make(3.0, 0.0)) == setups


def test_random_scenarios_are_gaussian():
    """Of 4000 draws mean and standard deviation are within 5 of their own standard errors; 95.4 % of a normal lie within two."""
    scenarios = random_scenarios(3.0, 4.0, 4000, seed=2)
    assert scenarios[0] == NOMINAL and len(scenarios) == 4001 == len({s.name for s in scenarios})
    errors = torch.tensor([[*s.shift, 100 * (s.range_scale - 1)] for s in scenarios[1:]], dtype=torch.float64)
    expected = torch.tensor([1.5, 1.5, 1.5, 2.0], dtype=torch.float64)
    assert bool((errors.mean(0).abs() < 5 * expected / 4000**0.5).all())
    assert bool(((errors.std(0) / expected - 1).abs() < 5 / 8000**0.5).all())
    assert float((errors.abs() < 2 * expected).double().mean()) == pytest.approx(0.9545, abs=5 * (0.0434 / 16000) ** 0.5)
    assert bool((torch.corrcoef(errors.T) - torch.eye(4)).abs().max() < 5 / 4000**0.5)


def test_random_scenarios_by_seed_and_sigmas():
    assert random_scenarios(3.0, 4.0, 5, 2) == random_scenarios(3.0, 4.0, 9, 2)[:6] != random_scenarios(3.0, 4.0, 5, 3)
    one, two = (random_scenarios(3.0, 4.0, 5, 2, sigmas)[1] for sigmas in (1.0, 2.0))
    # drawn to a hundredth of a mm
    assert one.shift == pytest.approx([2 * size for size in two.shift], abs=0.0151)
    assert two.name.startswith("random1/x") and f"x{two.shift[0]:+.2f}mm" in two.name
    for samples, sigmas in ((0, 2.0), (5, 0.0), (5, float("inf"))):
        with pytest.raises(InputError, match="one sample or more and a positive number of sigmas"):
            random_scenarios(3.0, 3.0, samples, 1, sigmas)
