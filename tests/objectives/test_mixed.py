"""Objectives on RBE-weighted dose, LETd and LETd x dose: hand-derived gradients against autograd and finite differences."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from torchimpt.checks import InputError
from torchimpt.dose.joined import joined
from torchimpt.dose.scenarios import AutogradDoses, scenario_doses
from torchimpt.geometry import Beam
from torchimpt.machine import generic
from torchimpt.objectives import (
    Composite,
    Expected,
    LETd,
    LETdDose,
    MaxDose,
    MaxDVH,
    MeanDose,
    MinDose,
    MixedObjective,
    Nominal,
    Objective,
    Objectivewise,
    RobustObjective,
    UniformDose,
    VariableRBE,
    Voxelwise,
    VoxelwiseInvariant,
    letd_entries,
)
from torchimpt.phantoms import phantom
from torchimpt.physics.rbe import RBE_MODELS
from torchimpt.points import Points, cell_points, voxel_points
from torchimpt.quantities import ConstantRBE
from torchimpt.resampling import resample
from torchimpt.scenarios import NOMINAL, boundary_scenarios
from torchimpt.spots.placement import place_spots

PATIENT = resample(phantom("water"), 10.0)
VOXELS = PATIENT.roi("Target").voxels
POINTS = cell_points(PATIENT, ["Target"], 4.0, n_scenarios=3, targets=["Target"], seed=2)
RBE = {"mcnamara": VariableRBE(RBE_MODELS["mcnamara"], 2.0, 30), "carabe": VariableRBE(RBE_MODELS["carabe"], 10.0, 30)}
QUANTITIES = {"letd": LETd(0.5), "letd_dose": LETdDose(), **RBE}


def term(kind, dose, quantity="dose", **own):
    return kind("Target", dose, quantity=quantity, **own)


def mixed(terms, quantities=QUANTITIES, points=None, mode=None):
    objective = Objective(terms)
    bound = objective.on(PATIENT, VOXELS) if points is None else objective.at(points, points.volume)
    return MixedObjective(bound, quantities, letd_entries(bound, frozenset(quantities)), mode, ConstantRBE(1.1))


TERMS = [
    term(MinDose, 60.0, weight=5.0),
    term(MaxDose, 2.0, "letd", weight=3.0),
    term(MaxDose, 90.0, "letd_dose", weight=0.1),
    term(UniformDose, 55.0, "mcnamara", weight=2.0),
    term(MaxDVH, 58.0, "carabe", volume_percent=20.0),
    term(MeanDose, 1.5, "letd", weight=4.0),
]


def plain(doses: torch.Tensor) -> torch.Tensor:
    """The same objective written out in torch."""
    n = len(VOXELS)
    total = torch.zeros((), dtype=torch.float64)
    for d, ld in zip(doses[:, :n], doses[:, n:], strict=True):
        letd = ld / d.clamp_min(0.5)
        total = total + 5.0 * (60.0 - 1.1 * d).clamp_min(0).square().mean() + 3.0 * (letd - 2.0).clamp_min(0).square().mean()
        total = total + 0.1 * (ld - 90.0).clamp_min(0).square().mean()
        total = total + 2.0 * (RBE["mcnamara"].value(d, ld) - 55.0).square().mean()
        over = (RBE["carabe"].value(d, ld) - 58.0).clamp_min(0).sort().values
        total = total + over[: len(over) - int(0.2 * len(over))].square().sum() / len(over)
        total = total + 4.0 * (letd.mean() - 1.5).clamp_min(0).square()
    return total


def random_doses(n: int = len(VOXELS)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    dose = 100.0 * torch.rand(3, n, generator=generator, dtype=torch.float64)
    dose[:, :5], dose[:, 5:9] = 0.0, 0.3  # without dose, and below the least that LETd needs
    letd = 0.5 + 5.0 * torch.rand(3, n, generator=generator, dtype=torch.float64)
    return torch.cat((dose, dose * letd), dim=1)


def test_gradient_is_that_of_the_written_out_objective() -> None:
    doses = random_doses().requires_grad_()
    value, grad = mixed(TERMS).value_and_grad(doses.detach())
    oracle = plain(doses)
    assert float(value) == pytest.approx(float(oracle.detach()), rel=1e-12)
    expected = torch.autograd.grad(oracle, doses)[0]
    # voxels without dose lie on no kink of these terms
    assert torch.allclose(grad, expected, rtol=1e-9, atol=1e-12)
    assert bool(grad.isfinite().all())


def test_a_point_counts_as_the_voxels_that_it_stands_for() -> None:
    """Value and gradient of all quantities at once, and the ray: against every point written as often as its volume says."""
    parts = torch.arange(len(POINTS)) % 3 + 1
    points = replace(POINTS, volume=parts.double())
    owner = torch.arange(len(points)).repeat_interleave(parts)
    each = points.take(owner)
    each = replace(each, volume=torch.ones(len(each), dtype=torch.float64))
    # whole points are excused by dose-volume terms, so that theirs excuse others than the voxels' do; tests/test_points.py has them
    terms = [one for one in TERMS if one.kind != "max_dvh"]
    own, voxels, doses = mixed(terms, points=points), mixed(terms, points=each), random_doses(len(points))
    both = torch.cat((owner, len(points) + owner))
    value, grad = own.value_and_grad(doses)
    expected, slope = voxels.value_and_grad(doses[:, both])
    assert float(value) == pytest.approx(float(expected), rel=1e-12) and float(value) > 1.0
    assert torch.allclose(grad, torch.zeros_like(grad).index_add_(1, both, slope), rtol=1e-9, atol=1e-12)
    rates = random_doses(len(points)).flip(1)
    assert own.along(doses, rates)(0.3) == pytest.approx(voxels.along(doses[:, both], rates[:, both])(0.3), rel=1e-10)
    assert torch.allclose(own.curvature(doses[0]), torch.zeros_like(doses[0]).index_add_(0, both, voxels.curvature(doses[0, both])))


@pytest.mark.parametrize("mode", [Objectivewise(6.0), Voxelwise(0.5), VoxelwiseInvariant(0.3), Expected(), Nominal()], ids=lambda m: m.name)
def test_robust_modes_that_add_up_over_terms(mode) -> None:
    """Gradient against autograd's of the loss by finite differences, ray, rows, and the exact value, with terms of five quantities."""
    objective, doses = mixed(TERMS, mode=mode), random_doses()
    generator = torch.Generator().manual_seed(2)
    rates = torch.rand(doses.shape, generator=generator, dtype=torch.float64)
    value, grad = objective.value_and_grad(doses + 0.7 * rates)
    assert objective.along(doses, rates)(0.7) == pytest.approx((float(value), float((grad * rates).sum())), rel=1e-9)
    up, down = (float(objective.value(doses + (0.7 + h) * rates)) for h in (1e-6, -1e-6))
    assert float((grad * rates).sum()) == pytest.approx((up - down) / 2e-6, rel=1e-6)
    assert sum(row["value"] for row in objective.terms(doses)) == pytest.approx(float(objective.value(doses)), rel=1e-12)
    exact = sum(float(mixed([one], mode=mode.exact()).value(_of(one, doses))) for one in TERMS)
    assert float(objective.exact_value(doses)) == pytest.approx(exact, rel=1e-12)
    assert objective.smoothed == (mode.exact() != mode)


