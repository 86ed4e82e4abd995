"""Parts of a dose operator: some of its spots, and the size of a spot at its peak."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from dose_oracle import MACHINES, SCENARIOS, blocks, distance, gantry_frame, operator, two_beams

from torchimpt.geometry import Beam
from torchimpt.phantoms import water
from torchimpt.physics.stopping import relative_stopping_power
from torchimpt.physics.wepl import wepl
from torchimpt.spots import Spots

PATIENT = blocks()
EVERY = torch.arange(PATIENT.grid.n_voxels)
SPOTS = two_beams()
FIRST = int((SPOTS.beam == 0).sum())

PARTS = {
    "some": torch.arange(1, 24, 3),
    "one": torch.tensor([17]),
    "first and last": torch.tensor([0, 23]),
    "first beam": torch.arange(FIRST),
    "second beam": torch.arange(FIRST, 24),
    "all but one layer": (SPOTS.layer != 2).nonzero().flatten(),
    "none": torch.arange(0),
}


@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize("part", PARTS)
def test_a_subset_is_those_columns_of_the_whole(part, backend):
    index = PARTS[part]
    whole = operator(PATIENT, MACHINES["halo"], SPOTS, EVERY, SCENARIOS["both"], backend=backend)
    few = whole.subset(index)
    position, weight = SPOTS.position.detach(), SPOTS.weight.detach()
    assert few.n_spots == len(index) and few.n_voxels == whole.n_voxels and few.scenario is whole.scenario
    assert all(a is b for a, b in zip(few.tables, whole.tables, strict=True))  # nothing is traced again
    scattered = torch.zeros_like(weight).index_copy(0, index, weight[index])
    expected = whole.dose(position, scattered)
    found = few.dose(position[index], weight[index])
    assert float((found - expected).abs().max()) <= 1e-14 * float(expected.max())
    residual = torch.linspace(-1.0, 1.0, len(EVERY), dtype=torch.float64).sin()
    for got, right in zip(few.gradient(residual, position[index], weight[index]), whole.gradient(residual, position, weight), strict=True):
        assert got.shape == right[index].shape
        assert len(index) == 0 or distance(got, right[index]) < 1e-13
    assert torch.equal(few.spot_sigma(), whole.spot_sigma()[index])


def test_columns_one_by_one():
    whole = operator(PATIENT, MACHINES["one"], SPOTS, EVERY)
    for k in range(SPOTS.n_spots):
        one = torch.zeros(SPOTS.n_spots, dtype=torch.float64)
        one[k] = 1.0
        found = whole.subset(torch.tensor([k])).dose(SPOTS.position[k : k + 1], torch.ones(1, dtype=torch.float64))
        assert torch.equal(found, whole.dose(SPOTS.position, one)) and bool(found.any())


def test_a_subset_of_a_subset():
    whole = operator(PATIENT, MACHINES["one"], SPOTS, EVERY)
    assert whole.subset(torch.arange(24)) is whole
    first, then = torch.arange(0, 24, 2), torch.tensor([1, 5, 6, 11])
    twice, once = whole.subset(first).subset(then), whole.subset(first[then])
    position, weight = SPOTS.position[first[then]], SPOTS.weight[first[then]]
    assert torch.equal(twice.dose(position, weight), once.dose(position, weight)) and twice.spans == once.spans


def test_round_spots_share_one_ratio_of_the_axes():
    """They take no more memory than before there were others; elliptic ones have a ratio in every layer and component."""
    for name, shape in (("halo", (1, 1)), ("elliptic", None)):
        for tables in operator(PATIENT, MACHINES[name], SPOTS, EVERY).tables:
            assert tables.ratio.shape[:2] == (shape or tables.amplitude.shape[:2])
            assert tables.ratio_min <= float(tables.ratio.min())


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("scenario", ["nominal", "both"])
def test_spot_sigma_is_that_of_the_voxel_with_the_most_dose(machine, scenario):
    """From the machine's curves, voxel by voxel, as the dose oracle reads them."""
    machine, scenario = MACHINES[machine], SCENARIOS[scenario]
    found = operator(PATIENT, machine, SPOTS, EVERY, scenario).spot_sigma()
    rsp, points = relative_stopping_power(PATIENT, machine), PATIENT.grid.centers(EVERY)
    for layer in range(SPOTS.n_layers):
        beam = SPOTS.beams[int(SPOTS.layer_beam[layer])]
        _, _, zg = gantry_frame(points, beam, scenario.shift)
        z = (scenario.range_scale * wepl(rsp, PATIENT.grid, beam, machine.sad, points, scenario.shift)).numpy()
        tables = machine.layers(SPOTS.layer_energy[layer : layer + 1])
        depth = float(tables.depth_step[0]) * np.arange(tables.idd.shape[1])
        at = tables.optics_start + tables.optics_step * np.arange(tables.optics_variance.shape[1])
        variance = np.interp(zg.numpy(), at, tables.optics_variance[0].numpy()) + np.interp(z, depth, tables.variance[0, 0].numpy())
        share = np.interp(z, depth, tables.fraction[0, 0].numpy())
        added = 0.0 if tables.round else np.interp(zg.numpy(), at, (tables.optics_variance_y - tables.optics_variance)[0].numpy())
        k = int(np.argmax(np.interp(z, depth, tables.idd[0].numpy(), right=0.0) * share / np.sqrt(variance * (variance + added))))
        expected = math.sqrt(variance[k]) * machine.sad[0] / (machine.sad[0] - float(zg[k]))
        own = found[SPOTS.layer == layer]
        assert torch.equal(own, own[:1].expand_as(own)) and float(own[0]) == pytest.approx(expected, rel=1e-9)


