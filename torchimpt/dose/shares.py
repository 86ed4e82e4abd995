"""Scenarios over devices: which lies where, and how what they are asked for is computed on all devices at once.

A scenario's tables and matrix stay on one device. What moves between devices are vectors of the spots, and of the scenarios' doses; never a
matrix. Work for a GPU is queued there and does not keep the caller, who does the CPU's share meanwhile: so all vectors are sent before any
work begins, as a copy from a GPU waits for what was queued before it, and fetched when all of it has been handed out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

import torch

from torchimpt.checks import InputError
from torchimpt.processes import ALONE

log = logging.getLogger(__name__)


class Share(NamedTuple):
    """Consecutive scenarios on one device: `[begin, end)`."""

    device: torch.device
    begin: int
    end: int


def shares(devices: Sequence[torch.device]) -> tuple[Share, ...]:
    """The shares of scenarios that lie on these devices, in their order."""
    runs = groupby(range(len(devices)), key=lambda k: devices[k])
    numbers = [(device, list(run)) for device, run in runs]
    return tuple(Share(device, run[0], run[-1] + 1) for device, run in numbers)


Found = TypeVar("Found")


def _on_each(parts: Sequence[Share], work: Callable[..., Found], inputs: Sequence[tuple[torch.Tensor, ...]]) -> list[Found]:
    """`work(share, *inputs)` of each, with the inputs sent to its device; GPUs first."""
    sent = [tuple(tensor.to(share.device) for tensor in own) for share, own in zip(parts, inputs, strict=True)]
    done: dict[int, Found] = {}
    for i in sorted(range(len(parts)), key=lambda i: parts[i].device.type == "cpu"):
        done[i] = work(parts[i], *sent[i])
    return [done[i] for i in range(len(parts))]


def gathered(parts: Sequence[Share], work: Callable[..., torch.Tensor], *inputs: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """`(n_scenarios, ...)` of all shares where the inputs are; `work(share, *inputs)` gives the share's, on its device, along `dim`."""
    found = _on_each(parts, work, [inputs] * len(parts))
    home = inputs[0].device
    return found[0].to(home) if len(found) == 1 else torch.cat([part.to(home) for part in found], dim=dim)


def contributions(
    parts: Sequence[Share], work: Callable[..., list[torch.Tensor]], residual: torch.Tensor, *inputs: torch.Tensor
) -> Iterator[torch.Tensor]:
    """What `work(share, residual[begin:end], *inputs)` gives, where the residual `(n_scenarios, n_voxels)` is, in the scenarios' order.

    Those of a share on another device are added up there, so that one vector moves.
    """
    found = _on_each(parts, work, [(residual[share.begin : share.end], *inputs) for share in parts])
    for own in found:
        yield from own if own[0].device == residual.device else [ALONE.sum(own).to(residual.device)]


@dataclass(frozen=True)
class Place:
    """A device, and how many bytes of tables and matrices it takes; None for as many as there are."""

    device: torch.device
    budget: float | None = None


class Placement:
    """Devices that scenarios are given to in their order, each until its budget is full.

    Decided for the first doses that are placed; what is added to a plan later lies beside what was there.

    Parameters
    ----------
    places
        The fastest first; the last one takes the rest, whatever its budget.
    size
        From the first scenario's operator to the bytes of a scenario, its tables and what else is stored of it, and to those that are
        needed once while that is made; the tables alone when left out.
    """

    def __init__(self, places: Sequence[Place], size: Callable[[Any], tuple[float, float]] = lambda first: (first.n_bytes, 0.0)) -> None:
        for place in places:
            if place.budget is not None and not place.budget >= 0:
                raise InputError(f"the budget of {place.device} must be zero or more bytes, got {place.budget:g}")
        self.places, self.size = tuple(places), size
        self._decided: list[torch.device] | None = None

    def devices(self, first: Any, count: int) -> list[torch.device]:
        """Where `count` scenarios lie that are as large as the first one, of which this is the operator."""
        if self._decided is None:
            self._decided = self._decide(*(self.size(first) if len(self.places) > 1 else (0.0, 0.0)), count)
        return self._decided

    def _decide(self, size: float, once: float, count: int) -> list[torch.device]:
        found: list[torch.device] = []
        for place in self.places[:-1]:
            room = count if place.budget is None or size <= 0 else max(0, int((place.budget - once) // size))
            found += [place.device] * min(room, count - len(found))
        found += [self.places[-1].device] * (count - len(found))
        if len(self.places) > 1:
            told = ", ".join(f"{found.count(device)} on {device}" for device in dict.fromkeys(found))
            log.info("%d scenarios of %.2f GB each: %s", count, size / 1e9, told)
        return found
