"""Where should the objective look? Grids of voxels against points inside them, all judged on 1.25 mm (issue 10, item 1: what was tried).

    python experiments/points.py [--case hn] [--nine true] [--spacing 5] [--iterations 300] [--out runs/points.json]

`grid h`: one point at the middle of each voxel of h mm, as plans are made today. `points h x n`: voxels of h mm are cut into eight, those
parts of one voxel that lie in the same ROIs make a cell with its volume, and every scenario looks at n parts of each cell, each scenario at
others. Prints, for each way, D95, D98 and D2 of the target in the nominal scenario as the plan sees them and on 1.25 mm, the loss of D95 in
the worst of the nine scenarios, points a scenario, and seconds for tables, matrices and weights. Objectives of the body are left out; a
mean dose counts its cells alike, whatever their volume.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from torchimpt.case import Case, load_case
from torchimpt.dose.scenarios import ScenarioDoses, scenario_doses, scenario_operators
from torchimpt.evaluate.dvh import d
from torchimpt.machine import Machine
from torchimpt.objectives import BoundObjective, BoundTerm, Objective, RobustObjective, Sum
from torchimpt.optim import Composite, minimize
from torchimpt.patient import Patient
from torchimpt.planning.load import load_machine, load_patient, resolve_beams
from torchimpt.resampling import cropped
from torchimpt.runs.about import about
from torchimpt.runs.folder import write_json
from torchimpt.scenarios import NOMINAL, Scenario, boundary_scenarios
from torchimpt.schemes.weights import best_uniform_weight, jacobi_scale
from torchimpt.spots import Spots
from torchimpt.spots.placement import place_spots
from torchimpt.studies.flags import flags

CASES = Path(__file__).parent / "cases"
JUDGE = 1.25
PERCENT = (95.0, 98.0, 2.0)


@dataclass(frozen=True)
class Config:
    """Flags."""

    case: str = "hn"
    nine: bool = True
    spacing: float = 5.0
    iterations: int = 300
    tolerance: float = 1e-4
    ways: str = "grid 4,grid 3,grid 2,points 4x1,points 3x1,points 3x2"
    out: str = "runs/points.json"


class Seen(NamedTuple):
    """What a way of looking makes of the problem: doses, objective, and the nominal scenario's entries of the target with their volumes."""

    doses: ScenarioDoses
    objective: RobustObjective
    nominal: list[int]
    target: Tensor
    volume: Tensor


class Problem(NamedTuple):
    """What all ways share."""

    case: Case
    machine: Machine
    scenarios: tuple[Scenario, ...]
    objective: Objective
    target: str


def on_grid(problem: Problem, spots: Spots, spacing: float) -> Seen:
    """One point a voxel."""
    patient = at(problem.case, spacing)
    voxels = problem.objective.voxels(patient)
    doses = scenario_doses(patient, problem.machine, spots, voxels, problem.scenarios)
    bound = problem.objective.on(patient, voxels)
    place = torch.full((patient.grid.n_voxels,), -1)
    place[voxels] = torch.arange(len(voxels))
    target = place[patient.roi(problem.target).voxels]
    return Seen(doses, RobustObjective(bound, quantity=problem.case.quantity()), [doses.nominal], target, torch.ones(len(target)))


