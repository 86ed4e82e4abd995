"""matRad's objectives and constraints, `cst{:, 6}`, as rows of a case file's `[[objective]]`, and back.

Both divide by the ROI's voxels, and a penalty is a weight. matRad's doses are the course's, of the quantity that `pln` says. What differs:
`matRad_MeanDose` and `matRad_EUD` also pull a dose up to their level, here they limit it; a mean dose's linear form becomes the square.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from torchimpt.checks import InputError
from torchimpt.files import input_file, reader
from torchimpt.io.mat import has, load, structs, text

Row = dict[str, Any]
"""Keys of an `[[objective]]`."""

MODES = {
    "STOCH": "expected", "PROB": "expected", "COWC": "composite", "OWC": "objectivewise", "VWWC": "voxelwise",
    "VWWC_INV": "voxelwise_invariant",
}  # fmt: skip
"""From matRad's robustness of an objective to a robust mode; every other one is nominal."""

_OLD = {
    "square underdosing": ("SquaredUnderdosing", ("dose",)), "square overdosing": ("SquaredOverdosing", ("dose",)),
    "square deviation": ("SquaredDeviation", ("dose",)), "min DVH objective": ("MinDVH", ("dose", "volume")),
    "max DVH objective": ("MaxDVH", ("dose", "volume")), "mean": ("MeanDose", ("dose",)), "EUD": ("EUD", ("dose", "EUD")),
    "max dose constraint": ("MinMaxDose", (0.0, "dose")), "min dose constraint": ("MinMaxDose", ("dose", math.inf)),
    "max mean dose constraint": ("MinMaxMeanDose", (0.0, "dose")), "min mean dose constraint": ("MinMaxMeanDose", ("dose", math.inf)),
    "max EUD constraint": ("MinMaxEUD", ("EUD", 0.0, "dose")), "min EUD constraint": ("MinMaxEUD", ("EUD", "dose", math.inf)),
    "max DVH constraint": ("MinMaxDVH", ("dose", 0.0, "volume")), "min DVH constraint": ("MinMaxDVH", ("dose", "volume", 100.0)),
}  # fmt: skip
"""Names before version 2.10, and the parameters of now: fields, or numbers."""


@reader("matRad objectives")
def read_matrad_objectives(path: str | os.PathLike) -> tuple[list[Row], list[str]]:
    """What a file's `cst` asks for.

    Returns
    -------
    Rows with the keys of an `[[objective]]`: `roi, kind, dose_gy`, and as needed `weight, volume_percent, a, mode, constraint`. `mode` is
    `"nominal"` where the file says no robustness. And what could not be taken over as it is, in words.
    """
    path = input_file(path, "matRad objectives")
    content = load(path, ("cst",))
    if "cst" not in content:
        raise InputError(f"{path} has no variable cst, so it has no objectives")
    return objective_rows(path, content["cst"])


def objective_rows(path: Path, cst: np.ndarray) -> tuple[list[Row], list[str]]:
    """As `read_matrad_objectives`, of a file's `cst`; ROIs without a voxel ask for nothing."""
    rows: list[Row] = []
    remarks: list[str] = []
    for row in np.atleast_2d(cst):
        if len(row) < 6 or not np.size(row[5]) or not np.size(row[3]) or str(row[2]).upper() == "IGNORED":
            continue
        for one in structs(row[5]):
            name, parameters, penalty = _parts(path, str(row[1]), one)
            found, remark = rows_of(name, str(row[1]), parameters, penalty)
            mode = MODES.get(text(one, "robustness"), "nominal")
            rows += [{**new, **({"mode": mode} if not new.get("constraint") or mode == "nominal" else {})} for new in found]
            remarks += [remark] if remark else []
    return rows, remarks


def _parts(path: Path, roi: str, one: Any) -> tuple[str, list[float], float]:
    """Class, parameters and penalty of an objective."""
    old = text(one, "type")
    if old:
        if old not in _OLD:
            raise InputError(f"{path}: ROI '{roi}' has an objective '{old[:40]}', which is none of matRad's")
        name, keys = _OLD[old]
        parameters = [getattr(one, key, math.nan) if isinstance(key, str) else key for key in keys]
    else:
        name = text(one, "className").rpartition("matRad_")[2]
        if not name or not has(one, "parameters"):
            raise InputError(f"{path}: ROI '{roi}' has an objective without className and parameters; save cst with structs, not objects")
        parameters = np.atleast_1d(one.parameters).tolist()
    values = [float(value) if isinstance(value, (int, float)) else math.nan for value in parameters]
    penalty = getattr(one, "penalty", 1.0)
    return name, values, float(penalty) if np.size(penalty) == 1 and np.isfinite(penalty) else 1.0


