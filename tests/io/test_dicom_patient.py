"""Patients from DICOM: which files, where slices lie, what contours enclose."""

from __future__ import annotations

import locale
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from dicom_files import dose, ion_plan, save
from dicom_patient import as_dicom, box, circle, ct_series, ct_slice, sphere, structure_set, write
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydicom.uid import RLELossless, generate_uid

from torchimpt.checks import InputError, PhysicsWarning
from torchimpt.contours import Contours, Plane, closed
from torchimpt.geometry import Grid
from torchimpt.io.dicom import read_dicom, read_structure_set
from torchimpt.io.dicom.patient import fullest
from torchimpt.io.dicom.structure_set import outline, slabs
from torchimpt.patient import ROI, Patient
from torchimpt.points import cell_points
from torchimpt.resampling import resample

GRID = Grid((14, 40, 44), (2.0, 2.0, 3.0), (-43.0, -39.0, -19.5))
PLANES = GRID.axis("z").tolist()


def ball(grid: Grid = GRID, radius: float = 15.0) -> np.ndarray:
    """CT numbers of a ball in air that grow from left to right, so that nothing is its own mirror image."""
    x, y, z = grid.centers().T.numpy()
    inside = x**2 + y**2 + z**2 < 30.0**2
    return np.where(inside, np.round(x) + 3.0 * np.round(z), -1000.0).reshape(grid.shape)


@pytest.fixture
def scene():
    """Slices of `ball`, and a structure set with a body and a target in it."""
    slices = ct_series(ball(), GRID)
    rois = {"Skin": ("EXTERNAL", sphere((0, 0, 0), 30.0, PLANES)), "T1": ("CTV", sphere((4, -2, 1), 12.0, PLANES))}
    return slices, structure_set(rois, slices)


@pytest.fixture
def plain_locale():
    """The process's locale, put back: GDCM sets another one when it writes."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


def same(patient, hu=None, grid=GRID) -> None:
    """The patient's CT is `hu` on `grid`."""
    assert patient.grid.shape == grid.shape
    np.testing.assert_allclose(patient.grid.spacing, grid.spacing, rtol=1e-6)
    np.testing.assert_allclose(patient.grid.origin, grid.origin, atol=1e-6)
    np.testing.assert_array_equal(patient.hu.numpy(), ball() if hu is None else hu)


def test_a_folder_of_anything(tmp_path, scene):
    slices, structures = scene
    other = ct_series(ball() - 5.0, GRID)
    order = np.random.default_rng(3).permutation(len(slices))
    write(tmp_path, [slices[i] for i in order], [f"a/{n}.txt" if n % 2 else f"b/c/{generate_uid()}" for n in range(len(slices))])
    write(tmp_path, other, [f"old/CT.{n}.dcm" for n in range(len(other))])
    write(tmp_path, [structures, ion_plan(), dose(), slices[3]], ["rs", "plan.jpg", "d/RD", "copy of a slice.dcm"])
    (tmp_path / "notes.dcm").write_text("nothing that DICOM is made of")
    (tmp_path / "README").write_text("hello")
    (tmp_path / "empty.dcm").touch()
    cut = (tmp_path / "a" / "1.txt").read_bytes()[:300]
    (tmp_path / "cut off.dcm").write_bytes(cut)
    patient = read_dicom(tmp_path)
    same(patient)
    assert patient.position == "HFS" and patient.name == tmp_path.name
    assert {name: roi.role for name, roi in patient.rois.items()} == {"Skin": "external", "T1": "target"}
    np.testing.assert_allclose(patient.centroid("T1"), (4, -2, 1), atol=0.15)  # an eighth of a slice


