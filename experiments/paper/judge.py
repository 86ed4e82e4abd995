"""How robust are the three plans of a case? Table 1 in nominal and worst case, DVH bands, maxima, and 100 scenarios that no plan has seen.

    python experiments/paper/judge.py --case hn [--samples 100] [--seed 2020] [--runs runs/paper]

Needs the plans that `plans.py` leaves. Doses are taken at other points than any plan was made with, closer together (`[dose]
target_grid_mm = "auto"`), the same for all three plans. A band's width is the area between the highest and the lowest DVH over the nine
scenarios, in Gy: by how much dose the curve moves, on average over the volume. Random scenarios are Gaussian and independent along x, y, z
and in range, with the case's errors at two standard deviations. Writes `experiments/results/paper_<case>.json` and, for the figures,
`judged.json` beside the plans.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from common import PLANS, RESULTS, STUDIES, read

import torchimpt as ti
from torchimpt.dose.scenarios import scenario_operators
from torchimpt.evaluate.dvh import Metric, RoiDose, common_axis, d, dvh_band, values
from torchimpt.evaluate.goals import check_goals
from torchimpt.evaluate.tables import point_doses
from torchimpt.planning.load import dose_options, load_machine, load_patient
from torchimpt.planning.look import case_points
from torchimpt.points import Points
from torchimpt.runs.about import about
from torchimpt.runs.folder import write_json
from torchimpt.scenarios import Scenario, random_scenarios
from torchimpt.studies.flags import flags

KEPT = ("iterations", "evaluations", "stop_reason", "converged", "time_s", "peak_memory_bytes", "load", "method", "engine", "set", "about")
"""Of a plan's metrics."""


@dataclass(frozen=True)
class Config:
    """Flags."""

    case: str = "hn"
    plans: str = ",".join(PLANS)
    samples: int = 100
    seed: int = 2020
    runs: str = "runs/paper"
    out: str = str(RESULTS)


@dataclass(frozen=True)
class Judge:
    """Patient, machine and the points that all plans are looked at."""

    case: ti.Case
    patient: ti.Patient
    machine: ti.machine.Machine
    points: Points

    @classmethod
    def of(cls, case: ti.Case, spots: ti.Spots) -> Judge:
        """For a case whose plans have layers as these spots have."""
        case = case.model_copy(update={"dose": case.dose.model_copy(update={"target_grid_mm": "auto"})})
        patient, machine = load_patient(case), load_machine(case)
        rois = [*dict.fromkeys(goal.roi for goal in case.goal)]
        return cls(case, patient, machine, case_points(case, patient, machine, spots, rois, len(case.scenarios()), case.seed + 1))

    def doses(self, spots: ti.Spots, scenarios: Sequence[Scenario], rois: Sequence[str]) -> dict[str, dict[str, RoiDose]]:
        """`{scenario: {roi: doses}}` of a plan, Gy, at the points of some ROIs."""
        points = self.points.take(self.points.union(rois).nonzero().flatten())
        spots, options = spots.weighted(), dose_options(self.case, torch.device("cpu"), spots.weight.dtype)
        found = {}
        for operator in scenario_operators(self.patient, self.machine, spots, points, scenarios, **options):
            dose = self.case.quantity().value(operator.dose(spots.position.detach(), spots.weight.detach()))
            found |= point_doses(points, {operator.scenario.name: dose}, rois)
        return found


def bands(doses: Mapping[str, Mapping[str, RoiDose]], rois: Sequence[str]) -> dict[str, dict[str, Any]]:
    """DVH bands over scenarios, each with its width, Gy."""
    axis, found = common_axis(doses, 800), {}
    for roi in rois:
        band = dvh_band([table[roi] for table in doses.values()], axis)
        width = float((band.high - band.low).sum() * (axis[1] - axis[0])) / 100.0
        curves = {name: getattr(band, name).tolist() for name in ("nominal", "low", "high")}
        found[roi] = {"width_gy": width, "dose_gy": axis.tolist(), **curves}
    return found


def unseen(doses: Mapping[str, Mapping[str, RoiDose]], risk: str) -> dict[str, dict[str, float]]:
    """Median, 5th percentile of the bad side and worst of the target's D95, D98 and D2 and an organ's maximum over scenarios, Gy."""
    rows = [(*d(rois["CTV"], 95.0, 98.0, 2.0), float(values(rois[risk]).max())) for rois in doses.values()]
    found = {}
    for column, name, sign in zip(zip(*rows, strict=True), ("CTV D95", "CTV D98", "CTV D2", f"{risk} max"), (1, 1, -1, -1), strict=True):
        at = sign * torch.tensor(column, dtype=torch.float64)
        spread = torch.quantile(at, torch.tensor([0.5, 0.05, 0.0], dtype=torch.float64)) * sign + 0.0  # no -0
        found[name] = dict(zip(("median", "tail", "worst"), spread.tolist(), strict=True))
    return found


