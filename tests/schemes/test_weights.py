"""The weight problem: its gradient, the start on the best uniform weights, and the scale from the Hessian's diagonal."""

from __future__ import annotations

import pytest
import torch
from tiny_case import tiny

from torchimpt.checks import InputError
from torchimpt.dose.cutoff import LARGEST_CUTOFF, LEAST_CUTOFF
from torchimpt.dose.linear import StoredDose
from torchimpt.dose.scenarios import ENGINES, AutogradDoses, scenario_doses
from torchimpt.objectives import Objective
from torchimpt.optim import Composite
from torchimpt.planning.build import build
from torchimpt.planning.load import set_up
from torchimpt.schemes.weights import CURVATURE_FLOOR, best_uniform_weight, jacobi_scale
from torchimpt.watch import Progress

F64 = "dose.dtype=float64"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The tiny case in float64, prepared."""
    case = tiny(tmp_path_factory.mktemp("weights"), F64)
    return build(case, set_up(case, "cpu"), Progress(enabled=False), {})


def test_engines_are_one_linear_map(built, generator):
    assert isinstance(built.linear, StoredDose)
    weight = torch.rand(built.spots.n_spots, dtype=torch.float64, generator=generator)
    residual = torch.randn(3, len(built.points), dtype=torch.float64, generator=generator)
    some = torch.arange(0, built.spots.n_spots, 7)
    doses, adjoints, few = {}, {}, {}
    by_torch = AutogradDoses(built.doses.operators)
    exact = set(ENGINES) - {"compressed"}
    maps = {name: built.doses.at(built.spots.position, name) for name in exact} | {"autograd": by_torch.at(built.spots.position)}
    for name, linear in maps.items():
        doses[name], adjoints[name] = linear.forward(weight), linear.adjoint(residual)
        few[name] = linear.columns(some, weight[some])
        assert float((doses[name] * residual).sum()) == pytest.approx(float(adjoints[name] @ weight), rel=1e-12)
    scattered = torch.zeros_like(weight).index_copy(0, some, weight[some])
    for name in ("matrix_free", "autograd"):
        for found, expected in ((doses, doses["matrix"]), (adjoints, adjoints["matrix"]), (few, built.linear.forward(scattered))):
            assert float((found[name] - expected).abs().max() / expected.abs().max()) < 1e-12, name
    assert float((few["matrix"] - few["autograd"]).abs().max() / few["matrix"].max()) < 1e-12
    with pytest.raises(InputError, match=r"engine must be one of .* got 'matrx' \(did you mean 'matrix'"):
        built.doses.at(built.spots.position, "matrx")


def test_gradient_of_the_weight_problem(built, generator):
    weight = 0.3 * torch.rand(built.spots.n_spots, dtype=torch.float64, generator=generator)
    _, gradient = Composite(built.linear, built.objective).value_and_grad(weight)
    step = torch.rand(weight.shape, dtype=torch.float64, generator=generator)
    ahead, behind = (Composite(built.linear, built.objective).value_and_grad(weight + h * step)[0] for h in (1e-6, -1e-6))
    assert (ahead - behind) / 2e-6 == pytest.approx(float(gradient @ step), rel=1e-6)


def test_start_minimizes_along_the_uniform_ray(built):
    uniform = torch.ones(built.spots.n_spots, dtype=torch.float64)
    start = best_uniform_weight(built.linear, built.objective, uniform)
    scale = float(start[0])
    assert scale > 0 and torch.equal(start, torch.full_like(start, scale))
    best = float(built.objective.value(built.linear.forward(start)))
    for factor in (0.5, 0.9, 0.98, 1.02, 1.1, 2.0):
        assert float(built.objective.value(built.linear.forward(factor * start))) > best
    for unit in (1e-6, 1e6):
        again = best_uniform_weight(built.linear, built.objective, unit * uniform)
        assert float(again[0]) == pytest.approx(scale, rel=2e-3)


def test_start_without_dose_is_an_error(built):
    with pytest.raises(InputError, match="no spot gives dose to any voxel of the objectives"):
        best_uniform_weight(built.linear, built.objective, torch.zeros(built.spots.n_spots, dtype=torch.float64))


def test_scale_is_the_dense_diagonal(built):
    matrix = 1.1 * built.linear.matrices[0].matrix.to_dense()
    gain = torch.zeros(len(built.points), dtype=torch.float64)
    place = {int(voxel): i for i, voxel in enumerate(Objective(built.case.terms()).voxels(built.patient))}
    target = built.patient.roi("Target").voxels.tolist()
    outside = [v for v in built.patient.roi("External").voxels.tolist() if v not in set(target)]
    for roi, weight in ((target, 100.0), (target, 50.0), (outside, 1.0)):
        for voxel in roi:
            gain[place[voxel]] += weight / len(roi)
    diagonal = torch.tensor([2.0 * float((gain * column**2).sum()) for column in matrix.T], dtype=torch.float64)
    floor = CURVATURE_FLOOR * diagonal.median()
    assert int((diagonal < floor).sum()) < 0.5 * len(diagonal)
    scale = jacobi_scale(built.doses[0], built.spots.position.detach(), built.objective)
    # the square of a cut Gaussian is taken as a Gaussian of half the variance that is cut: see `PencilBeamTables.squared`
    assert float((scale * diagonal.clamp(min=floor).sqrt() - 1.0).abs().max()) < 3e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_scale_at_every_cut_off_that_may_be_asked_for(built, backend, dtype):
    """The squares of the kernel reach the exponent cutoff^2: at 12 sigmas 144, far below what exp gives in float32."""
    position, found = built.spots.position.detach().to(dtype), {}
    for cutoff in (LEAST_CUTOFF, 4.0, 8.0, 9.0, 9.4, LARGEST_CUTOFF):
        options = {"cutoff": cutoff, "dtype": dtype, "backend": backend}
        operator = scenario_doses(built.patient, built.machine, built.spots, built.points, **options)[0]
        found[cutoff] = jacobi_scale(operator, position, built.objective)
        assert bool((torch.isfinite(found[cutoff]) & (found[cutoff] > 0)).all()), cutoff
    for cutoff in (9.0, 9.4, LARGEST_CUTOFF):  # beyond 8 sigmas there is exp(-64) of the squares
        torch.testing.assert_close(found[cutoff], found[8.0], rtol=1e-5, atol=0)


def test_nominal_doses_are_those_of_the_rois(built):
    weight = torch.ones(built.spots.n_spots, dtype=torch.float64)
    doses = built.nominal_doses(built.linear.forward(weight))
    assert set(doses) == {"Target", "External"}
    whole = torch.zeros(built.patient.grid.n_voxels, dtype=torch.float64)
    whole[Objective(built.case.terms()).voxels(built.patient)] = 1.1 * built.linear.forward(weight)[0]
    assert torch.equal(doses["Target"], whole[built.patient.roi("Target").voxels])
