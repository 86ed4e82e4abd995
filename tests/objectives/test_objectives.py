"""Terms, objectives and their rays: closed forms, a loop-written oracle, gradients, and what the binding to voxels does."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from torchimpt.checks import InputError
from torchimpt.geometry import Grid
from torchimpt.objectives import GEUD, KINDS, MaxDose, MaxDVH, MeanDose, MinDose, MinDVH, Objective, UniformDose
from torchimpt.patient import ROI, Patient

TERMS = [
    MinDose("PTV", 60.0, 3.0),
    MaxDose("PTV", 50.0, 2.0),
    UniformDose("PTV", 55.0, 1.5),
    MinDVH("PTV", 58.0, 2.5, volume_percent=70),
    MaxDVH("PTV", 40.0, 2.5, volume_percent=30),
    MeanDose("PTV", 35.0, 4.0),
    GEUD("PTV", 30.0, 4.0, a=6.0),
]


def loop_value(term, dose: list[float]) -> float:
    """Xu et al. 2020, Eq. 1, one voxel after the other."""
    n, p = len(dose), term.dose
    if term.kind == "min_dose":
        return term.weight * sum((d - p) ** 2 for d in dose if d < p)
    if term.kind == "max_dose":
        return term.weight * sum((d - p) ** 2 for d in dose if d > p)
    if term.kind == "uniform":
        return term.weight * sum((d - p) ** 2 for d in dose)
    if term.kind == "mean_dose":
        return term.weight * n * max(0.0, sum(dose) / n - p) ** 2
    if term.kind == "gEUD":
        return term.weight * n * max(0.0, (sum(d**term.a for d in dose) / n) ** (1 / term.a) - p) ** 2
    # Dose-volume goals: ascending doses; at most q % may be above p, or at most (100 - q) % below it. Take violators from the mild end
    # until the share that is left may violate.
    if term.kind == "max_dvh":
        violators, allowed = sorted(d for d in dose if d > p), term.volume_percent / 100 * n
    else:
        violators, allowed = sorted((d for d in dose if d < p), reverse=True), (100 - term.volume_percent) / 100 * n
    total = 0.0
    while len(violators) > allowed + 1e-9:
        total += (violators.pop(0) - p) ** 2
    return term.weight * total


@pytest.fixture
def dose(generator) -> torch.Tensor:
    return 80 * torch.rand(37, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("term", TERMS, ids=lambda t: t.kind)
def test_value_is_the_loop(term, dose) -> None:
    value, grad = term.value_and_grad(dose)
    assert value.dtype == torch.float64 and grad.dtype == dose.dtype
    assert float(value) == pytest.approx(loop_value(term, dose.tolist()), rel=1e-13)
    assert float(value) > 0


@pytest.mark.parametrize("term", TERMS, ids=lambda t: t.kind)
def test_gradient_is_that_of_the_value(term, dose) -> None:
    # All but gEUD are quadratic in pieces, where central differences are exact for any step: a large one keeps their rounding small.
    assert torch.autograd.gradcheck(term, (dose.requires_grad_(),), eps=1e-3, atol=1e-6, rtol=1e-7)


@pytest.mark.parametrize("term", TERMS, ids=lambda t: t.kind)
def test_scenarios_are_treated_alone(term, dose) -> None:
    stack = torch.stack([dose, 0.5 * dose, dose + 10])
    values, grads = term.value_and_grad(stack)
    for k, one in enumerate(stack):
        value, grad = term.value_and_grad(one)
        assert values[k] == value
        torch.testing.assert_close(grads[k], grad, rtol=0, atol=0)


@pytest.mark.parametrize("term", TERMS, ids=lambda t: t.kind)
def test_a_dose_that_meets_the_goal_costs_nothing(term) -> None:
    level = term.dose + {"min_dose": 5.0, "min_dvh": 5.0, "uniform": 0.0}.get(term.kind, -5.0)
    value, grad = term.value_and_grad(torch.full((20,), level, dtype=torch.float64))
    assert float(value) == 0 and not grad.any()


def test_dose_volume_goal_keeps_the_mildest_violators() -> None:
    dose = torch.tensor([10.0, 21.0, 22.0, 30.0, 50.0], dtype=torch.float64)
    # 40 % of 5 voxels may be above 20 Gy: the hottest two are excused, the two that exceed the 40 % are counted.
    value, grad = MaxDVH("OAR", 20.0, volume_percent=40).value_and_grad(dose)
    assert float(value) == 1.0 + 4.0
    assert grad.tolist() == [0.0, 2.0, 4.0, 0.0, 0.0]
    # 60 % have to be above 25 Gy: two voxels may be colder, of three that are the mildest is counted.
    value, grad = MinDVH("PTV", 25.0, volume_percent=60).value_and_grad(dose)
    assert float(value) == 9.0
    assert grad.tolist() == [0.0, 0.0, -6.0, 0.0, 0.0]


def test_dose_volume_goals_at_their_ends_are_min_and_max_dose(dose) -> None:
    # 1e-12: the sums are made in another order
    assert float(MaxDVH("A", 40.0, volume_percent=0)(dose)) == pytest.approx(float(MaxDose("A", 40.0)(dose)), rel=1e-12)
    assert float(MinDVH("A", 40.0, volume_percent=100)(dose)) == pytest.approx(float(MinDose("A", 40.0)(dose)), rel=1e-12)
    assert MaxDVH("A", 40.0, volume_percent=100)(dose) == 0
    assert MinDVH("A", 40.0, volume_percent=0)(dose) == 0


@pytest.mark.parametrize("percent", [7.0, 29.0, 57.0, 58.0])
def test_whole_percents_excuse_whole_voxels(percent) -> None:
    # In floating point 0.07 * 100 is above 7 and 0.29 * 100 below 29.
    assert MaxDVH("A", 1.0, volume_percent=percent).excused(100) == round(percent)
    assert MinDVH("A", 1.0, volume_percent=percent).excused(100) == 100 - round(percent)


def test_geud_spans_mean_to_maximum_and_does_not_overflow(dose) -> None:
    assert float(GEUD("A", 30.0, a=1.0)(dose)) == pytest.approx(float(MeanDose("A", 30.0)(dose)), rel=1e-12)
    root = math.sqrt(float(GEUD("A", 0.0, a=100.0)(dose.float())) / len(dose))
    assert 0.95 * float(dose.max()) < root <= float(dose.max())
    value, grad = GEUD("A", 30.0, a=8.0).value_and_grad(torch.zeros(5))
    assert float(value) == 0 and torch.isfinite(grad).all()


def test_float32_sums_do_not_stall(generator) -> None:
    dose = 60 + torch.randn(2_000_000, generator=generator, dtype=torch.float64)
    term = UniformDose("A", 60.0)
    exact = float(term(dose))
    # One voxel's rounding is 2e-6 Gy of 1 Gy and does not add up; a running float32 sum of so many squares would be off by 1e-4.
    assert float(term(dose.float())) == pytest.approx(exact, rel=1e-7)


def test_kinds_are_the_case_files_names() -> None:
    assert set(KINDS) == {"min_dose", "max_dose", "min_dvh", "max_dvh", "mean_dose", "uniform", "gEUD"}
    assert all(kind == term.kind for kind, term in KINDS.items())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MinDose("A", -1.0), "dose must be zero or more"),
        (lambda: MinDose("A", float("nan")), "dose must be zero or more"),
        (lambda: MaxDose("A", 1.0, -2.0), "weight must be zero or more"),
        (lambda: MaxDVH("A", 1.0, volume_percent=101), "volume_percent must be 0 to 100"),
        (lambda: GEUD("A", 1.0, a=0.5), "a must be 1"),
    ],
)
def test_wrong_terms_say_so(make, message) -> None:
    with pytest.raises(InputError, match=message):
        make()


def every_kind(roi: str) -> list:
    """One term of every kind, on one ROI."""
    return [replace(term, roi=roi) for term in TERMS]


@pytest.fixture
def patient() -> Patient:
    shape = (3, 4, 5)
    flat = torch.arange(60)
    masks = {
        "PTV70": ((flat >= 10) & (flat < 30), "target"),
        "PTV56": ((flat >= 25) & (flat < 40), "target"),
        "Cord": ((flat >= 20) & (flat < 50), "oar"),
        "Inside": ((flat >= 12) & (flat < 18), "oar"),
        "Nothing": (flat < 0, "oar"),
        "External": (flat >= 0, "external"),
    }
    rois = {name: ROI(name, mask.view(shape), role) for name, (mask, role) in masks.items()}
    return Patient(torch.zeros(shape), Grid(shape, (3.0, 3.0, 3.0), (0.0, 0.0, 0.0)), rois)


def test_normalized_divides_by_the_voxels_seen(patient) -> None:
    terms = [MaxDose("PTV70", 10.0, 2.0), MaxDose("Cord", 10.0)]
    dose = torch.full((60,), 13.0, dtype=torch.float64)
    assert float(Objective(terms).on(patient).value(dose)) == pytest.approx(2 * 9 + 9)
    # As in the paper: 20 voxels of the target; the cord's 30 less the 10 that are inside the target.
    assert float(Objective(terms, normalize=False).on(patient).value(dose)) == pytest.approx(2 * 9 * 20 + 9 * 20)
    assert float(Objective(terms, normalize=False, overlap="keep").on(patient).value(dose)) == pytest.approx(2 * 9 * 20 + 9 * 30)


def test_only_targets_with_a_term_shield(patient) -> None:
    one = Objective([MinDose("PTV70", 10.0), MaxDose("Cord", 10.0)]).on(patient)
    both = Objective([MinDose("PTV70", 10.0), MinDose("PTV56", 10.0), MaxDose("Cord", 10.0)]).on(patient)
    assert one.bound_terms[1].index.tolist() == list(range(30, 50))
    assert both.bound_terms[2].index.tolist() == list(range(40, 50))
    assert both.bound_terms[1].index.tolist() == list(range(25, 40))


def test_voxels_are_all_that_the_objective_needs(patient, generator) -> None:
    objective = Objective([MinDose("PTV70", 60.0), MaxDose("PTV70", 65.0), MaxDose("Cord", 20.0), MeanDose("Cord", 5.0)])
    voxels = objective.voxels(patient)
    assert voxels.tolist() == list(range(10, 50))
    dose = 80 * torch.rand(60, dtype=torch.float64, generator=generator)
    whole, part = objective.on(patient), objective.on(patient, voxels)
    value, grad = whole.value_and_grad(dose)
    value_part, grad_part = part.value_and_grad(dose[voxels])
    assert float(value) == pytest.approx(float(value_part), rel=1e-14)
    torch.testing.assert_close(grad[voxels], grad_part)
    assert not grad[:10].any() and not grad[50:].any()
    # Any order of the dose's entries will do.
    shuffled = voxels.flip(0)
    assert float(objective.on(patient, shuffled).value(dose[shuffled])) == pytest.approx(float(value), rel=1e-14)


def test_terms_add_up_to_the_value(patient, generator) -> None:
    objective = Objective(every_kind("PTV70") + every_kind("Cord")).on(patient)
    dose = 80 * torch.rand(60, dtype=torch.float64, generator=generator)
    shares = objective.terms(dose)
    assert sum(term["value"] for term in shares) == pytest.approx(float(objective.value(dose)), rel=1e-13)
    assert {(term["roi"], term["kind"]) for term in shares} == {(roi, t.kind) for t in TERMS for roi in ("PTV70", "Cord")}


def test_objective_gradient_and_loss(patient, generator) -> None:
    objective = Objective([*every_kind("PTV70"), MaxDose("Cord", 20.0)]).on(patient)
    dose = (80 * torch.rand(60, dtype=torch.float64, generator=generator)).requires_grad_()
    assert torch.autograd.gradcheck(objective, (dose,), eps=1e-3, atol=1e-6, rtol=1e-7)
    # Against a plain torch spelling, differentiated by autograd.
    d = dose[10:30]
    plain = (3.0 * (60 - d).clamp(min=0) ** 2).sum() / 20 + (2.0 * (d - 50).clamp(min=0) ** 2).sum() / 20
    (expected,) = torch.autograd.grad(plain, dose)
    torch.testing.assert_close(Objective(every_kind("PTV70")[:2]).on(patient).value_and_grad(dose.detach())[1], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ray_is_the_objective_along_it(patient, generator, dtype) -> None:
    objective = Objective([*every_kind("PTV70"), *every_kind("Cord")]).on(patient)
    dose, rate = (20 * torch.rand(3, 60, dtype=torch.float64, generator=generator) for _ in range(2))
    ray = objective.along(dose.to(dtype), rate.to(dtype))
    accuracy = 1e-12 if dtype is torch.float64 else 1e-5
    for length in (0.0, 0.7, 2.3):
        value, grad = objective.value_and_grad(dose + length * rate)
        for got, expected in zip(ray(length), (value, (grad * rate).sum(-1)), strict=True):
            torch.testing.assert_close(got, expected, rtol=accuracy, atol=0)


def test_zero_weight_is_off(patient) -> None:
    dose = torch.full((60,), 13.0)
    bound = Objective([MaxDose("PTV70", 10.0), MaxDVH("Cord", 1.0, 0.0, volume_percent=0)]).on(patient)
    assert float(bound.value(dose)) == pytest.approx(9.0)
    assert [term["value"] for term in bound.terms(dose)] == pytest.approx([9.0, 0.0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: Objective([]), "there is no objective"),
        (lambda p: Objective([MaxDose("PTV70", 1.0, 0.0)]), "every objective has weight 0"),
        (lambda p: Objective([MaxDose("PTV70", 1.0)], overlap="exclud"), "did you mean 'exclude'"),
        (lambda p: Objective([MaxDose("PTV71", 1.0)]).on(p), "no ROI 'PTV71' .did you mean 'PTV70'.*Cord"),
        (lambda p: Objective([MaxDose("Nothing", 1.0)]).on(p), "Nothing has no voxel"),
        (lambda p: Objective([MinDose("PTV70", 1.0), MaxDose("Inside", 1.0)]).on(p), "'Inside' has no voxel outside the targets PTV70"),
        (lambda p: Objective([MinDose("PTV70", 1.0)]).on(p, torch.arange(28)), "needs 2 voxels that the dose does not cover"),
        (lambda p: Objective([MinDose("PTV70", 1.0)]).on(p).value(torch.zeros(59)), r"shape \(60,\).*got \(59,\)"),
    ],
)
def test_wrong_objectives_say_so(patient, make, message) -> None:
    with pytest.raises(InputError, match=message):
        make(patient)


def test_wrong_types_say_so(patient) -> None:
    with pytest.raises(TypeError, match="must be Terms"):
        Objective(["PTV70"])
    with pytest.raises(TypeError, match="floating-point"):
        Objective([MinDose("PTV70", 1.0)]).on(patient).value(torch.zeros(60, dtype=torch.int64))
