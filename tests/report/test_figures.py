"""Figures: what they draw is the data."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchimpt.evaluate import dvh, dvh_curves
from torchimpt.report import dvh_figure, overlay_figure, slices_figure
from torchimpt.report.numbers import amount, bytes_text, seconds, strip
from torchimpt.report.slices import PLANES, _slice
from torchimpt.report.style import roi_colors, shown_rois, slug


def test_dvh_line_is_the_nominal_curve(report_data):
    colors = roi_colors(report_data.patient)
    figure = dvh_figure(report_data.roi_doses, ["PTV <1>"], colors, prescription=60.0, goals=report_data.goals)
    (line,) = [line for line in figure.axes[0].lines if line.get_gid() == "line-PTV.-3c-1-3e-"]
    axis, volume = line.get_data()
    expected = dvh(report_data.roi_doses["nominal"]["PTV <1>"], torch.as_tensor(np.asarray(axis)))
    assert np.allclose(volume, expected) and figure.axes[0].get_xlim()[1] >= 60.0


def test_overlay_has_a_line_a_run_and_roi(report_data):
    axis = torch.linspace(0, 70, 50, dtype=torch.float64)
    curves = {s: {r: (axis, dvh(d, axis)) for r, d in rois.items()} for s, rois in report_data.roi_doses.items()}
    figure = overlay_figure({"a": curves, "b": curves}, ["PTV <1>"], roi_colors(report_data.patient))
    assert len([line for line in figure.axes[0].lines if len(line.get_xdata())]) == 2


def test_overlay_names_rois_where_asked(report_data):
    curves = dvh_curves(report_data.roi_doses)
    colors = roi_colors(report_data.patient)
    figure = overlay_figure({"a": curves, "b": curves}, ["PTV <1>"], colors, prescription=60.0, named=True)
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["a", "b", "PTV <1>"]
    axis, volume = curves["nominal"]["PTV <1>"]
    assert torch.equal(volume, dvh(report_data.roi_doses["nominal"]["PTV <1>"], axis))


def test_slices_cut_through_the_target(report_data):
    figure = slices_figure(report_data.patient, report_data.dose, roi_colors(report_data.patient), targets=["PTV <1>"], prescription=60.0)
    titles = [axes.get_title(loc="left") for axes in figure.axes[:3]]
    centroid = report_data.patient.centroid("PTV <1>")
    assert titles == [f"{p.title}   {p.cut} = {centroid['xyz'.index(p.cut)]:.0f} mm" for p in PLANES]
    axial, sagittal, coronal = figure.axes[:3]
    assert axial.get_ylim()[0] > axial.get_ylim()[1], "posterior is at the bottom of an axial slice"
    assert sagittal.get_ylim()[0] < sagittal.get_ylim()[1] and coronal.get_ylim()[0] < coronal.get_ylim()[1], "superior is up"
    for axes in figure.axes[:3]:
        assert axes.get_xlim()[0] < axes.get_xlim()[1], "patient left, or posterior, is on the right"


@pytest.mark.parametrize(("plane", "shape"), [(0, (3, 4)), (1, (2, 3)), (2, (2, 4))])
def test_slice_axes(plane, shape):
    """A `(z, y, x)` volume of shape (2, 3, 4): rows run along y, z, z and columns along x, y, x."""
    assert _slice(np.zeros((2, 3, 4)), PLANES[plane], 1).shape == shape


def test_which_rois_are_shown(report_data):
    names = shown_rois(report_data.patient, report_data.roi_doses["nominal"], ["Cord & canal"])
    assert names == ["Cord & canal", "PTV <1>"]


def test_colors_are_one_a_roi_and_the_first_choose(report_data):
    colors = roi_colors(report_data.patient, ["PTV <1>"])
    assert set(colors) == set(report_data.patient.rois) and len(set(colors.values())) == len(colors)
    assert roi_colors(report_data.patient)["PTV <1>"] == colors["PTV <1>"] == "#c5283d"


def test_numbers():
    assert [amount(v) for v in (0.0, 0.0123456, 12.3456, 12345.6)] == ["0", "0.01235", "12.35", "12,346"]
    assert [seconds(v) for v in (0.5, 5.0, 60.0, 200.0)] == [("0.50", "s"), ("5.0", "s"), ("60", "s"), ("3.3", "min")]
    assert [bytes_text(v) for v in (12, 1.5e3, 2e6, 1.98e9)] == ["12 B", "1.5 kB", "2 MB", "1.98 GB"]


def test_strip_marks_what_fails(report_data):
    low, _ = report_data.goals
    text = strip({**low, "values": {"nominal": 52.0, "x+3mm": 40.0}})
    assert text.count("failing") == 1 and 'class="out"' in text and "x+3mm: 40.00 Gy" in text
    assert strip({**low, "values": {"nominal": 50.0}, "min": 50.0}).count("<circle") == 1


@given(st.text(), st.text())
def test_slugs_are_as_different_as_names(one, other):
    assert (slug(one) == slug(other)) == (one == other)
    assert re.fullmatch(r"[\w.-]*", slug(one))


def test_slugs_stay_readable():
    names = ("PTV70", "Brainstem_PRV", "PTV 70", "PTV-70", "Rückenmark", "Lung (L)")
    assert [slug(name) for name in names] == ["PTV70", "Brainstem_PRV", "PTV.70", "PTV-2d-70", "Rückenmark", "Lung.-28-L-29-"]
