"""pyRadPlan itself beside `ti.from_pyradplan`: in its own environment, by `pyradplan_script.py`.

python -m venv V && V/bin/pip install pyRadPlan==0.5.0 'pydantic<2.13'
TORCHIMPT_PYRADPLAN=V/bin/python pytest tests/migration/test_pyradplan.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def numbers(tmp_path_factory) -> dict:
    python = os.environ.get("TORCHIMPT_PYRADPLAN")
    if not python:
        pytest.skip("TORCHIMPT_PYRADPLAN does not name the Python of an environment with pyRadPlan 0.5")
    script = Path(__file__).with_name("pyradplan_script.py")
    command = [python, str(script), str(CHECKOUT), sysconfig.get_paths()["purelib"], str(tmp_path_factory.mktemp("pyradplan"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


TERMS = [["Core", "max_dose", 25.0, 300.0], ["OuterTarget", "uniform", 50.0, 1000.0], ["BODY", "max_dose", 30.0, 100.0]]


@pytest.mark.slow
def test_objects(numbers: dict) -> None:
    assert numbers["terms"] == TERMS and not numbers["remarks"] and numbers["fractions"] == 30
    assert {name: tuple(told) for name, told in numbers["rois"].items()} == {
        "Core": ("oar", 1320), "OuterTarget": ("target", 7458), "BODY": ("external", 601736),
    }  # fmt: skip
    assert numbers["spots"] == numbers["bixels"] > 500 and numbers["weight"] == pytest.approx(1.0, abs=1e-12)
    assert [beam[:2] for beam in numbers["beams"]] == [[0.0, 0.0], [70.0, 30.0], [250.0, 0.0]]
    assert numbers["centroid_off"] < 1e-3  # the isocentre that pyRadPlan takes is our centroid


@pytest.mark.slow
def test_files(numbers: dict) -> None:
    """Spots are those of a matRad file of the same plan, bit for bit; and pyRadPlan reads what we write."""
    assert numbers["file_same"]
    for one, other in zip(numbers["file_beams"], numbers["beams"], strict=True):
        assert one[:2] == other[:2] and one[2] == pytest.approx(other[2], abs=1e-9)
    back = numbers["back"]
    assert back["ct"] and back["terms"] == TERMS and back["spots"] == numbers["spots"]
    assert back["rois"] == {name: told[1] for name, told in numbers["rois"].items()}
    for one, other in zip(back["beams"], numbers["beams"], strict=True):
        assert one[:2] == other[:2] and one[2] == pytest.approx(other[2], abs=1e-9)


@pytest.mark.slow
def test_doses(numbers: dict) -> None:
    """Two pencil-beam codes on one machine, of other ray tracing and halo. The same plan mirrored is 11 % off; both programs took 1.1 %, an
    integral within 0.3 % and centroids within 0.31 mm (voxels of 5 mm).
    """
    dose = numbers["dose"]
    assert dose["shape"] and dose["rms"] < 0.02 and dose["mirrored"] > 0.05
    assert dose["integral"] == pytest.approx(1.0, abs=0.01) and dose["centroid"] < 0.6
