"""Stopping power of a patient: whose table counts, and what is outside."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from torchimpt.checks import InputError
from torchimpt.geometry import Grid
from torchimpt.hu_table import HuTable
from torchimpt.patient import ROI, Patient
from torchimpt.physics.stopping import relative_stopping_power


def patient(external: bool, table: HuTable | None = None) -> Patient:
    hu = torch.tensor([[[0.0, 43.0]], [[-1000.0, 0.0]]])
    mask = torch.tensor([[[True, True]], [[True, False]]])
    rois = {"External": ROI("External", mask, "external")} if external else {}
    return Patient(hu, Grid((2, 1, 2), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)), rois, "p", table)


def test_stopping_power_is_zero_outside_the_external():
    machine = SimpleNamespace(hu_table=None)
    inside = relative_stopping_power(patient(external=True), machine)
    everywhere = relative_stopping_power(patient(external=False), machine)
    assert inside.dtype == torch.float64 and inside.shape == (2, 1, 2)
    assert inside.flatten().tolist() == [1.0, 1.0416, everywhere[1, 0, 0].item(), 0.0]
    assert everywhere[1, 0, 1] == 1.0


def test_the_machines_table_counts_before_the_patients():
    own = HuTable(torch.tensor([-1000.0, 100.0]), torch.tensor([2.0, 2.0]), "patient")
    other = HuTable(torch.tensor([-1000.0, 100.0]), torch.tensor([3.0, 3.0]), "machine")
    case = patient(external=False, table=own)
    assert float(relative_stopping_power(case, SimpleNamespace(hu_table=None)).unique()) == 2.0
    assert float(relative_stopping_power(case, SimpleNamespace(hu_table=other)).unique()) == 3.0


def test_a_known_material_counts_before_the_table(recwarn):
    """Inside the body and outside; the later one where two overlap; metal above the table's end is not looked up."""
    case = patient(external=True)
    case.hu[0, 0, 0] = 9000.0
    first = ROI("Implant", torch.tensor([[[True, True]], [[False, False]]]), rsp=3.2)
    second = ROI("Couch", torch.tensor([[[False, True]], [[False, True]]]), rsp=0.1)
    known = replace(case, rois={**case.rois, "Implant": first, "Couch": second})
    rsp = relative_stopping_power(known, SimpleNamespace(hu_table=None)).flatten().tolist()
    assert rsp[0] == 3.2 and rsp[1] == 0.1 and 0 < rsp[2] < 0.01 and rsp[3] == 0.1 and not recwarn.list
    for wrong in (-0.1, 15.1, float("nan")):
        with pytest.raises(InputError, match=r"ROI 'Implant': its relative stopping power must lie between 0 and 15 .* water is 1; got"):
            replace(first, rsp=wrong)
