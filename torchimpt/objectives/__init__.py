"""Objectives: terms for ROIs, bound to voxels, over scenarios in a robust mode."""

from torchimpt.objectives.bound import BoundObjective, BoundTerm
from torchimpt.objectives.constraints import BoundConstraint, Constraints, largest, seen_whole, worst
from torchimpt.objectives.dose_volume import MaxDVH, MinDVH
from torchimpt.objectives.mixed import MixedObjective, PlanObjective, letd_entries
from torchimpt.objectives.mode import OverValues, RobustMode
from torchimpt.objectives.modes import (
    MODES,
    Composite,
    CVaR,
    Expected,
    Nominal,
    Objectivewise,
    Percentile,
    Sum,
    Voxelwise,
    VoxelwiseInvariant,
)
from torchimpt.objectives.objective import OVERLAPS, Objective, Split
from torchimpt.objectives.quantities import UNITS, LETd, LETdDose, LETQuantity, VariableRBE
from torchimpt.objectives.robust import RobustObjective
from torchimpt.objectives.term import Term
from torchimpt.objectives.terms import GEUD, KINDS, MaxDose, MeanDose, MinDose, UniformDose

__all__ = [
    "GEUD",
    "KINDS",
    "MODES",
    "OVERLAPS",
    "UNITS",
    "BoundConstraint",
    "BoundObjective",
    "BoundTerm",
    "CVaR",
    "Composite",
    "Constraints",
    "Expected",
    "LETQuantity",
    "LETd",
    "LETdDose",
    "MaxDVH",
    "MaxDose",
    "MeanDose",
    "MinDVH",
    "MinDose",
    "MixedObjective",
    "Nominal",
    "Objective",
    "Objectivewise",
    "OverValues",
    "Percentile",
    "PlanObjective",
    "RobustMode",
    "RobustObjective",
    "Split",
    "Sum",
    "Term",
    "UniformDose",
    "VariableRBE",
    "Voxelwise",
    "VoxelwiseInvariant",
    "largest",
    "letd_entries",
    "seen_whole",
    "worst",
]
