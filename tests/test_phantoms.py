"""Phantoms: geometry where it is exact, anatomy where it is drawn, and the solids against loop-written conditions."""

from __future__ import annotations

import math

import pytest
import torch

from torchimpt.checks import InputError
from torchimpt.geometry import Grid
from torchimpt.patient import Patient
from torchimpt.phantoms import PHANTOMS, phantom, step, water
from torchimpt.phantoms.solids import Solid, both, box, column, ellipsoid, mirrored, tube

XU_ROIS = {
    "hn": {"CTV", "Brainstem", "LeftParotid", "RightParotid", "SpinalCord"},
    "lung": {"CTV", "Esophagus", "SpinalCord", "LeftLung", "RightLung", "Heart"},
    "prostate": {"CTV", "Rectum", "Bladder", "LeftFemoralHead", "RightFemoralHead"},
    "xu_hn": {"CTV", "Brainstem", "LeftParotid", "RightParotid", "SpinalCord"},
    "xu_lung": {"CTV", "Esophagus", "SpinalCord", "Fan", "LeftLung", "RightLung"},
    "xu_prostate": {"CTV", "Rectum", "Bladder", "LeftFemoralHead", "RightFemoralHead"},
}


class _Bodies(dict[str, Patient]):
    """Phantoms by name at their default spacing, each made when it is asked for: a process of several runs a part of the tests."""

    def __missing__(self, name: str) -> Patient:
        self[name] = phantom(name)
        return self[name]


@pytest.fixture(scope="module")
def bodies() -> dict[str, Patient]:
    """Each phantom once."""
    return _Bodies()


def volume(patient: Patient, name: str) -> float:
    """cm^3 of a ROI."""
    return float(patient.roi(name).mask.sum()) * patient.grid.voxel_volume / 1000.0


def mean_hu(patient: Patient, name: str) -> float:
    return float(patient.hu[patient.roi(name).mask].mean())


LARGE = ("lung", "prostate", "xu_hn", "xu_lung", "xu_prostate")
"""Some seconds each."""


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in PHANTOMS])
def test_every_phantom_has_one_external_a_target_and_no_empty_roi(bodies: dict[str, Patient], name: str) -> None:
    patient = bodies[name]
    assert patient.name == name
    assert patient.external is not None and patient.external.name == "External"
    assert len(patient.targets) == 1
    body = patient.body
    for roi in patient.rois.values():
        assert roi.mask.any(), roi.name
        assert not (roi.mask & ~body).any(), f"{roi.name} reaches out of the body"
    assert patient.grid.spacing == (3.0, 3.0, 3.0)
    assert float(patient.hu.min()) >= -1000.0 and float(patient.hu.max()) <= 2000.0
    # Deep in the air beside the body nothing is painted.
    far = ~body & ~torch.nn.functional.max_pool3d(body[None].float(), 3, 1, 1)[0].bool()
    assert not far.any() or float(patient.hu[far].max()) == -1000.0


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in XU_ROIS])
def test_bodies_have_the_rois_that_xu_plans_with(bodies: dict[str, Patient], name: str) -> None:
    assert XU_ROIS[name] <= set(bodies[name].rois)
    assert bodies[name].targets == ("CTV",)


def test_water_is_water_and_its_target_is_a_cube_in_the_middle() -> None:
    patient = water(2.0, size=(80.0, 100.0, 60.0))
    assert patient.grid.shape == (30, 50, 40)
    assert (patient.hu == 0).all()
    assert patient.body.all()
    assert patient.centroid("Target") == pytest.approx((0, 0, 0), abs=1e-12)
    assert volume(patient, "Target") == pytest.approx(64.0)
    assert patient.grid.origin == (-39.0, -49.0, -29.0)


def test_step_is_a_slab_in_the_left_half() -> None:
    patient = step(2.0, size=100.0, hu=-700.0, depth=(30.0, 60.0))
    points = patient.grid.centers().reshape(*patient.grid.shape, 3)
    depth = points[..., 1] + 50.0
    slab = (points[..., 0] > 0) & (depth > 30) & (depth < 60)
    assert (patient.hu[slab] == -700).all()
    assert (patient.hu[~slab] == 0).all()


def test_tg119_has_the_report_s_radii_and_lengths(bodies: dict[str, Patient]) -> None:
    patient = bodies["tg119"]
    target = patient.roi("OuterTarget")
    x, y, z = patient.grid.centers(target.voxels).T
    radius = (x**2 + y**2).sqrt()
    assert radius.min() >= 15 - 1.5 and radius.max() <= 37 + 1.5
    assert z.max() - z.min() == pytest.approx(77, abs=3.0)
    # a voxel that is cut in half belongs to it, so that its centre may lie on the edge, and nowhere beyond it
    assert not (y > x.abs() + 1e-6).any(), "the C is open to posterior"
    ring = 0.75 * math.pi * (37**2 - 15**2) * 80 / 1000
    # Whole voxels of 3 mm: its ends alone are uncertain by 3 mm of 80.
    assert volume(patient, "OuterTarget") == pytest.approx(ring, rel=0.06)
    assert volume(patient, "Core") == pytest.approx(math.pi * 100 * 100 / 1000, rel=0.06)
    assert not (target.mask & patient.roi("Core").mask).any()


