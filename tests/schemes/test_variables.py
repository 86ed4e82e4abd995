"""The functions of weights and positions: gradients against autograd of the dense oracle and finite differences, bounds, scales."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_case import tiny

from torchimpt.optim import Composite, minimize
from torchimpt.planning.build import build
from torchimpt.planning.load import set_up
from torchimpt.schemes.moving import MovingSpots
from torchimpt.schemes.variables import JOINT, POSITIONS, Packing, Positions, Room, SpotProblem, Weights
from torchimpt.schemes.weights import jacobi_scale
from torchimpt.watch import Progress

pytestmark = pytest.mark.filterwarnings("ignore:ROI Target .* more than a fifth")  # voxels of 12 mm

SMALL = ("dose.grid_mm=12", "spots.spacing_mm=20", "dose.dtype=float64", "dose.engine=matrix_free", "spots.stagger=false")
NINE = "robustness={setup_mm=4.0, range_percent=5.0}"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The tiny case in nine scenarios, two organs' objectives active, and a cut-off beyond which nothing is left."""
    case = tiny(tmp_path_factory.mktemp("joint"), *SMALL, NINE, "dose.cutoff_sigma=8", "objective[2].dose_gy=0")
    return build(case, set_up(case, "cpu"), Progress(enabled=False), {})


@pytest.fixture
def plan(built, generator) -> MovingSpots:
    """Every third spot, off its place by up to 4 mm, with a random weight; one of them weightless."""
    plan = MovingSpots.start(built.spots).keep(torch.arange(built.spots.n_spots) % 3 == 0)
    off = 8 * torch.rand(plan.n_spots, 2, dtype=torch.float64, generator=generator) - 4
    weight = 100 * torch.rand(plan.n_spots, dtype=torch.float64, generator=generator)
    weight[4] = 0.0
    return MovingSpots(plan.index, plan.home, plan.home + off, weight)


def problem_of(built, plan: MovingSpots, vary=JOINT) -> SpotProblem:
    return SpotProblem(built.doses.subset(plan.index), built.objective, Packing(vary, plan))


def scale_of(built, plan: MovingSpots) -> torch.Tensor:
    """Typical sizes of weights and positions, nowhere near any bound."""
    far = torch.full_like(plan.home, 1e3)
    room = Room(plan, built.doses.subset(plan.index), built.objective, torch.zeros_like(plan.weight), 10.0, -far, far)
    return Packing(JOINT, plan).scale(room)


