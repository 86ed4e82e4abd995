"""Where weights start, and how large they typically are."""

from __future__ import annotations

import torch
from torch import Tensor

from torchimpt.checks import InputError
from torchimpt.dose.linear import LinearDose
from torchimpt.dose.operator import DoseOperator
from torchimpt.objectives import PlanObjective

CURVATURE_FLOOR = 0.1
"""Least curvature that `jacobi_scale` believes, as a share of the median."""


def best_uniform_weight(linear: LinearDose, objective: PlanObjective, weight: Tensor) -> Tensor:
    """`s w` with the scale `s >= 0` that has the least objective: where a plan starts.

    The objective on the ray is piecewise quadratic; its slope is bisected to a thousandth.
    """
    objective, dose = objective.for_start(linear.forward(weight))
    highest = objective.highest(dose)
    if not highest > 0:
        raise InputError("no spot gives dose to any voxel of the objectives; check the beams, the isocenter and the spots")
    along = objective.along(torch.zeros_like(dose), dose)
    low, high = 0.0, 1.0 / highest
    while along(high)[1] < 0 and high < 1e12:
        low, high = high, 2.0 * high
    while high - low > 1e-3 * high and high > 1e-12:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if along(middle)[1] < 0 else (low, middle)
    return weight * high


def jacobi_scale(operator: DoseOperator, position: Tensor, objective: PlanObjective) -> Tensor:
    """Typical size of each weight `(n_spots,)`: the inverse square root of the Hessian's diagonal,

        H_ss = 2 sum_v c_v phi(v, s)^2,

    with `c` the objective's curvature, as if all terms were violated. `H_ss` counts as at least a tenth of its median: a spot that hardly
    reaches the objectives' voxels would else take steps a million times those of the others. (On the head-and-neck phantom, nine scenarios,
    0.05 to 0.2 are equally good; without the floor the solver needs four times the iterations.)
    """
    gain = objective.curvature(position)
    curvature = 2.0 * operator.squared().gradient(gain, position, position.new_zeros(position.shape[0]), move=False).weight
    median = float(curvature[curvature > 0].median()) if bool((curvature > 0).any()) else 1.0
    return curvature.clamp(min=CURVATURE_FLOOR * median).rsqrt()
