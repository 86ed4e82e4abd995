"""Robust modes: values against plain torch, gradients and rays, and how far smooth forms are from the maxima they stand for."""

from __future__ import annotations

import math

import pytest
import torch

from torchimpt.checks import InputError
from torchimpt.objectives import (
    GEUD,
    MODES,
    BoundObjective,
    BoundTerm,
    Composite,
    CVaR,
    Expected,
    MaxDose,
    MaxDVH,
    MeanDose,
    MinDose,
    MinDVH,
    Nominal,
    Objectivewise,
    Percentile,
    RobustObjective,
    Sum,
    Term,
    UniformDose,
    Voxelwise,
    VoxelwiseInvariant,
)

K = 7
TARGET, ORGAN = torch.arange(0, 20), torch.arange(15, 40)
WEIGHTS = (3.0, 1.0, 1.0, 0.0, 2.0, 1.0, 1.0)
SMOOTH = [
    Composite(8.0),
    Objectivewise(8.0),
    Voxelwise(2.0),
    CVaR(level=0.7),
    CVaR(WEIGHTS, level=0.4, smoothing=0.3),
    Percentile(percent=60.0),
]
OTHERS = [Nominal(), Sum(WEIGHTS), Expected(), Expected(WEIGHTS), VoxelwiseInvariant(0.7)]
KINKED = [mode.exact() for mode in (*SMOOTH, Percentile(WEIGHTS, percent=60.0))]
BY_VALUES = [mode for mode in (*SMOOTH, *OTHERS, *KINKED) if not isinstance(mode, (Objectivewise, Voxelwise, VoxelwiseInvariant))]


@pytest.fixture
def bound() -> BoundObjective:
    volume = torch.linspace(0.5, 1.5, 25, dtype=torch.float64)
    return BoundObjective(
        [
            BoundTerm(MinDose("PTV", 60.0, 3.0), TARGET, 1 / 20),
            BoundTerm(UniformDose("PTV", 64.0), TARGET, 1 / 20),
            BoundTerm(MinDVH("PTV", 62.0, volume_percent=90), TARGET, 1 / 20),
            BoundTerm(MaxDose("OAR", 30.0), ORGAN, 1 / 25, volume),
            BoundTerm(MaxDVH("OAR", 20.0, volume_percent=30), ORGAN, 1 / 25, volume),
            BoundTerm(MeanDose("OAR", 15.0), ORGAN, 1 / 25, volume),
            BoundTerm(GEUD("OAR", 25.0, a=3.0), ORGAN, 1 / 25),
        ],
        50,
    )


@pytest.fixture
def doses(generator) -> torch.Tensor:
    return 80 * torch.rand(K, 50, dtype=torch.float64, generator=generator)


def ids(mode) -> str:
    return f"{mode.name}-{'exact' if mode.exact() == mode else 'smooth'}"


def by_autograd(mode, values: torch.Tensor) -> torch.Tensor:
    """The modes that are functions of the values, exact, from their definitions."""
    p = torch.ones(K, dtype=torch.float64) if getattr(mode, "weights", None) is None else torch.tensor(mode.weights, dtype=torch.float64)
    match mode:
        case Nominal():
            return values[0]
        case Sum():
            return (p * values).sum()
        case Expected():
            return (p * values).sum() / p.sum()
        case Composite():
            return values.max()
        case CVaR():
            # the least of Rockafellar and Uryasev's function is at one of the values
            share = p / p.sum() / (1.0 - mode.level)
            return torch.stack([t + (share * (values - t).clamp_min(0)).sum() for t in values]).min()
        case Percentile():
            order = values.argsort()
            reached = (p[order] / p.sum()).cumsum(0) >= mode.percent / 100.0 - 1e-12
            return values[order][reached][0]
    raise AssertionError(mode)


