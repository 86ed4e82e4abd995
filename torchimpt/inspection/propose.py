"""A case file to start from, for a patient that was found: its targets, beams from their side, what lies near."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchimpt.case.text import dump_toml
from torchimpt.geometry import table_axes
from torchimpt.inspection.sections import Region

PRESCRIBED = 60.0
"""Gy, where a target's name has no number."""

DOSES = (20.0, 85.0)
"""Numbers in targets' names that are doses, Gy."""

NEAR = 50.0
"""Organs whose box is as near to the target's as this get an objective, mm; the nearest `MOST_ORGANS`."""

MOST_ORGANS = 6

CENTRAL = 30.0
"""A target that is as near to the body's middle as this is reached from three sides, mm; others from the side where they lie."""

SMALL = 10_000.0
"""Targets of less than this, mm^3, get a finer dose grid."""


@dataclass(frozen=True)
class Proposal:
    """A case file that runs, and why it is as it is.

    Attributes
    ----------
    text
        TOML.
    remarks
        What to look at before it is used.
    """

    text: str
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Told:
    """Sections of a case file that a patient's file tells of, in the place of those that would be proposed, None for one that is not to be
    there; and what to know about them.
    """

    sections: dict[str, Any]
    remarks: tuple[str, ...] = ()


def propose(
    source: str, path: Path, name: str, regions: Sequence[Region], position: str = "HFS", *, told: Told | None = None, **own: str
) -> Proposal | None:
    """A case for a patient; None where no target is drawn.

    Parameters
    ----------
    source, path, own
        Of the section [patient].
    name
        Title of the case.
    regions
        The patient's ROIs.
    position
        How the patient lies.
    told
        What the patient's file says itself about a plan.
    """
    drawn = [region for region in regions if region.box is not None]
    targets = [region for region in drawn if region.role == "target"]
    if not targets:
        return None
    target, dose = _target(targets)
    body = next((region for region in drawn if region.role == "external"), None)
    organs = _near(target, [region for region in drawn if region.role == "oar"])
    angles = _angles(target, body, position)
    where = {"source": source, "path": str(path.resolve()), **own}
    objectives = [_objective(target.name, "min_dose", dose, 1000.0), _objective(target.name, "max_dose", 1.05 * dose, 500.0)]
    objectives += [_objective(organ.name, "max_dose", 0.7 * dose, 50.0) for organ in organs]
    goals = [{"roi": target.name, "metric": "d(95)", "min": 0.95 * dose}, {"roi": target.name, "metric": "d(2)", "max": 1.07 * dose}]
    if body is not None:
        objectives.append(_objective(body.name, "max_dose", 1.05 * dose, 500.0))
    tree = {
        "title": name,
        "patient": where,
        "dose": {"grid_mm": 2.0 if target.volume < SMALL else 3.0},
        "spots": {"target": target.name, "spacing_mm": 5.0},
        "beam": [{"gantry_deg": angle, "range_shifter_mm": "auto"} for angle in angles],
        "robustness": {"setup_mm": 3.0, "range_percent": 3.5},
        "objective": objectives,
        "goal": [{key: round(value, 2) if isinstance(value, float) else value for key, value in goal.items()} for goal in goals],
    }
    remarks = _remarks(target, targets, dose, body, angles)
    if told is not None:
        tree = {key: value for key, value in (tree | told.sections).items() if value is not None}
        known = {"objective": "Target: ", "beam": "Beams: "}
        guessed = [one for one in remarks if not one.startswith(tuple(known[key] for key in known if key in told.sections))]
        remarks = [*told.remarks, *guessed]
    head = (
        "# Proposed by torchimpt inspect: a start, not a plan. Look at target, prescription, beams and limits before it is used.\n"
        "#   torchimpt plan THIS.toml --out RUN\n\n"
    )
    return Proposal(head + dump_toml(tree), tuple(remarks))


def _remarks(target: Region, targets: Sequence[Region], dose: float, body: Region | None, angles: Sequence[float]) -> list[str]:
    """What was chosen, and what to look at."""
    told = "its name says so" if _dose_in(target.name) else "a guess: set the prescription"
    others = ", ".join(other.name for other in targets if other is not target)
    side = "about a target in the middle" if len(angles) > 2 else "from the side of the target"
    found = [
        f"Target: {target.name}, {dose:g} Gy ({told})" + (f"; also drawn: {others}" if others else ""),
        f"Beams: gantry {', '.join(f'{angle:g}' for angle in angles)} degrees, {side}; scenarios of 3 mm and 3.5 %",
    ]
    if target.kind == "PTV" or target.name.upper().startswith("PTV"):
        found.append("A PTV's margins are made for photons; for protons, plan robustly on the CTV where there is one")
    if body is None:
        found.append("No outline of the body: all of the CT counts as the patient, its couch and air too; draw one (type EXTERNAL)")
    return found


def _target(targets: Sequence[Region]) -> tuple[Region, float]:
    """The target to plan, a CTV before a GTV before others, the largest; and its dose, Gy."""

    def rank(region: Region) -> tuple[int, float]:
        kind = region.kind if region.kind in ("CTV", "GTV", "PTV") else region.name[:3].upper()
        return {"CTV": 0, "GTV": 1}.get(kind, 2), -(_dose_in(region.name) or 0.0) * 1e9 - region.volume

    best = min(targets, key=rank)
    return best, _dose_in(best.name) or PRESCRIBED


def _dose_in(name: str) -> float | None:
    """A dose that a target's name tells, Gy: `PTV70`, `CTV_5400`."""
    for text in re.findall(r"\d+(?:\.\d+)?", name):
        for value in (float(text), float(text) / 100.0):
            if DOSES[0] <= value <= DOSES[1]:
                return value
    return None


def _near(target: Region, organs: Sequence[Region]) -> list[Region]:
    """The organs that lie nearest to the target."""
    near = sorted((_gap(target, organ), organ.volume, i) for i, organ in enumerate(organs))
    return [organs[i] for gap, _, i in near if gap <= NEAR][:MOST_ORGANS]


def _gap(a: Region, b: Region) -> float:
    """Distance of two boxes, mm."""
    assert a.box is not None and b.box is not None
    return float(np.linalg.norm(np.maximum(0.0, np.maximum(a.box[0] - b.box[1], b.box[0] - a.box[1]))))


def _angles(target: Region, body: Region | None, position: str) -> list[float]:
    """Gantry angles, degrees: three about a target in the middle, else two from its side."""
    assert target.box is not None
    middle = target.box.mean(axis=0)
    away = middle - (middle if body is None or body.box is None else body.box.mean(axis=0))
    across, _, up = (table_axes(position) @ torch.from_numpy(away)).tolist()
    if math.hypot(across, up) <= CENTRAL:
        return [0.0, 90.0, 270.0]
    angle = 5.0 * round(math.degrees(math.atan2(across, up)) / 5.0)
    return [(angle - 30.0) % 360.0, (angle + 30.0) % 360.0]


def _objective(roi: str, kind: str, dose: float, weight: float) -> dict[str, str | float]:
    return {"roi": roi, "kind": kind, "dose_gy": round(dose, 2), "weight": weight}
