"""The HU table in the report: the curve, the part that is used, and the histogram of what it was looked up for."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from torchimpt.hu_table import HuTable, default_hu_table
from torchimpt.patient import ROI
from torchimpt.physics.stopping import table_of
from torchimpt.report import render_report
from torchimpt.report.drawn import hu_data

TABLE = HuTable(torch.tensor([-1000.0, 0.0, 0.0, 2000.0]), torch.tensor([0.0, 0.95, 1.05, 2.05], dtype=torch.float64), "clinic")


def test_the_used_part_of_the_curve_ends_at_the_ct_numbers():
    data = hu_data(TABLE, torch.tensor([[-500.0, 0.0], [1000.0, 0.0]]))
    assert np.allclose(np.transpose(data["table"]), [[-1000, 0], [0, 0.95], [0, 1.05], [1600, 1.85]], rtol=0, atol=1e-12)
    assert np.allclose(np.transpose(data["used"]), [[-500, 0.475], [0, 0.95], [0, 1.05], [1000, 1.55]], rtol=0, atol=1e-12)
    assert (data["edges"][0], data["edges"][-1]) == (-1000, 1600)


def test_the_histogram_has_every_voxel_at_its_ct_number():
    hu = torch.cat([torch.full((900,), 40.0), torch.full((99,), -800.0), torch.full((1,), 2500.0)])
    data = hu_data(TABLE, hu)
    share, edges = data["share"], data["edges"]
    assert edges[0] == -1000 and edges[-1] == 2500, "the axis reaches as far as the CT numbers do"
    found = {int(np.searchsorted(edges, value, side="right")) - 1: part for value, part in ((40, 90), (-800, 9.9))} | {len(share) - 1: 0.1}
    assert {k: pytest.approx(v) for k, v in found.items()} == {k: v for k, v in enumerate(share) if v}


def test_all_is_finite_with_few_voxels_and_with_none():
    for hu in (torch.zeros(0), torch.zeros(1), torch.tensor([-1024.0, 3071.0])):
        data = hu_data(default_hu_table(), hu)
        for curve in (data["table"], *([data["used"]] if len(hu) else [])):
            assert np.isfinite(curve).all() and (np.diff(curve[0]) >= 0).all()
        assert np.isfinite(data["share"]).all() and (data["used"] is None) == (not len(hu))


def test_the_page_shows_the_table_and_the_voxels_that_are_looked_up(report_data, monkeypatch):
    """Neither what lies outside the body nor an implant of known stopping power is in the histogram."""
    assert "<h2>CT numbers" not in render_report(report_data)
    patient, seen = report_data.patient, []
    body, implant = torch.zeros(patient.grid.shape, dtype=torch.bool), torch.zeros(patient.grid.shape, dtype=torch.bool)
    body[:, 2:] = implant[:, 3] = True
    hu = torch.where(body, 40.0, -1000.0).masked_fill(implant, 9000.0)
    rois = {**patient.rois, "Body": ROI("Body", body, "external"), "Implant": ROI("Implant", implant, rsp=3.2)}
    patient = replace(patient, hu=hu, rois=rois, hu_table=replace(TABLE, name="<clinic>"))
    monkeypatch.setattr("torchimpt.report.page.hu_data", lambda table, hu: (seen.append(hu), hu_data(table, hu))[1])
    page = render_report(replace(report_data, patient=patient, hu_table=table_of(patient, SimpleNamespace(hu_table=None))))
    assert "from the HU table &lt;clinic&gt;" in page and 'id="hu"' in page
    assert set(seen[0].tolist()) == {40.0} and len(seen[0]) == int((body & ~implant).sum())
