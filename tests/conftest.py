"""Fixtures for every test."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pytest
import torch

matplotlib.use("Agg")


def shared_path() -> Path:
    """Where the project's reference data lie beside a developer's checkout."""
    return Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The reference data; a test that asks for it is skipped on a checkout without them."""
    path = shared_path()
    if not (path / "data").is_dir():
        pytest.skip(f"reference data not found at {path}")
    return path


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded generator: the same numbers in every run."""
    return torch.Generator().manual_seed(20201)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
