"""The report: one self-contained HTML page from the results of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from torchimpt.evaluate.dvh import Metric, RoiDose
from torchimpt.evaluate.fine import fine_text
from torchimpt.evaluate.hottest import hottest_text
from torchimpt.evaluate.tables import letd_table, scenario_table, worst_table
from torchimpt.files import whole_or_nothing
from torchimpt.hu_table import HuTable
from torchimpt.patient import Patient
from torchimpt.physics.stopping import looked_up
from torchimpt.report.constraints import constraint_label, constraint_verdict, constraints_verdict
from torchimpt.report.course import beam_seconds, delivery_parts, delivery_remark, delivery_text, motion_text, step_rows
from torchimpt.report.figures import convergence_figure, dvh_figure
from torchimpt.report.hu_curve import hu_figure
from torchimpt.report.motion import fullest_layers, motion_figure
from torchimpt.report.numbers import amount, bytes_text, gy, scenario_note, scenario_text, seconds, strip
from torchimpt.report.slices import slices_figure
from torchimpt.report.spot_maps import layer_weights_figure, spot_maps_figure
from torchimpt.report.style import roi_colors, shown_rois, slug, svg
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
    versions
        Name to version.
    """

    title: str
    patient: Patient
    dose: torch.Tensor
    roi_doses: Mapping[str, Mapping[str, RoiDose]]
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
    versions: Mapping[str, str] = field(default_factory=dict)


def _tiles(data: ReportData, worst: Mapping[str, Mapping[str, float]], scenarios: Sequence[Mapping]) -> list[dict[str, str]]:
    """The few numbers that head the page: label, value, unit, note."""
    tiles, metrics, many = [], data.metrics, len(scenarios) > 1
    for target in [name for name in data.targets if name in scenarios[0]["rois"]][:1]:
        own = scenarios[0]["rois"][target]
        share = f"{100 * own['d95_gy'] / data.prescription:.1f} % of {data.prescription:g} Gy" if data.prescription else ""
        lowest = f"worst {gy(worst[target]['d95_gy'])} Gy" if many else ""
        tiles.append(
            {"label": f"{target} D95", "value": gy(own["d95_gy"]), "unit": "Gy", "note": " · ".join(filter(None, (lowest, share)))}
        )
        highest = f"worst {gy(worst[target]['d2_gy'])} Gy" if many else ""
        tiles.append({"label": f"{target} D2", "value": gy(own["d2_gy"]), "unit": "Gy", "note": highest})
    objective, spots, time = metrics.get("objective", {}), metrics.get("spots", {}), metrics.get("time_s", {})
    delivery = metrics.get("delivery", {})
    if objective:
        note = f"from {amount(objective['initial'])}" if "initial" in objective else ""
        tiles.append({"label": "Objective", "value": amount(objective["final"]), "unit": "", "note": note})
    if spots:
        note = f"of {spots.get('placed', spots['count']):,} in {spots['energy_layers']} energy layers"
        tiles.append({"label": "Spots delivered", "value": f"{spots['nonzero']:,}", "unit": "", "note": note})
    if delivery.get("seconds"):
        value, unit = beam_seconds(delivery["seconds"]).split()
        switching = delivery.get("energy_switch_s")
        note = f"a fraction, {100 * switching / delivery['seconds']:.0f} % switching energy" if switching is not None else "a fraction"
        tiles.append({"label": "Delivery", "value": value, "unit": unit, "note": note})
    if "total" in time:
        value, unit = seconds(time["total"])
        optimize = " ".join(seconds(time["optimize"])) + " of it optimizing" if "optimize" in time else ""
        tiles.append({"label": "Computing time", "value": value, "unit": unit, "note": optimize})
    return tiles


def _verdicts(data: ReportData, n_scenarios: int) -> list[dict[str, str]]:
    """Short statements at the top: how many goals hold, whether the solver converged."""
    verdicts = []
    if data.goals:
        held, total = sum(goal["passed"] for goal in data.goals), len(data.goals)
        nominal = sum(goal["passed_nominal"] for goal in data.goals)
        where = f"in all {n_scenarios} scenarios" if n_scenarios > 1 else "in the nominal scenario"
        text = f"All {total} goals met {where}" if held == total else f"{held} of {total} goals met {where}"
        text += f", {nominal} in the nominal one" if n_scenarios > 1 and nominal != held else ""
        verdicts.append({"text": text, "mood": "good" if held == total else "bad"})
    if rows := data.metrics.get("constraints"):
        verdicts.append({"text": constraints_verdict(rows), "mood": "good" if all(row["met"] for row in rows) else "bad"})
    if (hottest := data.metrics.get("hottest_outside_targets")) and hottest["warning"]:
        text = f"Hot spot outside the targets: {gy(hottest['worst']['d1cm3_gy'])} Gy, {hottest['worst']['percent']:.0f} %"
        verdicts.append({"text": text, "mood": "bad"})
    if (fine := data.metrics.get("fine")) and fine["warning"]:
        verdicts.append({"text": "Another dose on a finer grid", "mood": "bad"})
    if "converged" in data.metrics:
        n = data.metrics.get("iterations", 0)
        text = f"Converged in {n:,} iterations" if data.metrics["converged"] else f"Stopped short after {n:,} iterations"
        verdicts.append({"text": text, "mood": "good" if data.metrics["converged"] else "bad"})
    return verdicts


