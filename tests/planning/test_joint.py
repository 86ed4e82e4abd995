"""The functions of weights and positions: gradients against autograd of the dense oracle and finite differences, bounds, scales."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_case import tiny

from torchimpt.dose.dense import dense_dose
from torchimpt.monitor import Progress
from torchimpt.optim import minimize
from torchimpt.planning.joint import JointProblem, Moving, PositionProblem, joint_scale, position_bounds
from torchimpt.planning.plan import prepare
from torchimpt.planning.prepare import settings
from torchimpt.planning.weights import jacobi_scale, weight_problem

SMALL = ("dose.grid_mm=12", "spots.spacing_mm=20", "dose.dtype=float64", "dose.engine=matrix_free", "spots.stagger=false")
NINE = "robustness={setup_mm=4.0, range_percent=5.0}"


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """The tiny case in nine scenarios, two organs' objectives active, and a cut-off beyond which nothing is left."""
    case = tiny(tmp_path_factory.mktemp("joint"), *SMALL, NINE, "dose.cutoff_sigma=8", "objective[2].dose_gy=0")
    return prepare(case, settings("cpu", "float64", None, 1), Progress(enabled=False), {})


@pytest.fixture
def plan(ready, generator) -> Moving:
    """Every third spot, off its place by up to 4 mm, with a random weight; one of them weightless."""
    plan = Moving.start(ready.spots).keep(torch.arange(ready.spots.n_spots) % 3 == 0)
    off = 8 * torch.rand(plan.n_spots, 2, dtype=torch.float64, generator=generator) - 4
    weight = 100 * torch.rand(plan.n_spots, dtype=torch.float64, generator=generator)
    weight[4] = 0.0
    return Moving(plan.index, plan.home, plan.home + off, weight)


def problem_of(ready, plan: Moving) -> JointProblem:
    return JointProblem([o.subset(plan.index) for o in ready.operators], ready.objective, plan.home)


