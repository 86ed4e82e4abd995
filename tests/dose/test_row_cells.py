"""Cells of BEV rows: what a run from them holds, against a look at every voxel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from torchimpt.dose.inlines import row_turns, run
from torchimpt.dose.rows import CELL_WIDTH, ROW_HEIGHT, row_cells


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(5))
def test_runs_hold_every_voxel_in_reach_and_little_more(dtype, seed):
    random = np.random.default_rng(seed)
    count = [0, 1, 40, 0, 200, 7]
    p = torch.from_numpy(np.concatenate([np.sort(random.uniform(-60.0, 55.0, n)) for n in count])).to(dtype)
    row_start = torch.from_numpy(np.cumsum([0, *count]))
    left, cells = row_cells(p, row_start)
    assert torch.equal(cells[:, 0], row_start[:-1]) and torch.equal(cells[:, -1], row_start[1:])
    assert bool((cells.diff(dim=1) >= 0).all())
    for _ in range(200):
        x, y, reach = random.uniform(-90, 90), random.uniform(-10, 35), random.uniform(0.1, 40)
        for row, n in enumerate(count):
            low, high = run(cells.numpy(), left, CELL_WIDTH, 0.0, ROW_HEIGHT, 1.0, row, x, y, reach)
            gap = max(0.0, row * ROW_HEIGHT - y, y - (row + 1) * ROW_HEIGHT)
            half = math.sqrt(max(0.0, reach**2 - gap**2))
            own = p[row_start[row] : row_start[row] + n].double().numpy()
            inside = row_start[row].item() + np.flatnonzero(np.abs(own - x) < half)
            assert not len(inside) or (low <= inside[0] and inside[-1] < high)
            taken = own[low - row_start[row].item() : high - row_start[row].item()] if high > low else own[:0]
            assert np.all(np.abs(taken - x) < half + 1.001 * CELL_WIDTH)


def test_no_voxels_have_no_cells_to_look_into():
    left, cells = row_cells(torch.empty(0), torch.zeros(4, dtype=torch.int64))
    assert left == 0.0 and cells.tolist() == [[0, 0]] * 3


@pytest.mark.parametrize("n_rows", [0, 1, 15, 16, 47, 300])
def test_turns_are_all_rows_and_each_share_has_some_from_everywhere(n_rows):
    turns = row_turns(n_rows)
    assert sorted(turns.tolist()) == list(range(n_rows))
    for threads in (2, 4):
        for share in np.array_split(turns, threads) if n_rows > 40 else ():
            assert abs(share.mean() - (n_rows - 1) / 2) < 0.1 * n_rows  # contiguous rows would be a quarter of them off, or more
