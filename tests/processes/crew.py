"""Several processes at once, as a launcher starts them, without the seconds that each would import torch for: forked from a server."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch.distributed", "torchimpt.cli.app", "torchimpt.cli.show", "torchimpt.runs.commands"])


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _member(rank: int, size: int, port: int, out: Connection, function: Callable[..., Any], arguments: tuple) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    out.send(function(*arguments))


def crew(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `function(*arguments)` returns in each of so many processes, all of them started as one launcher's."""
    port, running = free_port(), []
    for rank in range(size):
        receive, send = _CONTEXT.Pipe(duplex=False)
        process = _CONTEXT.Process(target=_member, args=(rank, size, port, send, function, arguments))
        process.start()
        send.close()
        running.append((process, receive))
    found = []
    for rank, (process, receive) in enumerate(running):
        if not receive.poll(120):
            raise TimeoutError(f"process {rank} of {size} has no answer")
        found.append(receive.recv())
        process.join()
    return found


def torchimpt(folder: Path, *arguments: object) -> tuple[int, str, str]:
    """The command line in this process, its standard streams in files: exit status, stdout, stderr."""
    from torchimpt.cli.start import main

    rank, status = os.environ["RANK"], 0
    os.chdir(folder)
    kept = [os.dup(number) for number in (1, 2)]
    files = [folder / f"{name}.{rank}" for name in ("stdout", "stderr")]
    for number, path in zip((1, 2), files, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ["torchimpt", *map(str, arguments)]
    try:
        main()
    except SystemExit as stop:
        status = int(stop.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, old in zip((1, 2), kept, strict=True):
            os.dup2(old, number)
    return status, *(path.read_text() for path in files)
