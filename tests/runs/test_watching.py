"""What is seen of a run whose spots move: TensorBoard's sequence, the report's pictures."""

from __future__ import annotations

import json

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_case import tiny

from torchimpt.planning.build import build
from torchimpt.planning.load import set_up
from torchimpt.runs.commands import run_plan
from torchimpt.schemes.schemes import optimize
from torchimpt.watch import Progress

COARSE = ("dose.grid_mm=10", "spots.spacing_mm=14", "optimizer.max_iterations=12", "optimizer.log_every=4", "joint.warm_iterations=6")


@pytest.mark.slow
def test_run_of_moving_spots_is_seen(tmp_path):
    result = run_plan(tiny(tmp_path, *COARSE, "joint.box_mm=6", "joint.spots=40", "output.tensorboard=true"), tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    counts = [event.value for event in events.Scalars("spots/count")]
    assert counts[0] == result.metrics["spots"]["placed"] > counts[-1] == 40
    means = [event.value for event in events.Scalars("spots/moved_mm_mean")]
    assert means[0] == 0 and means[-1] == pytest.approx(result.metrics["spots"]["moved_mm"]["mean"], rel=1e-4)
    steps = [event.step for event in events.Images("spots/motion")]
    assert steps and steps[0] > 6 and all(step % 4 == 0 for step in steps)
    page = (tmp_path / "run" / "report.html").read_text()
    for text in ('"home_x":', "An arrow leads from where a spot was placed", "Weights and positions", "<h2>Delivery"):
        assert text in page, text


def test_run_of_fixed_spots_shows_none(tmp_path):
    run_plan(tiny(tmp_path, *COARSE[:4], "output.tensorboard=true"), tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    tags = events.Tags()
    steps = [event.step for event in events.Images("dose/slices")]
    assert steps[0] == 4 and len(steps) == 2, "at log_every, then at four times that, and the finished plan's at the end"
    final = {tag for tag in tags["scalars"] if tag.startswith("final/")}
    assert {"final/objective", "final/goals_met", "final/spots", "final/Target_d(95)", "final/Target_d(95)_nominal"} <= final
    assert "spots/motion" not in tags["images"] and "spots/count" not in tags["scalars"]
    assert {"dvh/nominal", "dvh/band", "dose/slices", "spots/layers"} == set(tags["images"])
    assert '"home_x":' not in (tmp_path / "run" / "report.html").read_text()


def test_constraints_are_seen_on_their_way(tmp_path):
    """One of a target and one of the sampled body, which has no voxels before the sample is drawn; the last values are the report's."""
    body = "objective[2]={roi='External', kind='max_dose', dose_gy=45.0, constraint=true}"
    asked = (body, "objective[1].constraint=true", "optimizer.sample_above=60", "optimizer.max_iterations=60", "output.tensorboard=true")
    goal = "goal=[{roi='Target', metric='d(95)', min=40}]"
    result = run_plan(tiny(tmp_path, *COARSE[:2], *asked, goal), tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    target, outside = ([e.value for e in events.Scalars(f"constraints/{name}")] for name in ("Target.max_dose", "External.max_dose"))
    assert len(target) == result.metrics["iterations"] + 1 and 10 < len(outside) == len(target) - 21, "none in the first 20 iterations"
    told = {row["roi"]: row["violation"] for row in result.metrics["constraints"]}
    # seen with compressed matrices, told without: 2^-12 of a dose of some 46 Gy
    assert target[-1] == pytest.approx(told["Target"], abs=0.0125)


@pytest.mark.parametrize("scheme", ["joint", "alternating", "prune_and_move"])
def test_the_spots_seen_at_the_last_iterate_are_those_found(tmp_path, scheme):
    case = tiny(tmp_path, *COARSE, "joint.box_mm=6", f"joint.scheme={scheme}", "joint.spots=40")
    built = build(case, set_up(case, "cpu"), Progress(enabled=False), {})
    seen = []
    motion = case.joint.motion()
    found = optimize(
        built.doses, built.objective, built.spots, case.optimizer.solver(), motion, linear=built.linear,
        callback=lambda iteration: seen.append(built.moving(iteration)) and None,
    )  # fmt: skip
    spots, home = seen[-1]
    assert torch.equal(spots.position, found.spots.position) and torch.equal(spots.weight, found.spots.weight)
    assert torch.equal(home, found.spots.home) and torch.equal(spots.layer, built.spots.layer[found.spots.index])
    assert seen[0][0].n_spots == built.spots.n_spots and torch.equal(seen[0][0].position, built.spots.position)


def test_goals_as_they_stand_are_in_the_history(tmp_path):
    """At the last iterate those of the objective's own points: the target's D95 is the finished plan's within what points differ."""
    result = run_plan(tiny(tmp_path, *COARSE[:4]), tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert all(("goals" in row) == (row["iteration"] % 4 == 0) for row in rows)
    last = [row for row in rows if "goals" in row][-1]
    goal = next(goal for goal in last["goals"] if goal["roi"] == "Target")
    assert goal["metric"] == "d(95)" and goal["limit"] == "≥ 47.5 Gy" and goal["passed"] == (goal["value"] >= 47.5)
    if last["iteration"] == result.metrics["iterations"]:
        assert goal["value"] == pytest.approx(result.metrics["goals"][0]["nominal"], rel=1e-3)
