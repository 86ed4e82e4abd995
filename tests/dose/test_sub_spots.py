"""Sub-spots against a dense oracle of their formula, against the default dose where both must agree, and their gradients."""

import math

import numpy as np
import pytest
import torch
from dose_oracle import MACHINES, SCENARIOS, blocks, cut_exponential, distance, gantry_frame, operator, two_beams

from torchimpt.checks import InputError
from torchimpt.dose.autograd import SpotDose
from torchimpt.dose.influence import influence_matrices
from torchimpt.dose.layer import PencilBeamDose
from torchimpt.geometry import Beam, from_bev
from torchimpt.phantoms import step, water
from torchimpt.physics.stopping import relative_stopping_power
from torchimpt.physics.wepl import wepl
from torchimpt.scenarios import NOMINAL
from torchimpt.spots import Spots

PATIENT = blocks()
EVERY = torch.arange(PATIENT.grid.n_voxels)


def oracle(patient, machine, spots, scenario, cutoff, lattices):
    """`dose(position, weight)`: the module's formula ray by ray; only the places of the rays and of their samples are given."""
    rsp, points = relative_stopping_power(patient, machine), patient.grid.centers()
    parts = []
    for number, rays in lattices.items():
        beam, layers = spots.beams[number], (spots.layer_beam == number).nonzero().flatten().tolist()
        tables = machine.layers(spots.layer_energy[layers])
        u, v, zg = gantry_frame(points, beam, scenario.shift)
        m = [(sad - zg) / sad for sad in machine.sad]
        z_ray = np.arange(rays.top, float(zg.min()) - 2.0, -1.0)
        m_ray = [torch.from_numpy((sad - z_ray) / sad) for sad in machine.sad]
        grid_y, grid_x = torch.meshgrid(rays.y, rays.x, indexing="ij")
        for row, layer in enumerate(layers):
            at = lambda y, a, s=tables.depth_step[row], **k: torch.from_numpy(np.interp(a, float(s) * np.arange(len(y)), y.numpy(), **k))  # noqa: E731
            n_optics = tables.optics_variance.shape[1]
            air = np.interp(zg.numpy(), tables.optics_start + tables.optics_step * np.arange(n_optics), tables.optics_variance[row].numpy())
            spread = 0.5 * float((torch.from_numpy(air) / m[0] ** 2).min())
            mine = spots.layer == layer
            home = torch.cdist(spots.position[mine].detach(), torch.stack((grid_x, grid_y), dim=2).reshape(-1, 2)).amin(dim=0)
            near = (home < cutoff * math.sqrt(spread) + 1.0).reshape(grid_x.shape)
            kernels = []
            for x, y in zip(grid_x[near].tolist(), grid_y[near].tolist(), strict=True):
                line = torch.stack((x * m_ray[0], y * m_ray[1], torch.from_numpy(z_ray)), dim=1)
                line = from_bev(line, beam, scenario.shift)
                path = scenario.range_scale * wepl(rsp, patient.grid, beam, machine.sad, line, scenario.shift)
                z = np.interp(-zg.numpy(), -z_ray, path.numpy())
                r2, total = (u - m[0] * x) ** 2 + (v - m[1] * y) ** 2, 0.0
                for k in range(tables.n_components):
                    s2 = torch.from_numpy(air) - m[0] ** 2 * spread + at(tables.variance[k, row], z)
                    amplitude = at(tables.idd[row], z, right=0.0) * at(tables.fraction[k, row], z) / (2 * math.pi * s2)
                    total = total + amplitude * cut_exponential(r2 / (2 * s2), cutoff)
                kernels.append(total)
            parts.append((mine, grid_x[near], grid_y[near], rays.pitch, spread, torch.stack(kernels)))

    def dose(position, weight):
        total = 0.0
        for mine, x, y, pitch, spread, kernels in parts:
            r2 = (x - position[mine, 0, None]) ** 2 + (y - position[mine, 1, None]) ** 2
            share = pitch**2 * cut_exponential(r2 / (2 * spread), cutoff) / (2 * math.pi * spread)
            total = total + weight[mine] @ share @ kernels
        return total

    return dose


def misfit(dose):
    """A curved objective."""
    return ((dose - 0.02) ** 2).sum()


