"""The gradient experiment and the benchmarks run, small; what they print of the machine is not tested, that their numbers hold together is."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pretend_gpu import pretend_gpu
from tiny_case import write_tiny

pytestmark = pytest.mark.filterwarnings("ignore:ROI .* more than a fifth")  # shortened: voxels of 8 mm

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def script(monkeypatch):
    """A script of a folder as a module; the folder is on the path, as when Python runs the script."""

    def load(folder: str, name: str):
        monkeypatch.syspath_prepend(ROOT / folder)
        return importlib.import_module(name)

    yield load
    for name in (
        "gradient_check",
        "measure",
        "throughput",
        "solver",
        "joint_cost",
        "joint_vs_uniform",
        "joint_tables",
        "schemes",
        "layer_spacing",
        "joint_time",
        "gpu",
        "sort_crossover",
    ):
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
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: run the benchmark itself")
def test_gpu_benchmark_runs_to_its_end(script, tmp_path, monkeypatch, capsys):
    """On a GPU that is not there, whose products are plain torch's: its times say nothing, that it comes to its end does."""
    module = script("benchmarks", "gpu")
    path = write_tiny(tmp_path)
    config = module.Config(cases=str(path), repeats=2, iterations=3, out=str(tmp_path / "gpu.json"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(name="none", total_memory=1e12))
    monkeypatch.setattr(module, "read_bandwidth", lambda times: (1.0, 1.0, 1.0))

    def product(m: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.mv(module.csr_tensor(m.crow_indices(), m.col_indices(), m.values().to(x.dtype), tuple(m.shape)), x)

    with monkeypatch.context() as patch, pretend_gpu(patch):
        patch.setattr(module.gpu, "device_product", product)
        found = module.main(config)
    case = found["cases"][str(path)]
    assert case["optimized"]["iterations"] == 3 and case["where"] == "3 on meta"
    assert len([row for row in case["rows"] if row["unit"] == "GB/s"]) == 6
    with pytest.raises(SystemExit, match="no GPU that Triton compiles for"):
        module.main(config)
    assert "16 bits are off by" in capsys.readouterr().out


def test_sort_crossover(script, tmp_path, capsys):
    module = script("experiments/paper", "sort_crossover")
    found = module.main(module.Config(largest=2000, repeats=1, out=str(tmp_path / "sort.json")))
    assert list(found["microseconds"]) == [100, 316, 1000]
    assert all(micro > 0 for row in found["microseconds"].values() for micro in row.values())
    rows = {10: {"a": 1.0, "b": 2.0}, 100: {"a": 3.0, "b": 2.0}, 1000: {"a": 9.0, "b": 2.0}}
    assert module.crossover(rows, "a", "b") == "b is faster than a from 100 doses on"
    assert module.crossover(rows, "b", "a") == "a is faster than b at none of these"


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


@pytest.mark.slow
def test_joint_against_uniform(script, tmp_path, capsys):
    module, tables = script("experiments", "joint_vs_uniform"), script("experiments", "joint_tables")
    config = module.Config(
        cases="hn", scenarios="1", grid=8.0, spacings="14,20", base=14.0, moving_base=16.0, shares="0.6,0.3", penalties="0.1", jitter="20:1",
        iterations=15, fixed_iterations=30, out=str(tmp_path),
    )  # fmt: skip
    plans = module.main(config)["cases"]["hn, 1 scenarios"]["plans"]
    assert {p["series"] for p in plans} == {"uniform", "staggered", "joint", "jittered", "pruned", "l1", "moved", "fixed"}
    best = {p["series"]: p for p in plans if p["label"] == "14 mm"}
    assert best["joint"]["objective"] < best["uniform"]["objective"] and best["joint"]["moved_mm"] > 0 == best["uniform"]["moved_mm"]
    # what is delivered at the minimum MU is what the plan has
    assert all(p["spots"] == p["delivered"] and p["delivery"]["min_spot_mu"] >= config.min_mu for p in plans if p["series"] == "moved")
    verdicts = tables.main(tables.Config(results=str(tmp_path / "results.json"), out=str(tmp_path)))
    assert verdicts["hn, 1 scenarios"]["joint / uniform, same spots"]["14 mm"] < 1
    assert list(tmp_path.glob("curves_*.png")) and "| uniform | 14 mm |" in capsys.readouterr().out


@pytest.mark.slow
def test_schemes_and_layers(script, tmp_path):
    module = script("experiments", "schemes")
    config = module.Config(cases="hn", scenarios="1", grid=8.0, spacing=20.0, warm=5, evaluations=40, out=str(tmp_path))
    rows = module.main(config)["cases"]["hn, 1 scenario"]
    assert rows["joint quasi-Newton"]["objective"]["25"] < rows["weights only"]["objective"]["25"]
    module = script("experiments", "layer_spacing")
    rows = module.main(module.Config(case="hn", scenarios=1, layers="bragg80,12", uniform=20.0, moving=24.0, grid=8.0, out=str(tmp_path)))[
        "rows"
    ]
    few, many = (rows[k]["delivery"] for k in (2, 0))
    assert all(few[machine]["energy_switch_s"] < many[machine]["energy_switch_s"] for machine in ("synchrotron", "cyclotron"))


@pytest.mark.slow
def test_time_of_a_moving_plan_and_of_the_uniform_one_it_matches(script, tmp_path):
    module = script("experiments", "joint_time")
    config = module.Config(cases="hn", scenarios=1, grid=8.0, uniform=12.0, moving=18.0, repeats=2, out=str(tmp_path))
    found = module.main(config)["cases"]["hn"]
    assert 0 < found["low"] <= found["ratio"] <= found["high"]
    for row in found["rows"]:
        assert row["moving"]["reached"] and row["moving"]["objective"] <= row["uniform"]["objective"]
        assert row["moving"]["spots"] < 0.5 * row["uniform"]["spots"]


@pytest.mark.slow
def test_cost_of_position_gradients(script, tmp_path):
    module = script("benchmarks", "joint_cost")
    found = module.main(module.Config(case="hn", spacing=16.0, repeats=3, out=str(tmp_path / "j.json")))
    assert 0 < found["low"] <= found["ratio"] <= found["high"]


@pytest.mark.slow
def test_cost_of_an_objective_of_the_body(script, tmp_path):
    module = script("benchmarks", "external")
    found = module.main(module.Config(iterations=60, grid=6.0, repeats=1, out=str(tmp_path / "e.json")))
    row = found["rounds"][0]
    assert row["sampled"]["sampling"]["voxels"] < row["sampled"]["sampling"]["of"] and row["full"]["sampling"] is None
    assert abs(found["objective"]) < 0.1, "60 iterations are not the end"
    assert row["sampled"]["hottest"]["d1cm3_gy"] < row["without"]["hottest"]["d1cm3_gy"]


def test_spots_for_an_objective_lie_on_the_curve(script):
    tables = script("experiments", "joint_tables")
    plans = [{"delivered": n, "objective": 1e4 / n} for n in (100, 400, 1600)]
    assert tables.spots_for(plans, 50.0) == pytest.approx(200.0) and tables.spots_for(plans, 1.0) is None
