"""Constraints on doses: what they add and its gradient, on rays and off, updates, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from torchimpt.checks import InputError
from torchimpt.objectives import (
    GEUD,
    KINDS,
    BoundObjective,
    BoundTerm,
    LETd,
    MaxDose,
    MaxDVH,
    MeanDose,
    MinDose,
    MinDVH,
    MixedObjective,
    Nominal,
    Objective,
    RobustObjective,
    Sum,
    Term,
    UniformDose,
    worst,
)

N, K = 30, 3
EVERY = {
    "max": MaxDose("O", 20.0),
    "min": MinDose("O", 25.0),
    "uniform": UniformDose("O", 22.0),
    "max_dvh": MaxDVH("O", 18.0, volume_percent=20.0),
    "min_dvh": MinDVH("O", 26.0, volume_percent=80.0),
    "mean": MeanDose("O", 15.0),
    "geud": GEUD("O", 17.0, a=5.0),
}


@pytest.fixture
def doses(generator) -> torch.Tensor:
    return 40.0 * torch.rand(K, N, dtype=torch.float64, generator=generator)


def objective(term: Term, volume: bool = False, mode=None) -> RobustObjective:
    """A target's dose and one constraint on the first twenty entries, which may be points with volumes."""
    index = torch.arange(20)
    own = 0.25 + torch.arange(20, dtype=torch.float64) % 4 if volume else None
    held = replace(term, constraint=True, weight=3.0)
    return RobustObjective(
        BoundObjective([BoundTerm(MinDose("T", 60.0, 2.0), torch.arange(20, N), 0.1), BoundTerm(held, index, 0.05, own)], N), mode
    )


@pytest.mark.parametrize("volume", [False, True], ids=["voxels", "points"])
@pytest.mark.parametrize("name", EVERY)
def test_gradient_and_ray_with_multipliers(doses, generator, name, volume):
    """By differences, before and after an update; the ray tells the same as the whole function."""
    robust, rates = objective(EVERY[name], volume), torch.randn(K, N, dtype=torch.float64, generator=generator)
    for _ in range(2):
        _, gradient = robust.value_and_grad(doses)
        h = 1e-5  # of doses of 40 Gy: the difference's error is below 1e-6 of slopes of 1 and more
        up, down = (float(robust.value(doses + side * h * rates)) for side in (1, -1))
        assert float((gradient * rates).sum()) == pytest.approx((up - down) / (2 * h), rel=1e-5, abs=1e-6)
        ray = robust.along(doses, rates)
        for length in (0.0, 0.7):
            there, slopes = robust.value_and_grad(doses + length * rates)
            assert ray(length) == pytest.approx((float(there), float((slopes * rates).sum())), rel=1e-10)
        robust.constraints.advance(doses - 1.0)
        assert any(bool((constraint.shift > 0).any()) for constraint in robust.constraints)
        robust.constraints.stiffen(0, 2.0)


def test_first_it_is_the_objective_of_its_kind(doses):
    """Without multipliers, at the weight of the heaviest objective."""
    for term in EVERY.values():
        as_objective = BoundTerm(replace(term, weight=7.0), torch.arange(20), 0.05)
        bare = RobustObjective(BoundObjective([as_objective], N))
        heavy = BoundTerm(MinDose("T", 0.0, 7.0), torch.arange(20, N), 0.1)
        held = RobustObjective(BoundObjective([heavy, replace(as_objective, term=replace(term, constraint=True, weight=2.0))], N))
        assert float(held.value(doses)) == pytest.approx(float(bare.value(doses)), rel=1e-12)
        assert held.constraints.value(doses) == pytest.approx(float(bare.value(doses)), rel=1e-12)
        assert held.terms(doses) and all(row["roi"] == "T" for row in held.terms(doses)) and float(held.exact_value(doses)) == 0.0
        if len(term.signs) < 2:  # of a uniform dose each side counts
            assert torch.allclose(
                held.curvature(doses), bare.curvature(doses) + RobustObjective(BoundObjective([heavy], N)).curvature(doses)
            )


