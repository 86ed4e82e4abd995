"""Resampling: against a loop over voxel overlaps, conservation, symmetry, and what must not happen quietly."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch

from torchimpt.checks import InputError, PhysicsWarning
from torchimpt.geometry import Grid
from torchimpt.patient import ROI, Patient
from torchimpt.resampling import resample, values_on


def random_patient(generator: torch.Generator, shape=(5, 6, 7), spacing=(1.0, 1.3, 0.7), origin=(3.0, -2.0, 9.0)) -> Patient:
    """Noise, with one blob and one scattered ROI."""
    hu = 1000 * torch.randn(shape, generator=generator).clamp(-1.5, 3)
    blob = torch.zeros(shape, dtype=torch.bool)
    blob[1:, 2:, 1:] = True
    scattered = torch.rand(shape, generator=generator) < 0.9
    return Patient(hu, Grid(shape, spacing, origin), {"PTV": ROI("PTV", blob, "target"), "Dots": ROI("Dots", scattered)}, name="noise")


def edges(grid: Grid, axis: int) -> list[tuple[float, float]]:
    """Lower and upper faces of the voxels along LPS axis 0, 1 or 2."""
    step = grid.spacing[axis]
    return [(grid.origin[axis] + (i - 0.5) * step, grid.origin[axis] + (i + 0.5) * step) for i in range(grid.shape[2 - axis])]


def loop_overlap(old: Grid, new: Grid, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Integral of `values` over every new voxel, mm^3, and the volume of it inside the old box, voxel pair by voxel pair."""
    total, covered = torch.zeros(new.shape, dtype=torch.float64), torch.zeros(new.shape, dtype=torch.float64)
    shared = []
    for axis in range(3):
        shared.append([[max(0.0, min(b, d) - max(a, c)) for c, d in edges(old, axis)] for a, b in edges(new, axis)])
    for k, j, i in itertools.product(*(range(n) for n in new.shape)):
        for k0, j0, i0 in itertools.product(*(range(n) for n in old.shape)):
            v = shared[2][k][k0] * shared[1][j][j0] * shared[0][i][i0]
            total[k, j, i] += v * float(values[k0, j0, i0])
            covered[k, j, i] += v
    return total, covered


@pytest.mark.filterwarnings("ignore:ROI .* more than a fifth")  # random dots
@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (2.1, 1.3, 3.3), (0.9, 3.0, 0.6)])
def test_against_a_loop_over_voxel_pairs(generator: torch.Generator, spacing: tuple[float, float, float]) -> None:
    patient = random_patient(generator)
    result = resample(patient, spacing)
    total, covered = loop_overlap(patient.grid, result.grid, patient.hu)
    # float32 CT numbers up to 3000 HU.
    torch.testing.assert_close(result.hu.double(), total / covered, rtol=1e-6, atol=1e-3)
    for name, roi in patient.rois.items():
        inside, _ = loop_overlap(patient.grid, result.grid, roi.mask)
        assert torch.equal(result.rois[name].mask, inside / result.grid.voxel_volume >= 0.5 - 1e-5)
        assert result.rois[name].role == roi.role
    assert result.name == "noise"


@pytest.mark.filterwarnings("ignore:ROI .* more than a fifth")  # random dots
@pytest.mark.parametrize("spacing", [3.0, (2.0, 2.5, 4.0), 1.0])
def test_new_grid_covers_the_box_with_less_than_a_voxel_to_spare(generator: torch.Generator, spacing) -> None:
    old, new = (patient := random_patient(generator)).grid, resample(patient, spacing).grid
    for axis in range(3):
        (low, _), (_, high) = edges(old, axis)[0], edges(old, axis)[-1]
        (new_low, _), (_, new_high) = edges(new, axis)[0], edges(new, axis)[-1]
        assert new_low <= low + 1e-5 and new_high >= high - 1e-5
        assert (new_high - new_low) - (high - low) < new.spacing[axis]
        assert low + high == pytest.approx(new_low + new_high), "same centre"


