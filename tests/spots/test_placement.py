"""Spot placement: layers, grid, coverage in every scenario, and what it refuses."""

import itertools
import logging
import math

import pytest
import torch

from torchimpt.checks import InputError
from torchimpt.geometry import Beam, Grid, magnification, to_bev
from torchimpt.io import read_openkbp
from torchimpt.machine import generic, read_csv_machine, read_matrad_machine
from torchimpt.patient import ROI, Patient
from torchimpt.physics.stopping import relative_stopping_power
from torchimpt.physics.wepl import ray_directions, wepl
from torchimpt.resampling import resample
from torchimpt.scenarios import NOMINAL, Scenario, boundary_scenarios
from torchimpt.spots.placement import place_spots

GRID = Grid((30, 56, 36), (3.0, 3.0, 3.0), (-52.5, -82.5, -43.5))
MACHINE = generic()


def patient(low=(-15.0, -20.0, -12.0), high=(20.0, 13.0, 15.0), lung=False, grid=GRID):
    """A water box with air around it, a box target, and a slab of lung before half of it on request."""
    x, y, z = grid.centers().unbind(1)
    body = ((x.abs() < 50) & (y.abs() < 80) & (z.abs() < 41)).reshape(grid.shape)
    hu = torch.where(body, 0.0, -1000.0)
    if lung:
        hu[((x > 0) & (y > -45) & (y < -25)).reshape(grid.shape)] = -700.0
    target = torch.stack([(c >= a) & (c <= b) for c, a, b in zip((x, y, z), low, high, strict=True)]).all(dim=0).reshape(grid.shape)
    rois = {"CTV": ROI("CTV", target, "target"), "External": ROI("External", body, "external")}
    return Patient(hu, grid, rois)


def layer_peaks(spots, machine=MACHINE):
    """Peak depth of every layer, mm of water."""
    return machine.peak_depth(spots.layer_energy)


def uncovered(plan, spots, target, scenarios, spacing, step=None, machine=MACHINE, every=1):
    """`{(beam, scenario): voxels}` of the target without a spot within `spacing` of them whose peak is within a layer step of their WEPL.

    Voxels before the machine's shallowest peak don't count.
    """
    rsp = relative_stopping_power(plan, machine)
    points = plan.grid.centers(plan.union(target).flatten().nonzero().flatten()[::every])
    peaks, lowest = layer_peaks(spots, machine), float(machine.peak_depth(machine.energy_min))
    steps = machine.width80(spots.layer_energy) if step is None else torch.full_like(peaks, step)
    missing = {}
    for (number, beam), scenario in itertools.product(enumerate(spots.beams), scenarios):
        bev = to_bev(points, beam, scenario.shift)
        plane = bev[:, :2] / torch.stack(magnification(bev[:, 2], machine.sad), dim=1)
        depth = scenario.range_scale * wepl(rsp, plan.grid, beam, machine.sad, points, scenario.shift)
        covered = depth < lowest
        for layer in (spots.layer_beam == number).nonzero().flatten().tolist():
            near = ((depth - peaks[layer]).abs() <= steps[layer] + 0.01) & ~covered
            distance = torch.cdist(plane[near], spots.position[spots.layer == layer].detach().double())
            covered[near.nonzero().flatten()] = distance.amin(dim=1) <= spacing
        missing[number, scenario.name] = int((~covered).sum())
    return missing


def test_layers_step_by_the_bragg_width_from_the_distal_margin_to_the_proximal_one():
    spots = place_spots(patient(), MACHINE, [Beam(0)], "CTV")
    peaks, widths = layer_peaks(spots), MACHINE.width80(spots.layer_energy)
    torch.testing.assert_close(-peaks.diff(), widths[:-1], atol=0.02, rtol=0)
    # The target's voxels span y = -21 to 12 mm, the water begins at -81: 60 to 93 mm, and a voxel of margin on both sides, on oblique rays.
    assert 95.98 <= float(peaks[0]) < 96.2
    assert abs(float(peaks[-1]) - 57.0) <= 0.5 * float(widths[-1]) + 0.02
    assert (spots.layer_energy.diff() < 0).all()


