"""Delivery: a plan's seconds by hand, scan orders against exhaustive search, and minimum MU that survive every rounding."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch

from torchimpt.checks import InputError
from torchimpt.geometry import Beam
from torchimpt.io.plan import read_plan, write_plan
from torchimpt.machine import generic
from torchimpt.spots import Spots
from torchimpt.spots.delivery import DeliveryModel, delivered, delivery_time, scan_order

MACHINE = generic()
BEAMS = (Beam(0.0, 0.0, (0.0, 0.0, 0.0)), Beam(90.0, 0.0, (0.0, 0.0, 0.0)))


def spots_of(beam, energy, x, y, mu, dtype=torch.float64) -> Spots:
    """Spots with so many MU each, of the whole course."""
    weight = torch.tensor(mu, dtype=torch.float64) * MACHINE.protons_per_mu(torch.tensor(energy, dtype=torch.float64))
    return Spots.from_columns(BEAMS, beam, energy, x, y, weight, dtype=dtype)


def two_layers() -> Spots:
    """120 MeV: four corners of 10 by 20 mm and a spot without weight far off; 100 MeV: two spots 35 mm apart."""
    return spots_of(
        [0] * 7, [120.0] * 5 + [100.0] * 2, [0, 10, 0, 10, 500, -15, 20], [0, 0, 20, 20, 500, 5, 5], [1, 2, 3, 4, 0, 5.0, 6.0]
    )  # fmt: skip


def path_length(points: torch.Tensor, order, speed_x: float = 1.0, speed_y: float = 1.0) -> float:
    """Scan time of an order."""
    steps = points[torch.as_tensor(order)].diff(dim=0).abs() / torch.tensor([speed_x, speed_y], dtype=points.dtype)
    return float(steps.amax(dim=1).sum())


# --- seconds ----------------------------------------------------------------------------------------------------------------------------


def test_seconds_of_two_layers_by_hand():
    model = DeliveryModel(energy_switch_s=2.0, spot_s=0.01, speed_x=1000.0, speed_y=5000.0, mu_per_s=4.0, fractions=3)
    found = delivery_time(two_layers(), MACHINE, model)
    # 120 MeV: up along y 20/5000 = 4 ms, across 10/1000 = 10 ms, down 4 ms; the other way round two crossings would be 20 ms and more
    scan = 0.004 + 0.010 + 0.004 + 0.035
    assert found["energy_switch_s"] == 2.0 and found["spot_s"] == pytest.approx(0.06) and found["spots"] == 6
    assert found["scan_s"] == pytest.approx(scan, rel=1e-12) and found["scan_mm"] == pytest.approx(20 + 10 + 20 + 35, rel=1e-12)
    assert found["mu"] == pytest.approx(21.0, rel=1e-12) and found["mu_per_fraction"] == pytest.approx(7.0, rel=1e-12)
    assert found["beam_on_s"] == pytest.approx(7.0 / 4.0, rel=1e-12) and found["min_spot_mu"] == pytest.approx(1 / 3, rel=1e-12)
    assert found["energy_layers"] == 2
    assert found["seconds"] == pytest.approx(2.0 + 0.06 + scan + 1.75, rel=1e-12)


def test_defaults_are_those_of_the_source():
    assert dataclasses.asdict(DeliveryModel()) == {
        "energy_switch_s": 1.91, "spot_s": 1.93e-3, "speed_x": 5900.0, "speed_y": 19300.0, "mu_per_s": 8.7, "fractions": 35, "min_mu": 0.0,
    }  # fmt: skip
    model, found = DeliveryModel(), delivery_time(two_layers(), MACHINE)
    assert found == delivery_time(two_layers(), MACHINE, model)
    expected = 1.91 + 6 * 1.93e-3 + (2 * 20 / 19300 + 10 / 5900 + 35 / 5900) + 21 / 35 / 8.7
    assert found["seconds"] == pytest.approx(expected, rel=1e-12)


def test_the_first_layer_of_a_beam_needs_no_switch():
    every = spots_of([0, 0, 1, 1, 1], [120.0, 110.0, 120.0, 110.0, 100.0], [0.0] * 5, [0.0] * 5, [1.0] * 5)
    assert delivery_time(every, MACHINE)["energy_switch_s"] == pytest.approx(1.91 * 3)
    with torch.no_grad():
        every.weight[3] = 0.0  # a layer that delivers nothing costs nothing
    found = delivery_time(every, MACHINE)
    assert found["energy_switch_s"] == pytest.approx(1.91 * 2) and found["energy_layers"] == 4 and found["spots"] == 4
    with torch.no_grad():
        every.weight[:2] = 0.0  # nor does a beam
    assert delivery_time(every, MACHINE)["energy_switch_s"] == pytest.approx(1.91)


def test_a_plan_without_weight_takes_no_time():
    spots = two_layers()
    with torch.no_grad():
        spots.weight.zero_()
    found = delivery_time(spots, MACHINE)
    assert found["spots"] == found["energy_layers"] == 0
    assert all(found[key] == 0 for key in ("seconds", "energy_switch_s", "scan_s", "mu", "min_spot_mu", "scan_mm"))
    nothing = delivery_time(two_layers(), MACHINE, DeliveryModel(min_mu=1e6))
    assert nothing["seconds"] == 0 and nothing["spots"] == 0


# --- which spots, and their least weight ------------------------------------------------------------------------------------------------


def test_delivered_are_a_thousandth_of_the_heaviest_or_the_minimum():
    spots = spots_of([0] * 4, [100.0] * 4, [0, 5, 10, 15], [0] * 4, [35.0, 0.0349, 0.0351, 0.0])
    assert delivered(spots, MACHINE, DeliveryModel()).tolist() == [True, False, True, False]
    assert delivered(spots, MACHINE, DeliveryModel(), share=0.0).tolist() == [True, True, True, False]
    model = DeliveryModel(min_mu=0.001)
    with torch.no_grad():
        spots.weight[1] = model.min_weight(spots, MACHINE)[1]
        spots.weight[2] = torch.nextafter(spots.weight[1], torch.zeros((), dtype=torch.float64))
    assert delivered(spots, MACHINE, model).tolist() == [True, True, False, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_minimum_weight_has_the_minimum_mu_after_every_rounding(tmp_path, generator, dtype):
    for _ in range(20):
        n = 200
        energy = (70 + 150 * torch.rand(n, generator=generator, dtype=torch.float64)).round(decimals=3)
        spots = spots_of([0] * n, energy.tolist(), [0.0] * n, [0.0] * n, [1.0] * n, dtype)
        min_mu = float(torch.rand((), generator=generator, dtype=torch.float64)) * 0.1 + 1e-3
        model = DeliveryModel(min_mu=min_mu, fractions=int(torch.randint(1, 40, (), generator=generator)))
        least = model.min_weight(spots, MACHINE)
        assert least.dtype == dtype
        per_mu = MACHINE.protons_per_mu(spots.energy)
        for mu in (
            least.double() / per_mu / model.fractions,
            least.double() / (per_mu * model.fractions),
            least.double() / model.fractions / per_mu,
        ):
            assert float(mu.min()) >= min_mu and float(mu.max()) < min_mu * (1 + 8 * torch.finfo(dtype).eps)
    with torch.no_grad():
        spots.weight.copy_(least)
    write_plan(tmp_path / "plan.json", spots, MACHINE)
    again = read_plan(tmp_path / "plan.json")
    assert bool(delivered(again, MACHINE, model).all()) and delivery_time(again, MACHINE, model)["min_spot_mu"] >= min_mu


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_mu": -0.1}, "min_mu must be zero or more, got -0.1"),
        ({"energy_switch_s": math.nan}, "energy_switch_s must be zero or more"),
        ({"spot_s": math.inf}, "spot_s"),
        ({"speed_x": 0.0}, "speed_x must be"),
        ({"mu_per_s": -1.0}, "mu_per_s must be"),
        ({"fractions": 0}, "fractions must be"),
    ],
)
def test_impossible_machines_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        DeliveryModel(**change)


# --- scan order -------------------------------------------------------------------------------------------------------------------------


def nearest_neighbour(points: torch.Tensor, speed_x: float, speed_y: float) -> list[int]:
    """From the spot with the least y, then x, always to the nearest that is left."""
    place = (points / torch.tensor([speed_x, speed_y], dtype=points.dtype)).tolist()
    left = list(range(len(place)))
    order = [min(left, key=lambda k: (place[k][1], place[k][0]))]
    left.remove(order[0])
    while left:
        here = place[order[-1]]
        order.append(min(left, key=lambda k: max(abs(place[k][0] - here[0]), abs(place[k][1] - here[1]))))
        left.remove(order[-1])
    return order


@pytest.mark.parametrize("speeds", [(1.0, 1.0), (5900.0, 19300.0)])
@pytest.mark.parametrize("n", [3, 10, 60, 200])
def test_order_is_a_permutation_and_no_longer_than_nearest_neighbour(n, speeds, generator):
    for _ in range(4):
        points = 100 * torch.rand(n, 2, dtype=torch.float64, generator=generator)
        order = scan_order(points, *speeds)
        assert sorted(order.tolist()) == list(range(n))
        greedy = nearest_neighbour(points, *speeds)
        found, before = path_length(points, order, *speeds), path_length(points, greedy, *speeds)
        assert found <= before * (1 + 1e-6)
        assert order[0] == greedy[0]
    assert n < 60 or found < 0.97 * before


def test_a_local_optimum_of_reversals(generator):
    """No reversal of a stretch, the path's end included, shortens what is returned."""
    points = 50 * torch.rand(40, 2, dtype=torch.float64, generator=generator)
    order = scan_order(points, sweeps=1000).tolist()
    length = path_length(points, order)
    for i, j in itertools.combinations(range(1, 41), 2):
        turned = order[:i] + order[i:j][::-1] + order[j:]
        assert path_length(points, turned) >= length * (1 - 1e-6)