def on_points(problem: Problem, spots: Spots, spacing: float, count: int) -> Seen:
    """`count` parts of each cell in every scenario."""
    fine = at(problem.case, 0.5 * spacing)
    masks = torch.stack(problem.objective.masks(fine))
    parts = masks.any(0).nonzero().flatten()
    signature = (masks[:, parts] * (2 ** torch.arange(len(masks)))[:, None]).sum(0)
    z, y, x = torch.unravel_index(parts, fine.grid.shape)
    n_y, n_x = ((n + 1) // 2 for n in fine.grid.shape[1:])
    key = ((z // 2 * n_y + y // 2) * n_x + x // 2) * 2 ** len(masks) + signature
    order = key.argsort(stable=True)
    cell, size = key[order].unique_consecutive(return_counts=True)
    first = size.cumsum(0) - size
    generator = torch.Generator().manual_seed(0)
    turn = torch.randint(8, (len(cell),), generator=generator)  # neighbours look at different parts
    operators, looks = [], len(problem.scenarios) * count
    for number in range(looks):
        # parts are visited by turns: 3 has no factor in common with 8, so that eight looks see all parts of a whole voxel
        part = (turn + 3 * number) % size
        seen = parts[order[first + part]]
        operators += scenario_operators(fine, problem.machine, spots, seen, (problem.scenarios[number // count],))
    bound = []
    of_cell = signature[order[first]]
    for bit, term in enumerate(problem.objective.terms):
        index = (of_cell & 2**bit).nonzero().flatten()
        volume = size[index].double()
        bound.append(BoundTerm(term, index, 1.0 / float(volume.sum()) if term.signs else 1.0 / len(index), volume if term.signs else None))
    robust = RobustObjective(BoundObjective(bound, len(cell)), Sum([1.0 / count] * looks), problem.case.quantity())
    doses = ScenarioDoses(operators)
    inside = fine.roi(problem.target).mask.flatten()[parts[order[first]]].nonzero().flatten()
    nominal = [k for k, operator in enumerate(operators) if operator.scenario.is_nominal]
    return Seen(doses, robust, nominal, inside, size[inside].double())


def at(case: Case, spacing: float) -> Patient:
    """The case's patient on another grid, without the air around the body."""
    patient = load_patient(case.model_copy(update={"dose": case.dose.model_copy(update={"grid_mm": spacing})}))
    return cropped(patient, patient.body_and_rois)


def weighted(dose: Tensor, volume: Tensor) -> list[float]:
    """D95, D98 and D2 of points that have volumes."""
    ranked, order = dose.sort(descending=True)
    above = volume[order].cumsum(0) / volume.sum() * 100.0
    return [float(ranked[int((above < q).sum().clamp(max=len(ranked) - 1))]) for q in PERCENT]


def main(config: Config) -> dict:
    """Plan, judge, print, write."""
    case = load_case(CASES / f"{config.case}.toml")
    scenarios = boundary_scenarios(3.0, 3.0) if config.nine else (NOMINAL,)
    patient, machine = at(case, 3.0), load_machine(case)
    terms = [term for term in case.terms() if patient.roi(term.roi).role != "external"]
    target = case.placement.targets[0]
    problem = Problem(
        case, machine, scenarios, Objective(terms, normalize=case.optimizer.normalize, overlap=case.optimizer.overlap), target
    )
    beams = resolve_beams(case, patient)
    spots = place_spots(
        patient, machine, beams, case.placement.targets, config.spacing, margin=case.placement.margin_mm, scenarios=scenarios
    )
    judge = at(case, JUDGE)
    voxels = judge.roi(target).voxels
    judging = [next(scenario_operators(judge, machine, spots, voxels, (s,))) for s in boundary_scenarios(3.0, 3.0)]
    facts, position = about(), spots.position.detach()
    print(f"{facts}\n{config.case}, {len(scenarios)} scenarios, {spots.n_spots} spots {config.spacing:g} mm apart, target {target}")
    print(f"{'way':12s}{'points':>8s}{'seconds':>9s}   D95 seen|1.25 mm    D98              D2               max     worst D95")
    rows = []
    for way in config.ways.split(","):
        begin = time.perf_counter()
        kind, size = way.split()
        if kind == "grid":
            seen = on_grid(problem, spots, float(size))
        else:
            spacing, count = size.split("x")
            seen = on_points(problem, spots, float(spacing), int(count))
        linear = seen.doses.at(position, "matrix")
        start = best_uniform_weight(linear, seen.objective, spots.weight.detach())
        scale = jacobi_scale(seen.doses[seen.nominal[0]], position, seen.objective)
        options = {"method": "projected_cg", "tolerance": config.tolerance, "max_iterations": config.iterations}
        solution = minimize(Composite(linear, seen.objective), start, scale=scale, **options)
        seconds = time.perf_counter() - begin
        quantity = case.quantity()
        own = [quantity.value(linear.forward(solution.x)[k])[seen.target] for k in seen.nominal]
        seen_as = weighted(torch.cat(own), seen.volume.repeat(len(own)))
        doses = [quantity.value(operator.dose(position, solution.x)) for operator in judging]
        is_so = d(doses[0], *PERCENT)
        worst = min(d(dose, 95.0)[0] for dose in doses)
        row = {
            "way": way, "points": seen.doses.n_voxels, "seconds": seconds, "iterations": solution.iterations, "seen": seen_as,
            "fine": is_so, "max": float(doses[0].max()), "worst_d95": worst,
        }  # fmt: skip
        rows.append(row)
        pairs = "   ".join(f"{a:6.2f}|{b:6.2f}" for a, b in zip(seen_as, is_so, strict=True))
        print(f"{way:12s}{row['points']:8d}{seconds:9.1f}   {pairs}   {row['max']:6.2f}   {worst:6.2f}", flush=True)
    results = {"about": facts, "config": asdict(config), "rows": rows}
    write_json(Path(config.out), results)
    return results


if __name__ == "__main__":
    main(flags(Config, __doc__))
