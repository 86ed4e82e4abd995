"""What a matRad file says besides its patient: the plan, beam by beam, and the objectives, as sections of a case file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torchimpt.checks import InputError
from torchimpt.inspection.dicom import field_row
from torchimpt.inspection.propose import Told
from torchimpt.inspection.sections import Section, amount, told
from torchimpt.io.dicom import IonField, IonPlan
from torchimpt.io.mat import load, text
from torchimpt.io.matrad import read_matrad_objectives, read_matrad_plan
from torchimpt.patient import Patient

PLAN = ("pln", "stf", "resultGUI")


def matrad_plan(path: Path) -> Iterator[Section]:
    """The plan, where the file has one."""
    if all(name in _variables(path) for name in ("stf", "resultGUI")):
        yield told(path, "matRad plan", lambda: _section(path, read_matrad_plan(path)))


def _variables(path: Path) -> dict[str, Any]:
    try:
        return load(path, PLAN)
    except InputError:  # told with the patient
        return {}


def _section(path: Path, plan: IonPlan) -> Section:
    columns = ("Beam", "Gantry, deg", "Couch, deg", "Energies, MeV", "Layers", "Spots", "Weight", "Range shifter", "Isocentre, mm")
    total = amount(sum(float(field.meterset.sum()) for field in plan.fields))
    remarks = (
        f"{plan.fractions} fractions of {total}e6 protons; made for matRad's machine {plan.fields[0].name or 'without a name'}",
        "Its dose: torchimpt dose CASE.toml --plan FILE --out RUN, with that machine ([machine] format = 'matrad')",
    )
    return Section(f"matRad plan ({path})", columns, tuple(field_row(field) for field in plan.fields), remarks)


def told_by_matrad(path: Path, patient: Patient) -> Told | None:
    """Objectives and beams of the file, as far as it has any that can be read."""
    sections: dict[str, Any] = {}
    try:
        rows, remarks = read_matrad_objectives(path)
        variables = _variables(path)
        plan = read_matrad_plan(path) if all(name in variables for name in PLAN) else None
    except InputError as error:
        return Told({}, (f"Objectives and beams are guesses: {error}",))
    rows = [row for row in rows if row["roi"] in patient.rois]
    targets = list(dict.fromkeys(row["roi"] for row in rows if patient.roi(row["roi"]).role == "target"))
    pln, found = variables.get("pln"), []
    if targets:
        robust = any(row.get("mode", "sum") != "nominal" for row in rows)
        # without [robustness] all is nominal, and a row need not say so
        sections["objective"] = rows if robust else [{key: row[key] for key in row if key != "mode"} for row in rows]
        sections["robustness"] = {"setup_mm": 3.0, "range_percent": 3.5} if robust else None
        sections["spots"] = {"target": targets if len(targets) > 1 else targets[0], "spacing_mm": _spacing(pln)}
        found.append(f"Objectives: {len(rows)} of the file's own, on {', '.join(dict.fromkeys(row['roi'] for row in rows))}")
        found += [] if robust else ["Nominal, as the file's objectives are: add [robustness] for scenarios"]
        sections["goal"] = _goals(rows, targets)
    if plan is not None:
        sections["beam"] = [_beam(field) for field in plan.fields]
        sections["delivery"] = {"fractions": plan.fractions}
        found.append(f"Beams: {len(plan.fields)} of the file's own, made for matRad's machine {plan.fields[0].name}; name it in [machine]")
    if pln is not None and text(pln, *_QUANTITY).lower() in ("physicaldose", "none"):
        sections["dose"] = {"grid_mm": 3.0, "rbe": 1.0}
        found.append("Doses are physical ([dose] rbe = 1.0), as the file's are")
    return Told(sections, (*found, *remarks)) if sections else None


_QUANTITY = ("propOpt.quantityOpt", "bioParam.quantityOpt", "propOpt.bioOptimization", "bioOptimization")


def _spacing(pln: Any) -> float:
    """Of matRad's rays, mm, or 5."""
    width = getattr(getattr(pln, "propStf", None), "bixelWidth", None)
    return float(width) if isinstance(width, (int, float)) and width > 0 else 5.0


def _goals(rows: list[dict[str, Any]], targets: list[str]) -> list[dict[str, Any]]:
    """A D95 for each target that is prescribed a dose."""
    doses: dict[str, float] = {}
    for row in rows:
        if row["roi"] in targets and row["kind"] in ("min_dose", "min_dvh", "uniform"):
            doses[row["roi"]] = max(row["dose_gy"], doses.get(row["roi"], 0.0))
    return [{"roi": roi, "metric": "d(95)", "min": round(0.95 * dose, 2)} for roi, dose in doses.items() if dose > 0]


def _beam(field: IonField) -> dict[str, Any]:
    """A `[[beam]]` of a plan's field."""
    row: dict[str, Any] = {"gantry_deg": field.beam.gantry, "couch_deg": field.beam.couch, "isocenter_mm": list(field.beam.isocenter or ())}
    if field.shifter is not None:
        row |= {"range_shifter_mm": field.shifter.thickness, "range_shifter_distance_mm": field.shifter.distance}
    return row
