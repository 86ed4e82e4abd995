"""Plans on a GPU that is not there, alone and together with the CPU: the same plan, and nothing but vectors moves. On a GPU, if there is one."""

import logging

import pytest
import torch
from pretend_gpu import DEVICE, pretend_gpu
from tiny_case import command, tiny, write_tiny

import torchimpt as ti
from torchimpt.checks import InputError
from torchimpt.dose import gpu
from torchimpt.dose.shares import Place
from torchimpt.planning import devices
from torchimpt.planning.build import build
from torchimpt.planning.devices import fastest, resolve, seconds, selection, sorting
from torchimpt.planning.load import set_up
from torchimpt.watch import Progress

FEW = ("dose.dtype=float64", "optimizer.max_iterations=12", "optimizer.tolerance=1e-12", "dose.check_mm=off")
MOVING = ("joint.scheme=joint", "joint.warm_iterations=6", *FEW)


def budget_of_two(case):
    """GB of tables and matrices with which two of the case's three scenarios lie on the GPU."""
    problem = build(case, set_up(case, "cpu", 1), Progress(enabled=False), {})
    first = getattr(problem.doses[0], "parts", [problem.doses[0]])[0]
    placed = devices.placement(problem.compute.places, problem.spots.position.detach(), problem.linear.n_nonzeros > 0)
    one, once = placed.size(first)
    return (2.5 * one + once) / 1e9


@pytest.fixture(params=[DEVICE, pytest.param(torch.device("cpu"), marks=pytest.mark.slow)], ids=["terms on the GPU", "terms on the CPU"])
def home(request, monkeypatch):
    """Where the trial sends the objective."""
    monkeypatch.setattr(devices, "seconds", lambda work, values: 1.0 if values.device == request.param else 2.0)
    return request.param


def agree(found, expected):
    """The same plan to what float64 sums in another order leave after a dozen iterations."""
    assert found.solution.iterations == expected.solution.iterations
    assert float(found.solution.value) == pytest.approx(float(expected.solution.value), rel=1e-10)
    (weight, position), (to_weight, to_position) = ([p.detach() for p in (r.spots.weight, r.spots.position)] for r in (found, expected))
    assert float((weight - to_weight).abs().max() / to_weight.max()) < 1e-8
    assert float((position - to_position).abs().max()) < 1e-6


@pytest.mark.parametrize("options", [FEW, pytest.param(MOVING, marks=pytest.mark.slow)], ids=["weights", "moving"])
def test_a_plan_on_both_at_once(tmp_path, monkeypatch, options, home):
    """Two scenarios on one, the third on the other: the plan of one device; an iteration moves vectors of spots and doses, no matrix."""
    case = tiny(tmp_path, *options)
    expected = ti.plan(case, device="cpu", threads=1)
    case = tiny(tmp_path, *options, f"dose.gpu_memory_gb={budget_of_two(case)}")
    seen, begins = [], []
    with monkeypatch.context() as patch, pretend_gpu(patch) as there:
        found = ti.plan(
            case, device="auto", threads=1, watch=lambda problem: seen.append(problem), callback=lambda _: begins.append(len(there.crossed))
        )
    agree(found, expected)
    problem = seen[0]
    assert [operator.device.type for operator in problem.doses] == ["meta", "meta", "cpu"]
    assert problem.spots.weight.device == problem.compute.device == home
    assert found.metrics["device"] == "meta, cpu"
    moved = there.crossed[begins[0] : begins[-1]]
    # three numbers of every spot, or doses of the scenarios that are elsewhere: a matrix has more entries
    largest = max(3 * problem.doses.n_spots, 2 * problem.doses.n_voxels)
    assert {way for way, _ in moved} == {"up", "down"}
    assert max(torch.Size(shape).numel() for _, shape in moved) <= largest
    assert all(matrix.n_nonzeros > largest for matrix in getattr(problem.linear, "matrices", ()))


@pytest.mark.parametrize("options", [FEW, pytest.param(("dose.engine=matrix_free", *MOVING), marks=pytest.mark.slow)])
def test_a_plan_on_the_gpu_alone(tmp_path, monkeypatch, options):
    case = tiny(tmp_path, *options)
    expected = ti.plan(case, device="cpu", threads=1)
    with monkeypatch.context() as patch, pretend_gpu(patch):
        found = ti.plan(case, device="cuda", threads=1)
    agree(found, expected)
    assert found.metrics["device"] == "meta"
    assert not found.spots.weight.is_meta