@pytest.mark.parametrize("mode", [mode for mode in BY_VALUES if mode.exact() == mode], ids=ids)
def test_functions_of_the_values_are_their_definitions(bound, doses, mode) -> None:
    robust = RobustObjective(bound, mode)
    doses.requires_grad_()
    expected = by_autograd(mode, torch.stack([bound(d) for d in doses]))
    (slope,) = torch.autograd.grad(expected, doses)
    value, grad = robust.value_and_grad(doses.detach())
    assert float(value) == pytest.approx(float(expected.detach()), rel=1e-12)
    torch.testing.assert_close(grad, slope, rtol=1e-10, atol=1e-10)


def test_objectivewise_is_the_sum_of_each_terms_worst(bound, doses) -> None:
    exact = RobustObjective(bound, Objectivewise(math.inf))
    worst = sum(float(b.value(doses).max()) for b in bound.bound_terms)
    assert float(exact.value(doses)) == pytest.approx(worst, rel=1e-13)
    assert worst > float(RobustObjective(bound, Composite(math.inf)).value(doses))


def test_voxelwise_takes_the_coldest_and_the_hottest_dose(bound, doses) -> None:
    cold, hot = doses.amin(0), doses.amax(0)
    lower = [bound.bound_terms[0], BoundTerm(MinDose("PTV", 64.0), TARGET, 1 / 20), bound.bound_terms[2]]
    upper = [BoundTerm(MaxDose("PTV", 64.0), TARGET, 1 / 20), *bound.bound_terms[3:]]
    expected = float(BoundObjective(lower, 50).value(cold)) + float(BoundObjective(upper, 50).value(hot))
    assert float(RobustObjective(bound, Voxelwise(0.0)).value(doses)) == pytest.approx(expected, rel=1e-13)


def test_invariant_is_the_expected_value_of_squares(doses) -> None:
    uniform = BoundObjective([BoundTerm(UniformDose("PTV", 64.0, 2.0), TARGET, 1 / 20)], 50)
    values = [float(RobustObjective(uniform, mode).value(doses)) for mode in (VoxelwiseInvariant(), Expected())]
    assert values[0] == pytest.approx(values[1], rel=1e-13)


def test_invariant_pays_for_variance_where_no_level_is_violated(doses) -> None:
    limit = BoundTerm(MaxDose("OAR", 100.0, 3.0), ORGAN, 1 / 25)
    robust = RobustObjective(BoundObjective([limit], 50), VoxelwiseInvariant(0.7))
    assert float(robust.value(doses)) == pytest.approx(0.7 * 3.0 * float(doses[:, ORGAN].var(0, correction=0).mean()), rel=1e-12)


@pytest.mark.parametrize("mode", [*SMOOTH, *OTHERS, *KINKED], ids=ids)
def test_gradient_ray_and_shares(bound, doses, generator, mode) -> None:
    """Against finite differences, autograd of the loss, and the whole. No voxel and no scenario tie, so kinks are no matter."""
    robust = RobustObjective(bound, mode)
    assert torch.autograd.gradcheck(robust, (doses.clone().requires_grad_(),), eps=1e-4, atol=1e-5, rtol=1e-6)
    rates = torch.randn(K, 50, dtype=torch.float64, generator=generator)
    ray = robust.along(doses, rates)
    for length in (0.0, 1.5, 20.0):
        value, grad = robust.value_and_grad(doses + length * rates)
        assert ray(length) == pytest.approx((float(value), float((grad * rates).sum())), rel=1e-10)
    rows = robust.terms(doses)
    assert len(rows) == K * len(bound.bound_terms)
    assert sum(row["value"] for row in rows) == pytest.approx(float(robust.value(doses)), rel=1e-12)


@pytest.mark.parametrize("mode", [*SMOOTH, *OTHERS], ids=ids)
def test_alike_in_float32(bound, doses, mode) -> None:
    robust = RobustObjective(bound, mode)
    value, grad = robust.value_and_grad(doses)
    rough, way = robust.value_and_grad(doses.float())
    assert way.dtype == torch.float32 and float(rough) == pytest.approx(float(value), rel=1e-5)
    torch.testing.assert_close(way.double(), grad, rtol=1e-3, atol=1e-4 * float(grad.abs().max()))


