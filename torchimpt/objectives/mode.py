"""What a robust mode is: how the values of one objective in all scenarios become one number.

A mode is one small class in a file of `torchimpt.objectives.modes`, and a line in its registry. Most are functions of the scenarios' values
alone, `F = m(f_1 .. f_K)`: they derive from `OverValues` and say `combine`. A mode that mixes doses voxel by voxel writes the two methods
of `RobustMode` itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol

from torch import Tensor

Ray = Callable[[float], tuple[float, float]]
"""F on a ray of doses: from `l` to value and slope."""


class PerScenario(Protocol):
    """What a mode sees of an objective: it is evaluated in each scenario alone. `BoundObjective` is one."""

    def value_and_grad(self, dose: Tensor) -> tuple[Tensor, Tensor]:
        """Values `(n_scenarios,)`, float64, and their gradients `(n_scenarios, n_voxels)` at the doses of that shape."""
        ...

    def along(self, dose: Tensor, rate: Tensor) -> Callable[[float], tuple[Tensor, Tensor]]:
        """On the ray `dose + l rate`: from `l` to values and slopes, `(n_scenarios,)` each, float64."""
        ...


class RobustMode(Protocol):
    """F of the scenarios' doses."""

    name: ClassVar[str]

    def value_and_grad(self, objective: PerScenario, doses: Tensor) -> tuple[Tensor, Tensor]:
        """F, float64 `()`, and `dF/dD` in the doses' shape `(n_scenarios, n_voxels)` and dtype."""
        ...

    def along(self, objective: PerScenario, doses: Tensor, rates: Tensor) -> Ray:
        """F on the ray of doses `doses + l rates`."""
        ...

    def shares(self, values: Tensor) -> Tensor:
        """`dF/df_k` `(n_scenarios,)` at the scenarios' values: how much each counts, for reports."""
        ...


class OverValues:
    """A mode that is a function of the scenarios' values: subclasses say `combine`; the ray stays exact for every one of them."""

    def combine(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """F `()` of the scenarios' values `(n_scenarios,)`, float64, and `dF/df_k` `(n_scenarios,)`."""
        raise NotImplementedError(f"{type(self).__name__} must define combine")

    def shares(self, values: Tensor) -> Tensor:
        """`dF/df_k` at the scenarios' values."""
        return self.combine(values)[1]

    def value_and_grad(self, objective: PerScenario, doses: Tensor) -> tuple[Tensor, Tensor]:
        """F and its gradient."""
        values, grads = objective.value_and_grad(doses)
        value, shares = self.combine(values)
        return value, grads.mul_(shares.to(grads.dtype).unsqueeze(-1))

    def along(self, objective: PerScenario, doses: Tensor, rates: Tensor) -> Ray:
        """F on a ray."""
        line = objective.along(doses, rates)

        def restricted(length: float) -> tuple[float, float]:
            values, slopes = line(length)
            value, shares = self.combine(values)
            return float(value), float(shares.dot(slopes))

        return restricted
