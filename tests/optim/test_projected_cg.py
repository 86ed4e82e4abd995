"""`ProjectedCG`: the torch contract, bounds, groups, and the same iterates as `minimize`."""

from __future__ import annotations

import copy
import io
from itertools import pairwise

import pytest
import torch
from problems import Plan, Rosenbrock, random_quadratic
from torch import nn

from torchimpt.checks import InputError
from torchimpt.geometry import Beam
from torchimpt.optim import ProjectedCG, minimize
from torchimpt.spots import Spots


def rosenbrock(x: torch.Tensor) -> torch.Tensor:
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def closure_of(optimizer: torch.optim.Optimizer, loss):
    """What a training script writes."""

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    return closure


def run(optimizer: ProjectedCG, loss, n_steps: int) -> list[float]:
    closure = closure_of(optimizer, loss)
    return [float(optimizer.step(closure)) for _ in range(n_steps)]


@pytest.mark.parametrize("beta", ["dyhs", "hs", "pr+"])
@pytest.mark.parametrize("upper", [None, 0.8])
def test_rosenbrock(beta, upper) -> None:
    x = nn.Parameter(torch.full((3,), -1.2, dtype=torch.float64))
    optimizer = ProjectedCG([x], lower=-1.5, upper=upper, beta=beta)
    values = []
    while not optimizer.stalled and len(values) < 150:
        values += run(optimizer, lambda: rosenbrock(x), 1)
    best = minimize(Rosenbrock(), torch.zeros(3, dtype=torch.float64), lower=-1.5, upper=upper or 9.0, method="lbfgs", tolerance=1e-14)
    assert values[-1] == pytest.approx(best.value, rel=1e-6, abs=1e-6)
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(values))


@pytest.mark.parametrize("beta", ["dyhs", "dy", "hs", "pr+", "fr"])
def test_every_rule_reaches_a_clamped_minimum(beta, generator) -> None:
    """Dai-Yuan and Fletcher-Reeves, too, which never restart and would take thousands of steps in a bent valley."""
    problem = random_quadratic(20, 30.0, generator)
    x = nn.Parameter(torch.full((20,), 0.5, dtype=torch.float64))
    optimizer = ProjectedCG([x], lower=0.0, upper=0.9, beta=beta)
    difference = lambda: x - problem.center  # noqa: E731
    loss = lambda: 0.5 * difference() @ problem.hessian @ difference()  # noqa: E731
    values = []
    while not optimizer.stalled and len(values) < 300:
        values += run(optimizer, loss, 1)
    best = minimize(problem, torch.full((20,), 0.5, dtype=torch.float64), upper=0.9, method="lbfgs", tolerance=1e-14).value
    assert float(loss().detach()) == pytest.approx(best, rel=1e-8)
    assert bool(((x == 0.0) | (x == 0.9)).any()), "some bound holds"


@pytest.mark.parametrize("restrict", [False, True])
def test_same_iterates_as_minimize(restrict, generator) -> None:
    problem = random_quadratic(20, 100.0, generator)
    x = nn.Parameter(torch.rand(20, dtype=torch.float64, generator=generator))
    iterates = []
    method = "projected_cg" if restrict else "dyhs_cg"
    minimize(problem, x.detach(), method=method, max_iterations=20, tolerance=0.0, callback=lambda r: iterates.append(r.x.clone()))
    optimizer = ProjectedCG([x], lower=0.0, restrict=restrict)
    closure = closure_of(optimizer, lambda: 0.5 * (x - problem.center) @ problem.hessian @ (x - problem.center))
    for iterate in iterates[1:]:
        optimizer.step(closure)
        torch.testing.assert_close(x.detach(), iterate, rtol=1e-9, atol=1e-12)


def test_every_call_of_the_closure_is_within_the_bounds(generator) -> None:
    problem = random_quadratic(20, 1000.0, generator)
    x = nn.Parameter(torch.rand(20, dtype=torch.float64, generator=generator))
    seen = []

    def loss() -> torch.Tensor:
        seen.append(x.detach().clone())
        return 0.5 * (x - problem.center) @ problem.hessian @ (x - problem.center)

    upper = torch.linspace(0.5, 1.5, 20, dtype=torch.float64)
    with torch.no_grad():
        x.copy_(torch.minimum(x, upper))
    run(ProjectedCG([x], lower=0.0, upper=upper), loss, 40)
    assert len(seen) > 40 and all(bool((s >= 0).all() and (s <= upper).all()) for s in seen)
    assert any((s == 0).any() for s in seen) and any((s == upper).any() for s in seen)


