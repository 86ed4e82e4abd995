"""What is seen of a run whose spots move: TensorBoard's sequence, the report's pictures."""

from __future__ import annotations

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_case import tiny

from torchimpt.monitor import Progress
from torchimpt.planning.plan import prepare, solve
from torchimpt.planning.prepare import settings
from torchimpt.planning.workflow import run_plan

COARSE = ("dose.grid_mm=12", "spots.spacing_mm=14", "optimizer.max_iterations=12", "optimizer.log_every=4", "joint.warm_iterations=6")


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
    for text in ('id="motion"', "A line leads from where a spot was placed", "Weights and positions", "<h2>Delivery"):
        assert text in page, text


def test_run_of_fixed_spots_shows_none(tmp_path):
    run_plan(tiny(tmp_path, *COARSE[:4], "output.tensorboard=true"), tmp_path / "run")
    tags = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload().Tags()
    assert "spots/motion" not in tags["images"] and "spots/count" not in tags["scalars"]
    assert 'id="motion"' not in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("scheme", ["joint", "alternating", "prune_and_move"])
def test_the_spots_seen_at_the_last_iterate_are_those_found(tmp_path, scheme):
    case = tiny(tmp_path, *COARSE, "joint.box_mm=6", f"joint.scheme={scheme}", "joint.spots=40")
    ready = prepare(case, settings("cpu", "float64", None, 1), Progress(enabled=False), {})
    seen = []
    found = solve(ready, lambda iteration: seen.append(ready.moving(iteration.x)) and None)
    spots, home = seen[-1]
    assert torch.equal(spots.position, found.plan.position) and torch.equal(spots.weight, found.plan.weight)
    assert torch.equal(home, found.plan.home) and torch.equal(spots.layer, ready.spots.layer[found.plan.index])
    assert seen[0][0].n_spots == ready.spots.n_spots and torch.equal(seen[0][0].position, ready.spots.position)