def test_spot_sigma_at_the_bragg_peak_in_water():
    """In water of fine voxels: optics and scatter at the peak's depth, seen from the source."""
    machine, size = MACHINES["one"], 160.0
    patient = water(2.0, size=size)
    voxels = ((patient.grid.centers()[:, [0, 2]].abs() < 5).all(dim=1)).nonzero().flatten()
    energies = [120.0, 100.0, 80.0]
    spots = Spots.from_columns([Beam(0.0, 0.0, (0.0, 0.0, 0.0))], [0] * 4, [*energies, 80.0], [0.0] * 4, [0.0] * 4, [1.0] * 4)
    sigma = operator(patient, machine, spots, voxels).spot_sigma()
    assert sigma.dtype == torch.float64 and float(sigma[2]) == float(sigma[3])
    for k, energy in enumerate(energies):
        peak, tables = float(machine.peak_depth(energy)), machine.layers([energy])
        zg = 0.5 * size - peak
        at = tables.optics_start + tables.optics_step * np.arange(tables.optics_variance.shape[1])
        depth = float(tables.depth_step[0]) * np.arange(tables.variance.shape[2])
        variance = np.interp(zg, at, tables.optics_variance[0].numpy()) + np.interp(peak, depth, tables.variance[0, 0].numpy())
        assert float(sigma[k]) == pytest.approx(math.sqrt(variance) * machine.sad[0] / (machine.sad[0] - zg), rel=0.01)
    assert len({round(float(s), 2) for s in sigma}) == 3


def test_a_beam_that_reaches_no_voxel_has_a_size_too():
    """All voxels lie behind the second beam's range: no table, no dose, no gradient, and a size that scales nothing."""
    patient = water(5.0, size=120.0)
    beams = (Beam(0.0, 0.0, (0.0, 0.0, 0.0)), Beam(180.0, 0.0, (0.0, 0.0, 0.0)))
    spots = Spots.from_columns(beams, [0, 1, 1], [80.0, 72.0, 70.0], [0.0] * 3, [0.0] * 3, [1.0] * 3, dtype=torch.float64)
    y = patient.grid.centers()[:, 1]
    near = (y < -40).nonzero().flatten()  # the first beam's side
    op = operator(patient, MACHINES["one"], spots, near)
    assert op.tables[1].empty
    sigma = op.spot_sigma()
    assert float(sigma[0]) > 2 and sigma[1:].tolist() == [1.0, 1.0]
    assert bool(op.dose(spots.position, torch.tensor([1.0, 0, 0]).double()).any())
    assert not op.dose(spots.position, torch.tensor([0, 1.0, 1.0]).double()).any()
    weight, position = op.gradient(torch.ones(len(near), dtype=torch.float64), spots.position, spots.weight)
    assert not weight[1:].any() and not position[1:].any()
    assert torch.equal(op.subset(torch.tensor([0, 2])).spot_sigma(), sigma[[0, 2]])