@pytest.mark.parametrize("position", ["HFS", "HFP", "HFDR", "HFDL", "FFS", "FFP", "FFDR", "FFDL"])
def test_images_of_every_position(tmp_path, position):
    """Scanners write the slices of each as a viewer shows them, up on the table above: the patient's axes permuted and reversed."""
    down = {"S": (0, 1, 0), "P": (0, -1, 0), "DR": (-1, 0, 0), "DL": (1, 0, 0)}[position[2:]]
    right = {"S": (1, 0, 0), "P": (-1, 0, 0), "DR": (0, 1, 0), "DL": (0, -1, 0)}[position[2:]]
    axes = np.array([right, down], dtype=float)
    hu, low = ball(), np.array(GRID.origin)
    cube = torch.arange(GRID.n_voxels).reshape(GRID.shape).numpy()
    slices = []
    ids = {"frame": generate_uid(), "series": generate_uid()}
    for k, z in enumerate(PLANES):
        # index of each pixel of the slice: walk along `right` and `down` from the corner that both lead away from
        n_u, n_v = (44, 40) if right[0] else (40, 44)
        corner = np.array([low[i] if (axes[:, i].sum() > 0) else low[i] + 2.0 * ((44, 40)[i] - 1) for i in (0, 1)])
        v, u = np.meshgrid(np.arange(n_v), np.arange(n_u), indexing="ij")
        x, y = (corner[i] + 2.0 * (u * right[i] + v * down[i]) for i in (0, 1))
        index = cube[k][((y - low[1]) / 2).round().astype(int), ((x - low[0]) / 2).round().astype(int)]
        slices.append(ct_slice(hu.flat[index], (*corner, z), (2.0, 2.0), axes=axes, position=position, **ids))
    structures = structure_set({"T1": ("CTV", sphere((4, -2, 1), 12.0, PLANES))}, slices)
    patient = read_dicom(write(tmp_path, [*slices, structures]))
    same(patient)
    assert patient.position == position
    np.testing.assert_allclose(patient.centroid("T1"), (4, -2, 1), atol=0.15)


def test_the_position_that_is_not_told(tmp_path, scene):
    slices, _ = scene
    for one in slices:
        one.PatientPosition = ""
    with pytest.warns(PhysicsWarning, match="does not say how the patient lies"):
        assert read_dicom(write(tmp_path / "none", slices)).position == "HFS"
    for one in slices:
        one.PatientPosition = "SITTING"
    with pytest.raises(InputError, match=r"position is SITTING; one of HFS, HFP, .* can be read"):
        read_dicom(write(tmp_path / "sitting", slices))


def test_rescale_of_each_slice(tmp_path):
    ids = {"frame": generate_uid(), "series": generate_uid()}
    hu = 2.0 * np.round(ball() / 2.0)
    slices = [
        ct_slice(hu[k], (*GRID.origin[:2], z), (2.0, 2.0), rescale=((1.0, 2.0)[k % 2], -1024.0 - 2 * k), **ids)
        for k, z in enumerate(PLANES)
    ]
    same(read_dicom(write(tmp_path, slices)), hu)


def test_compressed_slices(tmp_path, scene):
    slices, _ = scene
    for one in slices:
        one.compress(RLELossless)
    same(read_dicom(write(tmp_path / "rle", slices)))


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000"])
def test_slices_compressed_by_others(tmp_path, compressor, plain_locale):
    """As GDCM, which writes them here, compresses; JPEG is the lossless one of 16 bits, which pydicom has no decoder for."""
    hu, series = ball(), generate_uid()
    (tmp_path / "ct").mkdir()
    for k, z in enumerate(PLANES):
        image = sitk.GetImageFromArray(hu[k : k + 1].astype(np.int16))
        image.SetSpacing(GRID.spacing)
        image.SetOrigin((*GRID.origin[:2], z))
        tags = {
            "0008|0060": "CT", "0008|0016": "1.2.840.10008.5.1.4.1.1.2", "0020|000e": series, "0020|0052": "1.2.3.4",
            "0018|5100": "HFS", "0020|0032": "\\".join(map(str, (*GRID.origin[:2], z))), "0020|0037": "1\\0\\0\\0\\1\\0",
            "0018|0050": "3", "0008|0008": "ORIGINAL\\PRIMARY\\AXIAL",
        }  # fmt: skip
        for key, value in tags.items():
            image.SetMetaData(key, value)
        writer = sitk.ImageFileWriter()
        writer.SetFileName(str(tmp_path / "ct" / f"{k}.dcm"))
        writer.KeepOriginalImageUIDOn()
        writer.UseCompressionOn()
        writer.SetCompressor(compressor)
        writer.Execute(image)
    same(read_dicom(tmp_path / "ct"))