def _of(one, doses: torch.Tensor) -> torch.Tensor:
    """What an objective of this term alone sees: LETd x dose only where it asks about it."""
    return doses if one.quantity != "dose" else doses[:, : len(VOXELS)]


def test_a_mode_of_totals_over_several_quantities_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"mode 'composite' is of the scenarios' totals, .* take 'objectivewise' or 'voxelwise'.* of letd a mode"
    ):
        mixed(TERMS[:2], mode=Composite())
    own = [TERMS[0], term(MaxDose, 2.0, "letd", mode=Objectivewise())]
    for terms in (own, TERMS[:1], TERMS[1:2]):
        assert float(mixed(terms, mode=Composite()).value(_of(terms[-1], random_doses()))) > 0


def test_the_same_term_twice() -> None:
    """Rows are found by place: terms that are alike have tensors, which do not compare."""
    doses, twice = random_doses(), [term(MinDose, 60.0), term(MaxDose, 2.0, "letd"), term(MinDose, 60.0), term(MaxDose, 2.0, "letd")]
    rows = mixed(twice).terms(doses)
    assert [row["kind"] for row in rows[:4]] == [one.kind for one in twice] and rows[0] == rows[2] and rows[1] == rows[3]


def test_terms_of_dose_alone_are_as_ever() -> None:
    terms = [t for t in TERMS if t.quantity == "dose"]
    bound = Objective(terms).on(PATIENT, VOXELS)
    doses = random_doses()[:, : len(VOXELS)]
    value, grad = mixed(terms).value_and_grad(doses)
    known, way = RobustObjective(bound, quantity=ConstantRBE(1.1)).value_and_grad(doses)
    assert float(value) == float(known) and torch.equal(grad, way)


