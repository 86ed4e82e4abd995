"""Fewer spots: what stays, what merging keeps, and how ties and chains go."""

from __future__ import annotations

import pytest
import torch

from torchimpt.checks import InputError
from torchimpt.geometry import Beam
from torchimpt.optim import Penalized, minimize
from torchimpt.spots import Spots
from torchimpt.spots.pruning import heaviest, merge_close, sparsity_cost, spots_closer_than, used_layers


def merged(points, weights, distance, layers=None, dtype=torch.float64):
    """`merge_close` of lists: positions, weights and indices that stay."""
    layer = torch.zeros(len(weights), dtype=torch.int64) if layers is None else torch.tensor(layers)
    kept, place, load = merge_close(torch.tensor(points, dtype=dtype), torch.tensor(weights, dtype=dtype), layer, distance)
    return place[kept].tolist(), load[kept].tolist(), kept.nonzero().flatten().tolist()


def test_heaviest_and_its_ties():
    weight = torch.tensor([1.0, 3.0, 2.0, 3.0, 1.0, 0.0])
    assert heaviest(weight, 2).tolist() == [False, True, False, True, False, False]
    assert heaviest(weight, 1).nonzero().flatten().tolist() == [1]
    assert heaviest(weight, 4).nonzero().flatten().tolist() == [0, 1, 2, 3]  # of equal ones the first
    assert heaviest(weight, 6).all() and heaviest(weight, 99).all()
    assert heaviest(torch.zeros(4), 2).tolist() == [True, True, False, False]
    with pytest.raises(InputError, match="at least one spot must stay, got 0"):
        heaviest(weight, 0)


def test_used_layers_by_their_share_of_the_heaviest():
    weight = torch.tensor([6.0, 4.0, 1.0, 0.5, 0.5, 0.0])
    layer = torch.tensor([0, 0, 1, 2, 2, 3])
    assert used_layers(weight, layer, 0.1).tolist() == [True, True, True, True, True, False]  # exactly a tenth stays
    assert used_layers(weight, layer, 0.11).tolist() == [True, True, False, False, False, False]
    assert used_layers(weight, layer, 0.0).all()
    # layers are told by their number, gaps and all
    assert used_layers(torch.tensor([1.0, 3.0]), torch.tensor([2, 7]), 0.5).tolist() == [False, True]


def test_a_pair_becomes_its_mean_at_the_heavier_spot():
    places, loads, who = merged([[0.0, 0.0], [4.0, 0.0], [20.0, 0.0]], [1.0, 3.0, 5.0], 5.0)
    assert places == [[3.0, 0.0], [20.0, 0.0]] and loads == [4.0, 5.0] and who == [1, 2]
    _, _, who = merged([[0.0, 0.0], [4.0, 0.0]], [2.0, 2.0], 5.0)
    assert who == [0]  # of equal ones the first
    places, loads, who = merged([[0.0, 0.0], [4.0, 0.0]], [0.0, 0.0], 5.0)
    assert places == [[0.0, 0.0]] and loads == [0.0] and who == [0]  # nothing to weigh by: the first stays where it is


def test_as_far_as_the_distance_is_not_closer():
    places, _, _ = merged([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]], [1.0, 1.0, 1.0], 5.0)
    assert len(places) == 3
    assert len(merged([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]], [1.0, 1.0, 1.0], 5.0001)[0]) == 2
    assert len(merged([[1.0, 1.0], [1.0, 1.0]], [1.0, 1.0], 1e-3)[0]) == 1
    assert len(merged([[1.0, 1.0], [1.0, 1.0]], [1.0, 1.0], 0.0)[0]) == 2


def test_layers_do_not_merge_with_each_other():
    _, loads, who = merged([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [1.0, 0.0]], [1.0, 2.0, 3.0, 4.0], 5.0, layers=[0, 0, 1, 1])
    assert loads == [3.0, 7.0] and who == [1, 3]
    assert len(merged([[0.0, 0.0], [0.0, 0.0]], [1.0, 1.0], 5.0, layers=[0, 1])[0]) == 2