def oracle(ready, plan: Moving, z: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Value and gradient by autograd through the plain dense formula of all spots, those left out with weight zero."""
    z = z.clone().requires_grad_()
    n = plan.n_spots
    everywhere = ready.spots.position.detach().index_copy(0, plan.index, plan.home + torch.stack((z[n : 2 * n], z[2 * n :]), dim=1))
    weight = torch.zeros(ready.spots.n_spots, dtype=torch.float64).index_copy(0, plan.index, z[:n])
    value = ready.objective(torch.stack([dense_dose(o, everywhere, weight) for o in ready.operators]))
    return float(value.detach()), torch.autograd.grad(value, z)[0]


def test_scenarios_shift_and_scale(ready):
    assert len(ready.scenarios) == 9
    assert sum(s.shift != (0, 0, 0) for s in ready.scenarios) == 6 and sum(s.range_scale != 1 for s in ready.scenarios) == 2


def test_joint_gradient_is_autograd_of_the_dense_oracle(ready, plan):
    problem = problem_of(ready, plan)
    z = problem.pack(plan)
    value, gradient = problem.value_and_grad(z)
    expected, right = oracle(ready, plan, z)
    n = plan.n_spots
    assert value == pytest.approx(expected, rel=1e-12)
    for part in (slice(0, n), slice(n, 2 * n), slice(2 * n, 3 * n)):  # each in its own unit
        assert float((gradient[part] - right[part]).abs().max()) < 1e-10 * float(right[part].abs().max())
    held = torch.tensor([n + 4, 2 * n + 4])
    assert not gradient[held].any() and bool(gradient[4] != 0)  # without weight no pull on the place, but one on the weight


def test_joint_gradient_is_that_of_finite_differences(ready, plan, generator):
    problem = problem_of(ready, plan)
    z, n = problem.pack(plan), plan.n_spots
    _, gradient = problem.value_and_grad(z)
    z[4] = 1.0  # off the bound, so that both sides are inside
    _, gradient = problem.value_and_grad(z)
    for part in (slice(0, n), slice(n, 3 * n), slice(0, 3 * n)):
        step = torch.zeros_like(z)
        step[part] = torch.rand(z[part].shape, dtype=torch.float64, generator=generator) - 0.5
        h = 1e-4
        ahead, behind = (problem.value_and_grad(z + s * h * step)[0] for s in (1, -1))
        assert (ahead - behind) / (2 * h) == pytest.approx(float(gradient @ step), rel=1e-6)


def test_position_gradient_is_the_joint_ones_part(ready, plan):
    joint = problem_of(ready, plan)
    z, n = joint.pack(plan), plan.n_spots
    problem = PositionProblem(joint, plan.weight)
    value, gradient = problem.value_and_grad(z[n:])
    whole, right = joint.value_and_grad(z)
    assert value == whole and torch.equal(gradient, right[n:]) and torch.equal(problem.image(z[n:]), joint.image(z))
    assert float((gradient - oracle(ready, plan, z)[1][n:]).abs().max()) < 1e-10 * float(gradient.abs().max())


def test_at_home_the_weight_gradient_is_the_weight_problems(ready, generator):
    plan = Moving.start(ready.spots)
    problem = JointProblem(ready.operators, ready.objective, plan.home)
    weight = 50 * torch.rand(plan.n_spots, dtype=torch.float64, generator=generator)
    value, gradient = problem.value_and_grad(torch.cat((weight, torch.zeros(2 * plan.n_spots, dtype=torch.float64))))
    expected, right = weight_problem(ready.engine, ready.objective).value_and_grad(weight)
    assert value == pytest.approx(expected, rel=1e-13)
    assert float((gradient[: plan.n_spots] - right).abs().max()) < 1e-12 * float(right.abs().max())


def test_doses_are_computed_once_a_point(ready, plan, monkeypatch):
    calls = []
    operator = type(ready.operators[0])
    dose = operator.dose
    monkeypatch.setattr(operator, "dose", lambda self, *a, **k: calls.append("dose") or dose(self, *a, **k))
    gradient = operator.gradient
    monkeypatch.setattr(operator, "gradient", lambda self, *a, **k: calls.append("gradient") or gradient(self, *a, **k))
    problem = problem_of(ready, plan)
    z = problem.pack(plan)
    first = problem.value_and_grad(z)
    problem.image(z)
    assert calls == ["dose"] * 9 + ["gradient"] * 9
    z[-1] += 1.0  # in place: the store must not be taken for the new point
    second = problem.value_and_grad(z)
    assert calls.count("dose") == 18 and second[0] != first[0]
    assert second[0] == pytest.approx(oracle(ready, plan, z)[0], rel=1e-12)


def test_pack_and_unpack_are_inverse(ready, plan):
    problem = problem_of(ready, plan)
    z = problem.pack(plan)
    n = plan.n_spots
    assert torch.equal(z[n : 2 * n], (plan.position - plan.home)[:, 0]) and torch.equal(z[2 * n :], (plan.position - plan.home)[:, 1])
    again = problem.unpack(plan, z)
    assert torch.equal(again.weight, plan.weight) and torch.equal(again.index, plan.index) and torch.equal(again.home, plan.home)
    torch.testing.assert_close(again.position, plan.position, rtol=0, atol=1e-13)
    torch.testing.assert_close(problem.pack(again), z, rtol=0, atol=1e-13)
    z[0] = -7.0
    assert float(again.weight[0]) != -7.0  # a copy, not a view


def test_moving_as_spots_and_back(ready, plan):
    spots = plan.spots(ready.spots)
    assert torch.equal(spots.position, plan.position) and torch.equal(spots.weight, plan.weight)
    assert torch.equal(spots.energy, ready.spots.energy[plan.index]) and torch.equal(spots.beam, ready.spots.beam[plan.index])
    assert torch.equal(plan.moved(), (plan.position - plan.home).norm(dim=1))
    again = Moving(**plan.state_dict())
    assert all(torch.equal(getattr(again, k), getattr(plan, k)) for k in ("index", "home", "position", "weight"))
    again.weight[0] = -1.0
    assert plan.weight[0] >= 0
    few = plan.keep(plan.weight > 50)
    assert torch.equal(few.index, plan.index[plan.weight > 50]) and bool((few.weight > 50).all()) and 0 < few.n_spots < plan.n_spots
    # a beam that loses all its spots stays a beam
    one = plan.keep(ready.spots.beam[plan.index] == 1).spots(ready.spots)
    assert len(one.beams) == 2 and set(one.beam.tolist()) == {1}


# --- bounds and scales ------------------------------------------------------------------------------------------------------------------


def test_position_bounds_are_box_and_rectangle():
    home = torch.tensor([[0.0, 0.0], [9.0, -8.0], [12.0, 0.0], [0.0, -30.0]])
    zeros = torch.zeros(4)
    plan = Moving(torch.arange(4), home, home, zeros)
    low, high = torch.tensor([-10.0, -10.0]).expand(4, 2), torch.tensor([10.0, 10.0]).expand(4, 2)
    lower, upper = position_bounds(plan, 4.0, low, high)
    assert lower.tolist() == [-4, -4, -4, -4, -4, -2, -4, 0]
    assert upper.tolist() == [4, 1, 0, 4, 4, 4, 4, 4]  # one placed outside may stay and come in, not go further out
    assert not any(t.any() for t in position_bounds(plan, 0.0, low, high))
    lower, upper = position_bounds(plan, 100.0, low, high)
    assert lower[3] == 0 - 0 - 10 and upper[5] == 18 and bool((lower <= 0).all()) and bool((upper >= 0).all())


def test_position_scale_is_the_weights_times_a_third_of_sigma_over_weight(ready):
    plan = Moving.start(ready.spots)
    plan.weight.copy_(torch.linspace(1.0, 3.0, plan.n_spots, dtype=torch.float64))
    scale, n = joint_scale(ready.operators[0], plan, ready.objective), plan.n_spots
    by_weight = jacobi_scale(ready.operators[0], plan.position, ready.objective.bound)
    assert torch.equal(scale[:n], by_weight) and torch.equal(scale[n : 2 * n], scale[2 * n :])
    torch.testing.assert_close(scale[n : 2 * n], by_weight * ready.operators[0].spot_sigma() / (3 * 2.0), rtol=1e-12, atol=0)
    nothing = Moving(plan.index, plan.home, plan.position, torch.zeros_like(plan.weight))
    found = joint_scale(ready.operators[0], nothing, ready.objective)
    assert bool((torch.isfinite(found) & (found > 0)).all())


# --- singular places --------------------------------------------------------------------------------------------------------------------


def test_coinciding_spots_have_one_gradient(ready, plan):
    problem = problem_of(ready, plan)
    same = (ready.spots.layer[plan.index] == ready.spots.layer[plan.index][0]).nonzero().flatten()[:2]
    place = plan.home[same].mean(0)
    position = plan.position.clone()
    position[same] = place
    weight = plan.weight.clone()
    weight[same] = 20.0
    value, gradient = problem.value_and_grad(problem.pack(Moving(plan.index, plan.home, position, weight)))
    n = plan.n_spots
    assert math.isfinite(value) and bool(torch.isfinite(gradient).all())
    for block in range(3):
        a, b = gradient[block * n + same[0]], gradient[block * n + same[1]]
        assert float(a) == pytest.approx(float(b), rel=1e-9) and float(a) != 0
    # two of half the weight are one
    weight[same[0]], weight[same[1]] = 40.0, 0.0
    assert problem.value_and_grad(problem.pack(Moving(plan.index, plan.home, position, weight)))[0] == pytest.approx(value, rel=1e-12)


def test_a_spot_that_gives_no_dose_stays_and_fails_nothing(ready, plan):
    """In one scenario, then in all: its gradient is what the others give, then zero."""
    position = plan.position.clone()
    position[0] += 900.0
    away = Moving(plan.index, position, position, plan.weight)
    problem = problem_of(ready, away)
    z, n = problem.pack(away), plan.n_spots
    value, gradient = problem.value_and_grad(z)
    lost = torch.tensor([0, n, 2 * n])
    assert math.isfinite(value) and not gradient[lost].any() and int((gradient != 0).sum()) > 2 * n
    lower = torch.cat((torch.zeros(n), torch.full((2 * n,), -5.0))).double()
    upper = torch.cat((torch.full((n,), math.inf), torch.full((2 * n,), 5.0))).double()
    scale = joint_scale(problem.operators[0], away, ready.objective)
    solution = minimize(problem, z, method="quasi_newton", lower=lower, upper=upper, scale=scale, max_iterations=5)
    assert solution.value < value and torch.equal(solution.x[lost], z[lost])


def test_a_scenario_without_dose_adds_its_value_and_no_gradient(ready, plan):
    """The patient shifted half a metre aside: no voxel gets dose, so min_dose adds its constant, and the rest decides."""
    from torchimpt.dose.operator import dose_operators
    from torchimpt.scenarios import NOMINAL, Scenario

    part = plan.spots(ready.spots)
    options = {"cutoff": 8.0, "dtype": torch.float64}
    aside = Scenario("aside", (500.0, 500.0, 500.0))
    operators = dose_operators(ready.patient, ready.machine, part, ready.voxels, (NOMINAL, aside), **options)
    both, alone = JointProblem(operators, ready.objective, plan.home), JointProblem(operators[:1], ready.objective, plan.home)
    z = both.pack(plan)
    (value, gradient), (own, right) = both.value_and_grad(z), alone.value_and_grad(z)
    assert not both.image(z)[1].any()
    nothing = float(ready.objective.value(torch.zeros(1, len(ready.voxels), dtype=torch.float64)))
    assert value == pytest.approx(own + nothing, rel=1e-12) and nothing > 0 and torch.equal(gradient, right)