def test_an_update_moves_each_multiplier_by_its_violation(doses):
    """By hand: `t = max(0, t + d - p)`; a raised penalty leaves `r t`, and so the gradient of a voxel on its level."""
    robust = objective(EVERY["max"])
    (constraint,) = robust.constraints
    by_hand = torch.zeros(K, 20, dtype=torch.float64)
    for step in (0.0, -5.0, 3.0):
        seen = doses + step
        after = (by_hand + seen[:, :20] - 20.0).clamp_min(0)
        assert robust.constraints.advance(seen) == [pytest.approx(float((after - by_hand).abs().max()))]
        assert torch.allclose(constraint.shift, after)
        by_hand = after
    level = torch.full_like(doses, 20.0)
    before = robust.value_and_grad(level)[1]
    robust.constraints.stiffen(0, 5.0)
    assert torch.allclose(robust.value_and_grad(level)[1], before) and constraint.penalty == 15.0


def test_violations_are_those_of_the_dvh(doses):
    """Against numbers counted by hand: of 20 voxels 4 may be above the level, and the fifth highest counts."""
    for name, number in {
        "max": lambda d: d.amax(1) - 20.0,
        "min": lambda d: 25.0 - d.amin(1),
        "max_dvh": lambda d: d.sort(1, descending=True).values[:, 4] - 18.0,
        "min_dvh": lambda d: 26.0 - d.sort(1).values[:, 4],
        "mean": lambda d: d.mean(1) - 15.0,
        "geud": lambda d: d.pow(5.0).mean(1).pow(0.2) - 17.0,
    }.items():
        robust = objective(EVERY[name])
        seen = robust.constraints.violations(doses)
        assert torch.allclose(seen, number(doses[:, :20])[None])
        assert robust.constraints.worst(doses) == worst(seen) == max(0.0, float(seen.max()))
        ones = replace(robust.bound.bound_terms[1], volume=torch.ones(20, dtype=torch.float64))
        volumes = RobustObjective(BoundObjective([robust.bound.bound_terms[0], ones], N))
        assert torch.allclose(volumes.constraints.violations(doses), seen)
    everything = objective(MaxDVH("O", 18.0, volume_percent=100.0))
    assert float(everything.constraints.violations(doses).max()) == -math.inf and everything.constraints.worst(doses) == 0.0


@pytest.mark.parametrize(("own", "plan"), [(Nominal(), Sum()), (None, Nominal())])
def test_a_nominal_constraint_looks_at_one_scenario(doses, own, plan):
    robust = objective(replace(EVERY["max"], mode=own), mode=plan)
    violations = robust.constraints.violations(doses)
    assert not violations[0, 0].isnan() and bool(violations[0, 1:].isnan().all())
    other = doses.clone()
    other[1:, :20] += 30.0
    assert float(robust.value(other)) == float(robust.value(doses))
    row = robust.constraints.rows(violations, ("nominal", "a", "b"), 0.1)[0]
    assert list(row["violations"]) == ["nominal"] and row["value"] == pytest.approx(float(doses[0, :20].max())) and not row["met"]


def test_further_voxels_come_without_multipliers(doses):
    """Of a sample that grows: what was there before keeps its own."""
    robust = objective(EVERY["max"])
    robust.constraints.advance(doses)
    grown = RobustObjective(BoundObjective([robust.bound.bound_terms[0], replace(robust.bound.bound_terms[1], index=torch.arange(25))], N))
    grown.constraints.load_state_dict(robust.constraints.state_dict())
    shift = grown.constraints[0].shift
    assert torch.equal(shift[:, :20], robust.constraints[0].shift) and shift.shape == (K, 25) and not shift[:, 20:].any()


