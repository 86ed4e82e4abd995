"""Hinges in one pass, against the sums written out; blocks that are full, and a last one that is not."""

from __future__ import annotations

import math

import pytest
import torch

from torchimpt.objectives import BoundObjective, BoundTerm, MaxDose, MaxDVH, MinDVH, hinges


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hinges_are_the_sums_that_they_stand_for(dtype):
    random = torch.Generator().manual_seed(5)
    dose = 50.0 + 20.0 * torch.randn(3, 9001, generator=random, dtype=dtype)
    level, gain = 100.0 * torch.rand(2, 2, 9001, generator=random, dtype=dtype)
    sign = torch.randint(0, 2, (2, 9001), generator=random).to(dtype) * 2 - 1
    gain[1, ::3] = 0.0
    value, grad = hinges.value_and_grad(dose, level, sign, gain)
    excess = (sign * (dose[:, None] - level)).double().clamp_min(0)
    # single hinges are computed in the doses' precision, sums in float64: doses of 100 Gy are known to 4e-6, times a gain of 200
    single = dtype == torch.float32
    assert torch.allclose(value, (gain * excess.square()).sum((1, 2)), rtol=1e-6 if single else 1e-12)
    assert grad.dtype == dtype
    assert torch.allclose(grad.double(), (2.0 * gain * sign * excess).sum(1), rtol=1e-6, atol=5e-3 if single else 1e-10)


def test_a_ray_has_value_and_slope_at_every_length():
    random = torch.Generator().manual_seed(6)
    dose, rate = torch.randn(2, 3, 9001, generator=random, dtype=torch.float64)
    at, level = torch.randint(0, 9001, (12_000,), generator=random), torch.randn(12_000, generator=random, dtype=torch.float64)
    root = torch.randn(12_000, generator=random, dtype=torch.float64)
    ray = hinges.along(dose, rate, at, level, root)
    for length in (0.0, 0.7, 20.0):
        value, slope = ray(length)
        change = root * rate[:, at]
        excess = (root * (dose[:, at] - level) + length * change).clamp_min(0)
        assert torch.allclose(value, excess.square().sum(1), rtol=1e-12)
        assert torch.allclose(slope, 2.0 * (excess * change).sum(1), rtol=1e-12)


def test_no_hinges_are_nothing():
    none = torch.zeros(0, 7)
    value, grad = hinges.value_and_grad(torch.ones(2, 7), none, none, none)
    assert value.tolist() == [0.0, 0.0] and not grad.any()
    nothing = torch.zeros(0, dtype=torch.float64)
    assert hinges.along(torch.ones(2, 7), torch.ones(2, 7), nothing.long(), nothing, nothing)(1.0)[1].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("term", [MaxDose("A", 3.0), MaxDVH("A", 3.0, volume_percent=30), MinDVH("A", 3.0, volume_percent=70)])
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_dose_that_is_no_number_gives_no_number(term, wrong):
    dose = torch.tensor([[1.0, 5.0, wrong * (term.side or 1.0), 2.0, 7.0, 4.0]])
    bound = BoundObjective([BoundTerm(term, torch.arange(6), 1.0)], 6)
    assert not torch.isfinite(bound.value_and_grad(dose)[0]).any()
    assert not math.isfinite(float(bound.along(dose, term.dose - dose)(0.5)[0]))
