"""What a robust mode is: how the values of one objective in all scenarios become one number.

A mode is one small class in a file of `torchimpt.objectives.modes`, and a line in its registry. Most are functions of the scenarios' values
alone, `F = m(f_1 .. f_K)`: they derive from `OverValues` and say `combine`. A mode that mixes doses voxel by voxel derives from
`RobustMode` and writes its three methods.

Maxima have kinks, on which gradient methods stall. So modes that take one are smooth by default, with a parameter that says how much, and
`exact` is what they stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from torchimpt.processes import Team
from torchimpt.sums import total

Ray = Callable[[float], tuple[float, float]]
"""F on a ray of doses: from `l` to value and slope."""


class PerScenario(Protocol):
    """What a mode sees of an objective: it is evaluated at any doses, each scenario's alone. `BoundObjective` is one.

    Among several processes, doses are those of this process's scenarios; `team` has what is needed of all.
    """

    @property
    def team(self) -> Team:
        """The processes that the scenarios are shared out among."""
        ...

    def value(self, dose: Tensor) -> Tensor:
        """Values `(n_scenarios,)`, float64, at the doses `(n_scenarios, n_voxels)`; `()` of one dose `(n_voxels,)`."""
        ...

    def value_and_grad(self, dose: Tensor) -> tuple[Tensor, Tensor]:
        """Values, and their gradients in the doses' shape and dtype."""
        ...

    def along(self, dose: Tensor, rate: Tensor) -> Callable[[float], tuple[Tensor, Tensor]]:
        """On the ray `dose + l rate`: from `l` to values and slopes, `(n_scenarios,)` each, float64."""
        ...

    def curvature(self, like: Tensor) -> Tensor:
        """Sum of the terms' weights at each voxel `(n_voxels,)`, in the dtype and on the device of `like`."""
        ...

    def by_term(self, dose: Tensor) -> Tensor:
        """What each term has in the values `(n_scenarios, n_terms)`."""
        ...

    @property
    def singles(self) -> Sequence[PerScenario]:
        """Each term by itself."""
        ...

    @property
    def sides(self) -> Sequence[PerScenario | None]:
        """The terms of under-dose and those of over-dose, whose sum this is; None where there are none."""
        ...


class RobustMode:
    """F of the scenarios' doses `(n_scenarios, n_voxels)`, the nominal one first.

    Among several processes doses and gradients are of this process's scenarios; F is of all, and the same on every process.
    """

    name: ClassVar[str]
    shared: ClassVar[bool] = False
    """Whether its methods ask the objective's `team` for what they need of all scenarios."""
    apart: ClassVar[bool] = False
    """Whether each term is taken by itself, and not the sum of all that share the mode."""
    couples: ClassVar[bool] = False
    """Whether F of several terms is something else than the sum of their own."""
    nominal_only: ClassVar[bool] = False
    """Whether F is of the first scenario, the nominal one, alone."""

    def check(self, n_scenarios: int) -> None:
        """Raise where the mode's parameters are not for so many scenarios."""

    def exact(self) -> RobustMode:
        """The mode that this one is a smooth form of; itself where nothing is smoothed."""
        return self

    def value_and_grad(self, objective: PerScenario, doses: Tensor) -> tuple[Tensor, Tensor]:
        """F, float64 `()`, and `dF/dD` in the doses' shape and dtype."""
        raise NotImplementedError(f"{type(self).__name__} must define value_and_grad")

    def along(self, objective: PerScenario, doses: Tensor, rates: Tensor) -> Ray:
        """F on the ray of doses `doses + l rates`."""
        raise NotImplementedError(f"{type(self).__name__} must define along")

    def shares(self, objective: PerScenario, doses: Tensor) -> Tensor:
        """`(n_scenarios, n_terms)`, float64: what each term in each scenario, of this process, has in F, for reports."""
        raise NotImplementedError(f"{type(self).__name__} must define shares")


class OverValues(RobustMode):
    """A mode that is a function of the scenarios' values: subclasses say `combine`; the ray stays exact for every one of them."""

    couples = True
    shared = True

    def combine(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """F `()` of the scenarios' values `(n_scenarios,)`, float64, and `dF/df_k` `(n_scenarios,)`."""
        raise NotImplementedError(f"{type(self).__name__} must define combine")

    def value_and_grad(self, objective: PerScenario, doses: Tensor) -> tuple[Tensor, Tensor]:
        """F and its gradient."""
        values, grads = objective.value_and_grad(doses)
        value, shares = self.combine(objective.team.gather(values))
        return value, grads.mul_(objective.team.own(shares).to(grads.dtype).unsqueeze(-1))

    def along(self, objective: PerScenario, doses: Tensor, rates: Tensor) -> Ray:
        """F on a ray."""
        line = objective.along(doses, rates)

        def restricted(length: float) -> tuple[float, float]:
            values, slopes = objective.team.gather(torch.stack(line(length), dim=-1)).unbind(-1)
            value, shares = self.combine(values)
            return float(value), float(shares.dot(slopes))

        return restricted

    def shares(self, objective: PerScenario, doses: Tensor) -> Tensor:
        """`f_ik dF/df_k`: their sum is F where F grows with the values' scale, as it does for all modes here."""
        shares = self.combine(objective.team.gather(objective.value(doses)))[1]
        return objective.by_term(doses) * objective.team.own(shares).unsqueeze(-1)


def sum_over_all(team: Team, products: Tensor) -> float:
    """The sum of `(n_scenarios, n)` over voxels and over the scenarios of all processes."""
    return float(team.gather(total(products)).sum())
