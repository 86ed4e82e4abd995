"""The noise in a difference of doses."""

from __future__ import annotations

import pytest
import torch

from torchimpt.evaluate.noise import noise

SHAPE = (30, 28, 26)
EVERYWHERE = torch.ones(SHAPE, dtype=torch.bool)


def test_a_difference_that_changes_linearly_has_none():
    z, y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in SHAPE), indexing="ij")
    assert noise(3.0 + 0.5 * x - 0.2 * y + z, EVERYWHERE) < 1e-9


@pytest.mark.parametrize("alike", [None, 0, 1, 2])
def test_noise_of_voxels_and_of_rows(alike, generator):
    """Each voxel's own, or the same all along an axis, as that of protons which cross a row: the standard deviation comes back."""
    shape = tuple(1 if axis == alike else n for axis, n in enumerate(SHAPE))
    values = 2.0 * torch.randn(shape, dtype=torch.float64, generator=generator).expand(SHAPE)
    # 700 rows at least: 4 % is 1.5 standard deviations of what comes back; the largest of three axes is on the high side
    assert noise(values + 5.0, EVERYWHERE) == pytest.approx(2.0, rel=0.08)


def test_only_what_is_looked_at_counts(generator):
    values = torch.randn(SHAPE, dtype=torch.float64, generator=generator)
    half = EVERYWHERE.clone()
    half[:, :, 13:] = False
    values[~half] *= 1e3
    assert noise(values, half) == pytest.approx(1.0, rel=0.08)
    lonely = torch.zeros(SHAPE, dtype=torch.bool)
    lonely[::2, ::2, ::2] = True
    assert noise(values, lonely) == 0.0
    assert noise(values[:2, :1, :2], EVERYWHERE[:2, :1, :2]) == 0.0
