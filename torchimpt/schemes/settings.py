"""Settings of the schemes as plain objects; a case file's sections make them, and Python code gives them as they are."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from torchimpt.checks import InputError
from torchimpt.optim.augmented import FEASIBILITY


@dataclass(frozen=True)
class Solver:
    """The solver of a stage, and when it stops.

    Attributes
    ----------
    method
        Of every stage, see `torchimpt.optim.minimize`; None for the one that suits what the stage varies.
    max_iterations
        Of each stage.
    max_evaluations
        Of all stages together; None for no limit.
    tolerance
        Relative decrease of the objective in an iteration below which a stage has converged, whatever the method.
    feasibility
        How far a constraint may be violated, Gy, or in the unit of its quantity.
    """

    method: str | None = None
    max_iterations: int = 1000
    max_evaluations: int | None = None
    tolerance: float = 1e-4
    feasibility: float = FEASIBILITY


@dataclass(frozen=True)
class Motion:
    """How spots move, and how many of them stay: a case file's `[joint]`.

    Attributes
    ----------
    scheme
        A key of `torchimpt.schemes.schemes.SCHEMES`.
    box_mm
        How far a spot may go from where it was placed, along x and along y; never out of the rectangle around its beam's placed spots.
    spots
        How many of the placed spots to keep; None for all, or as many as `price_percent` asks.
    price_percent
        `"prune_and_move"` without a number of spots: how much the objective may rise for fewer spots.
    warm_iterations
        Weight iterations before spots are pruned and begin to move.
    weight_iterations, position_steps
        `"alternating"`: weight iterations and position steps in a turn.
    merge_mm
        Merge spots of a layer that end up closer than this; 0: never.
    """

    scheme: str = "joint"
    box_mm: float = 10.0
    spots: int | None = None
    price_percent: float = 1.0
    warm_iterations: int = 20
    weight_iterations: int = 10
    position_steps: int = 1
    merge_mm: float = 0.0

    def __post_init__(self) -> None:
        for name, most in (("box_mm", 100.0), ("price_percent", math.inf), ("warm_iterations", math.inf), ("merge_mm", math.inf)):
            if not 0 <= getattr(self, name) <= most:
                raise InputError(f"joint: {name} must be {'0 to 100' if most == 100.0 else 'zero or more'}, got {getattr(self, name)}")
        for name in ("spots", "weight_iterations", "position_steps"):
            value = getattr(self, name)
            if value is not None and not (value == int(value) and value > 0):
                raise InputError(f"joint: {name} must be a whole number, 1 or more, got {value}")

    @property
    def moves(self) -> bool:
        """Whether any spot may move at all."""
        return self.box_mm > 0


@dataclass(frozen=True)
class Limits:
    """What the finished plan must satisfy.

    Attributes
    ----------
    min_weight
        `(n_spots,)` of the placed spots, 10^6 protons; None for no minimum.
    min_layer_share
        A layer that carries less than this share of the heaviest layer's weight is left out; 0 keeps all.
    """

    min_weight: Tensor | None = None
    min_layer_share: float = 0.0
