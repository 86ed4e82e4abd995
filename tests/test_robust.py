"""The sum over scenarios: Eq. 4 of Xu et al. 2020, its gradient, its ray, and its use as a torch loss."""

from __future__ import annotations

import pytest
import torch

from torchimpt.bound import BoundObjective, BoundTerm
from torchimpt.checks import InputError
from torchimpt.objectives import MaxDose, MaxDVH, MeanDose, MinDose
from torchimpt.robust import RobustObjective


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
    robust = RobustObjective(bound, weights)
    assert float(robust.value(doses)) == pytest.approx(
        sum(w * float(bound.value(d)) for w, d in zip(weights, doses, strict=True)), rel=1e-14
    )
    assert not robust.value_and_grad(doses)[1][[1, 6]].any()
    terms = robust.terms(doses)
    assert len(terms) == 9 * 5 and {t["scenario"] for t in terms} == set(range(9))
    assert sum(t["value"] for t in terms) == pytest.approx(float(robust.value(doses)), rel=1e-13)


def test_gradient(bound, doses) -> None:
    assert torch.autograd.gradcheck(RobustObjective(bound, range(9)), (doses.requires_grad_(),), eps=1e-3, atol=1e-6, rtol=1e-7)


def test_ray_against_finite_differences(bound, doses, generator) -> None:
    robust = RobustObjective(bound, range(9))
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
            RobustObjective(bound, weights)
    with pytest.raises(InputError, match="8 scenario weights and 9 doses"):
        RobustObjective(bound, [1.0] * 8).value(doses)
    with pytest.raises(InputError, match="stacked as"):
        RobustObjective(bound).value(doses[0])
