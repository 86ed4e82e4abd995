"""`Spots`: order, layers, checks, casts, state."""

import copy
import io

import pytest
import torch
from torch import nn

from torchimpt.checks import InputError
from torchimpt.geometry import Beam
from torchimpt.spots import Spots

BEAMS = (Beam(0, isocenter=(0, 0, 0)), Beam(90, isocenter=(1, 2, 3)))


def plan(dtype=torch.float64):
    """Five spots, three layers, given out of order."""
    return Spots.from_columns(
        BEAMS, [1, 0, 0, 1, 0], [100.1, 80.0, 120.0, 100.1, 120.0], [1.0, 2, 3, 4, 5], [-1.0, -2, -3, -4, -5], [10.0, 20, 30, 40, 50], dtype
    )


def test_columns_are_sorted_by_beam_then_falling_energy_and_keep_their_order_inside():
    spots = plan()
    assert (spots.n_spots, spots.n_layers) == (5, 3)
    assert spots.position[:, 0].tolist() == [3, 5, 2, 1, 4]
    assert spots.position[:, 1].tolist() == [-3, -5, -2, -1, -4]
    assert spots.weight.tolist() == [30, 50, 20, 10, 40]
    assert spots.energy.tolist() == [120, 120, 80, 100.1, 100.1]
    assert spots.beam.tolist() == [0, 0, 0, 1, 1]
    assert spots.layer.tolist() == [0, 0, 1, 2, 2]


def test_position_and_weight_are_the_only_parameters_and_all_else_travels_with_the_state():
    spots = plan()
    assert {name for name, _ in spots.named_parameters()} == {"position", "weight"}
    twin = plan()
    with torch.no_grad():
        spots.position.add_(1.5)
        spots.weight.mul_(2)
    twin.load_state_dict(spots.state_dict())
    assert torch.equal(twin.position, spots.position) and torch.equal(twin.weight, spots.weight)
    assert torch.equal(twin.layer, spots.layer)


def test_casting_leaves_the_energies_alone():
    spots = plan().to(torch.float32)
    assert spots.weight.dtype == spots.position.dtype == torch.float32
    assert spots.layer_energy.dtype == torch.float64
    assert float(spots.layer_energy[2]) == 100.1


def _pickled(spots):
    buffer = io.BytesIO()
    torch.save(spots, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def _converted(spots):
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        return spots.float()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


def _loaded(spots):
    spots.load_state_dict(plan().state_dict(), assign=True)
    return spots


def _assigned(spots):
    spots.weight = nn.Parameter(torch.ones(5, dtype=torch.float64))
    return spots


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, _pickled, _converted, _loaded, _assigned, lambda s: copy.deepcopy(_loaded(s))])
def test_the_weights_bound_survives(make):
    """However torch makes a new parameter of the weight: without the bound `ProjectedCG` would make it negative in silence."""
    spots = make(plan())
    assert spots.weight.lower == 0.0 and not hasattr(spots.position, "lower")


def test_given_tensors_are_copied():
    position, weight = torch.zeros(1, 2), torch.ones(1)
    spots = Spots(position, weight, torch.tensor([0]), torch.tensor([0]), torch.tensor([100.0]), BEAMS)
    with torch.no_grad():
        spots.position.add_(1)
        spots.weight.add_(1)
    assert position.abs().sum() == 0 and weight.item() == 1


def test_subset_drops_empty_layers():
    spots = plan()
    part = spots.subset(spots.weight < 45)
    assert part.weight.tolist() == [30, 20, 10, 40] and part.n_layers == 3
    part = spots.subset(spots.energy > 90)
    assert part.n_layers == 2 and part.energy.tolist() == [120, 120, 100.1, 100.1] and part.layer.tolist() == [0, 0, 1, 1]
    assert part.beams == spots.beams
    with pytest.raises(InputError, match="at least one spot"):
        spots.subset(torch.zeros(5, dtype=torch.bool))
    with pytest.raises(InputError, match="bool tensor"):
        spots.subset(torch.arange(5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beam": []}, "lengths"),
        ({"beam": [], "energy": [], "x": [], "y": [], "weight": []}, "at least one spot"),
        ({"beam": [2, 0]}, "layer_beam must be 0 to 1"),
        ({"beam": [-1, 0]}, "layer_beam must be 0 to 1"),
        ({"energy": [float("nan"), 80]}, "NaN"),
        ({"energy": [-5.0, 80]}, "positive number of MeV"),
        ({"energy": [1e5, 80]}, "a positive number of MeV, 1000 at most"),
        ({"x": [float("nan"), 1]}, "positions has 1 values"),
        ({"y": [0.0, -2e4]}, "a spot lies 20000 mm off its beam's axis, at most 1000 are taken; positions must be in mm"),
        ({"weight": [float("inf"), 1]}, "weights has 1 values"),
        ({"weight": [-0.5, 1]}, "must not be negative"),
    ],
)
def test_wrong_columns_are_named(change, message):
    columns = {"beam": [0, 1], "energy": [100.0, 90.0], "x": [0.0, 1], "y": [0.0, 1], "weight": [1.0, 1]} | change
    with pytest.raises(InputError, match=message):
        Spots.from_columns(BEAMS, **columns)


def test_a_beam_without_isocenter_and_unsorted_layers_are_refused():
    with pytest.raises(InputError, match="no isocenter"):
        Spots.from_columns((Beam(0),), [0], [100.0], [0.0], [0.0], [1.0])
    with pytest.raises(InputError, match="ascending"):
        Spots(torch.zeros(2, 2), torch.ones(2), torch.tensor([1, 0]), torch.tensor([0, 0]), torch.tensor([100.0, 90.0]), BEAMS)
    with pytest.raises(InputError, match="shapes must be"):
        Spots(torch.zeros(2, 3), torch.ones(2), torch.tensor([0, 0]), torch.tensor([0]), torch.tensor([100.0]), BEAMS)
    with pytest.raises(TypeError, match="floating-point"):
        Spots(torch.zeros(1, 2, dtype=torch.int64), torch.ones(1), torch.tensor([0]), torch.tensor([0]), torch.tensor([100.0]), BEAMS)
