"""Images: places and directions against SimpleITK's own, foreign orientations, masks that do not fit, writes that fail."""

from __future__ import annotations

import itertools
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from torchimpt.checks import InputError, PhysicsWarning
from torchimpt.geometry import Grid
from torchimpt.io import read_dose, read_image, write_image

SHAPE = (3, 4, 5)
GRID = Grid(SHAPE, (1.5, 2.0, 2.5), (-10.0, 20.0, 30.5))
WRITABLE = (".mha", ".nii.gz", ".nii", ".nrrd")


def ct_values() -> torch.Tensor:
    return torch.arange(60, dtype=torch.float32).reshape(SHAPE) * 7 - 200


def mask_values() -> torch.Tensor:
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[1, 2, 3] = mask[2, 3, 4] = True
    return mask


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A patient with a CT, a target, an OAR and a body, each in another format, and a text file."""
    folder = tmp_path / "anna"
    write_image(folder / "ct.mha", ct_values(), GRID)
    write_image(folder / "PTV70.nii.gz", mask_values(), GRID)
    write_image(folder / "Cord.nrrd", mask_values(), GRID)
    write_image(folder / "Body.nii", torch.ones(SHAPE, dtype=torch.bool), GRID)
    (folder / "notes.txt").write_text("nothing")
    return folder


def test_a_folder_of_four_formats(folder: Path) -> None:
    patient = read_image(folder)
    assert patient.name == "anna"
    assert torch.equal(patient.hu, ct_values())
    assert patient.grid == GRID
    assert {name: roi.role for name, roi in patient.rois.items()} == {"PTV70": "target", "Cord": "oar", "Body": "external"}
    assert torch.equal(patient.roi("PTV70").mask, mask_values())


@pytest.mark.parametrize("extension", WRITABLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int16])
def test_doses_come_back_in_bits_and_place(tmp_path: Path, extension: str, dtype: torch.dtype, generator: torch.Generator) -> None:
    dose = (100 * torch.rand(SHAPE, generator=generator, dtype=torch.float64)).to(dtype)
    write_image(tmp_path / f"dose{extension}", dose, GRID)
    back, grid = read_dose(tmp_path / f"dose{extension}")
    assert torch.equal(back, dose if dtype.is_floating_point else dose.float())
    assert grid.shape == SHAPE
    # NIfTI keeps its affine in single precision.
    assert grid.spacing == pytest.approx(GRID.spacing, rel=1e-6) and grid.origin == pytest.approx(GRID.origin, rel=1e-6)
    assert os.listdir(tmp_path) == [f"dose{extension}"]


def test_simpleitk_sees_the_same_voxel_at_the_same_point(tmp_path: Path) -> None:
    write_image(tmp_path / "ct.mha", ct_values(), GRID)
    image = sitk.ReadImage(str(tmp_path / "ct.mha"))
    assert image.GetSize() == (5, 4, 3)
    points = GRID.centers().reshape(*SHAPE, 3)
    for k, j, i in itertools.product(*map(range, SHAPE)):
        index = image.TransformPhysicalPointToIndex(points[k, j, i].tolist())
        assert index == (i, j, k)
        assert image.GetPixel(index) == float(ct_values()[k, j, i])
    header = (tmp_path / "ct.mha").read_bytes()[:400]
    assert b"CompressedData = True" in header and b"TransformMatrix = 1 0 0 0 1 0 0 0 1" in header


def axis_aligned_directions() -> list[np.ndarray]:
    """All 48 ways to permute and reverse three axes."""
    directions = []
    for permutation in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            matrix = np.zeros((3, 3))
            matrix[permutation, range(3)] = signs
            directions.append(matrix)
    return directions


@pytest.mark.parametrize(
    "direction", axis_aligned_directions(), ids=lambda d: "".join(f"{int(v):+d}" for v in d.sum(axis=0) * (1 + np.abs(d).argmax(axis=0)))
)
def test_every_permutation_and_reversal_of_axes(tmp_path: Path, direction: np.ndarray) -> None:
    """ITK's own index-to-point transform says where each stored voxel lies; ours must put its value there."""
    image = sitk.GetImageFromArray(ct_values().numpy())
    image.SetSpacing((1.5, 2.0, 2.5))
    image.SetOrigin((-10.0, 20.0, 30.5))
    image.SetDirection(direction.flatten().tolist())
    sitk.WriteImage(image, str(tmp_path / "ct.mha"))
    patient = read_image(tmp_path)
    found = {tuple(np.round(p, 4)): float(v) for p, v in zip(patient.grid.centers().tolist(), patient.hu.flatten(), strict=True)}
    assert len(found) == 60
    for index in itertools.product(range(5), range(4), range(3)):
        point = tuple(np.round(image.TransformIndexToPhysicalPoint(index), 4))
        assert found[point] == image.GetPixel(index)


