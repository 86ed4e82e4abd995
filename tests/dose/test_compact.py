"""Compacted rows: which voxels they have and where, and that what is left out of a gradient has no part in it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dose_oracle import MACHINES, blocks, distance, operator, two_beams

from torchimpt.dose.pencil_beam.compact import BLOCK, compact, row_reach, whole_blocks

PATIENT, SPOTS = blocks(), two_beams()
EVERY = torch.arange(PATIENT.grid.n_voxels)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_compacted_row_is_its_voxels_with_a_scale_in_their_order(share):
    random = np.random.default_rng(1)
    n = 77
    row = random.uniform(0.5, 2.0, (5, n))
    row[3] *= random.permutation(n) < share * n
    packed, at, before = np.full((5, n + BLOCK), np.nan), np.empty(n + 1, np.uint32), np.empty(n + 1, np.uint32)
    count, least = compact(packed, at, before, *row, 0.0)
    kept = np.flatnonzero(row[3])
    assert count == len(kept) and np.array_equal(at[:count], kept)
    assert np.array_equal(packed[:, :count], row[:, kept]) and not packed[:, count : count + BLOCK].any()
    assert np.array_equal(before, np.searchsorted(kept, np.arange(n + 1)))
    assert least == (row[4, kept].min() if count else 0.0)


def test_runs_end_with_a_block_and_reaches_with_the_widest_spot_of_the_row():
    assert [whole_blocks(5, 5 + n, BLOCK) - 5 for n in (1, BLOCK, BLOCK + 1)] == [BLOCK, BLOCK, 2 * BLOCK]
    # 4 sigmas of a sigma of 3 mm, where the layer's widest spot is one of 5 mm
    assert row_reach(20.0, 8.0, 1.0 / (2.0 * 3.0**2)) == pytest.approx(12.0, rel=2e-5)
    assert row_reach(20.0, 8.0, 1.0 / (2.0 * 6.0**2)) == 20.0


@pytest.mark.parametrize("machine", ["one", "halo"])
@pytest.mark.parametrize("move", [True, False])
def test_gradients_of_a_residual_that_is_mostly_zero(machine, move):
    """Voxels without residual are left out of the rows: the reference has them all."""
    fast, plain = (operator(PATIENT, MACHINES[machine], SPOTS, EVERY, backend=backend) for backend in ("numba", "torch"))
    residual = torch.linspace(-40.0, 40.0, len(EVERY), dtype=torch.float64).sin() * (EVERY % 7 == 0)
    position, weight = SPOTS.position.detach(), SPOTS.weight.detach()
    for found, expected in zip(
        fast.gradient(residual, position, weight, move), plain.gradient(residual, position, weight, move), strict=True
    ):
        assert (found is None) == (expected is None) and (found is None or distance(found, expected) < 1e-12)
    nothing = fast.gradient(torch.zeros_like(residual), position, weight)
    assert not nothing.weight.any() and not nothing.position.any()
