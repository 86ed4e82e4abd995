"""A few hundred of the damaged files of `experiments/fuzz.py`, in this process: each is read as something whole, or refused in one line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from bad_inputs import ACCEPTED, PATHS, REFUSED, Subject

sys.path += [path for path in PATHS if path not in sys.path]

from inputs import KINDS

QUICK = (
    "HU tables",
    "RT Dose",
    "RT Ion Plan",
    "DICOM patient",
    "csv machine",
    "doses",
    "images",
    "matRad machine",
    "matRad patient",
    "plans",
)
"""Kinds that need no plan and no fit."""


def read_all(name: str, folder: Path, seed: int, count: int) -> None:
    subject = Subject(name, folder, seed)
    for number in range(count):
        outcome = subject.outcome(number)
        assert outcome.kind in (ACCEPTED, REFUSED), f"input {number}: {outcome}"


@pytest.mark.parametrize("name", QUICK)
def test_damaged_files_are_refused_or_whole(name, tmp_path):
    read_all(name, tmp_path, 1, 30)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in KINDS if name != "case, planned"])
def test_many_damaged_files_are_refused_or_whole(name, tmp_path):
    read_all(name, tmp_path, 2, 100)
