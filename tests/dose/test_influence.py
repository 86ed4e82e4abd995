"""Influence matrices: against the dense oracle and a loop, their products, adjointness, storage, and the limits on their size."""

import dataclasses
import math
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dose_oracle import MACHINES, SCENARIOS, blocks, distance, norm_distance, operator, oracle_dose, two_beams

from torchimpt import memory
from torchimpt.checks import InputError
from torchimpt.dose import csr
from torchimpt.dose.autograd import SpotDose
from torchimpt.dose.influence import entry_counts, influence_matrices, memory_needed
from torchimpt.dose.pencil_beam import entries

PATIENT = blocks()
EVERY = torch.arange(PATIENT.grid.n_voxels)


def _late_halo():
    """A machine whose halo begins at half the range, as measured ones do: before that the last component has no dose."""
    curves = MACHINES["halo"].curves
    fraction = torch.where(
        torch.arange(curves.fraction.shape[2]) * curves.step < 0.5, torch.tensor([1.0, 0.0])[:, None, None], curves.fraction
    )
    return dataclasses.replace(MACHINES["halo"], curves=dataclasses.replace(curves, fraction=fraction))


def _halo_first():
    """The same with the wide component before the narrow one."""
    curves = _late_halo().curves
    flipped = dataclasses.replace(curves, variance=curves.variance.flip(0), fraction=curves.fraction.flip(0))
    return dataclasses.replace(MACHINES["halo"], curves=flipped)


ANY_MACHINE = {**MACHINES, "late halo": _late_halo(), "halo first": _halo_first()}


def matrix(machine, spots, voxels=EVERY, **options):
    """The influence matrix and the operator that it stores."""
    op = operator(PATIENT, ANY_MACHINE[machine], spots, voxels, **options)
    return influence_matrices([op], spots.position)[0], op


def relative_gap(a, b):
    """How far two scalar products are apart."""
    return abs(float((a - b).detach())) / abs(float(b.detach()))


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_equals_the_oracle_and_the_operator(machine, scenario, generator):
    spots, scenario = two_beams(), SCENARIOS[scenario]
    a, op = matrix(machine, spots, scenario=scenario)
    dose = oracle_dose(PATIENT, MACHINES[machine], spots, EVERY, scenario)
    assert a.shape == (len(EVERY), spots.n_spots)
    assert distance(a.forward(spots.weight), dose(spots.position, spots.weight).detach()) < 1e-10
    assert distance(a.forward(spots.weight), op.dose(spots.position, spots.weight)) < 1e-12
    residual = torch.randn(len(EVERY), generator=generator, dtype=torch.float64)
    assert distance(a.adjoint(residual), op.gradient(residual, spots.position, spots.weight)[0]) < 1e-12


@pytest.mark.parametrize("machine", ANY_MACHINE)
def test_counts_before_assembly(machine):
    """The pairs kept are those stored; the pairs looked at are more, but fewer than all."""
    spots = two_beams()
    a, op = matrix(machine, spots)
    position = spots.position.detach()
    kept = entry_counts(op, position)
    held = torch.cat([entries.candidates(t, layer, position[i:j], op.cutoff) for t, layer, i, j in op.beams()])
    assert kept.shape == held.shape == (spots.n_spots,) and int(kept.sum()) == a.n_nonzeros
    assert bool((kept <= held).all()) and a.n_nonzeros < int(held.sum()) < math.prod(a.shape)


@pytest.mark.parametrize("machine", MACHINES)
def test_single_precision(machine):
    spots, single = two_beams(), two_beams(dtype=torch.float32)
    dose = oracle_dose(PATIENT, MACHINES[machine], spots, EVERY)(spots.position, spots.weight).detach()
    a, op = matrix(machine, single)
    assert a.matrix.entries.dtype == a.transpose.entries.dtype == torch.float32
    assert norm_distance(a.forward(single.weight), dose) < 1e-5
    assert norm_distance(a.forward(single.weight), op.dose(single.position, single.weight)) < 1e-5


