"""What a solver sees: a value and a gradient, and where possible a cheap restriction to a line.

A solver knows no dose. `Composite` is the form that treatment planning has, `F(x) = phi(A x)` with a linear map `A`: along a line
`x + l d` its argument is `A x + l A d`, so one product with `d` gives `F` on the whole line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Problem(Protocol):
    """A differentiable function of `x (n,)`."""

    def value_and_grad(self, x: Tensor) -> tuple[float, Tensor]:
        """Value and gradient `(n,)` at `x`: one evaluation."""
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

    def image(self, x: Tensor) -> Tensor:
        """That of F."""
        return self.problem.image(x)

    def penalty(self, x: Tensor) -> float:
        """`c' x`."""
        return float(self.cost @ x)

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
    forward
        `x (n,) -> A x`, in any shape; linear.
    adjoint
        `r -> A^T r (n,)`, for `r` in the shape of `A x`.
    outer
        `phi`.
    forward_some
        `(index (k,), values (k,)) -> A[:, index] values`, for the few components (about 1 % of a plan's spots) that the bounds cut off in
        each iteration; worth having where it costs in proportion to `k`. `forward` with zeros elsewhere when left out.
    refresh
        After so many lines the image is computed afresh, which bounds the rounding that updates gather.
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        adjoint: Callable[[Tensor], Tensor],
        outer: Outer,
        *,
        forward_some: Callable[[Tensor, Tensor], Tensor] | None = None,
        refresh: int = 50,
    ) -> None:
        self.forward, self.adjoint, self.outer, self.forward_some, self.refresh = forward, adjoint, outer, forward_some, refresh
        self.products = 0
        """Full products with `A` and `A^T` so far."""
        self._x: Tensor | None = None
        self._image: Tensor | None = None
        self._age = 0

    def image(self, x: Tensor) -> Tensor:
        """`A x`, from the store where it is there."""
        if self._x is None or self._age >= self.refresh or not torch.equal(self._x, x):
            self.keep(x, self.product(x))
            self._age = 0
        return self._image

    def product(self, x: Tensor) -> Tensor:
        """`A x`, computed."""
        self.products += 1
        return self.forward(x)

    def change(self, delta: Tensor) -> Tensor:
        """`A delta` for a vector that is mostly zero."""
        if self.forward_some is None:
            return self.product(delta)
        index = delta.nonzero().flatten()
        return self.forward_some(index, delta[index])

    def keep(self, x: Tensor, image: Tensor) -> None:
        """Store `image = A x`."""
        self._x, self._image = x.clone(), image
        self._age += 1

    def grad(self, image: Tensor) -> tuple[float, Tensor]:
        """Value and gradient at the `x` that has this image."""
        value, residual = self.outer.value_and_grad(image)
        self.products += 1
        return float(value), self.adjoint(residual)

    def value_and_grad(self, x: Tensor) -> tuple[float, Tensor]:
        """Value and gradient `(n,)` at `x`."""
        return self.grad(self.image(x))

    def line(self, x: Tensor, direction: Tensor) -> CompositeLine:
        """Restriction to `x + l direction`."""
        return CompositeLine(self, x, direction, self.image(x), self.product(direction))

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
            rate = rate + self._problem.change(clipped)
        return CompositeLine(self._problem, self._x, x_new - self._x, self._image, rate)

    def value_and_grad(self, length: float, x_new: Tensor) -> tuple[float, Tensor]:
        image = torch.add(self._image, self._rate, alpha=length)
        self._problem.keep(x_new, image)
        return self._problem.grad(image)
