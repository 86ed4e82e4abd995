"""How weights and positions are found: what each scheme keeps and respects, deliverable plans, and runs that stop and go on."""

from __future__ import annotations

import io
import itertools
import json
import math
from dataclasses import replace

import pytest
import torch
from tiny_case import tiny

import torchimpt as ti
from torchimpt.checks import InputError
from torchimpt.dose.operator import DoseOperator
from torchimpt.io.plan import read_plan, write_plan
from torchimpt.objectives import MODES, Sum
from torchimpt.optim import Status
from torchimpt.planning.build import build
from torchimpt.planning.load import set_up
from torchimpt.schemes.moving import MovingSpots
from torchimpt.schemes.schemes import SCHEMES, optimize
from torchimpt.schemes.settings import Limits, Motion, Solver
from torchimpt.spots.delivery import DeliveryModel
from torchimpt.spots.pruning import heaviest, spots_closer_than
from torchimpt.watch import Progress

pytestmark = pytest.mark.filterwarnings("ignore:ROI Target .* more than a fifth")  # voxels of 12 mm

SMALL = ("dose.grid_mm=12", "spots.spacing_mm=16", "dose.engine=matrix_free", "objective[2].dose_gy=0", "spots.stagger=false")
SOLVER = Solver(max_iterations=30, tolerance=1e-3)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A coarse tiny case in float32 and three range scenarios; its objective cannot be met."""
    case = tiny(tmp_path_factory.mktemp("schemes"), *SMALL)
    return build(case, set_up(case, "cpu"), Progress(enabled=False), {})


@pytest.fixture(scope="module")
def fixed(built):
    """The best plan of the placed spots, to a finer tolerance than that of the moving ones."""
    return optimize(built.doses, built.objective, built.spots, Solver(max_iterations=150, tolerance=1e-5))


def run(built, solver=SOLVER, limits=None, callback=None, state=None, start=None, uniform=True, **joint):
    """`optimize` with these keys of [joint]."""
    config = Motion(**{"warm_iterations": 8, **joint})
    return optimize(
        built.doses,
        built.objective,
        start or built.spots,
        solver,
        config,
        limits=limits,
        uniform=uniform,
        callback=callback,
        state=state,
    )


def objective_of(built, plan: MovingSpots) -> float:
    """F of a plan, from its spots in operators of their own."""
    spots = plan.spots(built.spots)
    operators = ti.scenario_doses(built.patient, built.machine, spots, built.points, built.scenarios)
    return float(built.objective.value(operators.dose(spots.position, spots.weight)))


def same_plan(a: MovingSpots, b: MovingSpots) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("index", "home", "position", "weight"))


# --- every scheme -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
def test_moving_spots_are_better_than_fixed_ones(built, fixed, scheme):
    found = run(built, Solver(max_iterations=150, tolerance=1e-5), scheme=scheme, price_percent=0.0)
    gain = {"joint": 0.1, "alternating": 0.95, "prune_and_move": 0.1}[scheme]  # 0.93 by turns with torch 2.4, which rounds otherwise
    assert found.solution.value < gain * fixed.solution.value
    assert found.solution.value == pytest.approx(objective_of(built, found.spots), rel=1e-5)
    assert float(found.spots.moved().max()) > 0.1


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("box", [1.5, 40.0])
def test_spots_stay_in_their_box_and_in_the_targets_view(built, scheme, box):
    seen = []
    found = run(built, scheme=scheme, box_mm=box, spots=40, callback=lambda r: seen.append(r) and None)
    plan, placed = found.spots, built.spots
    away = (plan.position - plan.home).abs()
    # home + u is rounded in float32, at 50 mm by 2e-6
    assert float(away.max()) <= box + 1e-5 and torch.equal(plan.home, placed.position.detach()[plan.index])
    if box < 2 and scheme != "alternating":
        assert int((away > box - 1e-5).sum()) > 5  # some would go further
    for beam in range(2):
        own, all_of = plan.position[placed.beam[plan.index] == beam], placed.position.detach()[placed.beam == beam]
        assert bool((own >= all_of.amin(0) - 1e-5).all() and (own <= all_of.amax(0) + 1e-5).all())
    assert bool((plan.weight >= 0).all()) and len(seen) == len(found.solution.history)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_spots_at_their_bounds_start_the_next_stage(built, generator, scheme):
    """`home + u` is rounded in float32: the `u` that the next stage starts from may lie past the box by that, and must not be refused."""
    start = ti.Spots(
        built.spots.position.detach() + torch.rand(built.spots.n_spots, 2, generator=generator), built.spots.weight.detach(),
        built.spots.layer, built.spots.layer_beam, built.spots.layer_energy, built.spots.beams,
    )  # fmt: skip
    plan = run(built, replace(SOLVER, max_iterations=100), scheme=scheme, box_mm=0.3, spots=20, start=start).spots
    away = (plan.position - plan.home).abs()
    assert bool((away > 0.3).any()) and float(away.max()) < 0.3 + 1e-5


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_number_of_spots_is_met(built, scheme):
    found = run(built, scheme=scheme, spots=17)
    assert found.spots.n_spots == 17 and found.steps[-1]["spots"] == 17
    assert bool((found.spots.index.diff() > 0).all())
    counts = [step["spots"] for step in found.steps]
    assert counts[0] == built.spots.n_spots and counts == sorted(counts, reverse=True)
    assert all(b >= 17 for b in counts) and len(set(counts)) >= 3  # by steps
    every = run(built, Solver(max_iterations=2), scheme=scheme, spots=10_000, warm_iterations=1)
    assert every.spots.n_spots == built.spots.n_spots


def test_the_heaviest_are_kept(built):
    """One step of pruning: what the iterations before it left heaviest stays."""
    plans = {}
    found = run(built, spots=built.spots.n_spots - 3, callback=lambda r: plans.setdefault(r.iteration, r.spots()) and None)
    (thinned,) = [step for step in found.steps if step["step"].endswith("thinned")]
    last = plans[found.steps[0]["iterations"] + 1 + thinned["iterations"]]
    assert torch.equal(found.spots.index, heaviest(last.weight, built.spots.n_spots - 3).nonzero().flatten())


@pytest.mark.slow
def test_a_price_on_weights_leaves_fewer_and_is_not_in_the_objective(built):
    """The solver sees the price; what is told is F."""
    seen, told = [], []

    def watch(r):
        seen.append(objective_of(built, r.spots()))
        told.append(r.value)

    found = run(built, spots=20, callback=watch)
    assert told == pytest.approx(seen, rel=1e-4) and told == [row["value"] for row in found.solution.history]
    first = next(step for step in found.steps if step["step"].endswith("thinned"))
    assert first["objective"] == told[found.steps[0]["iterations"] + 1 + first["iterations"]]


@pytest.mark.slow
def test_prune_and_move_stops_at_its_price(built):
    counts = []
    for price in (0.0, 100.0, 1e4):
        found = run(built, scheme="prune_and_move", price_percent=price)
        whole = next(step for step in found.steps if step["step"] == "joint")
        assert found.solution.value <= (1 + price / 100) * whole["objective"] * (1 + 1e-6)
        counts.append(found.spots.n_spots)
        assert bool((found.steps[-2]["objective"] > (1 + price / 100) * whole["objective"]) or found.steps[-2]["spots"] == 1)
    assert counts == sorted(counts, reverse=True) and counts[-1] < 0.6 * counts[0]


def test_steps_add_up(built):
    records = []
    found = run(built, spots=30, callback=lambda r: records.append(r) and None)
    solution = found.solution
    assert [row["iteration"] for row in solution.history] == list(range(len(records))) == [r.iteration for r in records]
    # as text, because the beta of a quasi-Newton step is NaN
    assert json.dumps(solution.history) == json.dumps([r.numbers() for r in records]) and solution.iterations == records[-1].iteration
    assert solution.evaluations == records[-1].evaluations == sum(step["evaluations"] for step in found.steps)
    assert all(b.evaluations > a.evaluations and b.seconds >= a.seconds for a, b in itertools.pairwise(records))
    ends = list(itertools.accumulate(step["iterations"] + 1 for step in found.steps))
    assert [records[end - 1].value for end in ends] == [step["objective"] for step in found.steps]
    assert set(found.steps[0]) == {"step", "spots", "objective", "iterations", "evaluations", "seconds"}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_evaluations_are_limited_over_all_stages(built, scheme):
    found = run(built, Solver(max_iterations=300, max_evaluations=40, tolerance=1e-9), scheme=scheme)
    assert found.solution.status is Status.MAX_EVALUATIONS and "out of evaluations" in found.solution.message
    # a step may need several, and each stage has one at its start
    assert 40 <= found.solution.evaluations <= 40 + 8 + len(found.steps)


# --- no motion --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["joint", "alternating"])
def test_a_box_of_zero_is_the_weight_only_plan(built, scheme):
    weights = optimize(built.doses, built.objective, built.spots, SOLVER)
    found = run(built, scheme=scheme, box_mm=0.0)
    assert same_plan(found.spots, weights.spots) and torch.equal(found.spots.position, built.spots.position)
    assert [row["value"] for row in found.solution.history] == [row["value"] for row in weights.solution.history]
    assert [step["step"] for step in found.steps] == ["weights"]


@pytest.mark.parametrize(
    "options", [{"spots": 25}, {"scheme": "prune_and_move"}, {"scheme": "alternating", "spots": 25}, {"merge_mm": 17.0}]
)
def test_a_box_of_zero_moves_nothing_but_what_merges(built, options):
    found = run(built, box_mm=0.0, **options)
    assert found.spots.n_spots < built.spots.n_spots
    assert not found.spots.moved().any()
    if "merge_mm" not in options:
        assert torch.equal(found.spots.position, built.spots.position.detach()[found.spots.index])


def test_a_box_of_zero_in_the_case_file(tmp_path):
    few = ("dose.grid_mm=12", "spots.spacing_mm=16", "optimizer.max_iterations=12")
    plain, none = ti.plan(tiny(tmp_path, *few)), ti.plan(tiny(tmp_path, *few, "joint.box_mm=0"))
    assert torch.equal(none.spots.weight, plain.spots.weight) and torch.equal(none.spots.position, plain.spots.position)
    assert none.metrics["objective"] == plain.metrics["objective"] and none.metrics["matrix"] == plain.metrics["matrix"]
    assert none.metrics["spots"]["moved_mm"] == {"mean": 0.0, "max": 0.0}


# --- merging ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [False, True], ids=["", "minimum"])
def test_no_pair_is_closer_than_merge_mm(built, limits):
    asked = Limits(DeliveryModel(min_mu=0.3).min_weight(built.spots, built.machine)) if limits else None
    before = run(built, box_mm=8.0, limits=asked)
    assert spots_closer_than(before.spots.spots(built.spots), 15.0) > 3
    found = run(built, box_mm=8.0, merge_mm=15.0, limits=asked)
    plan = found.spots
    assert spots_closer_than(plan.spots(built.spots), 15.0) == 0 and plan.n_spots < before.spots.n_spots
    assert float((plan.position - plan.home).abs().max()) <= 8.0 + 1e-4
    merged = next(step for step in found.steps if step["step"] == "merged")
    assert merged["spots"] >= plan.n_spots and found.solution.value == pytest.approx(objective_of(built, plan), rel=1e-5)


def test_coinciding_spots_of_the_start_are_merged_or_move_together(built):
    """Every spot twice, in one place: the objective is that of the spots once, gradients are finite, and merging leaves one of each."""
    once = built.spots
    twice = ti.Spots.from_columns(
        once.beams, *(torch.cat((v, v)) for v in (once.beam, once.energy, *once.position.detach().T, 0.5 * once.weight.detach()))
    )
    operators = ti.scenario_doses(built.patient, built.machine, twice, built.points, built.scenarios)
    config = Solver(max_iterations=10)
    double = optimize(operators, built.objective, twice, config, Motion(warm_iterations=2, merge_mm=2.0))
    single = run(built, config, warm_iterations=2)
    assert double.solution.status in (Status.CONVERGED, Status.MAX_ITERATIONS)
    assert double.steps[0]["objective"] == pytest.approx(single.steps[0]["objective"], rel=0.05)
    assert double.spots.n_spots <= once.n_spots and spots_closer_than(double.spots.spots(twice), 2.0) == 0
    assert bool(torch.isfinite(double.spots.position).all() and torch.isfinite(double.spots.weight).all())


# --- settings of every stage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["projected_cg", "dyhs_cg", "quasi_newton", "lbfgs", None])
@pytest.mark.parametrize("scheme", ["joint", "alternating"])
def test_every_stage_takes_the_method_that_is_asked_for(built, scheme, method):
    """Stages with positions and with priced weights too; without one, each takes the method that suits it."""
    seen = []
    found = run(
        built, Solver(method, max_iterations=12, tolerance=1e-3), scheme=scheme, spots=60,
        callback=lambda r: seen.append(r.state()["inner"]["method"]) and None,
    )  # fmt: skip
    assert set(seen) == ({method} if method else {"projected_cg", "quasi_newton"})
    assert found.solution.value < 0.5 * found.solution.history[0]["value"]


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("joint.spots=60",), ("joint.scheme=alternating",)])
def test_autograd_finds_the_same_plan_and_no_gradient_is_derived_by_hand(tmp_path, monkeypatch, options):
    small = (*SMALL, "dose.dtype=float64", "optimizer.max_iterations=4", "joint.warm_iterations=3", "joint.box_mm=5", *options)
    by_hand = ti.plan(tiny(tmp_path, *small))
    calls, gradient = [], DoseOperator.gradient

    def counted(self, *arguments, **options):
        calls.append(1)
        return gradient(self, *arguments, **options)

    monkeypatch.setattr(DoseOperator, "gradient", counted)
    ti.plan(tiny(tmp_path, *small))
    usual = len(calls)
    calls.clear()
    by_torch = ti.plan(tiny(tmp_path, *small, "dose.gradient=autograd"))
    # what is left is the scale of each stage, from squares of the doses
    assert len(calls) == len(by_torch.steps) < usual / 3
    # the gradients agree to 1e-12, and a few iterations magnify that
    torch.testing.assert_close(by_torch.spots.position, by_hand.spots.position, rtol=0, atol=1e-6)
    torch.testing.assert_close(by_torch.spots.weight, by_hand.spots.weight, rtol=0, atol=1e-6)


def test_autograd_weighs_its_pairs_before_it_stores_them(built, monkeypatch):
    monkeypatch.setattr("torchimpt.memory._system_memory", lambda: 1000)
    with pytest.raises(InputError, match=r"autograd's .* pairs of [\d,]+ voxels and [\d,]+ spots would take .* use gradient = 'analytic'"):
        ti.scenario_doses(built.patient, built.machine, built.spots, built.points, gradient="autograd")


def test_dose_tables_are_weighed_before_they_are_made(built, monkeypatch):
    """A beam's before its own, and those of all scenarios once those of the first are there."""
    given = built.patient, built.machine, built.spots, built.points
    one = ti.scenario_doses(*given)[0].n_bytes
    monkeypatch.setattr("torchimpt.memory._system_memory", lambda: one // 8)
    with pytest.raises(
        InputError, match=r"the dose tables of a beam \(\d+ energy layers, .* voxels\) would take .* use a coarser grid_mm, a larger"
    ):
        ti.scenario_doses(*given)
    monkeypatch.setattr("torchimpt.memory._system_memory", lambda: 2 * one)
    with pytest.raises(InputError, match=r"the dose tables of 8 more scenarios would take"):
        ti.scenario_doses(*given, ti.boundary_scenarios())


def test_the_case_s_mode_is_that_of_the_objective(tmp_path, monkeypatch):
    """A mode that counts the nominal scenario alone: the plan's value is that scenario's."""
    monkeypatch.setitem(MODES, "sum", lambda: Sum((1.0, 0.0, 0.0)))
    case = tiny(tmp_path, *SMALL)
    built = build(case, set_up(case, "cpu"), Progress(enabled=False), {})
    doses = built.linear.forward(built.spots.weight.detach())
    assert float(built.objective.value(doses)) == pytest.approx(float(built.objective.bound.value(1.1 * doses[:1]).sum()))


# --- deliverable plans ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [(), ("joint.box_mm=3",), ("joint.scheme=prune_and_move", "joint.spots=30"), ("dose.dtype=float64", "joint.box_mm=2")]
)
def test_every_spot_has_the_minimum_mu_exactly(tmp_path, options):
    fractions = 31
    small = (*SMALL, "optimizer.max_iterations=20", "joint.warm_iterations=6" if options else "seed=3", f"delivery.fractions={fractions}")
    free = ti.plan(tiny(tmp_path, *small, *options))
    machine = free.machine
    of_free = free.spots.weight.detach().double() / machine.protons_per_mu(free.spots.energy) / fractions
    least = float(of_free[of_free > 0].quantile(0.25))
    result = ti.plan(tiny(tmp_path, *small, f"delivery.min_mu={least!r}", *options))
    write_plan(tmp_path / "plan.json", result.spots, machine)
    again = read_plan(tmp_path / "plan.json")
    mu = again.weight.detach().double() / machine.protons_per_mu(again.energy) / fractions
    assert float(mu.min()) >= least and float(mu.min()) < 1.05 * least
    written = [spot["mu"] / fractions for spot in json.loads((tmp_path / "plan.json").read_text())["spots"]]
    assert min(written) >= least
    assert result.metrics["spots"]["count"] == result.metrics["spots"]["nonzero"] == again.n_spots
    assert result.metrics["delivery"]["min_spot_mu"] >= least
    # the price of each step is in the metrics, and the whole of it is that against the plan without a minimum
    steps = result.metrics["steps"]
    names = [step["step"] for step in steps]
    assert names[-3:] == ["spots below 0.25 of the minimum left out", "spots below 0.5 of the minimum left out", "minimum MU"]
    assert steps[-1]["objective"] == result.metrics["objective"]["final"] and steps[-1]["spots"] == again.n_spots
    assert steps[-4]["objective"] == pytest.approx(free.metrics["objective"]["final"], rel=1e-6)