def _facts(data: ReportData) -> list[tuple[str, str]]:
    """Name and value of what the run was made with, where known."""
    metrics, facts = data.metrics, []
    matrix, spots, delivery = metrics.get("matrix", {}), metrics.get("spots", {}), metrics.get("delivery", {})
    grid = data.patient.grid
    facts.append(("Dose grid", f"{' × '.join(map(str, grid.shape[::-1]))} voxels of {' × '.join(f'{s:g}' for s in grid.spacing)} mm"))
    if metrics.get("stop_reason"):
        facts.append(("Solver", metrics["stop_reason"]))
    if "evaluations" in metrics:
        facts.append(("Evaluations", f"{metrics['evaluations']:,} of objective and gradient"))
    if matrix.get("nonzeros"):
        facts.append(("Influence matrices", f"{matrix['nonzeros']:,} non-zeros, {bytes_text(matrix['bytes'])}"))
    if "discarded_fraction" in matrix:
        facts.append(("Moved by the cut-off", f"{100 * matrix['discarded_fraction']:.2g} % of the integral dose"))
    if "placed" in spots:
        facts.append(("Spots", f"{spots['placed']:,} placed, {spots['count']:,} kept, {spots['nonzero']:,} delivered"))
    if motion_text(spots):
        facts.append(("Spots moved", motion_text(spots)))
    if delivery.get("mu"):
        each = f", {delivery['mu_per_fraction']:,.0f} a fraction" if "mu_per_fraction" in delivery else ""
        facts.append(("Monitor units", f"{delivery['mu']:,.0f}{each}"))
    if delivery.get("seconds"):
        facts.append(("Delivery", delivery_text(delivery)))
    parts = [f"{name} {' '.join(seconds(value))}" for name, value in metrics.get("time_s", {}).items() if name != "total"]
    if parts:
        facts.append(("Time", ", ".join(parts)))
    if metrics.get("peak_memory_bytes"):
        facts.append(("Peak memory", bytes_text(metrics["peak_memory_bytes"])))
    if "device" in metrics:
        facts.append(("Computed on", f"{metrics['device']}, {metrics.get('threads', '?')} threads, {metrics.get('dtype', '')}"))
    if data.versions:
        facts.append(("Versions", ", ".join(f"{name} {version}" for name, version in data.versions.items())))
    return facts


