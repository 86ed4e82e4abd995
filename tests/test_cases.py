"""The committed case files load, and run to the end: shortened, on a coarse grid."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from torchimpt.case import load_case
from torchimpt.io import read_dose
from torchimpt.runs.commands import run_plan

pytestmark = pytest.mark.filterwarnings("ignore:ROI .* more than a fifth")  # shortened: voxels of 6 mm

CASES = sorted((Path(__file__).resolve().parents[1] / "experiments" / "cases").glob("*.toml"))
OUTPUTS = (
    "metrics.json",
    "plan.json",
    "dose.mha",
    "dvh.csv",
    "report.html",
    "tensorboard",
    "case.toml",
    "run.json",
    "log.txt",
    "checkpoint.pt",
)


def test_the_cases_are_there() -> None:
    assert {path.stem for path in CASES} >= {"hn", "openkbp_109", "openkbp_17", "openkbp_95", "tg119"}


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_case_file_loads(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    needs_data = "shared/data" in text
    if needs_data and not (path.parents[3] / "shared" / "data").is_dir():
        pytest.skip("reference data not found beside the checkout")
    case = load_case(path)
    case.check_plan()
    assert case.goals()
    assert any(o.roi in ("External", "BODY") and o.kind == "max_dose" for o in case.objective), "or hot spots go unseen"
    assert case.prescription() is not None


@pytest.mark.slow
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_shortened_plan_leaves_a_whole_run_folder(path: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if "shared/data" in path.read_text(encoding="utf-8"):
        request.getfixturevalue("shared")
    case = load_case(path, ["dose.grid_mm=6", "spots.spacing_mm=9", "optimizer.max_iterations=15"])
    metrics = run_plan(case, tmp_path / "run").metrics
    assert sorted(OUTPUTS) == sorted(p.name for p in (tmp_path / "run").iterdir() if p.name in OUTPUTS)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    assert sum(step["iterations"] for step in metrics["steps"]) >= 15  # each stage of a plan whose spots move has that many
    assert metrics["iterations"] >= 15
    assert not metrics["converged"]
    assert metrics["objective"]["final"] < 0.1 * metrics["objective"]["initial"]
    assert math.isclose(sum(term["value"] for term in metrics["objective"]["terms"]), metrics["objective"]["final"], rel_tol=1e-4)
    assert [s["name"] for s in metrics["scenarios"]] == [s.name for s in case.scenarios()]
    target, prescription = case.spots.targets[0], case.prescription()
    assert 0.8 * prescription < metrics["scenarios"][0]["rois"][target]["d95_gy"] < 1.05 * prescription
    assert 0 < metrics["matrix"]["discarded_fraction"] < 0.005
    dose, grid = read_dose(tmp_path / "run" / "dose.mha")
    assert grid.spacing == pytest.approx((6.0, 6.0, 6.0))
    # the body's objective comes in after 20 iterations
    assert float(dose.max()) < 2.0 * prescription
