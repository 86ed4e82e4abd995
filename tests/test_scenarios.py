"""Uncertainty scenarios: the nine boundary ones of Xu et al. 2020, and what is refused."""

import pytest

from torchimpt.checks import InputError
from torchimpt.scenarios import NOMINAL, Scenario, boundary_scenarios


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