def _figures(data: ReportData, colors: Mapping[str, str], rois: Sequence[str]) -> dict[str, Any]:
    """Every figure as SVG, by name; those without data are None."""
    level = data.prescription
    beside_goals = (640, 430) if data.goals else (1100, 460)
    beside_terms = (640, 310) if data.metrics.get("objective", {}).get("terms") else (1100, 330)
    drawn: dict[str, Any] = {
        "dvh": dvh_figure(
            data.roi_doses, rois, colors, prescription=level, goals=[g for g in data.goals if "quantity" not in g], size=beside_goals
        )
        if rois
        else None,
        "slices": slices_figure(data.patient, data.dose, colors, targets=data.targets, rois=rois, prescription=level),
        "convergence": convergence_figure(data.history, colors, size=beside_terms) if len(data.history) > 1 else None,
        "layers": layer_weights_figure(data.spots) if data.spots is not None else None,
        "hu": hu_figure(data.hu_table, data.patient.hu[looked_up(data.patient)]) if data.hu_table is not None else None,
    }
    drawn["letd"] = dvh_figure(data.roi_letd, rois, colors, size=(1100, 400), axis_name="LETd, keV/µm") if data.roi_letd and rois else None
    shown: dict[str, Any] = {name: Markup(svg(figure, name)) if figure is not None else None for name, figure in drawn.items()}
    maps: list[dict[str, Any]] = []
    shown |= {"maps": maps, "motion": None}
    if data.spots is None:
        return shown
    home = data.home if data.home is not None and bool((data.home != data.spots.position.detach().cpu()).any()) else None
    if home is not None:
        layers = fullest_layers(data.spots, max(1, 3 // len(data.spots.beams)))
        shown["motion"] = Markup(svg(motion_figure(data.spots, home, layers), "motion"))
    for number, beam in enumerate(data.spots.beams):
        if bool((data.spots.beam == number).any()):
            picture = Markup(svg(spot_maps_figure(data.spots, number, home=home), f"map-{number}"))
            maps.append({"title": f"Beam {number}, gantry {beam.gantry:g}°, couch {beam.couch:g}°", "svg": picture})
    return shown


def _rows(data: ReportData, colors: Mapping[str, str], scenarios: Sequence[Mapping], worst: Mapping) -> list[dict]:
    """One row a ROI for the table of doses, targets first, the body last."""
    names = shown_rois(data.patient, scenarios[0]["rois"], data.targets, limit=1000)
    return [{"roi": name, "color": colors[name], "nominal": scenarios[0]["rois"][name], "worst": worst[name]} for name in names]


def _letd_rows(data: ReportData, colors: Mapping[str, str]) -> list[dict]:
    """One row a ROI for the table of LETd: nominal mean, L50 and L2, and the highest mean and L2 of all scenarios."""
    if not data.roi_letd:
        return []
    tables = [scenario["rois"] for scenario in letd_table(data.roi_letd)]
    highest = {roi: {key: max(t[roi][key] for t in tables) for key in ("mean_kev_um", "l2_kev_um")} for roi in tables[0]}
    names = shown_rois(data.patient, data.roi_letd[next(iter(data.roi_letd))], data.targets, limit=1000)
    return [{"roi": name, "color": colors[name], "nominal": tables[0][name], "worst": highest[name]} for name in names]


def _goal_row(goal: Mapping[str, Any], colors: Mapping[str, str]) -> dict[str, Any]:
    """A row of `check_goals` with what the table shows besides."""
    label = f"{goal['quantity'] + ' ' if 'quantity' in goal else ''}{Metric.parse(goal['metric']).label}"
    return {**goal, "label": label, "color": colors.get(goal["roi"], "#999"), "strip": Markup(strip(goal))}


def _constraints(data: ReportData, colors: Mapping[str, str]) -> list[dict[str, Any]]:
    """A row a constraint."""
    rows = data.metrics.get("constraints", ())
    more = [{"label": constraint_label(row), "verdict": constraint_verdict(row), "color": colors.get(row["roi"], "#999")} for row in rows]
    return [{**row, **own} for row, own in zip(rows, more, strict=True)]


def _terms(data: ReportData, colors: Mapping[str, str]) -> list[dict]:
    """The final objective by ROI and kind, summed over scenarios, largest share first."""
    sums: dict[tuple[str, str], float] = {}
    for term in data.metrics.get("objective", {}).get("terms", ()):
        key = (term["roi"], f"{term['kind']}{' of ' + term['quantity'] if 'quantity' in term else ''}")
        sums[key] = sums.get(key, 0.0) + term["value"]
    total = sum(sums.values()) or 1.0
    ranked = sorted(sums.items(), key=lambda item: -item[1])
    return [{"roi": r, "kind": k, "value": amount(v), "share": 100 * v / total, "color": colors.get(r, "#999")} for (r, k), v in ranked]


def _fine(data: ReportData) -> dict[str, str | None] | None:
    """What to say of the plan on a finer grid; None where it was not looked at."""
    fine = data.metrics.get("fine")
    return {"text": fine_text(fine), "warning": fine["warning"]} if fine else None


def _hottest(data: ReportData) -> dict[str, str | None] | None:
    """What to say of the hottest tissue outside the targets; None where it is not known."""
    hottest = data.metrics.get("hottest_outside_targets")
    return {"text": hottest_text(hottest), "warning": hottest["warning"]} if hottest else None


def _delivery(data: ReportData) -> dict[str, Any] | None:
    """The seconds of a fraction, part by part, and what to say of them; None where they are not known."""
    delivery = data.metrics.get("delivery", {})
    if not delivery.get("seconds") or "energy_switch_s" not in delivery:
        return None
    parts = [{"name": name, "seconds": value, "share": 100 * value / delivery["seconds"]} for name, value in delivery_parts(delivery)]
    return {"parts": parts, "seconds": delivery["seconds"], "remark": delivery_remark(delivery)}


def render_report(data: ReportData) -> str:
    """The page as HTML text; it refers to no other file."""
    colors = roi_colors(data.patient, data.targets)
    scenarios = scenario_table(data.roi_doses)
    worst = worst_table(scenarios)
    rois = shown_rois(data.patient, data.roi_doses[scenarios[0]["name"]], [*data.targets, *(goal["roi"] for goal in data.goals)])
    environment = Environment(
        loader=PackageLoader("torchimpt.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        data=data,
        scenarios=scenarios,
        scenario_text=scenario_text,
        scenario_note=scenario_note(scenario["name"] for scenario in scenarios),
        tiles=_tiles(data, worst, scenarios),
        verdicts=_verdicts(data, len(scenarios)),
        goals=[_goal_row(goal, colors) for goal in data.goals],
        constraints=_constraints(data, colors),
        legend=[{"name": name, "slug": slug(name), "color": colors[name]} for name in rois],
        figures=_figures(data, colors, rois),
        rows=_rows(data, colors, scenarios, worst),
        letd=_letd_rows(data, colors),
        terms=_terms(data, colors),
        hottest=_hottest(data),
        fine=_fine(data),
        steps=step_rows(data.metrics.get("steps", ())),
        delivery=_delivery(data),
        motion=motion_text(data.metrics.get("spots", {})),
        facts=_facts(data),
        gy=gy,
    )


def write_report(path: str | Path, data: ReportData) -> None:
    """Write the page; the file appears only when it is whole."""
    with whole_or_nothing(path) as scratch:
        scratch.write_text(render_report(data), encoding="utf-8")
