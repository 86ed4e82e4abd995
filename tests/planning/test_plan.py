"""`ti.plan`: engines, methods and precisions agree; what the result holds; a callback stops it."""

from __future__ import annotations

import tomllib

import pytest
import torch
from tiny_case import TINY, tiny

import torchimpt as ti
from torchimpt.dose.models import MODELS
from torchimpt.dose.packed import ENTRY_BYTES
from torchimpt.dose.pencil_beam.model import PencilBeam, PencilBeamTables


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """The tiny case planned in float64 with stored matrices."""
    return ti.plan(tiny(tmp_path_factory.mktemp("plan"), "dose.dtype=float64"))


def test_plan_from_python(planned):
    result = ti.plan(ti.Case(**tomllib.loads(TINY)))
    assert result.solution.converged and result.metrics["converged"] and result.metrics["goals"][0]["passed"]
    assert result.spots.weight.dtype == torch.float32 and not result.spots.weight.is_cuda
    assert bool((result.spots.weight >= 0).all()) and torch.equal(result.spots.weight.detach(), result.solution.x)
    assert result.metrics["objective"]["final"] == pytest.approx(planned.solution.value, rel=1e-3)
    dose = ti.PencilBeamDose(result.patient, result.machine, result.spots.beams)(result.spots).detach()
    seen = result.assessment.roi_doses["nominal"]["Target"]
    assert float((dose[result.patient.roi("Target").voxels] - seen).abs().max()) < 1e-4 * float(dose.max())
    body = result.patient.body.flatten().nonzero().flatten()
    means = ti.scenario_doses(result.patient, result.machine, result.spots, body, means=True)
    mean = 1.1 * means.dose(result.spots.position.detach(), result.spots.weight.detach())[0]
    assert float((mean - result.assessment.dose.flatten()[body]).abs().max()) < 1e-4 * float(dose.max()), "of voxels the means"


@pytest.mark.parametrize("override", ["dose.engine=matrix_free", "dose.gradient=autograd"])
def test_engines_take_the_same_steps(tmp_path, override):
    both = ("dose.engine=matrix", "dose.dtype=float64", "dose.grid_mm=10", "spots.spacing_mm=16", "optimizer.max_iterations=5")
    stored, other = ti.plan(tiny(tmp_path, *both)), ti.plan(tiny(tmp_path, *both, override))
    assert other.metrics["matrix"]["nonzeros"] == 0 < stored.metrics["matrix"]["nonzeros"]
    ours, theirs = ([row["value"] for row in result.solution.history] for result in (stored, other))
    assert len(ours) == 6 and theirs == pytest.approx(ours, rel=1e-9)
    assert float((other.solution.x - stored.solution.x).norm() / stored.solution.x.norm()) < 1e-8


def test_engine_by_the_memory_at_hand(tmp_path):
    """Compressed matrices where they fit, of no scenario or of some where not; the plan is the same to what their rounding does."""
    small = ("dose.grid_mm=10", "spots.spacing_mm=16", "optimizer.max_iterations=60")
    whole = ti.plan(tiny(tmp_path, *small))
    size = ENTRY_BYTES * whole.metrics["matrix"]["nonzeros"] / 3e9
    assert whole.metrics["matrix"]["engine"] == "compressed" and "matrices of 3 of 3 scenarios" in whole.metrics["matrix"]["why"]
    some, none = (ti.plan(tiny(tmp_path, *small, f"dose.memory_gb={share * size}")) for share in (2.5, 0.01))
    assert "matrices of 2 of 3 scenarios" in some.metrics["matrix"]["why"]
    assert 0 < some.metrics["matrix"]["nonzeros"] < whole.metrics["matrix"]["nonzeros"]
    assert none.metrics["matrix"]["engine"] == "matrix_free" and none.metrics["matrix"]["nonzeros"] == 0
    exact = ti.plan(tiny(tmp_path, *small, "dose.engine=matrix"))
    assert exact.metrics["matrix"]["why"] == "as the case asks"
    for other in (some, none, exact):
        assert other.solution.value == pytest.approx(whole.solution.value, rel=1e-2)


def test_no_matrices_for_spots_that_move_soon(tmp_path):
    moving = ti.plan(tiny(tmp_path, "dose.grid_mm=10", "spots.spacing_mm=16", "optimizer.max_iterations=3", "joint={box_mm=5}"))
    assert moving.metrics["matrix"]["engine"] == "matrix_free" and "too few" in moving.metrics["matrix"]["why"]


