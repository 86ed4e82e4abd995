"""The smallest robust case, a second a run, and the command line called in this process. Shared by the tests of planning and commands."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import torch

from torchimpt.case import Case, load_case
from torchimpt.cli.app import main
from torchimpt.geometry import Grid
from torchimpt.io.image import write_image

TINY = """
title = "Tiny"
seed = 3

[patient]
source = "phantom"
name = "water"

[dose]
grid_mm = 8.0
target_grid_mm = "off"

[spots]
target = "Target"
spacing_mm = 9.0
margin_mm = 3.0
layer_spacing = 12.0

[[beam]]
gantry_deg = 0

[[beam]]
gantry_deg = 75
couch_deg = 10

[robustness]
setup_mm = 0.0
range_percent = 3.5

[optimizer]
max_iterations = 200
tolerance = 1e-3

[output]
tensorboard = false

[[objective]]
roi = "Target"
kind = "min_dose"
dose_gy = 50.0
weight = 100.0

[[objective]]
roi = "Target"
kind = "max_dose"
dose_gy = 54.0
weight = 50.0

[[objective]]
roi = "External"
kind = "mean_dose"
dose_gy = 2.0

[[goal]]
roi = "Target"
metric = "d(95)"
min = 47.5

[[goal]]
roi = "External"
metric = "mean"
max = 0.5
"""

INTERRUPTIBLE = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from torchimpt.cli.app import main; main()"
"""The command as a child that takes an interrupt even where the tests' own process group ignores them."""


def write_tiny(folder: Path, *replacements: tuple[str, str]) -> Path:
    """`tiny.toml` in the folder; each replacement must hit."""
    text = TINY
    for old, new in replacements:
        assert old in text, old
        text = text.replace(old, new)
    path = folder / "tiny.toml"
    path.write_text(text)
    return path


def tiny(tmp_path: Path, *overrides: str) -> Case:
    """The tiny case with overrides, as `--set` takes them."""
    return load_case(write_tiny(tmp_path), overrides)


def write_images(folder: Path, size=(12, 12, 12), hu=None, target=None, external=True, organ=None) -> None:
    """A CT of water in air, 10 mm voxels, with a target and, where its mask is given, an organ, as images in `folder`."""
    grid = Grid(size, (10.0, 10.0, 10.0), (-5.0 * size[2], -5.0 * size[1], -5.0 * size[0]))
    folder.mkdir()
    inside = torch.zeros(size, dtype=torch.bool)
    inside[1:-1, 1:-1, 1:-1] = True
    if target is None:
        target = torch.zeros(size, dtype=torch.bool)
        target[4:8, 4:8, 4:8] = True
    write_image(folder / "ct.mha", torch.where(inside, 0.0, -1000.0) if hu is None else hu, grid)
    masks = {"Target": target, "External": inside if external else None, "Organ": organ}
    for name, mask in masks.items():
        if mask is not None:
            write_image(folder / f"{name}.mha", mask, grid)


class Outcome(NamedTuple):
    """What a command left."""

    status: int
    out: str
    err: str


def command(*arguments: object, cwd: Path) -> Outcome:
    """`torchimpt ...` in this process, in the folder `cwd`; torch's threads, Python's warnings and the log's level are put back."""
    out, err, argv, threads = io.StringIO(), io.StringIO(), sys.argv, torch.get_num_threads()
    logger = logging.getLogger("torchimpt")
    level = logger.level
    status = 0
    try:
        sys.argv = ["torchimpt", *map(str, arguments)]
        with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("default")
            main()
    except SystemExit as stop:
        status = stop.code or 0
    finally:
        sys.argv = argv
        torch.set_num_threads(threads)
        logger.setLevel(level)
    return Outcome(status, out.getvalue(), err.getvalue())
