"""Tables, verdicts and curves from the plans of `joint_vs_uniform.py`.

    python experiments/joint_tables.py [--results experiments/results/joint_vs_uniform.json] [--out runs/joint_vs_uniform]

Prints one table a case, then what was asked: whether moving spots are better at the same spot count, what a third of the uniform grid's
spots comes to, and how many delivered spots moving ones need for the objective that a pruned grid reaches. Takes seconds.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path

from torchimpt.case import load_case
from torchimpt.report.curves import curves_figure, save_figure
from torchimpt.studies.flags import flags

CASES = Path(__file__).parent / "cases"

LABELS = {
    "uniform": "uniform grid", "staggered": "staggered grid", "pruned": "uniform 5 mm, pruned", "l1": "uniform 5 mm, L1",
    "fixed": "staggered 7 mm, pruned", "joint": "moving", "moved": "moving, pruned",
}  # fmt: skip
"""What a series is called in figures, in the order of their legends."""

MET = 1.0
"""Gy², weights included: an objective below this asks for nothing more."""


@dataclass(frozen=True)
class Config:
    """Flags."""

    results: str = str(Path(__file__).parent / "results" / "joint_vs_uniform.json")
    out: str = "runs/joint_vs_uniform"


def points(plans: list[dict], series: str) -> list[tuple[float, float]]:
    """`(delivered spots, objective)` of a series, for logarithmic axes."""
    return [(p["delivered"], p["objective"]) for p in plans if p["series"] == series and p["objective"] > 0]


def spots_for(plans: list[dict], objective: float) -> float | None:
    """Delivered spots at which a series' curve meets an objective: log-log interpolation between its plans; None where it does not."""
    points = sorted((p["delivered"], p["objective"]) for p in plans if p["objective"] > 0)
    if not objective > 0:
        return None
    for (n_0, f_0), (n_1, f_1) in itertools.pairwise(points):
        if min(f_0, f_1) <= objective <= max(f_0, f_1) and f_0 != f_1:
            share = math.log(objective / f_0) / math.log(f_1 / f_0)
            return math.exp(math.log(n_0) + share * math.log(n_1 / n_0))
    return None


def asked(key: str) -> list[tuple[str, str, float | None]]:
    """`(ROI, metric, dose)` of what a case's objectives ask; at or below the dose a metric is free, for nothing asks for less."""
    case = load_case(CASES / f"{key.split(', ')[0]}.toml")
    found: dict = {}
    targets = {term.roi for term in case.objective if term.kind == "min_dose"}
    for term in case.objective:
        if term.kind == "max_dose" and term.roi not in targets:
            found[term.roi, "d2_gy"] = term.dose_gy
        elif term.kind == "mean_dose":
            found[term.roi, "mean_gy"] = 0.0 if "asking" in key else term.dose_gy
        elif term.kind == "min_dose":
            found |= {(term.roi, "d95_gy"): None, (term.roi, "d98_gy"): None}
    return [(roi, metric, level) for (roi, metric), level in found.items()]


def judge(plan: dict, base: dict, prescription: float, metrics: list[tuple[str, str, float | None]]) -> dict:
    """A plan against the uniform one: how much worse each metric is on the fine grid, and the worst in % of the prescription."""
    found = {}
    for where in ("nominal", "worst"):
        for roi, key, level in metrics:
            if roi not in plan["fine"][where]:  # the body, whose objective these comparisons leave out
                continue
            ours, theirs = (p["fine"][where][roi][key] for p in (plan, base))
            worse = (-1.0 if key in ("d95_gy", "d98_gy") else 1.0) * (ours - theirs)
            free = level is not None and ours <= level
            found[f"{roi} {key.removesuffix('_gy')}, {where}"] = {"ours": ours, "theirs": theirs, "worse": worse, "free": free}
    which = max((name for name, m in found.items() if not m["free"]), key=lambda name: found[name]["worse"])
    about = {k: plan[k] for k in ("series", "label", "spots", "delivered", "objective", "seconds")}
    return {
        **about,
        "metrics, Gy (fine grid)": found,
        "largest, % of prescription": 100.0 * found[which]["worse"] / prescription,
        "which": which,
    }