def test_ray_and_rows() -> None:
    objective, doses = mixed(TERMS), random_doses()
    generator = torch.Generator().manual_seed(2)
    rates = torch.rand(doses.shape, generator=generator, dtype=torch.float64)
    ray = objective.along(doses, rates)
    for length in (0.0, 0.7, 30.0):
        value, grad = objective.value_and_grad(doses + length * rates)
        found, slope = ray(length)
        assert found == pytest.approx(float(value), rel=1e-10)
        assert slope == pytest.approx(float((grad * rates).sum()), rel=1e-9)
    rows = objective.terms(doses)
    assert [(row["scenario"], row["kind"], row.get("quantity", "dose")) for row in rows] == [
        (k, t.kind, t.quantity) for k in range(3) for t in TERMS
    ]
    assert sum(row["value"] for row in rows) == pytest.approx(float(objective.value(doses)), rel=1e-12)
    assert objective.curvature(doses[0]).shape == doses[0].shape


def test_letd_stands_where_it_is_asked_for() -> None:
    terms = [term(MinDose, 60.0), MaxDose("Target", 2.0, quantity="letd")]
    voxels = torch.cat((VOXELS, torch.tensor([0, 1]))).sort().values
    bound = Objective(terms).on(PATIENT, voxels)
    entries = letd_entries(bound, frozenset(QUANTITIES))
    assert torch.equal(voxels[entries], VOXELS)
    objective = MixedObjective(bound, QUANTITIES, entries)
    doses = torch.ones(1, len(voxels) + len(VOXELS), dtype=torch.float64)
    doses[:, len(voxels) :] = 3.0
    _, grad = objective.value_and_grad(doses)
    outside = torch.ones(len(voxels), dtype=torch.bool)
    outside[entries] = False
    assert bool((grad[0, : len(voxels)][outside] == 0).all()) and bool((grad[0, len(voxels) :] > 0).all())
    with pytest.raises(InputError, match="dose and then LETd x dose"):
        objective.value(doses[:, :-1])


