"""The sections of the case file, typed: every key, its unit, its default and what is allowed.

Units are in the keys' names (`_mm`, `_deg`, `_gy`, `_percent`); inside the package they are those of the physics. `load_case` reads TOML;
`Case(...)` takes the same tree from Python. A key that is unknown or a value that cannot be is an `InputError` of one line.
"""

from torchimpt.case.sections.aims import GoalConfig, ModeConfig, ObjectiveConfig, RobustnessConfig
from torchimpt.case.sections.base import OpenSection, Section
from torchimpt.case.sections.patient import MachineConfig, MaterialConfig, PatientConfig, RoiConfig, TissueConfig
from torchimpt.case.sections.plan import BeamConfig, DeliveryConfig, DoseConfig, JointConfig, OptimizerConfig, OutputConfig, SpotsConfig

__all__ = [
    "BeamConfig",
    "DeliveryConfig",
    "DoseConfig",
    "GoalConfig",
    "JointConfig",
    "MachineConfig",
    "MaterialConfig",
    "ModeConfig",
    "ObjectiveConfig",
    "OpenSection",
    "OptimizerConfig",
    "OutputConfig",
    "PatientConfig",
    "RobustnessConfig",
    "RoiConfig",
    "Section",
    "SpotsConfig",
    "TissueConfig",
]
