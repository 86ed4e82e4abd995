"""The projected quasi-Newton step: its direction against dense BFGS, SciPy, bounds at every point, resuming, and what it passes over.

`test_minimize` runs it with the other methods on quadratics, Rosenbrock's valley, limits and wrong input.
"""

from __future__ import annotations

import copy
import io
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from problems import Plan, Quadratic, Rosenbrock, random_quadratic
from scipy import optimize

from torchimpt.optim import Status, minimize
from torchimpt.optim.direction import Bounds
from torchimpt.optim.quasi_newton import PAIRS, Pairs, QuasiNewtonStep, newton_like
from torchimpt.optim.steps import State, WolfeStep

METHOD = "quasi_newton"
EXACT = {"method": METHOD, "tolerance": 1e-13, "max_iterations": 2000}


class Bent:
    """Weights and positions in small: `sum_i (sum_s w_s exp(-(i - x_s)^2 / 8) - d_i)^2` of `z = (w, x)`, no linear map."""

    def __init__(self, n: int = 5, dtype: torch.dtype = torch.float64) -> None:
        self.n, self.places = n, torch.arange(30, dtype=dtype)
        self.asked = torch.where((self.places > 5) & (self.places < 20), 3.0, 0.0).to(dtype)
        self.start = torch.cat((torch.ones(n, dtype=dtype), torch.linspace(2.0, 27.0, n, dtype=dtype)))
        self.points: list[torch.Tensor] = []

    def value_and_grad(self, z: torch.Tensor) -> tuple[float, torch.Tensor]:
        self.points.append(z.clone())
        weight, place = z[: self.n], z[self.n :]
        apart = self.places[:, None] - place
        bump = torch.exp(-(apart**2) / 8)
        rest = bump @ weight - self.asked
        return float(rest @ rest), 2 * torch.cat((bump.T @ rest, weight * ((bump * apart / 4).T @ rest)))


def dense_inverse(moves: torch.Tensor, changes: torch.Tensor, metric: torch.Tensor) -> torch.Tensor:
    """BFGS inverse Hessian by its update formula, from `H_0 = M s'y / y'My` of the newest pair."""
    s, y = moves[-1], changes[-1]
    eye = torch.eye(len(metric), dtype=metric.dtype)
    inverse = torch.diag(metric) * (s @ y) / (y @ (metric * y))
    for s, y in zip(moves, changes, strict=True):
        rho = 1 / (s @ y)
        inverse = (eye - rho * torch.outer(s, y)) @ inverse @ (eye - rho * torch.outer(y, s)) + rho * torch.outer(s, s)
    return inverse


