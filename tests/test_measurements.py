"""The gradient experiment and the benchmarks run, small; what they print of the machine is not tested, that their numbers hold together is."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def script(monkeypatch):
    """A script of a folder as a module; the folder is on the path, as when Python runs the script."""

    def load(folder: str, name: str):
        monkeypatch.syspath_prepend(ROOT / folder)
        return importlib.import_module(name)

    yield load
    for name in ("gradient_check", "measure", "throughput", "solver"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_gradient_check(script, tmp_path, capsys):
    module = script("experiments", "gradient_check")
    (row,) = module.main(module.Config(sizes="1000x60", repeats=3, out=str(tmp_path), threads=1))
    assert max(row["errors"].values()) < 1e-12
    assert row["analytic"]["voxels"] == 1000 and row["analytic"]["spots"] == 60 and len(row["autograd"]["seconds"]) == 3
    # autograd keeps at least one float32 of every pair, the analytic gradient a few vectors
    assert row["autograd"]["bytes"] > 4 * 60_000 > row["analytic"]["bytes"]
    table = (tmp_path / "table.md").read_text()
    assert table in capsys.readouterr().out and "| 1,000 x 60 |" in table
    assert json.loads((tmp_path / "results.json").read_text())["rows"][0]["met"] == row["met"]


@pytest.mark.slow
def test_throughput(script, tmp_path, capsys):
    module = script("benchmarks", "throughput")
    found = module.main(module.Config(case="hn", grid=8.0, spacing=14.0, repeats=2, iterations=3, out=str(tmp_path / "t.json")))
    rows = {row["name"]: row for row in found["rows"]}
    assert all(0 < row["low"] <= row["median"] <= row["high"] for row in rows.values())
    assert rows["pair kernel, dose, pairs within cut-off"]["median"] < rows["pair kernel, dose, pairs visited"]["median"]
    assert json.loads((tmp_path / "t.json").read_text())["sizes"]["entries"] == found["sizes"]["entries"] > 1000
    assert "aim 40: " in capsys.readouterr().out


@pytest.mark.slow
def test_solver_curves(script, tmp_path):
    module = script("benchmarks", "solver")
    found = module.main(module.Config(cases="hn", counts="5,20", grid=8.0, spacing=14.0, out=str(tmp_path / "s.json")))
    for method, row in found["cases"]["hn"]["methods"].items():
        assert row["evaluations"] <= 21 and row["objective"]["20"] < row["objective"]["5"], method
    assert set(found["cases"]["hn"]["met"]) == {"5", "20"}
