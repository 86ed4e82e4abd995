"""`docs/extending.md` is true: each extension on the page, as it stands there, is used through a case file, and does what it says."""

from __future__ import annotations

import importlib
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
import torch
from tiny_case import TINY, Outcome, command

import torchimpt as ti
from torchimpt.case import load_case
from torchimpt.case.text import dump_toml
from torchimpt.dose.models import MODELS
from torchimpt.io import patient as patients
from torchimpt.machine import READERS as MACHINES
from torchimpt.objectives import KINDS, MODES
from torchimpt.optim import METHODS, minimize
from torchimpt.planning.build import build
from torchimpt.planning.load import set_up
from torchimpt.planning.plan import PlanResult
from torchimpt.schemes.moving import MovingSpots
from torchimpt.schemes.schemes import SCHEMES
from torchimpt.schemes.variables import Packing, SpotProblem
from torchimpt.watch import Progress

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:ROI Target .* more than a fifth")]  # voxels of 12 mm

PAGE = Path(__file__).resolve().parents[1] / "docs" / "extending.md"
TEXT = PAGE.read_text(encoding="utf-8")
REGISTRIES = (KINDS, MODES, MODELS, METHODS, SCHEMES, MACHINES, patients.READERS)
SMALL = ("dose.grid_mm=12", "spots.spacing_mm=16", "spots.stagger=false", "optimizer.max_iterations=6")


def blocks(title: str) -> tuple[str, str]:
    """The Python and the TOML of a section of the page."""
    (section,) = [part for part in re.split(r"^## ", TEXT, flags=re.MULTILINE) if part.startswith(f"{title}\n")]
    python, toml = (re.findall(rf"^```{kind}\n(.*?)^```", section, flags=re.DOTALL | re.MULTILINE) for kind in ("python", "toml"))
    assert len(python) == len(toml) == 1
    return python[0], toml[0]


class Extended(NamedTuple):
    """A section's code as a module, and the tiny case with its TOML in a folder."""

    module: ModuleType
    case: Path

    def command(self, *overrides: str) -> Outcome:
        """`torchimpt plan` of the case, with run folder and report."""
        flags = [flag for override in (*SMALL, *overrides) for flag in ("--set", override)]
        return command("plan", self.case.name, "--out", "run", *flags, cwd=self.case.parent)

    def plan(self, *overrides: str) -> PlanResult:
        """The case, planned."""
        return ti.plan(load_case(self.case, (*SMALL, *overrides)), device="cpu")


