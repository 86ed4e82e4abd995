"""Dose against the dense oracle: operators, back-ends, precisions, thread counts, and the layer that users call."""

import math

import pytest
import torch
from dose_oracle import MACHINES, SCENARIOS, blocks, cut_exponential, distance, norm_distance, operator, oracle_dose, two_beams

from torchimpt.checks import InputError
from torchimpt.dose.layer import PencilBeamDose
from torchimpt.geometry import Beam
from torchimpt.patient import ROI, Patient
from torchimpt.phantoms import water
from torchimpt.spots import Spots

PATIENT = blocks()
EVERY = torch.arange(PATIENT.grid.n_voxels)


@pytest.fixture
def threads():
    """Sets torch's thread count, and puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_oracle(machine, scenario):
    machine, scenario, spots = MACHINES[machine], SCENARIOS[scenario], two_beams()
    expected = oracle_dose(PATIENT, machine, spots, EVERY, scenario)(spots.position, spots.weight).detach()
    for backend in ("numba", "torch"):
        got = operator(PATIENT, machine, spots, EVERY, scenario, backend=backend).dose(spots.position, spots.weight)
        assert distance(got, expected) < 1e-10
    assert (expected > 0).any()


def test_one_pair_by_hand():
    """One spot, one voxel, the formula typed with scalars: 55 mm of water before the voxel, which lies off the axis."""
    machine = MACHINES["one"]
    patient = water(5.0, size=80.0)
    spots = Spots.from_columns([Beam(0.0, 0.0, (0.0, 0.0, 0.0))], [0], [90.0], [1.0], [-2.0], [7.0], dtype=torch.float64)
    point = torch.tensor([7.5, 12.5, -2.5], dtype=torch.float64)
    voxel = int((patient.grid.centers() - point).abs().sum(dim=1).argmin())
    x, y, z = patient.grid.centers(torch.tensor([voxel]))[0].tolist()
    m = (2000.0 + y) / 2000.0
    slant = math.sqrt(1 + (x / (2000 + y)) ** 2 + (z / (2000 + y)) ** 2)
    depth = (y + 40.0) * slant
    tables = machine.layers([90.0])
    j = int(depth / tables.depth_step[0])
    f = depth / float(tables.depth_step[0]) - j
    mix = lambda t: (1 - f) * float(t[j]) + f * float(t[j + 1])  # noqa: E731
    variance = float(tables.optics_variance[0, 0]) + mix(tables.variance[0, 0])
    r2 = (x - m * 1.0) ** 2 + (z + m * 2.0) ** 2
    shape = float(cut_exponential(torch.tensor(r2 / (2 * variance), dtype=torch.float64), 4.0))
    expected = 7.0 * mix(tables.idd[0]) * shape / (2 * math.pi * variance)
    got = operator(patient, machine, spots, torch.tensor([voxel])).dose(spots.position, spots.weight)
    assert float(got) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_single_precision(machine, backend):
    spots, single = two_beams(), two_beams(dtype=torch.float32)
    voxels = EVERY
    expected = oracle_dose(PATIENT, MACHINES[machine], spots, voxels)(spots.position, spots.weight).detach()
    got = operator(PATIENT, MACHINES[machine], single, voxels, backend=backend).dose(single.position, single.weight)
    assert got.dtype == torch.float32
    assert norm_distance(got, expected) < 1e-5
    wide = oracle_dose(PATIENT, MACHINES[machine], spots, voxels, cutoff=8.0)(spots.position, spots.weight).detach()
    got = operator(PATIENT, MACHINES[machine], single, voxels, backend=backend, cutoff=8.0).dose(single.position, single.weight)
    assert distance(got, wide) < 1e-5  # voxel by voxel, where no pair sits on the edge of the cut-off


@pytest.mark.parametrize("cutoff", [1.0, 2.5, 12.0])
def test_other_cutoffs(cutoff):
    spots = two_beams()
    expected = oracle_dose(PATIENT, MACHINES["halo"], spots, EVERY, cutoff=cutoff)(spots.position, spots.weight).detach()
    for backend in ("numba", "torch"):
        got = operator(PATIENT, MACHINES["halo"], spots, EVERY, cutoff=cutoff, backend=backend).dose(spots.position, spots.weight)
        assert distance(got, expected) < 1e-10


def test_some_voxels_in_any_order(generator):
    spots = two_beams()
    some = torch.randperm(PATIENT.grid.n_voxels, generator=generator)[:333]
    whole = operator(PATIENT, MACHINES["halo"], spots, EVERY).dose(spots.position, spots.weight)
    part = operator(PATIENT, MACHINES["halo"], spots, some).dose(spots.position, spots.weight)
    assert distance(part, whole[some]) < 1e-14


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_thread_count_changes_no_bit(threads, dtype, generator):
    spots = two_beams(100, dtype=dtype)
    op = operator(PATIENT, MACHINES["halo"], spots, EVERY)
    residual = torch.randn(len(EVERY), generator=generator, dtype=dtype)
    results = []
    for count in (1, 2):
        threads(count)
        results.append((op.dose(spots.position, spots.weight), *op.gradient(residual, spots.position, spots.weight)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_layer_on_the_whole_grid_and_on_voxels():
    mask = torch.zeros(PATIENT.grid.shape, dtype=torch.bool)
    mask[2:-2, 1:-1, 2:-2] = True
    patient = Patient(PATIENT.hu, PATIENT.grid, {"Body": ROI("Body", mask, "external")})
    machine, spots = MACHINES["halo"], two_beams()
    body = mask.flatten().nonzero().flatten()
    expected = 1.1 * oracle_dose(patient, machine, spots, body)(spots.position, spots.weight).detach()
    whole = PencilBeamDose(patient, machine, spots.beams)(spots)
    assert whole.shape == (patient.grid.n_voxels,)
    assert distance(whole[body].detach(), expected) < 1e-10
    assert not whole[~mask.flatten()].any()
    some = body[::7]
    assert distance(PencilBeamDose(patient, machine, spots.beams, voxels=some)(spots).detach(), expected[::7]) < 1e-10
    physical = PencilBeamDose(patient, machine, spots.beams, rbe=1.0, gradient="autograd")(spots)
    assert distance(1.1 * physical.detach(), whole.detach()) < 1e-12


def test_layer_follows_its_spots():
    """Tables are kept while the layers stay, and built anew for other layers, other beams, another dtype."""
    machine, spots = MACHINES["one"], two_beams()
    dose = PencilBeamDose(PATIENT, machine, spots.beams)
    first = dose.operator(spots)
    with torch.no_grad():
        spots.position += 1.0
    assert dose.operator(spots) is first
    moved = dose(spots).detach()
    assert distance(moved, 1.1 * oracle_dose(PATIENT, machine, spots, EVERY)(spots.position, spots.weight).detach()) < 1e-10
    fewer = spots.subset(spots.energy < 90)
    assert distance(dose(fewer).detach(), 1.1 * oracle_dose(PATIENT, machine, fewer, EVERY)(fewer.position, fewer.weight).detach()) < 1e-10
    assert dose(spots.float()).dtype == torch.float32


def test_beams_without_spots_and_spots_without_dose():
    machine, spots = MACHINES["halo"], two_beams()
    only = spots.subset(spots.beam == 1)
    expected = oracle_dose(PATIENT, machine, only, EVERY)(only.position, only.weight).detach()
    op = operator(PATIENT, machine, only, EVERY)
    assert distance(op.dose(only.position, only.weight), expected) < 1e-10
    away = only.position.detach() + 1e4
    assert not op.dose(away, only.weight).any()
    gradients = op.gradient(torch.ones(len(EVERY), dtype=torch.float64), away, only.weight)
    assert not any(g.any() for g in gradients)


def test_weights_of_zero_and_none_add_nothing():
    machine, spots = MACHINES["halo"], two_beams()
    op = operator(PATIENT, machine, spots, EVERY)
    off = torch.arange(spots.n_spots) % 3 == 0
    weight = torch.where(off, 0.0, spots.weight.detach())
    kept = spots.subset(~off)
    expected = operator(PATIENT, machine, kept, EVERY).dose(kept.position, kept.weight)
    assert distance(op.dose(spots.position, weight), expected) < 1e-13
    assert not op.dose(spots.position, torch.zeros_like(weight)).any()


def test_refusals():
    machine, spots = MACHINES["one"], two_beams()
    with pytest.raises(InputError, match="gradient must be one of analytic, autograd"):
        PencilBeamDose(PATIENT, machine, spots.beams, gradient="analytical")
    with pytest.raises(InputError, match="gantry and couch angles"):
        PencilBeamDose(PATIENT, machine, (Beam(10.0),))(spots)
    with pytest.raises(InputError, match="cutoff_sigma"):
        PencilBeamDose(PATIENT, machine, spots.beams, cutoff=0.0)(spots)
    with pytest.raises(InputError, match="rbe"):
        PencilBeamDose(PATIENT, machine, spots.beams, rbe=-1.0)(spots)
    with pytest.raises(InputError, match="backend must be one of"):
        PencilBeamDose(PATIENT, machine, spots.beams, backend="numbers")(spots)


@pytest.mark.cuda
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_cuda(machine, scenario, generator):
    machine, scenario, spots = MACHINES[machine], SCENARIOS[scenario], two_beams()
    residual = torch.randn(len(EVERY), generator=generator, dtype=torch.float64)
    here = operator(PATIENT, machine, spots, EVERY, scenario)
    there = operator(PATIENT, machine, spots, EVERY, scenario, device="cuda")
    moved = [t.detach().cuda() for t in (spots.position, spots.weight)]
    assert distance(there.dose(*moved).cpu(), here.dose(spots.position, spots.weight)) < 1e-10
    pairs = zip(there.gradient(residual.cuda(), *moved), here.gradient(residual, spots.position, spots.weight), strict=True)
    assert all(distance(a.cpu(), b) < 1e-10 for a, b in pairs)
