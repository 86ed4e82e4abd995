"""The hottest tissue that nobody prescribed dose to: where an objective is missing, it shows here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from torchimpt.patient import Patient

VOLUME_CM3 = 1.0
"""Volume whose least dose is told, as clinical limits on hot spots often do: D1cm3."""

WARN_PERCENT = 107.0
"""Of the prescription: the upper limit for the target itself by ICRU Reports 50 and 62."""


def hottest_outside_targets(
    patient: Patient, doses: Iterable[tuple[str, torch.Tensor]], targets: Sequence[str], prescription: float | None
) -> dict[str, Any]:
    """The hottest 1 cm^3 outside the targets, in the nominal scenario and in the worst.

    Parameters
    ----------
    patient
        On the dose grid.
    doses
        Scenario and its dose on the whole grid `(z, y, x)`, Gy; the first is the nominal one. A scenario's dose may be 0 wherever it is
        not hot.
    targets
        ROIs that dose is prescribed to; none of their voxels counts.
    prescription
        The highest one, Gy; None where there is none.

    Returns
    -------
    `volume_cm3`; `nominal` and `worst`, each with `scenario`, `d1cm3_gy` (the least dose of the hottest voxels that make up 1 cm^3, at
    least one voxel), `max_gy`, `position_mm` (LPS, of the hottest voxel), `roi` (the smallest ROI that it lies in, the body aside; None
    for none), and, where there is a prescription, `percent`; `warning`, a sentence, where the worst is above 107 % of the prescription,
    else None. An empty dict where the targets leave no voxel.
    """
    shield = torch.zeros(patient.grid.shape, dtype=torch.bool)
    for name in targets:
        shield |= patient.roi(name).mask
    outside = int((~shield).sum())
    if not outside:
        return {}
    count = min(outside, max(1, round(1000.0 * VOLUME_CM3 / math.prod(patient.grid.spacing))))
    found: list[dict[str, Any]] = []
    for scenario, dose in doses:
        top = dose.cpu().masked_fill(shield, -torch.inf).flatten().topk(count)
        found.append({"scenario": scenario, "d1cm3_gy": float(top.values[-1]), "max_gy": float(top.values[0]), "at": int(top.indices[0])})
    nominal, worst = found[0], max(found, key=lambda row: row["d1cm3_gy"])
    told = {name: _told(patient, row, prescription) for name, row in (("nominal", nominal), ("worst", worst))}
    return {"volume_cm3": VOLUME_CM3, **told, "warning": _warning(told["worst"], prescription)}


def _told(patient: Patient, row: Mapping[str, Any], prescription: float | None) -> dict[str, Any]:
    """A row with position, ROI and percentage."""
    at = torch.tensor([row["at"]])
    around = [roi for roi in patient.rois.values() if roi.role != "external" and bool(roi.mask.flatten()[at])]
    told = {name: row[name] for name in ("scenario", "d1cm3_gy", "max_gy")}
    told["position_mm"] = [round(x, 1) for x in patient.grid.centers(at)[0].tolist()]
    told["roi"] = min(around, key=lambda roi: int(roi.mask.sum())).name if around else None
    return told if prescription is None else {**told, "percent": 100.0 * told["d1cm3_gy"] / prescription}


def _place(row: Mapping[str, Any]) -> str:
    """Where a row's hottest voxel lies, in words."""
    x, y, z = row["position_mm"]
    return f"at ({x:g}, {y:g}, {z:g}) mm LPS" + (f", in {row['roi']}" if row["roi"] else ", in no ROI")


def hottest_text(hottest: Mapping[str, Any]) -> str:
    """What was found, in words: dose, scenario, place."""
    worst = hottest["worst"]
    share = f" ({worst['percent']:.0f} % of the prescription)" if "percent" in worst else ""
    return f"{worst['d1cm3_gy']:.1f} Gy{share} in the scenario {worst['scenario']}, {_place(worst)}"


def _warning(worst: Mapping[str, Any], prescription: float | None) -> str | None:
    """What to say of a hot spot above the limit."""
    if prescription is None or worst["percent"] <= WARN_PERCENT:
        return None
    return (
        f"hot spot outside the targets: 1 cm3 gets {worst['d1cm3_gy']:.1f} Gy or more, {worst['percent']:.0f} % of {prescription:g} Gy "
        f"({worst['scenario']}), {_place(worst)}; a max_dose objective on the body or on that ROI holds it down"
    )