def test_pixels_that_nobody_can_decode(tmp_path, scene):
    slices, _ = scene
    slices[5].compress(RLELossless)
    slices[5].file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.102"  # MPEG-4
    with pytest.raises(InputError, match=r"its pixels cannot be decoded .*; write it anew without compression, e\.g\. gdcmconv --raw"):
        read_dicom(write(tmp_path, slices))


def test_uneven_slices(tmp_path, caplog):
    """Thick slices below, thin ones above: each is its slab's mean, so that a sum over z is the same."""
    places = [*np.arange(-20.0, 1.0, 4.0), *np.arange(3.0, 20.0, 2.0)]
    thick = [4.0] * 6 + [2.0] * 9
    ids = {"frame": generate_uid(), "series": generate_uid()}
    planes = [np.full((6, 5), 100.0 * k - 500.0) for k in range(len(places))]
    slices = [ct_slice(plane, (0.0, 0.0, z), (2.0, 2.0), thickness=t, **ids) for plane, z, t in zip(planes, places, thick, strict=True)]
    contours = [box((-1, -1), (7, 7), z) for z in places]
    patient = read_dicom(write(tmp_path, [*slices, structure_set({"All": ("ORGAN", contours)}, slices)]))
    assert "unevenly, 2 to 4 mm apart" in caplog.text
    assert patient.grid.spacing == (2.0, 2.0, 2.0) and patient.grid.shape[0] == 21  # -22 to 20 mm
    slab = np.array([4.0] * 5 + [3.5] + [2.5] + [2.0] * 8)  # between the middles
    whole = (slab * np.array([plane[0, 0] for plane in planes])).sum()
    assert float(patient.hu[:, 0, 0].sum()) * 2.0 == pytest.approx(whole, rel=1e-5)
    assert patient.volume("All") == pytest.approx(64.0 * 42.0)
    assert float(patient.hu[1, 2, 2]) == -500.0 and float(patient.hu[-1, 2, 2]) == 900.0


def test_missing_slices_are_told(tmp_path, scene):
    slices, structures = scene
    with pytest.raises(
        InputError, match=r"2 slices are missing: CT5 and CT6 are 9 mm apart, at \(.*, -4\.5\) and \(.*, 4\.5\), others 3 mm"
    ):
        read_dicom(write(tmp_path / "inside", [*slices[:6], *slices[8:], structures]))
    with pytest.warns(PhysicsWarning) as told:
        patient = read_dicom(write(tmp_path / "end", [*slices[:11], structures]))
    text = "\n".join(str(warning.message) for warning in told)
    assert "drawn on 14 slices, of which 3 are not here" in text and "ROI 'Skin' reaches out of the CT, which holds 8" in text
    assert patient.grid.shape[0] == 11
    with pytest.raises(InputError, match=r"the CT has one slice, .*; structure set .* was drawn on 14; export the series whole"):
        read_dicom(write(tmp_path / "one", [slices[4], structures]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: setattr(s[4], "ImagePositionPatient", s[5].ImagePositionPatient), "two slices of the series lie in the same place, 1 times"),
        (lambda s: setattr(s[4], "ImagePositionPatient", [0, 0, s[4].ImagePositionPatient[2]]), "mm beside the line of the others"),
        (lambda s: setattr(s[4], "ImageOrientationPatient", [1, 0, 0, 0, 0, -1]), "slices lie in different directions"),
        (lambda s: setattr(s[4], "PixelSpacing", [2, 2.1]), "slices differ in size or pixel spacing"),
        (lambda s: setattr(s[4], "RescaleSlope", 0), "RescaleSlope is 0"),
        (lambda s: setattr(s[4], "PixelData", s[4].PixelData[:-40]), "the slice has 3480 bytes of 3520; the file is cut off"),
        (lambda s: setattr(s[4], "PixelData", bytes(3520)), "slice .*CT4 is empty, every voxel is -1024 HU, between slices that are not"),
        (lambda s: [setattr(one, "PixelData", bytes(3520)) for one in s], "no voxel above -900 HU: it is empty"),
        (lambda s: setattr(s[4], "RescaleIntercept", 1e5), "which are no Hounsfield units"),
        (lambda s: delattr(s[4], "ImagePositionPatient"), "CT4: the slice has no ImagePositionPatient"),
    ],
)  # fmt: skip
def test_series_that_are_no_volume(tmp_path, scene, change, message):
    slices, structures = scene
    change(slices)
    with pytest.raises(InputError, match=message):
        read_dicom(write(tmp_path, [*slices, structures]))


