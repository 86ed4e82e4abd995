"""What does a plan look like? The README's picture, from a run folder.

    torchimpt plan experiments/cases/openkbp_109.toml --out runs/openkbp_109
    python experiments/readme_figure.py --run runs/openkbp_109 --out docs/openkbp_109.png

Nominal dose on three slices, and the DVHs of all planned scenarios as bands. About 20 seconds on 2 cores.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

import torchimpt as ti
from torchimpt.io import read_plan
from torchimpt.planning.assess import assess
from torchimpt.planning.load import load_machine, load_patient, resolve_beams, set_up
from torchimpt.report import dvh_figure, slices_figure
from torchimpt.report.style import roi_colors, shown_rois
from torchimpt.studies.flags import flags
from torchimpt.watch import Progress

DPI = 110
WIDTH = 1100


@dataclass(frozen=True)
class Config:
    """Flags."""

    run: str = "runs/openkbp_109"
    out: str = "docs/openkbp_109.png"


def picture(figure: Figure) -> Image.Image:
    """The figure's pixels."""
    buffer = BytesIO()
    figure.savefig(buffer, dpi=DPI, facecolor="white")
    return Image.open(buffer).convert("RGB")


def write_page(rows: list[list[Figure]], out: Path) -> None:
    """Figures side by side in rows, as one picture."""
    parts = [[picture(figure) for figure in row] for row in rows]
    width, heights = max(sum(part.width for part in row) for row in parts), [max(part.height for part in row) for row in parts]
    page = Image.new("RGB", (width, sum(heights)), "white")
    for number, row in enumerate(parts):
        left = 0
        for part in row:
            page.paste(part, (left, sum(heights[:number])))
            left += part.width
    out.parent.mkdir(parents=True, exist_ok=True)
    page.save(out, optimize=True)
    print(f"{out}: {page.width} x {page.height} pixels, {out.stat().st_size / 1000:.0f} kB")


def main(config: Config) -> None:
    """Read the run, compute its doses anew, draw."""
    case = ti.load_case(config.run)
    patient, machine = load_patient(case), load_machine(case)
    spots = read_plan(Path(config.run) / "plan.json", resolve_beams(case, patient))
    found = assess(case, patient, machine, spots, case.scenarios(), set_up(case, "cpu"), Progress(enabled=False))

    targets, prescription = case.spots.targets, case.prescription()
    colors = roi_colors(patient, targets)
    rois = shown_rois(patient, dict.fromkeys(term.roi for term in case.terms()), targets)
    slices = slices_figure(patient, found.dose, colors, targets=targets, rois=rois, prescription=prescription, width=WIDTH)
    curves = dvh_figure(found.roi_doses, rois, colors, prescription=prescription, goals=found.goals, size=(WIDTH, 420))
    for roi in rois:
        curves.axes[0].plot([], [], color=colors[roi], label=roi)
    curves.axes[0].legend(loc="upper right", frameon=False, fontsize=8, bbox_to_anchor=(0.82, 0.99))

    write_page([[slices], [curves]], Path(config.out))


if __name__ == "__main__":
    main(flags(Config, __doc__))