def test_loop_built_matrix():
    """Every entry of a small matrix with scalars, from the operator's machine tables; entries beyond the cut-off are not stored."""
    spots, machine = two_beams(5), MACHINES["halo"]
    voxels = EVERY[1000::97]
    a = matrix("halo", spots, voxels)[0]
    dense = torch.zeros(a.shape, dtype=torch.float64)
    for s in range(spots.n_spots):
        one = oracle_dose(PATIENT, machine, spots.subset(torch.arange(5) == s), voxels)
        dense[:, s] = one(spots.position[s : s + 1], torch.ones(1, dtype=torch.float64)).detach()
    assert distance(a.matrix.to_dense(), dense) < 1e-12
    assert int((a.matrix.to_dense() > 0).sum()) == a.n_nonzeros == int((dense > 0).sum()) > 50
    assert torch.equal(a.transpose.to_dense().T, a.matrix.to_dense())


@pytest.mark.parametrize("n_threads", [1, 2])
def test_storage(n_threads):
    """int32 rows, columns ascending and each once; A and A^T hold the same entries; the threads change no bit."""
    spots = two_beams(150, dtype=torch.float32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(n_threads)
        a = matrix("halo", spots)[0]
    finally:
        torch.set_num_threads(before)
    for stored in (a.matrix, a.transpose):
        parts = (stored.entries.crow_indices(), stored.entries.col_indices(), stored.entries.values())
        assert parts[0].dtype == parts[1].dtype == torch.int32
        start, columns = parts[0].long(), parts[1].long()
        row = torch.repeat_interleave(torch.arange(len(start) - 1), start.diff())
        real = parts[2] > 0
        assert ((row * stored.shape[1] + columns)[real].diff() > 0).all() and int(real.sum()) == stored.n_nonzeros
        assert not parts[2][~real].any() and not columns[~real].any() and int(start.diff().min()) >= csr.LEAST
    assert torch.equal(a.matrix.to_dense(), a.transpose.to_dense().T)
    stored = sum(8 * len(m.entries.values()) + 4 * len(m.entries.crow_indices()) for m in (a.matrix, a.transpose))
    assert a.matrix.filled is None and a.n_bytes == stored, "every voxel of this block has dose"
    reference = matrix("halo", spots)[0]
    assert torch.equal(a.matrix.entries.values(), reference.matrix.entries.values())
    assert torch.equal(a.transpose.entries.col_indices(), reference.transpose.entries.col_indices())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_do_not_depend_on_the_number_of_threads(dtype):
    """Long rows, short ones and empty ones, as within a plan's beams, at their edges and in air: the same bits whatever the shares."""
    generator = np.random.default_rng(5)
    shape = (6000, 700)  # voxels, spots
    wanted = np.where(np.arange(shape[0]) % 3000 < 500, 60, generator.integers(0, 4, shape[0])) / shape[1]
    kept = generator.random(shape[::-1]) < wanted
    kept[77] = False
    columns = kept.nonzero()[1].astype(np.int32)
    values = generator.random(len(columns)).astype(str(dtype).removeprefix("torch."))
    matrix, transpose = csr.both_ways([csr.SpotRows(kept.sum(1), columns, values)], shape, dtype)
    dense = torch.zeros(shape[::-1], dtype=dtype)
    dense[torch.from_numpy(kept)] = torch.from_numpy(values)
    assert torch.equal(transpose.to_dense(), dense) and torch.equal(matrix.to_dense(), dense.T)
    assert matrix.n_nonzeros == transpose.n_nonzeros == len(values)
    assert matrix.filled is not None and torch.equal(matrix.filled.long(), torch.from_numpy(kept).any(0).nonzero().flatten())
    before, results = torch.get_num_threads(), []
    weight, residual = (torch.from_numpy(generator.random(n)).to(dtype) for n in shape[::-1])
    try:
        for n_threads in (1, 2, 3, 4, 7):
            torch.set_num_threads(n_threads)
            results.append((matrix.product(weight), transpose.product(residual)))
    finally:
        torch.set_num_threads(before)
    for products in results:
        assert all(torch.equal(one, other) for one, other in zip(products, results[0], strict=True))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13  # of sums of 60 and 1500 numbers of one sign
    assert distance(results[0][0], dense.T @ weight) < tolerance and distance(results[0][1], dense @ residual) < tolerance


def test_adjoint(generator):
    """<A w, r> = <w, A^T r> for the matrix, the operator and their autograd Functions."""
    spots = two_beams()
    a, op = matrix("two sources", spots)
    w = torch.randn(spots.n_spots, generator=generator, dtype=torch.float64).requires_grad_()
    r = torch.randn(len(EVERY), generator=generator, dtype=torch.float64).requires_grad_()
    inner = (a.forward(w) @ r).detach()
    assert relative_gap(w.detach() @ a.adjoint(r), inner) < 1e-12
    assert relative_gap(op.dose(spots.position, w) @ r, inner) < 1e-12
    assert relative_gap(w @ op.gradient(r, spots.position, w)[0], inner) < 1e-12
    assert relative_gap(w @ torch.autograd.grad(a(w), w, r.detach())[0], inner) < 1e-12
    assert relative_gap(r @ torch.autograd.grad(a.T(r), r, w.detach())[0], inner) < 1e-12
    product = SpotDose.apply(spots.position, w, op)
    assert relative_gap(w @ torch.autograd.grad(product, w, r.detach())[0], inner) < 1e-12


def test_dose_is_linear_in_weight(generator):
    spots = two_beams()
    a, op = matrix("halo", spots)
    w, v = (torch.randn(spots.n_spots, generator=generator, dtype=torch.float64) for _ in range(2))
    for product in (a.forward, lambda x: op.dose(spots.position, x)):
        assert distance(product(2 * w - 3 * v), 2 * product(w) - 3 * product(v)) < 1e-13


def test_second_derivatives():
    """The Function is linear, so its backward is itself differentiable: gradients of gradients, as Hessian products need them."""
    spots = two_beams(7)
    a = matrix("halo", spots, EVERY[::31])[0]
    w = spots.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(a, (w,), eps=1e-2, atol=1e-9)
    assert torch.autograd.gradgradcheck(lambda w: (1e2 * a(w)) ** 2, (w,), eps=1e-2, atol=1e-6)
    r = torch.linspace(-1, 1, a.shape[0], dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(a.T, (r,), eps=1e-2, atol=1e-9)
    direction = torch.ones_like(w)
    (g,) = torch.autograd.grad((a(w) ** 2).sum(), w, create_graph=True)
    (h,) = torch.autograd.grad(g @ direction, w)
    assert distance(h, 2 * a.adjoint(a.forward(direction))) < 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_columns(dtype, generator):
    spots = two_beams(60, dtype=dtype)
    a = matrix("halo", spots)[0]
    some = torch.randperm(60, generator=generator)[:11]
    change = torch.randn(11, generator=generator, dtype=dtype)
    full = torch.zeros(60, dtype=dtype).index_put((some,), change)
    assert distance(a.columns(some, change), a.forward(full)) < (1e-12 if dtype == torch.float64 else 1e-6)
    none = torch.zeros(0, dtype=torch.int64)
    assert not a.columns(none, none.to(dtype)).any()


def test_several_scenarios_and_a_spot_that_misses():
    spots = two_beams()
    with torch.no_grad():
        spots.position[3] += 1e3
    operators = [operator(PATIENT, MACHINES["one"], spots, EVERY, s) for s in SCENARIOS.values()]
    matrices = influence_matrices(operators, spots.position)
    assert len(matrices) == len(operators)
    for a, op in zip(matrices, operators, strict=True):
        assert distance(a.forward(spots.weight), op.dose(spots.position, spots.weight)) < 1e-12
        assert not a.transpose.to_dense()[3].any() and a.transpose.to_dense()[2].any()


def test_no_pair_at_all():
    spots = two_beams(4)
    op = operator(PATIENT, MACHINES["one"], spots, EVERY)
    a = influence_matrices([op], spots.position + 1e4)[0]
    assert a.n_nonzeros == 0
    assert not a.forward(spots.weight).any()
    assert not a.adjoint(torch.ones(len(EVERY), dtype=torch.float64)).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 3])
