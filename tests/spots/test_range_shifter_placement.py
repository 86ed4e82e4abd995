"""Placement with a range shifter: peaks up to the skin, by the machine's rule; where the shifter stands; what it refuses."""

import dataclasses
import logging

import pytest
import torch

from torchimpt.checks import InputError
from torchimpt.dose.layer import PencilBeamDose
from torchimpt.geometry import Beam, Grid, RangeShifter
from torchimpt.machine import generic
from torchimpt.patient import ROI, Patient
from torchimpt.scenarios import NOMINAL, boundary_scenarios
from torchimpt.spots import Spots
from torchimpt.spots.placement import place_spots, stagger
from torchimpt.spots.shifter import CLEARANCE

GRID = Grid((24, 48, 24), (4.0, 2.0, 4.0), (-46.0, -47.0, -46.0))
MACHINE = generic()
T = MACHINE.shifter.thickness


def patient(first: float, last: float, air: float = 0.0) -> Patient:
    """Water to within `air` mm of the grid's anterior face, with a target from `first` to `last` mm deep."""
    x, y, z = GRID.centers().unbind(1)
    depth = y + 48.0 - air
    body, target = depth > 0, (depth > first) & (depth < last) & (x.abs() < 16) & (z.abs() < 16)
    rois = {"CTV": ROI("CTV", target.reshape(GRID.shape), "target"), "External": ROI("External", body.reshape(GRID.shape), "external")}
    return Patient(torch.where(body, 0.0, -1000.0).reshape(GRID.shape), GRID, rois)


def place(plan, shifter, **options):
    return place_spots(plan, MACHINE, [Beam(0.0, shifter=shifter)], "CTV", 8.0, **options)


def peaks(spots):
    """Peak depths in the patient, mm of water, and half of each layer's step."""
    energy = spots.layer_energy
    return MACHINE.peak_depth(energy) - T * spots.layer_shifted, 0.5 * MACHINE.width80(energy)


def rule(name: str, place: float | None = None) -> RangeShifter:
    return RangeShifter(T, place, name)


@pytest.mark.parametrize("scenarios", [(NOMINAL,), boundary_scenarios(3.0, 3.0)])
def test_layers_go_through_it_where_they_need_it(scenarios):
    plan = patient(2.0, 70.0)
    spots = place(plan, rule("layers"), scenarios=scenarios)
    depth, half = peaks(spots)
    lowest = float(MACHINE.peak_depth(MACHINE.energy_min))
    # two groups, falling in depth through both, each a step after the last
    assert (depth.diff() < 0).all() and spots.layer_shifted.tolist() == sorted(spots.layer_shifted.tolist())
    assert (depth[~spots.layer_shifted] >= lowest - 1e-6).all() and (depth[spots.layer_shifted] < lowest).all()
    steps = depth[:-1] - depth[1:]
    # widths between the tabulated energies, 0.05 mm; the last layer may lie at the skin
    assert (steps[:-1] - 2 * half[:-2]).abs().max() < 0.1
    assert float(depth[-1] - half[-1]) <= 2.0
    # every peak has spots, the shallowest too
    assert torch.equal(spots.layer.unique(), torch.arange(spots.n_layers))


def test_the_shifter_is_left_out_where_no_layer_needs_it():
    plan = patient(45.0, 70.0)
    plain = place(plan, None)
    for name in ("layers", "beam"):
        found = place(plan, rule(name))
        assert found.beams == plain.beams and found.beams[0].shifter is None
        assert torch.equal(found.position, plain.position) and torch.equal(found.layer_energy, plain.layer_energy)


def test_the_whole_beam_or_every_time():
    deep, shallow = patient(45.0, 70.0), patient(5.0, 70.0)
    assert place(shallow, rule("beam")).layer_shifted.all()
    assert place(deep, rule("all")).layer_shifted.all()
    both = place(shallow, rule("layers")), place(shallow, rule("beam"))
    assert both[0].beams[0].shifter == both[1].beams[0].shifter
    # the same depths, from the same deepest layer on
    # to what peak depths between tabulated energies are good for
    assert float(peaks(both[0])[0][0]) == pytest.approx(float(peaks(both[1])[0][0]), abs=0.01)


@pytest.mark.parametrize("name", ["layers", "beam", "all"])
def test_target_that_is_all_before_the_shallowest_peak(name):
    spots = place(patient(3.0, 20.0), rule(name))
    assert spots.layer_shifted.all() and float(peaks(spots)[0][-1]) < 5.0
    with pytest.raises(
        InputError, match=r"within 24\.\d mm of water of the surface.*a range shifter \(range_shifter_mm\), or a lower energy"
    ):
        place(patient(3.0, 20.0), None)