@pytest.mark.parametrize(("machine", "scenario"), [("one", "nominal"), ("halo", "both"), ("two sources", "shift"), ("halo", "range")])
def test_oracle_and_its_gradient(machine, scenario):
    machine, scenario, spots = MACHINES[machine], SCENARIOS[scenario], two_beams(2)
    op = operator(PATIENT, machine, spots, EVERY, scenario, model="sub_spots")
    right = oracle(PATIENT, machine, spots, scenario, 4.0, dict(enumerate(t.rays for t in op.tables)))
    found = []
    for function in (lambda p, w: SpotDose.apply(p, w, op), right):
        position, weight = (t.detach().clone().requires_grad_() for t in (spots.position, spots.weight))
        dose = function(position, weight)
        found.append((dose.detach(), *torch.autograd.grad(misfit(dose), (position, weight))))
    assert all(distance(a, b) < 1e-10 for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("machine", ["one", "halo", "two sources"])
def test_same_dose_in_water(machine):
    """Without lateral steps sub-spots change nothing, but for what the second truncation and the anisotropy of unequal sources do."""
    patient, spots = water(3.0, size=90.0), two_beams(12)
    voxels = torch.arange(patient.grid.n_voxels)
    spots = Spots.from_columns(
        [Beam(0.0, 0.0, (0.0, 0.0, 0.0))], [0] * 12, spots.energy, *(0.4 * spots.position.detach()).T, spots.weight, dtype=torch.float64
    )
    expected = operator(patient, MACHINES[machine], spots, voxels, cutoff=7.0).dose(spots.position, spots.weight)
    got = operator(patient, MACHINES[machine], spots, voxels, cutoff=7.0, model="sub_spots").dose(spots.position, spots.weight)
    assert distance(got, expected) < (2e-3 if machine == "two sources" else 3e-4)


def test_other_dose_behind_a_lateral_step():
    """Behind the step the protons that scattered across it late have the range of the side they came from."""
    patient = step(3.0, size=(75.0, 120.0, 75.0), hu=-700.0, depth=(6.0, 36.0))
    spots = Spots.from_columns([Beam(0.0, 0.0, (0.0, 0.0, 0.0))], [0], [100.0], [-8.0], [0.0], [1.0], dtype=torch.float64)
    with torch.no_grad():
        own, sub = (PencilBeamDose(patient, MACHINES["one"], spots.beams, model=m)(spots) for m in ("pencil_beam", "sub_spots"))
    depth = patient.grid.centers()[:, 1]
    mean = [float((d * depth).sum() / d.sum()) for d in (own, sub)]
    assert mean[1] < mean[0] - 0.1
    assert float(sub.sum()) == pytest.approx(float(own.sum()), rel=0.01)


def test_single_precision_threads_and_adjoint(generator):
    spots, single = two_beams(10), two_beams(10, dtype=torch.float32)
    op, short = (operator(PATIENT, MACHINES["halo"], s, EVERY, model="sub_spots") for s in (spots, single))
    residual = torch.randn(len(EVERY), generator=generator, dtype=torch.float64)
    spots.weight.requires_grad_(False)
    dose, back = op.dose(spots.position, spots.weight), op.gradient(residual, spots.position, spots.weight)[0]
    assert abs(float((dose @ residual - spots.weight @ back) / (dose @ residual))) < 1e-12
    again, before = short.dose(single.position, single.weight), torch.get_num_threads()
    assert float((again.double() - dose).norm() / dose.norm()) < 1e-5
    try:
        torch.set_num_threads(1)
        assert torch.equal(short.dose(single.position, single.weight), again)
        alone = op.gradient(residual, spots.position, spots.weight)[0]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(alone, back)


def test_spot_that_is_off_and_spot_far_away():
    spots = two_beams(6)
    with torch.no_grad():
        spots.weight[1] = 0.0
        spots.position[3] += 1e3
    dose = PencilBeamDose(PATIENT, MACHINES["one"], spots.beams, model="sub_spots")
    misfit(dose(spots)).backward()
    assert not spots.position.grad[[1, 3]].any()
    assert spots.weight.grad[1] != 0
    assert spots.weight.grad[3] == 0


def test_moved_spots_get_rays_of_their_own():
    """Rays are traced when they first carry protons: a moved plan's dose is that of a fresh operator."""
    spots = two_beams(6)
    dose = PencilBeamDose(PATIENT, MACHINES["one"], spots.beams, model="sub_spots")
    with torch.no_grad():
        dose(spots)
        spots.position += 9.0
        fresh = PencilBeamDose(PATIENT, MACHINES["one"], spots.beams, model="sub_spots")
        assert torch.equal(dose(spots), fresh(spots))


def test_refusals():
    spots = two_beams(4)
    with pytest.raises(InputError, match="sub_spots have a back-end of their own"):
        operator(PATIENT, MACHINES["one"], spots, EVERY, backend="torch", model="sub_spots")
    with pytest.raises(InputError, match="analytic gradient only"):
        PencilBeamDose(PATIENT, MACHINES["one"], spots.beams, gradient="autograd", model="sub_spots")(spots)
    with pytest.raises(InputError, match="no influence matrix"):
        influence_matrices([operator(PATIENT, MACHINES["one"], spots, EVERY, NOMINAL, model="sub_spots")], spots.position)