def test_groups_have_their_own_bounds_and_scales() -> None:
    """Weights and positions: bounded below, and free within a box, in units that differ by a factor of a thousand."""
    weight = nn.Parameter(torch.ones(5, dtype=torch.float64))
    position = nn.Parameter(torch.zeros(5, 2, dtype=torch.float64))
    center = torch.tensor([3.0, -20.0], dtype=torch.float64)

    def loss() -> torch.Tensor:
        return 1e6 * (weight - torch.tensor([1e-3, -1e-3, 2e-3, 0.0, 1e-3])).square().sum() + (position - center).square().sum()

    groups = [{"params": [weight], "lower": 0.0, "scale": 1e-3}, {"params": [position], "lower": -5.0, "upper": 5.0}]
    optimizer = ProjectedCG(groups)
    run(optimizer, loss, 30)
    torch.testing.assert_close(weight.detach(), torch.tensor([1e-3, 0, 2e-3, 0, 1e-3], dtype=torch.float64), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(position.detach(), torch.tensor([3.0, -5.0], dtype=torch.float64).expand(5, 2), rtol=1e-4, atol=1e-4)
    assert optimizer.param_groups[1]["upper"] == 5.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_state_dict_continues_bit_for_bit(dtype) -> None:
    plan = Plan(dtype, shifts=(-2.0, 2.0))
    x = nn.Parameter(plan.start.clone())
    optimizer = ProjectedCG([x], lower=0.0, scale=plan.scale)
    run(optimizer, lambda: plan.objective(plan.matrices @ x), 15)
    file = io.BytesIO()
    torch.save({"x": x.detach(), "optimizer": optimizer.state_dict()}, file)
    values = run(optimizer, lambda: plan.objective(plan.matrices @ x), 15)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = nn.Parameter(saved["x"])
    resumed = ProjectedCG([again], beta="fr")
    resumed.load_state_dict(saved["optimizer"])
    assert resumed.param_groups[0]["beta"] == "dyhs"
    assert run(resumed, lambda: plan.objective(plan.matrices @ again), 15) == values
    assert torch.equal(again, x)
    assert resumed.report == optimizer.report


def test_report_and_returned_value(generator) -> None:
    x = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    optimizer = ProjectedCG([x])
    with pytest.raises(InputError, match="no report before the first step"):
        _ = optimizer.report
    calls = []
    first = optimizer.step(closure_of(optimizer, lambda: (calls.append(1), rosenbrock(x))[1]))
    assert float(first) == 3.0
    assert optimizer.report["value"] == pytest.approx(float(rosenbrock(x.detach())))
    assert optimizer.report["evaluations"] == len(calls) and optimizer.report["iteration"] == 1
    torch.testing.assert_close(x.grad, torch.autograd.grad(rosenbrock(x), x)[0])


def test_moved_parameters_start_afresh_and_a_changed_loss_is_seen_when_told() -> None:
    x = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    target = torch.ones(3, dtype=torch.float64)
    optimizer = ProjectedCG([x], reuse=False)

    def loss() -> torch.Tensor:
        return (x - target).square().sum()

    run(optimizer, loss, 5)
    target.mul_(4)
    assert run(optimizer, loss, 1)[0] == pytest.approx(27.0, rel=1e-6)
    with torch.no_grad():
        x.fill_(10.0)
    reusing = ProjectedCG([x])
    run(reusing, loss, 1)
    with torch.no_grad():
        x.fill_(6.0)
    assert run(reusing, loss, 1)[0] == 12.0


def test_at_a_minimum_it_stalls_and_stays() -> None:
    x = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = ProjectedCG([x], lower=0.0)
    run(optimizer, lambda: (x + 1).square().sum(), 2)
    assert optimizer.stalled and not x.any()


def test_deepcopy_and_unused_parameters(generator) -> None:
    used, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    optimizer = ProjectedCG([used, unused])
    run(optimizer, lambda: used.square().sum(), 10)
    assert used.abs().max() < 1e-3 and torch.equal(unused, torch.ones(2))
    assert copy.deepcopy(optimizer).state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda x: ProjectedCG([x], beta="dhys"), InputError, "did you mean 'dyhs'"),
        (lambda x: ProjectedCG([x], delta=0.9, theta=0.1), InputError, "0 < delta < theta < 1"),
        (lambda x: ProjectedCG([x], lower=2.0), InputError, "3 parameter components are outside the bounds"),
        (lambda x: ProjectedCG([x, nn.Parameter(torch.ones(1).double())]), TypeError, "one dtype"),
        (lambda x: ProjectedCG([{"params": [x]}, {"params": [nn.Parameter(torch.ones(1))], "beta": "fr"}]), InputError, "'beta' is common"),
        (lambda x: ProjectedCG([x], scale=0.0).step(lambda: x.sum()), InputError, "scale must be a positive"),
    ],
)
def test_wrong_arguments_say_so(make, error, message) -> None:
    with pytest.raises(error, match=message):
        make(nn.Parameter(torch.ones(3)))


def test_a_closure_that_is_not_finite_says_so() -> None:
    x = nn.Parameter(torch.ones(3))
    optimizer = ProjectedCG([x])
    with pytest.raises(ValueError, match="objective is nan"):
        optimizer.step(closure_of(optimizer, lambda: x.sum() * float("nan")))


def test_a_copy_of_an_optimizer_keeps_its_parameters_own_bounds():
    x = nn.Parameter(torch.ones(3, dtype=torch.float64))
    x.lower = 0.0
    twin = copy.deepcopy(ProjectedCG([x]))
    y = twin.param_groups[0]["params"][0]
    run(twin, lambda: (y + 3).square().sum(), 10)
    assert y is not x and not y.any()


@pytest.mark.parametrize("copied", [False, True], ids=["itself", "a deep copy"])
def test_the_weights_of_spots_bring_their_own_bound(copied):
    spots = Spots.from_columns([Beam(isocenter=(0, 0, 0))], [0, 0], [100.0, 100.0], [-5.0, 5.0], [0.0, 0.0], [1.0, 1.0], torch.float64)
    spots = copy.deepcopy(spots) if copied else spots
    optimizer = ProjectedCG(spots.parameters(), beta="dyhs")

    def closure():
        optimizer.zero_grad()
        loss = ((spots.weight - torch.tensor([-3.0, 2.0])) ** 2).sum() + ((spots.position + 7.0) ** 2).sum()
        loss.backward()
        return loss

    for _ in range(20):
        optimizer.step(closure)
    torch.testing.assert_close(spots.weight.detach(), torch.tensor([0.0, 2.0], dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(spots.position.detach(), torch.full((2, 2), -7.0, dtype=torch.float64), rtol=0, atol=1e-6)
