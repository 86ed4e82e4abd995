"""Delivery: a plan's seconds by hand, scan orders against exhaustive search, and minimum MU that survive every rounding."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from torchimpt.checks import InputError
from torchimpt.geometry import Beam, RangeShifter
from torchimpt.io.plan import read_plan, write_plan
from torchimpt.machine import generic
from torchimpt.spots import Spots
from torchimpt.spots.delivery import MACHINES, MANY, DeliveryModel, delivered, delivery_time, scan_order

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


def test_a_range_shifter_is_put_in_once_a_beam():
    """In beams that have layers behind it which are delivered."""
    beams = [dataclasses.replace(beam, shifter=RangeShifter(40.0, 200.0)) for beam in BEAMS]
    rows = [(0, 120.0, True, 1.0), (0, 100.0, True, 1.0), (0, 90.0, False, 1.0), (1, 90.0, False, 1.0), (1, 80.0, True, 0.0)]
    beam, energy, shifted, weight = zip(*rows, strict=True)
    spots = Spots.from_columns(beams, beam, energy, [0.0] * 5, [0.0] * 5, weight, shifted=shifted)
    model = DeliveryModel(shifter_s=7.0)
    found = delivery_time(spots, MACHINE, model)
    assert found["shifter_s"] == 7.0
    assert found["seconds"] == pytest.approx(7.0 + delivery_time(spots, MACHINE, dataclasses.replace(model, shifter_s=0.0))["seconds"])
    assert delivery_time(two_layers(), MACHINE, model)["shifter_s"] == 0.0


def path_length(points: torch.Tensor, order, speed_x: float = 1.0, speed_y: float = 1.0) -> float:
    """Scan time of an order."""
    steps = points[torch.as_tensor(order)].diff(dim=0).abs() / torch.tensor([speed_x, speed_y], dtype=points.dtype)
    return float(steps.amax(dim=1).sum())


# --- seconds ----------------------------------------------------------------------------------------------------------------------------


def test_seconds_of_two_layers_by_hand():
    model = DeliveryModel(energy_switch_s=2.0, spot_s=0.01, speed_x=1000.0, speed_y=5000.0, protons_per_s=4e8, fractions=3)
    found = delivery_time(two_layers(), MACHINE, model)
    # 120 MeV: up along y 20/5000 = 4 ms, across 10/1000 = 10 ms, down 4 ms; the other way round two crossings would be 20 ms and more
    scan = 0.004 + 0.010 + 0.004 + 0.035
    assert found["energy_switch_s"] == 2.0 and found["spot_s"] == pytest.approx(0.06) and found["spots"] == 6
    assert found["scan_s"] == pytest.approx(scan, rel=1e-12) and found["scan_mm"] == pytest.approx(20 + 10 + 20 + 35, rel=1e-12)
    assert found["mu"] == pytest.approx(21.0, rel=1e-12) and found["mu_per_fraction"] == pytest.approx(7.0, rel=1e-12)
    # a rate of protons, whatever a monitor unit of theirs is: 3.3 MU at 120 MeV carry more of them than 3.7 MU at 100 MeV less a tenth
    protons = 1e6 * float(two_layers().weight.detach().sum()) / 3
    assert found["beam_on_s"] == pytest.approx(protons / 4e8, rel=1e-12) and found["min_spot_mu"] == pytest.approx(1 / 3, rel=1e-12)
    assert found["energy_layers"] == 2
    assert found["refill_s"] == 0.0
    assert found["seconds"] == pytest.approx(2.0 + 0.06 + scan + protons / 4e8, rel=1e-12)


@pytest.mark.parametrize(("share", "refills"), [(1.0, 0), (0.9999, 1), (0.5, 1), (0.26, 3), (math.inf, 0)])
def test_a_layer_of_more_than_a_filling_waits_for_the_next(share, refills):
    """One layer of two spots, with a ring that holds this share of what it needs."""
    spots = spots_of([0, 0], [120.0, 120.0], [0, 5], [0, 0], [1.0, 2.0])
    model = DeliveryModel(fractions=1, spill_protons=share * 1e6 * float(spots.weight.detach().sum()))
    found = delivery_time(spots, MACHINE, model)
    assert found["refill_s"] == pytest.approx(refills * model.energy_switch_s) and found["energy_switch_s"] == 0.0
    assert found["seconds"] == pytest.approx(sum(found[part] for part in ("refill_s", "spot_s", "scan_s", "beam_on_s")))


def one_litre() -> Spots:
    """One field of 1.8 Gy (2 Gy RBE-weighted) to 100 x 100 x 100 mm^3 of water, 100 to 200 mm deep, as a plan of one fraction.

    Layers 5 mm apart, spots 7 mm; the layers' weights from the depth doses alone, as inside a broad field every spot's width is made up
    for by its neighbours.
    """
    ranges = torch.arange(100.0, 205.0, 5.0, dtype=torch.float64)
    tables = MACHINE.layers(MACHINE.energy_for_range(ranges))
    z = np.arange(102.0, 199.0, 1.0)
    curves = np.stack(
        [np.interp(z, float(s) * np.arange(len(d)), d) for s, d in zip(tables.depth_step, tables.idd.numpy(), strict=True)], 1
    )
    per_area, rest = nnls(curves, np.full(len(z), 2.0 / 1.1))
    assert rest / np.sqrt(len(z)) < 0.05  # Gy: the depth dose is flat
    side = torch.arange(-52.5, 53.0, 7.0, dtype=torch.float64)
    x, y = torch.cartesian_prod(side, side).unbind(1)
    n, n_layers = len(x), len(ranges)
    return Spots.from_columns(
        BEAMS[:1], [0] * (n * n_layers), tables.energy.repeat_interleave(n), x.repeat(n_layers), y.repeat(n_layers),
        torch.from_numpy(7.0**2 * per_area).repeat_interleave(n), dtype=torch.float64,
    )  # fmt: skip


def test_two_gray_in_a_litre_take_a_minute_or_two():
    """As scanned beams take, clinically: no more than two minutes, no less than the half that the fastest need. In its vendor's MU (8.7 a
    second) the beam was on for two minutes alone."""
    spots = one_litre()
    # energy conserved: 2 Gy / 1.1 in a kilogram are 1.8 J, of which the path to the target takes about as much again
    energy = float(1e6 * (spots.weight.detach() * spots.energy).sum()) * 1.602e-13
    assert 1.8 < energy < 6.0
    seconds = {}
    for name, machine in MACHINES.items():
        found = delivery_time(spots, MACHINE, dataclasses.replace(machine, fractions=1))
        seconds[name] = found["seconds"]
        current = machine.protons_per_s * 1.602176634e-19 * 1e9  # nA
        assert 0.5 <= current <= 3.0 and 25.0 < found["seconds"] < 125.0, (name, found)
        assert found["beam_on_s"] < 60.0
    assert seconds["synchrotron"] > 1.5 * max(seconds["cyclotron"], seconds["fast_cyclotron"])
    assert MACHINES["synchrotron"].energy_switch_s > 10 * MACHINES["fast_cyclotron"].energy_switch_s


def test_the_first_layer_of_a_beam_needs_no_switch():
    every = spots_of([0, 0, 1, 1, 1], [120.0, 110.0, 120.0, 110.0, 100.0], [0.0] * 5, [0.0] * 5, [1.0] * 5)
    switch = DeliveryModel().energy_switch_s
    assert delivery_time(every, MACHINE)["energy_switch_s"] == pytest.approx(switch * 3)
    with torch.no_grad():
        every.weight[3] = 0.0  # a layer that delivers nothing costs nothing
    found = delivery_time(every, MACHINE)
    assert found["energy_switch_s"] == pytest.approx(switch * 2) and found["energy_layers"] == 4 and found["spots"] == 4
    with torch.no_grad():
        every.weight[:2] = 0.0  # nor does a beam
    assert delivery_time(every, MACHINE)["energy_switch_s"] == pytest.approx(switch)


def test_a_plan_without_weight_takes_no_time():
    spots = two_layers()
    with torch.no_grad():
        spots.weight.zero_()
    found = delivery_time(spots, MACHINE)
    assert found["spots"] == found["energy_layers"] == 0
    assert all(found[key] == 0 for key in ("seconds", "energy_switch_s", "refill_s", "scan_s", "mu", "min_spot_mu", "scan_mm"))
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
        ({"protons_per_s": -1.0}, "protons_per_s must be"),
        ({"protons_per_s": math.inf}, "protons_per_s must be"),
        ({"spill_protons": 0.0}, "spill_protons must be"),
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


@pytest.mark.parametrize("speeds", [(1.0, 1.0), (5900.0, 19300.0), (19300.0, 5900.0)])
def test_a_layer_of_very_many_spots_is_swept(speeds, generator):
    """Their pairs are never looked at: no order of a lattice is much shorter than its sweeps."""
    grid = 2.0 * torch.cartesian_prod(torch.arange(70).double(), torch.arange(60).double())
    points = grid[torch.randperm(len(grid), generator=generator)]
    assert len(points) > MANY
    order = scan_order(points, *speeds)
    assert sorted(order.tolist()) == list(range(len(points)))
    fewest = min(69 * 2.0 / speeds[0] + 69 * 0 + 70 * 59 * 2.0 / speeds[1], 59 * 2.0 / speeds[1] + 60 * 69 * 2.0 / speeds[0])
    assert path_length(points, order, *speeds) <= 1.001 * fewest
    same = torch.zeros(MANY + 1, 2)
    assert sorted(scan_order(same).tolist()) == list(range(MANY + 1))


def test_small_and_coinciding_sets():
    assert scan_order(torch.zeros(0, 2)).tolist() == [] and scan_order(torch.zeros(1, 2)).tolist() == [0]
    assert sorted(scan_order(torch.tensor([[3.0, 1.0], [0.0, 0.0]])).tolist()) == [0, 1]
    same = torch.zeros(6, 2)
    same[4:] = 7.0
    order = scan_order(same)
    assert sorted(order.tolist()) == list(range(6)) and path_length(same, order) == 7.0
