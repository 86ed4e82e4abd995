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
from torchimpt.report import hu_figure, render_report
from torchimpt.report.style import svg

TABLE = HuTable(torch.tensor([-1000.0, 0.0, 0.0, 2000.0]), torch.tensor([0.0, 0.95, 1.05, 2.05], dtype=torch.float64), "clinic")


def heights(figure) -> tuple[np.ndarray, np.ndarray]:
    """Heights and edges of the histogram's bars."""
    (bars,) = figure.axes[1].patches
    return bars.get_data()[:2]


def test_the_used_part_of_the_curve_is_thick():
    curve, histogram = hu_figure(TABLE, torch.tensor([[-500.0, 0.0], [1000.0, 0.0]])).axes
    whole, used = curve.lines
    assert np.allclose(whole.get_xydata(), [[-1000, 0], [0, 0.95], [0, 1.05], [1600, 1.85]], rtol=0, atol=1e-12)
    assert np.allclose(used.get_xydata(), [[-500, 0.475], [0, 0.95], [0, 1.05], [1000, 1.55]], rtol=0, atol=1e-12)
    assert used.get_linewidth() > 2 * whole.get_linewidth()
    assert curve.get_xlim() == histogram.get_xlim() == (-1000, 1600)


def test_the_histogram_has_every_voxel_at_its_ct_number():
    hu = torch.cat([torch.full((900,), 40.0), torch.full((99,), -800.0), torch.full((1,), 2500.0)])
    share, edges = heights(hu_figure(TABLE, hu))
    assert edges[0] == -1000 and edges[-1] == 2500, "the axis reaches as far as the CT numbers do"
    found = {int(np.searchsorted(edges, value, side="right")) - 1: part for value, part in ((40, 90), (-800, 9.9))} | {len(share) - 1: 0.1}
    assert {k: pytest.approx(v) for k, v in found.items()} == {k: v for k, v in enumerate(share) if v > 0.01}


def test_all_is_finite_with_few_voxels_and_with_none():
    for hu in (torch.zeros(0), torch.zeros(1), torch.tensor([-1024.0, 3071.0])):
        figure = hu_figure(default_hu_table(), hu)
        for line in figure.axes[0].lines:
            assert np.isfinite(line.get_xydata()).all() and (np.diff(line.get_xdata()) >= 0).all()
        assert np.isfinite(heights(figure)[0]).all() and len(figure.axes[0].lines) == (2 if len(hu) else 1)
        assert "nan" not in svg(figure, "hu").lower()


def test_the_page_shows_the_table_and_the_voxels_that_are_looked_up(report_data, monkeypatch):
    """Neither what lies outside the body nor an implant of known stopping power is in the histogram."""
    assert "CT numbers" not in render_report(report_data)
    patient, seen = report_data.patient, []
    body, implant = torch.zeros(patient.grid.shape, dtype=torch.bool), torch.zeros(patient.grid.shape, dtype=torch.bool)
    body[:, 2:] = implant[:, 3] = True
    hu = torch.where(body, 40.0, -1000.0).masked_fill(implant, 9000.0)
    rois = {**patient.rois, "Body": ROI("Body", body, "external"), "Implant": ROI("Implant", implant, rsp=3.2)}
    patient = replace(patient, hu=hu, rois=rois, hu_table=replace(TABLE, name="<clinic>"))
    monkeypatch.setattr("torchimpt.report.page.hu_figure", lambda table, hu: (seen.append(hu), hu_figure(table, hu))[1])
    page = render_report(replace(report_data, patient=patient, hu_table=table_of(patient, SimpleNamespace(hu_table=None))))
    assert "from the HU table &lt;clinic&gt;" in page and '<svg class="figure" id="hu"' in page and "CT number, HU" in page
    assert 'id="hu-used"' in page and set(seen[0].tolist()) == {40.0} and len(seen[0]) == int((body & ~implant).sum())