@pytest.mark.parametrize(("dx", "dy"), [(1.0, 0.0), (0.0, 1.0), (-1.0, 3.0)])
def test_a_line_is_followed(dx, dy, generator):
    along = torch.randperm(30, generator=generator).double()
    order = scan_order(torch.stack((along * dx, along * dy), dim=1), 2.0, 3.0)
    assert along[order].tolist() == list(range(30))


@pytest.mark.parametrize("shape", [(2, 2), (3, 3), (3, 4), (4, 4), (5, 5)])
def test_the_shortest_path_of_a_grid(shape, generator):
    """In Chebyshev's metric no path over a grid beats unit steps; where y is the faster axis, sweeps along y with one step in x between."""
    grid = torch.cartesian_prod(torch.arange(shape[0]).double(), torch.arange(shape[1]).double())
    points = 5.0 * grid[torch.randperm(len(grid), generator=generator)]
    assert path_length(points, scan_order(points)) == pytest.approx(5.0 * (len(points) - 1))
    columns = shape[0]
    best = 5.0 * (columns - 1) / 1.0 + 5.0 * (len(points) - columns) / 4.0
    assert path_length(points, scan_order(points, 1.0, 4.0), 1.0, 4.0) == pytest.approx(best)


def test_the_shortest_path_of_few_points(generator):
    """Against all orders from the same start."""
    gaps = []
    for _ in range(12):
        points = 20 * torch.rand(7, 2, dtype=torch.float64, generator=generator)
        order = scan_order(points).tolist()
        others = [k for k in range(7) if k != order[0]]
        best = min(path_length(points, (order[0], *rest)) for rest in itertools.permutations(others))
        gaps.append(path_length(points, order) / best - 1)
    assert min(gaps) > -1e-12 and max(gaps) < 0.2 and sum(g < 1e-5 for g in gaps) >= 9


def test_small_and_coinciding_sets():
    assert scan_order(torch.zeros(0, 2)).tolist() == [] and scan_order(torch.zeros(1, 2)).tolist() == [0]
    assert sorted(scan_order(torch.tensor([[3.0, 1.0], [0.0, 0.0]])).tolist()) == [0, 1]
    same = torch.zeros(6, 2)
    same[4:] = 7.0
    order = scan_order(same)
    assert sorted(order.tolist()) == list(range(6)) and path_length(same, order) == 7.0
