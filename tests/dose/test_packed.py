"""Compressed matrices: every entry within its bound, both products of the same entries, whatever the threads and wherever groups end."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dose_oracle import MACHINES, SCENARIOS, blocks, operator, two_beams

from torchimpt import memory
from torchimpt.checks import InputError
from torchimpt.dose.influence import compressed_matrices, entry_counts, influence_matrices
from torchimpt.dose.model import SpotRows
from torchimpt.dose.packed import BLOCK, ENTRY_BYTES, ROUNDING, SMALLEST
from torchimpt.dose.packing import pack

PATIENT = blocks()
EVERY = torch.arange(PATIENT.grid.n_voxels)
F32 = torch.finfo(torch.float32).eps


def stored(packed):
    """All entries, float64, from the product with one spot after the other."""
    unit = torch.eye(packed.shape[1])
    return torch.stack([packed.forward(one) for one in unit], dim=1).double()


def bound(dense):
    """How far each entry may be off."""
    return ROUNDING * dense + SMALLEST * dense.amax(0)


def made(dense, order):
    """A packed matrix of any entries `(n_voxels, n_spots)`, in two beams, their voxels in the orders given."""
    n_voxels, n_spots = dense.shape
    edges = [0, n_spots // 3, n_spots]

    def rows(begin):
        def of(layer, position, *_):
            part = dense.T[position[:, 0].long()]
            kept = part > 0
            return [SpotRows(kept.sum(1).numpy(), kept.nonzero()[:, 1].int().numpy(), part[kept].numpy())]

        return of

    beams = [
        (SimpleNamespace(entries=SimpleNamespace(rows=rows(i), order=lambda o=order[b]: o)), torch.zeros(j - i), i, j)
        for b, (i, j) in enumerate(pairwise(edges))
    ]
    fake = SimpleNamespace(n_voxels=n_voxels, n_spots=n_spots, cutoff=4.0, beams=lambda: beams)
    return pack(fake, torch.arange(n_spots)[:, None].double(), (dense > 0).sum(0))


@pytest.fixture(scope="module")
def scattered():
    """Entries over 60 binary orders of magnitude at random places of some blocks, dense and thin spots, and one without any."""
    generator = np.random.default_rng(3)
    shape = (2 * BLOCK + 77, 60)
    values = np.exp2(generator.uniform(-45, 15, shape)).astype(np.float32)
    values *= generator.random(shape) < generator.uniform(0, 0.3, shape[1])
    values[:, 7] = 0
    values[BLOCK - 3 : BLOCK + 5, 8:] = 1.9999  # across the edge of a block, and rounded up to the next power of two
    dense = torch.from_numpy(values)
    return dense, made(dense, [generator.permutation(shape[0]).astype(np.int32) for _ in range(2)])


def test_any_entries_at_any_place(scattered):
    dense, packed = scattered
    assert packed.n_nonzeros == int((dense > 0).sum()) and packed.shape == tuple(dense.shape) and len(packed.turns) == 6
    off = (stored(packed) - dense.double()).abs()
    assert bool((off <= bound(dense.double())).all())
    assert float((off / dense.clamp(min=1e-30)).max()) > 0.9 * ROUNDING, "the bound is no larger than it has to be"


def test_rounding_is_unbiased(scattered):
    """Errors of entries are as often up as down: the mean is within four standard deviations of none."""
    dense, packed = scattered
    large = dense > 1e-6 * dense.amax(0)
    error = (stored(packed) - dense)[large] / dense[large].double() / ROUNDING
    assert abs(float(error.mean())) < 4 * float(error.std()) / len(error) ** 0.5


def test_both_products_read_the_same_entries(scattered, generator):
    """Against the stored entries in float64; a sum of n float32 terms is off by some n eps of its terms' sizes."""
    dense, packed = scattered
    entries = stored(packed)
    weight, residual = torch.rand(dense.shape[1], generator=generator), torch.randn(dense.shape[0], generator=generator)
    for found, expected, sizes in (
        (packed.forward(weight), entries @ weight.double(), entries @ weight.double()),
        (packed.adjoint(residual), entries.T @ residual.double(), entries.T @ residual.abs().double()),
    ):
        assert bool(((found - expected).abs() <= 30 * F32 * sizes).all())
    some = torch.tensor([3, 7, 20, 59])
    alone = torch.zeros_like(weight).index_copy(0, some, weight[some])
    assert torch.equal(packed.columns(some, weight[some]), packed.forward(alone))
    tiny = packed.adjoint(1e-9 * residual)
    assert float((tiny - 1e-9 * packed.adjoint(residual)).norm() / tiny.norm()) < 1e-5, "nothing falls below the smallest float32"


