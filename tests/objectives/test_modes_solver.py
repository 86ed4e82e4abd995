"""Plans of robust modes on a small dense problem: our solver against SciPy's SLSQP, which is given the maxima as constraints (epigraphs)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize as scipy_minimize

from torchimpt.objectives import (
    BoundObjective,
    BoundTerm,
    Composite,
    CVaR,
    MaxDose,
    MeanDose,
    MinDose,
    Objectivewise,
    RobustObjective,
    Voxelwise,
)
from torchimpt.optim import Composite as CompositeProblem
from torchimpt.optim import minimize

K, N_TARGET, N_ORGAN, N_SPOTS = 4, 10, 8, 8
TARGET, ORGAN = slice(0, N_TARGET), slice(N_TARGET, N_TARGET + N_ORGAN)
LOW, HIGH, WEIGHTS = 60.0, 62.0, (10.0, 5.0, 1.0)
MEAN = 5.0


def matrices() -> torch.Tensor:
    """Pencil-like columns over a target and the tissue behind it, moved and stretched from scenario to scenario."""
    place = torch.arange(N_TARGET + N_ORGAN, dtype=torch.float64)
    spot = torch.linspace(0, N_TARGET - 1, N_SPOTS, dtype=torch.float64)
    shift = torch.tensor([0.0, -0.9, 0.9, 1.6], dtype=torch.float64)[:, None, None]
    return torch.exp(-((place[None, :, None] - spot - shift) ** 2) / 4.5)


class Dense:
    """The scenarios' matrices as a linear map."""

    def __init__(self, matrix: torch.Tensor) -> None:
        self.matrix = matrix

    def forward(self, x):
        return self.matrix @ x

    def adjoint(self, residual):
        return torch.einsum("kvs,kv->s", self.matrix, residual)

    def columns(self, index, values):
        return self.matrix[..., index] @ values


@pytest.fixture
def bound() -> BoundObjective:
    target, organ = torch.arange(N_TARGET + N_ORGAN)[TARGET], torch.arange(N_TARGET + N_ORGAN)[ORGAN]
    return BoundObjective(
        [
            BoundTerm(MinDose("PTV", LOW, WEIGHTS[0]), target, 1 / N_TARGET),
            BoundTerm(MaxDose("PTV", HIGH, WEIGHTS[1]), target, 1 / N_TARGET),
            BoundTerm(MeanDose("OAR", MEAN, WEIGHTS[2]), organ, 1 / N_ORGAN),
        ],
        N_TARGET + N_ORGAN,
    )


def terms_by_scenario(matrix: np.ndarray, x: np.ndarray) -> np.ndarray:
    """`(3, K)`: the three terms, written out."""
    dose = matrix @ x
    low = np.maximum(LOW - dose[:, TARGET], 0.0)
    high = np.maximum(dose[:, TARGET] - HIGH, 0.0)
    mean = np.maximum(dose[:, ORGAN].mean(1) - MEAN, 0.0)
    return np.stack((WEIGHTS[0] * (low**2).mean(1), WEIGHTS[1] * (high**2).mean(1), WEIGHTS[2] * mean**2))


def slsqp(cost, start, constraint, lower) -> np.ndarray:
    """The least of `cost` where `constraint(z) >= 0` and `z >= lower`."""
    bounds = [(low, None) for low in lower]
    found = scipy_minimize(
        cost,
        start,
        method="SLSQP",
        bounds=bounds,
        constraints={"type": "ineq", "fun": constraint},
        options={"maxiter": 2000, "ftol": 1e-13},
    )
    assert found.success, found.message
    return found.x