def test_a_mask_in_another_orientation_still_fits(folder: Path) -> None:
    image = sitk.Flip(sitk.ReadImage(str(folder / "Cord.nrrd")), (True, False, True))
    assert image.GetDirection() != (1, 0, 0, 0, 1, 0, 0, 0, 1)
    sitk.WriteImage(image, str(folder / "Cord.nrrd"))
    assert torch.equal(read_image(folder).roi("Cord").mask, mask_values())


def test_an_oblique_image_is_refused(folder: Path) -> None:
    image = sitk.ReadImage(str(folder / "ct.mha"))
    c, s = np.cos(np.radians(5)), np.sin(np.radians(5))
    image.SetDirection((c, -s, 0, s, c, 0, 0, 0, 1))
    sitk.WriteImage(image, str(folder / "ct.mha"))
    with pytest.raises(InputError, match="is oblique to the patient's axes by 5 degrees; resample it"):
        read_image(folder)


def test_a_header_rounded_to_single_precision_is_not_oblique(folder: Path) -> None:
    image = sitk.ReadImage(str(folder / "ct.mha"))
    image.SetDirection((1, 2e-7, 0, -2e-7, 1, 0, 0, 0, 1))
    sitk.WriteImage(image, str(folder / "ct.mha"))
    assert read_image(folder).grid.shape == SHAPE


@pytest.mark.parametrize(
    "grid",
    [
        Grid(SHAPE, (1.5, 2.0, 2.5), (-10.0, 20.0, 31.0)),
        Grid(SHAPE, (1.5, 2.01, 2.5), (-10.0, 20.0, 30.5)),
        Grid((5, 4, 3), (1.5, 2.0, 2.5), (-10.0, 20.0, 30.5)),
    ],
)
def test_a_mask_on_another_grid_is_refused(folder: Path, grid: Grid) -> None:
    write_image(folder / "Eye.mha", torch.ones(grid.shape, dtype=torch.bool), grid)
    with pytest.raises(InputError, match=r"mask .*Eye\.mha lies on another grid than the CT: shape .*; the CT has .*; resample the mask"):
        read_image(folder)


def mask_error(folder: Path, values: torch.Tensor, message: str) -> None:
    write_image(folder / "Eye.mha", values, GRID)
    with pytest.raises(InputError, match=rf"mask .*Eye\.mha {message}"):
        read_image(folder)


def test_masks_that_are_none(folder: Path) -> None:
    mask_error(folder, torch.zeros(SHAPE), "is 0 everywhere, so the ROI is empty")
    labels = (torch.arange(60).reshape(SHAPE) % 3).to(torch.uint8)
    mask_error(folder, labels, r"has 2 labels \(1, 2, \.\.\.\); one mask file per ROI is needed")
    mask_error(folder, torch.full(SHAPE, float("nan")), "has values that are NaN or infinite")


def test_a_mask_of_0_and_255_is_one(folder: Path) -> None:
    write_image(folder / "Cord.nrrd", (255 * mask_values().int()).to(torch.uint8), GRID)
    assert torch.equal(read_image(folder).roi("Cord").mask, mask_values())


def test_absurd_ct_numbers(folder: Path) -> None:
    for value, message in ((float("nan"), "NaN or infinite"), (-9000.0, "no Hounsfield units"), (60000.0, "no Hounsfield units")):
        hu = ct_values()
        hu[0, 0, 0] = value
        write_image(folder / "ct.mha", hu, GRID)
        with pytest.raises(InputError, match=message):
            read_image(folder)


def test_a_ct_without_its_intercept_is_noticed(folder: Path) -> None:
    write_image(folder / "ct.mha", ct_values() + 1224, GRID)
    with pytest.warns(PhysicsWarning, match=r"no CT number below 0 HU.*rescale intercept"):
        read_image(folder)


def test_folders_that_are_no_patient(folder: Path) -> None:
    with pytest.raises(InputError, match=r"no folder .*ana \(did you mean 'anna'\?\)"):
        read_image(folder.parent / "ana")
    write_image(folder / "Cord.mha", mask_values(), GRID)
    with pytest.raises(InputError, match=r"has 'Cord' twice, as Cord\.mha and Cord\.nrrd; keep one"):
        read_image(folder)
    (folder / "Cord.mha").unlink()
    (folder / "ct.mha").rename(folder / "CT1.mha")
    with pytest.raises(InputError, match=r"has no CT: a file named ct\.mha or .* is needed; it has Body\.nii, CT1\.mha"):
        read_image(folder)


