"""The weight problem: its gradient, the start on the best uniform weights, and the scale from the Hessian's diagonal."""

from __future__ import annotations

import pytest
import torch
from tiny_case import tiny

from torchimpt.checks import InputError
from torchimpt.monitor import Progress
from torchimpt.planning.engine import AutogradEngine, MatrixEngine, MatrixFreeEngine
from torchimpt.planning.plan import prepare
from torchimpt.planning.prepare import settings
from torchimpt.planning.weights import CURVATURE_FLOOR, best_uniform_weight, jacobi_scale, weight_problem

F64 = "dose.dtype=float64"


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """The tiny case in float64, prepared."""
    case = tiny(tmp_path_factory.mktemp("weights"), F64)
    return prepare(case, settings("cpu", "float64", None, 1), Progress(enabled=False), {})


def engines(ready):
    """All three, on the same operators."""
    from torchimpt.dose.operator import dose_operators

    operators = dose_operators(
        ready.patient, ready.machine, ready.spots, ready.voxels, ready.scenarios, cutoff=ready.case.dose.cutoff_sigma, dtype=torch.float64
    )
    return {
        "matrix": ready.engine,
        "matrix_free": MatrixFreeEngine(operators, ready.spots.position),
        "autograd": AutogradEngine(operators, ready.spots.position),
    }


def test_engines_are_one_linear_map(ready, generator):
    assert isinstance(ready.engine, MatrixEngine)
    weight = torch.rand(ready.spots.n_spots, dtype=torch.float64, generator=generator)
    residual = torch.randn(3, len(ready.voxels), dtype=torch.float64, generator=generator)
    some = torch.arange(0, ready.spots.n_spots, 7)
    doses, adjoints, few = {}, {}, {}
    for name, engine in engines(ready).items():
        doses[name], adjoints[name] = engine.forward(weight), engine.adjoint(residual)
        few[name] = engine.forward_some(some, weight[some])
        assert float((doses[name] * residual).sum()) == pytest.approx(float(adjoints[name] @ weight), rel=1e-12)
    scattered = torch.zeros_like(weight).index_copy(0, some, weight[some])
    for name in ("matrix_free", "autograd"):
        for found, expected in ((doses, doses["matrix"]), (adjoints, adjoints["matrix"]), (few, ready.engine.forward(scattered))):
            assert float((found[name] - expected).abs().max() / expected.abs().max()) < 1e-12, name
    assert float((few["matrix"] - few["autograd"]).abs().max() / few["matrix"].max()) < 1e-12


def test_gradient_of_the_weight_problem(ready, generator):
    weight = 0.3 * torch.rand(ready.spots.n_spots, dtype=torch.float64, generator=generator)
    _, gradient = weight_problem(ready.engine, ready.objective).value_and_grad(weight)
    step = torch.rand(weight.shape, dtype=torch.float64, generator=generator)
    ahead, behind = (weight_problem(ready.engine, ready.objective).value_and_grad(weight + h * step)[0] for h in (1e-6, -1e-6))
    assert (ahead - behind) / 2e-6 == pytest.approx(float(gradient @ step), rel=1e-6)


def test_start_minimizes_along_the_uniform_ray(ready):
    uniform = torch.ones(ready.spots.n_spots, dtype=torch.float64)
    start = best_uniform_weight(ready.engine, ready.objective, uniform)
    scale = float(start[0])
    assert scale > 0 and torch.equal(start, torch.full_like(start, scale))
    best = float(ready.objective.value(ready.engine.forward(start)))
    for factor in (0.5, 0.9, 0.98, 1.02, 1.1, 2.0):
        assert float(ready.objective.value(ready.engine.forward(factor * start))) > best
    for unit in (1e-6, 1e6):
        again = best_uniform_weight(ready.engine, ready.objective, unit * uniform)
        assert float(again[0]) == pytest.approx(scale, rel=2e-3)


def test_start_without_dose_is_an_error(ready):
    with pytest.raises(InputError, match="no spot gives dose to any voxel of the objectives"):
        best_uniform_weight(ready.engine, ready.objective, torch.zeros(ready.spots.n_spots, dtype=torch.float64))


def test_scale_is_the_dense_diagonal(ready):
    matrix = ready.engine.matrices[0].forward.to_dense()
    gain = torch.zeros(len(ready.voxels), dtype=torch.float64)
    place = {int(voxel): i for i, voxel in enumerate(ready.voxels)}
    target = ready.patient.roi("Target").voxels.tolist()
    outside = [v for v in ready.patient.roi("External").voxels.tolist() if v not in set(target)]
    for roi, weight in ((target, 100.0), (target, 50.0), (outside, 1.0)):
        for voxel in roi:
            gain[place[voxel]] += weight / len(roi)
    diagonal = torch.tensor([2.0 * float((gain * column**2).sum()) for column in matrix.T], dtype=torch.float64)
    floor = CURVATURE_FLOOR * diagonal.median()
    assert int((diagonal < floor).sum()) < 0.5 * len(diagonal)
    scale = jacobi_scale(ready.operators[0], ready.spots.position.detach(), ready.objective.bound)
    assert float((scale * diagonal.clamp(min=floor).sqrt() - 1.0).abs().max()) < 1e-9


def test_nominal_doses_are_those_of_the_rois(ready):
    weight = torch.ones(ready.spots.n_spots, dtype=torch.float64)
    doses = ready.nominal_doses(weight)
    assert set(doses) == {"Target", "External"}
    whole = torch.zeros(ready.patient.grid.n_voxels, dtype=torch.float64)
    whole[ready.voxels] = ready.engine.forward(weight)[0]
    assert torch.equal(doses["Target"], whole[ready.patient.roi("Target").voxels])