def pairs_of_a_quadratic(n: int, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Random moves, and what they change the gradient of a quadratic by: positive curvature all."""
    moves = torch.randn(count, n, dtype=torch.float64, generator=generator)
    return moves, moves @ random_quadratic(n, 50.0, generator).hessian


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("scaled", [False, True])
def test_two_loops_are_the_dense_product(count, scaled, generator) -> None:
    moves, changes = pairs_of_a_quadratic(7, count, generator)
    gradient = torch.randn(7, dtype=torch.float64, generator=generator)
    metric = torch.logspace(-1, 1, 7, dtype=torch.float64) if scaled else None
    found = newton_like(gradient, moves, changes, metric)
    inverse = dense_inverse(moves, changes, torch.ones(7, dtype=torch.float64) if metric is None else metric)
    torch.testing.assert_close(found, -inverse @ gradient, rtol=1e-10, atol=1e-12)
    # the newest pair's secant equation: H y = s
    torch.testing.assert_close(newton_like(-changes[-1], moves, changes, metric), moves[-1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("bad", [-1.0, 0.0], ids=["negative", "zero"])
@pytest.mark.parametrize("place", [0, 1, 3], ids=["oldest", "middle", "newest"])
def test_pairs_without_positive_curvature_are_passed_over(bad, place, generator) -> None:
    moves, changes = pairs_of_a_quadratic(6, 3, generator)
    gradient = torch.randn(6, dtype=torch.float64, generator=generator)
    wrong = torch.randn(6, dtype=torch.float64, generator=generator)
    with_wrong = [torch.cat((t[:place], w[None], t[place:])) for t, w in ((moves, wrong), (changes, bad * wrong))]
    assert torch.equal(newton_like(gradient, *with_wrong, None), newton_like(gradient, moves, changes, None))
    metric = torch.linspace(1.0, 2.0, 6, dtype=torch.float64)
    assert torch.equal(newton_like(gradient, wrong[None], bad * wrong[None], metric), -metric * gradient)


def test_held_components_have_no_part_in_the_direction(generator) -> None:
    moves, changes = pairs_of_a_quadratic(6, 4, generator)
    x, gradient = torch.full((6,), 0.5, dtype=torch.float64), torch.randn(6, dtype=torch.float64, generator=generator)
    x[1], gradient[1] = 0.0, 3.0  # held below
    x[4], gradient[4] = 1.0, -2.0  # held above
    free = torch.tensor([0, 2, 3, 5])
    step = QuasiNewtonStep(Bounds(0.0, 1.0))
    found = step.direction(State(x, 0.0, gradient, memory=Pairs(moves, changes)))
    expected = newton_like(gradient[free], moves[:, free], changes[:, free], None)
    assert not found.vector[[1, 4]].any() and found.beta is None
    torch.testing.assert_close(found.vector[free], expected, rtol=1e-12, atol=0)
    assert found.slope == pytest.approx(float(gradient[free] @ expected)) and found.slope < 0


def test_a_direction_never_points_out_of_the_bounds(generator) -> None:
    """A component at a bound that the gradient pulls inside may still get a Newton direction that points outside."""
    hessian = torch.tensor([[2.0, 1.8], [1.8, 2.0]], dtype=torch.float64)
    moves = torch.eye(2, dtype=torch.float64)
    x, gradient = torch.tensor([0.0, 1.0], dtype=torch.float64), torch.tensor([-0.1, -5.0], dtype=torch.float64)
    raw = newton_like(gradient, moves, moves @ hessian, None)
    assert raw[0] < 0
    found = QuasiNewtonStep(Bounds(0.0, math.inf)).direction(State(x, 0.0, gradient, memory=Pairs(moves, moves @ hessian)))
    assert found.vector[0] == 0 and found.vector[1] > 0


# --- whole runs -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaled", [False, True])
def test_clamped_quadratics_agree_with_scipy(scaled, generator) -> None:
    for n in (4, 15, 50):
        problem = random_quadratic(n, 1e4, generator)
        scale = problem.hessian.diagonal().rsqrt() if scaled else None
        solution = minimize(problem, torch.ones(n, dtype=torch.float64), lower=0.0, upper=1.1, scale=scale, **EXACT)
        root = np.linalg.cholesky(problem.hessian.numpy()).T
        reference = optimize.lsq_linear(root, root @ problem.center.numpy(), bounds=(0.0, 1.1), tol=1e-15, method="bvls")
        assert solution.converged and bool((solution.x == 0).any()) and bool((solution.x > 0).any())
        assert solution.value == pytest.approx(reference.cost, rel=1e-8)
        np.testing.assert_allclose(solution.x.numpy(), reference.x, atol=1e-4)


@pytest.mark.parametrize(("lower", "upper"), [(-2.0, 0.8), (-0.5, 2.0), (1.1, 3.0)])
def test_rosenbrock_with_bounds_agrees_with_scipy(lower, upper) -> None:
    """The valley's floor cut off by the upper bound, free, and by the lower bound."""
    problem, x0 = Rosenbrock(), np.full(5, max(lower, -0.5))
    solution = minimize(problem, torch.from_numpy(x0), lower=lower, upper=upper, **EXACT)
    reference = optimize.minimize(
        lambda x: tuple(np.asarray(v) for v in Rosenbrock().value_and_grad(torch.from_numpy(x))),
        x0, jac=True, method="L-BFGS-B", bounds=optimize.Bounds(lower, upper), options={"ftol": 1e-15, "gtol": 1e-10},
    )  # fmt: skip
    assert solution.value == pytest.approx(float(reference.fun), rel=1e-7, abs=1e-11)
    np.testing.assert_allclose(solution.x.numpy(), reference.x, atol=1e-5)
    assert all(bool((x >= lower).all() and (x <= upper).all()) for x in problem.points)
    # it remembers curvature: steepest descent and its kin need many times as many evaluations here
    assert len(problem.points) < 3 * reference.nfev + 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_and_positions_fall_within_their_bounds(dtype) -> None:
    problem = Bent(dtype=dtype)
    lower = torch.cat((torch.zeros(5), problem.start[5:] - 4)).to(dtype)
    upper = torch.cat((torch.full((5,), math.inf), problem.start[5:] + 4)).to(dtype)
    scale = torch.cat((torch.full((5,), 0.4), torch.full((5,), 0.8))).to(dtype)
    solution = minimize(problem, problem.start, lower=lower, upper=upper, scale=scale, method=METHOD, tolerance=1e-5, max_iterations=500)
    assert all(bool((x >= lower).all() and (x <= upper).all()) for x in problem.points)
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in pairwise(row["value"] for row in solution.history))
    assert bool((solution.x == lower).any() or (solution.x == upper).any())
    reference = optimize.minimize(
        lambda z: tuple(np.asarray(v) for v in Bent().value_and_grad(torch.from_numpy(z))), Bent().start.numpy(), jac=True,
        method="L-BFGS-B", bounds=optimize.Bounds(lower.double().numpy(), upper.double().numpy()), options={"ftol": 1e-15, "gtol": 1e-9},
    )  # fmt: skip
    assert solution.x.dtype == dtype and solution.converged
    assert solution.value == pytest.approx(float(reference.fun), rel=1e-3 if dtype is torch.float32 else 1e-4)
    conjugate = minimize(Bent(dtype=dtype), problem.start, lower=lower, upper=upper, scale=scale, tolerance=1e-5, max_iterations=500)
    assert solution.evaluations < conjugate.evaluations and solution.value <= 1.001 * conjugate.value