def test_a_minimum_that_no_spot_reaches_says_what_to_change(built):
    limits = Limits(DeliveryModel(min_mu=1e4).min_weight(built.spots, built.machine))
    with pytest.raises(
        InputError, match=r"no spot reaches the minimum MU: the heaviest of \d+ has .* lower delivery\.min_mu, place fewer spots"
    ):
        run(built, Solver(max_iterations=3), limits=limits)


@pytest.mark.parametrize("kind", ["fixed", "moving"])
def test_light_layers_are_left_out(built, kind):
    layer = built.spots.layer

    def totals(plan):
        return torch.zeros(built.spots.n_layers).index_add_(0, layer[plan.index], plan.weight)

    def planned(limits):
        if kind == "moving":
            return run(built, box_mm=4.0, limits=limits)
        return optimize(built.doses, built.objective, built.spots, SOLVER, limits=limits)

    free, found = planned(None), planned(Limits(min_layer_share=0.25))
    before, after = totals(free.spots), totals(found.spots)
    assert int((before < 0.25 * before.max()).sum()) > 0
    left = layer[found.spots.index].unique()
    assert 0 < len(left) < len(layer.unique()) and bool((after[left] >= 0.25 * after.max()).all())
    assert not bool((before[left] == 0).any())
    assert found.steps[-1]["step"] == "light layers left out" and found.steps[-1]["objective"] > free.solution.value


