"""Which engine computes the doses of spots that stay: chosen by the memory at hand, and by whether matrices pay.

Matrices take time to build and make every iteration faster; the pair kernel needs neither time nor memory before it starts. So spots that
stay for a few iterations only, before they move, get no matrices. All others get them for as many scenarios as fit, in 16 bits where the
arithmetic allows it (`torchimpt.dose.packed`), and the pair kernel computes the scenarios that are left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from torchimpt.dose.influence import compressed_matrices, entry_counts, influence_matrices, memory_needed
from torchimpt.dose.linear import LinearDose, StoredDose
from torchimpt.dose.operator import DoseOperator
from torchimpt.dose.packed import ENTRY_BYTES, Transposed, each_column
from torchimpt.dose.scenarios import ENGINES, AutogradDoses, ScenarioDoses
from torchimpt.dose.shares import shares
from torchimpt.memory import available_memory

AUTO = "auto"
"""The engine's name in a case file that leaves the choice to `choose`."""

NAMES = (AUTO, *ENGINES)
"""What a case file may name."""

BUDGET = 1_500_000_000
"""Bytes that matrices may take unless a case says otherwise: with all else, a job then stays below 3 GB."""

PAYS_AFTER = 20
"""Iterations after which compressed matrices have paid for their building: `benchmarks/memory.py` measures 10 to 25."""


@dataclass(frozen=True)
class Choice:
    """An engine, for how many of the scenarios, and why.

    Attributes
    ----------
    engine
        A key of `ENGINES`.
    stored
        How many scenarios, the first ones, have matrices; the pair kernel computes the others.
    why
        A clause for logs and reports.
    """

    engine: str
    stored: int
    why: str

    def linear(self, doses: ScenarioDoses, position: torch.Tensor) -> LinearDose:
        """The linear map of spots that stay at `position` `(n_spots, 2)`."""
        if self.engine in ENGINES and self.stored in (0, len(doses)):
            return doses.at(position, self.engine)
        position, made = position.detach(), list[Any]()
        for share in shares([one.device for one in doses[: self.stored]]):
            own = doses[share.begin : share.end]
            made += compressed_matrices(own, position) if _storage(own[0]) == "compressed" else influence_matrices(own, position)
        return StoredDose([*made, *(Computed(one, position) for one in doses[self.stored :])], doses.team)


@dataclass(frozen=True)
class Computed:
    """One scenario's linear map by the pair kernel, in the place of a matrix; methods as those of `InfluenceMatrix`."""

    operator: DoseOperator
    position: torch.Tensor

    n_bytes = 0
    n_nonzeros = 0

    @property
    def device(self) -> torch.device:
        """Where it is computed."""
        return self.operator.device

    @property
    def T(self) -> Transposed:
        """The map from residuals to weights."""
        return Transposed(self)

    def __matmul__(self, x: torch.Tensor) -> torch.Tensor:
        """`A x` or `A X`."""
        return each_column(self.forward, x)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """`A w`."""
        return self.operator.dose(self.position, weight)

    def adjoint(self, residual: torch.Tensor) -> torch.Tensor:
        """`A^T r`."""
        return self.operator.gradient(residual, self.position, torch.zeros_like(self.position[:, 0]), move=False).weight

    def columns(self, spots: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        """`A[:, spots] change`: spots of weight zero cost nothing."""
        return self.forward(torch.zeros_like(self.position[:, 0]).index_copy(0, spots, change))


def choose(doses: ScenarioDoses, position: torch.Tensor, iterations: int, budget: int | None = None, used: int = 0) -> Choice:
    """The engine for spots that stay at `position` `(n_spots, 2)` for so many iterations at most.

    Parameters
    ----------
    budget
        Bytes that matrices may take; left out, `BUDGET`, or half of what is free where that is less.
    used
        Bytes of it that other matrices have taken.
    """
    tables = [t for t, *_ in doses[0].beams()]
    if isinstance(doses, AutogradDoses):
        return Choice("matrix_free", 0, "torch's gradient has no matrices")
    if not tables or any(t.entries is None for t in tables):
        return Choice("matrix_free", 0, "the dose model has no matrices")
    if iterations < PAYS_AFTER:
        return Choice("matrix_free", 0, f"{iterations} iterations where spots stand are too few for matrices to pay")
    n_nonzeros = int(entry_counts(doses[0], position.detach().cpu()).sum())
    stored, size, told = 0, 0, list[str]()
    for share in shares([one.device for one in doses]):
        own, free = doses[share.begin : share.end], available_memory(share.device)
        if share.device.type == "cpu":
            room = (min(BUDGET, free // 2 + used) if budget is None else budget) - used
        else:
            room = free  # which scenarios a GPU has was chosen by what their matrices take there
        each = _bytes(own[0], n_nonzeros)
        fits = min(len(own), max(0, room) // max(each, 1))
        stored, size = stored + fits, size + fits * each
        told += [_storage(own[0])] if fits else []
        if fits < len(own):
            break
    why = f"matrices of {stored} of {len(doses)} scenarios, about {size / 1e9:.2f} GB"
    if stored < len(doses):
        why += f"; all of them would take {len(doses) * _bytes(doses[0], n_nonzeros) / 1e9:.1f} GB, which dose.memory_gb may allow"
    return Choice(" and ".join(dict.fromkeys(told)) or "matrix_free", stored, why)


def _storage(operator: DoseOperator) -> str:
    """The engine of a scenario that has a matrix."""
    return "compressed" if operator.device.type == "cpu" and operator.tables[0].dtype == torch.float32 else "matrix"


def _bytes(operator: DoseOperator, n_nonzeros: int) -> int:
    """Of a scenario's matrix of so many entries, at most about."""
    if _storage(operator) == "compressed":
        return int(ENTRY_BYTES * n_nonzeros)
    return max(memory_needed(n_nonzeros, [operator]).values())
