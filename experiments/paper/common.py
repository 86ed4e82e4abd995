"""What the scripts of Xu et al.'s three cases share: the cases, the three plans of each, and where things lie."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torchimpt as ti
from torchimpt.io.plan import read_plan

ROOT = Path(__file__).resolve().parents[2]
CASES = ROOT / "experiments" / "cases" / "paper"
RESULTS = ROOT / "experiments" / "results"

PLANS = {"ptv": "PTV margin", "voxelwise": "Voxelwise worst case", "nine": "Nine scenarios"}
"""The two baselines, and the paper's method."""


@dataclass(frozen=True)
class Study:
    """What is the paper's about a case, besides its case file.

    Attributes
    ----------
    volume, spots, voxels
        Of the target, cm^3; of the plan; of target and OARs over nine scenarios.
    shown
        ROIs whose DVH bands its figure has.
    risk
        ROI whose worst maximum is told beside the target's.
    seconds
        Its Table 2: own optimizer on 36 threads, on a GPU, and the commercial system.
    figures
        Numbers of its figures: DVH bands, dose maps.
    """

    title: str
    volume: float
    spots: int
    voxels: int
    shown: tuple[str, ...]
    risk: str
    seconds: tuple[float, float, float]
    figures: tuple[int, int]


STUDIES = {
    "hn": Study("Head and neck", 51.6, 19_978, 159_882, ("CTV", "Brainstem", "SpinalCord"), "SpinalCord", (16, 3, 75), (3, 6)),
    "lung": Study("Lung", 97.7, 11_844, 4_600_764, ("CTV", "Esophagus", "SpinalCord"), "SpinalCord", (105, 38, 48), (4, 7)),
    "prostate": Study("Prostate", 854.4, 99_408, 389_493, ("CTV", "Bladder", "Rectum"), "Rectum", (218, 26, 474), (5, 8)),
}

BESIDE = ("External",)
"""ROIs with objectives that are not in the paper's Table 1."""


def paper_case(name: str, overrides: Sequence[str] = ()) -> ti.Case:
    """The case file, as the nine-scenario plan takes it."""
    return ti.load_case(CASES / f"{name}.toml", overrides)


def sizes(name: str, case: ti.Case, patient: ti.Patient, n_spots: int) -> dict[str, dict[str, float]]:
    """Target volume, cm^3, spots, and voxels of target and OARs over nine scenarios, beside the paper's."""
    study = STUDIES[name]
    asked = patient.union(dict.fromkeys(o.roi for o in case.objective if o.roi not in BESIDE))
    own = {"volume": patient.volume("CTV") / 1000.0, "spots": n_spots, "voxels": 9 * int(asked.sum())}
    paper = {key: getattr(study, key) for key in own}
    return {key: {"own": own[key], "paper": paper[key], "percent": 100.0 * (own[key] / paper[key] - 1.0)} for key in own}


def plan_case(case: ti.Case, plan: str) -> ti.Case:
    """The case of one of `PLANS`: the same spots' margin, objectives, weights and solver in all.

    The PTV plan asks of the PTV what the others ask of the CTV, in the nominal scenario; the voxelwise one what they ask, of each voxel's
    least and highest dose over the scenarios.
    """
    if plan == "voxelwise":
        assert case.robustness is not None
        return case.model_copy(update={"robustness": case.robustness.model_copy(update={"mode": "voxelwise"})})
    if plan == "ptv":
        asked = [o.model_copy(update={"roi": "PTV"}) if o.roi == "CTV" else o for o in case.objective]
        return case.model_copy(update={"robustness": None, "objective": asked})
    return case


def folder(runs: str, name: str, plan: str) -> Path:
    """Where a plan lies."""
    return Path(runs) / name / plan


def read(runs: str, name: str, plan: str) -> tuple[ti.Case, ti.Spots, dict[str, Any]]:
    """The nine-scenario case that a plan of `plans.py` was made for, its spots, and its metrics."""
    own = folder(runs, name, plan)
    metrics = json.loads((own / "metrics.json").read_text())
    return paper_case(name, metrics["set"].split()), read_plan(own / "plan.json"), metrics
