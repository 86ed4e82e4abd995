"""Callbacks and progress: what the files hold is what the solver did."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from torchimpt.checks import InputError
from torchimpt.geometry import Beam
from torchimpt.report.style import new_figure, slug
from torchimpt.schemes.stages import PlanIteration
from torchimpt.spots import Spots
from torchimpt.watch import History, Log, Progress, TensorBoard, by_roi, together


def iteration(number, value=None):
    return PlanIteration(
        iteration=number,
        evaluations=number + 1,
        value=100.0 / (number + 1) if value is None else value,
        step_length=0.5,
        beta=math.nan,
        projected_gradient_norm=1.0,
        decrement=0.1,
        short=None,
        long=None,
        x=torch.tensor([float(number)]),
        seconds=0.1 * number,
        state=dict,
        spots=lambda: pytest.fail("nobody asked for spots"),
        doses=lambda: pytest.fail("nobody asked for doses"),
    )


def terms(it):
    return [
        {"roi": "PTV", "kind": "min_dose", "value": float(it.x)},
        {"roi": "PTV", "kind": "max_dose", "value": 1.0},
        {"roi": "Cord", "value": 2.0},
    ]


def test_terms_add_up_by_roi():
    assert by_roi(terms(iteration(3))) == {"PTV": 4.0, "Cord": 2.0}


def test_together_calls_all_and_stops_when_any_wants_to():
    seen = []
    both = together(lambda it: seen.append(it.iteration), None, lambda it: it.iteration == 2, lambda it: seen.append(-it.iteration))
    assert [both(iteration(k)) for k in range(3)] == [False, False, True]
    assert seen == [0, 0, 1, -1, 2, -2]


def test_history_survives_an_interruption(tmp_path):
    history = History(tmp_path / "history.jsonl", terms)
    for k in range(5):
        history(iteration(k))
    again = History(tmp_path / "history.jsonl", terms)
    assert len(again.rows) == 5 and again.rows[4]["terms"] == {"PTV": 5.0, "Cord": 2.0}
    again(iteration(3, value=7.0))
    assert [row["iteration"] for row in again.rows] == [0, 1, 2, 3] and again.rows[-1]["value"] == 7.0
    assert [row["value"] for row in History(tmp_path / "history.jsonl").rows] == [row["value"] for row in again.rows]


def test_history_of_a_killed_run_is_cut_to_its_checkpoint(tmp_path):
    path = tmp_path / "history.jsonl"
    history = History(path, terms)
    for k in range(5):
        history(iteration(k))
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)
    for cut in (1, len(lines[-1]) // 2, len(lines[-1]) - 1):
        path.write_text(whole + lines[-1][:cut])
        assert len(History(path).rows) == 5 and path.read_text() == whole
    path.write_text(whole[:-1])
    assert len(History(path).rows) == 4 and path.read_text() == "".join(lines[:4])
    path.write_text(whole + lines[-1][:20])
    again = History(path, terms, last=2)
    assert [row["iteration"] for row in again.rows] == [0, 1, 2] and path.read_text() == "".join(lines[:3])
    for k in range(3, 5):
        again(iteration(k))
    assert path.read_text() == whole and [p.name for p in tmp_path.iterdir()] == ["history.jsonl"]


@pytest.mark.parametrize("line", [b'{"iteration": 3, "val', b"[1]", b"7", b'{"value": 1.0}', b'{"iteration": "x"}', b"\xff\0", b""])
def test_history_that_is_none(tmp_path, line):
    path = tmp_path / "history.jsonl"
    path.write_bytes(b'{"iteration": 0}\n' + line + b'\n{"iteration": 1}\n')
    with pytest.raises(InputError, match=r"history\.jsonl: line 2 is no row of a history; remove the file"):
        History(path)


def test_tensorboard_scalars_figures_and_hyperparameters(tmp_path):
    board = TensorBoard(tmp_path, terms=terms, doses=lambda it: {"PTV 70": torch.full((10,), 70.0) + it.x}, every=2)
    for k in range(3):
        board(iteration(k))
    board.figure("dvh/band", new_figure(50, 40), 2)
    board.hyperparameters({"method": "lbfgs", "spacing": 5.0, "grid": (3, 3)}, {"objective": 1.5, "nothing": math.nan})
    board.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    tags = events.Tags()
    assert {"objective/total", "objective/PTV", "optim/step_length", "dvh/PTV.70_d95", "final/objective"} <= set(tags["scalars"])
    assert "optim/beta" not in tags["scalars"] and tags["images"] == ["dvh/band"]
    assert [e.value for e in events.Scalars("objective/PTV")] == [1.0, 2.0, 3.0]
    assert [(e.step, e.value) for e in events.Scalars("dvh/PTV.70_d95")] == [(0, 70.0), (2, 72.0)]


def test_tensorboard_shows_spots_that_move(tmp_path):
    """Iterate k stands for spots k mm from home; the start has no picture."""
    home = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 0.0]])
    beams = [Beam(0, 0, (0, 0, 0))]

    def motion(it):
        return Spots(
            home + it.x, torch.tensor([1.0, 2.0, 0.5]), torch.tensor([0, 0, 1]), torch.tensor([0, 0]), torch.tensor([90.0, 80.0]), beams
        ), home

    board = TensorBoard(tmp_path, motion=motion, every=2)
    for k in range(5):
        board(iteration(k))
    board.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Images("spots/motion")] == [2, 4]
    assert [event.value for event in events.Scalars("spots/moved_mm_mean")] == pytest.approx([k * 2**0.5 for k in range(5)])
    assert {event.value for event in events.Scalars("spots/count")} == {3.0}


def test_tensorboard_keeps_similar_names_apart(tmp_path):
    names = ("PTV 70", "PTV-70", "PTV_70", "PTV/70", "Mühle")
    board = TensorBoard(tmp_path, terms=lambda it: [{"roi": name, "value": k} for k, name in enumerate(names)])
    board(iteration(0))
    board.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [events.Scalars(f"objective/{slug(name)}")[0].value for name in names] == [0, 1, 2, 3, 4]


def test_log_lines(caplog):
    with caplog.at_level(logging.INFO, logger="torchimpt"):
        for k in range(5):
            Log(every=2)(iteration(k))
    assert len(caplog.records) == 3 and "objective 100" in caplog.text


def test_progress_is_silent_where_nobody_looks(capsys):
    with Progress(enabled=False).stage("Dose", 3) as stage:
        stage.advance()
        stage(iteration(1))
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == ""


def test_progress_writes_to_stderr_only(capsys):
    with Progress(enabled=True).stage("Dose", 3) as stage:
        for k in range(3):
            stage(iteration(k))
    assert capsys.readouterr().out == ""