def test_a_number_spaces_the_layers_in_water():
    spots = place_spots(patient(), MACHINE, [Beam(0)], "CTV", layer_spacing=4.0)
    torch.testing.assert_close(-layer_peaks(spots).diff(), torch.full((spots.n_layers - 1,), 4.0, dtype=torch.float64), atol=0.02, rtol=0)


def test_positions_are_grid_nodes_within_the_margin():
    spots = place_spots(patient(), MACHINE, [Beam(0)], "CTV", spacing=4.0, margin=6.0, dtype=torch.float64)
    nodes = spots.position.detach() / 4.0
    torch.testing.assert_close(nodes, nodes.round())
    # Isocenter at the centroid; the target's edges are 18 mm and 13.5 mm from it, and two voxels of margin make that 24 and 19.5 mm.
    assert spots.beams[0].isocenter == pytest.approx((3.0, -4.5, 1.5))
    assert spots.position.detach().abs().amax(dim=0).tolist() == [24.0, 16.0]
    pairs = torch.cat((spots.layer[:, None].double(), spots.position.detach()), dim=1)
    assert len(pairs.unique(dim=0)) == spots.n_spots


def test_start_margin_leaves_all_spots_and_takes_weight_from_the_outer_ones() -> None:
    wide, options = patient(), {"spacing": 4.0, "layer_spacing": 4.0}
    plain = place_spots(wide, MACHINE, [Beam(0)], "CTV", margin=16.0, **options)
    spots = place_spots(wide, MACHINE, [Beam(0)], "CTV", margin=16.0, start_margin=4.0, **options)
    assert torch.equal(spots.position, plain.position) and torch.equal(spots.layer, plain.layer) and bool((plain.weight == 1).all())
    assert set(spots.weight.tolist()) == {0.0, 1.0}
    # layers step from another depth than a small margin's, so that either may have one more at its ends
    near = place_spots(wide, MACHINE, [Beam(0)], "CTV", margin=4.0, **options)
    assert {tuple(p) for p in spots.position[spots.weight > 0].tolist()} == {tuple(p) for p in near.position.tolist()}
    assert 0.8 < int((spots.weight > 0).sum()) / near.n_spots < 1.25
    with pytest.raises(InputError, match="start_margin must be zero or a positive number of mm, got -1"):
        place_spots(wide, MACHINE, [Beam(0)], "CTV", start_margin=-1.0)


def test_hexagonal_nodes_are_a_spacing_apart_and_denser():
    square = place_spots(patient(), MACHINE, [Beam(0)], "CTV", spacing=3.0)
    spots = place_spots(patient(), MACHINE, [Beam(0)], "CTV", spacing=3.0, pattern="hexagonal", dtype=torch.float64)
    layer = spots.position[spots.layer == 5].detach()
    distance = torch.cdist(layer, layer).fill_diagonal_(torch.inf)
    torch.testing.assert_close(distance.amin(dim=1), torch.full((len(layer),), 3.0, dtype=torch.float64))
    assert ((distance < 3.001).sum(dim=1) == 6).sum() > len(layer) // 2
    assert spots.n_spots / square.n_spots == pytest.approx(2 / math.sqrt(3), rel=0.05)


def test_weights_are_one_and_the_dtype_is_as_asked():
    spots = place_spots(patient(), MACHINE, [Beam(0), Beam(90)], "CTV", spacing=8.0, dtype=torch.float64)
    assert spots.position.dtype == spots.weight.dtype == torch.float64
    assert (spots.weight == 1).all() and set(spots.beam.tolist()) == {0, 1}
    assert place_spots(patient(), MACHINE, [Beam(0)], "CTV", spacing=8.0).weight.dtype == torch.float32