@pytest.mark.parametrize("moving", [False, True])
def test_layers_have_their_share_above_a_minimum_mu_too(built, moving):
    """Spots below the minimum take their weight from layers that had their share, so that these must be looked at again."""
    layer = built.spots.layer
    limits = Limits(DeliveryModel(min_mu=2.0).min_weight(built.spots, built.machine), 0.08)
    plan = run(built, limits=limits, box_mm=4.0) if moving else optimize(built.doses, built.objective, built.spots, SOLVER, limits=limits)
    total = torch.zeros(built.spots.n_layers).index_add_(0, layer[plan.spots.index], plan.spots.weight)[layer[plan.spots.index].unique()]
    assert bool((total >= 0.08 * total.max()).all()), total / total.max()
    assert bool((plan.spots.weight >= limits.min_weight[plan.spots.index]).all())
    assert [step["step"] for step in plan.steps][-2:] == ["minimum MU", "light layers left out"]
    assert plan.solution.value == pytest.approx(objective_of(built, plan.spots), rel=1e-5)


# --- starts -----------------------------------------------------------------------------------------------------------------------------


def test_jitter_is_random_by_the_seed(tmp_path):
    def placed(*options):
        case = tiny(tmp_path, *SMALL, *options)
        return build(case, set_up(case, "cpu"), Progress(enabled=False), {}).spots.position.detach()

    lattice, one, again = placed(), placed("spots.jitter_mm=3"), placed("spots.jitter_mm=3")
    assert torch.equal(one, again)
    off = (one - lattice).abs()
    assert 2.5 < float(off.max()) <= 3.0 and float(off.mean()) == pytest.approx(1.5, rel=0.2)
    assert abs(float((one - lattice).mean())) < 0.5
    other, farther = placed("spots.jitter_mm=3", "seed=4"), placed("spots.jitter_mm=6")
    assert not torch.equal(other, one) and torch.allclose(farther - lattice, 2 * (one - lattice), atol=1e-4)


