"""WEPL against closed forms, symmetries, and an oracle that sums Siddon's path lengths in plain Python loops."""

import itertools
import math

import pytest
import torch

from torchimpt.checks import InputError
from torchimpt.geometry import Beam, Grid
from torchimpt.physics.wepl import ray_directions, ray_profile, ray_wepl, wepl

GRID = Grid((9, 13, 11), (3.0, 2.0, 2.5), (-12.3, -20.1, 7.7))
ISOCENTER = (1.2, -9.0, 18.4)
BACKENDS = ("numba", "torch")


def to_gantry(point, gantry, couch):
    """IEC 61217 spelled with sines and cosines: table, fixed, gantry frame; `point` is LPS relative to the isocenter."""
    g, c = math.radians(gantry), math.radians(couch)
    xs, ys, zs = point[0], point[2], -point[1]
    xf, yf, zf = math.cos(c) * xs - math.sin(c) * ys, math.sin(c) * xs + math.cos(c) * ys, zs
    return math.cos(g) * xf - math.sin(g) * zf, yf, math.sin(g) * xf + math.cos(g) * zf


def from_gantry(point, gantry, couch):
    """The inverse of `to_gantry`."""
    g, c = math.radians(gantry), math.radians(couch)
    xf, yf, zf = math.cos(g) * point[0] + math.sin(g) * point[2], point[1], -math.sin(g) * point[0] + math.cos(g) * point[2]
    xs, ys = math.cos(c) * xf + math.sin(c) * yf, -math.sin(c) * xf + math.cos(c) * yf
    return xs, -zf, ys


def siddon_oracle(rsp, grid, point, upstream):
    """Siddon's sum along the segment from `point` to `upstream`: collect the border crossings, sort, look each piece up."""
    delta = [b - a for a, b in zip(point, upstream, strict=True)]
    length = math.sqrt(sum(d * d for d in delta))
    crossings = [0.0, 1.0]
    for axis in range(3):
        for k in range(grid.shape[2 - axis] + 1):
            border = grid.origin[axis] + (k - 0.5) * grid.spacing[axis]
            if delta[axis] != 0.0 and 0.0 < (border - point[axis]) / delta[axis] < 1.0:
                crossings.append((border - point[axis]) / delta[axis])
    crossings.sort()
    total = 0.0
    for a, b in itertools.pairwise(crossings):
        middle = [point[i] + 0.5 * (a + b) * delta[i] for i in range(3)]
        index = [math.floor((middle[i] - grid.origin[i]) / grid.spacing[i] + 0.5) for i in range(3)]
        if all(0 <= index[i] < grid.shape[2 - i] for i in range(3)):
            total += float(rsp[index[2], index[1], index[0]]) * (b - a) * length
    return total


def oracle(rsp, grid, beam, sad, points, shift):
    """WEPL of each point by `siddon_oracle` along the line from the two virtual sources."""
    values = []
    for point in points.tolist():
        x, y, z = to_gantry([point[i] + shift[i] - beam.isocenter[i] for i in range(3)], beam.gantry, beam.couch)
        top = min(sad)
        upper = (x * (sad[0] - top) / (sad[0] - z), y * (sad[1] - top) / (sad[1] - z), top)
        back = from_gantry(upper, beam.gantry, beam.couch)
        values.append(siddon_oracle(rsp, grid, point, [back[i] + beam.isocenter[i] - shift[i] for i in range(3)]))
    return torch.tensor(values, dtype=torch.float64)


def random_rsp(generator, grid=GRID):
    """RSP 0 to 2, a quarter of the voxels air."""
    rsp = 2.0 * torch.rand(grid.shape, generator=generator, dtype=torch.float64)
    return rsp * (torch.rand(grid.shape, generator=generator) > 0.25)