def test_an_intercept_that_was_forgotten(tmp_path):
    hu = ball() + 1024.0
    with pytest.warns(PhysicsWarning, match="rescale intercept .* may be missing"):
        read_dicom(write(tmp_path, ct_series(hu, GRID, rescale=(1.0, 0.0))))


def test_padding_is_air(tmp_path):
    hu = ball()
    hu[:, :2] = -2000.0
    patient = read_dicom(write(tmp_path, ct_series(hu, GRID, rescale=(1.0, -2048.0))))
    assert float(patient.hu.min()) == -1024.0
    same(patient, np.maximum(hu, -1024.0))


SMOOTH = Grid((30, 60, 40), (2.0, 2.0, 2.0), (-39.0, -59.0, -29.0))


def slope(points: np.ndarray) -> np.ndarray:
    """CT numbers that are linear in LPS: interpolation keeps them."""
    return 100.0 + 2.0 * points[..., 0] - 3.0 * points[..., 1] + 4.0 * points[..., 2]


@pytest.mark.parametrize("kind", ["tilt", "oblique"])
def test_tilted_gantry_and_oblique_slices(tmp_path, caplog, kind):
    """Slices of a tilted gantry are sheared: each is turned about x, and the table moves along z. Oblique ones are turned as a whole."""
    angle = math.radians(12.0)
    axes = np.array([[1.0, 0.0, 0.0], [0.0, math.cos(angle), -math.sin(angle)]])
    step = np.array([0.0, 0.0, 2.0]) if kind == "tilt" else 2.0 * np.array([0.0, math.sin(angle), math.cos(angle)])
    ids = {"frame": generate_uid(), "series": generate_uid()}
    slices, contours = [], []
    center, radius = np.array([3.0, -4.0, 2.0]), 14.0
    normal = np.cross(*axes)
    for k in range(40):
        corner = np.array([-39.0, 0.0, -40.0]) + k * step - 59.0 * axes[1]
        v, u = np.meshgrid(np.arange(60), np.arange(40), indexing="ij")
        points = corner + 2.0 * (u[..., None] * axes[0] + v[..., None] * axes[1])
        slices.append(ct_slice(slope(points), corner, (2.0, 2.0), axes=axes, thickness=2.0, **ids))
        off = float((corner - center) @ normal)
        if abs(off) < radius:
            turn = circle(0.0, 0.0, 0.0, math.sqrt(radius**2 - off**2))
            contours.append(center + off * normal + turn[:, :1] * axes[0] + turn[:, 1:2] * axes[1])
    patient = read_dicom(write(tmp_path, [*slices, structure_set({"T": ("PTV", contours)}, slices)]))
    assert "tilted or oblique by 12 degrees" in caplog.text
    middle = patient.grid.centers().reshape(*patient.grid.shape, 3).numpy()
    inside = (np.abs(middle - [0, 0, 0]) < [30.0, 30.0, 18.0]).all(axis=-1)
    # stored CT numbers are whole, so is the error of a mean of eight: half a unit
    np.testing.assert_allclose(patient.hu.numpy()[inside], slope(middle)[inside], atol=0.51)
    sphere_volume = 4 / 3 * math.pi * radius**3
    assert patient.volume("T") == pytest.approx(sphere_volume, rel=0.005)
    assert int(patient.rois["T"].mask.sum()) * patient.grid.voxel_volume == pytest.approx(sphere_volume, rel=0.01)
    np.testing.assert_allclose(patient.centroid("T"), center, atol=0.1)