def test_start_from_a_plan_file(tmp_path):
    few = (*SMALL, "optimizer.max_iterations=8", "joint.warm_iterations=3")
    first = ti.plan(tiny(tmp_path, *few, "joint.spots=30", "joint.box_mm=3"))
    write_plan(tmp_path / "first.json", first.spots, first.machine)
    second = ti.plan(tiny(tmp_path, *few, "joint.start=first.json", "joint.box_mm=3"))
    assert second.metrics["spots"]["placed"] == 30 and torch.equal(second.home, first.spots.position)
    # weights as they are, not scaled to a uniform start
    assert second.solution.history[0]["value"] == pytest.approx(first.solution.value, rel=1e-6)
    assert second.solution.value < first.solution.value
    assert float((second.spots.position.detach() - second.home).abs().max()) <= 3 + 1e-5  # the box is around where the plan had them
    write_plan(tmp_path / "first.csv", first.spots, first.machine)
    third = ti.plan(tiny(tmp_path, *few, "joint.start=first.csv", "joint.box_mm=3"))
    assert torch.equal(third.spots.weight, second.spots.weight) and torch.equal(third.spots.position, second.spots.position)


def test_moved_mm_is_that_of_delivered_spots(tmp_path):
    result = ti.plan(tiny(tmp_path, *SMALL, "optimizer.max_iterations=10", "joint.warm_iterations=3", "joint.box_mm=6"))
    weight, far = result.spots.weight.detach(), (result.spots.position.detach() - result.home).norm(dim=1)
    used = weight > 1e-3 * weight.max()
    assert not bool(used.all())
    spots = result.metrics["spots"]
    assert spots["moved_mm"] == {"mean": pytest.approx(float(far[used].mean())), "max": pytest.approx(float(far[used].max()))}
    assert spots["count"] == len(weight) and spots["nonzero"] == int(used.sum()) and spots["placed"] >= len(weight)
    assert spots["moved_mm"]["max"] > 1.0