@pytest.mark.parametrize(("gantry", "couch"), [(0, 0), pytest.param(40, 20, marks=pytest.mark.slow)])
def test_agrees_with_densely_sampled_axes(gantry, couch):
    # The oracle samples each axis every 0.2 mm, asks WEPL and the distance to the target at every sample, and compares with the peaks.
    plan, spacing, margin, blur = patient(lung=True), 7.0, 5.0, 0.3
    spots = place_spots(plan, MACHINE, [Beam(gantry, couch)], "CTV", spacing, margin=margin, layer_spacing=6.0, dtype=torch.float64)
    beam, rsp = spots.beams[0], relative_stopping_power(plan, MACHINE)
    target = plan.grid.centers(plan.roi("CTV").voxels)
    placed = {(round(x / spacing), round(y / spacing), k) for (x, y), k in zip(spots.position.tolist(), spots.layer.tolist(), strict=True)}
    peaks = layer_peaks(spots)
    reach = [range(min(p[a] for p in placed) - 2, max(p[a] for p in placed) + 3) for a in (0, 1)]
    origin, size = torch.tensor(plan.grid.origin, dtype=torch.float64), torch.tensor(plan.grid.spacing, dtype=torch.float64)
    limit = torch.tensor(plan.grid.shape[::-1])
    along = torch.arange(-45.0, 45.0, 0.2, dtype=torch.float64)
    certain = 0
    for i, j in itertools.product(*reach):
        bev = torch.tensor([[i * spacing, j * spacing, 0.0]], dtype=torch.float64)
        center = torch.tensor(beam.isocenter, dtype=torch.float64)
        from_plane = torch.linalg.solve(to_bev(center + torch.eye(3, dtype=torch.float64), beam).T, bev[0]) + center
        u, _ = ray_directions(from_plane[None], beam, MACHINE.sad)
        samples = from_plane + along[:, None] * u
        index = ((samples - origin) / size + 0.5).floor().long()
        samples, index = (v[((index >= 0) & (index < limit)).all(dim=1)] for v in (samples, index))
        x, y, z = index.unbind(1)
        voxel = origin + index * size
        wanted = (torch.cdist(voxel, target).amin(dim=1) <= margin) & plan.body[z, y, x]
        depth = wepl(rsp, plan.grid, beam, MACHINE.sad, samples[wanted])
        for layer, peak in enumerate(peaks):
            gap = float((depth - peak).abs().amin()) if len(depth) else math.inf
            if abs(gap - 3.0) > blur:
                assert ((i, j, layer) in placed) == (gap < 3.0), (i, j, layer, gap)
                certain += 1
    assert certain > 0.9 * len(peaks) * len(reach[0]) * len(reach[1])


@pytest.mark.parametrize("pattern", ["square", "hexagonal"])
@pytest.mark.parametrize("lung", [False, True])
def test_every_voxel_has_a_peak_in_every_scenario(pattern, lung):
    plan, scenarios = patient(lung=lung), boundary_scenarios(4.0, 5.0)
    beams = [Beam(0), Beam(215, 30)]
    spots = place_spots(plan, MACHINE, beams, "CTV", 5.0, pattern=pattern, scenarios=scenarios)
    assert set(uncovered(plan, spots, "CTV", scenarios, 5.0).values()) == {0}
    nominal = place_spots(plan, MACHINE, beams, "CTV", 5.0, pattern=pattern, margin=0.0)
    assert nominal.n_spots < spots.n_spots
    assert sum(uncovered(plan, nominal, "CTV", [s for s in scenarios if "range" in s.name], 5.0).values()) > 30


def test_the_nominal_scenario_always_counts():
    plan = patient()
    alone = place_spots(plan, MACHINE, [Beam(0)], "CTV")
    shifted = place_spots(plan, MACHINE, [Beam(0)], "CTV", scenarios=(Scenario("far", (12.0, 0.0, 0.0)),))
    assert shifted.n_spots > alone.n_spots
    assert uncovered(plan, shifted, "CTV", [NOMINAL], 5.0) == {(0, "nominal"): 0}


def columns(spots):
    """Energy and position of each spot, rounded and sorted."""
    position = spots.position.detach().double()
    return sorted((round(e, 4), round(x, 3), round(y, 3)) for e, (x, y) in zip(spots.energy.tolist(), position.tolist(), strict=True))