def test_constraints_on_letd(doses):
    """Dose and LETd x dose in one vector: a limit on LETd beside one on dose, each seeing its own."""
    letd = torch.arange(10)
    terms = [
        BoundTerm(MinDose("T", 60.0, 2.0), torch.arange(20, N), 0.1),
        BoundTerm(MaxDose("O", 30.0, constraint=True), torch.arange(20), 0.05),
        BoundTerm(MaxDose("O", 2.0, quantity="letd", constraint=True), letd, 0.1),
    ]
    mixed = MixedObjective(BoundObjective(terms, N), {"letd": LETd(1.0)}, letd)
    both = torch.cat((doses, 3.0 * doses[:, :10]), dim=1)
    right = torch.stack((doses[:, :20].amax(1) - 30.0, torch.where(doses[:, :10] > 1.0, 3.0, 3.0 * doses[:, :10]).amax(1) - 2.0))
    assert torch.allclose(mixed.constraints.violations(both), right)
    assert [row["unit"] for row in mixed.constraints.rows(right, ("a", "b", "c"), 0.1)] == ["Gy", "keV/µm"]
    mixed.constraints.advance(both)
    rates = torch.randn(both.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    _, gradient = mixed.value_and_grad(both)
    up, down = (float(mixed.value(both + side * 1e-6 * rates)) for side in (1, -1))
    assert float((gradient * rates).sum()) == pytest.approx((up - down) / 2e-6, rel=1e-5)
    assert [row["roi"] for row in mixed.terms(both)] == ["T"] * K


def test_a_loss_cannot_hold_a_constraint(doses):
    bound = objective(EVERY["max"]).bound
    with pytest.raises(InputError, match="max_dose of 'O' is a constraint, which a loss cannot hold: it has no multipliers"):
        bound(doses)


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        (MinDose("A", 60.0), MaxDose("A", 50.0), "min_dose 60 cannot be had with max_dose 50"),
        (MinDVH("A", 60.0, volume_percent=95.0), MaxDose("A", 50.0), "min_dvh 60 for 95 % cannot be had with max_dose 50"),
        (MinDVH("A", 60.0, volume_percent=95.0), MaxDVH("A", 50.0, volume_percent=10.0), "cannot be had with max_dvh 50 for 10 %"),
        (MinDose("A", 60.0), MeanDose("A", 50.0), "cannot be had with mean_dose 50"),
        (MinDVH("A", 60.0, volume_percent=95.0), GEUD("A", 56.0, a=4.0), "cannot be had with gEUD 56"),
        (MinDVH("A", 60.0, volume_percent=5.0), MaxDVH("A", 50.0, volume_percent=10.0), None),
        (MinDVH("A", 60.0, volume_percent=90.0), MeanDose("A", 55.0), None),
        (MinDose("A", 60.0), MaxDose("B", 50.0), None),
        (MinDose("A", 60.0), MaxDose("A", 60.0), None),
    ],
)
def test_contradictions_are_told_before_anything_is_computed(low, high, told):
    terms = [MinDose("T", 60.0), replace(high, constraint=True), replace(low, constraint=True)]
    if told is None:
        Objective(terms)
        return
    with pytest.raises(InputError, match=f"constraints of 'A' contradict each other: .*{told}"):
        Objective(terms)
    Objective([*terms[:2], low])  # as an objective it may ask for what it does not get


class Custom(Term):
    """Somebody's own term, which says no more than its value."""

    kind = "custom"

    def value_and_grad(self, dose, volume=None):
        return dose.sum(-1).double(), torch.ones_like(dose)


def test_what_is_no_constraint():
    with pytest.raises(InputError, match="every objective is a constraint: nothing is left"):
        Objective([MaxDose("A", 50.0, constraint=True)])
    with pytest.raises(InputError, match="every objective has weight 0"):
        Objective([MaxDose("A", 50.0, constraint=True), MinDose("A", 50.0, 0.0)])
    with pytest.raises(InputError, match="the weight of a constraint is the penalty that it starts with, and must be positive"):
        MaxDose("A", 50.0, 0.0, constraint=True)
    with pytest.raises(InputError, match="a constraint holds in every scenario, and has no mode 'sum'; leave mode out, or give 'nominal'"):
        MaxDose("A", 50.0, constraint=True, mode=Sum())
    with pytest.raises(InputError, match="custom of 'O' cannot be a constraint: its class does not say `excess` and `violation`"):
        objective(Custom("O", 1.0))
    assert all(not kind.__dataclass_fields__["constraint"].default for kind in KINDS.values())