def rows_of(name: str, roi: str, p: Sequence[float], weight: float) -> tuple[list[Row], str]:
    """Rows for one of matRad's classes, `name` without `matRad_`, with its parameters; and what is not as there."""
    least = {"SquaredUnderdosing": 1, "SquaredOverdosing": 1, "SquaredDeviation": 1, "MeanDose": 1, "EUD": 2, "MinDVH": 2, "MaxDVH": 2}
    needed = least.get(name, {"MinMaxDose": 2, "MinMaxMeanDose": 2, "MinMaxEUD": 3, "MinMaxDVH": 3}.get(name, 0))
    if not needed:
        return [], f"{roi}: matRad's {name} has no counterpart here, and is left out"
    if len(p) < needed or any(math.isnan(value) for value in p[:needed]):
        return [], f"{roi}: matRad's {name} lacks a parameter, and is left out"
    base = {"roi": roi, "weight": weight}
    if name in _PLAIN:
        return [{**base, "kind": _PLAIN[name], "dose_gy": p[0]}], ""
    if name in ("MinDVH", "MaxDVH"):
        return [{**base, "kind": "min_dvh" if name == "MinDVH" else "max_dvh", "dose_gy": p[0], "volume_percent": p[1]}], ""
    if name == "MeanDose":
        linear = len(p) < 2 or p[1] == 1
        told = [f"{roi}: its mean dose is linear in matRad, squared here"] if linear else []
        told += [f"{roi}: a mean dose below {p[0]:g} Gy is free here, in matRad it is pulled up"] if p[0] > 0 else []
        return [{**base, "kind": "mean_dose", "dose_gy": p[0]}], "; ".join(told)
    if name == "EUD":
        if not 1 <= p[1] <= 100:
            return [], f"{roi}: a gEUD of exponent {p[1]:g} has no counterpart here (1 to 100), and is left out"
        return [{**base, "kind": "gEUD", "dose_gy": p[0], "a": p[1]}], (
            f"{roi}: a gEUD below {p[0]:g} Gy is free here, in matRad it is pulled up" if p[0] > 0 else ""
        )
    return _constraints(name, roi, p)


def _constraints(name: str, roi: str, p: Sequence[float]) -> tuple[list[Row], str]:
    """Rows for one of matRad's constraints."""
    base = {"roi": roi, "constraint": True}
    if name == "MinMaxDVH":
        rows = [{**base, "kind": "min_dvh", "dose_gy": p[0], "volume_percent": p[1]}] if p[1] > 0 else []
        return rows + ([{**base, "kind": "max_dvh", "dose_gy": p[0], "volume_percent": p[2]}] if p[2] < 100 else []), ""
    low, high = (p[1], p[2]) if name == "MinMaxEUD" else (p[0], p[1])
    kind = {"MinMaxDose": "max_dose", "MinMaxMeanDose": "mean_dose", "MinMaxEUD": "gEUD"}[name]
    rows = [{**base, "kind": kind, "dose_gy": high, **({"a": p[0]} if kind == "gEUD" else {})}] if math.isfinite(high) else []
    if kind == "gEUD" and not 1 <= p[0] <= 100:
        return [], f"{roi}: a gEUD of exponent {p[0]:g} has no counterpart here (1 to 100), and is left out"
    if low > 0 and kind != "max_dose":
        return (
            rows,
            f"{roi}: a least {'mean dose' if kind == 'mean_dose' else 'gEUD'} as a constraint has no counterpart here, and is left out",
        )
    return ([{**base, "kind": "min_dose", "dose_gy": low}] if low > 0 else []) + rows, ""


_PLAIN = {"SquaredUnderdosing": "min_dose", "SquaredOverdosing": "max_dose", "SquaredDeviation": "uniform"}
_CLASSES = {kind: name for name, kind in _PLAIN.items()} | {
    "min_dvh": "MinDVH",
    "max_dvh": "MaxDVH",
    "mean_dose": "MeanDose",
    "gEUD": "EUD",
}
_ROBUSTNESS = {mode: name for name, mode in MODES.items() if name != "PROB"} | {"nominal": "none", "sum": "STOCH"}


def to_struct(row: Mapping[str, Any], penalty: float, mode: str) -> Row | None:
    """matRad's struct of an `[[objective]]` row with this penalty, in this robust mode; None where it has no such thing."""
    kind, dose = row["kind"], row.get("dose_gy")
    if kind not in _CLASSES or row.get("quantity", "dose") != "dose" or dose is None:
        return None
    robustness = _ROBUSTNESS.get(mode)
    if robustness is None:
        return None
    dose = float(dose)
    if row.get("constraint"):
        name, parameters = {
            "min_dose": ("MinMaxDose", [dose, math.inf, 2.0]), "max_dose": ("MinMaxDose", [0.0, dose, 2.0]),
            "uniform": ("MinMaxDose", [dose, dose, 2.0]), "mean_dose": ("MinMaxMeanDose", [0.0, dose]),
            "min_dvh": ("MinMaxDVH", [dose, float(row.get("volume_percent", 0.0)), 100.0]),
            "max_dvh": ("MinMaxDVH", [dose, 0.0, float(row.get("volume_percent", 100.0))]),
            "gEUD": ("MinMaxEUD", [float(row.get("a", 1.0)), 0.0, dose]),
        }[kind]  # fmt: skip
        if robustness not in ("none", "VWWC", "VWWC_INV"):
            robustness = "VWWC"  # here a constraint holds in every scenario
        return {"className": f"DoseConstraints.matRad_{name}", "parameters": cell(parameters), "robustness": robustness}
    more = {"min_dvh": ["volume_percent"], "max_dvh": ["volume_percent"], "gEUD": ["a"]}.get(kind, [])
    parameters = [dose, *(float(row[key]) for key in more), *([2.0] if kind == "mean_dose" else [])]
    return {
        "className": f"DoseObjectives.matRad_{_CLASSES[kind]}", "parameters": cell(parameters), "robustness": robustness,
        "penalty": float(penalty),
    }  # fmt: skip


def cell(values: Sequence[Any]) -> np.ndarray:
    """A cell array of one row."""
    found = np.empty((1, len(values)), dtype=object)
    found[0, :] = values
    return found