def best_known(name: str, matrix: np.ndarray, level: float) -> float:
    """The least of the exact mode, by auxiliary variables in the place of maxima."""
    x0 = np.full(N_SPOTS, 20.0)
    values = terms_by_scenario(matrix, x0)
    zero = np.zeros(N_SPOTS)
    if name == "composite":
        z = slsqp(
            lambda z: z[-1] / 100, np.append(x0, values.sum(0).max()),
            lambda z: (z[-1] - terms_by_scenario(matrix, z[:-1]).sum(0)) / 100, np.append(zero, 0.0),
        )  # fmt: skip
        return float(terms_by_scenario(matrix, z[:-1]).sum(0).max())
    if name == "objectivewise":
        z = slsqp(
            lambda z: z[-3:].sum() / 100, np.append(x0, values.max(1)),
            lambda z: ((z[-3:, None] - terms_by_scenario(matrix, z[:-3])) / 100).ravel(), np.append(zero, np.zeros(3)),
        )  # fmt: skip
        return float(terms_by_scenario(matrix, z[:-3]).max(1).sum())
    if name == "cvar":
        total = values.sum(0)
        z = slsqp(
            lambda z: (z[N_SPOTS] + z[N_SPOTS + 1 :].sum() / K / (1 - level)) / 100,
            np.concatenate((x0, [total.mean()], np.maximum(total - total.mean(), 0))),
            lambda z: (z[N_SPOTS + 1 :] + z[N_SPOTS] - terms_by_scenario(matrix, z[:N_SPOTS]).sum(0)) / 100,
            np.concatenate((zero, [0.0], np.zeros(K))),
        )  # fmt: skip
        worst = np.sort(terms_by_scenario(matrix, z[:N_SPOTS]).sum(0))[::-1]
        mass = np.minimum(np.maximum((1 - level) * K - np.arange(K), 0), 1)
        return float((mass * worst).sum() / mass.sum())
    cut = np.cumsum([N_SPOTS, N_TARGET, N_TARGET, N_ORGAN, 1])

    def cost(z):
        _, low, high, _, over, _ = np.split(z, cut)
        return (WEIGHTS[0] * (low**2).mean() + WEIGHTS[1] * (high**2).mean() + WEIGHTS[2] * float(over[0]) ** 2) / 100

    def constraint(z):
        x, low, high, worst, over, _ = np.split(z, cut)
        dose = matrix @ x
        parts = (low - (LOW - dose[:, TARGET]), high - (dose[:, TARGET] - HIGH), worst - dose[:, ORGAN], over - (worst.mean() - MEAN))
        return np.concatenate([part.ravel() for part in parts])

    dose = matrix @ x0
    start = (
        x0, np.maximum(LOW - dose[:, TARGET], 0).max(0), np.maximum(dose[:, TARGET] - HIGH, 0).max(0), dose[:, ORGAN].max(0),
        [max(dose[:, ORGAN].max(0).mean() - MEAN, 0.0)],
    )  # fmt: skip
    z = slsqp(cost, np.concatenate(start), constraint, np.zeros(cut[-1]))
    return 100 * cost(z)


@pytest.mark.parametrize(
    ("mode", "above"),
    [
        (Composite(20.0), K ** (1 / 20)),
        (Composite(200.0), K ** (1 / 200)),
        (Objectivewise(20.0), K ** (1 / 20)),
        (CVaR(level=0.6), 1.05),
        (CVaR(level=0.6, smoothing=0.01), 1.005),
        (Voxelwise(0.1), 1.001),
        (Voxelwise(0.01), 1.0001),
    ],
    ids=lambda value: value.name if not isinstance(value, float) else "",
)
def test_as_good_as_slsqp_within_the_smoothing(bound, mode, above) -> None:
    """`above`: how far the smooth form may be above the exact one, and so its plan above the best plan; and one in ten thousand for both
    solvers. The voxelwise bound is of doses (0.14 Gy of 60 for 0.1 Gy and four scenarios); of squares that are 10 Gy and more off it is less
    than a thousandth, as seen here.
    """
    matrix = matrices()
    best = best_known(mode.name, matrix.numpy(), getattr(mode, "level", 0.0))
    robust = RobustObjective(bound, mode)
    start = torch.full((N_SPOTS,), 20.0, dtype=torch.float64)
    for method in ("projected_cg", "quasi_newton"):
        solution = minimize(CompositeProblem(Dense(matrix), robust), start, lower=0.0, method=method, tolerance=1e-9, max_iterations=3000)
        exact = float(robust.exact_value(matrix @ solution.x))
        assert best * (1 - 1e-4) <= exact <= best * above * (1 + 1e-4)