@pytest.mark.parametrize("looks", ["off", "4.0"])
def test_ti_joint_is_the_case_file(tmp_path, looks):
    case = tiny(
        tmp_path,
        *SMALL,
        f"dose.target_grid_mm={looks}",
        "optimizer.max_iterations=12",
        "joint.warm_iterations=4",
        "joint.spots=40",
        "joint.box_mm=5",
    )
    planned = ti.plan(case)
    built = build(case, set_up(case, "cpu"), Progress(enabled=False), {})
    seen = []
    found = ti.joint(
        built.patient, built.machine, built.spots, ti.Objective(case.terms()), case.scenarios(),
        target_grid=case.dose.target_grid_mm, seed=case.seed, max_iterations=12, tolerance=1e-3, callback=lambda r: seen.append(r.value) and None, warm_iterations=4, spots=40, box_mm=5.0,
    )  # fmt: skip
    assert torch.equal(found.spots.position, planned.spots.position) and torch.equal(found.spots.weight, planned.spots.weight)
    assert torch.equal(found.home, planned.home) and seen == [row["value"] for row in planned.solution.history]
    assert [{**s, "seconds": 0} for s in found.steps] == [{**s, "seconds": 0} for s in planned.steps]
    assert found.solution.value == planned.metrics["objective"]["final"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"bx_mm": 3.0}, r"joint: unknown key 'bx_mm' \(did you mean 'box_mm'\?\)"),
        ({"box_mm": -1.0}, "joint: box_mm must be 0 to 100, got -1"),
        ({"scheme": "jont"}, r"scheme must be one of joint, .*\(did you mean 'joint'\?\)"),
        ({"start": __file__}, "joint: start is for the case file"),
    ],
)
def test_wrong_keys_of_ti_joint(built, keys, message):
    with pytest.raises(InputError, match=message):
        ti.joint(built.patient, built.machine, built.spots, ti.Objective(built.case.terms()), **keys)


