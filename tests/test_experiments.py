"""The experiments' scripts run: small, on the built-in phantom."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"


def script(name: str) -> ModuleType:
    """An experiment's script as a module."""
    spec = importlib.util.spec_from_file_location(name, EXPERIMENTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkey = pytest.MonkeyPatch()
    with monkey.context() as context:
        context.setitem(__import__("sys").modules, name, module)
        spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["projected_cg", "adam", "lbfgs"])
def test_plan_case_script_plans_the_phantom(optimizer: str, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    module = script("plan_case")
    out = tmp_path / "run"
    found = module.main(module.Config(out=str(out), optimizer=optimizer, iterations=10, spacing=10.0, grid=6.0))
    board = EventAccumulator(str(out / "tensorboard")).Reload()
    tags = board.Tags()["scalars"]
    assert {"objective/total", "objective/CTV", "objective/SpinalCord", "dvh/CTV_d95", "optim/step_length"} <= set(tags)
    values = [event.value for event in board.Scalars("objective/total")]
    assert len(values) == 11
    assert values[-1] == pytest.approx(found["objective"], rel=1e-6)
    assert values[-1] < 0.5 * values[0]
    written = json.loads((out / "results.json").read_text())
    assert written["objective"] == found["objective"]
    assert written["config"]["optimizer"] == optimizer
    saved = torch.load(out / "checkpoint.pt", weights_only=True)
    assert float(saved["spots"]["weight"].min()) >= 0.0
    assert (out / "dvh.png").stat().st_size > 1000


@pytest.mark.parametrize("path", sorted((EXPERIMENTS.parent / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_is_committed_without_output(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert not [cell for cell in cells if cell["cell_type"] == "code" and (cell["outputs"] or cell["execution_count"] is not None)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:ROI .* more than a fifth")  # voxels of 8 mm
def test_robust_modes_script_tells_plans_with_and_without_a_constraint(tmp_path: Path) -> None:
    module = script("robust_modes")
    small = {"grid": 8.0, "spacing": 14.0, "iterations": 60, "samples": 3, "limit": 15.0, "only": "sum,nominal"}
    found = module.main(module.Config(**small, out=str(tmp_path)))["plans"]
    held = [f"sum, cord {what} Gy a constraint" for what in ("max 30", "max 15", "D2 15")]
    assert list(found) == ["sum", "nominal", *held]
    held, free = found["sum, cord max 15 Gy a constraint"], found["sum"]
    assert held["cord_d2"] < free["cord_d2"] and held["violation"].endswith(" Gy") and not free["violation"]
    assert json.loads((tmp_path / "results.json").read_text())["plans"].keys() == found.keys()