def test_the_closest_pair_goes_first_and_chains_end():
    # 0 - 3 - 5: the pair at distance 2 merges to 4 (weight 2), which is still within 5 of 0
    places, loads, who = merged([[0.0, 0.0], [3.0, 0.0], [5.0, 0.0]], [1.0, 1.0, 1.0], 5.0)
    assert places == [[pytest.approx(8 / 3), 0.0]] and loads == [3.0] and who == [1]
    # 0 - 4 - 7: the pair at 3 merges to 5.5, out of reach of 0
    places, loads, who = merged([[0.0, 0.0], [4.0, 0.0], [7.0, 0.0]], [1.0, 1.0, 1.0], 5.0)
    assert places == [[0.0, 0.0], [5.5, 0.0]] and loads == [1.0, 2.0] and who == [0, 1]
    # equal gaps: the first pair first; what it leaves decides
    places, loads, who = merged([[0.0, 0.0], [4.0, 0.0], [8.0, 0.0], [12.0, 0.0]], [1.0, 1.0, 1.0, 1.0], 5.0)
    assert places == [[2.0, 0.0], [10.0, 0.0]] and loads == [2.0, 2.0] and who == [0, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments_are_conserved_and_no_pair_is_left(generator, dtype):
    n = 300
    position = (60 * torch.rand(n, 2, generator=generator, dtype=torch.float64)).to(dtype)
    weight = torch.rand(n, generator=generator, dtype=torch.float64).to(dtype)
    weight[::7] = 0.0
    layer = torch.arange(n) // 75
    before = position.clone(), weight.clone()
    kept, place, load = merge_close(position, weight, layer, 4.0)
    assert torch.equal(position, before[0]) and torch.equal(weight, before[1])
    assert place.dtype == load.dtype == dtype and kept.dtype == torch.bool and 0 < int(kept.sum()) < n
    tolerance = {"rtol": 1e-5 if dtype is torch.float32 else 1e-12, "atol": 0}
    for number in range(4):
        own, stay = layer == number, (layer == number) & kept
        torch.testing.assert_close(load[stay].double().sum(), weight[own].double().sum(), **tolerance)
        first = (weight[own, None].double() * position[own].double()).sum(0)
        torch.testing.assert_close((load[stay, None].double() * place[stay].double()).sum(0), first, **tolerance)
    beams = [Beam(0, 0, (0, 0, 0))]
    spots = Spots(place[kept], load[kept], layer[kept], torch.zeros(4, dtype=torch.int64), torch.tensor([90.0, 80.0, 75.0, 70.0]), beams)
    apart = torch.cdist(spots.position.detach().double(), spots.position.detach().double(), compute_mode="donot_use_mm_for_euclid_dist")
    same = (spots.layer[:, None] == spots.layer) & ~torch.eye(spots.n_spots, dtype=torch.bool)
    assert float(apart[same].min()) >= 4.0
    assert spots_closer_than(spots, 4.0) == 0 and spots_closer_than(spots, 6.0) == int((apart[same] < 6.0).sum()) // 2 > 0


def test_further_columns_are_averaged_along_and_do_not_count():
    far = torch.tensor([[0.0, 0.0, 100.0], [2.0, 0.0, 200.0], [50.0, 0.0, 100.0]])
    kept, place, load = merge_close(far, torch.tensor([1.0, 3.0, 1.0]), torch.zeros(3, dtype=torch.int64), 3.0)
    assert place[kept].tolist() == [[1.5, 0.0, 175.0], [50.0, 0.0, 100.0]] and load[kept].tolist() == [4.0, 1.0]


def test_price_of_having_a_spot():
    """The price of all spots together is about `a F`, whatever their weights, and a spot of no weight has the highest."""
    weight = 10.0 ** torch.linspace(-1, 2, 400, dtype=torch.float64)
    cost = sparsity_cost(weight, 30.0, strength=2.0)
    floor = 0.1 * weight.mean()
    assert cost.tolist() == pytest.approx((60.0 / 400 / (weight + floor)).tolist())
    assert float(sparsity_cost(torch.ones(50), 30.0) @ torch.ones(50)) == pytest.approx(60.0 / 1.1)
    assert bool((sparsity_cost(torch.tensor([0.0, 1.0, 2.0]), 30.0).diff() < 0).all())
    assert bool(torch.isfinite(sparsity_cost(torch.zeros(3), 30.0)).all())


def test_penalized_is_the_function_and_its_price(generator):
    a, c, x = (torch.rand(7, generator=generator, dtype=torch.float64) for _ in range(3))

    class Squares:
        def value_and_grad(self, x):
            return float((a * x**2).sum()), 2 * a * x

    problem = Penalized(Squares(), c)
    value, gradient = problem.value_and_grad(x)
    assert value == pytest.approx(float((a * x**2 + c * x).sum()), rel=1e-14) and problem.penalty(x) == pytest.approx(float(c @ x))
    assert torch.allclose(gradient, 2 * a * x + c, rtol=1e-14)
    found = minimize(problem, x, lower=0.0, method="quasi_newton", tolerance=1e-12)
    assert bool((found.x == 0).all())  # every component's price is positive, and F is least at zero