@pytest.mark.parametrize("points", [voxel_points(PATIENT, VOXELS), POINTS], ids=["voxels", "points"])
@pytest.mark.parametrize("quantity", ["letd", "letd_dose", "mcnamara", "carabe"])
def test_gradient_by_weights_and_positions(quantity: str, points: Points) -> None:
    """Through the pair kernel and back: against autograd of the dense formula, and finite differences in float64."""
    beams = [Beam(0.0, 0.0, (0.0, 0.0, 0.0)), Beam(60.0, 0.0, (0.0, 0.0, 0.0))]
    spots = place_spots(PATIENT, generic(), beams, PATIENT.targets, spacing=20.0, layer_spacing=15.0, dtype=torch.float64)
    scenarios = boundary_scenarios(3.0, 3.0)[:3]
    objective = mixed([term(UniformDose, {"letd": 3.0, "letd_dose": 100.0}.get(quantity, 50.0), quantity)], points=points)
    options = {"dtype": torch.float64, "cutoff": 5.0}
    parts = [scenario_doses(PATIENT, generic(), spots, points, scenarios, amplitude=a, **options) for a in ("dose", "letd_dose")]
    doses = joined(parts)
    generator = torch.Generator().manual_seed(3)
    weight = 20.0 * torch.rand(spots.n_spots, generator=generator, dtype=torch.float64)
    position = spots.position.detach() + torch.rand(spots.n_spots, 2, generator=generator, dtype=torch.float64)

    def value(w: torch.Tensor, x: torch.Tensor) -> float:
        return float(objective.value(doses.dose(x, w)))

    _, residual = objective.value_and_grad(doses.dose(position, weight))
    found = doses.gradient(residual, position, weight)
    torchs = AutogradDoses(doses.operators).gradient(residual, position, weight)
    assert torch.allclose(found.weight, torchs.weight, rtol=1e-9, atol=1e-9 * float(torchs.weight.abs().max()))
    assert torch.allclose(found.position, torchs.position, rtol=1e-8, atol=1e-8 * float(torchs.position.abs().max()))
    for s in (0, spots.n_spots // 2, spots.n_spots - 1):
        step = torch.zeros_like(weight)
        step[s] = 1e-4
        slope = (value(weight + step, position) - value(weight - step, position)) / 2e-4
        assert slope == pytest.approx(float(found.weight[s]), rel=1e-5, abs=1e-7 * float(found.weight.abs().max()))
        for axis in (0, 1):
            move = torch.zeros_like(position)
            move[s, axis] = 1e-4
            slope = (value(weight, position + move) - value(weight, position - move)) / 2e-4
            assert slope == pytest.approx(float(found.position[s, axis]), rel=1e-4, abs=1e-6 * float(found.position.abs().max()))


def test_letd_dose_is_letd_of_one_layer_times_dose() -> None:
    """A single layer in water: at every depth the ratio is the layer's own LETd, whatever the place off the axis."""
    beam = Beam(0.0, 0.0, (0.0, 0.0, 0.0))
    spots = place_spots(PATIENT, generic(), [beam], PATIENT.targets, spacing=10.0, layer_spacing=200.0, dtype=torch.float64)
    energy = float(spots.layer_energy[0])
    voxels = PATIENT.body.flatten().nonzero().flatten()
    dose, letd_dose = (
        scenario_doses(PATIENT, generic(), spots, voxels, (NOMINAL,), dtype=torch.float64, amplitude=a).dose(
            spots.position.detach(), torch.ones(spots.n_spots, dtype=torch.float64) * (spots.layer == 0)
        )[0]
        for a in ("dose", "letd_dose")
    )
    tables, letd = generic().layers([energy]), generic().letd([energy])
    seen = dose > 1e-3 * dose.max()
    depth = PATIENT.grid.centers(voxels)[:, 1] - float(PATIENT.grid.axis("y")[0]) + 0.5 * PATIENT.grid.spacing[1]
    index = (depth / tables.depth_step[0]).long().clamp_max(letd.shape[1] - 1)
    # rays of a source 2 m away are longer than the depth by up to a per mille
    assert torch.allclose((letd_dose / dose)[seen], letd[0][index][seen], rtol=0.02)


def test_doses_alone_do_not_tell_letd() -> None:
    with pytest.raises(InputError, match="max_dose of 'Target' asks about 'letd', which doses alone do not tell"):
        RobustObjective(Objective([term(MaxDose, 3.0, "letd")]).on(PATIENT, VOXELS))
