"""Robust modes with spots that move: gradients by weights and positions, objectives that fall, and what a plan's metrics tell."""

from __future__ import annotations

import itertools

import pytest
import torch
from tiny_case import tiny

import torchimpt as ti
from torchimpt.objectives import MODES, RobustObjective
from torchimpt.planning.build import build
from torchimpt.planning.load import set_up
from torchimpt.schemes.moving import MovingSpots
from torchimpt.schemes.schemes import optimize
from torchimpt.schemes.settings import Motion, Solver
from torchimpt.schemes.variables import JOINT, Packing, SpotProblem
from torchimpt.watch import Progress

pytestmark = pytest.mark.filterwarnings("ignore:ROI Target .* more than a fifth")  # voxels of 12 mm

SMALL = ("dose.grid_mm=12", "spots.spacing_mm=20", "dose.dtype=float64", "dose.engine=matrix_free", "spots.stagger=false")
OWN = {"cvar": {"level": 0.6}, "percentile": {"percent": 70.0}}
ALL = [MODES[name](**OWN.get(name, {})) for name in MODES]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The tiny case in six random scenarios, and a cut-off beyond which nothing is left."""
    scenarios = "robustness={setup_mm=6.0, range_percent=5.0, set='random', samples=5}"
    case = tiny(tmp_path_factory.mktemp("modes"), *SMALL, scenarios, "dose.cutoff_sigma=8", "objective[2].dose_gy=0")
    return build(case, set_up(case, "cpu"), Progress(enabled=False), {})


@pytest.fixture
def plan(built, generator) -> MovingSpots:
    """Every third spot, off its place, with a random weight."""
    plan = MovingSpots.start(built.spots).keep(torch.arange(built.spots.n_spots) % 3 == 0)
    off = 8 * torch.rand(plan.n_spots, 2, dtype=torch.float64, generator=generator) - 4
    weight = 4e4 * torch.rand(plan.n_spots, dtype=torch.float64, generator=generator)
    return MovingSpots(plan.index, plan.home, plan.home + off, weight)


@pytest.mark.parametrize("mode", ALL, ids=lambda mode: mode.name)
def test_gradient_of_weights_and_positions(built, plan, generator, mode):
    """Against autograd through the plain dense doses, and against differences along weights, along positions and along both."""
    objective = RobustObjective(built.objective.bound, mode, built.objective.quantity)
    problem = SpotProblem(built.doses.subset(plan.index), objective, Packing(JOINT, plan))
    z, n = problem.packing.pack(plan), plan.n_spots
    _, gradient = problem.value_and_grad(z)

    at = z.clone().requires_grad_()
    everywhere = built.spots.position.detach().index_copy(0, plan.index, plan.home + torch.stack((at[n : 2 * n], at[2 * n :]), dim=1))
    weight = torch.zeros(built.spots.n_spots, dtype=torch.float64).index_copy(0, plan.index, at[:n])
    (right,) = torch.autograd.grad(objective(torch.stack([o.dense_dose(everywhere, weight) for o in built.doses])), at)
    for part in (slice(0, n), slice(n, 3 * n)):  # each in its own unit
        assert float((gradient[part] - right[part]).abs().max()) < 1e-10 * float(right[part].abs().max())

    for part in (slice(0, n), slice(n, 3 * n), slice(0, 3 * n)):
        step = torch.zeros_like(z)
        step[part] = torch.rand(z[part].shape, dtype=torch.float64, generator=generator) - 0.5
        step[:n] *= 1e4
        h = 1e-4  # weights of 1e4 by 1, positions of mm by 1e-4: the difference's own error is below 1e-6
        up, down = (problem.value_and_grad(z + side * h * step)[0] for side in (1, -1))
        assert float(gradient @ step) == pytest.approx((up - down) / (2 * h), rel=1e-5)


@pytest.mark.parametrize("mode", ALL, ids=lambda mode: mode.name)
def test_objective_falls_when_spots_move(built, mode):
    objective = RobustObjective(built.objective.bound, mode, built.objective.quantity)
    solver = Solver(max_iterations=15, tolerance=1e-6)
    still = optimize(built.doses, objective, built.spots, Solver(max_iterations=100, tolerance=1e-6))
    moved = optimize(built.doses, objective, built.spots, solver, Motion(warm_iterations=15, box_mm=8.0))
    values = [row["value"] for row in moved.solution.history]
    assert all(after <= before * (1 + 1e-12) for before, after in itertools.pairwise(values))
    assert moved.solution.value < 0.97 * still.solution.value < 0.8 * still.solution.history[0]["value"]
    assert float(moved.spots.moved().max()) > 0.5


@pytest.mark.parametrize("sample_above", [5000, 60], ids=["all voxels", "sampled"])
def test_metrics_tell_the_exact_objective(tmp_path, sample_above):
    """A plan of the composite with one objective voxelwise: the smooth value, that with the maxima themselves, and the terms' shares."""
    result = ti.plan(
        tiny(
            tmp_path, "dose.grid_mm=12", "spots.spacing_mm=16", "optimizer.max_iterations=25", f"optimizer.sample_above={sample_above}",
            "robustness.mode=composite", "robustness.power=10.0", "objective[1].mode=voxelwise",
            "objective[2]={roi='External', kind='max_dose', dose_gy=20.0}",
        ),
        device="cpu",
    )  # fmt: skip
    told = result.metrics["objective"]
    assert 0 < told["exact"] < told["final"] < 3 ** (1 / 10) * told["exact"] * 1.05
    assert sum(row["value"] for row in told["terms"]) == pytest.approx(told["final"], rel=1e-5)  # of float32 doses
    assert ("sampling" in result.metrics) == (sample_above == 60)


def test_modes_without_maxima_are_exact(tmp_path):
    summed = ti.plan(tiny(tmp_path, "dose.grid_mm=12", "spots.spacing_mm=16", "optimizer.max_iterations=3"), device="cpu")
    assert "exact" not in summed.metrics["objective"]


def test_the_minimax_plan_has_the_better_worst_scenario(built):
    """And the expected plan the better mean: each mode is best at its own."""
    plans = {}
    for name in ("expected", "composite", "nominal"):
        objective = RobustObjective(built.objective.bound, MODES[name](), built.objective.quantity)
        found = optimize(built.doses, objective, built.spots, Solver(max_iterations=300, tolerance=1e-6))
        doses = built.doses.dose(found.spots.position, found.spots.weight)
        plans[name] = built.objective.bound.value(built.objective.quantity.value(doses))
    assert float(plans["composite"].max()) < 0.999 * min(float(plans[name].max()) for name in ("expected", "nominal"))
    assert float(plans["expected"].mean()) < min(float(plans[name].mean()) for name in ("composite", "nominal"))
    assert float(plans["nominal"][0]) < min(float(plans[name][0]) for name in ("composite", "expected"))
