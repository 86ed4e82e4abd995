"""Influence matrices: against the dense oracle and a loop, their products, adjointness, storage, and the limits on their size."""

import dataclasses
import math
import tracemalloc
from types import SimpleNamespace

import pytest
import torch
from dose_oracle import MACHINES, SCENARIOS, blocks, distance, norm_distance, operator, oracle_dose, two_beams

from torchimpt import memory
from torchimpt.checks import InputError
from torchimpt.dose import influence
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
    assert a.matrix.dtype == torch.float32
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
    start, columns, values = (t.tolist() for t in (a.matrix.crow_indices(), a.matrix.col_indices(), a.matrix.values()))
    stored = 0
    for v in range(a.shape[0]):
        row = dict(zip(columns[start[v] : start[v + 1]], values[start[v] : start[v + 1]], strict=True))
        for s in range(a.shape[1]):
            assert math.isclose(row.get(s, 0.0), float(dense[v, s]), rel_tol=1e-12, abs_tol=1e-18)
        stored += len(row)
    assert stored == a.n_nonzeros == int((dense > 0).sum()) > 50
    assert distance(a.transpose.to_dense().T, dense) < 1e-12


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
        parts = (stored.crow_indices(), stored.col_indices(), stored.values())
        assert parts[0].dtype == parts[1].dtype == torch.int32
        torch.sparse_csr_tensor(*parts, stored.shape, check_invariants=True)
        start, columns = parts[0].long(), parts[1].long()
        row = torch.repeat_interleave(torch.arange(len(start) - 1), start.diff())
        assert ((row * stored.shape[1] + columns).diff() > 0).all()
        assert (parts[2] > 0).all()
    assert torch.equal(a.matrix.to_dense(), a.transpose.to_dense().T)
    assert a.n_bytes == 2 * 8 * a.n_nonzeros + 4 * (sum(a.shape) + 2)
    reference = matrix("halo", spots)[0]
    assert torch.equal(a.matrix.values(), reference.matrix.values())
    assert torch.equal(a.transpose.col_indices(), reference.transpose.col_indices())


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
        assert int(a.transpose.crow_indices()[3:5].diff()) == 0


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
        op, tables=tuple(SimpleNamespace(device=torch.device("cuda:1"), dtype=t.dtype, n_bytes=t.n_bytes) for t in op.tables)
    )
    here, both = memory_needed(10**6, [op] * 9), memory_needed(10**6, [there] * 9)
    pointers = 4 * (op.n_voxels + op.n_spots + 2)
    assert both["cuda:1"] == 9 * (16 * 10**6 + pointers)
    assert both["cpu"] == 24 * 10**6 + pointers + max(t.n_bytes for t in op.tables)
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
    spots = two_beams(3)
    op = operator(PATIENT, MACHINES["one"], spots, EVERY)
    with monkeypatch.context() as patch:
        patch.setattr(entries, "count", lambda _, layer, *__: torch.full(layer.shape, 2**30))
        patch.setattr(memory, "available_memory", lambda _: 10**15)
        with pytest.raises(InputError, match=r"'nominal' would have 3\.22e\+09 entries, more than int32 rows hold"):
            influence_matrices([op], spots.position)
    # a later scenario may have more than the first, whose entries are counted
    wide = dataclasses.replace(op, cutoff=6.0, scenario=SCENARIOS["range"])
    monkeypatch.setattr(influence, "MAX_NONZEROS", int(entry_counts(op, spots.position.detach()).sum()))
    with pytest.raises(InputError, match=r"the scenario 'range' would have .* entries, more than int32 rows hold"):
        influence_matrices([op, wide], spots.position)


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
