"""ROIs made of others: distances point by point, the body as a limit, and the patient as it was read as the place to measure."""

from __future__ import annotations

import pytest
import torch

from torchimpt.case import load_case
from torchimpt.checks import InputError
from torchimpt.geometry import Grid
from torchimpt.margins import with_margin, with_roi
from torchimpt.patient import ROI, Patient
from torchimpt.planning.load import load_patient
from torchimpt.resampling import resample

GRID = Grid((9, 10, 11), (1.0, 1.5, 2.0), (0.0, 0.0, 0.0))


def scattered(share: float) -> torch.Tensor:
    return torch.rand(GRID.shape, generator=torch.Generator().manual_seed(4)) < share


@pytest.mark.parametrize("margin", [0.0, 1.0, 2.5, 4.0, -1.0, -2.5])
def test_margin_is_all_within_its_distance(margin: float) -> None:
    mask = scattered(0.02) if margin >= 0 else ~scattered(0.02)
    points = GRID.centers()
    other = points[(mask if margin >= 0 else ~mask).flatten()]
    near = torch.cdist(points, other).amin(dim=1) <= abs(margin) + 1e-6
    expected = (near if margin >= 0 else ~near).reshape(GRID.shape)
    assert torch.equal(with_margin(mask, GRID.spacing, margin), expected)
    assert margin == 0 or not torch.equal(expected, mask)


def patient() -> Patient:
    body, ctv = torch.zeros(GRID.shape, dtype=torch.bool), torch.zeros(GRID.shape, dtype=torch.bool)
    body[1:8, 1:9, 1:10] = True
    ctv[3:5, 2:5, 2:6] = True
    rois = {"Body": ROI("Body", body, "external"), "CTV": ROI("CTV", ctv, "target")}
    return Patient(torch.zeros(GRID.shape), GRID, rois)


def test_a_grown_roi_stays_in_the_body_and_a_ring_out_of_what_it_is_around() -> None:
    grown = with_roi(patient(), "PTV", "CTV", margin=4.0, role="target")
    ptv, ctv, body = (grown.roi(name).mask for name in ("PTV", "CTV", "Body"))
    assert (ptv & ctv).sum() == ctv.sum() < ptv.sum()
    assert not (ptv & ~body).any() and (with_margin(ctv, GRID.spacing, 4.0) & ~body).any()
    assert grown.targets == ("CTV", "PTV")
    ring = with_roi(grown, "Ring", ["PTV", "CTV"], margin=3.0, without=["PTV"]).roi("Ring")
    assert ring.role == "oar" and ring.mask.any() and not (ring.mask & ptv).any()


@pytest.mark.filterwarnings("ignore:ROI CTV .* more than a fifth")  # a ROI of a few voxels
def test_margins_are_measured_on_the_patient_as_it_was_read() -> None:
    read = patient()
    coarse = with_roi(resample(read, 3.0), "PTV", "CTV", margin=2.0)
    assert torch.equal(coarse.original.roi("PTV").mask, with_roi(read, "PTV", "CTV", margin=2.0).roi("PTV").mask)
    again = resample(with_roi(read, "PTV", "CTV", margin=2.0), 3.0)
    assert torch.equal(coarse.roi("PTV").mask, again.roi("PTV").mask)
    # 2 mm are less than one of its voxels
    assert not torch.equal(with_margin(coarse.roi("CTV").mask, coarse.grid.spacing, 2.0), coarse.roi("PTV").mask)


def test_bad_rois_are_refused() -> None:
    with pytest.raises(InputError, match="has a ROI 'CTV' already; give the new one another name"):
        with_roi(patient(), "CTV", "Body")
    with pytest.raises(InputError, match=r"ROI 'Ring' is empty: .* with a margin of 0 mm, without Body"):
        with_roi(patient(), "Ring", "CTV", without=["Body"])
    with pytest.raises(InputError, match=r"no ROI 'CTVV' \(did you mean 'CTV'"):
        with_roi(patient(), "PTV", "CTVV", margin=3.0)
    with pytest.raises(InputError, match="must be a number of mm"):
        with_roi(patient(), "PTV", "CTV", margin=float("nan"))


CASE = """
[patient]
source = "phantom"
name = "water"
spacing_mm = 4.0

[[roi]]
name = "PTV"
of = "Target"
margin_mm = 4.0
role = "target"

[[roi]]
name = "Ring"
of = "PTV"
margin_mm = 8.0
without = ["PTV"]

[spots]
target = "PTV"
"""


def test_a_case_makes_rois_in_its_order(tmp_path) -> None:
    path = tmp_path / "case.toml"
    path.write_text(CASE)
    case = load_case(path)
    made = load_patient(case)
    assert made.grid.spacing == (4.0, 4.0, 4.0)
    assert made.targets == ("Target", "PTV")
    # a cube of 40 mm and its faces, edges and corners of 4 mm: corners and edges of the fine grid are rounded
    assert 40**3 + 6 * 4 * 40**2 < made.original.volume("PTV") < 48**3
    assert not (made.roi("Ring").mask & made.roi("PTV").mask).any()
    assert load_patient(load_case(path, ["dose.grid_mm=8"])).roi("PTV").mask.any()
    path.write_text(case.to_toml())
    assert load_case(path) == case


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("margin_mm = 8.0", "margin_mm = 300.0"), r"roi\[1\]\.margin_mm must be less than or equal to 200"),
        (('without = ["PTV"]', 'without = ["PTW"]'), r"roi\[1\]\.without: the patient has no ROI 'PTW' \(did you mean 'PTV'"),
        (('of = "Target"', 'of = "Ring"'), r"roi\[0\]\.of: the patient has no ROI 'Ring'"),
        (('name = "Ring"', 'name = "External"'), r"roi\[1\]: the patient has a ROI 'External' already"),
        (("margin_mm = 8.0", "margin_mm = 0.0"), r"roi\[1\]: ROI 'Ring' is empty"),
        (('source = "phantom"\nname = "water"', 'source = "image"\npath = "."'), r"source = 'image' takes no spacing_mm"),
    ],
)
def test_a_case_s_bad_rois_are_told_with_their_key(tmp_path, change: tuple[str, str], message: str) -> None:
    path = tmp_path / "case.toml"
    path.write_text(CASE.replace(*change))
    with pytest.raises(InputError, match=message):
        load_patient(load_case(path))