def test_moving_patient_and_isocenter_together_changes_nothing():
    moved = Grid(GRID.shape, GRID.spacing, tuple(o + d for o, d in zip(GRID.origin, (100.0, -37.0, 12.0), strict=True)))
    here = patient(lung=True)
    there = Patient(here.hu, moved, here.rois)
    beam = Beam(70, 10)
    assert columns(place_spots(here, MACHINE, [beam], "CTV")) == columns(place_spots(there, MACHINE, [beam], "CTV"))


def test_turning_patient_and_gantry_together_changes_nothing():
    # A quarter turn about z, LPS (x, y) -> (-y, x): gantry 20 becomes gantry 110.
    here = patient(lung=True)
    grid = Grid((30, 36, 56), (3.0, 3.0, 3.0), (-82.5, -52.5, -43.5))

    def turn(image):
        return image.transpose(1, 2).flip(2)

    there = Patient(turn(here.hu), grid, {name: ROI(name, turn(roi.mask), roi.role) for name, roi in here.rois.items()})
    a = place_spots(here, MACHINE, [Beam(20, isocenter=(1.0, 2.0, 3.0))], "CTV")
    b = place_spots(there, MACHINE, [Beam(110, isocenter=(-2.0, 1.0, 3.0))], "CTV")
    assert columns(a) == columns(b)


def test_a_target_before_the_shallowest_peak_is_placed_as_far_as_can_be(caplog):
    plan = patient(low=(-15.0, -80.0, -12.0), high=(20.0, -20.0, 15.0))
    with caplog.at_level(logging.WARNING):
        spots = place_spots(plan, MACHINE, [Beam(0)], "CTV")
    assert "begins at 0.0 mm of water" in caplog.text and f"{MACHINE.energy_min:g} MeV" in caplog.text
    assert float(spots.layer_energy.min()) == pytest.approx(MACHINE.energy_min, abs=0.01)
    assert uncovered(plan, spots, "CTV", [NOMINAL], 5.0) == {(0, "nominal"): 0}
    with pytest.raises(InputError, match="range shifter"):
        place_spots(patient(low=(-15.0, -80.0, -12.0), high=(20.0, -78.0, 15.0)), MACHINE, [Beam(0)], "CTV", margin=0.0)


def test_a_target_too_deep_names_the_beam_the_depth_and_the_machine():
    # So dense that from the far side the target lies beyond 400 mm of water, from the near side within 250.
    deep = patient(low=(-15.0, 40.0, -12.0), high=(20.0, 60.0, 15.0))
    deep = Patient(torch.where(deep.body, 3000.0, -1000.0), deep.grid, deep.rois)
    rsp = float(relative_stopping_power(deep, MACHINE).max())
    scale = 400.0 / (rsp * 100.0)
    with pytest.raises(InputError, match=r"beam 1 \(gantry 0, couch 0\): the deepest layer needs its peak at .* 240 MeV; choose"):
        place_spots(deep, MACHINE, [Beam(180), Beam(0)], "CTV", scenarios=(Scenario("dense", range_scale=scale),))