class DoseOnlyTables(PencilBeamTables):
    """No more than the dose and its gradient."""

    entries = None
    add_dense = None

    def squared(self):
        return None


class DoseOnly(PencilBeam):
    """A dose model with the least that one must have."""

    def tabulate(self, *arguments):
        return DoseOnlyTables(**vars(super().tabulate(*arguments)))


def test_a_dose_model_that_plans_cannot_be_optimized_with(tmp_path, monkeypatch):
    """By its name in the case file; what it lacks is told with the remedy."""
    monkeypatch.setitem(MODELS, "dose_only", DoseOnly)
    small = ("dose.model=dose_only", "dose.grid_mm=10", "spots.spacing_mm=20")
    with pytest.raises(ti.InputError, match=r"no influence matrix; .*\[dose\] engine = \"matrix_free\""):
        ti.plan(tiny(tmp_path, *small, "dose.engine=matrix"))
    with pytest.raises(ti.InputError, match="no squares, which scale the optimizer; optimize with dose model 'pencil_beam'"):
        ti.plan(tiny(tmp_path, *small))
    with pytest.raises(ti.InputError, match="analytic gradient only"):
        ti.plan(tiny(tmp_path, *small, "dose.gradient=autograd"))


def test_methods_find_the_same_objective(planned, tmp_path):
    limits = ("dose.dtype=float64", "optimizer.max_iterations=2000", "optimizer.tolerance=1e-4")
    ours, paper, scipy = (ti.plan(tiny(tmp_path, f"optimizer.method={m}", *limits)).solution for m in ("projected_cg", "dyhs_cg", "lbfgs"))
    assert ours.converged and paper.converged and scipy.converged and ours.value <= planned.solution.value
    assert paper.value == pytest.approx(ours.value, rel=0.02)
    assert scipy.value == pytest.approx(ours.value, rel=0.02)


def test_goals_and_terms_are_those_of_the_doses(planned):
    nominal = planned.assessment.roi_doses["nominal"]
    target = nominal["Target"]
    violation = (50.0 - target).clamp(min=0).square().mean() * 100.0
    terms = {(t["scenario"], t["roi"], t["kind"]): t["value"] for t in planned.metrics["objective"]["terms"]}
    assert terms["nominal", "Target", "min_dose"] == pytest.approx(float(violation), rel=1e-6)
    goal = planned.metrics["goals"][1]
    means = [float(doses["External"].mean()) for doses in planned.assessment.roi_doses.values()]
    assert goal["nominal"] == pytest.approx(means[0]) and goal["worst"] == pytest.approx(max(means)) and not goal["passed"]
    assert planned.assessment.dose.shape == planned.patient.grid.shape and planned.assessment.scenario_doses == {}


def test_robust_plan_covers_where_the_nominal_one_does_not(planned, tmp_path):
    nominal = ti.plan(tiny(tmp_path, "robustness={setup_mm=0.0, range_percent=0.0}"))
    assert [s["name"] for s in nominal.metrics["scenarios"]] == ["nominal"]
    assert nominal.metrics["objective"]["final"] < planned.solution.value


def test_callback_sees_iterations_and_stops(tmp_path):
    seen = []
    result = ti.plan(tiny(tmp_path), callback=lambda iteration: seen.append(iteration.iteration) or iteration.iteration == 3)
    assert seen == [0, 1, 2, 3] and not result.solution.converged and result.metrics["stop_reason"] == "stopped by the callback"


def test_unnormalized_objective(tmp_path):
    result = ti.plan(tiny(tmp_path, "optimizer.normalize=false", "optimizer.max_iterations=1"))
    target = result.assessment.roi_doses["nominal"]["Target"]
    terms = {(t["scenario"], t["kind"], t["roi"]): t["value"] for t in result.metrics["objective"]["terms"]}
    expected = 50.0 * (target - 54.0).clamp(min=0).square().sum()
    assert terms["nominal", "max_dose", "Target"] == pytest.approx(float(expected), rel=1e-4)
    assert result.metrics["objective"]["normalized"] is False


def test_cuda_without_a_gpu(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ti.InputError, match="use --device cpu"):
        ti.plan(tiny(tmp_path), device="cuda")
