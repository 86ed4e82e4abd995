"""Flags of scripts."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from torchimpt.studies.flags import flags


@dataclass(frozen=True)
class Config:
    """Flags."""

    out: str = "runs"
    step_size: float = 0.1
    iterations: int = 5
    full: bool = True


def test_fields_are_flags(capsys) -> None:
    assert flags(Config, "What?", []) == Config()
    assert flags(Config, "What?", ["--step-size", "0.2", "--iterations", "7"]) == Config(step_size=0.2, iterations=7)
    assert not flags(Config, "What?", ["--full", "false"]).full and flags(Config, "What?", ["--full", "true"]).full
    with pytest.raises(SystemExit):
        flags(Config, "What?", ["--full", "no"])
    assert "--full: true or false, got 'no'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        flags(Config, "What?", ["--iterations", "many"])
    assert stopped.value.code == 2 and "--iterations: invalid int value: 'many'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        flags(Config, "What?\n    how it is laid out", ["--help"])
    assert "    how it is laid out" in capsys.readouterr().out