# contours


SHAPES = {
    "sphere of 2 cm": (sphere((1.3, -2.7, 0.4), 20.0, PLANES), 4 / 3 * math.pi * 20.0**3),
    "cylinder": ([circle(1.0, 2.0, z, 9.0) for z in PLANES], math.pi * 81.0 * 42.0),
    "hole, as two contours": ([c for z in PLANES for c in (circle(0, 0, z, 25.0), circle(3, 1, z, 11.0))], math.pi * (625 - 121) * 42.0),
    "island in a hole": ([circle(0, 0, z, r) for z in PLANES for r in (25.0, 15.0, 6.0)], math.pi * (625 - 225 + 36) * 42.0),
    "islands": ([circle(x, 0, z, 8.0) for z in PLANES for x in (-20, 20)], 2 * math.pi * 64.0 * 42.0),
    "optic nerve, 5 mm": ([circle(0.7, 0.2, z, 2.5) for z in PLANES[3:9]], math.pi * 6.25 * 18.0),
    "lens, 6 mm": (sphere((0.3, 0.8, 1.5), 4.0, np.arange(-20.0, 20.0, 1.0)), 4 / 3 * math.pi * 64.0),
    "torus": (
        [c for z in np.arange(-9.5, 10.0, 1.0) for c in (circle(0, 0, z, 22 + math.sqrt(100 - z * z)), circle(0, 0, z, 22 - math.sqrt(100 - z * z)))],
        2 * math.pi**2 * 22.0 * 100.0,
    ),
    "half the slices, off them": ([circle(0, 0, z, 12.0) for z in np.arange(-15.2, 16.0, 6.0)], math.pi * 144.0 * 36.0),
}  # fmt: skip


def keyhole(z: float) -> np.ndarray:
    """A ring as one contour: along its outer circle, through a slit, back along its inner one."""
    outer, inner = circle(0, 0, z, 25.0), circle(0, 0, z, 11.0)[::-1]
    return np.concatenate((outer, outer[:1], inner[-1:], inner))


SHAPES["hole, as a keyhole"] = ([keyhole(z) for z in PLANES], math.pi * (625 - 121) * 42.0)


@pytest.mark.parametrize("name", SHAPES)
def test_volumes_of_shapes(tmp_path, name):
    """Within 1 % as drawn, and as many voxels as that is."""
    contours, volume = SHAPES[name]
    slices = ct_series(ball(), GRID)
    patient = read_dicom(write(tmp_path, [*slices, structure_set({"S": ("ORGAN", contours)}, slices)]))
    assert patient.volume("S") == pytest.approx(volume, rel=0.01)
    # lines 0.25 mm apart measure a pixel's share of 4 mm2
    assert int(patient.rois["S"].mask.sum()) == pytest.approx(patient.volume("S") / GRID.voxel_volume, abs=1.0, rel=1e-3)


def test_masks_return_as_they_were_drawn(tmp_path):
    """Any masks, out as rectangles and in: voxel by voxel, whatever the position."""
    random = np.random.default_rng(5)
    masks = {name: torch.from_numpy(random.random(GRID.shape) < share) for name, share in (("A", 0.01), ("B", 0.05), ("C", 0.98))}
    rois = {name: ROI(name, mask, role) for (name, mask), role in zip(masks.items(), ("oar", "target", "external"), strict=True)}
    patient = Patient(torch.from_numpy(ball()), GRID, rois)
    slices, structures = as_dicom(patient, position="FFP")
    back = read_dicom(write(tmp_path, [*slices, structures]))
    assert back.position == "FFP" and list(back.rois) == list(patient.rois)
    for name, roi in patient.rois.items():
        assert torch.equal(back.rois[name].mask, roi.mask) and back.rois[name].role == roi.role
        assert back.volume(name) == pytest.approx(patient.volume(name), rel=1e-6)


