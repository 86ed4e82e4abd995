"""The patient: what it answers, and which patients cannot be made."""

from __future__ import annotations

import pytest
import torch

import torchimpt as ti
from torchimpt.checks import InputError
from torchimpt.geometry import Grid
from torchimpt.patient import ROI, Patient
from torchimpt.points import Points
from torchimpt.resampling import resample

SHAPE = (3, 4, 5)
GRID = Grid(SHAPE, (1.0, 2.0, 3.0), (10.0, 20.0, 30.0))


def mask(*voxels: tuple[int, int, int]) -> torch.Tensor:
    m = torch.zeros(SHAPE, dtype=torch.bool)
    for voxel in voxels:
        m[voxel] = True
    return m


@pytest.fixture
def patient() -> Patient:
    rois = [
        ROI("External", torch.ones(SHAPE, dtype=torch.bool), "external"),
        ROI("PTV70", mask((1, 2, 3)), "target"),
        ROI("PTV56", mask((1, 2, 3), (1, 2, 4), (2, 3, 4)), "target"),
        ROI("Brainstem", mask((0, 0, 0))),
        ROI("Nothing", mask()),
    ]
    return Patient(torch.zeros(SHAPE), GRID, {roi.name: roi for roi in rois}, name="p")


def test_roi_voxels_are_flat_indices_in_c_order(patient: Patient) -> None:
    assert patient.roi("PTV56").voxels.tolist() == [1 * 20 + 2 * 5 + 3, 1 * 20 + 2 * 5 + 4, 2 * 20 + 3 * 5 + 4]


def test_union_centroid_targets_body(patient: Patient) -> None:
    assert torch.equal(patient.union(["PTV70", "Brainstem"]), mask((1, 2, 3), (0, 0, 0)))
    assert patient.centroid("PTV70") == (13.0, 24.0, 33.0)
    assert patient.centroid(["PTV70", "Brainstem"]) == (11.5, 22.0, 31.5)
    assert patient.targets == ("PTV70", "PTV56")
    assert patient.external is patient.roi("External") and patient.body.all()


def test_without_external_everything_is_the_body() -> None:
    patient = Patient(torch.zeros(SHAPE), GRID)
    assert patient.external is None and patient.body.all() and patient.body.shape == SHAPE


def test_a_missing_roi_names_those_that_are_there(patient: Patient) -> None:
    with pytest.raises(InputError, match=r"no ROI 'Brainstm' \(did you mean 'Brainstem'\?\); it has Brainstem, External, Nothing, PTV56"):
        patient.roi("Brainstm")
    with pytest.raises(InputError, match="it has none"):
        Patient(torch.zeros(SHAPE), GRID).roi("PTV")


def test_an_empty_union_is_refused(patient: Patient) -> None:
    with pytest.raises(InputError, match="ROI Nothing has no voxel on this grid"):
        patient.union("Nothing")
    with pytest.raises(InputError, match="has no voxel"):
        patient.centroid(["Nothing"])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "1 voxels that are NaN"),
        (float("inf"), "NaN or infinite"),
        (-3000.0, "no Hounsfield units"),
        (65535.0, "rescale slope"),
    ],
)
def test_absurd_ct_numbers_are_refused(value: float, message: str) -> None:
    hu = torch.zeros(SHAPE)
    hu[0, 1, 2] = value
    with pytest.raises(InputError, match=message):
        Patient(hu, GRID)


def test_shapes_have_to_fit() -> None:
    with pytest.raises(InputError, match=r"\(3, 4, 6\) does not fit the grid's \(3, 4, 5\)"):
        Patient(torch.zeros(3, 4, 6), GRID)
    with pytest.raises(InputError, match="ROI 'A' has shape"):
        Patient(torch.zeros(SHAPE), GRID, {"A": ROI("A", torch.ones(5, 4, 3, dtype=torch.bool))})


def test_roles_and_types_are_checked() -> None:
    with pytest.raises(InputError, match=r"role must be one of target, oar, external, got 'traget' \(did you mean 'target'\?\)"):
        ROI("A", mask(), "traget")
    with pytest.raises(TypeError, match=r"must be a bool tensor, got torch\.float32"):
        ROI("A", torch.zeros(SHAPE))
    two = {name: ROI(name, mask((0, 0, 0)), "external") for name in ("A", "B")}
    with pytest.raises(InputError, match="at most one ROI with the role 'external'"):
        Patient(torch.zeros(SHAPE), GRID, two)


def test_rays_go_through_the_ct_as_it_was_read_where_it_is_coarse() -> None:
    grid = Grid((6, 6, 6), (4.0, 4.0, 2.5), (0.0, 0.0, 0.0))
    read = Patient(torch.arange(216.0).reshape(6, 6, 6), grid)
    assert read.traced is read
    assert resample(read, 3.0).traced is read
    assert resample(read, 8.0).traced is not read
    assert resample(read, [12.0, 12.0, 7.5]).traced is read, "a third of it"
    assert resample(read, [12.0, 12.0, 7.6]).traced is not read


def test_a_dose_on_another_grid_is_that_through_the_ct_as_it_was_read() -> None:
    """A step of density at a voxel's face, which a grid of 3 mm would put into the middle of one of its own."""
    hu = torch.zeros(12, 12, 12)
    hu[:, :5] = -700.0  # the first 20 mm on the beam's way
    read = Patient(hu, Grid((12, 12, 12), (4.0, 4.0, 4.0), (-22.0, -22.0, -22.0)))
    machine, beam = ti.machine.generic(), ti.Beam(0.0, isocenter=(0.0, 0.0, 0.0))
    column = torch.zeros(1)
    spots = ti.Spots.from_columns([beam], column.long(), column + 75.0, column, column, column + 1.0)
    place = torch.tensor([[0.5, y, 0.3] for y in (-10.0, 0.0, 14.0)], dtype=torch.float64)
    points = Points((place,), torch.ones(3, dtype=torch.float64), {})
    doses = [
        ti.scenario_doses(patient, machine, spots, points, dtype=torch.float64).dose(spots.position.double(), spots.weight.double())
        for patient in (read, resample(read, 3.0))
    ]
    assert torch.equal(*doses)
