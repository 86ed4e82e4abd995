"""Curves on logarithmic axes, and figures as files."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from torchimpt.checks import InputError
from torchimpt.report import curves_figure, save_figure

SERIES = {"uniform": [(4187, 7.46), (1060, 27.0), (6485, 6.29)], "joint": [(1060, 6.03), (730, 8.33)], "none": []}


def test_each_series_is_a_line_in_order_of_x():
    (axes,) = curves_figure(SERIES, "Spots", "Objective, Gy²", title="TG119").axes
    assert axes.get_xscale() == axes.get_yscale() == "log" and axes.get_title(loc="left") == "TG119"
    assert [line.get_label() for line in axes.lines] == list(SERIES)
    assert axes.lines[0].get_xydata().tolist() == [[1060, 27.0], [4187, 7.46], [6485, 6.29]]
    for line in axes.lines[:2]:
        for (low, high), values in zip((axes.get_xlim(), axes.get_ylim()), line.get_data(), strict=True):
            assert low < np.min(values) and np.max(values) < high


def test_a_percent_looks_like_a_percent():
    (axes,) = curves_figure({"a": [(1000, 5.50), (1001, 5.55)]}, "x", "y").axes
    for low, high in (axes.get_xlim(), axes.get_ylim()):
        assert high / low >= 2


@pytest.mark.parametrize("factor", [1.0, 3.0, 40.0, 1e5])
@pytest.mark.parametrize("start", [0.0123, 1.0, 17.0, 12424.0])
def test_axes_have_numbers(start, factor):
    (axes,) = curves_figure({"a": [(start, start), (start * factor, start * factor)]}, "x", "y").axes
    low, high = axes.get_xlim()
    ticks = axes.get_xticks()
    assert 3 <= len(ticks) <= 12 and low <= min(ticks) and max(ticks) <= high


def test_many_points_have_no_markers():
    many = [(k, 1.0 / k) for k in range(1, 100)]
    (axes,) = curves_figure({"many": many, "few": many[:5]}, "Evaluations", "Objective").axes
    assert [bool(line.get_marker()) for line in axes.lines] == [False, True]


@pytest.mark.parametrize("point", [(0, 1.0), (10, 0.0), (10, -1.0), (10, math.nan), (math.inf, 1.0)])
def test_what_a_logarithmic_axis_cannot_show(point):
    with pytest.raises(InputError, match=r"series 'joint'.*positive finite"):
        curves_figure({"joint": [(10, 1.0), point]}, "x", "y")


def test_nothing_to_show_is_an_empty_plot():
    assert len(curves_figure({}, "x", "y").axes) == 1


def test_saved_as_png_and_svg_alike_every_time(tmp_path):
    for name in ("a", "b.png"):
        save_figure(curves_figure(SERIES, "Spots", "Objective, Gy²", size=(350, 230)), tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.svg", "b.png", "b.svg"]
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (700, 460)
    for ending in (".png", ".svg"):
        assert (tmp_path / f"a{ending}").read_bytes() == (tmp_path / f"b{ending}").read_bytes()
    assert not (tmp_path / "a.svg").read_text().count("dc:date")


def test_no_place_for_a_picture(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(InputError, match="it is a folder"):
        save_figure(curves_figure(SERIES, "x", "y"), tmp_path / "a")
