"""The hand-derived gradients for weight and position: against autograd of the dense oracle, and against finite differences."""

import pytest
import torch
from dose_oracle import MACHINES, SCENARIOS, blocks, distance, operator, oracle_dose, two_beams

from torchimpt.dose.autograd import SpotDose
from torchimpt.dose.cutoff import cut
from torchimpt.dose.layer import PencilBeamDose
from torchimpt.dose.pencil_beam.kernel import pair_dose, pair_partials
from torchimpt.geometry import Beam
from torchimpt.phantoms import step, water
from torchimpt.spots import Spots

PATIENT = blocks()
EVERY = torch.arange(PATIENT.grid.n_voxels)


def misfit(dose):
    """A smooth, curved objective, so that dF/dD differs from voxel to voxel."""
    return ((dose - 0.02) ** 2).sum() + torch.sin(100 * dose).sum()


def gradients(function, spots):
    """`(dF/dposition, dF/dweight)` of `function(position, weight)`."""
    position, weight = (t.detach().clone().requires_grad_() for t in (spots.position, spots.weight))
    return torch.autograd.grad(misfit(function(position, weight)), (position, weight))


def test_kernel_partials_are_the_kernels_derivatives(generator):
    dx, dy = (8 * torch.rand(500, generator=generator, dtype=torch.float64) - 4 for _ in range(2))
    dx.requires_grad_()
    dy.requires_grad_()
    ratio, amplitude, falloff = (0.9 + 0.2 * torch.rand(500, generator=generator, dtype=torch.float64) for _ in range(3))
    arguments = (dx, dy, ratio, amplitude, 0.05 * falloff, cut(1.2))
    phi, phi_x, phi_y = pair_partials(*arguments)
    expected = torch.autograd.grad(pair_dose(*arguments).sum(), (dx, dy))
    assert torch.equal(phi, pair_dose(*arguments))
    assert 0 < int((phi == 0).sum()) < 500
    assert distance(phi_x.detach(), -expected[0]) < 1e-14  # dx = p - x
    assert distance(phi_y.detach(), -expected[1]) < 1e-14


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_analytic_equals_autograd_of_the_oracle(machine, scenario):
    machine, scenario, spots = MACHINES[machine], SCENARIOS[scenario], two_beams()
    expected = gradients(oracle_dose(PATIENT, machine, spots, EVERY, scenario), spots)
    for backend in ("numba", "torch"):
        op = operator(PATIENT, machine, spots, EVERY, scenario, backend=backend)
        for got, right in zip(gradients(lambda p, w, op=op: SpotDose.apply(p, w, op), spots), expected, strict=True):
            assert distance(got, right) < 1e-10


@pytest.mark.parametrize("cutoff", [1.0, 2.0])
def test_cut_off_moves_with_the_spot(cutoff):
    """A tight cut-off, which discards much: the gradient is that of the truncated formula, and so is the truncation's place."""
    machine, spots = MACHINES["halo"], two_beams()
    for moved in (0.0, 3.7):
        with torch.no_grad():
            spots.position += moved
        expected = gradients(oracle_dose(PATIENT, machine, spots, EVERY, cutoff=cutoff), spots)
        op = operator(PATIENT, machine, spots, EVERY, cutoff=cutoff)
        for got, right in zip(gradients(lambda p, w: SpotDose.apply(p, w, op), spots), expected, strict=True):  # noqa: B023
            assert distance(got, right) < 1e-10


