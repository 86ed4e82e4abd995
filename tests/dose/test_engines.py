"""The engine that is chosen: by memory, iterations, precision and model; and maps of which some scenarios are stored."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from dose_oracle import MACHINES, SCENARIOS, blocks, two_beams

from torchimpt.dose import engines
from torchimpt.dose.engines import BUDGET, PAYS_AFTER, choose
from torchimpt.dose.joined import SomeSpots
from torchimpt.dose.packed import ENTRY_BYTES
from torchimpt.dose.scenarios import ScenarioDoses, scenario_doses

PATIENT = blocks()


def doses_of(dtype=torch.float32, gradient="analytic"):
    """Doses in all scenarios, and where the spots stand."""
    spots = two_beams(60, dtype=dtype)
    where = torch.arange(0, PATIENT.grid.n_voxels, 3)
    doses = scenario_doses(
        PATIENT, MACHINES["one"], spots, where, tuple(SCENARIOS.values()), dtype=dtype, gradient=gradient, backend="auto"
    )  # fmt: skip
    return doses, spots.position.detach()


@pytest.fixture(scope="module")
def single():
    return doses_of()


def test_what_fits_and_pays(single, monkeypatch):
    doses, position = single
    size = ENTRY_BYTES * int(engines.entry_counts(doses[0], position).sum())
    assert choose(doses, position, PAYS_AFTER) == dataclasses.replace(
        choose(doses, position, 1000), engine="compressed", stored=len(doses)
    )  # fmt: skip
    assert choose(doses, position, PAYS_AFTER - 1).engine == "matrix_free"
    assert choose(doses, position, 1000, int(2.5 * size)).stored == 2
    assert choose(doses, position, 1000, int(2.5 * size), used=int(size)).stored == 1
    nothing = choose(doses, position, 1000, int(0.5 * size))
    assert (nothing.engine, nothing.stored) == ("matrix_free", 0) and f"matrices of 0 of {len(doses)} scenarios" in nothing.why
    monkeypatch.setattr(engines, "available_memory", lambda _: int(3 * size))
    assert choose(doses, position, 1000).stored == 1, "half of what is free"
    monkeypatch.setattr(engines, "available_memory", lambda _: 10**15)
    monkeypatch.setattr(engines, "entry_counts", lambda *_: torch.tensor([int(BUDGET / 2.5 / ENTRY_BYTES)]))
    few = choose(doses, position, 1000)
    assert few.stored == 2 and "which dose.memory_gb may allow" in few.why


def test_other_precision_model_and_gradient(single):
    doses, position = single
    assert choose(*doses_of(torch.float64), 1000).engine == "matrix"
    assert choose(*doses_of(gradient="autograd"), 1000).why == "torch's gradient has no matrices"
    bare = tuple(SimpleNamespace(entries=None, empty=False) for _ in doses[0].tables)
    without = ScenarioDoses([dataclasses.replace(one, tables=bare) for one in doses])
    assert choose(without, position, 1000).why == "the dose model has no matrices"


def test_some_scenarios_stored(single, generator):
    """The others by the pair kernel: one linear map, whose adjoint fits."""
    doses, position = single
    weight = torch.rand(doses.n_spots, generator=generator)
    residual = torch.randn(len(doses), doses.n_voxels, generator=generator)
    free, whole = (doses.at(position, name) for name in ("matrix_free", "compressed"))
    part = dataclasses.replace(choose(doses, position, 1000), stored=2).linear(doses, position)
    assert 0 < part.n_nonzeros < whole.n_nonzeros and 0 < part.n_bytes < whole.n_bytes
    d = part.forward(weight)
    assert torch.equal(d[:2], whole.forward(weight)[:2]) and torch.equal(d[2:], free.forward(weight)[2:])
    assert float((d.double() * residual).sum()) == pytest.approx(float(part.adjoint(residual).double() @ weight.double()), rel=1e-4)
    some = torch.tensor([1, 5, 40])
    alone = torch.zeros_like(weight).index_copy(0, some, weight[some])
    assert float((part.columns(some, weight[some]) - part.forward(alone)).abs().max()) < 1e-6 * float(d.max())


def test_map_of_some_spots(single, generator):
    doses, position = single
    index = torch.randperm(doses.n_spots, generator=generator)[:23].sort().values
    few, whole = doses.subset(index).at(position[index]), doses.at(position, "matrix")
    some = SomeSpots(whole, index, doses.n_spots)
    weight = torch.rand(len(index), generator=generator)
    residual = torch.randn(len(doses), doses.n_voxels, generator=generator)
    two = torch.tensor([2, 20])
    for a, b in (
        (some.forward(weight), few.forward(weight)), (some.adjoint(residual), few.adjoint(residual)),
        (some.columns(two, weight[two]), few.columns(two, weight[two])),
    ):  # fmt: skip
        assert a.shape == b.shape and float((a - b).abs().max()) < 1e-5 * float(b.abs().max())
