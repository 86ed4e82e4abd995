"""Optimizers within bounds: the weights of spots are not negative. They know no dose: a solver sees a value, a gradient and bounds."""

from torchimpt.optim.problem import Composite, Line, LinearMap, LineProblem, Penalized, Problem
from torchimpt.optim.projected_cg import ProjectedCG
from torchimpt.optim.solution import Iteration, Solution, Status
from torchimpt.optim.solve import METHODS, minimize

__all__ = [
    "METHODS",
    "Composite",
    "Iteration",
    "Line",
    "LineProblem",
    "LinearMap",
    "Penalized",
    "Problem",
    "ProjectedCG",
    "Solution",
    "Status",
    "minimize",
]
