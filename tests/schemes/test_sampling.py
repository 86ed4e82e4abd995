"""Objectives on sampled voxels: the sum is unbiased, no hot voxel is missed, the plan is that of all voxels, and runs go on exactly."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_case import tiny

import torchimpt as ti
from torchimpt.dose.body import body_doses
from torchimpt.dose.joined import joined
from torchimpt.objectives import MaxDose, MinDose, Objective
from torchimpt.planning.build import build
from torchimpt.planning.load import set_up
from torchimpt.points import voxel_points
from torchimpt.schemes import sampling, schemes
from torchimpt.watch import Progress

pytestmark = pytest.mark.filterwarnings("ignore:ROI Target .* more than a fifth")  # voxels of 12 mm

BODY = (
    "dose.grid_mm=12", "spots.spacing_mm=16", "objective[2].kind=max_dose", "objective[2].dose_gy=35", "objective[2].weight=500",
    "dose.dtype=float64", "optimizer.tolerance=1e-6", "robustness.setup_mm=4", "goal=[{roi='Target', metric='d(95)', min=40}]",
)  # fmt: skip
SHORT = ("robustness.setup_mm=0", "optimizer.max_iterations=60", "optimizer.tolerance=1e-4")
SAMPLED, ALL = "optimizer.sample_above=50", "optimizer.sample_above=1000000"


def built(folder, *more):
    case = tiny(folder, *BODY, *more)
    return build(case, set_up(case, "cpu"), Progress(enabled=False), {})


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    return built(tmp_path_factory.mktemp("sampling"), SAMPLED)


def test_the_sum_over_a_sample_is_unbiased(problem):
    """Over 400 draws the mean is that over all voxels, within three standard errors."""
    patient = problem.patient
    objective = Objective([MinDose("Target", 50.0), MaxDose("External", 20.0, weight=3.0)])
    generator = torch.Generator().manual_seed(1)
    dose = 40.0 * torch.rand(patient.grid.n_voxels, generator=generator, dtype=torch.float64)
    split = objective.split(patient, 50)
    whole = float(objective.on(patient).value(dose))
    chance = torch.where(split.needed, 1.0, 0.02 + 0.3 * torch.rand(patient.grid.n_voxels, generator=generator, dtype=torch.float64))
    found = []
    for _ in range(400):
        drawn = split.needed | (split.pool & (torch.rand(len(chance), generator=generator, dtype=torch.float64) < chance))
        voxels = drawn.nonzero().flatten()
        points = voxel_points(patient, voxels, 1.0 / chance[voxels])
        bound = objective.at(points, points.volume, [None, float(objective.masks(patient)[1].sum())])
        found.append(float(bound.value(dose[voxels])))
        assert sum(row["value"] for row in bound.terms(dose[voxels])) == pytest.approx(found[-1], rel=1e-12)
    spread = torch.tensor(found)
    assert float(spread.mean()) == pytest.approx(whole, abs=3.0 * float(spread.std()) / 20.0)
    assert float(spread.std()) > 0.001 * whole, "draws differ"


def test_a_sample_has_every_hot_voxel_and_stands_for_all(problem):
    chosen, spots = problem.sampling, copy.deepcopy(problem.spots)
    spots.weight.data *= 60.0 / float(chosen.look(spots).nominal.max())
    seen = chosen.look(spots)
    taken = chosen.choose(seen, draw=True)
    split = Objective(problem.case.terms()).split(problem.patient, 50)
    assert float(taken["stands_for"].sum()) == pytest.approx(int(split.pool.sum()), rel=1e-12), "each stratum stands for itself"
    hot = seen.voxels[(problem.objective.quantity.value(seen.doses).amax(0) > 35.0) & split.pool[seen.voxels]]
    assert len(hot) > 20
    own = dict(zip(taken["voxels"].tolist(), taken["stands_for"].tolist(), strict=True))
    assert all(own[v] == 1.0 for v in hot.tolist())
    assert len(own) < 0.6 * int(split.pool.sum())


@pytest.mark.parametrize(
    "more",
    [
        pytest.param((), id="weights"),
        pytest.param(("joint={warm_iterations=8}", "delivery.min_mu=0.001", *SHORT), id="joint", marks=pytest.mark.slow),
    ],
)
def test_the_plan_is_that_of_all_voxels(tmp_path, more):
    """On all voxels, its objective is within 1 % of that of the plan that was optimized on all, or below; so is what it says of itself."""
    few, every = (ti.plan(tiny(tmp_path, *BODY, *more, option)) for option in (SAMPLED, ALL))
    problem = built(tmp_path, *more, ALL)
    doses = ti.scenario_doses(problem.patient, problem.machine, few.spots, problem.points, problem.scenarios, dtype=torch.float64)
    truth = float(problem.objective.value(doses.dose(few.spots.position, few.spots.weight)))
    assert truth < 1.01 * every.metrics["objective"]["final"]
    assert few.metrics["objective"]["final"] == pytest.approx(truth, rel=1e-6), "float64 sums in another order"
    told = sum(term["value"] for term in few.metrics["objective"]["terms"])
    assert told == pytest.approx(truth, rel=1e-6)
    assert few.metrics["sampling"]["objective"] == pytest.approx(truth, rel=sampling.AGREE)
    assert few.metrics["sampling"]["voxels"] < few.metrics["sampling"]["of"] == len(problem.points)
    assert "sampling" not in every.metrics


def test_hot_voxels_that_the_first_look_missed_are_taken_in(tmp_path, monkeypatch):
    """A look after one iteration misses most of them; the plan is good all the same."""
    every = ti.plan(tiny(tmp_path, *BODY, ALL)).metrics["objective"]["final"]
    monkeypatch.setattr(schemes, "FIRST", 1)
    monkeypatch.setattr(sampling, "STRATA", ())
    monkeypatch.setattr(sampling, "HOT", 1.3)
    found = ti.plan(tiny(tmp_path, *BODY, SAMPLED)).metrics
    assert "hot voxels taken in" in [step["step"] for step in found["steps"]]
    monkeypatch.setattr(schemes, "ROUNDS", 0)
    without = ti.plan(tiny(tmp_path, *BODY, SAMPLED)).metrics["objective"]["final"]
    assert found["objective"]["final"] < 1.01 * every < without


@pytest.mark.slow
def test_a_sampled_run_that_stopped_goes_on_to_the_same_plan(tmp_path, monkeypatch):
    monkeypatch.setattr(schemes, "FIRST", 4)
    monkeypatch.setattr(sampling, "STRATA", ())
    monkeypatch.setattr(sampling, "HOT", 1.3)  # so that there are rounds after the last look, too
    case, states = tiny(tmp_path, *BODY, SAMPLED, "optimizer.max_iterations=40"), []
    straight = ti.plan(case, callback=lambda iteration: states.append(iteration.state()) and None)
    steps = [step["step"] for step in straight.steps]
    assert steps[:3] == ["weights, before a look at all voxels", "weights", "hot voxels taken in"]
    for state in (states[2], states[20], states[-3]):
        resumed = ti.plan(case, state=state)
        assert torch.equal(resumed.spots.weight, straight.spots.weight)
        assert resumed.metrics["objective"] == straight.metrics["objective"]


def test_joined_doses_are_those_of_all_voxels_at_once(problem):
    spots, voxels = problem.spots, Objective(problem.case.terms()).voxels(problem.patient)
    where = {"dtype": torch.float64}
    whole = ti.scenario_doses(problem.patient, problem.machine, spots, voxels, problem.scenarios, **where)
    parts = [
        ti.scenario_doses(problem.patient, problem.machine, spots, part, problem.scenarios, **where) for part in voxels.tensor_split(3)
    ]
    both, position, weight = joined(parts), spots.position.detach(), spots.weight.detach() + 1.0
    few = torch.arange(0, spots.n_spots, 3)
    residual = torch.randn(len(whole), whole.n_voxels, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for ours, theirs in ((both, whole), (both.subset(few), whole.subset(few))):
        at, load = (position, weight) if ours is both else (position[few], weight[few])
        torch.testing.assert_close(ours.dose(at, load), theirs.dose(at, load), rtol=1e-12, atol=1e-12)
        for a, b in zip(ours.gradient(residual, at, load), theirs.gradient(residual, at, load), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * float(b.abs().max()))
    assert both.n_bytes > 0 and both[0].scenario == whole[0].scenario


def test_what_is_not_looked_at_in_every_scenario_is_not_hot(problem):
    """All doses of the body, against those that are looked at."""
    patient, machine, spots = problem.patient, problem.machine, problem.spots
    body = patient.body.flatten().nonzero().flatten()
    doses = ti.scenario_doses(patient, machine, spots, body, problem.scenarios, dtype=torch.float64)
    every = doses.dose(spots.position, spots.weight)
    level = 0.6 * float(every.max())
    nothing = torch.zeros(patient.grid.n_voxels, dtype=torch.bool)
    seen = body_doses(
        patient,
        machine,
        spots,
        problem.scenarios,
        asked=nothing,
        level=level,
        quantity=ti.quantities.PHYSICAL,
        cutoff=4.0,
        dtype=torch.float64,
    )
    place = torch.searchsorted(body, seen.voxels)
    torch.testing.assert_close(seen.doses, every[:, place], rtol=1e-12, atol=0)
    hot = body[(every > level).any(0)]
    assert bool(torch.isin(hot, seen.voxels).all()) and 0 < len(hot) < len(seen.voxels) < 0.7 * len(body)
