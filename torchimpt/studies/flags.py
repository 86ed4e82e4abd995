"""Flags of a script from the fields of its `Config`: what the experiments and benchmarks share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from typing import TypeVar

C = TypeVar("C")


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
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    return config(**vars(parser.parse_args(arguments)))