@pytest.mark.parametrize("machine", ["halo", "elliptic"])
def test_layer_and_its_autograd_twin(machine):
    machine, spots = MACHINES[machine], two_beams()
    found = []
    for gradient in ("analytic", "autograd"):
        misfit(PencilBeamDose(PATIENT, machine, spots.beams, gradient=gradient)(spots)).backward()
        found.append((spots.position.grad, spots.weight.grad))
        spots.zero_grad()
    assert all(distance(a, b) < 1e-10 for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_single_precision(backend):
    machine, spots, single = MACHINES["halo"], two_beams(), two_beams(dtype=torch.float32)
    residual = torch.linspace(-1.0, 1.0, len(EVERY), dtype=torch.float64).sin()
    expected = operator(PATIENT, machine, spots, EVERY, cutoff=8.0).gradient(residual, spots.position, spots.weight)
    op = operator(PATIENT, machine, single, EVERY, cutoff=8.0, backend=backend)
    for got, right in zip(op.gradient(residual.float(), single.position, single.weight), expected, strict=True):
        assert got.dtype == torch.float32
        assert distance(got, right) < 1e-5


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_gradcheck(machine, backend):
    """With a cut-off of 8 sigmas a pair that enters or leaves changes the dose by exp(-32)."""
    spots = two_beams(5)
    op = operator(PATIENT, MACHINES[machine], spots, EVERY[::131], cutoff=8.0, backend=backend)
    position, weight = (t.detach().clone().requires_grad_() for t in (spots.position, spots.weight))
    function = lambda p, w: 1e2 * SpotDose.apply(p, w, op)  # noqa: E731
    assert torch.autograd.gradcheck(function, (position, weight), eps=1e-4, atol=1e-6, rtol=1e-6)


def test_only_what_is_asked_for():
    spots = two_beams()
    op = operator(PATIENT, MACHINES["one"], spots, EVERY)
    residual = torch.ones(len(EVERY), dtype=torch.float64)
    both, alone = op.gradient(residual, spots.position, spots.weight), op.gradient(residual, spots.position, spots.weight, move=False)
    assert distance(alone[0], both[0]) < 1e-14
    assert alone[1] is None
    spots.position.requires_grad_(False)
    misfit(PencilBeamDose(PATIENT, MACHINES["one"], spots.beams)(spots)).backward()
    assert spots.position.grad is None
    assert spots.weight.grad is not None


def test_weight_zero():
    """A spot that is off has no position gradient; its weight gradient tells whether to switch it on."""
    machine, spots = MACHINES["halo"], two_beams()
    off = torch.arange(spots.n_spots) % 2 == 0
    with torch.no_grad():
        spots.weight[off] = 0.0
    expected = gradients(oracle_dose(PATIENT, machine, spots, EVERY), spots)
    op = operator(PATIENT, machine, spots, EVERY)
    position, weight = gradients(lambda p, w: SpotDose.apply(p, w, op), spots)
    assert not position[off].any()
    assert position[~off].all()
    assert weight[off].all()
    assert distance(position, expected[0]) < 1e-10
    assert distance(weight, expected[1]) < 1e-10


def test_spots_far_outside():
    spots = two_beams()
    with torch.no_grad():
        spots.position[::3] += 500.0
    op = operator(PATIENT, MACHINES["halo"], spots, EVERY)
    position, weight = gradients(lambda p, w: SpotDose.apply(p, w, op), spots)
    assert not position[::3].any()
    assert not weight[::3].any()
    assert position[1::3].all()


def central(function, spots, h):
    """Central differences of a scalar `function(position)` over both coordinates of every spot."""
    found = torch.zeros_like(spots.position)
    for index in range(spots.n_spots):
        for axis in range(2):
            move = torch.zeros_like(spots.position)
            move[index, axis] = h
            base = spots.position.detach()
            found[index, axis] = (function(base + move) - function(base - move)) / (2 * h)
    return found


@pytest.mark.parametrize("machine", ["one", "halo"])
def test_finite_differences_in_water(machine):
    patient, spots = water(5.0, size=80.0), two_beams(8)
    voxels = torch.arange(patient.grid.n_voxels)
    op = operator(patient, MACHINES[machine], spots, voxels, cutoff=8.0)
    position, weight = gradients(lambda p, w: SpotDose.apply(p, w, op), spots)
    value = lambda p, w=spots.weight: float(misfit(op.dose(p, w.detach())))  # noqa: E731
    assert distance(central(value, spots, 5e-4), position) < 1e-6
    rates = []
    for change in 1e-2 * torch.eye(spots.n_spots, dtype=torch.float64):
        rates.append((value(spots.position, spots.weight + change) - value(spots.position, spots.weight - change)) / 2e-2)
    assert distance(torch.tensor(rates), weight) < 1e-6


@pytest.mark.parametrize("hu", [-700.0, 1000.0], ids=["lung", "bone"])
@pytest.mark.parametrize(("machine", "cutoff"), [("one", 8.0), ("halo", 8.0), ("one", 4.0)])
def test_half_a_millimetre_across_a_density_step(hu, machine, cutoff):
    """The optimizer's step size where the peers fail: the spot's edge crosses a lateral density step, the range jumps by 20 mm.

    F is the dose on the side of the slab, so dF/dx is the dose that crosses the step, a Gaussian of the spot's distance from it: its third
    derivative is at most 3 / sigma^2 of the first within two sigmas, and a central difference is off by h^2 / 6 of that, h^2 / (2 sigma^2).
    """
    patient = step(3.0, size=(66.0, 84.0, 66.0), hu=hu, depth=(6.0, 36.0))
    machine = MACHINES[machine]
    x = [-8.0, -1.0, 0.0, 0.6, 7.0]
    beam = Beam(0.0, 0.0, (0.0, 0.0, 0.0))
    spots = Spots.from_columns([beam], [0] * 5, [95.0] * 5, x, [1.0] * 5, [100.0] * 5, dtype=torch.float64)
    voxels = torch.arange(patient.grid.n_voxels)
    op = operator(patient, machine, spots, voxels, cutoff=cutoff)
    side = (patient.grid.centers()[:, 0] > 0).double()
    behind = side * (patient.grid.centers()[:, 1] > 5).double()
    h, variance = 0.5, float(machine.layers([95.0]).optics_variance.min())
    for residual in (side, behind):
        _, gradient = op.gradient(residual, spots.position, spots.weight)
        value = lambda p, r=residual: float(op.dose(p, spots.weight.detach()) @ r)  # noqa: E731
        wide, narrow = (central(value, spots, s)[:, 0] for s in (h, h / 2))
        slope = gradient[:, 0]
        # what passes the edge of the cut-off between the two positions is no part of the truncated formula's gradient
        edge = 2 * torch.exp(torch.tensor(-0.5 * cutoff**2)) * slope.abs().max()
        assert (wide.sign() == slope.sign()).all()
        assert ((wide - slope).abs() <= h**2 / (2 * variance) * slope.abs() + edge).all()
        if cutoff > 5:
            assert (((4 * narrow - wide) / 3 - slope).abs() <= 1e-3 * slope.abs()).all()


def test_the_density_step_is_in_the_dose():
    """The case above is not water in disguise: its slab changes the gradient by far more than the tolerance."""
    spots = Spots.from_columns([Beam(0.0, 0.0, (0.0, 0.0, 0.0))], [0], [95.0], [0.0], [0.0], [100.0], dtype=torch.float64)
    found = []
    for hu in (0.0, -700.0):
        patient = step(3.0, size=(75.0, 90.0, 75.0), hu=hu, depth=(6.0, 36.0))
        behind = (patient.grid.centers()[:, 1] > 25).double()
        op = operator(patient, MACHINES["one"], spots, torch.arange(patient.grid.n_voxels))
        found.append(float(op.gradient(behind, spots.position, spots.weight)[1][0, 0]))
    assert abs(found[0]) < 1e-3 * found[1]