def test_threads_do_not_matter(scattered, generator):
    dense, packed = scattered
    weight, residual = torch.rand(dense.shape[1], generator=generator), torch.randn(dense.shape[0], generator=generator)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            again = made(dense, packed_orders(packed))
            assert np.array_equal(again.codes, packed.codes) and np.array_equal(again.starts, packed.starts)
            found.append((packed.forward(weight), packed.adjoint(residual)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def packed_orders(packed):
    """Both beams' orders."""
    return np.split(packed.voxel, 2)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_dose_is_within_its_bound(machine, scenario):
    """Of a plan: 0.03 % of the dose itself, far less than 0.1 % of a prescription; and the entries are those of the exact matrix."""
    spots = two_beams(150, dtype=torch.float32)
    op = operator(PATIENT, MACHINES[machine], spots, EVERY, SCENARIOS[scenario])
    (exact,), (packed,) = (make([op], spots.position) for make in (influence_matrices, compressed_matrices))
    assert packed.n_nonzeros == exact.n_nonzeros
    weight = spots.weight.detach()
    dense = exact.matrix.to_dense().double()
    dose = dense @ weight.double()
    allowed = ROUNDING * dose + SMALLEST * float((weight * dense.amax(0)).sum()) + 30 * F32 * dose
    off = (packed.forward(weight) - dose).abs()
    assert bool((off <= allowed).all()) and float(off.max()) < 1e-3 * float(dose.max())
    assert float(off.max()) > 10 * F32 * float(dose.max()), "it is rounded"


def test_takes_a_sixth_of_the_memory():
    spots = two_beams(400, dtype=torch.float32)
    op = operator(PATIENT, MACHINES["halo"], spots, EVERY)
    (exact,), (packed,) = (make([op], spots.position) for make in (influence_matrices, compressed_matrices))
    assert packed.codes.nbytes + packed.starts.nbytes < ENTRY_BYTES * packed.n_nonzeros
    assert packed.n_bytes < exact.n_bytes / 4, "a sixth where spots have more than the few hundred voxels of this block"


def test_spots_that_miss():
    spots = two_beams(4, dtype=torch.float32)
    op = operator(PATIENT, MACHINES["one"], spots, EVERY)
    with torch.no_grad():
        spots.position[2] += 1e4
    packed = compressed_matrices([op], spots.position)[0]
    assert float(packed.adjoint(torch.ones(len(EVERY)))[2]) == 0 and not packed.columns(torch.tensor([2]), torch.ones(1)).any()
    none = compressed_matrices([op], spots.position + 1e4)[0]
    assert none.n_nonzeros == 0
    assert not none.forward(spots.weight).any() and not none.adjoint(torch.ones(len(EVERY))).any()


def test_what_it_is_not_for(monkeypatch):
    spots = two_beams()
    op = operator(PATIENT, MACHINES["one"], spots, EVERY)
    with pytest.raises(InputError, match=r"for float32 on the CPU, the dose tables are float64 on cpu; use \[dose\] engine = \"matrix\""):
        compressed_matrices([op], spots.position)
    single = operator(PATIENT, MACHINES["one"], two_beams(dtype=torch.float32), EVERY)
    size = ENTRY_BYTES * int(entry_counts(single, spots.position.detach()).sum())
    monkeypatch.setattr(memory, "available_memory", lambda _: int(2.5 * size))
    compressed_matrices([single] * 2, spots.position)
    with pytest.raises(InputError, match=r"compressed influence matrices \(3 scenarios\) would take .* engine = \"matrix_free\""):
        compressed_matrices([single] * 3, spots.position)