def judged(config: Config) -> dict[str, Any]:
    """Every plan's row, with its bands."""
    study, found, judge = STUDIES[config.case], {}, None
    for name in config.plans.split(","):
        case, spots, metrics = read(config.runs, config.case, name)
        judge = judge or Judge.of(case, spots)
        doses = judge.doses(spots, case.scenarios(), [*dict.fromkeys(goal.roi for goal in case.goal)])
        errors = case.robustness
        random = random_scenarios(errors.setup_mm, errors.range_percent, config.samples, config.seed)[1:]
        extremes = ("CTV", study.risk)
        rows = [{key: value for key, value in row.items() if key != "values"} for row in check_goals(case.goals(), doses)]
        found[name] = {
            **{key: metrics[key] for key in KEPT}, "spots": metrics["spots"], "objective": metrics["objective"]["final"],
            "size": metrics.get("size"), "table": rows, "bands": bands(doses, study.shown),
            "worst_max_gy": {roi: max(float(values(rois[roi]).max()) for rois in doses.values()) for roi in extremes},
            "unseen": unseen(judge.doses(spots, random, extremes), study.risk),
        }  # fmt: skip
    return found


def cell(value: float, passed: bool) -> str:
    """A number, in bold where it misses its limit."""
    return f"{value:.2f}" if passed else f"**{value:.2f}**"


def text(name: str, found: Mapping[str, Any]) -> str:
    """The tables, as Markdown."""
    study, first = STUDIES[name], next(iter(found.values()))
    lines = [f"| {study.title} | limit, Gy | " + " | ".join(f"{PLANS[p]}: nominal | worst" for p in found) + " |"]
    lines.append("|---|--:|" + "--:|--:|" * len(found))
    verdicts = ("passed_nominal", "passed")
    for i, row in enumerate(first["table"]):
        own = [plan["table"][i] for plan in found.values()]
        cells = [cell(one[key], one[verdict]) for one in own for key, verdict in zip(("nominal", "worst"), verdicts, strict=True)]
        lines.append(f"| {row['roi']} {Metric.parse(row['metric']).label} | {row['limit']} | " + " | ".join(cells) + " |")
    counts = [str(sum(row[verdict] for row in plan["table"])) for plan in found.values() for verdict in verdicts]
    passed = " | ".join(counts)
    lines += [f"| met, of {len(first['table'])} | | {passed} |", ""]
    lines.append("| | " + " | ".join(PLANS[p] for p in found) + " |")
    lines.append("|---|" + "--:|" * len(found))
    for roi in study.shown:
        lines.append(f"| Band of {roi}, Gy | " + " | ".join(f"{p['bands'][roi]['width_gy']:.2f}" for p in found.values()) + " |")
    for roi in first["worst_max_gy"]:
        lines.append(f"| Worst maximum of {roi}, Gy | " + " | ".join(f"{p['worst_max_gy'][roi]:.2f}" for p in found.values()) + " |")
    lines += ["", "| 100 random scenarios: median / 5 % tail / worst, Gy | " + " | ".join(PLANS[p] for p in found) + " |"]
    lines.append("|---|" + "--:|" * len(found))
    for key in first["unseen"]:
        told = (" / ".join(f"{p['unseen'][key][at]:.2f}" for at in ("median", "tail", "worst")) for p in found.values())
        lines.append(f"| {key} | " + " | ".join(told) + " |")
    return "\n".join(lines)


def main(config: Config) -> dict[str, Any]:
    """Judge, print, write."""
    facts = about()
    print(facts)
    found = judged(config)
    print(text(config.case, found))
    write_json(Path(config.runs) / config.case / "judged.json", found)
    for plan in found.values():  # curves are for the figures only
        plan["bands"] = {roi: {"width_gy": band["width_gy"]} for roi, band in plan["bands"].items()}
    results = {"about": facts, "config": asdict(config), "plans": found}
    write_json(Path(config.out) / f"paper_{config.case}.json", results)
    return results


if __name__ == "__main__":
    main(flags(Config, __doc__))