@pytest.mark.parametrize("free, budget, on_gpu", [(1e12, None, 3), (0.0, None, 0), (1e12, 0.0, 0)])
def test_how_many_scenarios_a_gpu_gets(tmp_path, monkeypatch, free, budget, on_gpu):
    case = tiny(tmp_path, *([] if budget is None else [f"dose.gpu_memory_gb={budget}"]))
    with monkeypatch.context() as patch, pretend_gpu(patch, free):
        problem = build(case, set_up(case, "auto", 1), Progress(enabled=False), {})
        assert [operator.device.type for operator in problem.doses].count("meta") == on_gpu


def test_a_gpu_too_small_for_a_plan_on_it_alone(tmp_path, monkeypatch):
    with (
        monkeypatch.context() as patch,
        pretend_gpu(patch, 1e5),
        pytest.raises(InputError, match=r"on meta \(--device auto leaves to the CPU"),
    ):
        ti.plan(tiny(tmp_path), device="cuda", threads=1)


def test_auto_says_what_it_takes_and_why(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    case, cpu = tiny(tmp_path), (Place(torch.device("cpu")),)
    assert resolve("cpu", case) == cpu and not caplog.messages
    monkeypatch.setattr(gpu, "has_gpu", lambda: False)
    assert resolve("auto", case) == cpu
    assert caplog.messages[-1] == "device auto: the CPU, as torch sees no NVIDIA GPU"
    with pytest.raises(InputError, match="torch sees no NVIDIA GPU; use --device cpu"):
        resolve("cuda", case)
    monkeypatch.setattr(gpu, "has_gpu", lambda: True)
    monkeypatch.setattr(gpu, "has_triton", lambda: False)
    assert resolve("auto", case) == cpu
    assert caplog.records[-1].levelname == "WARNING" and "although there is a GPU; Triton" in caplog.messages[-1]
    monkeypatch.setattr(devices, "available_memory", lambda device: 10e9)
    assert [place.budget for place in resolve("cuda", case)] == [None]
    monkeypatch.setattr(gpu, "has_triton", lambda: True)
    assert [place.budget for place in resolve("auto", case)] == [8e9, None]
    assert "up to 8.0 GB of tables and matrices, the CPU for what is left" in caplog.messages[-1]
    assert [place.budget for place in resolve("auto", tiny(tmp_path, "dose.gpu_memory_gb=2.5"))] == [2.5e9, None]
    assert len(resolve("auto", tiny(tmp_path, "dose.gradient=autograd"))) == 1


def test_bad_budget(tmp_path):
    with pytest.raises(InputError, match=r"dose\.gpu_memory_gb"):
        tiny(tmp_path, "dose.gpu_memory_gb=-1")


def test_out_of_memory_on_the_gpu_is_one_line(tmp_path, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr("torchimpt.planning.plan.build", full)
    found = command("plan", write_tiny(tmp_path), "--out", "run", cwd=tmp_path)
    assert found.status == 2 and "the GPU is out of memory; with --device auto set dose.gpu_memory_gb to less" in found.err
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_the_objective_is_tried_where_there_are_several_places():
    assert fastest([Place(torch.device("cpu"), None)], 3, 100, torch.float32) == torch.device("cpu")
    values = torch.rand(2, 1001)
    assert all(0 < seconds(work, values, 2) < 10 for work in (sorting, selection))


@pytest.mark.cuda
@pytest.mark.parametrize("options", [(), ("dose.engine=matrix_free",), ("joint.scheme=joint",), ("dose.rbe=mcnamara",)])
@pytest.mark.parametrize("shared", [False, True], ids=["alone", "with the CPU"])
def test_cuda_from_placement_to_report(tmp_path, options, shared):
    """A whole run folder; in float64 a dozen iterations on one device are those on the other."""
    case = tiny(tmp_path, *options, *FEW)
    expected = ti.plan(case, device="cpu")
    budget = (f"dose.gpu_memory_gb={budget_of_two(case)}",) if shared else ()
    found = ti.plan(tiny(tmp_path, *options, *FEW, *budget), device="auto" if shared else "cuda")
    agree(found, expected)
    assert found.metrics["device"].startswith("cuda") and ("cpu" in found.metrics["device"]) == shared
    out = command("plan", write_tiny(tmp_path), "--out", "run", "--device", "cuda", cwd=tmp_path)
    assert out.status == 0 and (tmp_path / "run" / "report.html").is_file()