def oracle(built, plan: MovingSpots, z: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Value and gradient by autograd through the plain dense formula of all spots, those left out with weight zero."""
    z = z.clone().requires_grad_()
    n = plan.n_spots
    everywhere = built.spots.position.detach().index_copy(0, plan.index, plan.home + torch.stack((z[n : 2 * n], z[2 * n :]), dim=1))
    weight = torch.zeros(built.spots.n_spots, dtype=torch.float64).index_copy(0, plan.index, z[:n])
    value = built.objective(torch.stack([o.dense_dose(everywhere, weight) for o in built.doses]))
    return float(value.detach()), torch.autograd.grad(value, z)[0]


def test_scenarios_shift_and_scale(built):
    assert len(built.scenarios) == 9
    assert sum(s.shift != (0, 0, 0) for s in built.scenarios) == 6 and sum(s.range_scale != 1 for s in built.scenarios) == 2


def test_joint_gradient_is_autograd_of_the_dense_oracle(built, plan):
    problem = problem_of(built, plan)
    z = problem.packing.pack(plan)
    value, gradient = problem.value_and_grad(z)
    expected, right = oracle(built, plan, z)
    n = plan.n_spots
    assert value == pytest.approx(expected, rel=1e-12)
    for part in (slice(0, n), slice(n, 2 * n), slice(2 * n, 3 * n)):  # each in its own unit
        assert float((gradient[part] - right[part]).abs().max()) < 1e-10 * float(right[part].abs().max())
    held = torch.tensor([n + 4, 2 * n + 4])
    assert not gradient[held].any() and bool(gradient[4] != 0)  # without weight no pull on the place, but one on the weight


def test_joint_gradient_is_that_of_finite_differences(built, plan, generator):
    problem = problem_of(built, plan)
    z, n = problem.packing.pack(plan), plan.n_spots
    _, gradient = problem.value_and_grad(z)
    z[4] = 1.0  # off the bound, so that both sides are inside
    _, gradient = problem.value_and_grad(z)
    for part in (slice(0, n), slice(n, 3 * n), slice(0, 3 * n)):
        step = torch.zeros_like(z)
        step[part] = torch.rand(z[part].shape, dtype=torch.float64, generator=generator) - 0.5
        h = 1e-4
        ahead, behind = (problem.value_and_grad(z + s * h * step)[0] for s in (1, -1))
        assert (ahead - behind) / (2 * h) == pytest.approx(float(gradient @ step), rel=1e-6)


def test_position_gradient_is_the_joint_ones_part(built, plan):
    joint = problem_of(built, plan)
    z, n = joint.packing.pack(plan), plan.n_spots
    problem = problem_of(built, plan, POSITIONS)
    value, gradient = problem.value_and_grad(z[n:])
    whole, right = joint.value_and_grad(z)
    assert value == whole and torch.equal(gradient, right[n:]) and torch.equal(problem.image(z[n:]), joint.image(z))
    assert float((gradient - oracle(built, plan, z)[1][n:]).abs().max()) < 1e-10 * float(gradient.abs().max())


def test_at_home_the_weight_gradient_is_the_weight_problems(built, generator):
    plan = MovingSpots.start(built.spots)
    problem = problem_of(built, plan)
    weight = 50 * torch.rand(plan.n_spots, dtype=torch.float64, generator=generator)
    value, gradient = problem.value_and_grad(torch.cat((weight, torch.zeros(2 * plan.n_spots, dtype=torch.float64))))
    expected, right = Composite(built.linear, built.objective).value_and_grad(weight)
    assert value == pytest.approx(expected, rel=1e-13)
    assert float((gradient[: plan.n_spots] - right).abs().max()) < 1e-12 * float(right.abs().max())


def test_doses_are_computed_once_a_point(built, plan, monkeypatch):
    calls = []
    operator = type(built.doses[0])
    dose = operator.dose
    monkeypatch.setattr(operator, "dose", lambda self, *a, **k: calls.append("dose") or dose(self, *a, **k))
    gradient = operator.gradient
    monkeypatch.setattr(operator, "gradient", lambda self, *a, **k: calls.append("gradient") or gradient(self, *a, **k))
    problem = problem_of(built, plan)
    z = problem.packing.pack(plan)
    first = problem.value_and_grad(z)
    problem.image(z)
    assert calls == ["dose"] * 9 + ["gradient"] * 9
    z[-1] += 1.0  # in place: the store must not be taken for the new point
    second = problem.value_and_grad(z)
    assert calls.count("dose") == 18 and second[0] != first[0]
    assert second[0] == pytest.approx(oracle(built, plan, z)[0], rel=1e-12)


def test_pack_and_unpack_are_inverse(built, plan):
    problem = problem_of(built, plan)
    z = problem.packing.pack(plan)
    n = plan.n_spots
    assert torch.equal(z[n : 2 * n], (plan.position - plan.home)[:, 0]) and torch.equal(z[2 * n :], (plan.position - plan.home)[:, 1])
    again = problem.packing.unpack(z)
    assert torch.equal(again.weight, plan.weight) and torch.equal(again.index, plan.index) and torch.equal(again.home, plan.home)
    torch.testing.assert_close(again.position, plan.position, rtol=0, atol=1e-13)
    torch.testing.assert_close(problem.packing.pack(again), z, rtol=0, atol=1e-13)
    z[0] = -7.0
    assert float(again.weight[0]) != -7.0  # a copy, not a view


def test_moving_as_spots_and_back(built, plan):
    spots = plan.spots(built.spots)
    assert torch.equal(spots.position, plan.position) and torch.equal(spots.weight, plan.weight)
    assert torch.equal(spots.energy, built.spots.energy[plan.index]) and torch.equal(spots.beam, built.spots.beam[plan.index])
    assert torch.equal(plan.moved(), (plan.position - plan.home).norm(dim=1))
    again = MovingSpots(**plan.state_dict())
    assert all(torch.equal(getattr(again, k), getattr(plan, k)) for k in ("index", "home", "position", "weight"))
    again.weight[0] = -1.0
    assert plan.weight[0] >= 0
    few = plan.keep(plan.weight > 50)
    assert torch.equal(few.index, plan.index[plan.weight > 50]) and bool((few.weight > 50).all()) and 0 < few.n_spots < plan.n_spots
    # a beam that loses all its spots stays a beam
    one = plan.keep(built.spots.beam[plan.index] == 1).spots(built.spots)
    assert len(one.beams) == 2 and set(one.beam.tolist()) == {1}


def test_a_price_is_on_weights_alone(plan):
    cost, nothing = torch.arange(plan.n_spots, dtype=torch.float64), torch.zeros(2 * plan.n_spots, dtype=torch.float64)
    assert torch.equal(Packing(JOINT, plan).weight_cost(cost), torch.cat((cost, nothing)))
    assert torch.equal(Packing(POSITIONS, plan).weight_cost(cost), nothing)
    assert (Weights(), Positions()) == JOINT  # by value: a stage of `(Weights(),)` is one of weights


# --- bounds and scales ------------------------------------------------------------------------------------------------------------------


def test_position_bounds_are_box_and_rectangle():
    home = torch.tensor([[0.0, 0.0], [9.0, -8.0], [12.0, 0.0], [0.0, -30.0]])
    zeros = torch.zeros(4)
    plan = MovingSpots(torch.arange(4), home, home, zeros)
    low, high = torch.tensor([-10.0, -10.0]).expand(4, 2), torch.tensor([10.0, 10.0]).expand(4, 2)

    def bounds(box):
        return Positions().bounds(Room(plan, None, None, zeros, box, low, high))  # bounds look at places alone

    lower, upper = bounds(4.0)
    assert lower.tolist() == [-4, -4, -4, -4, -4, -2, -4, 0]
    assert upper.tolist() == [4, 1, 0, 4, 4, 4, 4, 4]  # one placed outside may stay and come in, not go further out
    assert not any(t.any() for t in bounds(0.0))
    lower, upper = bounds(100.0)
    assert lower[3] == 0 - 0 - 10 and upper[5] == 18 and bool((lower <= 0).all()) and bool((upper >= 0).all())


def test_position_scale_is_the_weights_times_a_third_of_sigma_over_weight(built):
    plan = MovingSpots.start(built.spots)
    plan.weight.copy_(torch.linspace(1.0, 3.0, plan.n_spots, dtype=torch.float64))
    scale, n = scale_of(built, plan), plan.n_spots
    by_weight = jacobi_scale(built.doses[0], plan.position, built.objective)
    assert torch.equal(scale[:n], by_weight) and torch.equal(scale[n : 2 * n], scale[2 * n :])
    torch.testing.assert_close(scale[n : 2 * n], by_weight * built.doses[0].spot_sigma() / (3 * 2.0), rtol=1e-12, atol=0)
    nothing = MovingSpots(plan.index, plan.home, plan.position, torch.zeros_like(plan.weight))
    found = scale_of(built, nothing)
    assert bool((torch.isfinite(found) & (found > 0)).all())


# --- singular places --------------------------------------------------------------------------------------------------------------------


def test_coinciding_spots_have_one_gradient(built, plan):
    problem = problem_of(built, plan)
    same = (built.spots.layer[plan.index] == built.spots.layer[plan.index][0]).nonzero().flatten()[:2]
    place = plan.home[same].mean(0)
    position = plan.position.clone()
    position[same] = place
    weight = plan.weight.clone()
    weight[same] = 20.0
    value, gradient = problem.value_and_grad(problem.packing.pack(MovingSpots(plan.index, plan.home, position, weight)))
    n = plan.n_spots
    assert math.isfinite(value) and bool(torch.isfinite(gradient).all())
    for block in range(3):
        a, b = gradient[block * n + same[0]], gradient[block * n + same[1]]
        assert float(a) == pytest.approx(float(b), rel=1e-9) and float(a) != 0
    # two of half the weight are one
    weight[same[0]], weight[same[1]] = 40.0, 0.0
    assert problem.value_and_grad(problem.packing.pack(MovingSpots(plan.index, plan.home, position, weight)))[0] == pytest.approx(
        value, rel=1e-12
    )


def test_a_spot_that_gives_no_dose_stays_and_fails_nothing(built, plan):
    """In one scenario, then in all: its gradient is what the others give, then zero."""
    position = plan.position.clone()
    position[0] += 900.0
    away = MovingSpots(plan.index, position, position, plan.weight)
    problem = problem_of(built, away)
    z, n = problem.packing.pack(away), plan.n_spots
    value, gradient = problem.value_and_grad(z)
    lost = torch.tensor([0, n, 2 * n])
    assert math.isfinite(value) and not gradient[lost].any() and int((gradient != 0).sum()) > 2 * n
    lower = torch.cat((torch.zeros(n), torch.full((2 * n,), -5.0))).double()
    upper = torch.cat((torch.full((n,), math.inf), torch.full((2 * n,), 5.0))).double()
    scale = scale_of(built, away)
    solution = minimize(problem, z, method="quasi_newton", lower=lower, upper=upper, scale=scale, max_iterations=5)
    assert solution.value < value and torch.equal(solution.x[lost], z[lost])


def test_a_scenario_without_dose_adds_its_value_and_no_gradient(built, plan):
    """The patient shifted half a metre aside: no voxel gets dose, so min_dose adds its constant, and the rest decides."""
    from torchimpt.dose.scenarios import ScenarioDoses, scenario_doses
    from torchimpt.scenarios import NOMINAL, Scenario

    part = plan.spots(built.spots)
    options = {"cutoff": 8.0, "dtype": torch.float64}
    aside = Scenario("aside", (500.0, 500.0, 500.0))
    operators = scenario_doses(built.patient, built.machine, part, built.points, (NOMINAL, aside), **options)
    both, alone = (SpotProblem(some, built.objective, Packing(JOINT, plan)) for some in (operators, ScenarioDoses(operators[:1])))
    z = both.packing.pack(plan)
    (value, gradient), (own, right) = both.value_and_grad(z), alone.value_and_grad(z)
    assert not both.image(z)[1].any()
    nothing = float(built.objective.value(torch.zeros(1, len(built.points), dtype=torch.float64)))
    assert value == pytest.approx(own + nothing, rel=1e-12) and nothing > 0 and torch.equal(gradient, right)
