"""What the dose must conserve, and how it must turn, mirror and move with the phantom."""

import pytest
import torch
from dose_oracle import MACHINES, cut_exponential, distance, operator

from torchimpt.dose.influence import influence_matrices
from torchimpt.dose.layer import PencilBeamDose
from torchimpt.geometry import Beam, Grid
from torchimpt.patient import Patient
from torchimpt.scenarios import NOMINAL, Scenario
from torchimpt.spots import Spots

ISOCENTER = (0.0, 0.0, 0.0)


def fan(beam, n=12, seed=5):
    """Spots of unequal weight, energy and place."""
    generator = torch.Generator().manual_seed(seed)
    energy = torch.tensor([75.0, 83.0, 90.0], dtype=torch.float64)[torch.arange(n) % 3]
    x, y, w = (torch.rand(n, generator=generator, dtype=torch.float64) for _ in range(3))
    return Spots.from_columns([beam], [0] * n, energy, 30 * x - 15, 30 * y - 15, 1 + 9 * w, dtype=torch.float64)


@pytest.mark.parametrize(("step", "tolerance"), [pytest.param(0.4, 1e-3, marks=pytest.mark.slow), (1.0, 1e-3), (2.5, 1e-3), (4.0, 2e-3)])
@pytest.mark.parametrize("machine", ["one", "halo"])
def test_integral_dose(machine, step, tolerance):
    """In water that stops every proton: dose times volume = sum of weight times the depth dose's integral, whatever the cut-off.

    Tolerance: rays that are longer by 1 / cos of at most 0.5 degrees, and steps through a Bragg peak that is 4 mm wide. One peak sampled
    every 4 mm may be off by some percent, many at all depths are not: 61 energies, 0.4 mm of range apart.
    """
    machine = MACHINES[machine]
    n = round(80 / step)
    patient = Patient(torch.zeros(46, n, 46), Grid((46, n, 46), (3.0, step, 3.0), (-67.5, -60 + step / 2, -67.5)))
    place = fan(Beam(0.0, 0.0, ISOCENTER), n=61)
    energy = machine.energy_for_range(torch.linspace(43.0, 67.0, 61, dtype=torch.float64))
    spots = Spots.from_columns(place.beams, [0] * 61, energy, *place.position.detach().T, place.weight.detach(), dtype=torch.float64)
    tables = machine.layers(spots.layer_energy)
    integral = tables.depth_step * (tables.idd.sum(dim=1) - 0.5 * tables.idd[:, 0])
    expected = float(spots.weight.detach() @ integral[spots.layer])
    op = operator(patient, machine, spots, torch.arange(patient.grid.n_voxels))
    for cutoff in (3.0, 4.0, 6.0):
        total = float(op.dose(spots.position, spots.weight, cutoff).sum()) * patient.grid.voxel_volume
        assert total == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("cutoff", [3.0, 4.0, 6.0])
def test_discarded_fraction(cutoff):
    """Of one spot, what its cut Gaussian has elsewhere than the whole one: half the integral of `|q(t) - exp(-t)|`."""
    patient = Patient(torch.zeros(80, 30, 80), Grid((80, 30, 80), (1.5, 3.0, 1.5), (-59.25, -43.5, -59.25)))
    spots = fan(Beam(0.0, 0.0, ISOCENTER), n=1)
    op = operator(patient, MACHINES["one"], spots, torch.arange(patient.grid.n_voxels), cutoff=cutoff)
    t = torch.linspace(0.0, 60.0, 600_001, dtype=torch.float64)
    expected = 0.5 * float(torch.trapezoid((cut_exponential(t, cutoff) - torch.exp(-t)).abs(), t))
    # voxels of 1.5 mm sample a spot of 3 to 4 mm, and its rings where the sign changes less well
    assert op.discarded_fraction(spots.position, spots.weight) == pytest.approx(expected, rel=0.03)
    assert op.discarded_fraction(spots.position, torch.zeros_like(spots.weight)) == 0.0


def test_in_a_field_the_cut_off_evens_out():
    """What one spot lacks where its neighbour has too much: less than the 0.2 % that a spot alone has elsewhere."""
    patient = Patient(torch.zeros(56, 30, 56), Grid((56, 30, 56), (2.0, 3.0, 2.0), (-55.0, -43.5, -55.0)))
    spots = fan(Beam(0.0, 0.0, ISOCENTER), n=30)
    op = operator(patient, MACHINES["halo"], spots, torch.arange(patient.grid.n_voxels))
    assert 0.0 < op.discarded_fraction(spots.position, spots.weight) < 0.0015


def test_wide_cutoff_discards_nothing():
    patient = Patient(torch.zeros(20, 20, 20), Grid((20, 20, 20), (3.0, 3.0, 3.0), (-28.5, -28.5, -28.5)))
    spots = fan(Beam(0.0, 0.0, ISOCENTER))
    op = operator(patient, MACHINES["halo"], spots, torch.arange(patient.grid.n_voxels), cutoff=8.0)
    assert op.discarded_fraction(spots.position, spots.weight) == 0.0


CUBE = Grid((18, 18, 18), (4.0, 4.0, 4.0), (-34.0, -34.0, -34.0))


