"""Where the program `torchimpt` starts: the border stands before anything that takes time is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from torchimpt.cli.border import run

if TYPE_CHECKING:
    from typer import Typer


def main() -> NoReturn:
    """Run the command line and exit with its status."""
    run(_commands)


def _commands() -> Typer:
    from torchimpt.cli.app import app

    return app
