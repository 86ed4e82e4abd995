"""Flags of a script from the fields of its `Config`: what the experiments and benchmarks share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from typing import TypeVar

C = TypeVar("C")


def _truth(text: str) -> bool:
    """`true` or `false`: Python takes every text that is not empty for true."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"true or false, got '{text}'")
    return text.lower() == "true"


def flags(config: type[C], text: str | None, arguments: Sequence[str] | None = None) -> C:
    """The dataclass `config` from the command line: a field `step_size: float = 0.1` is the flag `--step-size 0.2`.

    Parameters
    ----------
    config
        Every field has a default, whose type is the flag's.
    text
        What `--help` shows: the script's docstring.
    arguments
        None: the command line's.
    """
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in fields(config):  # type: ignore[arg-type]  # a dataclass, which TypeVar has no bound for
        kind = _truth if isinstance(field.default, bool) else type(field.default)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    return config(**vars(parser.parse_args(arguments)))