def test_part_of_the_target_outside_the_body_or_the_field_is_reported(caplog):
    plan = patient(low=(-15.0, -20.0, -12.0), high=(70.0, 13.0, 15.0))
    with caplog.at_level(logging.WARNING):
        place_spots(plan, MACHINE, [Beam(0)], "CTV")
    assert "outside the body" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        spots = place_spots(patient(), MACHINE, [Beam(0, isocenter=(-245.0, 0.0, 0.0))], "CTV")
    assert "field ends at 250 mm" in caplog.text and float(spots.position.detach()[:, 0].max()) <= 250.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spacing": 0.0}, "spacing must be a positive"),
        ({"spacing": -5.0}, "spacing must be a positive"),
        ({"spacing": float("nan")}, "spacing must be a positive"),
        ({"margin": -1.0}, "margin must be zero or a positive"),
        ({"layer_spacing": 0.0}, "layer_spacing must be a positive"),
        ({"layer_spacing": "bragg"}, "layer_spacing must be 'bragg80' or a number"),
        ({"pattern": "hexagon"}, "did you mean 'hexagonal'"),
        ({"beams": []}, "at least one beam"),
        ({"target": "PTV"}, "no ROI 'PTV'"),
        ({"target": "Air"}, "outside the body"),
        ({"target": "Nothing"}, "no voxel"),
        ({"beams": [Beam(0, isocenter=(500.0, 0.0, 0.0))]}, r"beam 0 \(gantry 0, couch 0\) misses the target.*field ends"),
        ({"beams": [Beam(0, isocenter=(0.0, 3000.0, 0.0))]}, "behind the source"),
        (
            {"spacing": 0.001},
            r"beam 0 .*: a spacing of 0.001 mm makes .*e\+09 spots in a layer \(x .* plane\), at most 100,000 are placed; give",
        ),
        ({"spacing": 5e-324}, "makes inf spots in a layer"),
        (
            {"spacing": 0.5, "layer_spacing": 0.05},
            r"\d+ energy layers of up to [\d,]+ spots make .*e\+06 spots .*, a plan can use 1,000,000; give a larger",
        ),
        (
            {"layer_spacing": 1e-9},
            r"layer_spacing of 1e-09 mm of water makes .*e\+10 energy layers over \d+ mm, at most 1,000 are placed; give 0",
        ),
        ({"layer_spacing": 5e-324}, "makes inf energy layers"),
        ({"spacing": 200.0, "beams": [Beam(0, isocenter=(100.0, 0.0, 0.0))]}, "no spot's axis crosses"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    plan = patient()
    plan.rois["Air"] = ROI("Air", ~plan.body, "target")
    plan.rois["Nothing"] = ROI("Nothing", torch.zeros_like(plan.body), "target")
    arguments = {"beams": [Beam(0)], "target": "CTV"} | change
    with pytest.raises(InputError, match=message):
        place_spots(plan, MACHINE, **arguments)


def test_several_targets_are_one():
    plan = patient()
    half = plan.roi("CTV").mask.clone()
    half[:15] = False
    plan.rois["upper"] = ROI("upper", half, "target")
    plan.rois["lower"] = ROI("lower", plan.roi("CTV").mask & ~half, "target")
    both = place_spots(plan, MACHINE, [Beam(0)], ["upper", "lower"])
    assert columns(both) == columns(place_spots(plan, MACHINE, [Beam(0)], "CTV"))
    assert place_spots(plan, MACHINE, [Beam(0)], "upper").n_spots < both.n_spots


@pytest.mark.parametrize("kind", ["matrad", "csv"])
def test_measured_machines(kind, shared):
    data = shared / "data"
    machine = read_matrad_machine(data / "matrad/protons_Generic.mat") if kind == "matrad" else read_csv_machine(data / "mc")
    plan = patient(low=(-15.0, 0.0, -12.0), high=(20.0, 30.0, 15.0))
    scenarios = boundary_scenarios()
    spots = place_spots(plan, machine, [Beam(0)], "CTV", scenarios=scenarios)
    assert set(uncovered(plan, spots, "CTV", scenarios, 5.0, machine=machine).values()) == {0}


@pytest.mark.slow
def test_openkbp_109(shared):
    plan = resample(read_openkbp(shared / "data/openkbp/pt_109"), 3.0)
    beams, scenarios = [Beam(a) for a in (0, 90, 270)], boundary_scenarios()
    nominal = place_spots(plan, MACHINE, beams, "PTV70", layer_spacing=5.0)
    spots = place_spots(plan, MACHINE, beams, "PTV70", layer_spacing=5.0, scenarios=scenarios)
    assert 4000 < nominal.n_spots < 9000 and nominal.n_spots < spots.n_spots < 1.3 * nominal.n_spots
    missing = uncovered(plan, spots, "PTV70", scenarios, 5.0, step=5.0, every=5)
    assert set(missing.values()) == {0}
