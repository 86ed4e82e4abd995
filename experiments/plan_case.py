"""How does a plan come about, step by step, and what do other optimizers make of it?

    python experiments/plan_case.py [--case experiments/cases/hn.toml] [--optimizer projected_cg|adam|lbfgs] [--out runs/plan_case]

Reads a case file (the built-in head-and-neck phantom by default) and plans it in the open: no workflow, only the library's parts and a
training loop. `tensorboard --logdir runs` shows it live. The run folder gets `checkpoint.pt`, `results.json` and `dvh.png`.
ProjectedCG keeps the weights within their bound itself; torch's optimizers, which know none, get `weight = root^2`.
Takes about a minute on 2 cores.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

import torchimpt as ti
from torchimpt.evaluate import d, roi_doses
from torchimpt.planning.load import load_machine, load_patient, resolve_beams
from torchimpt.report import dvh_figure
from torchimpt.report.style import roi_colors, slug
from torchimpt.runs.about import commit
from torchimpt.runs.folder import write_json
from torchimpt.schemes.weights import best_uniform_weight, jacobi_scale
from torchimpt.studies.flags import flags
from torchimpt.watch import by_roi


@dataclass(frozen=True)
class Config:
    """Flags."""

    case: str = str(Path(__file__).parent / "cases" / "hn.toml")
    out: str = "runs/plan_case"
    optimizer: str = "projected_cg"
    iterations: int = 100
    spacing: float = 5.0
    grid: float = 3.0
    learning_rate: float = 0.02
    seed: int = 1


def main(config: Config) -> dict:
    """Plan, and return what `results.json` says."""
    torch.manual_seed(config.seed)
    case = ti.load_case(config.case, [f"dose.grid_mm={config.grid}", f"spots.spacing_mm={config.spacing}"])
    patient, machine = load_patient(case), load_machine(case)
    beams, scenarios, targets = resolve_beams(case, patient), case.scenarios(), case.spots.targets
    spots = ti.place_spots(patient, machine, beams, targets, config.spacing, margin=case.spots.margin_mm, scenarios=scenarios)

    # Doses are needed where the objective looks, in every scenario: here without the body, which `ti.plan` samples.
    terms = [term for term in case.terms() if patient.roi(term.roi).role != "external"]
    goal = ti.Objective(terms)
    voxels = goal.voxels(patient)
    objective = ti.RobustObjective(goal.on(patient, voxels), quantity=case.quantity())
    physical = ti.scenario_doses(patient, machine, spots, voxels, scenarios)
    linear = physical.at(spots.position, "matrix")
    begin = time.perf_counter()
    print(f"{spots.n_spots} spots, {len(voxels)} voxels, {len(scenarios)} scenarios")

    start = best_uniform_weight(linear, objective, spots.weight.detach())
    bounded = config.optimizer == "projected_cg"
    parameter = torch.nn.Parameter(start if bounded else start.sqrt())
    if bounded:
        scale = jacobi_scale(physical[0], spots.position.detach(), objective)
        optimizer = ti.optim.ProjectedCG([parameter], lower=0.0, scale=scale)
    elif config.optimizer == "adam":
        optimizer = torch.optim.Adam([parameter], lr=config.learning_rate * float(start.max()) ** 0.5)
    else:
        optimizer = torch.optim.LBFGS([parameter], max_iter=1, history_size=20, line_search_fn="strong_wolfe")

    def weight() -> torch.Tensor:
        return parameter if bounded else parameter.square()

    def doses() -> torch.Tensor:
        return torch.stack([matrix(weight()) for matrix in linear.matrices])

    def closure() -> torch.Tensor:
        nonlocal evaluations
        evaluations += 1
        optimizer.zero_grad()
        value = objective(doses())
        value.backward()
        return value.detach()

    out, evaluations, made_with = Path(config.out), 0, {"config": asdict(config), "commit": commit()}
    board = SummaryWriter(str(out / "tensorboard"))
    for iteration in range(config.iterations + 1):
        before = weight().detach().clone()
        value = float(optimizer.step(closure))  # the objective before the step
        board.add_scalar("objective/total", value, iteration)
        board.add_scalar("optim/step_length", float((weight().detach() - before).norm()), iteration)
        if iteration % 10 == 0 or iteration == config.iterations:
            now = doses().detach()
            tables = roi_doses(patient, {s.name: dose for s, dose in zip(scenarios, case.quantity().value(now), strict=True)}, voxels)
            for roi, share in by_roi(objective.terms(now)).items():
                board.add_scalar(f"objective/{slug(roi)}", share, iteration)
                board.add_scalar(f"dvh/{slug(roi)}_d95", d(tables["nominal"][roi], 95.0)[0], iteration)
            lowest = min(d(rois[targets[0]], 95.0)[0] for rois in tables.values())
            seconds = time.perf_counter() - begin
            print(f"{iteration:4d}  objective {value:10.5g}  worst D95 {lowest:5.1f} Gy  {evaluations} evaluations  {seconds:.1f} s")
            spots.load_state_dict({**spots.state_dict(), "weight": weight().detach()})
            state = {"spots": spots.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, **made_with}, out / "checkpoint.pt")
    board.close()

    rois = list(dict.fromkeys(term.roi for term in terms))
    dvh_figure(tables, rois, roi_colors(patient, targets), prescription=case.prescription()).savefig(out / "dvh.png", dpi=150)
    found = {"objective": value, "d95_worst_gy": lowest, "evaluations": evaluations, "seconds": seconds, "spots": spots.n_spots}
    write_json(out / "results.json", {**made_with, **found})
    return found


if __name__ == "__main__":
    print(main(flags(Config, __doc__)))
