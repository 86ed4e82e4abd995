"""What a solver sees: a value and a gradient, and where possible a cheap restriction to a line.

A solver knows no dose. `Composite` is the form that treatment planning has, `F(x) = phi(A x)` with a linear map `A`: along a line
`x + l d` its argument is `A x + l A d`, so one product with `d` gives `F` on the whole line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from torchimpt.sums import total


@runtime_checkable
class Problem(Protocol):
    """A differentiable function of `x (n,)`."""

    def value_and_grad(self, x: Tensor) -> tuple[float, Tensor]:
        """Value and gradient `(n,)` at `x`: one evaluation."""
        ...


@runtime_checkable
class Resumable(Protocol):
    """A problem with a memory of its own, which a resumed run has to have again."""

    def state_dict(self) -> dict:
        """What `load_state_dict` needs."""
        ...

    def load_state_dict(self, state: dict) -> None:
        """Take up the memory of an earlier run."""
        ...


class Penalized:
    """`F(x) + c' x`, for problems without cheap lines.

    Parameters
    ----------
    problem
        F.
    cost
        `c` `(n,)`.
    """

    def __init__(self, problem: Problem, cost: Tensor) -> None:
        self.problem, self.cost = problem, cost

    def penalty(self, x: Tensor) -> float:
        """`c' x`."""
        return float(total(self.cost * x))

    def value_and_grad(self, x: Tensor) -> tuple[float, Tensor]:
        """Value and gradient `(n,)`."""
        value, gradient = self.problem.value_and_grad(x)
        return value + self.penalty(x), gradient + self.cost


class Line(Protocol):
    """A function on the line `x + l d`."""

    def value_slope(self, length: float) -> tuple[float, float]:
        """`f(l)` and `df/dl` on the straight line, cheaply."""
        ...

    def bend(self, length: float, x_new: Tensor) -> Line:
        """The line from `x` at `l = 0` to `x_new` at `l = 1`, where `x_new` is `x + length d` but for some components."""
        ...

    def value_and_grad(self, length: float, x_new: Tensor) -> tuple[float, Tensor]:
        """Value and gradient at `x_new = x + length d`."""
        ...


@runtime_checkable
class LineProblem(Problem, Protocol):
    """A problem with a cheap restriction to a line."""

    def line(self, x: Tensor, direction: Tensor) -> Line:
        """Restriction to `x + l direction`; costs about half an evaluation."""
        ...


class LinearMap(Protocol):
    """A linear map `A`; the doses of all scenarios at fixed positions are one."""

    def forward(self, x: Tensor) -> Tensor:
        """`A x` for `x` `(n,)`, in any shape."""
        ...

    def adjoint(self, residual: Tensor) -> Tensor:
        """`A^T r` `(n,)`, for `r` in the shape of `A x`."""
        ...

    def columns(self, index: Tensor, values: Tensor) -> Tensor:
        """`A[:, index] values`, for the few components (about 1 % of a plan's spots) that the bounds cut off in each iteration."""
        ...


class Outer(Protocol):
    """The function `phi` of `F(x) = phi(A x)`; `RobustObjective` is one."""

    def value_and_grad(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Value `()` and gradient in the shape of `y`."""
        ...

    def along(self, y: Tensor, rate: Tensor) -> Callable[[float], tuple[float, float]]:
        """Restriction to `y + l rate`: a function of `l` that gives value and slope."""
        ...


class Composite:
    """`F(x) = phi(A x)`, `grad F = A^T grad phi(A x)`, with the image `A x` carried along from line to line.

    Parameters
    ----------
    linear
        `A`.
    outer
        `phi`.
    refresh
        After so many lines the image is computed afresh, which bounds the rounding that updates gather.
    """

    def __init__(self, linear: LinearMap, outer: Outer, refresh: int = 50) -> None:
        self.linear, self.outer, self.refresh = linear, outer, refresh
        self.products = 0
        """Full products with `A` and `A^T` so far."""
        self._x: Tensor | None = None
        self._image: Tensor | None = None
        self._age = 0

    @property
    def constraints(self) -> Any:
        """Those of `phi`, where it has any (`torchimpt.optim.augmented`)."""
        return getattr(self.outer, "constraints", ())

    def image(self, x: Tensor) -> Tensor:
        """`A x`, from the store where it is there."""
        if self._image is None or self._x is None or self._age >= self.refresh or not torch.equal(self._x, x):
            image = self.forward(x)
            self.keep(x, image)
            self._age = 0
            return image
        return self._image

    def forward(self, x: Tensor) -> Tensor:
        """`A x`, computed."""
        self.products += 1
        return self.linear.forward(x)

    def columns(self, delta: Tensor) -> Tensor:
        """`A delta` for a vector that is mostly zero."""
        index = delta.nonzero().flatten()
        return self.linear.columns(index, delta[index])

    def keep(self, x: Tensor, image: Tensor) -> None:
        """Store `image = A x`."""
        self._x, self._image = x.clone(), image
        self._age += 1

    def grad(self, image: Tensor) -> tuple[float, Tensor]:
        """Value and gradient at the `x` that has this image."""
        value, residual = self.outer.value_and_grad(image)
        self.products += 1
        return float(value), self.linear.adjoint(residual)

    def value_and_grad(self, x: Tensor) -> tuple[float, Tensor]:
        """Value and gradient `(n,)` at `x`."""
        return self.grad(self.image(x))

    def line(self, x: Tensor, direction: Tensor) -> CompositeLine:
        """Restriction to `x + l direction`."""
        return CompositeLine(self, x, direction, self.image(x), self.forward(direction))

    def state_dict(self) -> dict:
        """The stored image: with it, a resumed solver repeats its iterates bit for bit."""
        x, image = (t if t is None else t.clone() for t in (self._x, self._image))
        return {"x": x, "image": image, "age": self._age}

    def load_state_dict(self, state: dict) -> None:
        """Take up the image of an earlier run."""
        self._x, self._image = (t if t is None else t.clone() for t in (state["x"], state["image"]))
        self._age = state["age"]


class CompositeLine:
    """`phi(A x + l A d)`, a `Line`."""

    def __init__(self, problem: Composite, x: Tensor, direction: Tensor, image: Tensor, rate: Tensor) -> None:
        self._problem, self._x, self._direction, self._image, self._rate = problem, x, direction, image, rate
        self._ray: Callable[[float], tuple[float, float]] | None = None

    def value_slope(self, length: float) -> tuple[float, float]:
        # Made when it is first asked for: the end of a bent line is mostly taken without a look along it.
        if self._ray is None:
            self._ray = self._problem.outer.along(self._image, self._rate)
        return self._ray(length)

    def bend(self, length: float, x_new: Tensor) -> CompositeLine:
        clipped = x_new - torch.add(self._x, self._direction, alpha=length)
        rate = self._rate * length
        if clipped.any():
            rate = rate + self._problem.columns(clipped)
        return CompositeLine(self._problem, self._x, x_new - self._x, self._image, rate)

    def value_and_grad(self, length: float, x_new: Tensor) -> tuple[float, Tensor]:
        image = torch.add(self._image, self._rate, alpha=length)
        self._problem.keep(x_new, image)
        return self._problem.grad(image)