def test_plan_in_float32_reaches_the_float64_objective() -> None:
    single, double = (
        minimize(Plan(dtype).problem, Plan(dtype).start, scale=Plan(dtype).scale, method=METHOD, tolerance=1e-6, max_iterations=300)
        for dtype in (torch.float32, torch.float64)
    )
    assert single.x.dtype == torch.float32 and single.value == pytest.approx(double.value, rel=1e-3)
    assert double.value <= 1.001 * minimize(Plan().problem, Plan().start, scale=Plan().scale, tolerance=1e-6, max_iterations=300).value


def test_twenty_pairs_are_remembered_newest_last() -> None:
    states = []
    minimize(Bent(8), Bent(8).start, method=METHOD, tolerance=0.0, max_iterations=30, callback=lambda r: states.append(r.state()["solver"]))
    pairs = [s["memory"] for s in states]
    sizes = [0 if p is None else len(p["moves"]) for p in pairs[: PAIRS + 6]]
    assert sizes == [*range(PAIRS + 1), *[PAIRS] * 5]
    for (old, before), (new, after) in pairwise(zip(states[:26], pairs[:26], strict=True)):
        assert torch.equal(after["moves"][-1], new["x"] - old["x"]) and torch.equal(after["changes"][-1], new["gradient"] - old["gradient"])
        if before is not None:
            assert torch.equal(after["moves"][:-1], before["moves"][-(len(after["moves"]) - 1) :])


def same(a: State, b: State) -> bool:
    """Whether two states hold the same numbers."""
    left, right = ({**vars(state), **(vars(state.memory) if state.memory else {}), "memory": type(state.memory)} for state in (a, b))
    equal = [torch.equal(x, right[name]) if isinstance(x, torch.Tensor) else x == right[name] for name, x in left.items()]
    return left.keys() == right.keys() and all(equal)