def test_what_is_no_region(tmp_path, caplog):
    """Points, empty ROIs, contours off their plane, doubles: left out, each with a word."""
    slices = ct_series(ball(), GRID)
    bent = circle(0, 0, PLANES[4], 9.0) + np.linspace(0, 5, 180)[:, None] * [0, 0, 1]
    one = circle(0, 0, PLANES[4], 9.0)
    rois = {
        "Iso": ("ISOCENTER", [np.array([[0.0, 0.0, 0.0]])]), "None": ("ORGAN", []), "Bent": ("PTV", [bent]), "Twice": ("ORGAN", [one, one]),
        "Far": ("ORGAN", [circle(900, 0, PLANES[4], 9.0)]),
    }  # fmt: skip
    with pytest.warns(PhysicsWarning) as told:
        patient = read_dicom(write(tmp_path, [*slices, structure_set(rois, slices)]))
    assert list(patient.rois) == ["Twice"] and patient.volume("Twice") == pytest.approx(math.pi * 81 * 3.0, rel=1e-3)
    text = "\n".join(str(warning.message) for warning in told)
    assert "ROI 'Bent' has a contour that leaves the plane of the CT's slices by 5 mm" in text
    assert "ROI 'Far' reaches out of the CT, which holds 0% of its 0.763 cm3; the rest is cut off, so that it is left out" in text
    assert "ROI 'Iso' has no closed contour" in caplog.text and "ROI 'None' has no closed contour" in caplog.text


def test_roles_by_type_then_by_name(tmp_path):
    slices = ct_series(ball(), GRID)
    kinds = {
        "Breast": "GTV", "PTV_eval": "", "PTV 60": "ORGAN", "ring around target": "AVOIDANCE", "Heart": "ORGAN", "BODY": "EXTERNAL",
        "Couch outside": "EXTERNAL", "Couch": "SUPPORT",
    }  # fmt: skip
    rois = {name: (kind, [circle(0, 0, PLANES[4], 9.0)]) for name, kind in kinds.items()}
    found = read_structure_set(save(structure_set(rois, slices), tmp_path / "rs"))
    assert {roi.name: roi.role for roi in found.rois} == {
        "Breast": "target", "PTV_eval": "target", "PTV 60": "target", "ring around target": "oar", "Heart": "oar", "BODY": "external",
        "Couch outside": "oar", "Couch": "oar",
    }  # fmt: skip


def test_rois_of_one_name(tmp_path, scene, caplog):
    slices, structures = scene
    structures.StructureSetROISequence[0].ROIName = "T1"
    patient = read_dicom(write(tmp_path, [*slices, structures]))
    assert list(patient.rois) == ["T1 #1", "T1 #2"] and "several ROIs are named T1" in caplog.text


def test_which_structure_set(tmp_path, scene):
    slices, first = scene
    second = structure_set({"T2": ("CTV", [circle(0, 0, PLANES[4], 9.0)])}, slices, label="Boost")
    folder = write(tmp_path / "two", [*slices, first, second])
    with pytest.raises(
        InputError, match=r"has 2 structure sets; set structures = '\.\.\.' in \[patient\] .*'Planning' .* in RTSTRUCT14; 'Boost'"
    ):
        read_dicom(folder)
    assert list(read_dicom(folder, structures="Boost").rois) == ["T2"]
    assert list(read_dicom(folder, structures=first.SOPInstanceUID).rois) == ["Skin", "T1"]
    with pytest.raises(InputError, match=r"has no such structure set \(did you mean 'Boost'\?\)"):
        read_dicom(folder, structures="Boots")
    second.StructureSetLabel = "Planning"
    folder = write(tmp_path / "same", [*slices, first, second])
    with pytest.raises(InputError, match="2 are named 'Planning': set the UID"):
        read_dicom(folder)
    with pytest.raises(InputError, match=f"has 2 of that name; set it to a UID: .*{second.SOPInstanceUID}"):
        read_dicom(folder, structures="Planning")
    assert list(read_dicom(folder, structures=str(second.SOPInstanceUID)).rois) == ["T2"]


