"""`minimize`: known minima, SciPy, the paper's equations spelled line by line, bounds at every iterate, outcomes, and resuming."""

from __future__ import annotations

import io
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from problems import Plan, Quadratic, Rosenbrock, random_quadratic
from scipy import optimize

from torchimpt.checks import InputError
from torchimpt.optim import METHODS, Composite, Status, minimize
from torchimpt.optim.line_search import DELTA, THETA
from torchimpt.optim.steps import COSINE

EXACT = {"tolerance": 1e-13, "max_iterations": 5000}


@pytest.mark.parametrize("method", METHODS)
def test_diagonal_quadratic_ends_at_its_clamped_center(method, generator) -> None:
    center = torch.randn(30, dtype=torch.float64, generator=generator)
    problem = Quadratic(torch.diag(torch.logspace(0, 2, 30, dtype=torch.float64)), center)
    solution = minimize(problem, torch.ones(30, dtype=torch.float64), upper=1.5, method=method, **EXACT)
    assert solution.converged, solution.message
    # F is flat to rounding within the square root of its own rounding from the minimum.
    torch.testing.assert_close(solution.x, center.clamp(0.0, 1.5), rtol=0, atol=2e-5)
    assert solution.projected_gradient_norm < 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_clamped_quadratics_agree_with_scipy(method, generator) -> None:
    for n in (5, 20, 40):
        problem = random_quadratic(n, 100.0, generator)
        low = torch.where(torch.arange(n) % 3 == 0, -math.inf, 0.0).double()
        solution = minimize(problem, torch.ones(n, dtype=torch.float64), lower=low, upper=1.2, method=method, **EXACT)
        root = np.linalg.cholesky(problem.hessian.numpy()).T
        reference = optimize.lsq_linear(root, root @ problem.center.numpy(), bounds=(low.numpy(), 1.2), tol=1e-15, method="bvls")
        assert solution.converged
        assert solution.value == pytest.approx(reference.cost, rel=1e-8, abs=1e-12)
        np.testing.assert_allclose(solution.x.numpy(), reference.x, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("lower", "upper"), [(-math.inf, math.inf), (-2.0, 0.8)])
def test_rosenbrock_agrees_with_scipy(method, lower, upper) -> None:
    problem = Rosenbrock()
    solution = minimize(problem, torch.full((6,), -1.2, dtype=torch.float64), lower=lower, upper=upper, method=method, **EXACT)
    reference = optimize.minimize(
        lambda x: tuple(np.asarray(v) for v in problem.value_and_grad(torch.from_numpy(x))),
        np.full(6, -1.2), jac=True, method="L-BFGS-B", bounds=optimize.Bounds(lower, upper), options={"ftol": 1e-15, "gtol": 1e-10},
    )  # fmt: skip
    assert solution.value == pytest.approx(float(reference.fun), rel=1e-5, abs=1e-9)
    np.testing.assert_allclose(solution.x.numpy(), reference.x, atol=1e-3)


@pytest.mark.parametrize("beta", ["dyhs", "dy", "hs", "pr+", "fr"])
@pytest.mark.parametrize("method", ["projected_cg", "dyhs_cg"])
def test_every_rule_reaches_the_minimum(method, beta, generator) -> None:
    # Seed 3 is one where the plain form with Dai-Yuan jams on a bound without a restart.
    for problem in (random_quadratic(20, 30.0, generator), random_quadratic(20, 30.0, generator.manual_seed(3))):
        best = minimize(problem, torch.ones(20, dtype=torch.float64), method="lbfgs", **EXACT).value
        solution = minimize(problem, torch.ones(20, dtype=torch.float64), method=method, beta=beta, **EXACT)
        assert solution.value == pytest.approx(best, rel=1e-8)


def test_every_point_is_within_the_bounds(generator) -> None:
    for method in METHODS:
        quadratic, rosenbrock = random_quadratic(25, 1000.0, generator), Rosenbrock()
        minimize(quadratic, torch.ones(25, dtype=torch.float64), upper=1.3, method=method, tolerance=1e-10)
        minimize(rosenbrock, torch.zeros(7, dtype=torch.float64), lower=-0.1, upper=0.7, method=method, tolerance=1e-10)
        assert all(bool((x >= 0).all() and (x <= 1.3).all()) for x in quadratic.points)
        assert all(bool((x >= -0.1).all() and (x <= 0.7).all()) for x in rosenbrock.points)


