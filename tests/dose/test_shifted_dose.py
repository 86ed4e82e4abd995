"""Dose behind a range shifter, three Gaussians of which the widest are its secondaries: value, gradients, matrices, and what it conserves."""

import dataclasses

import pytest
import torch
from dose_oracle import MACHINES, SCENARIOS, blocks, distance, operator, oracle_dose, two_beams

from torchimpt.checks import InputError
from torchimpt.dose.autograd import SpotDose
from torchimpt.dose.influence import influence_matrices
from torchimpt.dose.layer import PencilBeamDose
from torchimpt.geometry import Beam, Grid, RangeShifter
from torchimpt.machine import generic
from torchimpt.patient import Patient
from torchimpt.phantoms import water
from torchimpt.physics.bragg import r80
from torchimpt.scenarios import Scenario
from torchimpt.spots import Spots

PATIENT = blocks()
EVERY = torch.arange(PATIENT.grid.n_voxels)
SHIFTER = RangeShifter(18.0, 110.0)


def misfit(dose):
    return ((dose - 0.02) ** 2).sum() + torch.sin(100 * dose).sum()


def gradients(function, spots):
    position, weight = (t.detach().clone().requires_grad_() for t in (spots.position, spots.weight))
    return torch.autograd.grad(misfit(function(position, weight)), (position, weight))


@pytest.mark.parametrize("machine", ["one", "halo", "elliptic"])
@pytest.mark.parametrize("scenario", ["nominal", "both"])
@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_dose_and_gradients_equal_the_oracle(machine, scenario, backend):
    machine, scenario, spots = MACHINES[machine], SCENARIOS[scenario], two_beams(shifter=SHIFTER)
    assert 0 < int(spots.layer_shifted.sum()) < spots.n_layers
    oracle = oracle_dose(PATIENT, machine, spots, EVERY, scenario)
    op = operator(PATIENT, machine, spots, EVERY, scenario, backend=backend)
    assert distance(op.dose(spots.position, spots.weight), oracle(spots.position, spots.weight).detach()) < 1e-10
    for got, right in zip(gradients(lambda p, w: SpotDose.apply(p, w, op), spots), gradients(oracle, spots), strict=True):
        assert distance(got, right) < 1e-10


def test_gradcheck():
    spots = two_beams(5, shifter=SHIFTER)
    op = operator(PATIENT, MACHINES["halo"], spots, EVERY[::131], cutoff=8.0)
    position, weight = (t.detach().clone().requires_grad_() for t in (spots.position, spots.weight))
    function = lambda p, w: 1e2 * SpotDose.apply(p, w, op)  # noqa: E731
    assert torch.autograd.gradcheck(function, (position, weight), eps=1e-4, atol=1e-6, rtol=1e-6)


def test_matrix_gives_the_same_dose():
    spots = two_beams(shifter=SHIFTER)
    op = operator(PATIENT, MACHINES["halo"], spots, EVERY)
    matrix = influence_matrices([op], spots.position)[0]
    assert distance(matrix.forward(spots.weight.detach()), op.dose(spots.position, spots.weight)) < 1e-12


def test_layers_without_the_shifter_keep_their_dose():
    """To the last bit: their third component has no share."""
    plain = two_beams()
    beside = Spots(
        plain.position, plain.weight, plain.layer, plain.layer_beam, plain.layer_energy,
        [dataclasses.replace(beam, shifter=SHIFTER) for beam in plain.beams],
    )  # fmt: skip
    dose = [operator(PATIENT, MACHINES["halo"], s, EVERY).dose(s.position, s.weight) for s in (plain, beside)]
    assert torch.equal(*dose)


def behind(patient, thickness, place, energy=110.0, scenario=SCENARIOS["nominal"], machine=generic()):  # noqa: B008
    beam = Beam(0.0, 0.0, (0.0, 0.0, 0.0), RangeShifter(thickness, place) if thickness else None)
    spots = Spots.from_columns([beam], [0], [energy], [0.0], [0.0], [10.0], torch.float64, [thickness > 0])
    dose = PencilBeamDose(patient, machine, [beam], scenario=scenario, rbe=1.0, cutoff=6.0)(spots)
    return dose.detach().reshape(patient.grid.shape)


def test_range_is_shorter_by_the_thickness_in_every_scenario():
    """The scenario's range error is the patient's: a scaled plate would shift the range by 0.035 x 30 mm."""
    patient = Patient(torch.zeros(40, 240, 40), Grid((40, 240, 40), (6.0, 0.5, 6.0), (-117.0, -59.75, -117.0)))
    depth = patient.grid.axis("y") + 60.0
    for scale in (1.0, 1.035):
        scenario = Scenario("range", range_scale=scale)
        ranges = [r80(depth, behind(patient, t, 150.0, scenario=scenario).sum(dim=(0, 2))) for t in (0.0, 30.0)]
        # linear between planes 0.5 mm apart
        assert ranges[0] - ranges[1] == pytest.approx(30.0 / scale, abs=0.05)


def test_integral_dose_is_that_of_the_depth_dose():
    """What the gap spreads is not lost: planes of water hold the depth dose, however wide the spot."""
    patient = water(4.0, size=(480.0, 120.0, 480.0))
    near, far = (behind(patient, 30.0, place, machine=MACHINES["halo"]) for place in (60.0, 260.0))
    planes = [dose.sum(dim=(0, 2))[:12] for dose in (near, far)]
    # of the shifter's secondaries, 4 % at 0.2 rad, less than 1 % leave the grid
    torch.testing.assert_close(planes[1], planes[0], rtol=1e-3, atol=0)
    assert float(near.max()) > 1.5 * float(far.max())


def test_shifter_inside_the_body():
    patient = water(5.0, size=100.0)
    with pytest.raises(
        InputError, match=r"beam 0 \(gantry 0, couch 0\): its range shifter's downstream face, 20 mm from the isocentre, lies "
    ):
        behind(patient, 30.0, 20.0)
    with pytest.raises(InputError, match=r"reaches 48 mm upstream; give range_shifter_distance_mm = 48 or more"):
        behind(patient, 30.0, 40.0)
    assert float(behind(patient, 30.0, 48.0).max()) > 0
