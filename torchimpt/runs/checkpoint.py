"""Interrupt and go on: the solver's state in `checkpoint.pt`, tied to the case that it belongs to.

A run that goes on from a checkpoint comes to the bits that it would have come to without the interrupt, on the same device with the same
versions, whatever the number of threads. With others it goes on as well: the plan is as good, but sums are rounded in another order, and
that is told in a warning. What decides the plan itself (case, spots, machine) must be the same.

The file is torch's, with the SHA-256 of its bytes behind it: one flipped bit of a state would give another plan in silence.
"""

from __future__ import annotations

import hashlib
import io
import logging
from pathlib import Path

import torch

from torchimpt.case import Case
from torchimpt.checks import InputError
from torchimpt.files import reading, whole_or_nothing
from torchimpt.planning.build import PlanningProblem
from torchimpt.runs.about import device_name, processor, versions
from torchimpt.schemes.stages import PlanIteration

log = logging.getLogger(__name__)

ROUNDING = ("torchimpt", "torch", "numpy", "numba")
"""Packages whose version decides the order of sums."""


def fingerprint(case: Case) -> str:
    """Hash of all that decides the iterates: the case without its title, goals, output and limits of the solver."""
    plain = case.model_copy(
        update={
            "title": "",
            "goal": [],
            "output": type(case.output)(),
            "optimizer": case.optimizer.model_copy(
                update={"max_iterations": 0, "max_evaluations": None, "tolerance": 0.5, "feasibility_gy": 0.1, "log_every": 1}
            ),
        }
    )
    return hashlib.sha256(plain.to_toml().encode()).hexdigest()


def computed_with(device: torch.device) -> dict[str, str]:
    """What decides the last bits of a plan besides its case: name to what it is now."""
    known = versions()
    name = device_name(device) if device.type == "cuda" else processor()
    return {"device": name, **{name: known[name] for name in ROUNDING}}


class Checkpoint:
    """A solver's callback that writes its state every few iterations, and at an interrupt.

    Parameters
    ----------
    path
        Where `checkpoint.pt` goes.
    problem
        Whose solver it is; its placed spots and its machine are noted, so that a resumed run is known to have the same.
    every
        Iterations between two writes.
    """

    def __init__(self, path: Path, problem: PlanningProblem, every: int) -> None:
        self._path, self._every = path, every
        self._head = {
            "case": fingerprint(problem.case),
            "spots": problem.spots.state_dict(),
            "machine": problem.machine.fingerprint,
            "computed": computed_with(problem.compute.device),
        }
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
            torch.save({**self._head, "solver": self._state, "last": self._last}, memory)
            content = memory.getbuffer()
            with whole_or_nothing(self._path) as scratch, scratch.open("wb") as file:  # torch's own writer has no OSError for a full disk
                file.write(content)
                file.write(hashlib.sha256(content).digest())


def read_checkpoint(path: Path, case: Case, device: torch.device) -> dict:
    """The solver's state of an earlier run of the same case, on the device; a warning where the last bits may come out otherwise."""
    if not path.is_file():
        raise InputError(f"no checkpoint at {path} to resume from; start without --resume")
    with reading(path, "checkpoint"):
        content = path.read_bytes()
    size = hashlib.sha256().digest_size
    if hashlib.sha256(content[:-size]).digest() != content[-size:]:
        raise InputError(f"{path} is no readable checkpoint, its checksum does not fit: it is damaged; start without --resume")
    with reading(path, "checkpoint"):
        saved = torch.load(io.BytesIO(content[:-size]), map_location=device, weights_only=True)
        key, then = saved["case"], saved["computed"]
    if key != fingerprint(case):
        raise InputError(f"{path} belongs to another case: more than the solver's limits differ; start without --resume")
    now = computed_with(device)
    changed = [f"{name} {then.get(name)}, now {now[name]}" for name in now if then.get(name) != now[name]]
    if changed:
        log.warning("%s was computed with %s: iterates may differ in the last bits from an uninterrupted run's", path, "; ".join(changed))
    return saved


def check_start(saved: dict, problem: PlanningProblem, path: Path) -> None:
    """Raise where a run started from other spots or with another machine than it would now: a file that the case names has changed."""
    old, spots = saved["spots"], problem.spots.state_dict()
    if old.keys() != spots.keys() or not all(torch.equal(old[name].cpu(), spots[name].cpu()) for name in old):
        raise InputError(f"{path} started from other spots than the case's now; has joint.start changed? start without --resume")
    if saved["machine"] != problem.machine.fingerprint:
        raise InputError(f"{path} was computed with other tables of machine '{problem.machine.name}'; start without --resume")
