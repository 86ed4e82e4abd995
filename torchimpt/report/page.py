"""The report: one self-contained HTML page from the results of a run.

Tables are written here; figures are drawn by the page's own script (`templates/*.js`, plain JavaScript without a library) from numbers
that the page holds, so that ROIs, scenarios and slices can be chosen, and type is as large on a phone as anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from torchimpt.evaluate.dvh import RoiDose, dvh_curves
from torchimpt.evaluate.hottest import hottest_text
from torchimpt.evaluate.tables import scenario_table, worst_table
from torchimpt.files import whole_or_nothing
from torchimpt.hu_table import HuTable
from torchimpt.patient import Patient
from torchimpt.physics.stopping import looked_up
from torchimpt.report.course import motion_text, step_rows
from torchimpt.report.drawn import convergence_data, dvh_data, hu_data, spots_data
from torchimpt.report.numbers import gy, scenario_note
from torchimpt.report.rows import constraint_rows, delivery_rows, fine_rows, goal_rows, letd_rows, region_rows, robustness, term_rows
from torchimpt.report.style import roi_colors, shown_rois
from torchimpt.report.summary import facts, failures, headline, notes, tightest, tiles
from torchimpt.report.volumes import BUDGET, most_telling, start_point, volume_data, volumes_of
from torchimpt.spots import Spots


@dataclass(frozen=True)
class ReportData:
    """What the page shows. A field left empty leaves its part of the page out.

    Attributes
    ----------
    title
        Heads the page.
    patient
        On the dose grid.
    dose
        Nominal dose `(z, y, x)`, Gy.
    roi_doses
        `roi_doses[scenario][roi]`, Gy; the first scenario is the nominal one.
    scenario_doses
        Doses `(z, y, x)`, Gy, of scenarios that slices can be looked at in besides.
    targets
        ROIs that the plan is for; the first heads the numbers.
    prescription
        Of the targets, Gy.
    goals
        Rows of `check_goals`.
    roi_letd
        As `roi_doses`, LETd in keV/um.
    metrics
        The content of `metrics.json`, as far as there is any.
    history
        Rows of the solver: `iteration`, `value`, and where recorded `terms` (`{roi: value}`).
    hu_table
        The table that gave the stopping powers.
    spots
        The plan.
    home
        Where its spots were placed, `(n_spots, 2)`, mm; None when they did not move.
    subtitle
        A line on patient, machine and method.
    case
        The resolved case file.
    remake
        Lines for a shell that make the run again.
    versions
        Name to version.
    """

    title: str
    patient: Patient
    dose: torch.Tensor
    roi_doses: Mapping[str, Mapping[str, RoiDose]]
    scenario_doses: Mapping[str, torch.Tensor] = field(default_factory=dict)
    targets: Sequence[str] = ()
    prescription: float | None = None
    goals: Sequence[Mapping[str, Any]] = ()
    roi_letd: Mapping[str, Mapping[str, RoiDose]] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    hu_table: HuTable | None = None
    spots: Spots | None = None
    home: torch.Tensor | None = None
    subtitle: str = ""
    case: str = ""
    remake: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=dict)


def as_json(value: Any) -> Markup:
    """JSON for a script element: a name cannot end it."""
    return Markup(json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"))


def templates() -> Environment:
    """The page's templates, with their style and scripts."""
    loader = PackageLoader("torchimpt.report", "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)

    def source(name: str) -> Markup:
        return Markup(loader.get_source(environment, name)[0])

    environment.globals |= {"source": source, "as_json": as_json, "gy": gy}
    return environment


def slices_data(
    patient: Patient,
    doses: Mapping[str, torch.Tensor],
    colors: Mapping[str, str],
    *,
    rois: Sequence[str],
    targets: Sequence[str],
    level: float | None,
    budget: int = BUDGET,
) -> tuple[dict[str, Any], dict[str, str]]:
    """What slices are drawn from, for JSON, and the packed volumes by id; `doses` by name, the first to compare with, `level` in Gy."""
    first = next(iter(doses.values()))
    data, parts = volume_data(volumes_of(patient, doses, rois), start_point(patient, first, targets), budget)
    named = [{"name": roi, "color": colors[roi], "target": roi in targets} for roi in rois]
    for dose in data["doses"]:
        dose["label"] = dose["name"]
    return {**data, "rois": named, "level": level, "unit": "Gy"}, parts


def _drawn(data: ReportData, colors: Mapping[str, str], rois: Sequence[str], shown: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """What the script draws, figure by figure; those without data are None."""
    goals = [goal for goal in data.goals if "quantity" not in goal]
    chosen = most_telling(names, [goal["worst_scenario"] for goal in goals])
    doses = {names[0]: data.dose} | {name: data.scenario_doses[name] for name in chosen if name in data.scenario_doses and name != names[0]}
    outlined = [roi for roi in rois if roi in data.patient.rois]
    slices, volumes = slices_data(data.patient, doses, colors, rois=outlined, targets=data.targets, level=data.prescription)
    common: dict[str, Any] = {"shown": shown, "targets": data.targets}
    letd = {"": dvh_curves(data.roi_letd)} if data.roi_letd and rois else None
    moved = data.home is not None and data.spots is not None and bool((data.home != data.spots.position.detach().cpu()).any())
    return {
        "dvh": dvh_data({"": dvh_curves(data.roi_doses)}, rois, colors, level=data.prescription, goals=goals, **common) if rois else None,
        "letd": dvh_data(letd, rois, colors, axis_name="LETd, keV/µm", **common) if letd else None,
        "slices": slices,
        "volumes": volumes,
        "convergence": convergence_data(data.history, colors),
        "spots": spots_data(data.spots, data.home if moved else None) if data.spots is not None and data.spots.n_spots else None,
        "moved": moved,
        "hu": hu_data(data.hu_table, data.patient.hu[looked_up(data.patient)]) if data.hu_table is not None else None,
    }


def render_report(data: ReportData) -> str:
    """The page as HTML text; it refers to no other file."""
    colors = roi_colors(data.patient, data.targets)
    scenarios = scenario_table(data.roi_doses)
    worst, metrics = worst_table(scenarios), data.metrics
    first = [*data.targets, *(goal["roi"] for goal in data.goals)]
    rois = shown_rois(data.patient, scenarios[0]["rois"], first, limit=64)
    regions = shown_rois(data.patient, scenarios[0]["rois"], data.targets, limit=1000)
    hottest = metrics.get("hottest_outside_targets")
    return templates().get_template("report.html").render(
        data=data,
        scenarios=scenarios,
        scenario_note=scenario_note(scenario["name"] for scenario in scenarios),
        headline=headline(data.goals, len(scenarios)),
        all_met=all(goal["passed"] for goal in data.goals),
        failures=failures(data.goals, len(scenarios)),
        tightest=tightest(data.goals),
        notes=notes(metrics),
        tiles=tiles(metrics, data.targets, data.prescription, worst, scenarios),
        goals=goal_rows(data.goals, colors),
        constraints=constraint_rows(metrics, colors),
        robustness=robustness(data.goals, scenarios, data.targets) if len(scenarios) > 1 else None,
        drawn=_drawn(data, colors, rois, shown_rois(data.patient, rois, first, limit=9), [scenario["name"] for scenario in scenarios]),
        regions=region_rows(regions, colors, scenarios, worst),
        letd=letd_rows(data.roi_letd, [name for name in regions if name in next(iter(data.roi_letd.values()), {})], colors),
        terms=term_rows(metrics, colors),
        hottest={"text": hottest_text(hottest), "warning": hottest["warning"]} if hottest else None,
        fine=fine_rows(metrics),
        steps=step_rows(metrics.get("steps", ())),
        delivery=delivery_rows(metrics.get("delivery", {})),
        motion=motion_text(metrics.get("spots", {})),
        facts=facts(metrics, data.patient.grid, data.versions),
    )  # fmt: skip


def write_report(path: str | Path, data: ReportData) -> None:
    """Write the page; the file appears only when it is whole."""
    with whole_or_nothing(path) as scratch:
        scratch.write_text(render_report(data), encoding="utf-8")
