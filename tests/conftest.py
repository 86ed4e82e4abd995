"""Fixtures for every test."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import matplotlib
import pytest
import torch

matplotlib.use("Agg")
if not torch.cuda.is_available():  # before any kernel is imported: Triton's are then computed on the CPU
    os.environ["TRITON_INTERPRET"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # a process a core: more threads would only wait for each other
    os.environ["OMP_NUM_THREADS"] = "1"  # of the commands that tests start
    torch.set_num_threads(1)

_NOBODY = 65534


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


@pytest.fixture
def common_folder() -> Iterator[Path]:
    """A folder that every user can reach, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


@pytest.fixture
def as_nobody() -> Callable[[], AbstractContextManager[None]]:
    """A context in which root, who may do everything, is an ordinary user; other users stay who they are."""

    @contextmanager
    def drop() -> Iterator[None]:
        if os.getuid() != 0:
            yield
            return
        os.setresuid(_NOBODY, _NOBODY, 0)
        try:
            yield
        finally:
            os.setresuid(0, 0, 0)

    return drop


@pytest.fixture
def full_disk() -> Callable[[int], AbstractContextManager[None]]:
    """A context in which no file of this process grows past so many bytes: writes fail as they do on a full disk."""

    @contextmanager
    def limit(n_bytes: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, handler)

    return limit


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
