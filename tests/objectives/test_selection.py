"""What dose-volume goals excuse, against a full sort."""

from __future__ import annotations

import math

import pytest
import torch

from torchimpt.objectives import MaxDVH, MinDVH
from torchimpt.objectives.selection import excused_ray, excused_value_and_grad


def left_by_sort(excess: torch.Tensor, volume: torch.Tensor, allowed: float) -> torch.Tensor:
    """The volume of each that is not excused."""
    order = excess.argsort(dim=-1, descending=True, stable=True)
    before = volume[order].cumsum(-1) - volume[order]
    return torch.zeros_like(excess).scatter_(-1, order, volume[order] - (allowed - before).clamp_min(0).minimum(volume[order]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", [0.0, 0.028, 0.3, 0.546, 0.999, 1.0])
def test_what_counts_is_what_a_sort_leaves(dtype, share):
    random = torch.Generator().manual_seed(3)
    dose = 20.0 * torch.randn(4, 1237, generator=random, dtype=dtype)
    dose[1] = dose[1].round()  # many are equal
    dose[2] = 12.5 * (dose[2] > 0)  # all are
    dose[3] *= 1e-3 ** torch.rand(1237, generator=random, dtype=dtype)
    # volumes are multiples of 1/8, so that their sums are exact in every order
    for volume in (None, torch.randint(1, 9, (1237,), generator=random).double() / 8):
        own = torch.ones(1237, dtype=torch.float64) if volume is None else volume
        allowed = math.floor(share * 8 * float(own.sum())) / 8 if volume is not None else math.floor(share * 1237)
        excess = dose.double().clamp_min(0)
        left = left_by_sort(excess, own, allowed)
        value, grad = excused_value_and_grad(dose, 1.0, 0.0, volume, allowed)
        assert torch.equal(grad, (2.0 * left * excess).to(dtype))
        assert torch.allclose(value, (left * excess.square()).sum(-1), rtol=1e-12)
        assert not share or int((grad != 0).sum()) < int((dose > 0).sum())
        low, _ = excused_value_and_grad(5.0 - dose[0], -1.0, 5.0, volume, allowed)  # the goal's mirror image, of one scenario
        assert float(low) == pytest.approx(float(value[0]), rel=1e-5 if dtype == torch.float32 else 1e-12)


def test_what_does_not_fit_is_excused_in_part():
    dose, volume = torch.tensor([5.0, 4.0, 3.0]), torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    # 1 and 1.5 of the second's 2 are excused: 0.5 of it counts
    assert excused_value_and_grad(dose, 1.0, 0.0, volume, 2.5)[1].tolist() == [0.0, 4.0, 3.0]
    assert excused_value_and_grad(dose, 1.0, 0.0, volume, 3.0)[1].tolist() == [0.0, 0.0, 3.0]
    assert not excused_value_and_grad(torch.zeros(3), 1.0, 0.0, volume, 0.0)[1].any()


def test_it_is_continuous_where_entries_of_different_volumes_change_places():
    """Else a line search meets a step upwards with a slope downwards on both sides."""
    volume = torch.tensor([0.25, 2.0, 1.0], dtype=torch.float64)
    for term in (MaxDVH("O", 0.0, volume_percent=10.0), MinDVH("O", 10.0, volume_percent=90.0)):
        low, high = (
            term.value_and_grad(5.0 + term.side * torch.tensor([0.0, step, -2.0], dtype=torch.float64), volume)[0] for step in (-1e-9, 1e-9)
        )
        assert float(low) == pytest.approx(float(high), rel=1e-8)


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_a_ray_is_the_goal_at_every_length(side):
    random = torch.Generator().manual_seed(4)
    dose, rate = 30.0 + 10.0 * torch.randn(2, 3, 501, generator=random, dtype=torch.float64)
    dose[1], rate[:, :100] = 30.0 - 50.0 * side, 30.0  # one scenario is far inside the goal, and some voxels no spot reaches
    rate -= 30.0
    volume = torch.rand(501, generator=random, dtype=torch.float64) + 0.5
    for own, allowed in ((volume, 0.3 * float(volume.sum())), (None, 150)):
        ray = excused_ray(dose, rate, side, 30.0, own, allowed)
        for length in (0.0, 0.4, 3.0):
            value, grad = excused_value_and_grad(dose + length * rate, side, 30.0, own, allowed)
            found = ray(length)
            # a sum of both signs has the rounding of its terms
            assert torch.allclose(found[0], value, rtol=1e-12)
            assert torch.allclose(found[1], (grad * rate).sum(-1), rtol=1e-12, atol=1e-12 * float((grad * rate).abs().sum()))