class Twin:
    """Xu et al. 2020, Eq. 7-12, line by line, for the step lengths that it is told.

    What the paper leaves open: where its direction does not descend, or hardly, it starts again from steepest descent.
    """

    def __init__(self, problem, x: torch.Tensor) -> None:
        self.problem, self.x = problem, x
        self.f, self.g = problem.value_and_grad(x)
        self.d = self.g_old = None
        self.restarts = 0

    def step(self, length: float) -> None:
        direction = -self.g
        if self.d is not None:
            y = self.g - self.g_old
            beta_dy = (self.g @ self.g) / (self.d @ y)  # Eq. 9, with the numerator of Dai and Yuan
            beta_hs = (self.g @ y) / (self.d @ y)  # Eq. 10
            direction = -self.g + max(0.0, float(min(beta_dy, beta_hs))) * self.d  # Eq. 7 and 8
            moves = (self.x > 0) | (direction > 0)
            g, d = self.g[moves], direction[moves]
            if -(g @ d) <= COSINE * g.norm() * d.norm():
                direction, self.restarts = -self.g, self.restarts + 1
        for i in range(len(self.x)):
            if self.x[i] + length * direction[i] < 0:
                direction[i] = -self.x[i] / length  # Eq. 7, first line
        x = self.x + length * direction
        f, g = self.problem.value_and_grad(x)
        assert f <= self.f + length * DELTA * float(self.g @ direction) * (1 - 1e-9)  # Eq. 11
        assert float(g @ direction) >= THETA * float(self.g @ direction)  # Eq. 12
        self.x, self.f, self.g_old, self.g, self.d = x, f, self.g, g, direction


def test_dyhs_cg_is_the_paper_iterate_by_iterate(generator) -> None:
    problem = random_quadratic(30, 100.0, generator)
    x0 = torch.rand(30, dtype=torch.float64, generator=generator)
    iterates = []
    minimize(problem, x0, method="dyhs_cg", max_iterations=25, tolerance=0.0, callback=lambda r: iterates.append((r.x.clone(), r)))
    assert len(iterates) == 26 and any(r.beta > 0 for _, r in iterates)
    assert any((x == 0).any() for x, _ in iterates), "the projection has to be met"
    twin = Twin(problem, x0)
    for x, record in iterates[1:]:
        twin.step(record.step_length)
        torch.testing.assert_close(x, twin.x, rtol=1e-9, atol=1e-12)
        assert record.value == pytest.approx(twin.f, rel=1e-11)
    assert twin.restarts <= 5


# --- plans ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dvh", [False, True], ids=["min_max", "dose_volume"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_plan_is_within_a_percent_of_lbfgs_at_equal_evaluations(dtype, dvh) -> None:
    plan = Plan(dtype, dvh, shifts=(-2.0, 0.0, 2.0))
    reference = minimize(plan.problem, plan.start, method="lbfgs", tolerance=1e-5, max_iterations=400)
    solution = minimize(
        plan.problem, plan.start, scale=plan.scale, tolerance=0.0, max_iterations=999, max_evaluations=reference.evaluations
    )
    assert reference.converged and reference.evaluations > 30
    assert solution.evaluations <= reference.evaluations
    assert solution.value <= 1.01 * reference.value
    assert solution.value == pytest.approx(plan.value(solution.x), rel=1e-5 if dtype is torch.float32 else 1e-12)
    assert (solution.x >= 0).all() and (solution.x == 0).any()


def test_plan_values_fall_at_every_iterate_within_bounds() -> None:
    plan = Plan(dvh=True, shifts=(-2.0, 2.0))
    seen = []
    solution = minimize(plan.problem, plan.start, scale=plan.scale, tolerance=1e-9, callback=lambda r: seen.append((r.value, r.x.clone())))
    assert all((x >= 0).all() for _, x in seen)
    assert all(later <= earlier * (1 + 1e-12) for (earlier, _), (later, _) in pairwise(seen))
    assert all(value == pytest.approx(plan.value(x), rel=1e-9) for value, x in seen)
    # The projected gradient is what no bound holds.
    free = (solution.x > 0) | (solution.gradient < 0)
    assert solution.projected_gradient_norm == pytest.approx(float(solution.gradient[free].norm()), rel=1e-12)


def test_line_minimum_pays(generator) -> None:
    plan = Plan(shifts=(-2.0, 0.0, 2.0))
    values = {
        method: minimize(plan.problem, plan.start, method=method, tolerance=0.0, max_iterations=999, max_evaluations=100).value
        for method in ("projected_cg", "dyhs_cg")
    }
    assert values["projected_cg"] < values["dyhs_cg"]


def test_columns_alone_or_whole_products_give_the_same_iterates() -> None:
    """The clipped components by their columns cost no full product, and are the same numbers."""
    plan = Plan()
    with_columns = minimize(plan.problem, plan.start, max_iterations=30, tolerance=0.0)
    whole = Composite(plan, plan.objective)
    whole.columns = whole.forward
    without = minimize(whole, plan.start, max_iterations=30, tolerance=0.0)
    torch.testing.assert_close(with_columns.x, without.x, rtol=1e-6, atol=1e-8)
    assert plan.problem.products <= 2 * 31 + 2 < whole.products


# --- outcomes ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_limits_are_outcomes(method, generator) -> None:
    problem, x0 = random_quadratic(30, 1e4, generator), torch.ones(30, dtype=torch.float64)
    few = minimize(problem, x0, method=method, max_iterations=3, tolerance=0.0)
    assert few.status is Status.MAX_ITERATIONS and few.iterations == 3 and "raise max_iterations" in few.message
    assert not few.converged and len(few.history) == 4
    short = minimize(problem, x0, method=method, max_evaluations=6, tolerance=0.0)
    assert short.status is Status.MAX_EVALUATIONS and short.evaluations >= 6
    stopped = minimize(problem, x0, method=method, tolerance=0.0, callback=lambda r: r.iteration == 2)
    assert stopped.status is Status.STOPPED and stopped.iterations == 2
    assert [row["iteration"] for row in stopped.history] == [0, 1, 2]


