"""Scenarios shared out among processes: which are this process's own, and what is told about them to the others.

Every process runs the same solver on the same numbers. Doses are each one's own: rows of arrays `(n_scenarios, ...)` are those of its
scenarios, a block in the scenarios' order. What crosses between processes is one number or a few of each scenario, and vectors of the size
of the weights or of one dose, added up one scenario after the other: the sums of one process, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

Rows = TypeVar("Rows")


class Team:
    """The processes of one plan; this class is a single process with all scenarios, `ALONE`.

    Attributes
    ----------
    rank, size
        This process's number, from 0, and how many there are.
    local_rank, local_size
        The same among those on this machine.
    """

    rank = 0
    size = 1
    local_rank = 0
    local_size = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes, logs and tells; it has the first scenario, too."""
        return self.rank == 0

    @property
    def traffic(self) -> tuple[int, float]:
        """Bytes that this process has exchanged with others, and the seconds that it took, waiting included."""
        return 0, 0.0

    def share(self, n_scenarios: int) -> Team:
        """The team with so many scenarios shared out."""
        return self

    def own(self, rows: Rows) -> Rows:
        """Of what there is of each scenario, a tensor or a sequence, that of this process's scenarios."""
        return rows

    def count(self, own: int) -> int:
        """How many scenarios all processes have, where this one has `own`."""
        return own

    def each(self, numbers: Tensor) -> Tensor:
        """`(size, n)`: the numbers `(n,)` of every process, on every process."""
        return numbers.unsqueeze(0)

    def gather(self, values: Tensor) -> Tensor:
        """`(n_scenarios, ...)` of `(n_own, ...)`, on every process: for a few numbers of each scenario."""
        return values

    def collect(self, rows: Tensor) -> Tensor:
        """`(n_scenarios, n)` of `(n_own, n)` on the process that leads; elsewhere the rows as they are."""
        return rows

    def sum(self, rows: Iterable[Tensor]) -> Tensor:
        """The sum over all scenarios of one tensor each, added up in the scenarios' order, on every process."""
        total: Tensor | None = None
        for row in rows:
            total = row.clone(memory_format=torch.contiguous_format) if total is None else total.add_(row)
        assert total is not None  # no process is without a scenario
        return total

    def largest(self, values: Tensor) -> Tensor:
        """The maximum over processes, entry by entry, on every process."""
        return values

    def of(self, scenario: int, make: Callable[[], Tensor], like: Tensor) -> Tensor:
        """What the process that has the scenario makes, on every process; `like` has its shape, dtype and device."""
        return make()

    def agree(self, what: dict[str, Any]) -> None:
        """Wait for the others, and raise where one of them has something else under a name than this process."""


ALONE = Team()