# --- runs that stop ---------------------------------------------------------------------------------------------------------------------


RUNS = {
    "joint": {"spots": 30},
    "alternating": {"scheme": "alternating", "spots": 60},
    "prune_and_move": {"scheme": "prune_and_move", "price_percent": 30.0},
    "merged, minimum MU": {"merge_mm": 12.0, "box_mm": 6.0},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_stops_anywhere_goes_on_to_the_same_plan(built, name):
    """From the state of the first and last iterate of every stage, and from within; through `torch.save`, as a checkpoint does."""
    options = dict(RUNS[name])
    if "minimum" in name:
        options["limits"] = Limits(DeliveryModel(min_mu=0.3).min_weight(built.spots, built.machine), 0.02)
    solver = Solver(max_iterations=10, tolerance=1e-4)
    states, rows = [], []

    def keep(record):
        states.append(record.state())
        rows.append(record.numbers())

    whole = run(built, solver, callback=keep, **options)
    ends = list(itertools.accumulate(step["iterations"] + 1 for step in whole.steps))
    assert len(whole.steps) >= 3 and ends[-1] == len(states)
    within = [end - 1 - step["iterations"] // 2 for end, step in zip(ends, whole.steps, strict=True)]
    chosen = sorted({0, *(e - 1 for e in ends), *(e for e in ends[:-1]), *within})
    if len(chosen) > 9:
        chosen = [*chosen[:4], *chosen[4:-4][:: 1 + len(chosen) // 8], *chosen[-4:]]
    for at in chosen:
        file = io.BytesIO()
        torch.save(states[at], file)
        file.seek(0)
        seen: list[dict] = []
        watch = lambda r, seen=seen: seen.append(r.numbers()) and None  # noqa: E731
        rest = run(built, solver, callback=watch, state=torch.load(file, weights_only=True), **options)
        assert same_plan(rest.spots, whole.spots), at
        assert rest.solution.value == whole.solution.value and rest.solution.status is whole.solution.status
        assert rest.solution.evaluations == whole.solution.evaluations and rest.solution.iterations == whole.solution.iterations
        # as text, because the beta of a quasi-Newton step is NaN
        plain = [[json.dumps({**row, "seconds": 0}) for row in h] for h in (rest.solution.history, whole.solution.history, seen, rows)]
        assert plain[0] == plain[1] == plain[3] and plain[2] == plain[3][at + 1 :]
        assert [{**s, "seconds": 0} for s in rest.steps] == [{**s, "seconds": 0} for s in whole.steps]


def test_a_run_to_resume_that_has_gone_far_enough_says_so(built):
    """The limits of a resumed run may be others: looser ones can be met by what an earlier run had finished."""
    states = []
    options = {"scheme": "alternating", "weight_iterations": 2}
    run(built, Solver(max_iterations=30, tolerance=1e-9), callback=lambda r: states.append(r.state()), **options)
    with pytest.raises(InputError, match="the run to resume has gone as far as the case asks; start without --resume"):
        run(built, Solver(max_iterations=10, tolerance=1e-9), state=states[-1], **options)


@pytest.mark.parametrize("at", [3, 12, 25])
def test_a_callback_stops_all_stages(built, at):
    found = run(built, spots=30, callback=lambda r: r.iteration == at)
    whole = run(built, spots=30)
    assert found.solution.status is Status.STOPPED and found.solution.iterations == at == len(found.solution.history) - 1
    assert found.solution.value == whole.solution.history[at]["value"]
    assert found.solution.value == pytest.approx(objective_of(built, found.spots), rel=1e-5)


@pytest.mark.parametrize(("scheme", "after"), [("joint", 60), ("joint", 10), ("alternating", 60), ("prune_and_move", 90)])
def test_nan_in_a_gradient_ends_the_run_and_is_told(built, monkeypatch, scheme, after):
    calls, gradient = [], DoseOperator.gradient

    def broken(self, *arguments, **options):
        partials = gradient(self, *arguments, **options)
        calls.append(0)
        if len(calls) > after:
            partials.weight[2] = math.nan
        return partials

    monkeypatch.setattr(DoseOperator, "gradient", broken)
    steps = []
    found = run(built, scheme=scheme, callback=lambda r: steps.append(r) and None)
    assert found.solution.status is Status.NOT_FINITE and "is NaN or infinite" in found.solution.message
    assert not found.solution.converged and all(math.isfinite(r.value) for r in steps)
    assert bool(torch.isfinite(found.spots.position).all() and torch.isfinite(found.spots.weight).all())
    names = [step["step"] for step in found.steps]
    assert names[-1] == {"joint": "joint" if after > 30 else "weights, before moving", "prune_and_move": "joint"}.get(scheme, names[-1])


def test_a_spot_out_of_everything_stays(built):
    """A start with a spot 400 mm aside: no dose in any scenario, no gradient; it neither moves nor fails the run, and goes when pruned."""
    spots = ti.Spots(
        built.spots.position.detach().clone(), built.spots.weight.detach(), built.spots.layer, built.spots.layer_beam,
        built.spots.layer_energy, built.spots.beams,
    )  # fmt: skip
    spots.position.data[5] += 400.0
    found = run(built, start=spots)
    assert found.solution.status in (Status.CONVERGED, Status.MAX_ITERATIONS)
    assert torch.equal(found.spots.position[5], spots.position.detach()[5]) and float(found.spots.moved().max()) > 1
    assert found.solution.value < found.steps[0]["objective"]
