"""`Team` over torch.distributed: joining the processes that a launcher started, and how all end when one does.

A launcher (`torchrun`, or whatever sets `RANK`, `WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT`) starts the same command several times.
Tensors on the CPU go through gloo, those on a GPU through nccl. A process that ends early leaves a note of the reason in the launcher's
store; a process that is killed leaves none, but the system closes its connections, so that the others find out at their next exchange. The
first one that is left tells what happened, once; the others are silent.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from torchimpt.checks import InputError
from torchimpt.processes.team import ALONE, Rows, Team

PATIENCE = timedelta(minutes=30)
"""Longest wait for another process that is alive but does not come: longer than any process builds matrices while others wait."""

FAREWELL = 2.0
"""Seconds that the others have to say that they are still there, once one is lost."""

INTERRUPTED, TERMINATED = "interrupted", "SIGTERM"
"""Notes of a process for the others."""


class LostProcess(InputError):
    """Another process is not there any more."""


class EndedTogether(InputError):
    """Why all processes end; `speaks` in the one that tells it."""

    def __init__(self, message: str, speaks: bool) -> None:
        super().__init__(message)
        self.speaks = speaks


class _Terminated(BaseException):
    """SIGTERM: a launcher ends all processes when one has ended, a queue at the time limit."""


def _number(name: str, default: int | None = None) -> int:
    text = os.environ.get(name, "")
    if not text and default is not None:
        return default
    if not text.isdigit():
        raise InputError(f"the launcher's variable {name} must be a number, got '{text}'; start several processes with torchrun")
    return int(text)


@dataclass
class _World:
    """What the processes have in common.

    Attributes
    ----------
    store
        The launcher's.
    ending
        Whether this process is on its way out.
    n_bytes, seconds
        What this process has sent and received, and how long it took, waiting included.
    """

    rank: int
    size: int
    store: dist.Store
    ending: bool = False
    n_bytes: int = 0
    seconds: float = 0.0
    where: dict[int, str] = field(default_factory=dict)

    @contextmanager
    def exchange(self, *tensors: Tensor) -> Iterator[None]:
        """A block that talks to other processes: an error in it is that one of them is gone."""
        began = time.perf_counter()
        try:
            yield
        except RuntimeError as error:
            self.ending = True
            raise LostProcess(re.sub(r"^\[.*?\] ", "", str(error).splitlines()[0]).split(". ")[0]) from error
        self.seconds += time.perf_counter() - began
        self.n_bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class Processes(Team):
    """The processes of torch.distributed's default group."""

    def __init__(self, world: _World, n_scenarios: int | None = None) -> None:
        self._world, self._n = world, n_scenarios
        self.rank, self.size = world.rank, world.size
        self.local_size = _number("LOCAL_WORLD_SIZE", 1)
        self.local_rank = _number("LOCAL_RANK", 0)

    def share(self, n_scenarios: int) -> Processes:
        """The team with so many scenarios shared out, at least one each; who leads has no more than others, for it has more to do."""
        if n_scenarios < self.size:
            raise InputError(
                f"{self.size} processes were started for {n_scenarios} scenario{'s' * (n_scenarios > 1)}: each needs one of its own; start "
                f"{n_scenarios} at most"
            )
        return Processes(self._world, n_scenarios)

    def _blocks(self) -> list[tuple[int, int]]:
        assert self._n is not None, "scenarios are shared out first"
        edges = [rank * self._n // self.size for rank in range(self.size + 1)]
        return list(pairwise(edges))

    def own(self, rows: Rows) -> Rows:
        first, end = self._blocks()[self.rank]
        return rows[first:end]  # type: ignore[index]  # tensors and sequences are cut alike

    def count(self, own: int) -> int:
        assert self._n is not None, "scenarios are shared out first"
        return self._n

    def each(self, numbers: Tensor) -> Tensor:
        own = numbers.detach().cpu().contiguous()
        found = [torch.empty_like(own) for _ in range(self.size)]
        with self._world.exchange(*found):
            dist.all_gather(found, own)
        return torch.stack(found).to(numbers.device)

    def gather(self, values: Tensor) -> Tensor:
        blocks = self._blocks()
        most = max(end - first for first, end in blocks)
        padded = values.new_zeros((most, *values.shape[1:]))
        padded[: len(values)] = values
        found = self.each(padded.flatten()).unflatten(1, padded.shape)
        return torch.cat([part[: end - first] for part, (first, end) in zip(found, blocks, strict=True)])

    def collect(self, rows: Tensor) -> Tensor:
        rows = rows.contiguous()
        if not self.leads:
            with self._world.exchange(rows):
                for row in rows:
                    dist.send(row, 0)
            return rows
        whole = rows.new_empty((self.count(len(rows)), *rows.shape[1:]))
        whole[: len(rows)] = rows
        for rank, (first, end) in enumerate(self._blocks()[1:], start=1):
            with self._world.exchange(whole[first:end]):
                for row in whole[first:end]:
                    dist.recv(row, rank)
        return whole

    def sum(self, rows: Iterable[Tensor]) -> Tensor:
        # Each process adds its own to what those before it have: no order of sums but the scenarios'.
        if self.rank == 0:
            total = super().sum(rows)
        else:
            own = list(rows)
            total = torch.empty_like(own[0], memory_format=torch.contiguous_format)
            with self._world.exchange(total):
                dist.recv(total, self.rank - 1)
            for row in own:
                total += row
        with self._world.exchange(total):
            if self.rank + 1 < self.size:
                dist.send(total, self.rank + 1)
            dist.broadcast(total, self.size - 1)
        return total

    def largest(self, values: Tensor) -> Tensor:
        found = values.clone(memory_format=torch.contiguous_format)
        with self._world.exchange(found):
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return found

    def of(self, scenario: int, make: Callable[[], Tensor], like: Tensor) -> Tensor:
        owner = next(rank for rank, (_, end) in enumerate(self._blocks()) if scenario < end)
        found = make().to(like).contiguous() if owner == self.rank else torch.empty_like(like, memory_format=torch.contiguous_format)
        with self._world.exchange(found):
            dist.broadcast(found, owner)
        return found

    def agree(self, what: dict[str, Any]) -> None:
        found: list[Any] = [None] * self.size
        with self._world.exchange():
            dist.all_gather_object(found, what)
        for rank, other in enumerate(found):
            for name, value in found[0].items():
                if other[name] != value:
                    raise InputError(
                        f"process {rank} has another {name} than process 0: {other[name]} and {value}; all have to start from the same, "
                        "and on processors that round alike"
                    )

    @property
    def traffic(self) -> tuple[int, float]:
        return self._world.n_bytes, self._world.seconds


@contextmanager
def joined(device: str = "auto") -> Iterator[Team]:
    """The processes that were started with this one, `ALONE` where there is no other; however one of them ends, all do.

    Parameters
    ----------
    device
        As `set_up` takes it: with a GPU, tensors on it go through nccl.
    """
    if _number("WORLD_SIZE", 1) == 1:
        yield ALONE
        return
    world = _meet(device)
    before = signal.getsignal(signal.SIGTERM)

    def terminate(number: int, frame: Any) -> None:
        if not world.ending:
            world.ending = True
            raise _Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield Processes(world)
        dist.destroy_process_group()
    except (LostProcess, _Terminated) as error:
        world.ending = True
        _part(world, error)
    except BaseException as error:
        world.ending = True
        note = INTERRUPTED if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__
        with suppress(RuntimeError):
            world.store.set(f"ended/{world.rank}", note)
            dist.destroy_process_group()  # whoever waits for this one learns that it is on its way out
            _leave(world)
        raise
    finally:
        # a process that ends has yet to tell why, whatever its launcher sends
        signal.signal(signal.SIGTERM, signal.SIG_IGN if world.ending else before)


def _meet(device: str) -> _World:
    """Connect to the others."""
    rank, size = _number("RANK"), _number("WORLD_SIZE")
    gpu = device != "cpu" and torch.cuda.is_available()
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        if gpu:
            torch.cuda.set_device(_gpu())
        store, _, _ = next(rendezvous("env://"))
        store = dist.PrefixStore("torchimpt", store)
        store.set(f"where/{rank}", f"{socket.gethostname()} {os.getpid()}")
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", store=store, rank=rank, world_size=size, timeout=PATIENCE)
        where = {other: store.get(f"where/{other}").decode() for other in range(size)}
    except (RuntimeError, ValueError, OSError) as error:
        first = str(error).splitlines()[0]
        why = f"process {rank} of {size} cannot meet the others at {place}: {first}; start all with torchrun"
        raise EndedTogether(why, speaks=True) from error
    return _World(rank, size, store, where=where)


def _gpu() -> int:
    """This process's GPU: one each."""
    local, here, found = _number("LOCAL_RANK", 0), _number("LOCAL_WORLD_SIZE", 1), torch.cuda.device_count()
    if here > found:
        raise InputError(f"{here} processes were started on a machine with {found} GPUs; start one a GPU, or use --device cpu")
    return local


def _part(world: _World, error: BaseException) -> NoReturn:
    """Find out with the others why all end; the first that is left raises what is to be told, the others end without a word."""
    rank, size, everyone = world.rank, world.size, range(world.size)
    with suppress(RuntimeError):
        dist.destroy_process_group()  # as any that ends
    try:
        world.store.set(f"left/{rank}", TERMINATED if isinstance(error, _Terminated) else str(error))
        until = time.monotonic() + FAREWELL
        while True:
            ended = [other for other in everyone if world.store.check([f"ended/{other}"])]
            left = [other for other in everyone if world.store.check([f"left/{other}"])]
            lost = [other for other in everyone if other not in (*ended, *left) and not _runs(world.where[other])]
            if len(ended) + len(left) + len(lost) == size or time.monotonic() > until:
                break
            time.sleep(0.05)
        notes, saw = (
            {other: world.store.get(f"{name}/{other}").decode() for other in some} for name, some in (("ended", ended), ("left", left))
        )
        speaks = rank == min(left) and 0 not in ended and world.store.compare_set("told", "", str(rank)).decode() == str(rank)
        _leave(world)
    except RuntimeError:  # the store has gone with its process: the first one, where no launcher keeps it
        lost, notes, saw, speaks = [0], {}, {}, rank == 1
    if INTERRUPTED in notes.values():
        raise KeyboardInterrupt from error
    raise EndedTogether(_what(world, lost, notes, saw), speaks) from error


def _leave(world: _World) -> None:
    """Say that this process has read what it needs; the first one keeps the store, where no launcher does, until the others have, too."""
    world.store.set(f"gone/{world.rank}", "")
    until = time.monotonic() + FAREWELL
    keeps = world.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    while keeps and time.monotonic() < until:
        if all(world.store.check([f"gone/{other}"]) or not _runs(world.where[other]) for other in range(1, world.size)):
            break
        time.sleep(0.05)


def _what(world: _World, lost: list[int], notes: dict[int, str], saw: dict[int, str]) -> str:
    """What to tell: who ended with a note, who was lost, or what those who are left have seen."""
    again = "start again, with --resume where the run folder has a checkpoint.pt, with as many processes or with others"
    if notes:
        first = min(notes)
        return f"process {first} of {world.size} ended: {notes[first]}"
    if lost:
        who = " and ".join(f"process {other} of {world.size} (on {world.where[other].replace(' ', ', pid ')})" for other in lost)
        return f"{who} was lost: killed, out of memory, or cut off; {again}"
    if TERMINATED in saw.values():
        return f"ended by SIGTERM, as by a launcher that has lost a process or by a queue at its time limit; {again}"
    return f"a process of {world.size} was lost ({next(iter(saw.values()), '')}); {again}"


def _runs(where: str) -> bool:
    """Whether a process may still run: of those on other machines nothing is known, and only silence speaks."""
    host, pid = where.split()
    if host != socket.gethostname():
        return True
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return os.path.isdir("/proc/self") is False