def lumps():
    """HU without any symmetry, on a cube around the isocentre."""
    hu = torch.zeros(CUBE.shape)
    hu[4:9, 3:8, 10:] = -700.0
    hu[10:, 5:9, 3:7] = 800.0
    return hu


def dose(hu, beam, position=None, grid=CUBE, scenario=NOMINAL):
    """Dose `(z, y, x)` of the fan; `position` maps the spots' positions."""
    spots = fan(beam)
    if position is not None:
        with torch.no_grad():
            spots.position.copy_(position(spots.position))
    patient = Patient(hu, grid)
    with torch.no_grad():
        return PencilBeamDose(patient, MACHINES["two sources"], [beam], scenario=scenario)(spots).reshape(grid.shape)


def test_turn_gantry_and_phantom():
    """Gantry 90 comes from patient left: (x, y, z) of gantry 0 is at (-y, x, z)."""
    turn = lambda a: a.transpose(1, 2).flip(2)  # noqa: E731
    straight = dose(lumps(), Beam(0.0, 0.0, ISOCENTER))
    assert distance(dose(turn(lumps()).contiguous(), Beam(90.0, 0.0, ISOCENTER)), turn(straight)) < 1e-10
    half = lambda a: a.flip(1, 2)  # noqa: E731
    assert distance(dose(half(lumps()), Beam(180.0, 0.0, ISOCENTER)), half(straight)) < 1e-10


def test_turn_couch_and_phantom():
    """Couch 90 turns the table under a beam from above: what the phantom had at (x, z) is now at (z, -x)."""
    turn = lambda a: a.transpose(0, 2).flip(0)  # noqa: E731
    straight = dose(lumps(), Beam(0.0, 0.0, ISOCENTER))
    assert distance(dose(turn(lumps()).contiguous(), Beam(0.0, 90.0, ISOCENTER)), turn(straight)) < 1e-10


def test_gantry_180_with_the_couch_turned_is_no_mirror():
    """From below, the table turned by 180 degrees: x keeps its sign in the beam's eye, y and depth turn over."""
    straight = dose(lumps(), Beam(0.0, 0.0, ISOCENTER))
    assert distance(dose(lumps().flip(0, 1), Beam(180.0, 180.0, ISOCENTER)), straight.flip(0, 1)) < 1e-10


@pytest.mark.parametrize(("axis", "sign"), [(2, (-1.0, 1.0)), (0, (1.0, -1.0))], ids=["x", "z"])
def test_mirror(axis, sign):
    straight = dose(lumps(), Beam(0.0, 0.0, ISOCENTER))
    mirrored = dose(lumps().flip(axis), Beam(0.0, 0.0, ISOCENTER), lambda p: p * torch.tensor(sign, dtype=p.dtype))
    assert distance(mirrored, straight.flip(axis)) < 1e-10
    assert distance(mirrored, straight) > 0.1


def test_translate():
    """Patient and isocentre moved together: the same dose. A setup shift of the patient is the isocentre moved the other way."""
    beam = Beam(40.0, 25.0, (3.0, -4.0, 5.0))
    straight = dose(lumps(), beam)
    grid = Grid(CUBE.shape, CUBE.spacing, (66.0, -234.0, 16.0))
    assert distance(dose(lumps(), Beam(40.0, 25.0, (103.0, -204.0, 55.0)), grid=grid), straight) < 1e-10
    shifted = dose(lumps(), beam, scenario=Scenario("s", (2.0, -3.0, 1.5)))
    assert distance(shifted, dose(lumps(), Beam(40.0, 25.0, (1.0, -1.0, 3.5)))) < 1e-10
    assert distance(shifted, straight) > 0.05


def test_range_scale_in_water_shortens_the_range():
    """3 % denser tissue: the depth dose seen at depth z is that of 1.03 z."""
    grid = Grid((1, 140, 1), (400.0, 0.5, 400.0), (0.0, -34.75, 0.0))  # one column of voxels on the axis
    patient = Patient(torch.zeros(grid.shape), grid)
    spots = Spots.from_columns([Beam(0.0, 0.0, ISOCENTER)], [0], [85.0], [0.0], [0.0], [1.0], dtype=torch.float64)
    depth = torch.arange(140, dtype=torch.float64) * 0.5 + 0.25
    peaks = []
    for scale in (1.0, 1.03):
        curve = PencilBeamDose(patient, MACHINES["one"], spots.beams, scenario=Scenario("r", range_scale=scale))(spots).detach()
        weight = (curve > 0.8 * curve.max()).double() * curve
        peaks.append(float((weight * depth).sum() / weight.sum()))
    assert peaks[0] / peaks[1] == pytest.approx(1.03, abs=0.01)


def test_matrices_of_single_layers_add_up():
    """The dose of a plan is the sum of the doses of its layers."""
    spots = fan(Beam(20.0, 0.0, ISOCENTER))
    patient = Patient(lumps(), CUBE)
    voxels = torch.arange(CUBE.n_voxels)
    whole = operator(patient, MACHINES["halo"], spots, voxels).dose(spots.position, spots.weight)
    parts = torch.zeros_like(whole)
    for layer in range(spots.n_layers):
        part = spots.subset(spots.layer == layer)
        parts += influence_matrices([operator(patient, MACHINES["halo"], part, voxels)], part.position)[0].forward(part.weight)
    assert distance(parts, whole) < 1e-12
