"""What stands in a beam's way, or is missing there, is told, beam by beam and in mm."""

from __future__ import annotations

import re

import pytest
import torch

from torchimpt.case import Case
from torchimpt.geometry import Beam, Grid
from torchimpt.machine import generic
from torchimpt.patient import ROI, Patient
from torchimpt.planning.way import tell_way

MIDDLE = (0.0, 0.0, 0.0)


def lying(x_low: float = -130.0, couch: bool = False) -> tuple[Case, Patient]:
    """An elliptic cylinder of water, 240 mm wide and 160 mm thick, in a CT that begins at `x_low`, on a couch 20 mm thick or none."""
    grid = Grid((10, 60, round((130.0 - x_low) / 4.0)), (4.0, 4.0, 5.0), (x_low + 2.0, -118.0, -22.5))
    x, y, z = grid.centers().T
    body = ((x / 120.0) ** 2 + (y / 80.0) ** 2 < 1.0).reshape(grid.shape)
    target = (x**2 + y**2 + z**2 < 15.0**2).reshape(grid.shape)
    top = ((y > 84.0) & (y < 104.0)).reshape(grid.shape)
    hu = torch.where(body | (top & couch), 0.0, -1000.0)
    rois = {"Body": ROI("Body", body, "external"), "CTV": ROI("CTV", target, "target"), "Couch": ROI("Couch", top)}
    case = Case(patient={"source": "image", "path": "."}, spots={"target": "CTV"})
    return case, Patient(hu, grid, rois)


def told(caplog, case: Case, patient: Patient, *angles: float) -> list[str]:
    tell_way(case, patient, generic(), [Beam(angle, isocenter=MIDDLE) for angle in angles])
    return [record.getMessage() for record in caplog.records]


def test_a_whole_body_on_no_couch_is_not_told_of(caplog):
    assert told(caplog, *lying(), 0.0, 90.0, 180.0, 270.0) == []


def test_a_couch_outside_the_outline(caplog):
    case, patient = lying(couch=True)
    (line,) = told(caplog, case, patient, 0.0, 90.0, 180.0)
    assert line.startswith("beam 2 (gantry 180, couch 0): in the CT 20.")  # five voxels of 4 mm, at up to 1 degree
    known = {**patient.rois, "Couch": ROI("Couch", patient.rois["Couch"].mask, rsp=1.0)}
    caplog.clear()
    assert told(caplog, case, Patient(patient.hu, patient.grid, known), 180.0) == []


@pytest.mark.parametrize("x_low", [-90.0, -70.0])
def test_a_body_that_the_image_cuts_off(caplog, x_low):
    """The ellipse is as long as it was: so much is missing as was cut off, in the middle of the cut."""
    (line,) = told(caplog, *lying(x_low), 0.0, 90.0, 270.0)
    assert "beam 2 (gantry 270" in line and "for 100 % of the rays" in line
    missing = float(re.search(r"about (\d+) mm", line).group(1))
    # outlines are steps of 4 mm
    assert missing == pytest.approx(120.0 + x_low, abs=6.0)


def test_a_body_that_is_cut_at_its_widest(caplog):
    (line,) = told(caplog, *lying(-20.0), 270.0)
    assert "so much is missing that the outline does not tell" in line


def test_a_ct_that_ends_above_the_target(caplog):
    case, patient = lying()
    tell_way(case, patient, generic(), [Beam(90.0, 90.0, isocenter=MIDDLE)])
    (line,) = [record.getMessage() for record in caplog.records]
    assert "the CT ends inside the body in its way, at its upper or lower end, for 100 % of the rays" in line


def test_a_phantom_is_whole(caplog):
    _, patient = lying(-20.0)
    assert told(caplog, Case(patient={"source": "phantom", "name": "water"}, spots={"target": "CTV"}), patient, 270.0) == []
