"""One plan, bit for bit, whatever the number of threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from tiny_case import write_tiny

PROGRAM = "from torchimpt.cli.app import main; main()"


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        # rows of 0 to 145 entries, nine a row in the mean: MKL's product has two ways to add them up
        ("robustness.range_percent=3.5",),
        ("robustness={setup_mm=0, range_percent=0}", "objective[2]={roi='External', kind='gEUD', a=3.7, dose_gy=2}", "dose.dtype=float64"),
        ("dose.engine=matrix_free", "joint={box_mm=5, price_percent=1}"),
        ("robustness.mode=voxelwise", "objective[2]={roi='External', kind='max_dose', dose_gy=30}", "optimizer.sample_above=1000"),
        (
            "objective[2]={roi='External', kind='max_dose', dose_gy=56, constraint=true}",
            "dose.rbe=mcnamara",
            "joint={scheme='prune_and_move', box_mm=5, spots=40}",
        ),
    ],
    ids=["robust", "nominal", "joint", "sampled", "pruned"],
)
def test_one_thread_and_two_give_one_plan(tmp_path, overrides):
    """125,000 voxels, so that torch's sums are shared out among threads, too."""
    write_tiny(tmp_path)
    told = []
    for threads in ("1", "2"):
        short = ("dose.grid_mm=3", "dose.check_mm=off", "optimizer.max_iterations=4")
        flags = [flag for override in (*short, *overrides) for flag in ("--set", override)]
        program = [sys.executable, "-c", PROGRAM, "plan", "tiny.toml", "--out", threads, "--threads", threads, *flags]
        # threads that wait for each other do not spin: other programs may have the cores
        done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "OMP_WAIT_POLICY": "passive"})
        assert done.returncode in (0, 3) and done.stderr == "", done.stderr
        metrics = json.loads((tmp_path / threads / "metrics.json").read_text())
        assert metrics["threads"] == int(threads)
        history = [json.loads(line) | {"seconds": None} for line in (tmp_path / threads / "history.jsonl").read_text().splitlines()]
        told.append({"history": history, "goals": metrics["goals"], "scenarios": metrics["scenarios"], "delivery": metrics["delivery"]})
    assert told[0] == told[1]
    assert (tmp_path / "1" / "plan.json").read_bytes() == (tmp_path / "2" / "plan.json").read_bytes()
    assert (tmp_path / "1" / "dose.mha").read_bytes() == (tmp_path / "2" / "dose.mha").read_bytes()
