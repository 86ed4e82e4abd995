"""torchimpt: differentiable dose and fast robust optimization for intensity-modulated proton therapy.

`import torchimpt as ti` loads nothing heavy; each name is imported at its first use.
"""

from __future__ import annotations

import importlib
from typing import Any

from torchimpt.version import __version__

_MODULES = ("io", "machine", "optim", "phantoms", "physics", "dose", "evaluate", "planning", "report")
_NAMES = {
    "Beam": "geometry",
    "BoundObjective": "objectives",
    "Case": "case",
    "DeliveryModel": "spots.delivery",
    "DoseOperator": "dose.operator",
    "GEUD": "objectives",
    "Grid": "geometry",
    "InfluenceMatrix": "dose.influence",
    "InputError": "checks",
    "MaxDVH": "objectives",
    "MaxDose": "objectives",
    "MeanDose": "objectives",
    "MinDVH": "objectives",
    "MinDose": "objectives",
    "NOMINAL": "scenarios",
    "Objective": "objectives",
    "Patient": "patient",
    "PencilBeamDose": "dose.layer",
    "PhysicsWarning": "checks",
    "ROI": "patient",
    "RobustObjective": "objectives",
    "Scenario": "scenarios",
    "ScenarioDoses": "dose.scenarios",
    "Spots": "spots",
    "UniformDose": "objectives",
    "boundary_scenarios": "scenarios",
    "delivery_time": "spots.delivery",
    "influence_matrices": "dose.influence",
    "joint": "schemes.schemes",
    "load_case": "case",
    "phantom": "phantoms",
    "place_spots": "spots.placement",
    "plan": "planning.plan",
    "resample": "resampling",
    "scenario_doses": "dose.scenarios",
    "stagger": "spots.placement",
}

__all__ = ["__version__", *_MODULES, *_NAMES]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f"torchimpt.{_NAMES[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"torchimpt.{name}")
    raise AttributeError(f"module 'torchimpt' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