def test_one_that_moves_stands_near_the_body():
    """The body begins 30 mm below the grid's face, which is 48 mm before its middle; the target's centroid is the isocentre."""
    plan = patient(2.0, 50.0, air=12.0)
    spots = place(plan, rule("layers"))
    surface = 36.0 + spots.beams[0].isocenter[1] - 1.0  # of voxels' middles
    found = spots.beams[0].shifter.distance
    assert CLEARANCE <= found - surface < CLEARANCE + 10.0 and found % 10.0 == 0.0
    assert place(plan, rule("layers", 123.0)).beams[0].shifter.distance == 123.0


def test_place_inside_the_body_is_found_with_the_dose():
    plan = patient(2.0, 50.0)
    spots = place(plan, rule("layers", 10.0))
    with pytest.raises(InputError, match=r"face, 10 mm from the isocentre, lies inside the body, which reaches 2\d mm upstream; give "):
        PencilBeamDose(plan, MACHINE, spots.beams)(spots)


def test_thicker_than_the_range():
    with pytest.raises(
        InputError, match=r"beam 0 .*: a range shifter of 390 mm of water stops all protons of machine 'generic', whose deepest"
    ):
        place(patient(2.0, 50.0), RangeShifter(390.0))
    with pytest.raises(InputError, match=r"behind 320 mm of range shifter reaches 35\.\d mm.*a thinner range shifter"):
        place(patient(2.0, 50.0), RangeShifter(320.0))


def test_shallow_targets_are_told_where_there_is_none(caplog):
    with caplog.at_level(logging.WARNING):
        place(patient(5.0, 70.0), None)
    assert "a range shifter (range_shifter_mm) moves them there" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        place(patient(5.0, 70.0), rule("layers"))
    assert not caplog.text


def test_spots_keep_their_layers_shifter():
    spots = place(patient(5.0, 70.0), rule("layers"))
    half = spots.subset(torch.arange(spots.n_spots) % 2 == 0)
    for found in (half, spots.at(spots.position + 1.0), stagger(spots, 8.0)):
        assert torch.equal(found.layer_shifted, spots.layer_shifted)
    assert spots.subset(spots.shifted).layer_shifted.all() and not spots.subset(~spots.shifted).layer_shifted.any()
    assert torch.equal(spots.shifted, spots.layer_shifted[spots.layer])


def test_layers_without_a_shifter_to_go_through():
    beam = Beam(0.0, 0.0, (0.0, 0.0, 0.0))
    with pytest.raises(
        InputError, match=r"beam 0 \(gantry 0\) has energy layers behind a range shifter, but no range shifter; give the beam"
    ):
        Spots.from_columns([beam], [0], [100.0], [0.0], [0.0], [1.0], shifted=[True])
    unknown = dataclasses.replace(beam, shifter=RangeShifter(40.0))
    with pytest.raises(InputError, match="but its distance from the isocentre is not known; give the beam a RangeShifter with"):
        Spots.from_columns([unknown], [0], [100.0], [0.0], [0.0], [1.0], shifted=[True])
    spots = Spots.from_columns([unknown], [0, 0], [100.0, 100.0], [0.0, 0.0], [0.0, 0.0], [1.0, 1.0])
    with pytest.raises(InputError, match=r"layer_shifted must be a bool tensor of shape \(1,\), got torch.float32 \(1,\)"):
        Spots(spots.position, spots.weight, spots.layer, spots.layer_beam, spots.layer_energy, spots.beams, torch.ones(1))


def test_one_energy_on_both_sides_makes_two_layers():
    beam = Beam(0.0, 0.0, (0.0, 0.0, 0.0), RangeShifter(40.0, 100.0))
    spots = Spots.from_columns([beam], [0, 0, 0], [100.0, 100.0, 90.0], [1.0, 2.0, 3.0], [0.0] * 3, [1.0] * 3, shifted=[True, False, False])
    assert spots.layer_energy.tolist() == [100.0, 90.0, 100.0] and spots.layer_shifted.tolist() == [False, False, True]
    assert spots.position[:, 0].tolist() == [2.0, 3.0, 1.0]


def test_layers_are_told_apart_by_name():
    spots = place(patient(5.0, 70.0), rule("layers"))
    names = [spots.layer_name(layer) for layer in range(spots.n_layers)]
    assert [name.endswith(" MeV, shifter") for name in names] == spots.layer_shifted.tolist()
    assert names[0] == f"{float(spots.layer_energy[0]):.1f} MeV"
