"""What moving spots are worth, in one picture: objective against delivered spots, and DVHs of a uniform and of a moving plan.

    torchimpt plan experiments/cases/openkbp_109.toml --set spots.margin_mm=8 --out runs/uniform
    torchimpt plan experiments/cases/openkbp_109_joint.toml --out runs/moving
    python experiments/joint_figure.py --runs runs/uniform,runs/moving --out docs/joint.png

The curves come from `experiments/results/joint_vs_uniform.json`, one panel a case. About 10 seconds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from joint_tables import LABELS, points
from readme_figure import WIDTH, write_page

from torchimpt.report.compare import read_runs
from torchimpt.report.curves import curves_figure
from torchimpt.report.figures import overlay_figure
from torchimpt.report.style import colors_by_role
from torchimpt.studies.flags import flags

SERIES = ("uniform", "pruned", "l1", "joint", "moved")


@dataclass(frozen=True)
class Config:
    """Flags."""

    results: str = str(Path(__file__).parent / "results" / "joint_vs_uniform.json")
    cases: str = "openkbp_109, 9 scenarios;openkbp_17, 9 scenarios;openkbp_95, 9 scenarios;tg119, 9 scenarios"
    runs: str = "runs/uniform,runs/moving"
    rois: str = "PTV70,SpinalCord,Brainstem,LeftParotid,RightParotid"
    names: str = "uniform 5 mm,moving"
    out: str = "docs/joint.png"


def main(config: Config) -> None:
    """Draw, put together, write."""
    cases = json.loads(Path(config.results).read_text())["cases"]
    panels = []
    for key in config.cases.split(";"):
        series = {LABELS[name]: points(cases[key]["plans"], name) for name in SERIES}
        panels.append(curves_figure(series, "Delivered spots", "Objective, Gy²", title=key, size=(WIDTH // 2, 360)))
    rois = config.rois.split(",")
    runs = read_runs(config.runs.split(","))
    names = [f"{name}, {run.metrics['spots']['count']:,} spots" for name, run in zip(config.names.split(","), runs, strict=True)]
    colors = colors_by_role({roi: "target" if roi in runs[0].targets else "oar" for roi in rois})
    curves = {name: run.curves for name, run in zip(names, runs, strict=True)}
    dvh = overlay_figure(curves, rois, colors, size=(WIDTH, 420), named=True)
    write_page([panels[:2], panels[2:], [dvh]], Path(config.out))


if __name__ == "__main__":
    main(flags(Config, __doc__))
