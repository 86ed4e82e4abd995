"""What are moving spots worth, against uniform grids and against their strong rival, a fine grid pruned and optimized again?

    python experiments/joint_vs_uniform.py [--cases tg119,openkbp_109,openkbp_17,openkbp_95] [--scenarios 1,9] [--out runs/joint_vs_uniform]

For each case and number of scenarios, with one objective, one tolerance and one dose code (moving grids have 200 iterations, all other
plans up to 600):

    uniform    square grids of every spacing, weights only
    staggered  the same, each energy layer's grid offset against the others' (`ti.stagger`), weights only
    joint      weights and positions, from the staggered grids
    jittered   weights and positions, from square grids shifted at random, three seeds
    pruned     the square 5 mm grid pruned to n spots as `joint.spots` does it, weights optimized again, each at the minimum MU or above
    l1         the same grid pruned by a reweighted L1 penalty, weights optimized again, at the minimum MU or above
    moved      a staggered 7 mm grid pruned the same way to n spots that move, at the minimum MU or above
    fixed      the same, positions fixed

Final plans are computed again on a grid of half the voxel size, where target and organ metrics are taken in all nine scenarios (of
3 mm and 3 %) or in the nominal one. Dose grid 4 mm in the optimization, margin 8 mm: at 5 mm the uniform grids lack spots at the edge,
which spots that move make up for (OpenKBP 109, nine scenarios, uniform 5 mm: objective 3835 with a margin of 5 mm, 1596 with 8 mm).
`results.json` holds every plan; `joint_tables.py` makes tables, verdicts and curves from it. About 90 minutes for everything on 2 idle
cores; `--asking 1` has the mean-dose objectives ask for 0 Gy. With `--parts grids` (pruned, moved, fixed), only those series are made, and
others of the same case stay in `results.json` as they were.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torchimpt.planning.engine import MatrixEngine, MatrixFreeEngine

import torchimpt as ti
from torchimpt.case.sections import DeliveryConfig, JointConfig, OptimizerConfig
from torchimpt.evaluate.tables import roi_metrics
from torchimpt.optim import Penalized, minimize
from torchimpt.planning.load import load_machine, load_patient, resolve_beams
from torchimpt.runs.about import about
from torchimpt.runs.folder import write_json
from torchimpt.schemes.schemes import optimize
from torchimpt.schemes.settings import Limits
from torchimpt.schemes.weights import jacobi_scale, weight_problem
from torchimpt.spots.delivery import delivered
from torchimpt.spots.pruning import sparsity_cost
from torchimpt.studies.flags import flags

log = logging.getLogger("joint_vs_uniform")


@dataclass(frozen=True)
class Config:
    """Flags."""

    cases: str = "tg119,openkbp_109,openkbp_17,openkbp_95"
    scenarios: str = "1,9"
    out: str = "runs/joint_vs_uniform"
    grid: float = 4.0
    margin: float = 8.0
    spacings: str = "4,5,8,12"
    base: float = 5.0
    moving_base: float = 7.0
    shares: str = "0.5,0.25,0.12"
    penalties: str = "0.4,4"
    jitter: str = "12:1,12:2,12:3"
    min_mu: float = 0.01
    iterations: int = 200
    fixed_iterations: int = 600
    tolerance: float = 1e-4
    asking: int = 0
    parts: str = "grids,pruned,moved,fixed"


class Bench:
    """One case and its scenarios: everything that plans share, and the plans."""

    def __init__(self, config: Config, name: str, n_scenarios: int) -> None:
        case = ti.load_case(
            Path(__file__).parent / "cases" / f"{name}.toml", [f"dose.grid_mm={config.grid}", f"spots.margin_mm={config.margin}"]
        )
        if config.asking:
            asked = [o.model_copy(update={"dose_gy": 0.0}) if o.kind == "mean_dose" else o for o in case.objective]
            case = case.model_copy(update={"objective": asked})
        self.config, self.case, self.name = config, case, name
        self.patient, self.machine = load_patient(case), load_machine(case)
        self.beams = resolve_beams(case, self.patient)
        self.scenarios = ti.boundary_scenarios(3.0, 3.0) if n_scenarios > 1 else (ti.NOMINAL,)
        self.objective = ti.Objective(case.terms(), normalize=case.optimizer.normalize, overlap=case.optimizer.overlap)
        self.voxels = self.objective.voxels(self.patient)
        self.robust = ti.RobustObjective(self.objective.on(self.patient, self.voxels))
        self.model = DeliveryConfig(min_mu=config.min_mu).model()
        self.solver = OptimizerConfig(max_iterations=config.iterations, tolerance=config.tolerance)
        self.fixed = OptimizerConfig(max_iterations=config.fixed_iterations, tolerance=config.tolerance)
        self.plans: list[tuple[dict, ti.Spots]] = []

    def place(self, spacing: float, jitter: float = 0.0, seed: int = 0) -> ti.Spots:
        """A grid of spots, moved at random by up to `jitter` mm."""
        config = self.case.spots
        spots = ti.place_spots(
            self.patient, self.machine, self.beams, config.targets, spacing, margin=config.margin_mm,
            layer_spacing=config.layer_spacing, scenarios=self.scenarios,
        )  # fmt: skip
        noise = torch.rand(spots.position.shape, generator=torch.Generator().manual_seed(seed))
        spots.position.data += jitter * (2.0 * noise - 1.0)
        return spots

    def operators(self, spots: ti.Spots) -> list[ti.DoseOperator]:
        """Of every scenario."""
        return ti.dose_operators(self.patient, self.machine, spots, self.voxels, self.scenarios, rbe=self.case.dose.rbe)

    def add(self, series: str, label: str, spots: ti.Spots, home: Tensor, seconds: float, found, placed: int) -> dict:
        """Note a plan."""
        time_model = self.model if series in ("pruned", "l1", "moved", "fixed") else replace(self.model, min_mu=0.0)
        used = delivered(spots, self.machine, time_model)
        moved = (spots.position.detach() - home)[used].norm(dim=1)
        row = {
            "series": series, "label": label, "placed": placed, "spots": spots.n_spots, "delivered": int(used.sum()),
            "objective": found.solution.value, "iterations": found.solution.iterations, "evaluations": found.solution.evaluations,
            "status": found.solution.status.value, "seconds": seconds, "moved_mm": float(moved.mean()),
            "delivery": ti.delivery_time(spots, self.machine, time_model), "steps": found.steps,
        }  # fmt: skip
        self.plans.append((row, spots))
        log.info(
            "%-9s %-22s %6d spots %6d delivered  objective %10.2f  %5.1f s  %s",
            series, label, row["spots"], row["delivered"], row["objective"], seconds, row["status"],
        )  # fmt: skip
        return row


def uniform_and_joint(bench: Bench, spacing: float) -> None:
    """The same grid with weights only and with weights and positions."""
    for series, joint in (("uniform", None), ("staggered", None), ("joint", JointConfig())):
        begin = time.perf_counter()
        spots = bench.place(spacing)
        spots = spots if series == "uniform" else ti.stagger(spots, spacing)
        operators = bench.operators(spots)
        engine = MatrixEngine(ti.influence_matrices(operators, spots.position)) if joint is None else None
        found = optimize(operators, bench.robust, spots, bench.fixed if joint is None else bench.solver, joint, engine=engine)
        seconds = time.perf_counter() - begin
        del engine
        bench.add(series, f"{spacing:g} mm", found.plan.spots(spots), found.plan.home, seconds, found, spots.n_spots)


def jittered(bench: Bench, spacing: float, seed: int) -> None:
    """Joint from a grid that is shifted at random by up to half a spacing."""
    begin = time.perf_counter()
    spots = bench.place(spacing, 0.5 * spacing, seed)
    found = optimize(bench.operators(spots), bench.robust, spots, bench.solver, JointConfig())
    seconds = time.perf_counter() - begin
    bench.add("jittered", f"{spacing:g} mm, seed {seed}", found.plan.spots(spots), found.plan.home, seconds, found, spots.n_spots)


def pruned_plans(bench: Bench, spots: ti.Spots, series: dict[str, float], counts: list[int], penalties: list[float]) -> None:
    """One warm start, pruned to fewer and fewer spots with boxes by `series`, all at the minimum MU."""
    begin = time.perf_counter()
    operators = bench.operators(spots)
    warm = optimize(operators, bench.robust, spots, bench.solver.model_copy(update={"max_iterations": 20}))
    common = time.perf_counter() - begin
    start = warm.plan.spots(spots)
    limits = Limits(bench.model.min_weight(spots, bench.machine))
    for n in counts:
        for name, box in series.items():
            begin = time.perf_counter()
            joint = JointConfig(box_mm=box, spots=n, warm_iterations=0)
            found = optimize(operators, bench.robust, start, bench.fixed, joint, limits=limits, uniform=False)
            seconds = common + time.perf_counter() - begin
            bench.add(name, f"{n} of {spots.n_spots}", found.plan.spots(spots), found.plan.home, seconds, found, spots.n_spots)
    for penalty in penalties:
        begin = time.perf_counter()
        sparse = reweighted_l1(operators, bench.robust, warm.plan, penalty)
        part = [o.subset(sparse.index) for o in operators]
        own = Limits(limits.min_weight[sparse.index])
        placed = sparse.spots(spots)
        found = optimize(part, bench.robust, placed, bench.fixed, limits=own, uniform=False)
        seconds = common + time.perf_counter() - begin
        bench.add("l1", f"penalty {penalty:g}", found.plan.spots(placed), found.plan.home, seconds, found, spots.n_spots)


def reweighted_l1(operators, objective, plan: Moving, penalty: float, rounds: int = 4, iterations: int = 40) -> Moving:
    """Spots that stay under a price of their weights, taken anew in each round (`torchimpt.spots.pruning.sparsity_cost`)."""
    for _ in range(rounds):
        part = [o.subset(plan.index) for o in operators]
        problem = weight_problem(MatrixFreeEngine(part, plan.position), objective)
        cost = sparsity_cost(plan.weight, problem.value_and_grad(plan.weight)[0], penalty)
        scale = jacobi_scale(part[0], plan.position, objective.bound)
        found = minimize(
            Penalized(problem, cost), plan.weight, method="quasi_newton", scale=scale, max_iterations=iterations, tolerance=1e-4
        )
        plan = replace(plan, weight=found.x).keep(found.x > 1e-3 * found.x.max())
    return plan


def assess(bench: Bench) -> None:
    """Metrics of every plan on a grid of half the voxel size: one set of tables for all plans, their layers side by side."""
    fine = load_patient(bench.case.model_copy(update={"dose": bench.case.dose.model_copy(update={"grid_mm": bench.config.grid / 2})}))
    bound = bench.objective
    voxels = bound.voxels(fine)
    robust = ti.RobustObjective(bound.on(fine, voxels))
    rois = list(dict.fromkeys(term.roi for term in bench.case.terms()))
    place = torch.full((fine.grid.n_voxels,), -1)
    voxels = torch.cat([voxels, *(fine.roi(name).voxels for name in rois)]).unique()
    place[voxels] = torch.arange(len(voxels))
    inside = place[bound.voxels(fine)]
    columns = {key: torch.cat([getattr(s, key).detach().cpu().double() for _, s in bench.plans]) for key in ("beam", "energy", "weight")}
    position = torch.cat([s.position.detach().double() for _, s in bench.plans])
    owner = torch.cat([torch.full((s.n_spots,), float(k)) for k, (_, s) in enumerate(bench.plans)])
    everything, owners = (
        ti.Spots.from_columns(bench.beams, columns["beam"].long(), columns["energy"], *position.T, weight)
        for weight in (columns["weight"], owner)
    )
    owner, position, weight = owners.weight.detach().long(), everything.position.detach(), everything.weight.detach()
    metrics: list[dict] = [{} for _ in bench.plans]
    values = [0.0] * len(bench.plans)
    for scenario in bench.scenarios:
        (operator,) = ti.dose_operators(fine, bench.machine, everything, voxels, (scenario,), rbe=bench.case.dose.rbe)
        for k in range(len(bench.plans)):
            dose = operator.dose(position, torch.where(owner == k, weight, 0.0))
            values[k] += float(robust.value(dose[inside][None]))
            metrics[k][scenario.name] = {name: roi_metrics(dose[place[fine.roi(name).voxels]]) for name in rois}
    for (row, _), found, value in zip(bench.plans, metrics, values, strict=True):
        row["fine"] = {"objective": value, "nominal": found["nominal"], "worst": worst(found)}


def worst(found: dict) -> dict:
    """Least D95 and D98, largest D2 and mean over scenarios."""
    return {
        roi: {
            key: (min if key in ("d95_gy", "d98_gy", "min_gy") else max)(rois[roi][key] for rois in found.values())
            for key in ("d95_gy", "d98_gy", "d2_gy", "mean_gy")
        }
        for roi in found["nominal"]
    }


def main(config: Config) -> dict:
    """Run what is asked for, write `results.json` after each case."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    results = {"about": about(), "config": asdict(config), "cases": {}}
    path = out / "results.json"
    if path.is_file():
        results["cases"] = json.loads(path.read_text())["cases"]
    numbers, parts = [float(s) for s in config.spacings.split(",") if s], config.parts.split(",")
    for name in config.cases.split(","):
        for n_scenarios in map(int, config.scenarios.split(",")):
            key = f"{name}, {n_scenarios} scenarios" + (", asking" if config.asking else "")
            log.info("%s", key)
            bench = Bench(config, name, n_scenarios)
            earlier = results["cases"].get(key, {"plans": []})["plans"]
            if "grids" in parts:
                for spacing in numbers:
                    uniform_and_joint(bench, spacing)
                for entry in filter(None, config.jitter.split(",")):
                    jittered(bench, *(f(v) for f, v in zip((float, int), entry.split(":"), strict=True)))
            shares, penalties = ([float(s) for s in text.split(",") if s] for text in (config.shares, config.penalties))
            rows = [*(row for row, _ in bench.plans), *earlier]
            uniform = {row["label"]: row for row in reversed(rows) if row["series"] == "uniform"}
            reference = uniform.get(f"{config.base:g} mm", next(iter(uniform.values())))
            counts = [max(1, int(share * reference["delivered"])) for share in shares]
            if "pruned" in parts:
                pruned_plans(bench, bench.place(config.base), {"pruned": 0.0}, counts, penalties)
            boxes = {series: box for series, box in (("moved", 10.0), ("fixed", 0.0)) if series in parts}
            if boxes:
                pruned_plans(bench, ti.stagger(bench.place(config.moving_base), config.moving_base), boxes, counts, [])
            assess(bench)
            plans = [row for row, _ in bench.plans]
            kept = [row for row in earlier if row["series"] not in {row["series"] for row in plans}]
            results["cases"][key] = {"prescription": bench.case.prescription(), "plans": [*kept, *plans]}
            write_json(path, results)
    return results


if __name__ == "__main__":
    main(flags(Config, __doc__))