def test_which_series(tmp_path, scene):
    slices, structures = scene
    other = ct_series(ball() - 7.0, GRID)
    for one in other:
        one.SeriesDescription = "Old"
    folder = write(tmp_path / "none", [*slices, *other])
    with pytest.raises(InputError, match=r"has 2 CT series and no structure set; set series = '\.\.\.'"):
        read_dicom(folder)
    same(read_dicom(folder, series="Old"), ball() - 7.0)
    with pytest.raises(InputError, match=r"has no such CT series \(did you mean 'Old'\?\)"):
        read_dicom(folder, series="Odl")
    with pytest.raises(InputError, match=r"the CT that structure set .* was drawn on is not in .*export both together"):
        read_dicom(write(tmp_path / "lost", [*other, structures]))
    with pytest.raises(InputError, match="another frame of reference"):
        read_dicom(write(tmp_path / "wrong", [*slices, *other, structures]), series="Old")
    frame = structures.ReferencedFrameOfReferenceSequence[0]
    del frame.RTReferencedStudySequence  # only the frame of reference is left to go by
    same(read_dicom(write(tmp_path / "by_frame", [*slices, *other, structures])))
    with pytest.raises(InputError, match=r"has no CT slice \(CT Image Storage\); it has 1 RT Structure Set Storage"):
        read_dicom(write(tmp_path / "no_ct", [structures]))


def test_contours_know_where_points_lie():
    ring = Plane(-3.0, 3.0, closed([circle(0, 0, 0, 20.0)[:, :2], circle(0, 0, 0, 10.0)[:, :2]]))
    contours = Contours(np.zeros(3), np.eye(3), (ring,))
    points = torch.tensor([[15.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, -15.0, 2.9], [0.0, -15.0, 3.1], [30.0, 0.0, 0.0], [15.0, 0.0, -3.1]])
    assert contours.contains(points).tolist() == [True, False, True, False, False, False]
    assert contours.volume == pytest.approx(math.pi * 300.0 * 6.0, rel=1e-3)
    np.testing.assert_allclose(contours.box, [[-20, -20, -3], [20, 20, 3]], atol=0.01)


