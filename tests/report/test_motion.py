"""Pictures of spots that moved: every path leads from where a spot was placed to where it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection, PathCollection

from torchimpt.geometry import Beam
from torchimpt.report import fullest_layers, motion_figure
from torchimpt.report.motion import moved
from torchimpt.spots import Spots


@pytest.fixture
def plan():
    """Two beams of two layers; the third spot carries nothing. And where the spots were placed."""
    beams = [Beam(0, 0, (0, 0, 0)), Beam(90, 0, (0, 0, 0))]
    position = torch.tensor([[0.0, 0.0], [9.0, 4.0], [0.0, 9.0], [-2.0, 1.0], [3.0, 3.0], [12.0, 3.0]])
    weight = torch.tensor([1.0, 3.0, 0.0, 5.0, 2.0, 2.0])
    spots = Spots(
        position, weight, torch.tensor([0, 0, 0, 1, 2, 3]), torch.tensor([0, 0, 1, 1]), torch.tensor([90.0, 80.0, 85.0, 75.0]), beams
    )
    home = position - torch.tensor([[0.0, 0.0], [3.0, 4.0], [5.0, 5.0], [0.0, 2.0], [1.0, 0.0], [0.0, -1.0]])
    return spots, home


def paths(axes):
    """Segments `(n, 2, 2)` drawn in the axes."""
    return [np.asarray(s) for part in axes.collections if isinstance(part, LineCollection) for s in part.get_segments()]


def test_the_fullest_layers_of_each_beam(plan):
    spots, _ = plan
    assert fullest_layers(spots) == [1, 2] and fullest_layers(spots, 5) == [1, 0, 2, 3]


def test_how_far_the_spots_that_carry_weight_moved(plan):
    assert moved(*plan).tolist() == [0.0, 5.0, 2.0, 1.0, 1.0]
    assert (
        len(moved(Spots(plan[0].position, torch.zeros(6), plan[0].layer, plan[0].layer_beam, plan[0].layer_energy, plan[0].beams), plan[1]))
        == 0
    )


def test_paths_lead_from_home_to_the_disc(plan):
    spots, home = plan
    figure = motion_figure(spots, home, [0, 2])
    first, second = figure.axes
    expected = torch.stack((home[:2], spots.position.detach()[:2]), dim=1).numpy()
    assert np.allclose(paths(first), expected) and len(paths(second)) == 1
    assert first.get_title(loc="left") == "Beam 0, 90.0 MeV" and first.get_title(loc="right") == "2 spots moved 2.5 mm"
    spans = [np.ptp(axes.get_xlim()) for axes in figure.axes] + [np.ptp(axes.get_ylim()) for axes in figure.axes]
    assert spans == pytest.approx([spans[0]] * 4)


def test_disc_areas_follow_the_weights(plan):
    faint, discs, *_ = [part for part in motion_figure(*plan, [0]).axes[0].collections if isinstance(part, PathCollection)]
    assert len(faint.get_offsets()) == 1
    areas = discs.get_sizes()
    assert areas[1] == pytest.approx(3 * areas[0])


def test_a_layer_whose_spots_are_gone_stays_as_an_empty_panel(plan):
    spots, home = plan
    left = Spots(spots.position[:3], spots.weight[:3], spots.layer[:3], spots.layer_beam, spots.layer_energy, spots.beams)
    figure = motion_figure(left, home[:3], [1, 0])
    assert not paths(figure.axes[0]) and len(paths(figure.axes[1])) == 2


def test_panels_of_a_beam_that_is_gone(plan):
    spots, home = plan
    left = Spots(spots.position[:3], spots.weight[:3], spots.layer[:3], spots.layer_beam, spots.layer_energy, spots.beams)
    assert len(motion_figure(left, home[:3], [0, 2]).axes) == 2
    assert fullest_layers(left) == [0]


def test_paths_of_little_weight_are_faint(plan):
    spots, home = plan
    spots.weight.data[0] = 0.05
    (lines,) = [part for part in motion_figure(spots, home, [0]).axes[0].collections if isinstance(part, LineCollection)]
    alpha = lines.get_colors()[:, 3]
    assert alpha[0] < 0.3 and alpha[1] == 1.0


def test_one_spot(plan):
    spots, home = plan
    one = spots.subset(torch.tensor([True, False, False, False, False, False]))
    assert len(paths(motion_figure(one, home[:1], [0]).axes[0])) == 1