def test_memory_is_what_is_allocated_at_most(dtype, count):
    """Matrices and scratch, against what numpy allocates: nearly all of it, torch has the row pointers."""
    spots = two_beams(150, dtype=dtype)
    op = operator(PATIENT, MACHINES["halo"], spots, EVERY)
    influence_matrices([op], spots.position)
    tracemalloc.start()
    try:
        matrices = influence_matrices([op] * count, spots.position)
        stays, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    needed = memory_needed(matrices[0].n_nonzeros, [op] * count)
    assert list(needed) == ["cpu"]
    assert sum(m.n_bytes for m in matrices) <= stays + 4 * count * (sum(matrices[0].shape) + 2) + 1e5 < peak
    assert peak <= needed["cpu"] <= 1.2 * peak


def test_memory_for_another_device():
    """There the matrices, here all that one is put together from, the copied tables of a beam included."""
    op = operator(PATIENT, MACHINES["one"], two_beams(dtype=torch.float32), EVERY)
    there = dataclasses.replace(
        op, tables=tuple(SimpleNamespace(device=torch.device("cuda:1"), dtype=t.dtype, n_bytes=t.n_bytes, entries=None) for t in op.tables)
    )
    here, both = memory_needed(10**6, [op] * 9), memory_needed(10**6, [there] * 9)
    rows = (8 * csr.LEAST + 8) * (op.n_voxels + op.n_spots)  # each filled up, with its pointer and its number
    assert both["cuda:1"] == 9 * (16 * 10**6 + rows)
    assert both["cpu"] == 24 * 10**6 + rows + max(t.n_bytes for t in op.tables)
    assert here == {"cpu": both["cuda:1"] + 8 * 10**6}


