"""Grids and frames: where things are in LPS, in the gantry frame, and in the beam's-eye view."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchimpt.checks import InputError
from torchimpt.geometry import POSITIONS, Beam, Grid, bev_rotation, from_bev, magnification, table_axes, to_bev

ISOCENTER = (10.0, -20.0, 30.0)


def test_grid_axes_centers_and_counts():
    grid = Grid((2, 3, 4), (1.0, 2.0, 3.0), (10.0, 20.0, 30.0))
    assert grid.n_voxels == 24 and grid.voxel_volume == 6.0
    assert grid.axis("x").tolist() == [10, 11, 12, 13]
    assert grid.axis("y").tolist() == [20, 22, 24]
    assert grid.axis("z").tolist() == [30, 33]
    expected = [(x, y, z) for z, y, x in itertools.product((30.0, 33.0), (20.0, 22.0, 24.0), (10.0, 11.0, 12.0, 13.0))]
    torch.testing.assert_close(grid.centers(), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(grid.centers(torch.tensor([23, 5])), torch.tensor([expected[23], expected[5]], dtype=torch.float64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((0, 3, 4), (1, 1, 1), (0, 0, 0)), "shape"),
        (((3, 4), (1, 1, 1), (0, 0, 0)), "shape"),
        (((2, 3, 4), (1, 0, 1), (0, 0, 0)), "spacing must be positive"),
        (((2, 3, 4), (1, -2, 1), (0, 0, 0)), "spacing must be positive"),
        (((2, 3, 4), (1, 1, float("nan")), (0, 0, 0)), "spacing"),
        (((2, 3, 4), (1, 1, 1), (0, 0)), "origin"),
        (((2, 3, 4), (1, 1e30, 1), (0, 0, 0)), "spacing must lie between 0.01 and 1000 mm, got .*; check its unit"),
        (((2, 3, 4), (1, 1, 1e-320), (0, 0, 0)), "spacing must lie between"),
        (((2, 3, 4), (1, 1, 1), (0, -1e7, 0)), "origin must lie within 100000 mm"),
    ],
)
def test_a_wrong_grid_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        Grid(*arguments)


@pytest.mark.parametrize("change", [{"gantry": float("nan")}, {"couch": float("inf")}, {"isocenter": (0.0, 1.0)}])
def test_a_wrong_beam_is_refused(change):
    with pytest.raises(InputError):
        Beam(**change)


def test_a_beam_keeps_its_own_isocenter():
    assert Beam(10).at((1.0, 2.0, 3.0)).isocenter == (1.0, 2.0, 3.0)
    assert Beam(10, isocenter=ISOCENTER).at((1.0, 2.0, 3.0)).isocenter == ISOCENTER
    with pytest.raises(InputError, match="no isocenter"):
        to_bev(torch.zeros(1, 3, dtype=torch.float64), Beam(0))


# Where the source stands and which way Xg and Yg point, in LPS (x left, y posterior, z superior), by IEC 61217 for a supine patient.
SIDES = {
    (0, 0): ((1, 0, 0), (0, 0, 1), (0, -1, 0)),  # from anterior
    (90, 0): ((0, 1, 0), (0, 0, 1), (1, 0, 0)),  # from patient left
    (180, 0): ((-1, 0, 0), (0, 0, 1), (0, 1, 0)),  # from posterior
    (270, 0): ((0, -1, 0), (0, 0, 1), (-1, 0, 0)),  # from patient right
    # The couch turns the table counter-clockwise seen from above: the patient's head (z) goes from Yf to -Xf, patient left (x) to Yf.
    (0, 90): ((0, 0, -1), (1, 0, 0), (0, -1, 0)),
    (90, 90): ((0, 1, 0), (1, 0, 0), (0, 0, -1)),  # the source at +Xf now looks at the feet
}


@pytest.mark.parametrize(("angles", "axes"), SIDES.items())
def test_axes_at_quarter_turns(angles, axes):
    beam = Beam(*angles, ISOCENTER)
    torch.testing.assert_close(bev_rotation(beam), torch.tensor(axes, dtype=torch.float64), atol=1e-15, rtol=0)
    source = torch.tensor(ISOCENTER, dtype=torch.float64) + 2000.0 * torch.tensor(axes[2], dtype=torch.float64)
    torch.testing.assert_close(to_bev(source[None], beam), torch.tensor([[0.0, 0.0, 2000.0]], dtype=torch.float64), atol=1e-9, rtol=0)


@given(gantry=st.floats(0, 360), couch=st.floats(0, 360))
@settings(max_examples=50, deadline=None)
def test_rotations_are_proper_and_follow_the_formula(gantry, couch):
    rotation = bev_rotation(Beam(gantry, couch))
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3, dtype=torch.float64), atol=1e-14, rtol=0)
    assert float(torch.linalg.det(rotation)) == pytest.approx(1.0)
    # physics.md: the source stands at SAD (sin g, 0, cos g) in the fixed frame, whatever the couch does.
    g, c = math.radians(gantry), math.radians(couch)
    xs, ys, zs = math.cos(c) * math.sin(g), -math.sin(c) * math.sin(g), math.cos(g)
    torch.testing.assert_close(rotation[2], torch.tensor([xs, -zs, ys], dtype=torch.float64), atol=1e-14, rtol=0)


@given(
    gantry=st.floats(0, 360),
    couch=st.floats(0, 360),
    point=st.tuples(*[st.floats(-500, 500)] * 3),
    shift=st.tuples(*[st.floats(-10, 10)] * 3),
)
@settings(max_examples=50, deadline=None)
def test_from_bev_is_the_inverse_of_to_bev(gantry, couch, point, shift):
    beam, points = Beam(gantry, couch, ISOCENTER), torch.tensor([point], dtype=torch.float64)
    torch.testing.assert_close(from_bev(to_bev(points, beam, shift), beam, shift), points, atol=1e-10, rtol=0)


def test_a_shift_moves_the_patient_not_the_beam():
    # Patient displaced 3 mm to the left (LPS +x): seen from anterior every point lies 3 mm further along Xg.
    points = torch.tensor([ISOCENTER], dtype=torch.float64)
    moved = to_bev(points, Beam(0, isocenter=ISOCENTER), (3.0, 0.0, 0.0))
    torch.testing.assert_close(moved, torch.tensor([[3.0, 0.0, 0.0]], dtype=torch.float64), atol=1e-12, rtol=0)
    moved = to_bev(points, Beam(90, isocenter=ISOCENTER), (3.0, 0.0, 0.0))
    torch.testing.assert_close(moved, torch.tensor([[0.0, 0.0, 3.0]], dtype=torch.float64), atol=1e-12, rtol=0)


def test_magnification_is_one_at_the_isocenter_and_zero_at_the_source():
    mx, my = magnification(torch.tensor([0.0, 1000.0, -500.0]), (1000.0, 2000.0))
    assert mx.tolist() == [1.0, 0.0, 1.5] and my.tolist() == [1.0, 0.5, 1.25]


def test_float32_points_stay_float32():
    points = torch.tensor([[1.0, 2.0, 3.0]])
    beam = Beam(30, 40, ISOCENTER)
    assert to_bev(points, beam).dtype == from_bev(points, beam).dtype == torch.float32


@pytest.mark.parametrize(
    ("position", "turned"),
    [
        ("FFS", lambda gantry, couch: (gantry, couch + 180.0)),
        ("HFP", lambda gantry, couch: (gantry + 180.0, -couch)),
        ("FFP", lambda gantry, couch: (gantry + 180.0, -couch - 180.0)),
    ],
)
def test_who_lies_otherwise_is_seen_as_with_table_and_gantry_turned(position, turned):
    """Feet first is head first with the table turned half round; prone is supine with the gantry on the other side, the table mirrored."""
    rotation = bev_rotation(Beam(35.0, 20.0, position=position))
    torch.testing.assert_close(rotation, bev_rotation(Beam(*turned(35.0, 20.0))), atol=1e-14, rtol=0)


def test_every_position_has_its_side_up_and_its_end_first():
    up = {"HFS": "A", "HFP": "P", "HFDR": "L", "HFDL": "R", "FFS": "A", "FFP": "P", "FFDR": "L", "FFDL": "R"}
    side = {"A": [0, -1, 0], "P": [0, 1, 0], "L": [1, 0, 0], "R": [-1, 0, 0]}
    for position in POSITIONS:
        axes = table_axes(position)
        assert float(torch.linalg.det(axes)) == 1.0 and axes[1].tolist() == [0, 0, 1 if position[0] == "H" else -1]
        # gantry 0 comes from above
        torch.testing.assert_close(bev_rotation(Beam(0.0, position=position))[2], torch.tensor(side[up[position]]).double())
    with pytest.raises(InputError, match=r"position must be one of HFS, .*, got 'HFX' \(did you mean"):
        Beam(position="HFX")
    beam = Beam(10.0)
    assert beam.lies == "HFS" and beam.on("FFP").lies == "FFP" and beam.on("FFP").on("HFS").lies == "FFP"