def test_head_and_neck_anatomy_lies_as_in_a_patient(bodies: dict[str, Patient]) -> None:
    patient = bodies["hn"]
    center = {name: patient.centroid(name) for name in patient.rois}
    assert 45 <= volume(patient, "CTV") <= 56
    assert center["LeftParotid"][0] > 40 and center["RightParotid"][0] < -40
    assert center["CTV"][0] > 15, "the target is on the patient's left"
    assert center["Brainstem"][2] > center["Mandible"][2] + 40
    assert center["Brainstem"][1] > center["Mandible"][1] + 20
    assert center["SpinalCord"][2] < center["Brainstem"][2] - 40
    assert center["Larynx"][2] < center["CTV"][2]
    assert mean_hu(patient, "Mandible") > 500
    assert -60 < mean_hu(patient, "LeftParotid") < 40
    assert 10 < mean_hu(patient, "Brainstem") < 45
    assert not (patient.roi("CTV").mask & (patient.hu < -700)).any(), "the airway is no target"
    extent = [float(c.max() - c.min()) + 3 for c in patient.grid.centers(patient.external.voxels).T]
    assert 140 <= extent[0] <= 186 and 190 <= extent[1] <= 222 and extent[2] == pytest.approx(198)


@pytest.mark.slow
def test_lungs_are_air_and_the_tumour_is_in_the_right_one(bodies: dict[str, Patient]) -> None:
    patient = bodies["lung"]
    assert 90 <= volume(patient, "CTV") <= 110
    assert patient.centroid("CTV")[0] < -40
    assert patient.centroid("LeftLung")[0] > 40
    assert mean_hu(patient, "LeftLung") < -650 and mean_hu(patient, "RightLung") < -650
    assert not (patient.roi("LeftLung").mask & patient.roi("Heart").mask).any()
    assert patient.centroid("SpinalCord")[1] > patient.centroid("Esophagus")[1] > patient.centroid("Heart")[1]


@pytest.mark.slow
def test_prostate_lies_between_bladder_and_rectum(bodies: dict[str, Patient]) -> None:
    patient = bodies["prostate"]
    assert patient.centroid("Bladder")[1] < patient.centroid("CTV")[1] < patient.centroid("Rectum")[1]
    assert patient.centroid("Bladder")[2] > patient.centroid("CTV")[2]
    assert patient.centroid("LeftFemoralHead")[0] > 80 and patient.centroid("RightFemoralHead")[0] < -80
    for roi in ("Bladder", "Rectum"):
        assert not (patient.roi(roi).mask & patient.roi("CTV").mask).any()
    assert mean_hu(patient, "LeftFemoralHead") > 200


@pytest.mark.slow
def test_xu_s_targets_are_of_their_size_and_leave_their_organs_out(bodies: dict[str, Patient]) -> None:
    for name, size in (("xu_hn", 51.6), ("xu_lung", 97.7), ("xu_prostate", 854.4)):
        patient = bodies[name]
        assert volume(patient, "CTV") == pytest.approx(size, rel=0.05)
        for organ in XU_ROIS[name] - {"CTV", "LeftLung", "RightLung", "LeftFemoralHead", "RightFemoralHead"}:
            assert not (patient.roi("CTV").mask & patient.roi(organ).mask).any(), organ
    head, thorax = bodies["xu_hn"], bodies["xu_lung"]
    assert head.centroid("CTV")[1] < head.centroid("Brainstem")[1] - 20 and head.centroid("CTV")[2] > head.centroid("LeftParotid")[2] + 20
    # a voxel at its edge may be two thirds air
    assert float(head.hu[head.roi("CTV").mask].min()) > -700, "no air in it"
    assert thorax.centroid("Fan")[1] > thorax.centroid("CTV")[1] + 50, "behind the target"
    overlap = thorax.roi("CTV").mask & thorax.roi("RightLung").mask
    assert 0 < float(overlap.sum()) < 0.2 * float(thorax.roi("CTV").mask.sum())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hn", "tg119"])
def test_spacing_changes_the_grid_not_the_body(bodies: dict[str, Patient], name: str) -> None:
    coarse = phantom(name, spacing=4.0)
    for roi in coarse.rois:
        if volume(coarse, roi) > 20:
            assert volume(coarse, roi) == pytest.approx(volume(bodies[name], roi), rel=0.1)
            assert coarse.centroid(roi) == pytest.approx(bodies[name].centroid(roi), abs=1.0)


@pytest.mark.slow
def test_phantoms_are_the_same_every_time(bodies: dict[str, Patient]) -> None:
    again = phantom("hn")
    assert torch.equal(again.hu, bodies["hn"].hu)
    assert all(torch.equal(again.rois[name].mask, roi.mask) for name, roi in bodies["hn"].rois.items())


