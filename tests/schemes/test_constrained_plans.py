"""Plans with constraints: every scheme holds them, interrupted runs go on exactly, sampled bodies, and what is told of those that fail."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_case import command, tiny, write_tiny

import torchimpt as ti
from torchimpt.objectives import worst
from torchimpt.optim import Status
from torchimpt.planning.build import build
from torchimpt.planning.load import set_up
from torchimpt.schemes.schemes import optimize
from torchimpt.schemes.settings import Limits, Motion, Solver
from torchimpt.watch import Progress

pytestmark = pytest.mark.filterwarnings("ignore:ROI Target .* more than a fifth")  # voxels of 12 mm

SMALL = (
    "dose.grid_mm=12", "spots.spacing_mm=20", "dose.dtype=float64", "dose.engine=matrix_free", "spots.stagger=false", "dose.check_mm=off",
)  # fmt: skip
HELD = ("objective[1].constraint=true", "objective[1].dose_gy=51.5")
SOLVER = Solver(max_iterations=1000, tolerance=1e-3, feasibility=0.05)
SCHEMES = {
    "weights": None,
    "joint": Motion(box_mm=8.0),
    "fewer spots": Motion(box_mm=8.0, spots=12),
    "merged": Motion(box_mm=8.0, merge_mm=8.0),
    "alternating": Motion("alternating", box_mm=8.0, weight_iterations=2),
    "prune_and_move": Motion("prune_and_move", box_mm=8.0, price_percent=5.0),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The tiny case, three scenarios; the target's maximum of 51.5 Gy is a constraint."""
    case = tiny(tmp_path_factory.mktemp("held"), *SMALL, *HELD)
    return build(case, set_up(case, "cpu"), Progress(enabled=False), {})


def solve(built, motion, **options):
    solver = options.pop("solver", SOLVER)
    return optimize(built.doses, built.objective, built.spots, solver, motion, **options)


def target_maximum(built, spots) -> float:
    """Of all scenarios, from doses computed again."""
    doses = built.objective.quantity.value(built.doses.subset(spots.index).dose(spots.position, spots.weight))
    return float(doses[:, built.objective.bound.bound_terms[1].index].max())


def test_every_scenario_sees_all_parts_of_a_constrained_target(tmp_path):
    """A limit that holds at one part of each voxel is broken beside it; a mean is told by fewer parts, and an objective costs fewer."""

    def points(*overrides):
        case = tiny(tmp_path, *SMALL, "dose.target_grid_mm=4", *overrides)
        return build(case, set_up(case, "cpu"), Progress(enabled=False), {}).points

    held, free, mean = points(*HELD), points(), points(*HELD, "objective[1].kind=mean_dose")
    target = held.roi("Target").mask
    assert bool((held.volume[target] * 27 - 1.0).abs().max() < 1e-12)
    places = [held.place(k)[target] for k in range(3)]
    assert all(torch.equal(place, places[0]) for place in places) and len(places[0].unique(dim=0)) == int(target.sum())
    assert len(mean) == len(free) < len(held) - int(0.5 * target.sum())


LONG = ("alternating", "prune_and_move")