@pytest.mark.parametrize("mode", [*SMOOTH, *OTHERS, *KINKED], ids=ids)
def test_no_dose_and_no_violation(bound, mode) -> None:
    """Where all scenarios tie, and where nothing is left to pay: no NaN."""
    for level in (0.0, 64.0):
        value, grad = RobustObjective(bound, mode).value_and_grad(torch.full((K, 50), level, dtype=torch.float64))
        assert bool(torch.isfinite(value)) and bool(torch.isfinite(grad).all())
    alone = BoundObjective([BoundTerm(MaxDose("OAR", 30.0), ORGAN, 1.0)], 50)
    value, grad = RobustObjective(alone, mode).value_and_grad(torch.full((K, 50), 20.0, dtype=torch.float64))
    assert float(value) == 0.0 and not grad.any()


def test_how_far_smooth_forms_are_from_exact(bound, generator) -> None:
    """The bounds that their docstrings give, with scenarios that differ much, little, and not at all."""
    for spread in (0.0, 1e-3, 1.0, 80.0):
        doses = 40 + spread * (torch.rand(K, 50, dtype=torch.float64, generator=generator) - 0.5)
        values = bound.value(doses)
        mean = float(values.mean())
        for power in (1.0, 8.0, 20.0):
            robust = RobustObjective(bound, Composite(power))
            exact = float(robust.exact_value(doses))
            assert exact == float(values.max())
            assert exact * (1 - 1e-12) <= float(robust.value(doses)) <= exact * K ** (1 / power) * (1 + 1e-12)
        for level in (0.1, 0.5, 0.9):
            robust = RobustObjective(bound, CVaR(level=level, smoothing=0.2))
            exact, smooth = float(robust.exact_value(doses)), float(robust.value(doses))
            assert exact - 1e-9 <= smooth <= exact + 0.1 * mean + 1e-9
            percentile = Percentile(percent=100 * level, window_percent=20.0, smoothing=0.2)
            low, high = (
                Percentile(percent=min(max(100 * level + side, 1e-6), 100 - 1e-6)).exact().combine(values)[0] for side in (-10, 10)
            )
            assert float(low) - 0.125 * mean - 1e-9 <= float(percentile.combine(values)[0]) <= float(high) + 0.125 * mean + 1e-9
        for side in (-1.0, 1.0):
            smooth, weights = Voxelwise(0.1).worst(doses, side)
            exact, _ = Voxelwise(0.0).worst(doses, side)
            over = side * (smooth - exact)
            assert bool((over >= -1e-12).all()) and bool((over <= 0.1 * math.log(K) + 1e-12).all())
            torch.testing.assert_close(weights.sum(0), torch.ones(50, dtype=torch.float64))


def test_cvar_runs_from_the_mean_to_the_maximum(bound, doses) -> None:
    values = bound.value(doses)
    found = [float(CVaR(level=level, smoothing=0.0).combine(values)[0]) for level in (1e-9, 0.3, 0.6, 1 - 1e-9)]
    assert found == sorted(found)
    assert found[0] == pytest.approx(float(values.mean()), rel=1e-8) and found[-1] == pytest.approx(float(values.max()), rel=1e-8)
    # the two worst of seven, the second in part
    first, second = values.sort(descending=True).values[:2]
    assert float(CVaR(level=0.8, smoothing=0.0).combine(values)[0]) == pytest.approx(float((first + 0.4 * second) / 1.4), rel=1e-12)