@pytest.mark.parametrize("method", METHODS)
def test_a_start_at_the_minimum_is_converged(method) -> None:
    problem = Quadratic(torch.eye(3, dtype=torch.float64), torch.tensor([-1.0, 0.0, -2.0], dtype=torch.float64))
    solution = minimize(problem, torch.zeros(3, dtype=torch.float64), method=method)
    assert solution.converged and solution.iterations == 0 and solution.projected_gradient_norm == 0


@pytest.mark.parametrize("method", METHODS)
def test_not_finite_and_a_wrong_gradient_are_outcomes(method) -> None:
    class Bad:
        def __init__(self, value: float, sign: float) -> None:
            self.value, self.sign = value, sign

        def value_and_grad(self, x):
            return self.value * float(x @ x), self.sign * 2 * x

    x0 = torch.ones(4, dtype=torch.float64)
    assert minimize(Bad(math.nan, 1.0), x0, method=method).status is Status.NOT_FINITE
    uphill = minimize(Bad(1.0, -1.0), x0, method=method, upper=5.0)
    assert uphill.status is Status.LINE_SEARCH_FAILED and "check the gradient" in uphill.message


def test_records_tell_what_happened(generator) -> None:
    records = []
    solution = minimize(random_quadratic(10, 10.0, generator), torch.ones(10, dtype=torch.float64), callback=records.append)
    assert [r.iteration for r in records] == list(range(solution.iterations + 1))
    assert records[-1].value == solution.value and records[-1].evaluations == solution.evaluations
    assert all(later.seconds >= earlier.seconds for earlier, later in pairwise(records))
    assert [r.numbers() for r in records] == solution.history


# --- resuming ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["projected_cg", "dyhs_cg"])
def test_a_resumed_run_repeats_its_iterates_bit_for_bit(method) -> None:
    whole = minimize(Plan(torch.float32).problem, Plan(torch.float32).start, method=method, max_iterations=70, tolerance=0.0)
    saved = {}

    def keep(record) -> bool:
        saved.update(state=record.state(), x=record.x.clone())
        return record.iteration == 30

    plan = Plan(torch.float32)
    minimize(plan.problem, plan.start, method=method, max_iterations=70, tolerance=0.0, callback=keep)
    file = io.BytesIO()
    torch.save(saved["state"], file)
    file.seek(0)
    plan = Plan(torch.float32)
    rest = minimize(plan.problem, plan.start, method=method, max_iterations=70, tolerance=0.0, state=torch.load(file, weights_only=True))
    assert torch.equal(rest.x, whole.x) and rest.value == whole.value and rest.evaluations == whole.evaluations
    assert [row["value"] for row in rest.history] == [row["value"] for row in whole.history]


def test_lbfgs_goes_on_from_its_last_iterate() -> None:
    plan = Plan()
    half = minimize(plan.problem, plan.start, method="lbfgs", max_iterations=20, tolerance=0.0)
    rest = minimize(plan.problem, plan.start, method="lbfgs", max_iterations=40, tolerance=0.0, state=half.state)
    assert rest.iterations == 40 and rest.value < half.value and rest.evaluations > half.evaluations
    assert [row["iteration"] for row in rest.history] == list(range(41))


def test_a_state_of_another_run_is_refused() -> None:
    plan = Plan()
    state = minimize(plan.problem, plan.start, max_iterations=2).state
    with pytest.raises(InputError, match="is of method 'projected_cg', not 'lbfgs'"):
        minimize(plan.problem, plan.start, method="lbfgs", state=state)
    with pytest.raises(InputError, match="belongs to another problem"):
        minimize(plan.problem, plan.start[:-1], state=state)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"method": "lbfgsb"}, InputError, "did you mean 'lbfgs'"),
        ({"beta": "xx"}, InputError, "beta must be one of"),
        ({"x0": torch.tensor([math.nan, 1.0])}, InputError, "x0 has 1 values that are NaN"),
        ({"x0": torch.tensor([-1.0, 1.0])}, InputError, "x0 has 1 components outside the bounds"),
        ({"x0": torch.ones(2, 2)}, TypeError, "floating-point vector"),
        ({"lower": torch.zeros(3)}, InputError, "lower must be a number or a vector of 2"),
        ({"lower": 2.0, "upper": 1.0}, InputError, "lower must not exceed upper"),
        ({"scale": torch.tensor([1.0, 0.0])}, InputError, "scale must hold 2 positive"),
        ({"tolerance": -1.0}, InputError, "zero or more"),
        ({"max_evaluations": 0}, InputError, "one or more"),
    ],
)
def test_wrong_arguments_say_so(change, error, message) -> None:
    arguments = {"x0": torch.ones(2), **change}
    with pytest.raises(error, match=message):
        minimize(Rosenbrock(), **arguments)
