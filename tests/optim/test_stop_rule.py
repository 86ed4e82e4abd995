"""When a solver stops, and what it says: each rule is true of the run that it ends, scales with F, and means the same for every method."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from problems import Plan, Quadratic, random_quadratic

from torchimpt.optim import METHODS, Status, minimize
from torchimpt.optim.solution import WINDOW, converged, remaining_fall

TOLERANCE = 1e-4


class Steep:
    """A quadratic in one steep and many flat components, above a floor: F and its gradient fall ten-thousandfold at once, then slowly."""

    def __init__(self, n: int = 60, factor: float = 1.0) -> None:
        self.stiffness = torch.cat((torch.tensor([1e6]), torch.logspace(-4, 0, n - 1))).double()
        self.factor = factor

    def value_and_grad(self, x: torch.Tensor) -> tuple[float, torch.Tensor]:
        away = x - 1.0
        gradient = self.factor * self.stiffness * away
        return 0.5 * float(gradient @ away) + 0.1 * self.factor, gradient


def falls(solution) -> list[float]:
    """What each iteration took, as a share of F after it."""
    values = [row["value"] for row in solution.history]
    return [(before - after) / after for before, after in pairwise(values)]


def start(n: int = 60) -> torch.Tensor:
    return torch.cat((torch.tensor([3.0]), torch.full((n - 1,), 2.0))).double()


@pytest.mark.parametrize("method", METHODS)
def test_a_steep_start_does_not_end_the_rest(method) -> None:
    """The gradient is a ten-thousandth of its start after a few iterations, while F goes on falling by more than the tolerance."""
    solution = minimize(Steep(), start(), method=method, tolerance=TOLERANCE, max_iterations=2000)
    small = [row["projected_gradient_norm"] <= TOLERANCE * solution.history[0]["projected_gradient_norm"] for row in solution.history]
    early = small.index(True)
    assert max(falls(solution)[early:]) > 10 * TOLERANCE  # such a run, indeed
    assert solution.converged and solution.value < solution.history[early]["value"]
    best = minimize(Steep(), start(), method="lbfgs", tolerance=1e-13, max_iterations=2000).value
    assert best == pytest.approx(0.1, rel=1e-3)
    assert solution.value <= 1.02 * best
    if solution.status is Status.CONVERGED:
        assert sum(falls(solution)[-WINDOW:]) <= 1.01 * WINDOW * TOLERANCE
    else:
        assert solution.status is Status.STATIONARY and falls(solution)[-1] <= TOLERANCE


@pytest.mark.parametrize("method", METHODS)
def test_a_fall_to_nothing_is_followed_to_the_end(method, generator) -> None:
    """F loses more than half of itself in every few iterations: a small gradient is no reason to stop there, and F is zero in the end."""
    problem = random_quadratic(30, 20.0, generator)
    solution = minimize(
        problem, torch.ones(30, dtype=torch.float64), lower=-math.inf, method=method, tolerance=TOLERANCE, max_iterations=999
    )
    small = [row["projected_gradient_norm"] <= TOLERANCE * solution.history[0]["projected_gradient_norm"] for row in solution.history]
    assert max(falls(solution)[small.index(True) :]) > 0.5
    assert solution.converged and solution.value <= 1e-15 * solution.history[0]["value"]


@pytest.mark.parametrize("method", METHODS)
def test_the_rules_scale_with_the_objective_and_not_with_the_unit_of_the_scale(method) -> None:
    """Powers of two, so that every iterate is the same to the last bit; `dyhs_cg` takes its first step in the unit of x."""
    scale = Steep().stiffness.rsqrt()
    runs = [
        minimize(Steep(factor=f), start(), method=method, scale=unit * scale, tolerance=1e-3, max_iterations=500)
        for f, unit in ((1.0, 1.0), (2.0**20, 1.0), (2.0**-20, 1.0), (1.0, 2.0**7))
    ]
    assert len({run.iterations for run in runs}) == 1
    assert all(run.status is runs[0].status for run in runs) and runs[0].converged
    shares = [run.history[-1]["promised"] / run.value for run in runs]
    assert shares == pytest.approx([shares[0]] * len(shares), rel=1e-9)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-4])
def test_one_tolerance_for_all_methods(tolerance) -> None:
    """A plan is as near to its minimum by one method as by another, or the method says that it ran out of iterations."""
    plan = Plan(shifts=(-2.0, 0.0, 2.0))
    best = minimize(plan.problem, plan.start, scale=plan.scale, method="quasi_newton", tolerance=1e-9, max_iterations=5000).value
    above = {}
    for method in METHODS:
        solution = minimize(plan.problem, plan.start, scale=plan.scale, method=method, tolerance=tolerance, max_iterations=3000)
        if solution.converged:
            above[method] = solution.value / best - 1.0
    assert {"projected_cg", "quasi_newton", "lbfgs"} <= set(above)
    assert max(above.values()) <= 300 * tolerance, above


def history(values, promised=0.0, norm=1.0):
    """Records of these values."""
    return [{"value": value, "projected_gradient_norm": norm, "promised": promised} for value in values]


def test_each_rule_by_hand() -> None:
    slow = [1.0 + 1e-3 * 0.999**k for k in range(12)]  # 1e-6 an iteration
    assert converged(history(slow[:11]), 1e-5) is Status.STATIONARY  # the gradient promises nothing, and the last gave nothing
    assert converged(history(slow[:11], promised=0.9e-5), 1e-5) is Status.CONVERGED
    assert converged(history(slow[:10], promised=0.9e-5), 1e-5) is None  # nine iterations are too few to tell
    assert converged(history(slow, promised=1.1e-5), 1e-5) is None  # the gradient promises more than the method takes: it stands still
    assert converged(history(slow, promised=None), 1e-5) is None
    assert converged([*history(slow[:5], None), *history(slow[5:], 0.9e-5)], 1e-5) is Status.CONVERGED
    assert converged(history(slow[:1], norm=0.0), 1e-5) is Status.STATIONARY
    assert converged(history(slow[:1]), 1e-5) is None
    assert converged(history([2.0, 1.0]), 1e-5) is None  # a large step to where the gradient promises nothing: one more is taken
    assert converged(history([math.nan] * 12), 1e-5) is None and converged(history([1.0] * 12, norm=math.inf), 1e-5) is None


def test_precision_and_failure() -> None:
    """No lower point: at the minimum to rounding that is the end; where the gradient promises one, something is wrong."""
    plan = Plan(torch.float32)
    end = minimize(plan.problem, plan.start, scale=plan.scale, tolerance=0.0, max_iterations=10_000)
    assert end.status is Status.PRECISION and end.converged and "rounding error" in end.message

    class Rough(Quadratic):
        """Rounded to a thousandth, as no float is: its gradient promises what its values do not show."""

        def value_and_grad(self, x):
            value, gradient = super().value_and_grad(x)
            return math.ceil(100 * value) / 100 + 1.0, gradient

    stuck = minimize(Rough(torch.eye(4).double(), torch.full((4,), 0.5).double()), torch.full((4,), 0.53).double(), tolerance=1e-9)
    assert stuck.status is Status.LINE_SEARCH_FAILED and not stuck.converged and "promises" in stuck.message
    messages = [status.message for status in Status]
    assert len(set(messages)) == len(messages)


# --- how far from the minimum ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0, 4.0])
def test_remaining_fall_of_a_power_law(power) -> None:
    values = [7.0] + [3.0 + 5.0 * k**-power for k in range(1, 401)]
    assert remaining_fall(values) == pytest.approx((values[-1] - 3.0) / values[-1], rel=1e-9)


def test_remaining_fall_says_when_it_does_not_know() -> None:
    assert remaining_fall([1.0 / k for k in range(1, 17)]) is None  # fifteen iterations
    assert remaining_fall([20.0 - k for k in range(17)]) == 1.0  # as fast as at the start: to nothing, for all we know
    assert remaining_fall([30.0 - 2 * k for k in range(17)]) is None  # no share of a value below zero
    assert remaining_fall([2.0] * 5 + [1.0] * 20) == 0.0


@pytest.mark.parametrize("method", ["projected_cg", "quasi_newton", "lbfgs"])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-3, 1e-4])
def test_remaining_fall_against_the_truth(method, tolerance) -> None:
    """A guess: within a factor of four on a small plan, and the message has its number."""
    plan = Plan(shifts=(-2.0, 0.0, 2.0))
    best = minimize(plan.problem, plan.start, scale=plan.scale, method="quasi_newton", tolerance=1e-10, max_iterations=5000).value
    solution = minimize(plan.problem, plan.start, scale=plan.scale, method=method, tolerance=tolerance, max_iterations=3000)
    truth = solution.value / best - 1.0
    print(method, tolerance, truth, solution.above_minimum, solution.iterations)
    assert truth / 4 <= solution.above_minimum <= 4 * truth
    assert f"about {100 * solution.above_minimum:.2g} % above its minimum, estimated from its fall" in solution.message
