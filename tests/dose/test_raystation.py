"""Absolute dose of a clinical plan from its monitor units, nothing fitted, by `experiments/raystation_check.py`."""

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_agrees(shared, tmp_path):
    path = Path(__file__).resolve().parents[2] / "experiments" / "raystation_check.py"
    spec = importlib.util.spec_from_file_location("raystation_check", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    data = shared / "data"
    found = module.check(module.Config(folder=str(data / "dicom"), curves=str(data / "mc")), tmp_path)
    print(found)
    assert list(found) == ["beam0", "beam1", "sum"]
    for name, agreement in found.items():
        missed = [aim for aim, met in module.aims(name, agreement).items() if not met]
        assert not missed, f"{name}: {agreement}"
