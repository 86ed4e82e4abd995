"""Volumes on the page: unpacked as a browser does, they are what was packed."""

from __future__ import annotations

import base64
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from torchimpt.geometry import Grid
from torchimpt.report.slices import WINDOW
from torchimpt.report.volumes import Volumes, joined, most_telling, packed, start_point, volume_data, volumes_of


def unpacked(text, shape):
    differences = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(shape)
    return np.cumsum(differences, axis=-1, dtype=np.uint8)


def test_packing_keeps_every_byte():
    values = torch.randint(0, 256, (3, 5, 7), generator=torch.Generator().manual_seed(1), dtype=torch.uint8).numpy()
    assert np.array_equal(unpacked(packed(values), (3, 5, 7)), values)


def test_doses_masks_and_ct_come_back(report_data):
    doses = {"nominal": report_data.dose, "x+3mm": report_data.dose.roll(1, 2)}
    rois = list(report_data.patient.rois)
    volumes = volumes_of(report_data.patient, doses, rois)
    data, parts = volume_data(volumes, (8.0, 2.0, -2.0))
    shape = tuple(data["shape"])
    for number, dose in enumerate(volumes.doses.values()):
        level = torch.from_numpy(unpacked(parts[data["doses"][number]["id"]], shape).astype(np.float32)) * data["step"]
        assert float((level - dose).abs().max()) <= 0.501 * data["step"], "half a level, and rounding"
    byte = unpacked(parts["volume-rois-0"], shape)
    for bit, roi in enumerate(rois):
        assert np.array_equal(byte >> bit & 1 == 1, volumes.masks[roi].numpy())
    grey = unpacked(parts["volume-ct"], shape)
    assert np.all(grey == round(255 * -WINDOW[0] / (WINDOW[1] - WINDOW[0]))), "water, 0 HU, all over"
    centre = [o + s * i for o, s, i in zip(data["origin"], data["spacing"], data["start"], strict=True)]
    assert np.allclose(centre, (8.0, 2.0, -2.0), atol=2.0), "the voxel of the point, 4 mm wide"
    assert data["most"] == pytest.approx(float((doses["x+3mm"] - doses["nominal"]).abs().max()))


def test_the_box_is_that_of_body_and_dose(report_data):
    body = torch.zeros(report_data.patient.grid.shape, dtype=torch.bool)
    body[6:10, 8:12, 7:9] = True
    rois = {"Body": replace(report_data.patient.rois["Body"], mask=body)}
    volumes = volumes_of(replace(report_data.patient, rois=rois), {"nominal": torch.zeros(body.shape)}, [])
    assert volumes.grid.shape == (8, 8, 6) and volumes.grid.origin == (-42.0 + 4 * 5, -38.0 + 4 * 6, -34.0 + 4 * 4)


def test_joined_voxels_lie_where_they_were():
    """The mean over a block, in its middle."""
    grid = Grid((2, 4, 6), (1.0, 2.0, 3.0), (10.0, 20.0, 30.0))
    values = torch.arange(48, dtype=torch.float32).reshape(grid.shape)
    mask = torch.zeros(grid.shape, dtype=torch.bool)
    mask[:, :2, :1] = True
    one = joined(Volumes(grid, values, {"nominal": values}, {"PTV": mask}), (1, 2, 2))
    assert one.grid == Grid((2, 2, 3), (2.0, 4.0, 3.0), (10.5, 21.0, 30.0))
    assert one.doses["nominal"][0, 0, 0] == values[0, :2, :2].mean()
    assert one.masks["PTV"].nonzero().tolist() == [[0, 0, 0], [1, 0, 0]], "half of a block is inside"


def test_voxels_are_joined_until_the_volumes_fit():
    """Noise packs badly: 130 kB a volume; a quarter of it fits, and says so."""
    grid = Grid((24, 80, 64), (1.0, 1.0, 2.0), (0.0, 0.0, 0.0))
    noise = 60 * torch.rand(grid.shape, generator=torch.Generator().manual_seed(2))
    volumes = Volumes(grid, noise, {"nominal": noise, "x+3mm": noise.flip(0)}, {})
    whole, parts = volume_data(volumes, (0.0, 0.0, 0.0))
    assert not whole["joined"] and sum(map(len, parts.values())) > 300_000
    data, parts = volume_data(volumes, (0.0, 0.0, 0.0), budget=200_000)
    assert sum(map(len, parts.values())) <= 200_000 and data["joined"] and data["spacing"] == (2.0, 2.0, 2.0)
    few, parts = volume_data(volumes, (0.0, 0.0, 0.0), budget=1)
    assert min(few["shape"][1:]) >= 20 and sum(map(len, parts.values())) > 1, "as few voxels as are still a picture"


def test_which_scenarios_are_shown():
    names = ["nominal", *(f"s{k}" for k in range(20))]
    assert most_telling(names, ["s15", "nominal", "s15", "gone"], limit=4) == ["nominal", "s0", "s1", "s15"]
    assert most_telling(names[:3], []) == names[:3]


def test_slices_begin_at_the_targets_or_the_highest_dose(report_data):
    assert start_point(report_data.patient, report_data.dose, ["PTV <1>"]) == report_data.patient.centroid("PTV <1>")
    peak = torch.zeros(report_data.patient.grid.shape)
    peak[3, 4, 5] = 1.0
    assert start_point(report_data.patient, peak, ["Empty"]) == (-42.0 + 4 * 5, -38.0 + 4 * 4, -34.0 + 4 * 3)
