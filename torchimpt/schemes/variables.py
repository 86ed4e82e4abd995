"""What a stage may change of the spots: weights, positions, or both, as one vector within bounds.

    F(z) = sum_k F_k(D^k),   D^k_v = sum_s w_s phi^k(v, s; x_s),   z = all that varies, one variable after the other

A `Variable` is one block of `z`: how it is taken from the spots and put back, its bounds, its typical size, and its part of the
gradient that the doses give. What varies together is a tuple of them: `WEIGHTS`, `POSITIONS`, `JOINT`, or any other; a further variable is
one more class, and a stage that is given it (`torchimpt.schemes.schemes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from torchimpt.dose.model import Partials
from torchimpt.dose.scenarios import ScenarioDoses
from torchimpt.objectives import PlanObjective
from torchimpt.schemes.moving import MovingSpots
from torchimpt.schemes.weights import jacobi_scale
from torchimpt.sums import mean


@dataclass(frozen=True)
class Room:
    """What bounds and sizes of the variables are made from, at the start of a stage.

    Attributes
    ----------
    spots
        Where the stage starts.
    doses, objective
        Of these spots.
    least
        Least weights `(n,)`, 10^6 protons.
    box
        How far a spot may go from home along x and along y, mm.
    low, high
        Corners `(n, 2)` of the rectangle that each spot stays in, mm.
    """

    spots: MovingSpots
    doses: ScenarioDoses
    objective: PlanObjective
    least: Tensor
    box: float
    low: Tensor
    high: Tensor

    @cached_property
    def weight_scale(self) -> Tensor:
        """`jacobi_scale` in the nominal scenario `(n,)`."""
        return self.doses.of_nominal(lambda operator: jacobi_scale(operator, self.spots.position, self.objective), self.spots.weight)


class Variable(Protocol):
    """One block of `z`."""

    name: ClassVar[str]
    """What varies, in reports of a stage."""

    def pack(self, spots: MovingSpots) -> Tensor:
        """The block's values at the spots that a stage starts from; zeros where they count from there."""
        ...

    def unpack(self, spots: MovingSpots, values: Tensor) -> MovingSpots:
        """The spots with these values, from those that the stage starts from (in a tuple, from what the variables before it made)."""
        ...

    def bounds(self, room: Room) -> tuple[Tensor, Tensor]:
        """Least and largest values."""
        ...

    def scale(self, room: Room) -> Tensor:
        """Typical size of each value's change, positive."""
        ...

    def gradient(self, spots: MovingSpots, partials: Partials) -> Tensor:
        """The block's part of `dF/dz` at these spots, from `dF/dw` and `dF/dx`; linear in `partials`."""
        ...


@dataclass(frozen=True)
class Weights:
    """`w` `(n,)`, 10^6 protons: not below the least."""

    name: ClassVar[str] = "weights"

    def pack(self, spots: MovingSpots) -> Tensor:
        """The weights."""
        return spots.weight

    def unpack(self, spots: MovingSpots, values: Tensor) -> MovingSpots:
        """The spots with these weights."""
        return replace(spots, weight=values.clone())

    def bounds(self, room: Room) -> tuple[Tensor, Tensor]:
        """`least` and no upper bound."""
        return room.least, torch.full_like(room.least, torch.inf)

    def scale(self, room: Room) -> Tensor:
        """`jacobi_scale`."""
        return room.weight_scale

    def gradient(self, spots: MovingSpots, partials: Partials) -> Tensor:
        """`dF/dw`."""
        return partials.weight


