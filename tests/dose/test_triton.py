"""The GPU's kernels against the CPU's: on a GPU where there is one, else in Triton's interpreter, which is slow, so that all is small."""

import dataclasses
import json
import os
import platform
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from dose_oracle import MACHINES, SCENARIOS, blocks, distance, two_beams

from torchimpt.checks import InputError
from torchimpt.dose import csr, gpu
from torchimpt.dose.csr import csr_tensor
from torchimpt.dose.influence import entry_counts, influence_matrices
from torchimpt.dose.models import dose_model
from torchimpt.dose.pencil_beam import triton_gpu
from torchimpt.dose.scenarios import scenario_doses

pytest.importorskip("triton", minversion="3.7", reason="Triton 3.7 or later is not installed (its wheels are for Linux)")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PATIENT = blocks()
SLAB = torch.arange(PATIENT.grid.n_voxels).view(PATIENT.grid.shape)[7, ::2].flatten()
"""Few voxels in few rows."""

EXACT = {torch.float64: 1e-13, torch.float32: 2e-6}
"""A thousand roundings, at most, of the largest value."""


def few_spots(dtype=torch.float64):
    """Spots of two beams near the slab, one of them without weight."""
    spots = two_beams(8, dtype=dtype)
    with torch.no_grad():
        spots.position[:, 1] *= 0.3
        spots.weight[3] = 0.0
    return spots


def doses_of(machine, spots, scenarios=("nominal", "both"), backend="triton", **options):
    """Doses in the scenarios, on the GPU or in the interpreter; with another back-end on the CPU."""
    device = DEVICE if backend == "triton" else "cpu"
    return scenario_doses(
        PATIENT, machine, spots, SLAB, [SCENARIOS[name] for name in scenarios],
        dtype=spots.weight.dtype, backend=backend, device=device, **options,
    )  # fmt: skip


def there(*tensors):
    """The tensors where the kernels run."""
    return [tensor.detach().to(DEVICE) for tensor in tensors]


def slow_but(first, rest):
    """Parameters of which the first is a quick test's: the interpreter takes a second or two for each."""
    return [first, *(pytest.param(*one if isinstance(one, tuple) else (one,), marks=pytest.mark.slow) for one in rest if one != first)]


CASES = slow_but(("elliptic", torch.float64), [(machine, dtype) for machine in MACHINES for dtype in EXACT])


@pytest.mark.parametrize(("machine", "dtype"), CASES)
def test_dose_and_gradients_of_scenarios_at_once(machine, dtype, generator):
    """Two scenarios with tables of different lengths in one launch a beam: as many Gaussians as there are, round or not."""
    spots = few_spots(dtype)
    fast, plain = (doses_of(MACHINES[machine], spots, backend=backend) for backend in ("triton", "numba"))
    at = spots.position.detach(), spots.weight.detach()
    expected = plain.dose(*at)
    assert distance(fast.dose(*there(*at)).cpu(), expected) < EXACT[dtype]
    assert (expected > 0).any(dim=1).all()
    residual = torch.randn(expected.shape, generator=generator, dtype=dtype)
    found, here = fast.gradient(*there(residual, *at)), plain.gradient(residual, *at)
    assert all(distance(a.cpu(), b) < EXACT[dtype] for a, b in zip(found, here, strict=True))
    alone = fast.gradient(*there(residual, *at), move=False)
    assert alone.position is None and distance(alone.weight, found.weight) < EXACT[dtype]