@pytest.mark.parametrize("method", ["projected_cg", "dyhs_cg", "quasi_newton"])
def test_a_step_leaves_its_state_as_it_was(method, generator) -> None:
    """Also where it has to start again along steepest descent: the gradient has turned round, so that the remembered direction is none."""
    problem = random_quadratic(8, 1e2, generator)
    steps = {"projected_cg": WolfeStep(Bounds(0.0, math.inf)), "dyhs_cg": WolfeStep(Bounds(0.0, math.inf), restrict=False)}
    step = steps.get(method, QuasiNewtonStep(Bounds(0.0, math.inf)))
    state = State.start(problem, torch.ones(8, dtype=torch.float64))
    for _ in range(4):
        before = copy.deepcopy(state)
        attempt = step(problem, state)
        assert attempt.moved and attempt.state.evaluations > state.evaluations and same(state, before)
        state = attempt.state
    wrong = Quadratic(-problem.hessian, problem.center)
    stuck = replace(state, gradient=-state.gradient, value=-1e9)
    before = copy.deepcopy(stuck)
    attempt = step(wrong, stuck)
    assert not attempt.moved and attempt.finite and attempt.state.memory is None and torch.equal(attempt.state.x, stuck.x)
    assert attempt.state.evaluations > stuck.evaluations + 25 and same(stuck, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("at", [1, 7, 24])
def test_a_resumed_run_repeats_its_iterates_bit_for_bit(dtype, at) -> None:
    problem = Bent(8, dtype)
    options = {"method": METHOD, "lower": 0.0, "upper": 30.0, "tolerance": 0.0, "max_iterations": 40}
    whole = minimize(problem, problem.start, **options)
    saved = {}

    def keep(record) -> bool:
        saved["state"] = record.state()
        return record.iteration == at

    stopped = minimize(problem, problem.start, callback=keep, **options)
    assert stopped.status is Status.STOPPED and stopped.iterations == at < whole.iterations
    file = io.BytesIO()
    torch.save(saved["state"], file)
    file.seek(0)
    rest = minimize(problem, problem.start, state=torch.load(file, weights_only=True), **options)
    assert torch.equal(rest.x, whole.x) and torch.equal(rest.gradient, whole.gradient) and rest.evaluations == whole.evaluations
    assert [row["value"] for row in rest.history] == [row["value"] for row in whole.history]


def test_a_saddle_is_left_downhill() -> None:
    """On `x^2 - y^2 + y^4 / 4` curvature along y is negative near the start; its minima are at `y^2 = 2`, `F = -1`."""

    class Saddle:
        def value_and_grad(self, z):
            x, y = z.tolist()
            return x * x - y * y + y**4 / 4, torch.tensor([2 * x, -2 * y + y**3], dtype=z.dtype)

    solution = minimize(Saddle(), torch.tensor([1.0, 0.01], dtype=torch.float64), lower=-5.0, upper=5.0, **EXACT)
    assert solution.converged and solution.value == pytest.approx(-1.0, abs=1e-9)


@pytest.mark.parametrize("method", ["quasi_newton", "dyhs_cg"])
@pytest.mark.parametrize("part", ["value", "gradient"])
def test_nan_on_the_way_is_told(method, part, generator) -> None:
    class Breaks(Quadratic):
        def value_and_grad(self, x):
            value, gradient = super().value_and_grad(x)
            if len(self.points) > 6:
                value, gradient = (math.nan, gradient) if part == "value" else (value, gradient.index_fill(0, torch.tensor([2]), math.nan))
            return value, gradient

    whole = random_quadratic(8, 1e3, generator)
    seen = []
    solution = minimize(
        Breaks(whole.hessian, whole.center), torch.ones(8, dtype=torch.float64), method=method, tolerance=0.0, callback=seen.append
    )
    assert solution.status is Status.NOT_FINITE and "is NaN or infinite" in solution.message
    assert all(math.isfinite(r.value) for r in seen) and bool(torch.isfinite(solution.x).all())
    # where it ends is where it was
    torch.testing.assert_close(solution.x, seen[-1].x, rtol=0, atol=1e-9)


def test_nan_beyond_a_wall_only_shortens_the_step() -> None:
    class Wall(Quadratic):
        def value_and_grad(self, x):
            value, gradient = super().value_and_grad(x)
            return (math.nan, gradient * math.nan) if bool((x > 2.5).any()) else (value, gradient)

    problem = Wall(torch.diag(torch.tensor([1.0, 30.0], dtype=torch.float64)), torch.tensor([2.4, 1.0], dtype=torch.float64))
    solution = minimize(problem, torch.tensor([0.1, 0.1], dtype=torch.float64), **EXACT)
    assert solution.converged and solution.value < 1e-9
