"""Interrupt and go on: the solver's state in `checkpoint.pt`, tied to the case that it belongs to."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import torch

from torchimpt.case import Case
from torchimpt.checks import InputError
from torchimpt.files import whole_or_nothing
from torchimpt.schemes.stages import PlanIteration


def fingerprint(case: Case) -> str:
    """Hash of all that decides the iterates: the case without its title, goals, output and limits of the solver."""
    plain = case.model_copy(
        update={
            "title": "",
            "goal": [],
            "output": type(case.output)(),
            "optimizer": case.optimizer.model_copy(update={"max_iterations": 0, "max_evaluations": None, "tolerance": 0.5, "log_every": 1}),
        }
    )
    return hashlib.sha256(plain.to_toml().encode()).hexdigest()


class Checkpoint:
    """A solver's callback that writes its state every few iterations, and at an interrupt.

    Parameters
    ----------
    path
        Where `checkpoint.pt` goes.
    case
        Whose solver it is.
    spots
        `state_dict` of the placed spots, so that a resumed run is known to have the same.
    every
        Iterations between two writes.
    """

    def __init__(self, path: Path, case: Case, spots: dict, every: int) -> None:
        self._path, self._key, self._spots, self._every = path, fingerprint(case), spots, every
        self._state: dict | None = None
        self._last = 0

    def __call__(self, iteration: PlanIteration) -> None:
        # taken now: an interrupt may come when the solver is halfway to the next iterate
        self._state, self._last = iteration.state(), iteration.iteration
        if iteration.iteration % self._every == 0:
            self.write()

    def write(self) -> None:
        """Write the last iterate's state, whole or not at all."""
        if self._state is not None:
            memory = io.BytesIO()
            torch.save({"case": self._key, "spots": self._spots, "solver": self._state, "last": self._last}, memory)
            with whole_or_nothing(self._path) as scratch:  # torch's own writer has no OSError for a full disk
                scratch.write_bytes(memory.getbuffer())


def read_checkpoint(path: Path, case: Case) -> dict:
    """The solver's state of an earlier run of the same case."""
    if not path.is_file():
        raise InputError(f"no checkpoint at {path} to resume from; start without --resume")
    try:
        saved = torch.load(path, weights_only=True)
        key = saved["case"]
    except Exception as error:
        raise InputError(f"{path} is no readable checkpoint ({type(error).__name__}); start without --resume") from error
    if key != fingerprint(case):
        raise InputError(f"{path} belongs to another case: more than the solver's limits differ; start without --resume")
    return saved


def check_start(saved: dict, spots: dict, path: Path) -> None:
    """Raise where a run started from other spots than it would now, as when the plan file that it started from has changed."""
    old = saved["spots"]
    if old.keys() != spots.keys() or not all(torch.equal(old[name].cpu(), spots[name].cpu()) for name in old):
        raise InputError(f"{path} started from other spots than the case's now; has joint.start changed? start without --resume")
