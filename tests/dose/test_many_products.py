"""Products with several vectors at once: a dense oracle, adjointness, and sums that no company changes."""

from __future__ import annotations

import pytest
import torch

from torchimpt.dose import csr
from torchimpt.dose.influence import InfluenceMatrix
from torchimpt.dose.model import SpotRows


@pytest.fixture(params=[torch.float32, torch.float64])
def matrix(request: pytest.FixtureRequest, generator: torch.Generator) -> tuple[InfluenceMatrix, torch.Tensor]:
    """A matrix with empty voxels, short and long columns, and the same dense."""
    n_voxels, counts = 300, [0, 1, 2, 13, 120, 77, 200, 5] * 4
    dense, rows = torch.zeros(n_voxels, len(counts), dtype=request.param), []
    for spot, count in enumerate(counts):
        voxels = torch.randperm(n_voxels - 40, generator=generator)[:count].sort().values
        dense[voxels, spot] = torch.rand(count, generator=generator, dtype=request.param)
        rows.append((voxels, dense[voxels, spot]))
    columns, values = (torch.cat([row[i] for row in rows]) for i in (0, 1))
    parts = SpotRows(torch.tensor(counts).numpy(), columns.int().numpy(), values.numpy())
    return InfluenceMatrix(*csr.both_ways([parts], tuple(dense.shape), request.param)), dense


@pytest.mark.parametrize("k", [1, 3, 4, 5, 8, 11])
def test_against_dense(matrix, k: int, generator: torch.Generator) -> None:
    stored, dense = matrix
    x, r = (torch.rand(n, k, generator=generator, dtype=dense.dtype) for n in (dense.shape[1], dense.shape[0]))
    rounding = 20 * torch.finfo(dense.dtype).eps  # of sums of at most 200 numbers below 1, relative to the largest sum
    for found, wanted in ((stored @ x, dense @ x), (stored.T @ r, dense.T @ r)):
        assert found.shape == wanted.shape
        assert (found - wanted).abs().max() <= rounding * wanted.abs().max()
    assert torch.equal(stored @ x[:, 0], stored.forward(x[:, 0]))


def test_no_column_depends_on_the_others(matrix, generator: torch.Generator) -> None:
    stored, dense = matrix
    x = torch.rand(dense.shape[1], 11, generator=generator, dtype=dense.dtype)
    together = stored @ x
    for k in (1, 4, 5, 8):
        assert torch.equal(stored @ x[:, :k].contiguous(), together[:, :k])