def test_a_scenario_of_no_weight_counts_nowhere(bound, doses) -> None:
    for mode in (Sum(WEIGHTS), Expected(WEIGHTS), CVaR(WEIGHTS, level=0.5), Percentile(WEIGHTS, percent=50.0)):
        value, grad = RobustObjective(bound, mode).value_and_grad(doses)
        other = doses.clone()
        other[3] = 500.0
        assert float(RobustObjective(bound, mode).value(other)) == pytest.approx(float(value), rel=1e-12) and not grad[3].any()


def test_terms_apart_keep_their_order_and_modes(bound, doses) -> None:
    """Objectivewise for the plan, one term nominal, one summed: each row of the report is its term's own."""
    own = [
        BoundTerm(MinDose("PTV", 60.0, 3.0), TARGET, 0.5),
        BoundTerm(MaxDose("OAR", 30.0, mode=Nominal()), ORGAN, 1.0),
        BoundTerm(MeanDose("OAR", 15.0), ORGAN, 1.0),
        BoundTerm(MaxDose("PTV", 64.0, mode=Sum()), TARGET, 1.0),
    ]
    robust = RobustObjective(BoundObjective(own, 50), Objectivewise(math.inf))
    values = [b.value(doses) for b in own]
    expected = [values[0].max(), values[1][0], values[2].max(), values[3].sum()]
    rows = robust.terms(doses)
    for i, (b, value) in enumerate(zip(own, expected, strict=True)):
        mine = rows[i :: len(own)]
        assert {(row["roi"], row["kind"]) for row in mine} == {(b.term.roi, b.term.kind)}
        assert sum(row["value"] for row in mine) == pytest.approx(float(value), rel=1e-13)
    assert float(robust.value(doses)) == pytest.approx(float(sum(expected)), rel=1e-13)
    assert [mode.name for mode in robust.modes] == ["objectivewise", "nominal", "sum"] and not robust.smoothed


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *((lambda level=level: CVaR(level=level), "cvar: level must lie between 0 and 1") for level in (0.0, 1.0, -0.1, 95.0, math.nan)),
        *((lambda at=at: Percentile(percent=at), "percent must lie between 0 and 100") for at in (0.0, 100.0, math.nan)),
        (lambda: Percentile(percent=50.0, window_percent=-1.0), "window_percent must be 0 to 100"),
        (lambda: CVaR(level=0.5, smoothing=-0.1), "cvar: smoothing must be zero"),
        (lambda: Percentile(percent=50.0, smoothing=math.nan), "percentile: smoothing must be zero"),
        (lambda: Composite(0.5), "composite: power must be 1"),
        (lambda: Objectivewise(math.nan), "objectivewise: power must be 1"),
        (lambda: Voxelwise(-0.1), "voxelwise: smoothing_gy must be zero"),
        (lambda: VoxelwiseInvariant(-1.0), "voxelwise_invariant: variance must be zero"),
        (lambda: CVaR([1.0, -1.0], level=0.5), "scenario weights must be zero or more"),
        (lambda: Expected([0.0, 0.0]), "scenario weights must be zero or more"),
    ],
)
def test_wrong_parameters_say_so(make, message) -> None:
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("make", [Sum, Expected, lambda w: CVaR(w, level=0.5), lambda w: Percentile(w, percent=50.0)])
def test_weights_of_the_wrong_number(bound, doses, make) -> None:
    with pytest.raises(InputError, match="6 scenario weights and 7 scenarios; give one weight for each"):
        RobustObjective(bound, make([1.0] * 6)).value(doses)


def test_voxelwise_asks_for_the_side_of_terms_it_does_not_know(doses) -> None:
    class Odd(Term):
        kind = "odd"

    robust = RobustObjective(BoundObjective([BoundTerm(Odd("PTV", 60.0), TARGET, 1.0)], 50), Voxelwise())
    with pytest.raises(InputError, match="objective odd of 'PTV' does not say whether it is of under-dose or over-dose"):
        robust.value(doses)


def test_every_mode_is_here() -> None:
    assert {mode.name for mode in (*SMOOTH, *OTHERS)} == set(MODES)
