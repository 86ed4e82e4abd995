"""Linear maps from weights to doses, for spots that stay: what all of them can do, and products with one stored matrix a scenario."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from torchimpt.dose.shares import Share, contributions, gathered, shares
from torchimpt.processes import ALONE, Team


class LinearDose(Protocol):
    """Linear map between weights `(n_spots,)` and the scenarios' doses `(n_scenarios, n_voxels)`."""

    n_bytes: int
    n_nonzeros: int

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """`D^k = A^k w` for every scenario."""
        ...

    def adjoint(self, residual: torch.Tensor) -> torch.Tensor:
        """`sum_k A^k' r^k`."""
        ...

    def columns(self, spots: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        """`A^k[:, spots] change` for every scenario, at a cost in proportion to their number."""
        ...

    def release(self) -> None:
        """Give the matrices' memory back: no product after that; `n_bytes` and `n_nonzeros` still tell what there was."""
        ...


class Matrix(Protocol):
    """One scenario's linear map, as `InfluenceMatrix` has it."""

    @property
    def device(self) -> torch.device:
        """Where it is."""
        ...

    @property
    def n_bytes(self) -> int:
        """Memory."""
        ...

    @property
    def n_nonzeros(self) -> int:
        """Stored entries."""
        ...

    @property
    def T(self) -> Any:
        """The map from residuals to weights, for products `@`."""
        ...

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """`A w`."""
        ...

    def adjoint(self, residual: torch.Tensor) -> torch.Tensor:
        """`A^T r`."""
        ...

    def columns(self, spots: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        """`A[:, spots] change`."""
        ...

    def __matmul__(self, x: torch.Tensor) -> torch.Tensor:
        """`A X` `(n_voxels, k)` for `X` `(n_spots, k)`."""
        ...


class StoredDose:
    """Products with one influence matrix per scenario, of this process's scenarios."""

    def __init__(self, matrices: Sequence[Matrix], team: Team = ALONE) -> None:
        self.matrices, self.team = tuple(matrices), team
        self.n_bytes = sum(matrix.n_bytes for matrix in self.matrices)
        self.n_nonzeros = sum(matrix.n_nonzeros for matrix in self.matrices)
        self._shares = shares([matrix.device for matrix in self.matrices])

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """`D^k = A^k w` for every scenario."""
        return gathered(self._shares, lambda share, w: torch.stack([matrix.forward(w) for matrix in self._of(share)]), weight)

    def adjoint(self, residual: torch.Tensor) -> torch.Tensor:
        """`sum_k A^k' r^k`."""
        return self.team.sum(contributions(self._shares, self._adjoints, residual))

    def forward_many(self, weights: torch.Tensor) -> torch.Tensor:
        """`(k, n_scenarios, n_voxels)` of `k` vectors of weights `(k, n_spots)`: as `forward` of each, but for rounding."""
        return gathered(
            self._shares, lambda share, w: torch.stack([(m @ w.T).T.contiguous() for m in self._of(share)], dim=1), weights, dim=1
        )  # fmt: skip

    def adjoint_many(self, residuals: torch.Tensor) -> torch.Tensor:
        """`(k, n_spots)` of `k` residuals `(k, n_scenarios, n_voxels)`."""
        rows = residuals.transpose(0, 1)
        work = lambda share, r: [matrix.T @ row.T for matrix, row in zip(self._of(share), r, strict=True)]  # noqa: E731
        return self.team.sum(contributions(self._shares, work, rows)).T.contiguous()

    def columns(self, spots: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        """`A^k[:, spots] change` for every scenario."""
        return gathered(self._shares, lambda share, *some: torch.stack([m.columns(*some) for m in self._of(share)]), spots, change)

    def _of(self, share: Share) -> tuple[Matrix, ...]:
        return self.matrices[share.begin : share.end]

    def _adjoints(self, share: Share, residual: torch.Tensor) -> list[torch.Tensor]:
        return [matrix.adjoint(row) for matrix, row in zip(self._of(share), residual, strict=True)]

    def release(self) -> None:
        """Give the memory back."""
        self.matrices = ()