def test_tables_too_large_for_memory(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda _: 100_000)
    with pytest.raises(
        InputError, match=r"the dose tables of a beam \(5 energy layers, \d+ voxels\) would take 0\.0 GB, .* coarser grid_mm"
    ):
        operator(PATIENT, MACHINES["one"], two_beams(), EVERY)


def test_too_large_for_memory(monkeypatch):
    """The error comes before anything is allocated, says how large the matrix would be, and what to change."""
    spots = two_beams()
    op = operator(PATIENT, MACHINES["one"], spots, EVERY)
    size = influence_matrices([op], spots.position)[0].n_bytes

    def never(*_):
        raise AssertionError("allocated before the check")

    monkeypatch.setattr(entries, "rows", never)
    monkeypatch.setattr(memory, "available_memory", lambda _: size - 1)
    with pytest.raises(InputError, match=r"\(1 scenarios, .* entries\) would take 0\.0 GB, .*free; use \[dose\] engine = \"matrix_free\""):
        influence_matrices([op], spots.position)
    monkeypatch.undo()
    monkeypatch.setattr(memory, "available_memory", lambda _: 3 * size)
    influence_matrices([op], spots.position)
    monkeypatch.setattr(entries, "rows", never)
    with pytest.raises(InputError, match="3 scenarios"):
        influence_matrices([op] * 3, spots.position)


def test_more_entries_than_int32_counts(monkeypatch):
    spots = two_beams(150)  # so many that few rows are filled up
    op = operator(PATIENT, MACHINES["one"], spots, EVERY)
    with monkeypatch.context() as patch:
        patch.setattr(entries, "count", lambda _, layer, *__: torch.full(layer.shape, 2**30))
        patch.setattr(memory, "available_memory", lambda _: 10**15)
        with pytest.raises(InputError, match=r"'nominal' would have 1\.61e\+11 entries, more than int32 rows hold"):
            influence_matrices([op], spots.position)
    # a later scenario may have more than the first, whose entries are counted
    wide = dataclasses.replace(op, cutoff=6.0, scenario=SCENARIOS["range"])
    a = influence_matrices([op], spots.position)[0]
    stored = max(len(m.entries.values()) for m in (a.matrix, a.transpose))
    monkeypatch.setattr(csr, "MAX_NONZEROS", stored)
    with pytest.raises(InputError, match=r"the scenario 'range' would have .* entries, more than int32 rows hold"):
        influence_matrices([op, wide], spots.position)
    monkeypatch.setattr(csr, "MAX_NONZEROS", stored - 1)
    with pytest.raises(InputError, match=r"a matrix would have .* entries, more than int32 rows hold .* use engine"):
        influence_matrices([op], spots.position)


@pytest.mark.cuda
def test_cuda(generator):
    spots = two_beams()
    a = matrix("halo", spots)[0]
    there = a.to("cuda")
    r = torch.randn(len(EVERY), generator=generator, dtype=torch.float64)
    w = spots.weight.detach().cuda().requires_grad_()
    assert distance(there.forward(w).cpu(), a.forward(spots.weight)) < 1e-12
    assert distance(torch.autograd.grad(there(w), w, r.cuda())[0].cpu(), a.adjoint(r)) < 1e-12
    some = torch.tensor([1, 5, 6])
    change = torch.ones(3, dtype=torch.float64)
    assert distance(there.columns(some.cuda(), change.cuda()).cpu(), a.columns(some, change)) < 1e-12