@pytest.mark.parametrize("spacing", [0.0, -3.0, float("nan"), float("inf"), 60.0, 0.05])
def test_bad_spacing_is_refused(spacing: float) -> None:
    with pytest.raises(InputError, match="phantom's spacing"):
        phantom("water", spacing)


def test_unknown_phantom_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"no phantom 'prostata' \(did you mean 'prostate'\?\)"):
        phantom("prostata")


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="at least 60 mm"):
        water(3.0, size=(100.0, 20.0, 100.0))
    with pytest.raises(InputError, match="ascending depths"):
        step(3.0, depth=(60.0, 30.0))


GRID = Grid(shape=(20, 22, 24), spacing=(1.0, 1.1, 0.9), origin=(-11.0, -12.0, -8.0))


def ball(radius: float) -> Solid:
    return ellipsoid((0, 0, 0), (radius,) * 3)


@pytest.mark.parametrize(
    ("solid", "condition"),
    [
        (box((-3, -4, -5), (6, 5, 2)), lambda x, y, z: -3 <= x <= 6 and -4 <= y <= 5 and -5 <= z <= 2),
        (ellipsoid((1, 2, 0), (5, 4, 6)), lambda x, y, z: ((x - 1) / 5) ** 2 + ((y - 2) / 4) ** 2 + (z / 6) ** 2 <= 1),
        (
            ellipsoid((0, 0, 1), (7, 3, 2), yaw=30.0),
            lambda x, y, z: (
                ((x * math.cos(math.pi / 6) + y * math.sin(math.pi / 6)) / 7) ** 2
                + ((y * math.cos(math.pi / 6) - x * math.sin(math.pi / 6)) / 3) ** 2
                + ((z - 1) / 2) ** 2
                <= 1
            ),
        ),
        (column((1, -1), (4, 6), (-3, 5), power=4.0), lambda x, y, z: ((x - 1) / 4) ** 4 + ((y + 1) / 6) ** 4 <= 1 and -3 <= z <= 5),
        (mirrored(ellipsoid((5, 0, 0), (3, 4, 5))), lambda x, y, z: ((x + 5) / 3) ** 2 + (y / 4) ** 2 + (z / 5) ** 2 <= 1),
        (both(ellipsoid((5, 0, 0), (3, 4, 5))), lambda x, y, z: ((abs(x) - 5) / 3) ** 2 + (y / 4) ** 2 + (z / 5) ** 2 <= 1),
        (
            (ball(7.0) | box((5, -9, -9), (9, 9, 9))) - (ball(4.0) | box((-9, -9, 3), (9, 9, 9))),
            lambda x, y, z: (
                (x * x + y * y + z * z <= 49 or (5 <= x <= 9 and abs(y) <= 9 and abs(z) <= 9))
                and not (x * x + y * y + z * z <= 16 or (3 <= z <= 9 and abs(x) <= 9 and abs(y) <= 9))
            ),
        ),
        (
            (box((-9, -9, -9), (0, 9, 9)) | box((4, -9, -9), (9, 9, 9))) & ball(6.0),
            lambda x, y, z: (-9 <= x <= 0 or 4 <= x <= 9) and x * x + y * y + z * z <= 36,
        ),
    ],
)
def test_solids_against_conditions_point_by_point(solid: Solid, condition: object) -> None:
    expected = torch.tensor([condition(*point) for point in GRID.centers().tolist()]).reshape(GRID.shape)
    # A voxel centre on the surface itself may fall either way in float32.
    assert int((solid.mask(GRID) ^ expected).sum()) <= 2
    assert expected.any() and not expected.all()


def test_tube_is_all_within_its_radius_of_the_line() -> None:
    points, radii = [(-6.0, -3.0, -2.0), (2.0, 4.0, 1.0), (7.0, 0.0, 6.0)], [2.0, 3.0, 1.5]
    p = GRID.centers()
    expected = torch.zeros(len(p), dtype=torch.bool)
    for a, b, r_a, r_b in zip(points, points[1:], radii, radii[1:], strict=False):
        a, b = torch.tensor(a).double(), torch.tensor(b).double()
        t = (((p - a) @ (b - a)) / ((b - a) @ (b - a))).clamp(0, 1)
        expected |= (p - a - t[:, None] * (b - a)).norm(dim=1) <= r_a + t * (r_b - r_a)
    assert torch.equal(tube(points, radii).mask(GRID).flatten(), expected)


def test_pitch_turns_posterior_to_superior() -> None:
    mask = ellipsoid((0, 0, 0), (1.5, 9, 1.5), pitch=90.0).mask(GRID)
    _, y, z = GRID.centers(mask.flatten().nonzero().flatten()).T
    assert z.max() > 7 and y.abs().max() < 2
    tilted = ellipsoid((0, 0, 0), (1.5, 9, 1.5), pitch=30.0).mask(GRID)
    _, y, z = GRID.centers(tilted.flatten().nonzero().flatten()).T
    assert float((y * z).mean()) > 0, "the posterior end rises"