def test_whole_multiple_makes_plain_block_means(generator: torch.Generator) -> None:
    patient = random_patient(generator, shape=(4, 6, 8), spacing=(1.5, 1.5, 1.5))
    result = resample(patient, 3.0)
    blocks = patient.hu.double().reshape(2, 2, 3, 2, 4, 2).mean(dim=(1, 3, 5))
    torch.testing.assert_close(result.hu.double(), blocks, rtol=1e-6, atol=1e-3)
    assert result.hu.dtype == torch.float32
    assert result.hu.mean() == pytest.approx(float(patient.hu.mean()), abs=1e-3), "the mean CT number is kept"


@pytest.mark.parametrize(("n", "step", "coarse"), [(100, 3.0, 3.0000001), (128, 4.367, 3.0), (81, 0.1, 0.3), (3, 0.1, 0.3)])
def test_rounding_makes_no_extra_voxel(n: int, step: float, coarse: float) -> None:
    patient = Patient(torch.zeros(1, 1, n), Grid((1, 1, n), (step, 1, 1), (0, 0, 0)))
    expected = -(-round(n * step * 1e7) // round(coarse * 1e7))
    assert abs(resample(patient, (coarse, 1, 1)).grid.shape[2] - expected) <= (1 if coarse > step * 1.5 and n == 128 else 0)


def test_the_same_spacing_gives_the_same_patient(generator: torch.Generator) -> None:
    patient = random_patient(generator)
    assert resample(patient, patient.grid.spacing) is patient


def test_there_and_back_keeps_everything(generator: torch.Generator) -> None:
    patient = random_patient(generator, shape=(4, 5, 6), spacing=(2.0, 2.0, 2.0))
    back = resample(resample(patient, 1.0), 2.0)
    torch.testing.assert_close(back.hu, patient.hu, rtol=1e-6, atol=1e-3)
    assert back.grid == patient.grid
    for name, roi in patient.rois.items():
        assert torch.equal(back.rois[name].mask, roi.mask)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_mirroring_commutes(generator: torch.Generator, axis: int) -> None:
    patient = random_patient(generator)
    flipped = Patient(patient.hu.flip(axis), patient.grid, {n: ROI(n, r.mask.flip(axis), r.role) for n, r in patient.rois.items()})
    a, b = resample(patient, 2.0), resample(flipped, 2.0)
    torch.testing.assert_close(b.hu.flip(axis), a.hu, rtol=1e-6, atol=1e-3)
    for name in a.rois:
        assert torch.equal(b.rois[name].mask.flip(axis), a.rois[name].mask)


def test_half_a_voxel_belongs_to_the_roi() -> None:
    mask = torch.zeros(1, 1, 4, dtype=torch.bool)
    mask[..., 1:3] = True
    patient = Patient(torch.zeros(1, 1, 4), Grid((1, 1, 4), (1, 1, 1), (0, 0, 0)), {"A": ROI("A", mask)})
    assert resample(patient, (2, 1, 1)).rois["A"].mask.all(), "both neighbours are filled by exactly one half"


def test_edge_voxels_average_only_what_the_ct_has() -> None:
    patient = Patient(torch.full((1, 1, 3), 100.0), Grid((1, 1, 3), (1, 1, 1), (0, 0, 0)))
    result = resample(patient, (2, 1, 1))
    assert result.grid.shape == (1, 1, 2)
    assert torch.equal(result.hu, torch.full((1, 1, 2), 100.0)), "no air is mixed in from beside the CT"


def test_a_roi_that_vanishes_says_so_and_names_itself_when_used() -> None:
    mask = torch.zeros(6, 6, 6, dtype=torch.bool)
    mask[3, 3, 3] = True
    patient = Patient(torch.zeros(6, 6, 6), Grid((6,) * 3, (1,) * 3, (0,) * 3), {"Chiasm": ROI("Chiasm", mask)})
    with pytest.warns(PhysicsWarning, match="ROI Chiasm: no voxel of 3 x 3 x 3 mm is filled by half"):
        result = resample(patient, 3.0)
    with pytest.raises(InputError, match="ROI Chiasm has no voxel on this grid"):
        result.union("Chiasm")


def test_a_roi_that_loses_more_than_a_fifth_says_so() -> None:
    """10 x 10 x 10 voxels become 27 of 27 voxels each, 73 %; 10 x 9 x 9 become as many, 90 %."""
    mask = torch.zeros(12, 12, 12, dtype=torch.bool)
    mask[:10, :10, :10] = True
    cube, plate = ROI("Cube", mask), ROI("Plate", mask.clone())
    plate.mask[:, 9:, :], plate.mask[:, :, 9:] = False, False
    patient = Patient(torch.zeros(12, 12, 12), Grid((12,) * 3, (1,) * 3, (0,) * 3), {"Cube": cube, "Plate": plate})
    with pytest.warns(PhysicsWarning) as told:
        resample(patient, 3.0)
    assert [str(warning.message).split(":")[0] for warning in told] == ["ROI Cube (1 to 0.73 cm3)"]


def test_an_empty_roi_stays_empty_without_a_word() -> None:
    patient = Patient(torch.zeros(4, 4, 4), Grid((4,) * 3, (1,) * 3, (0,) * 3), {"A": ROI("A", torch.zeros(4, 4, 4, dtype=torch.bool))})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not resample(patient, 2.0).rois["A"].mask.any()


@pytest.mark.parametrize("spacing", [0.0, -3.0, (3.0, 0.0, 3.0), (3.0, 3.0), float("nan"), (1.0, float("inf"), 1.0)])
def test_bad_spacing_is_refused(generator: torch.Generator, spacing) -> None:
    with pytest.raises(InputError, match="spacing must be"):
        resample(random_patient(generator), spacing)


def test_a_grid_that_would_fill_the_memory_is_refused(generator: torch.Generator) -> None:
    patient = random_patient(generator)
    for spacing in (0.005, 1e-9, 5e-324):
        with pytest.raises(
            InputError, match=r"a grid of .* mm has .* voxels, at most 1e\+08 are taken; use a spacing \(grid_mm\) .* times as"
        ):
            resample(patient, spacing)


def test_a_grid_is_weighed_before_it_is_made(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all its ROIs a patient may be too large for this machine where the number of voxels alone is not."""
    patient = random_patient(generator)
    fine = resample(patient, 1.0)
    kept = sum(t.numel() * t.element_size() for t in (fine.hu, *(roi.mask for roi in fine.rois.values())))
    monkeypatch.setattr("torchimpt.memory._system_memory", lambda: kept)
    with pytest.raises(InputError, match=r"the patient on a grid of 1 x 1 x 1 mm \(.* voxels, \d+ ROIs\) would take .* GB, .* GB are free"):
        resample(patient, 1.0)


def test_the_centroid_is_that_of_the_roi_as_read(generator):
    """Not that of what is left of it on a coarse grid, however often it is resampled."""
    patient = random_patient(generator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PhysicsWarning)
        coarse = resample(resample(patient, 1.7), 2.9)
    voxels = coarse.roi("PTV").voxels
    assert coarse.centroid("PTV") == patient.centroid("PTV") != tuple(coarse.grid.centers(voxels).mean(dim=0).tolist())
    assert coarse.original is patient


def test_values_on_another_grid_are_between_those_of_the_voxels_around():
    """A linear field comes back as it was inside the box of middles; beyond the box it is 0."""
    grid, other = Grid((4, 5, 6), (2.0, 3.0, 4.0), (1.0, 2.0, 3.0)), Grid((3, 2, 2), (1.5, 2.5, 3.5), (2.0, 4.0, 5.0))

    def field(one):
        x, y, z = one.centers().T
        return (1.0 + 2.0 * x - y + 0.5 * z).reshape(one.shape)

    assert torch.allclose(values_on(field(grid), grid, other), field(other), atol=1e-9)
    assert torch.equal(values_on(field(grid), grid, grid), field(grid))
    outside = values_on(torch.ones(grid.shape), grid, Grid((4, 5, 6), (2.0, 3.0, 4.0), (1.0 - 4.0, 2.0, 3.0)))
    assert outside[..., :2].eq(0).all() and outside[..., 2:].eq(1).all()