def named(names) -> list:
    """Parameters, the long ones marked."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in names]


@pytest.mark.parametrize("name", named(SCHEMES))
def test_every_scheme_holds_a_constraint(built, name):
    motion = SCHEMES[name]
    found = solve(built, motion)
    assert found.solution.converged and target_maximum(built, found.spots) <= 51.5 + 0.05
    assert worst(found.violations) <= 0.05 and found.violations.shape == (1, 3)
    # what is told is the objective alone: that of the final doses without the constraint's share
    told = sum(row["value"] for row in built.objective.terms(found.doses))
    assert found.solution.value == found.steps[-1]["objective"] == pytest.approx(told, rel=1e-9)
    if motion is not None and motion.moves:
        assert float(found.spots.moved().max()) > 0.1


def test_a_minimum_weight_and_a_constraint_together(built):
    """The final stage above the minimum holds it, too."""
    least = torch.full_like(built.spots.weight, 200.0)
    found = solve(built, None, limits=Limits(least))
    assert found.solution.converged and target_maximum(built, found.spots) <= 51.55
    assert bool((found.spots.weight >= 200.0).all())


@pytest.mark.parametrize("name", named(["weights", "joint", "alternating"]))
def test_an_interrupted_run_comes_to_the_same_plan(built, name):
    """Multipliers are part of the state: from every stage and round that the run has."""
    states = []
    whole = solve(built, SCHEMES[name], callback=lambda iteration: states.append(iteration.state()))
    assert len(states) == whole.solution.iterations + 1
    for at in (3, len(states) // 2, len(states) - 3):
        again = solve(built, SCHEMES[name], state=states[at])
        assert torch.equal(again.spots.weight, whole.spots.weight) and torch.equal(again.spots.position, whole.spots.position)
        assert again.solution.iterations == whole.solution.iterations and again.solution.value == whole.solution.value
        plain = [[row["value"] for row in one.solution.history] for one in (again, whole)]
        assert plain[0] == plain[1]


def test_plans_of_one_objective_do_not_depend_on_each_other(built):
    """Multipliers of an earlier plan are forgotten."""
    first, second = solve(built, None), solve(built, None)
    assert torch.equal(first.spots.weight, second.spots.weight)


def test_a_sampled_body_holds_its_maximum_on_all_voxels(tmp_path):
    """The sample grows by what it missed until no voxel of the body is too hot in any scenario; `judge` looks at all."""
    body = ("objective[2]={roi='External', kind='max_dose', dose_gy=40.0, constraint=true}", "optimizer.sample_above=60")
    case = tiny(tmp_path, *SMALL, *body, "optimizer.feasibility_gy=0.2", "goal=[{roi='External', metric='mean', max=30}]")
    result = ti.plan(case, device="cpu")
    (row,) = result.metrics["constraints"]
    assert result.metrics["sampling"]["voxels"] < result.metrics["sampling"]["of"]
    assert row["met"] and result.metrics["converged"] and row["violation"] <= 0.2
    loose = ti.plan(tiny(tmp_path, *SMALL, *body, "objective[2].constraint=false", "objective[2].weight=0.01"), device="cpu")
    outside = result.patient.body & ~result.patient.roi("Target").mask
    assert float(loose.assessment.dose[outside].max()) > 41.5 > float(result.assessment.dose[outside].max())


def test_nominal_plans_compute_no_other_scenario(tmp_path):
    """Where no objective asks for another: the same plan as without errors, told in all scenarios."""
    nominal = tiny(tmp_path, *SMALL, "robustness.mode=nominal", "optimizer.max_iterations=30")
    problem = build(nominal, set_up(nominal, "cpu"), Progress(enabled=False), {})
    assert problem.doses.names == ("nominal",) and len(problem.scenarios) == 3
    result = ti.plan(nominal, device="cpu")
    assert [row["name"] for row in result.metrics["scenarios"]] == ["nominal", "range-3.5%", "range+3.5%"]
    assert {row["scenario"] for row in result.metrics["objective"]["terms"]} == {"nominal"}
    alone = tiny(tmp_path, *SMALL, "robustness.mode=sum", "robustness.weights=[1, 0, 0]", "optimizer.max_iterations=30")
    # the uniform start is bisected to a thousandth, from another first guess
    assert ti.plan(alone, device="cpu").solution.value == pytest.approx(result.solution.value, rel=1e-3)
    mixed = tiny(tmp_path, *SMALL, "robustness.mode=nominal", "objective[1].mode=sum")
    assert len(build(mixed, set_up(mixed, "cpu"), Progress(enabled=False), {}).doses) == 3


def test_what_is_told_of_constraints(tmp_path):
    """Met: exit 0. One that cannot be met beside one that can: exit 3, by how much and where, in summary, report and metrics."""
    write_tiny(tmp_path)
    coarse = [argument for one in SMALL for argument in ("--set", one)]
    plan = ("plan", "tiny.toml", "--out", "run", *coarse, "--set", "objective[1].constraint=true")
    good = command(*plan, cwd=tmp_path)
    assert good.status == 0 and "max ≤ 54 Gy" in good.out and "not met" not in good.out.split("Constraint")[1].split("converged")[0]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    (row,) = metrics["constraints"]
    assert row["met"] and row["violation"] <= row["tolerance"] == 0.1 and row["value"] == pytest.approx(54.0 + row["violation"])
    assert (
        set(row["violations"]) == {"nominal", "range-3.5%", "range+3.5%"} and "Constraint met" in (tmp_path / "run/report.html").read_text()
    )

    more = ("objective[0].constraint=true", "objective[1].constraint=false", "objective[2].constraint=true", "objective[2].dose_gy=0.5")
    bad = command(*plan, *(argument for one in more for argument in ("--set", one)), cwd=tmp_path)
    assert bad.status == 3 and "the constraints cannot all be met" in bad.out
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert not metrics["converged"] and metrics["stop_reason"].startswith("the constraints cannot all be met")
    body = metrics["constraints"][1]
    assert body["kind"] == "mean_dose" and not body["met"] and f"not met by {body['violation']:.2g} Gy" in bad.out
    report = (tmp_path / "run/report.html").read_text()
    assert "0 of 2 constraints met; Target min ≥ 50 Gy not met by" in report and f"not met by {body['violation']:.2g} Gy" in report


def test_the_joint_call_takes_constraints():
    """`ti.joint` on patient, machine and spots, as the README has it."""
    patient, machine = ti.phantoms.phantom("water", spacing=12.0), ti.machine.generic()
    spots = ti.place_spots(patient, machine, [ti.Beam(gantry=0)], target="Target", spacing=20.0)
    goal = ti.Objective([ti.MinDose("Target", 50.0, weight=100.0), ti.MaxDose("Target", 55.0, constraint=True)])
    found = ti.joint(patient, machine, spots, goal, box_mm=5.0, max_iterations=200, feasibility=0.2)
    (row,) = found.constraints
    assert found.solution.status is not Status.INFEASIBLE and row["met"] and row["tolerance"] == 0.2 and row["value"] <= 55.2
