"""Weights only: positions stay, the objective over all scenarios is minimized within `w >= 0`."""

from __future__ import annotations

import torch

from torchimpt.bound import BoundObjective
from torchimpt.checks import InputError
from torchimpt.dose.operator import DoseOperator
from torchimpt.optim import Composite
from torchimpt.planning.engine import Engine
from torchimpt.robust import RobustObjective

CURVATURE_FLOOR = 0.1
"""Least curvature that `jacobi_scale` believes, as a share of the median."""


def weight_problem(engine: Engine, objective: RobustObjective) -> Composite:
    """`F(w) = sum_k p_k F_k(A^k w)` as the solver sees it."""
    return Composite(engine.forward, engine.adjoint, objective, forward_some=engine.forward_some)


def best_uniform_weight(engine: Engine, objective: RobustObjective, weight: torch.Tensor) -> torch.Tensor:
    """`s w` with the scale `s >= 0` that has the least objective: where a plan starts.

    The objective on the ray is piecewise quadratic; its slope is bisected to a thousandth.
    """
    dose = engine.forward(weight)
    if not bool((dose > 0).any()):
        raise InputError("no spot gives dose to any voxel of the objectives; check the beams, the isocenter and the spots")
    along = objective.along(torch.zeros_like(dose), dose)
    low, high = 0.0, 1.0 / float(dose.max())
    while along(high)[1] < 0 and high < 1e12:
        low, high = high, 2.0 * high
    while high - low > 1e-3 * high and high > 1e-12:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if along(middle)[1] < 0 else (low, middle)
    return weight * high


def jacobi_scale(operator: DoseOperator, position: torch.Tensor, objective: BoundObjective) -> torch.Tensor:
    """Typical size of each weight `(n_spots,)`: the inverse square root of the Hessian's diagonal,

        H_ss = 2 sum_v c_v phi(v, s)^2,

    with `c_v` the sum of the weights of all terms at the voxel, as if all were violated. `H_ss` counts as at least a tenth of its median:
    a spot that hardly reaches the objectives' voxels would else take steps a million times those of the others. (On the head-and-neck
    phantom, nine scenarios, 0.05 to 0.2 are equally good; without the floor the solver needs four times the iterations.)
    """
    gain = position.new_zeros(operator.n_voxels)
    for bound in objective.bound_terms:
        gain.index_add_(0, bound.index.to(gain.device), gain.new_full((bound.index.numel(),), bound.factor * bound.term.weight))
    weight = position.new_zeros(position.shape[0])
    curvature = 2.0 * operator.squared().gradient(gain, position, weight, move=False)[0]
    median = float(curvature[curvature > 0].median()) if bool((curvature > 0).any()) else 1.0
    return curvature.clamp(min=CURVATURE_FLOOR * median).rsqrt()