@pytest.fixture
def extended(request, tmp_path, monkeypatch) -> Iterator[Extended]:
    """The section that the test is parametrized with; registries are put back afterwards."""
    before = [dict(registry) for registry in REGISTRIES]
    python, toml = blocks(request.param)
    name = "extension_" + re.sub(r"\W+", "_", request.param)
    (tmp_path / f"{name}.py").write_text(python)
    monkeypatch.syspath_prepend(tmp_path)
    tree = tomllib.loads(TINY)
    for key, section in tomllib.loads(toml).items():
        tree[key] = [*section, *tree[key][len(section) :]] if isinstance(section, list) else {**tree.get(key, {}), **section}
    (tmp_path / "case.toml").write_text(dump_toml(tree))
    yield Extended(importlib.import_module(name), tmp_path / "case.toml")
    for registry, content in zip(REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(content)


def section(title: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("extended", [title], indirect=True)


def test_every_block_of_the_page_is_run() -> None:
    here = Path(__file__).read_text(encoding="utf-8")
    titles = re.findall(r"^## (.+)$", TEXT, flags=re.MULTILINE)
    assert len(titles) == 7 and all(f'@section("{title}")' in here for title in titles)
    assert len(re.findall(r"^```python$", TEXT, flags=re.MULTILINE)) == 7


def test_links_lead_somewhere() -> None:
    linked = re.findall(r"\]\(([^)]+)\)", TEXT)
    anchors = {
        "#" + re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^## (.+)$", TEXT, flags=re.MULTILINE)
    }
    assert linked
    assert not [link for link in linked if not (link in anchors or (PAGE.parent / link).exists())]


@section("An objective")
def test_objective(extended: Extended, generator) -> None:
    term = extended.module.DoseTube("Target", 50.0, weight=3.0, width_gy=1.0)
    dose = 45 + 10 * torch.rand(2, 7, dtype=torch.float64, generator=generator)
    assert torch.autograd.gradcheck(term, dose.requires_grad_())
    assert extended.command().status == 3  # out of iterations
    shares = json.loads((extended.case.parent / "run" / "metrics.json").read_text())["objective"]["terms"]
    assert {row["kind"] for row in shares} == {"tube", "max_dose", "mean_dose"} and any(
        r["value"] > 0 for r in shares if r["kind"] == "tube"
    )
    assert load_case(extended.case).prescription() == 52.0
    assert "one of min_dose, " in (done := extended.command("objective[0].kind=tub")).err and "(did you mean 'tube'?)" in done.err
    assert "takes no widht_gy (did you mean 'width_gy'?)" in extended.command("objective[0].widht_gy=2").err
    assert "width_gy must be a valid number, got 'wide'" in extended.command("objective[0].width_gy=wide").err


@section("A robust mode")
def test_robust_mode(extended: Extended, generator) -> None:
    mode = extended.module.Deviation(factor=0.5)
    values = 100 * torch.rand(5, dtype=torch.float64, generator=generator)
    total, shares = mode.combine(values.requires_grad_())
    torch.testing.assert_close(torch.autograd.grad(total, values)[0], shares.detach(), rtol=1e-10, atol=0)
    values = values.detach()
    assert float(total.detach()) == pytest.approx(float(values.mean() + 0.5 * values.std(correction=0)))
    assert load_case(extended.case).mode() == mode
    enough = "optimizer.max_iterations=60"
    worst, summed = extended.plan(enough), extended.plan(enough, "robustness={range_percent=5.0, setup_mm=0.0}")
    assert 0 < worst.solution.value < summed.solution.value  # one scenario's against three added up
    assert "takes no facter (did you mean 'factor'?)" in extended.command("robustness.facter=3").err


@section("A dose model")
def test_dose_model(extended: Extended) -> None:
    """The same where there is nothing beside the axis, another where there is; planned with, by matrices and without."""
    machine, beams = ti.machine.generic(), [ti.Beam(gantry=0)]
    differ = {}
    for name in ("water", "step"):
        patient = ti.resample(ti.phantom(name), 6.0)
        spots = ti.place_spots(patient, machine, beams, target=patient.targets, spacing=20.0)
        own, axis = (ti.PencilBeamDose(patient, machine, beams, model=m)(spots).detach() for m in ("pencil_beam", "central_axis"))
        differ[name] = float((own - axis).abs().max() / own.max())
    assert differ["water"] < 2e-3 < 0.1 < differ["step"]  # rays to voxels aside of the axis are up to 1e-3 longer
    stored, free, own = (
        extended.plan(override) for override in ("dose.engine=matrix", "dose.engine=matrix_free", "dose.model=pencil_beam")
    )
    assert stored.metrics["matrix"]["nonzeros"] > 0 == free.metrics["matrix"]["nonzeros"]
    # the last digits of float32, after six iterations
    assert stored.solution.value == pytest.approx(free.solution.value, rel=1e-3) != pytest.approx(own.solution.value, rel=1e-2)


@section("An optimizer")
def test_optimizer(extended: Extended, generator) -> None:
    matrix, right = (torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((20, 10), (20,)))

    class Squares:
        def value_and_grad(self, x):
            rest = matrix @ x - right
            return float(rest @ rest), 2 * matrix.T @ rest

    start, options = torch.ones(10, dtype=torch.float64), {"max_iterations": 300, "tolerance": 1e-12}
    ours, best = (minimize(Squares(), start, method=m, **options) for m in ("spectral", "projected_cg"))
    assert ours.converged and ours.value == pytest.approx(best.value, rel=1e-9) and bool((ours.x >= 0).all()) and bool((ours.x == 0).any())
    half = minimize(Squares(), start, method="spectral", **{**options, "max_iterations": 5})
    assert torch.equal(minimize(Squares(), start, method="spectral", state=half.state, **options).x, ours.x)
    history = extended.plan().solution.history
    assert history[-1]["value"] < 0.5 * history[0]["value"]


@section("A variable, and a scheme")
def test_variable(extended: Extended, generator) -> None:
    case = load_case(extended.case, [*SMALL, "dose.dtype=float64", "dose.engine=matrix_free", "dose.cutoff_sigma=8"])
    built = build(case, set_up(case, "cpu"), Progress(enabled=False), {})
    plan = MovingSpots.start(built.spots).keep(torch.arange(built.spots.n_spots) % 2 == 0)
    problem = SpotProblem(built.doses.subset(plan.index), built.objective, Packing(SCHEMES["beam_shifts"].vary(built.spots), plan))
    z = problem.packing.pack(plan)
    assert len(z) == plan.n_spots + 4
    z[-4:] = torch.rand(4, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(problem.packing.pack(problem.packing.unpack(z)), z)
    step = torch.zeros_like(z)
    step[-4:] = torch.rand(4, dtype=torch.float64, generator=generator) - 0.5
    ahead, behind = (problem.value_and_grad(z + s * 1e-3 * step)[0] for s in (1, -1))
    assert (ahead - behind) / 2e-3 == pytest.approx(float(problem.value_and_grad(z)[1] @ step), rel=2e-6)  # F is 1e7 times it

    pruned = ("joint.spots=30", "joint.warm_iterations=3", "delivery.min_mu=0.1")  # stages of every kind
    found = extended.plan(*pruned)
    moved = found.spots.position.detach() - found.home
    assert found.spots.n_spots <= 30 and len(found.steps) > 4 and 0 < float(moved.abs().max()) <= 5.0 + 1e-5
    for beam in range(2):
        own = moved[found.spots.beam == beam]
        assert float((own - own[0]).abs().max()) < 1e-4  # rounding of float32 at 50 mm


@section("A machine reader")
def test_machine_reader(extended: Extended) -> None:
    tables = ti.machine.generic().layers(range(70, 241, 10))
    columns = {
        "energy_mev": tables.energy,
        "depth_mm": tables.depth_step[:, None] * torch.arange(tables.idd.shape[1]),
        "idd": tables.idd,
        "sigma_mm": tables.variance[0].sqrt(),
        "sigma_air_mm": tables.optics_variance[:, 0].sqrt(),
    }
    rows = [{name: column[i].tolist() for name, column in columns.items()} for i in range(tables.n_layers)]
    file = extended.case.parent / "machine.json"
    file.write_text(json.dumps({"name": "mine", "sad_mm": [2000.0, 2000.0], "energies": rows}))
    ours, generic = extended.plan(), extended.plan("machine={name='generic'}")
    assert ours.machine.name == "mine"
    # between energies of 10 MeV the curves are blended
    assert ours.solution.value == pytest.approx(generic.solution.value, rel=0.1)
    file.write_text('{"name": "mine", "energies": [{"energy_mev": 70.0}]}')
    assert re.search(r"machine\.json is no machine in JSON: KeyError: 'depth_mm'", extended.command().err)
    assert (
        "must be one of csv, matrad, emittance, bdl, torchimpt, json, got 'jason' (did you mean 'json'?)"
        in extended.command("machine.format=jason").err
    )


@section("A patient source")
def test_patient_source(extended: Extended) -> None:
    water = ti.phantom("water")
    masks = {name: roi.mask.numpy() for name, roi in water.rois.items()}
    file = extended.case.parent / "patient.npz"
    np.savez(file, hu=water.hu.numpy(), spacing=water.grid.spacing, origin=water.grid.origin, **masks)
    ours, built_in = extended.plan(), extended.plan("patient={source='phantom', name='water'}")
    assert ours.metrics["objective"] == built_in.metrics["objective"]
    np.savez(file, hu=water.hu.numpy())
    assert "patient.npz is no patient in .npz" in extended.command().err
    assert "source = 'npz' needs a path" in extended.command("patient={source='npz'}").err
    assert "(did you mean 'npz'?)" in extended.command("patient.source=npy").err
