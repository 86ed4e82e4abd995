"""Beta rules by hand, the Wolfe search, and the exact minimum on a line."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from torchimpt.checks import InputError
from torchimpt.optim import beta
from torchimpt.optim.line_search import DELTA, THETA, Trial, line_minimum, wolfe


def test_beta_rules_by_hand(generator) -> None:
    g_old, g, d = torch.randn(3, 5, dtype=torch.float64, generator=generator)
    y = g - g_old
    products = beta.Products(float(g @ g), float(g_old @ g_old), float(g @ y), float(d @ y))
    assert beta.dy(products) == pytest.approx(float((g @ g) / (d @ y)) if d @ y > 0 else 0.0)
    assert beta.hs(products) == pytest.approx(float((g @ y) / (d @ y)) if d @ y > 0 else 0.0)
    assert beta.fr(products) == pytest.approx(float((g @ g) / (g_old @ g_old)))
    assert beta.pr_plus(products) == pytest.approx(max(0.0, float((g @ y) / (g_old @ g_old))))


@pytest.mark.parametrize(("gg", "gy", "expected"), [(3.0, 1.0, 0.5), (1.0, 3.0, 0.5), (1.0, -3.0, 0.0)])
def test_dyhs_is_the_smaller_and_not_negative(gg, gy, expected) -> None:
    assert beta.dyhs(beta.Products(gg, 1.0, gy, 2.0)) == expected


def test_rules_restart_where_their_denominator_is_not_positive() -> None:
    for rule in beta.RULES.values():
        assert rule(beta.Products(1.0, 0.0, 1.0, 0.0)) == 0.0
    assert beta.dyhs(beta.Products(1.0, 1.0, 1.0, -2.0)) == 0.0


def test_unknown_rule() -> None:
    with pytest.raises(InputError, match=r"beta must be one of dyhs.*did you mean 'dyhs'"):
        beta.rule("dyh")


CURVES = {
    "quadratic": (lambda t: (t - 3) ** 2, lambda t: 2 * (t - 3)),
    "quartic": (lambda t: (t - 3) ** 4, lambda t: 4 * (t - 3) ** 3),
    "rational": (lambda t: -t / (t * t + 2), lambda t: (t * t - 2) / (t * t + 2) ** 2),
    "far": (lambda t: math.exp(-t / 1000) + t / 1e6, lambda t: -math.exp(-t / 1000) / 1000 + 1e-6),
    "barrier": (lambda t: -math.log(2 - t) - 3 * t if t < 2 else math.nan, lambda t: 1 / (2 - t) - 3 if t < 2 else math.nan),
}


@pytest.mark.parametrize("first", [1e-4, 0.5, 7.0, 1e4])
@pytest.mark.parametrize("name", CURVES)
def test_wolfe_conditions_hold(name, first) -> None:
    f, s = CURVES[name]
    trial, n_trials = wolfe(lambda t: Trial(t, f(t), s(t), s(0.0), None), f(0.0), first)
    assert trial.value <= f(0.0) + DELTA * trial.length * s(0.0)
    assert trial.slope >= THETA * s(0.0)
    assert n_trials <= 20


def test_wolfe_gives_up_on_a_path_that_rises() -> None:
    trial, n_trials = wolfe(lambda t: Trial(t, t, 1.0, -1.0, None), 0.0, 1.0)
    assert trial is None and n_trials <= 25


def test_wolfe_takes_the_lowest_where_a_corner_ends_the_path() -> None:
    # Beyond t = 1 the projected path stands still, and its slope never rises to theta times the start slope.
    def path(t: float) -> Trial:
        return Trial(t, -min(t, 1.0), -1.0 / max(t, 1.0), -1.0 / max(t, 1.0), None)

    trial, _ = wolfe(path, 0.0, 0.3)
    assert trial.value == -1.0


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.floats(-50, 50), st.floats(-3, 3)), min_size=1, max_size=30), st.floats(1e-3, 1e3))
@example([(0.0, 0.01171875), (0.25, -2.0)], 1.0)  # a piece nearly flat beside a steep one
def test_line_minimum_of_squared_hinges(pieces, first) -> None:
    """Against the root found by sorting the break points, on which the slope is linear."""
    start, rate = (np.array(column) for column in zip(*pieces, strict=True))
    rate[np.abs(rate) < 1e-2] = 0.0

    def line(t: float) -> tuple[float, float]:
        excess = np.maximum(0.0, start + t * rate)
        return float(excess @ excess), float(2 * excess @ rate)

    slope0 = line(0.0)[1]
    if slope0 >= -1e-6:
        return
    moving = rate != 0
    breaks = np.sort(np.concatenate([[0.0], -start[moving] / rate[moving]]))
    breaks = breaks[breaks >= 0]
    breaks = np.append(breaks, breaks[-1] + 1e6)
    slopes = np.array([line(t)[1] for t in breaks])
    found = line_minimum(line, slope0, first, precision=1e-6)
    assert abs(line(found)[1]) <= 1e-6 * abs(slope0)
    after = int(np.argmax(slopes >= 0)) if (slopes >= 0).any() else len(breaks) - 1
    best = min(line(t)[0] for t in np.linspace(breaks[max(after - 1, 0)], breaks[after], 200))
    assert line(found)[0] <= best + 1e-6 * (1 + abs(slope0) * found)


def test_line_minimum_stops_at_the_longest() -> None:
    assert line_minimum(lambda t: ((t - 3) ** 2, 2 * (t - 3)), -6.0, 0.5, longest=1.0) == 1.0
    assert line_minimum(lambda t: ((t - 3) ** 2, 2 * (t - 3)), -6.0, 0.5, longest=9.0) == pytest.approx(3.0, rel=1e-6)


def test_line_minimum_of_a_slope_that_jumps() -> None:
    # A dose-volume goal's slope can fall at a point where voxels trade places: the sign change behind it is found.
    found = line_minimum(lambda t: (0.0, -1.0 if t < 1 else (-2.0 if t < 2 else 1.0)), -1.0, 0.1)
    assert found == pytest.approx(2.0, rel=1e-9)
