"""A patient who does not lie head first supine: beams come from where they come in the room."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import torchimpt as ti
from torchimpt.checks import InputError, PhysicsWarning
from torchimpt.geometry import Beam, Grid
from torchimpt.machine import generic
from torchimpt.patient import ROI, Patient


def patient(position: str) -> Patient:
    """A box of water, taller at the left back, with a target near its left."""
    grid = Grid((10, 12, 14), (8.0, 8.0, 8.0), (-52.0, -44.0, -36.0))
    x, y, z = grid.centers().T
    body = ((x < 40) & (y > -36 + 0.2 * (z - x))).reshape(grid.shape)
    target = ((x - 10).abs() + (y - 4).abs() + (z + 4).abs() < 20).reshape(grid.shape)
    rois = {"Body": ROI("Body", body, "external"), "T": ROI("T", target, "target")}
    return Patient(torch.where(body, 0.0, -1000.0), grid, rois, position=position)


def dose_of(position: str, beam: Beam) -> torch.Tensor:
    where = patient(position)
    spots = ti.place_spots(where, generic(), [beam], "T", spacing=12.0, margin=0.0, layer_spacing=15.0)
    assert spots.beams[0].lies == (beam.position or position)
    with torch.no_grad():
        return ti.PencilBeamDose(where, generic(), [beam])(spots)


def test_dose_comes_from_the_same_side_as_with_angles_turned():
    """Prone at gantry 60 and couch 20 is supine at 240 and -20; on the right side at gantry 0, the left one is up."""
    torch.testing.assert_close(dose_of("HFP", Beam(60.0, 20.0)), dose_of("HFS", Beam(240.0, -20.0)), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(dose_of("HFDR", Beam(0.0)), dose_of("HFS", Beam(90.0)), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(dose_of("HFP", Beam(60.0, 20.0)), dose_of("HFS", Beam(60.0, 20.0)), rtol=0.1)


def test_a_beam_that_does_not_say_or_says_otherwise():
    where = patient("FFS")
    spots = ti.place_spots(where, generic(), [Beam(0.0)], "T", spacing=12.0, margin=0.0, layer_spacing=15.0)
    dose = ti.PencilBeamDose(where, generic(), [Beam(0.0)])
    spots.beams = (replace(spots.beams[0], position=None),)
    with pytest.raises(InputError, match="beam 0 does not say how the patient lies, who lies FFS in the CT"):
        dose(spots)
    spots.beams = (replace(spots.beams[0], position="HFS"),)
    with pytest.warns(PhysicsWarning, match="beam 0 is for a patient who lies HFS, the CT's lies FFS"):
        dose(spots)
