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

from torchimpt.cli.flags import flags
from torchimpt.report.curves import curves_figure, save_figure


@dataclass(frozen=True)
class Config:
    """Flags."""

    results: str = str(Path(__file__).parent / "results" / "joint_vs_uniform.json")
    out: str = "runs/joint_vs_uniform"


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


def verdict(plans: list[dict], prescription: float) -> dict:
    """What the issue asks, as numbers."""
    by = {series: [p for p in plans if p["series"] == series] for series in dict.fromkeys(p["series"] for p in plans)}
    uniform = {p["label"]: p for p in by["uniform"]}
    same_count = {p["label"]: p["objective"] / uniform[p["label"]]["objective"] for p in by["joint"]}
    fine = {p["label"]: p["fine"]["objective"] / uniform[p["label"]]["fine"]["objective"] for p in by["joint"]}
    base = by["uniform"][0]
    small = [p for p in (*by["joint"], *by["jittered"], *by["moved"]) if p["spots"] <= base["spots"] / 3]
    best = min(small, key=lambda p: p["objective"])
    fewest = min((p for p in small if p["objective"] <= base["objective"]), key=lambda p: p["spots"], default=None)
    worse = {}
    for where in ("nominal", "worst"):
        for roi, ours in best["fine"][where].items():
            theirs = base["fine"][where][roi]
            target = ours["d95_gy"] > 0.5 * prescription
            keys = ("d95_gy", "d98_gy", "d2_gy") if target else ("d2_gy", "mean_gy")
            for key in keys:
                sign = -1.0 if key in ("d95_gy", "d98_gy") else 1.0
                worse[f"{roi} {key.removesuffix('_gy')}, {where}"] = sign * (ours[key] - theirs[key])
    rivals = {}
    for name in ("pruned", "l1", "fixed"):
        rows = [(p["delivered"], spots_for(by["moved"], p["objective"])) for p in by.get(name, [])]
        rivals[name] = [{"delivered": n, "moving": round(m), "ratio": m / n} for n, m in rows if m is not None]
    return {
        "joint / uniform, same spots": same_count,
        "joint / uniform, same spots, fine grid": fine,
        "reference": {k: base[k] for k in ("label", "spots", "delivered", "objective", "seconds")},
        "best of a third": {k: best[k] for k in ("series", "label", "spots", "delivered", "objective", "seconds")},
        "fewest as good": fewest and {k: fewest[k] for k in ("series", "label", "spots", "delivered", "objective", "seconds")},
        "worse by, Gy (fine grid)": worse,
        "largest, % of prescription": 100.0 * max(worse.values()) / prescription,
        "delivered spots at equal objective": rivals,
    }


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
        verdicts[key] = verdict(plans, case["prescription"])
        print(json.dumps(verdicts[key], indent=1))
        labels = {
            "uniform": "uniform grid", "staggered": "staggered grid", "pruned": "uniform 5 mm, pruned", "l1": "uniform 5 mm, L1",
            "fixed": "staggered 7 mm, pruned", "joint": "moving", "moved": "moving, pruned",
        }  # fmt: skip
        series = {
            label: [(p["delivered"], p["objective"]) for p in plans if p["series"] == name and p["objective"] > 0]
            for name, label in labels.items()
        }
        figure = curves_figure({k: v for k, v in series.items() if v}, "Delivered spots", "Objective, Gy²", title=key)
        save_figure(figure, out / f"curves_{key.replace(', ', '_').replace(' ', '_')}.png")
    return verdicts


if __name__ == "__main__":
    main(flags(Config, __doc__))