def spread_points(generator, n=60):
    """Points inside the grid and up to its own size around it."""
    low = torch.tensor(GRID.origin, dtype=torch.float64)
    size = torch.tensor(GRID.spacing, dtype=torch.float64) * torch.tensor(GRID.shape[::-1])
    return low + size * (2.0 * torch.rand(n, 3, generator=generator, dtype=torch.float64) - 0.5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sad", [(2000.0, 2000.0), (2340.0, 1930.0), (150.0, 110.0)])
@pytest.mark.parametrize(("gantry", "couch"), [(0, 0), (90, 0), (180, 0), (270, 0), (37, 0), (0, 25), (123.4, 301.7), (215, 90)])
def test_agrees_with_the_oracle(gantry, couch, sad, backend, generator):
    rsp, beam = random_rsp(generator), Beam(gantry, couch, ISOCENTER)
    points = torch.cat((spread_points(generator), GRID.centers(torch.randint(GRID.n_voxels, (40,), generator=generator))))
    for shift in ((0.0, 0.0, 0.0), (3.0, -2.0, 1.1)):
        expected = oracle(rsp, GRID, beam, sad, points, shift)
        assert expected.max() > 10
        torch.testing.assert_close(wepl(rsp, GRID, beam, sad, points, shift, backend=backend), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("gantry", "couch"), [(0, 0), (90, 0), (180, 0), (270, 0), (20, 70)])
def test_points_on_voxel_borders_edges_and_corners(gantry, couch, backend, generator):
    # The isocenter off the grid's symmetry planes keeps the rays themselves from running inside a border.
    rsp, beam = random_rsp(generator), Beam(gantry, couch, (0.37, -8.11, 17.9))
    corner = torch.tensor(GRID.origin, dtype=torch.float64) - 0.5 * torch.tensor(GRID.spacing, dtype=torch.float64)
    steps = torch.stack([torch.randint(0, 2 * n + 1, (80,), generator=generator) for n in GRID.shape[::-1]], dim=1)
    points = corner + 0.5 * steps * torch.tensor(GRID.spacing, dtype=torch.float64)
    expected = oracle(rsp, GRID, beam, (500.0, 450.0), points, (0.0, 0.0, 0.0))
    torch.testing.assert_close(wepl(rsp, GRID, beam, (500.0, 450.0), points, backend=backend), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rays_parallel_to_the_axes_sum_one_line_of_voxels(backend, generator):
    rsp = random_rsp(generator)
    voxel = (4, 6, 5)
    center = GRID.centers(torch.tensor([(voxel[0] * 13 + voxel[1]) * 11 + voxel[2]]))
    lines = [
        ((1.0, 0, 0), rsp[4, 6, 6:].sum() * 3.0 + rsp[voxel] * 1.5),
        ((-1.0, 0, 0), rsp[4, 6, :5].sum() * 3.0 + rsp[voxel] * 1.5),
        ((0, 1.0, 0), rsp[4, 7:, 5].sum() * 2.0 + rsp[voxel]),
        ((0, -1.0, 0), rsp[4, :6, 5].sum() * 2.0 + rsp[voxel]),
        ((0, 0, 1.0), rsp[5:, 6, 5].sum() * 2.5 + rsp[voxel] * 1.25),
        ((0, 0, -1.0), rsp[:4, 6, 5].sum() * 2.5 + rsp[voxel] * 1.25),
    ]
    for direction, expected in lines:
        u, reach = torch.tensor([direction], dtype=torch.float64), torch.tensor([torch.inf], dtype=torch.float64)
        assert float(ray_wepl(rsp, GRID, center, u, reach, backend=backend)) == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_central_axis_at_quarter_turns_is_a_parallel_ray(backend, generator):
    rsp = random_rsp(generator)
    point = GRID.centers(torch.tensor([(4 * 13 + 6) * 11 + 5]))
    beams = {0: rsp[4, :6, 5].sum() * 2 + rsp[4, 6, 5], 90: rsp[4, 6, 6:].sum() * 3 + 1.5 * rsp[4, 6, 5]}
    beams |= {180: rsp[4, 7:, 5].sum() * 2 + rsp[4, 6, 5], 270: rsp[4, 6, :5].sum() * 3 + 1.5 * rsp[4, 6, 5]}
    for gantry, expected in beams.items():
        beam = Beam(gantry, isocenter=tuple(point[0].tolist()))
        assert float(wepl(rsp, GRID, beam, (2000.0, 2000.0), point, backend=backend)) == pytest.approx(float(expected), abs=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_ray_inside_a_border_takes_the_voxel_above(backend):
    grid = Grid((1, 4, 2), (2.0, 2.0, 2.0), (-1.0, -3.0, 0.0))
    rsp = torch.tensor([1.0, 3.0], dtype=torch.float64).expand(1, 4, 2)
    for x, expected in ((0.0, 24.0), (-1e-6, 8.0), (1e-6, 24.0)):
        point = torch.tensor([[x, 4.0, 0.0]], dtype=torch.float64)
        direction = torch.tensor([[1e-17, -1.0, 0.0]], dtype=torch.float64)
        reach = torch.tensor([torch.inf], dtype=torch.float64)
        assert float(ray_wepl(rsp, grid, point, direction, reach, backend=backend)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_closed_form_in_a_water_box(backend):
    grid = Grid((20, 20, 20), (2.0, 2.0, 2.0), (-19.0, -19.0, -19.0))
    rsp, beam, sad = torch.ones(grid.shape), Beam(0, isocenter=(0, 0, 0)), 1000.0
    points = torch.tensor([[0.0, -25, 0], [0, 0, 0], [9.0, 3, -7], [5.0, 40, 0], [300.0, 0, 0]], dtype=torch.float64)
    stretch = [math.sqrt(1 + (x * x + z * z) / (sad + y) ** 2) for x, y, z in points.tolist()]
    depth = [0.0, 20.0, 23.0, 40.0, 0.0]
    expected = torch.tensor([d * s for d, s in zip(depth, stretch, strict=True)], dtype=torch.float64)
    torch.testing.assert_close(wepl(rsp, grid, beam, (sad, sad), points, backend=backend), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_setup_shift_is_the_isocenter_moved_the_other_way(backend, generator):
    rsp, shift = random_rsp(generator), (3.0, -1.5, 2.0)
    moved = tuple(c - s for c, s in zip(ISOCENTER, shift, strict=True))
    points = spread_points(generator)
    a = wepl(rsp, GRID, Beam(70, 20, ISOCENTER), (800.0, 900.0), points, shift, backend=backend)
    b = wepl(rsp, GRID, Beam(70, 20, moved), (800.0, 900.0), points, backend=backend)
    torch.testing.assert_close(a, b, atol=1e-9, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_turning_patient_and_gantry_together_changes_nothing(backend, generator):
    # A patient turned by 90 degrees about z: LPS (x, y) -> (-y, x). Gantry 0 (from -y) becomes gantry 90 (from +x).
    grid = Grid((7, 10, 8), (2.0, 2.0, 3.0), (-7.0, -9.0, -9.0))
    rsp = random_rsp(generator, grid)
    turned = Grid((7, 8, 10), (2.0, 2.0, 3.0), (-9.0, -7.0, -9.0))
    points = 8.0 * torch.randn(50, 3, generator=generator, dtype=torch.float64)
    x, y, z = points.unbind(1)
    a = wepl(rsp, grid, Beam(15, isocenter=(0, 0, 0)), (700.0, 900.0), points, backend=backend)
    rsp_turned = rsp.transpose(1, 2).flip(2)
    b = wepl(rsp_turned, turned, Beam(105, isocenter=(0, 0, 0)), (700.0, 900.0), torch.stack((-y, x, z), dim=1), backend=backend)
    torch.testing.assert_close(a, b, atol=1e-9, rtol=0)


def test_directions_meet_both_virtual_sources(generator):
    beam, sad = Beam(40, 15, (0.0, 0.0, 0.0)), (900.0, 1200.0)
    points = 50 * torch.randn(20, 3, generator=generator, dtype=torch.float64)
    direction, reach = ray_directions(points, beam, sad)
    torch.testing.assert_close(direction.norm(dim=1), torch.ones(20, dtype=torch.float64))
    for p, u, end in zip(points.tolist(), direction.tolist(), reach.tolist(), strict=True):
        a, d = to_gantry(p, 40, 15), to_gantry(u, 40, 15)
        assert a[0] + d[0] / d[2] * (sad[0] - a[2]) == pytest.approx(0, abs=1e-9)
        assert a[1] + d[1] / d[2] * (sad[1] - a[2]) == pytest.approx(0, abs=1e-9)
        assert a[2] + end * d[2] == pytest.approx(900.0)


def test_profile_lists_the_crossed_voxels_with_the_wepl_of_their_borders(generator):
    rsp, sad = random_rsp(generator), (600.0, 500.0)
    beam = Beam(33, 12, ISOCENTER)
    own = torch.randint(GRID.n_voxels, (60,), generator=generator)
    centers = GRID.centers(own)
    direction, reach = ray_directions(centers, beam, sad)
    voxels, enter, leave = ray_profile(rsp, GRID, centers + reach[:, None] * direction, -direction)
    used = voxels >= 0
    assert used[:, 0].all() and not used.all() and used.any(dim=0).all()
    assert (enter[:, 0] == 0).all() and (enter[:, 1:] == leave[:, :-1])[used[:, 1:]].all()
    # A chord through a box's centre is halved by it, so the middle of the own voxel's interval is the centre's WEPL.
    hit = voxels == own[:, None]
    assert (hit.sum(dim=1) == 1).all()
    torch.testing.assert_close((0.5 * (enter + leave))[hit], wepl(rsp, GRID, beam, sad, centers), atol=1e-9, rtol=0)
    whole = ray_wepl(rsp, GRID, centers - 200.0 * direction, direction, reach + 200.0)
    torch.testing.assert_close(leave.where(used, 0.0).amax(dim=1), whole, atol=1e-9, rtol=0)


def test_profile_of_rays_that_miss_is_empty():
    start = torch.tensor([[500.0, -500.0, 0.0]], dtype=torch.float64)
    voxels, enter, leave = ray_profile(torch.ones(GRID.shape), GRID, start, torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64))
    assert voxels.shape == enter.shape == leave.shape == (1, 0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_points_no_matter_and_float32_input(backend, generator):
    beam, sad = Beam(0, isocenter=ISOCENTER), (900.0, 900.0)
    assert wepl(torch.ones(GRID.shape), GRID, beam, sad, torch.zeros(0, 3), backend=backend).shape == (0,)
    assert wepl(torch.zeros(GRID.shape), GRID, beam, sad, torch.zeros(5, 3), backend=backend).tolist() == [0.0] * 5
    rsp, points = random_rsp(generator).float(), spread_points(generator).float()
    out = wepl(rsp, GRID, beam, sad, points, backend=backend)
    assert out.dtype == torch.float64
    torch.testing.assert_close(out, wepl(rsp.double(), GRID, beam, sad, points.double(), backend=backend))


def test_wrong_arguments_are_named():
    beam, sad, rsp = Beam(0, isocenter=(0, 0, 0)), (900.0, 900.0), torch.ones(GRID.shape)
    with pytest.raises(InputError, match="behind the source"):
        wepl(rsp, GRID, beam, sad, torch.tensor([[0.0, -950.0, 0.0]]))
    with pytest.raises(InputError, match="grid's shape"):
        wepl(rsp[1:], GRID, beam, sad, torch.zeros(1, 3))
    with pytest.raises(InputError, match="backend must be"):
        wepl(rsp, GRID, beam, sad, torch.zeros(1, 3), backend="siddon")
    with pytest.raises(InputError, match="no isocenter"):
        wepl(rsp, GRID, Beam(0), sad, torch.zeros(1, 3))