@settings(max_examples=30, deadline=None)
@example([(0.0, 0.0), (0.0, 2.3e-308), (4.0, 0.0)], 0)  # an edge whose slope is no number
@given(st.lists(st.tuples(st.floats(-20, 20), st.floats(-20, 20)), min_size=3, max_size=12), st.integers(0, 5))
def test_three_measures_of_any_polygon_agree(corners, seed):
    """However it crosses itself: area along lines, pixels' shares, and points inside are of one region."""
    plane = Plane(0.0, 1.0, closed([np.array(corners)]))
    contours = Contours(np.zeros(3), np.eye(3), (plane,))
    share, _ = contours.fractions((0.0, -21.0, -21.0), (1.0, 0.5, 0.5), (1, 84, 84))
    points = 42.0 * torch.rand(20_000, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 21.0
    points[:, 2] = 0.5
    inside = float(contours.contains(points).double().mean()) * 42.0**2
    # lines 0.06 mm apart over corners 40 mm wide; points: four sigmas of 20,000
    assert float(share.sum()) * 0.25 == pytest.approx(plane.area, abs=2.5)
    assert inside == pytest.approx(plane.area, abs=4.0 * 42.0**2 * 0.5 / math.sqrt(20_000))
    assert share.size == 0 or (float(share.min()) >= 0.0 and float(share.max()) <= 1.0)


def test_slabs_of_planes():
    def edges(planes, step=3.0, slices=None):
        low, high = slabs(np.array(planes), step, None if slices is None else np.array(slices))
        return list(zip(low.tolist(), high.tolist(), strict=True))

    assert edges([0.0, 3.0, 6.0]) == [(-1.5, 1.5), (1.5, 4.5), (4.5, 7.5)]
    assert edges([0.0, 30.0]) == [(-1.5, 1.5), (28.5, 31.5)]  # two islands
    assert edges([0.0, 6.0, 12.0]) == [(-3.0, 3.0), (3.0, 9.0), (9.0, 15.0)]  # every second slice
    assert edges([0.0, 3.0, 9.0]) == [(-1.5, 1.5), (1.5, 4.5), (7.5, 10.5)]  # a gap
    assert edges([2.0]) == [(0.5, 3.5)] and edges([]) == []
    uneven = [0.0, 1.0, 2.0, 3.0, 8.0, 13.0, 18.0]
    assert edges(uneven, slices=uneven)[-3:] == [(5.5, 10.5), (10.5, 15.5), (15.5, 20.5)]


def test_fullest_voxels_first():
    share = np.array([[0.1, 0.9, 1.0], [0.5, 0.5, 0.5]], dtype=np.float32)
    assert fullest(share, float(share.sum())).tolist() == [[False, True, True], [True, True, False]]  # 3.5, rounded to 4
    assert fullest(share, 0.1).sum() == 1 and fullest(share, 99.0).all()


def test_points_lie_where_it_was_drawn(tmp_path):
    """Points of a tube 3 voxels wide lie within its circle, on the CT's grid and on a dose grid, and are as many as it is large."""
    slices = ct_series(ball(), GRID)
    patient = read_dicom(write(tmp_path, [*slices, structure_set({"T": ("PTV", [circle(0.4, 1.1, z, 3.0) for z in PLANES])}, slices)]))
    for on in (patient, resample(patient, (3.0, 3.0, 3.0))):
        points = cell_points(on, ["T"], 0.75, targets=["T"])
        x, y, _ = points.place(0).T
        assert float((x - 0.4).hypot(y - 1.1).max()) < 3.0
        # stratified: of each part of 0.4 mm3 at the edge one random point
        assert float(points.volume.sum()) * on.grid.voxel_volume == pytest.approx(math.pi * 9.0 * 42.0, rel=0.02)


def test_a_gap_between_planes_is_told(tmp_path, scene, caplog):
    slices, _ = scene
    drawn = read_structure_set(
        save(structure_set({"T": ("PTV", [circle(0, 0, z, 9.0) for z in (*PLANES[2:5], *PLANES[6:9])])}, slices), tmp_path / "rs")
    )
    region = outline(drawn.rois[0], drawn.step)
    assert "nothing is drawn between planes -7.5 and -1.5 mm" in caplog.text
    assert region.volume == pytest.approx(6 * 3.0 * math.pi * 81, rel=1e-3)


def test_clinical_structure_set(shared: Path):
    """Volumes of plastimatch 1.9.4 on voxels of 1 mm, cm3: experiments/dicom_volumes.py. 0.5 cm3 of such are good to 3 %."""
    drawn = read_structure_set(shared / "data" / "dicom" / "dicompyler" / "rtss.dcm")
    found = {roi.name: outline(roi, drawn.step).volume / 1000.0 for roi in drawn.rois}
    assert len(drawn.images) == 98 and drawn.label == "CT_1" and found["Areola"] == 0.0
    for name, volume in PLASTIMATCH.items():
        assert found[name] == pytest.approx(volume, rel=0.01 if volume > 1.0 else 0.03), name


PLASTIMATCH = {
    "BODY": 14880.288, "Borders": 1.290, "Breast": 400.362, "Heart": 439.662, "Lt Lung": 2014.593, "Nodes": 0.666, "Scar": 0.501,
    "Tumor Bed": 13.173, "Tumor Bed Block": 63.867,
}  # fmt: skip


def test_real_slices_of_a_patient_feet_first(shared: Path):
    with warnings.catch_warnings(record=True):
        patient = read_dicom(shared / "data" / "dicom" / "topas_demo")
    assert patient.position == "FFS" and patient.grid.shape == (3, 512, 512) and patient.grid.spacing[2] == 5.0
    assert patient.grid.origin == (-196.0, -39.0, -92.5) and -1024.0 <= float(patient.hu.min()) < -900.0 < 300.0 < float(patient.hu.max())
