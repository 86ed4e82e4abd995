"""The sum over scenarios: Eq. 4 of Xu et al. 2020, its gradient, its ray, and its use as a torch loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from torchimpt.checks import InputError
from torchimpt.objectives import BoundObjective, BoundTerm, MaxDose, MaxDVH, MeanDose, MinDose, OverValues, RobustObjective, Sum
from torchimpt.quantities import ConstantRBE


@pytest.fixture
def bound() -> BoundObjective:
    target, organ = torch.arange(0, 20), torch.arange(15, 40)
    return BoundObjective(
        [
            BoundTerm(MinDose("PTV", 60.0, 3.0), target, 1 / 20),
            BoundTerm(MaxDose("PTV", 64.0), target, 1 / 20),
            BoundTerm(MaxDose("OAR", 30.0), organ, 1 / 25),
            BoundTerm(MaxDVH("OAR", 20.0, volume_percent=30), organ, 1 / 25),
            BoundTerm(MeanDose("OAR", 15.0), organ, 1 / 25),
        ],
        50,
    )


@pytest.fixture
def doses(generator) -> torch.Tensor:
    return 80 * torch.rand(9, 50, dtype=torch.float64, generator=generator)


def test_plain_sum_over_scenarios(bound, doses) -> None:
    robust = RobustObjective(bound)
    assert float(robust.value(doses)) == pytest.approx(sum(float(bound.value(d)) for d in doses), rel=1e-14)
    value, grads = robust.value_and_grad(doses)
    assert value == robust.value(doses)
    for dose, grad in zip(doses, grads, strict=True):
        torch.testing.assert_close(grad, bound.value_and_grad(dose)[1], rtol=0, atol=1e-12)


def test_weights_of_scenarios(bound, doses) -> None:
    weights = [1.0, 0.0, 0.5, 2.0, 1.0, 1.0, 0.0, 1.0, 3.0]
    robust = RobustObjective(bound, Sum(weights))
    assert float(robust.value(doses)) == pytest.approx(
        sum(w * float(bound.value(d)) for w, d in zip(weights, doses, strict=True)), rel=1e-14
    )
    assert not robust.value_and_grad(doses)[1][[1, 6]].any()
    terms = robust.terms(doses)
    assert len(terms) == 9 * 5 and {t["scenario"] for t in terms} == set(range(9))
    assert sum(t["value"] for t in terms) == pytest.approx(float(robust.value(doses)), rel=1e-13)


def test_gradient(bound, doses) -> None:
    assert torch.autograd.gradcheck(RobustObjective(bound, Sum(range(9))), (doses.requires_grad_(),), eps=1e-3, atol=1e-6, rtol=1e-7)


def test_ray_against_finite_differences(bound, doses, generator) -> None:
    robust = RobustObjective(bound, Sum(range(9)))
    rates = torch.randn(9, 50, dtype=torch.float64, generator=generator)
    ray, step = robust.along(doses, rates), 1e-5
    for length in (0.0, 1.5):
        value, slope = ray(length)
        assert value == pytest.approx(float(robust.value(doses + length * rates)), rel=1e-13)
        up, down = (float(robust.value(doses + (length + h) * rates)) for h in (step, -step))
        assert slope == pytest.approx((up - down) / (2 * step), rel=1e-5)


def test_as_a_loss_of_weights(bound, generator) -> None:
    matrix = torch.rand(9, 50, 6, dtype=torch.float64, generator=generator)
    x = torch.rand(6, dtype=torch.float64, generator=generator).mul_(20).requires_grad_()
    robust = RobustObjective(bound)
    robust(matrix @ x).backward()
    residual = robust.value_and_grad(matrix @ x.detach())[1]
    torch.testing.assert_close(x.grad, torch.einsum("kvs,kv->s", matrix, residual))


def test_wrong_weights_and_doses_say_so(bound, doses) -> None:
    for weights in ([-1.0] * 9, [0.0] * 9, [float("nan")] * 9):
        with pytest.raises(InputError, match="scenario weights must be zero or more"):
            RobustObjective(bound, Sum(weights))
    with pytest.raises(InputError, match="8 scenario weights and 9 scenarios"):
        RobustObjective(bound, Sum([1.0] * 8)).value(doses)
    with pytest.raises(InputError, match="stacked as"):
        RobustObjective(bound).value(doses[0])


@dataclass(frozen=True)
class Worst(OverValues):
    """Minimax over scenarios: a mode that is not the sum."""

    name: ClassVar[str] = "worst"

    def combine(self, values):
        return values.max(), (values == values.max()).to(values)


def test_a_mode_over_values_has_gradient_line_and_shares(bound, doses, generator) -> None:
    robust = RobustObjective(bound, Worst())
    values = bound.value(doses)
    assert robust.value(doses) == values.max() != values.sum()
    assert torch.autograd.gradcheck(robust, (doses.clone().requires_grad_(),), eps=1e-3, atol=1e-6, rtol=1e-7)
    rates = torch.randn(9, 50, dtype=torch.float64, generator=generator)
    ray = robust.along(doses, rates)
    for length in (0.0, 1.5, 40.0):
        value, grad = robust.value_and_grad(doses + length * rates)
        assert ray(length) == pytest.approx((float(value), float((grad * rates).sum())), rel=1e-12)
    assert sum(term["value"] for term in robust.terms(doses)) == pytest.approx(float(values.max()), rel=1e-13)


def test_a_term_may_have_a_mode_of_its_own(doses, generator) -> None:
    """One group of terms is summed, one takes its worst scenario; value, gradient, line and shares are those of the two together."""
    target, organ = torch.arange(0, 20), torch.arange(15, 40)
    own = BoundTerm(MaxDose("OAR", 30.0, mode=Worst()), organ, 1.0)
    common = BoundTerm(MinDose("PTV", 60.0, 3.0), target, 0.5)
    robust = RobustObjective(BoundObjective([own, common], 50))
    alone = [BoundObjective([b], 50).value(doses) for b in (own, common)]
    assert float(robust.value(doses)) == pytest.approx(float(alone[0].max() + alone[1].sum()), rel=1e-14)
    assert torch.autograd.gradcheck(robust, (doses.clone().requires_grad_(),), eps=1e-3, atol=1e-6, rtol=1e-7)
    rates = torch.randn(9, 50, dtype=torch.float64, generator=generator)
    value, grad = robust.value_and_grad(doses + 2.0 * rates)
    assert robust.along(doses, rates)(2.0) == pytest.approx((float(value), float((grad * rates).sum())), rel=1e-12)
    rows = robust.terms(doses)
    assert [row["roi"] for row in rows[:2]] == ["OAR", "PTV"]
    # the shares are summed in another order than the value
    assert sum(row["value"] for row in rows if row["roi"] == "OAR") == pytest.approx(float(alone[0].max()), rel=1e-14)


@dataclass(frozen=True)
class Squared:
    """A quantity that is not linear."""

    linear = False

    def value(self, dose):
        return dose.square() / 60.0

    def pull(self, dose, residual):
        return 2.0 * dose * residual / 60.0

    def slope(self, dose):
        return 2.0 * dose / 60.0


@pytest.mark.parametrize("quantity", [ConstantRBE(1.1), Squared()], ids=["factor", "square"])
def test_terms_ask_about_the_quantity(bound, doses, generator, quantity) -> None:
    robust = RobustObjective(bound, quantity=quantity)
    assert float(robust.value(doses)) == pytest.approx(float(bound.value(quantity.value(doses)).sum()), rel=1e-14)
    assert torch.autograd.gradcheck(robust, (doses.clone().requires_grad_(),), eps=1e-3, atol=1e-5, rtol=1e-6)
    rates = torch.randn(9, 50, dtype=torch.float64, generator=generator)
    value, grad = robust.value_and_grad(doses + 1.5 * rates)
    assert robust.along(doses, rates)(1.5) == pytest.approx((float(value), float((grad * rates).sum())), rel=1e-12)
    torch.testing.assert_close(quantity.pull(doses, torch.ones_like(doses)), quantity.slope(doses))


def test_curvature_is_half_the_second_derivative_where_all_is_violated(bound) -> None:
    """Of a minimum dose at no dose, from differences of the gradient."""
    low = torch.zeros(1, 50, dtype=torch.float64)
    minimum = RobustObjective(BoundObjective([bound.bound_terms[0]], 50), quantity=ConstantRBE(1.2))
    step = 1e-3
    diagonal = [
        (minimum.value_and_grad(low + step * e)[1] - minimum.value_and_grad(low)[1])[0, i] / step for i, e in enumerate(torch.eye(50))
    ]
    torch.testing.assert_close(torch.stack(diagonal).double(), 2.0 * minimum.curvature(low[0]), rtol=1e-6, atol=1e-9)