@pytest.mark.parametrize("extension", WRITABLE)
def test_files_cut_off_or_full_of_rubbish(tmp_path: Path, extension: str) -> None:
    file = tmp_path / f"dose{extension}"
    file.write_bytes(b"this is no image" * 40)
    with pytest.raises(InputError, match=r"cannot read .*dose"):
        read_dose(file)
    with pytest.raises(InputError, match=r"dose: no file .*dose2"):
        read_dose(tmp_path / "dose2.mha")


def test_a_cut_off_image_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    write_image(tmp_path / "dose.mha", torch.rand(40, 40, 40), Grid((40,) * 3, (1,) * 3, (0,) * 3))
    whole = (tmp_path / "dose.mha").read_bytes()
    (tmp_path / "dose.mha").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cannot read .*dose\.mha"):
        read_dose(tmp_path / "dose.mha")


def test_volumes_of_other_kinds_are_refused(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.Image([4, 4], sitk.sitkFloat32), str(tmp_path / "flat.mha"))
    with pytest.raises(InputError, match="has 2 dimensions and 1 values a voxel"):
        read_dose(tmp_path / "flat.mha")
    sitk.WriteImage(sitk.Image([4, 4, 4], sitk.sitkVectorFloat32, 3), str(tmp_path / "vector.mha"))
    with pytest.raises(InputError, match="has 3 dimensions and 3 values a voxel"):
        read_dose(tmp_path / "vector.mha")


def test_a_dose_with_nan_is_refused(tmp_path: Path) -> None:
    dose = torch.zeros(SHAPE)
    dose[0, 0, 0] = float("nan")
    write_image(tmp_path / "dose.mha", dose, GRID)
    with pytest.raises(InputError, match="1 values that are NaN"):
        read_dose(tmp_path / "dose.mha")


def test_wrong_shapes_and_names_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"values have shape \(3, 4, 6\), the grid \(3, 4, 5\)"):
        write_image(tmp_path / "dose.mha", torch.zeros(3, 4, 6), GRID)
    with pytest.raises(InputError, match=r"must end in \.mha"):
        write_image(tmp_path / "dose.dcm", torch.zeros(SHAPE), GRID)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("extension", WRITABLE)
def test_a_full_disk_keeps_the_old_dose(tmp_path: Path, extension: str, full_disk, generator: torch.Generator, capfd) -> None:
    """Noise does not compress: 250 kB have to go into 20 kB. NIfTI's writer reports no error, so reading back has to find it."""
    path, grid = tmp_path / f"dose{extension}", Grid((40,) * 3, (1.0,) * 3, (0.0,) * 3)
    old = torch.zeros(grid.shape)
    write_image(path, old, grid)
    with full_disk(20_000), pytest.raises(InputError, match=r"cannot write .*dose.*is the disk full\?"):
        write_image(path, torch.rand(grid.shape, generator=generator), grid)
    assert torch.equal(read_dose(path)[0], old)
    assert os.listdir(tmp_path) == [path.name]


def test_a_tensor_with_gradient_is_written(tmp_path: Path) -> None:
    write_image(tmp_path / "dose.mha", torch.ones(SHAPE, requires_grad=True), GRID)
    assert (read_dose(tmp_path / "dose.mha")[0] == 1).all()


def test_libraries_do_not_talk_besides_the_error(tmp_path: Path, capfd) -> None:
    """MetaIO and NIfTI's reader print lines of their own to the process's stderr."""
    for name in ("dose.mha", "dose.nii"):
        write_image(tmp_path / name, torch.rand(SHAPE), GRID)
        content = (tmp_path / name).read_bytes()
        for damaged in (content[: len(content) // 2], content[:60], content.replace(b"DimSize", b"DimSiz_").replace(b"n+1", b"n+0")):
            (tmp_path / name).write_bytes(damaged)
            with suppress(InputError):
                read_dose(tmp_path / name)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "key, value",
    [("NDims", "2147483648"), ("NDims", "1e308"), ("TransformMatrix", "1 0 0 1e308 1 0 0 0 1"), ("ElementSpacing", "nan 2 2.5")],
)
def test_a_header_that_itk_stumbles_over_is_refused(tmp_path: Path, key: str, value: str) -> None:
    """The first two end a process in ITK 5.4, the third never comes back from it."""
    write_image(tmp_path / "dose.mha", ct_values(), GRID)
    lines = (tmp_path / "dose.mha").read_bytes().split(b"\n")
    damaged = [f"{key} = {value}".encode() if line.startswith(key.encode()) else line for line in lines]
    assert damaged != lines
    (tmp_path / "dose.mha").write_bytes(b"\n".join(damaged))
    with pytest.raises(InputError, match=f"dose.mha is a damaged MetaImage: {key} must be .* copy or write it anew"):
        read_dose(tmp_path / "dose.mha")