@dataclass(frozen=True)
class Positions:
    """`u = (u_x, u_y)` `(2 n,)`, mm: the way from home, within the box, and inside the rectangle around the beam's placed spots."""

    name: ClassVar[str] = "positions"

    def pack(self, spots: MovingSpots) -> Tensor:
        """The way from home."""
        return (spots.position - spots.home).T.flatten()

    def unpack(self, spots: MovingSpots, values: Tensor) -> MovingSpots:
        """The spots there."""
        return replace(spots, position=spots.home + values.view(2, -1).T)

    def bounds(self, room: Room) -> tuple[Tensor, Tensor]:
        """The box around home, cut at the rectangle; home itself is always inside."""
        home, box = room.spots.home, room.box
        lower = torch.maximum(torch.full_like(home, -box), torch.minimum(room.low - home, torch.zeros_like(home)))
        upper = torch.minimum(torch.full_like(home, box), torch.maximum(room.high - home, torch.zeros_like(home)))
        return lower.T.flatten(), upper.T.flatten()

    def scale(self, room: Room) -> Tensor:
        """`s_u = s_w sigma / (3 w)`, sigma that of the spot at its peak, w the mean weight.

        Moving a spot by its sigma changes the dose about as much as its weight does. The 3 is measured: OpenKBP 109, nine scenarios, 3113
        spots, objective after 225 evaluations 1297 without it, 1248 with it, 1329 with 10.
        """
        by_weight = room.weight_scale
        like = torch.zeros(room.spots.n_spots, dtype=torch.float64)
        sigma = room.doses.of_nominal(lambda operator: operator.spot_sigma(), like).to(by_weight)
        weight = torch.maximum(mean(room.spots.weight), 1e-6 * mean(by_weight)).to(by_weight)  # positive, if all weights are zero
        return (by_weight * sigma / (3.0 * weight)).repeat(2)

    def gradient(self, spots: MovingSpots, partials: Partials) -> Tensor:
        """`dF/dx`, x first."""
        assert partials.position is not None  # asked for by `SpotProblem`
        return partials.position.T.flatten()


Vary = tuple[Variable, ...]
"""What varies together."""

WEIGHTS: Vary = (Weights(),)
POSITIONS: Vary = (Positions(),)
JOINT: Vary = (*WEIGHTS, *POSITIONS)


class Packing:
    """The variables of some spots as one vector `z`.

    Parameters
    ----------
    vary
        What varies; the rest of the spots stays.
    spots
        Whose; `z` has their number of entries a block, or twice that.
    """

    def __init__(self, vary: Sequence[Variable], spots: MovingSpots) -> None:
        self.vary, self.spots = tuple(vary), spots
        self._sizes = [len(variable.pack(spots)) for variable in self.vary]

    def pack(self, spots: MovingSpots) -> Tensor:
        """`z` of spots."""
        return torch.cat([variable.pack(spots) for variable in self.vary])

    def unpack(self, z: Tensor) -> MovingSpots:
        """The spots at `z`."""
        spots = self.spots
        for variable, values in zip(self.vary, z.split(self._sizes), strict=True):
            spots = variable.unpack(spots, values)
        return spots

    def bounds(self, room: Room) -> tuple[Tensor, Tensor]:
        """Least and largest `z`."""
        sides = [variable.bounds(room) for variable in self.vary]
        return torch.cat([low for low, _ in sides]), torch.cat([high for _, high in sides])

    def scale(self, room: Room) -> Tensor:
        """Typical size of each entry of `z`."""
        return torch.cat([variable.scale(room) for variable in self.vary])

    def gradient(self, spots: MovingSpots, partials: Partials) -> Tensor:
        """`dF/dz` at these spots."""
        return torch.cat([variable.gradient(spots, partials) for variable in self.vary])

    def weight_cost(self, cost: Tensor) -> Tensor:
        """`c` with `c' z = cost' w`: the price `cost` `(n,)` of the weights, which is the gradient of `cost' w`."""
        return self.gradient(self.spots, Partials(cost, torch.zeros_like(self.spots.position)))


class SpotProblem:
    """F of `z` as a solver sees it: one pass over the pairs for the doses, one for the gradient of all that varies."""

    def __init__(self, doses: ScenarioDoses, objective: PlanObjective, packing: Packing) -> None:
        self.doses, self.objective, self.packing, self.constraints = doses, objective, packing, objective.constraints
        self._z: Tensor | None = None
        self._image: Tensor | None = None

    def image(self, z: Tensor) -> Tensor:
        """Doses `(n_scenarios, n_voxels)`, of this process's scenarios, at `z`, from the store where they are there."""
        if self._image is None or self._z is None or not torch.equal(self._z, z):
            spots = self.packing.unpack(z)
            self._image, self._z = self.doses.dose(spots.position, spots.weight), z.clone()
        return self._image

    def value_and_grad(self, z: Tensor) -> tuple[float, Tensor]:
        """Value, and gradient in the shape of `z`."""
        value, residual = self.objective.value_and_grad(self.image(z))
        spots = self.packing.unpack(z)
        return float(value), self.packing.gradient(spots, self.doses.gradient(residual, spots.position, spots.weight))