def test_one_scenario_and_the_tiles_of_a_gpu(monkeypatch, generator):
    """With tiles as small as on a GPU: rows and runs of several tiles, and bands of several blocks of spots."""
    monkeypatch.setattr(triton_gpu, "_wide", lambda size: max(8, size // 8))
    monkeypatch.setattr(triton_gpu, "SPOTS", 2)
    monkeypatch.setattr(triton_gpu, "ROWS", 2)
    spots = few_spots()
    spots = spots.subset(spots.beam == 1)
    fast, plain = (doses_of(MACHINES["two sources"], spots, ("shift",), backend)[0] for backend in ("triton", "numba"))
    at = spots.position.detach(), spots.weight.detach()
    assert distance(fast.dose(*there(*at)).cpu(), plain.dose(*at)) < 1e-13
    residual = torch.randn(len(SLAB), generator=generator, dtype=torch.float64)
    pairs = zip(fast.gradient(*there(residual, *at)), plain.gradient(residual, *at), strict=True)
    assert all(distance(a.cpu(), b) < 1e-13 for a, b in pairs)


def test_far_spots_and_a_beam_that_reaches_nothing():
    """Spots beyond the outermost cells are in them, and give what they give; those farther than their reach give nothing."""
    spots = few_spots()
    with torch.no_grad():
        spots.position[::3] += torch.tensor([55.0, 18.0], dtype=torch.float64)
        spots.position[1] = 1e4
    fast, plain = (doses_of(MACHINES["elliptic"], spots, ("nominal",), backend) for backend in ("triton", "numba"))
    at = spots.position.detach(), spots.weight.detach()
    assert distance(fast.dose(*there(*at)).cpu(), plain.dose(*at)) < 1e-13
    empty = doses_of(MACHINES["one"], spots, ("nominal",))
    void = [dataclasses.replace(t, **_without_voxels(t)) for t in empty[0].tables]
    nothing = type(empty)([dataclasses.replace(empty[0], tables=tuple(void))])
    assert not nothing.dose(*there(*at)).any()
    assert not nothing.gradient(*there(torch.ones(1, len(SLAB), dtype=torch.float64), *at)).weight.any()


def _without_voxels(tables):
    """Fields of tables that no voxel gets dose from."""
    cut = {name: getattr(tables, name)[..., :0] for name in ("order", "p", "q", "ratio", "amplitude", "falloff")}
    cells, start = torch.zeros_like(tables.cells[:, :2]), torch.zeros_like(tables.row_start)
    return {**cut, "cells": cells, "row_start": start, "sigma": torch.full_like(tables.sigma, torch.inf)}


@pytest.mark.parametrize("machine", slow_but("one", ["three"]))
def test_matrices(machine, generator):
    """Put together where the kernels run: the entries of the CPU's, in the same order, and the same products."""
    spots = few_spots()
    fast, plain = (doses_of(MACHINES[machine], spots, ("both",), backend)[0] for backend in ("triton", "numba"))
    assert torch.equal(entry_counts(fast, spots.position.detach()), entry_counts(plain, spots.position.detach()))
    found, expected = (influence_matrices([one], spots.position)[0] for one in (fast, plain))
    assert found.n_nonzeros == expected.n_nonzeros > 200
    assert distance(found.matrix.to_dense().cpu(), expected.matrix.to_dense()) < 1e-13
    assert distance(found.transpose.to_dense().cpu(), expected.transpose.to_dense()) < 1e-13
    for rows in (found.matrix, found.transpose):
        start, columns = rows.entries.crow_indices().tolist(), rows.entries.col_indices()
        assert start[-1] == len(columns) and columns.dtype == torch.int32
        assert all(bool((columns[i:j].diff() > 0).all()) for i, j in pairwise(start))
    weight, residual = spots.weight.detach(), torch.randn(len(SLAB), generator=generator, dtype=torch.float64)
    assert distance(found.forward(*there(weight)).cpu(), expected.forward(weight)) < 1e-13
    assert distance(found.adjoint(*there(residual)).cpu(), expected.adjoint(residual)) < 1e-13


def test_matrices_of_16_bits(monkeypatch, generator):
    """Each value to half a unit of eleven bits; sums in float32; a third of the memory less."""
    spots = few_spots(torch.float32)
    plain = influence_matrices([doses_of(MACHINES["one"], spots, ("nominal",))[0]], spots.position)[0]
    monkeypatch.setattr(csr, "runs_triton", lambda device: True)
    short = plain.half()
    whole, off = plain.matrix.to_dense(), (short.matrix.to_dense() - plain.matrix.to_dense()).abs()
    assert bool((off <= 2.0**-11 * whole + 1e-9 * whole.max()).all()) and off.max() > 0
    n, pointers = plain.n_nonzeros, sum(plain.shape) + 2
    assert short.n_bytes == 2 * 6 * n + 4 * pointers and plain.n_bytes == 2 * 8 * n + 4 * pointers
    weight, residual = spots.weight.detach(), torch.randn(len(SLAB), generator=generator)
    assert distance(short.forward(*there(weight)), plain.forward(*there(weight))) < 2.0**-11
    assert distance(short.adjoint(*there(residual)), plain.adjoint(*there(residual))) < 2.0**-10  # its terms differ in sign
    assert torch.equal(
        short @ torch.stack(there(weight, 2.0 * weight), dim=1), torch.stack((found := short.forward(*there(weight)), 2.0 * found), 1)
    )
    assert (short.matrix.scale, short.transpose.scale) == (2.0**15 / float(whole.max()),) * 2
    monkeypatch.undo()
    if DEVICE == "cpu":
        with pytest.raises(InputError, match="values of 16 bits are for GPUs"):
            plain.half()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_products_of_csr(kind, generator):
    """Values of 16 bits, sums of 32: as if the rounded values were the matrix. Rows without entries, and of several blocks."""
    dense = torch.rand(40, 300, generator=generator)
    dense[torch.rand(dense.shape, generator=generator) < 0.4] = 0.0
    dense[7], dense[39] = 0.0, 0.0
    x = torch.randn(300, generator=generator, dtype=torch.float64 if kind == torch.float64 else torch.float32)
    rounded = dense.to(kind)
    place = rounded.nonzero().int()
    start = torch.searchsorted(place[:, 0].contiguous(), torch.arange(41, dtype=torch.int32)).int()
    matrix = csr_tensor(*there(start, place[:, 1].contiguous(), rounded[rounded != 0]), (40, 300))
    expected = rounded.to(x.dtype) @ x
    assert distance(gpu.device_product(matrix, *there(x)).cpu(), expected) < (1e-14 if kind == torch.float64 else 1e-6)


def test_the_back_end_is_refused_where_it_cannot_run(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "0")
        with pytest.raises(InputError, match="runs on NVIDIA GPUs, the dose is on the CPU; use backend 'numba'"):
            doses_of(MACHINES["one"], few_spots()) if DEVICE == "cpu" else gpu.check_triton("cpu")
    monkeypatch.setattr(gpu, "has_triton", lambda: False)
    with pytest.raises(InputError, match=r"needs the package triton, 3.3 or later, which is not installed: pip install 'torchimpt\[gpu\]'"):
        gpu.check_triton("cuda")
    assert not gpu.runs_triton("cuda")
    with pytest.raises(InputError, match="backend must be one of auto, numba, torch, triton, got 'tritn' \\(did you mean"):
        doses_of(MACHINES["one"], few_spots(), backend="tritn")
    assert dose_model("pencil_beam").backend == "auto"


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="Triton's wheels have NVIDIA's assembler for x86-64")
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_for_gpus_and_spill_no_register(capability):
    """To the machine code of an A100 and an H100, which needs neither: what the interpreter takes, the compiler may not."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    script = Path(__file__).with_name("compile_kernels.py")
    done = subprocess.run([sys.executable, script, str(capability)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 24 and {row["kernel"] for row in rows} == {"dose_kernel", "gradient_kernel", "entries_kernel", "product_kernel"}
    assert all(row["spilled"] <= 8 for row in rows)  # bytes; the running count of the entries' kernel is on the stack


@pytest.mark.parametrize(("version", "there"), [("3.2.0", False), ("3.3.0", True), ("3.10.1+rocm", True)])
def test_old_versions_will_not_do(monkeypatch, version, there):
    monkeypatch.setattr("importlib.metadata.version", lambda name: version)
    assert gpu.has_triton() == there