def verdict(plans: list[dict], prescription: float, metrics: list[tuple[str, str, float | None]]) -> dict:
    """What is asked of moving spots, as numbers; `metrics` are those of `asked`."""
    by = {series: [p for p in plans if p["series"] == series] for series in dict.fromkeys(p["series"] for p in plans)}
    uniform = {p["label"]: p for p in by["uniform"]}
    same_count = {p["label"]: p["objective"] / uniform[p["label"]]["objective"] for p in by["joint"]}
    fine = {p["label"]: p["fine"]["objective"] / uniform[p["label"]]["fine"]["objective"] for p in by["joint"]}
    base = uniform.get("5 mm", by["uniform"][0])
    small = [p for p in (*by["joint"], *by.get("jittered", []), *by["moved"]) if p["spots"] <= base["spots"] / 3]
    best = min((p for p in small if p["series"] == "joint"), key=lambda p: p["objective"], default=None)
    fewest = min((p for p in small if p["objective"] <= base["objective"]), key=lambda p: p["spots"], default=None)
    judged = [p and judge(p, base, prescription, metrics) for p in (best, fewest)]
    rivals = {}
    fewest_moving = min(by["moved"], key=lambda p: p["delivered"])
    for name in ("pruned", "l1", "fixed"):
        rivals[name] = []
        for p in by.get(name, []):
            beyond = p["objective"] > fewest_moving["objective"]  # worse than the moving plan of fewest spots: a bound
            n = fewest_moving["delivered"] if beyond else spots_for(by["moved"], p["objective"])
            if n is not None:
                row = {"delivered": p["delivered"], "objective": p["objective"], "moving": round(n), "ratio": n / p["delivered"]}
                rivals[name].append({**row, "at most": beyond})
    return {
        "joint / uniform, same spots": same_count,
        "joint / uniform, same spots, fine grid": fine,
        "reference": {k: base[k] for k in ("label", "spots", "delivered", "objective", "seconds")},
        "a third": judged[0],
        "fewest as good": judged[1],
        "delivered spots at equal objective": rivals,
    }


def overview(verdicts: dict[str, dict]) -> str:
    """One line a case, as Markdown: the README's table."""
    rows = [
        "| case | uniform 5 mm: spots, objective | moving, from 12 mm: spots, objective, worst metric | "
        "fewest as good: spots, objective, worst metric | delivered, of pruned | of L1 |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for key, v in verdicts.items():
        if v["reference"]["objective"] < MET:
            rows.append(f"| {key} | {v['reference']['spots']:,}, all that is asked is met | – | – | – | – |")
            continue
        cells = [f"{v['reference']['spots']:,}, {v['reference']['objective']:.0f}"]
        for plan in (v["a third"], v["fewest as good"]):
            cells.append(f"{plan['spots']:,}, {plan['objective']:.0f}, {plan['largest, % of prescription']:+.1f} %" if plan else "none")
        for name in ("pruned", "l1"):
            every = sorted(v["delivered spots at equal objective"][name], key=lambda row: row["ratio"])
            found = [row for row in every if not row["at most"]] or every[:1]
            ends = dict.fromkeys(f"{'under ' if row['at most'] else ''}{row['ratio']:.2f}" for row in found[:1] + found[-1:])
            cells.append(" to ".join(ends) or "–")
        rows.append(f"| {key} | {' | '.join(cells)} |")
    return "\n".join(rows)


def table(plans: list[dict]) -> str:
    """All plans as Markdown."""
    target = max(plans[0]["fine"]["nominal"], key=lambda roi: plans[0]["fine"]["nominal"][roi]["d95_gy"])
    rows = [
        "| series | start | spots | delivered | objective | fine grid | "
        f"{target} D95 worst | D98 worst | D2 worst | evaluations | s | delivery s | layers |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for p in plans:
        dose = p["fine"]["worst"][target]
        rows.append(
            f"| {p['series']} | {p['label']} | {p['spots']} | {p['delivered']} | {p['objective']:.1f} | {p['fine']['objective']:.1f} | "
            f"{dose['d95_gy']:.2f} | {dose['d98_gy']:.2f} | {dose['d2_gy']:.2f} | {p['evaluations']} | {p['seconds']:.0f} | "
            f"{p['delivery']['seconds']:.0f} | {p['delivery']['energy_layers']} |"
        )
    return "\n".join(rows)


def main(config: Config) -> dict:
    """Print, and draw the curves."""
    results = json.loads(Path(config.results).read_text())
    out, verdicts = Path(config.out), {}
    out.mkdir(parents=True, exist_ok=True)
    print(results["about"])
    for key, case in results["cases"].items():
        plans = case["plans"]
        print(f"\n## {key}\n\n{table(plans)}\n")
        verdicts[key] = verdict(plans, case["prescription"], asked(key))
        print(json.dumps(verdicts[key], indent=1))
        series = {label: points(plans, name) for name, label in LABELS.items()}
        figure = curves_figure({k: v for k, v in series.items() if v}, "Delivered spots", "Objective, Gy²", title=key)
        save_figure(figure, out / f"curves_{key.replace(', ', '_').replace(' ', '_')}.png")
    print("\n" + overview(verdicts))
    return verdicts


if __name__ == "__main__":
    main(flags(Config, __doc__))
