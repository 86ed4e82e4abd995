"""`ProjectedCG`: nonlinear conjugate gradients within bounds, as a `torch.optim.Optimizer`.

Source: Xu et al. 2020, Eq. 7-12. One call of `step` is one iteration: a direction, and a line search by the Wolfe conditions that calls the
closure as often as it needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from torchimpt.checks import InputError, positive
from torchimpt.optim import beta as beta_rules
from torchimpt.optim.direction import Bounds, dot
from torchimpt.optim.line_search import DELTA, THETA
from torchimpt.optim.steps import ConjugateMemory, State, WolfeStep

_SHARED = ("beta", "delta", "theta", "restrict", "reuse")


class ProjectedCG(torch.optim.Optimizer):
    """Projected conjugate gradients for a deterministic closure.

    All parameters form one vector; each group has its own bounds and scale.

    Parameters
    ----------
    params
        Parameters or groups of parameters, all of one dtype on one device.
    lower, upper
        Bounds of the group's parameters: None, a number, or a tensor that broadcasts to each of them. Every iterate, and every point that
        the closure is called at, is within the bounds. Where `lower` is None, the attribute `lower` that a parameter has when it is given
        holds: the weights of `Spots` have 0, so that `ProjectedCG(spots.parameters())` keeps them deliverable.
    scale
        Typical size of a change of the group's parameters (number or tensor): conjugate gradients are taken of `parameter / scale`.
        With groups of different units, weights in 10^6 protons and positions in mm, it decides how fast each moves.
    beta
        `"dyhs"` (Xu et al., Eq. 8), `"dy"`, `"hs"`, `"pr+"` or `"fr"`.
    delta, theta
        Wolfe constants of Eq. 11 and 12, `0 < delta < theta < 1`.
    restrict
        Leave components that a bound holds out of gradient and direction before `beta` is computed (True), or let them count as in the
        paper (False).
    reuse
        The closure gives the same value whenever it is called with the same parameters: the last value and gradient of one step serve as
        the first of the next (True). Set it to False when the objective changes between steps.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lower: float | Tensor | None = None,
        upper: float | Tensor | None = None,
        *,
        scale: float | Tensor = 1.0,
        beta: str = "dyhs",
        delta: float = DELTA,
        theta: float = THETA,
        restrict: bool = True,
        reuse: bool = True,
    ) -> None:
        beta_rules.rule(beta)
        if not 0 < delta < theta < 1:
            raise InputError(f"the Wolfe constants must satisfy 0 < delta < theta < 1, got delta = {delta}, theta = {theta}")
        defaults = {"lower": lower, "upper": upper, "scale": scale, "beta": beta, "delta": delta, "theta": theta}
        super().__init__(params, {**defaults, "restrict": restrict, "reuse": reuse})
        self.stalled = False
        """Whether the last step found no lower point and left the parameters as they were."""
        first = self._parameters[0]
        if any(p.dtype != first.dtype or p.device != first.device for p in self._parameters):
            raise TypeError("ProjectedCG needs parameters of one dtype on one device; convert them, or use one optimizer for each kind")
        for name in _SHARED:
            if any(group[name] != self.param_groups[0][name] for group in self.param_groups):
                raise InputError(f"'{name}' is common to all parameters: give it to ProjectedCG, not to a group")
        outside = int((self._flat() != self._bounds().clamp(self._flat())).sum())
        if outside:
            raise InputError(f"{outside} parameter components are outside the bounds; clamp them first")

    @property
    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As `torch.optim.Optimizer` does; the parameters' own bounds are noted, because a copy of a parameter has lost them."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if group["lower"] is None:
            group["lower"] = [getattr(p, "lower", None) for p in group["params"]]

    def _flat(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self._parameters])

    def _spread(self, key: str, default: float) -> Tensor:
        """A group option as one value for each component, `(n,)`."""
        parts = []
        for group in self.param_groups:
            values = group[key] if isinstance(group[key], list) else [group[key]] * len(group["params"])
            for p, value in zip(group["params"], values, strict=True):
                parts.append(torch.as_tensor(default if value is None else value, dtype=p.dtype, device=p.device).expand_as(p).flatten())
        return torch.cat(parts)

    def _bounds(self) -> Bounds:
        return Bounds(self._spread("lower", -math.inf), self._spread("upper", math.inf))

    def _write(self, x: Tensor, gradient: Tensor | None = None) -> None:
        start = 0
        for p in self._parameters:
            end = start + p.numel()
            p.detach().copy_(x[start:end].view_as(p))
            if gradient is not None and p.grad is not None:
                p.grad.copy_(gradient[start:end].view_as(p))
            start = end

    def _saved(self) -> State[ConjugateMemory] | None:
        """The state that the last step left, when the parameters are still where it left them."""
        saved = self.state[self._parameters[0]]
        if not saved or not torch.equal(saved["x"], self._flat()):
            return None
        return State.load(saved, ConjugateMemory)

    @property
    def report(self) -> dict[str, float]:
        """Numbers of the last step: `iteration`, `evaluations`, `value`, `step_length`, `beta`, `projected_gradient_norm`."""
        saved = self.state[self._parameters[0]]
        if not saved:
            raise InputError("there is no report before the first step")
        free = self._bounds().free(saved["x"], saved["gradient"])
        names = {"iteration": "iteration", "evaluations": "evaluations", "value": "value", "step_length": "step", "beta": "beta"}
        numbers = {name: saved[key] for name, key in names.items()}
        gradient = saved["gradient"] * free
        return {**numbers, "projected_gradient_norm": math.sqrt(dot(gradient, gradient))}

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]  # a line search cannot do without
        """One iteration.

        Parameters
        ----------
        closure
            Clears the gradients, computes the objective, calls `backward` on it, and returns it.

        Returns
        -------
        Tensor
            The objective before the step, float64; after it, `report["value"]`.
        """
        group, problem = self.param_groups[0], _Closure(self, closure)
        scale = self._spread("scale", 1.0)
        if not bool((torch.isfinite(scale) & (scale > 0)).all()):
            positive("scale", float(scale.min()))
        step = WolfeStep(self._bounds(), group["beta"], group["restrict"], scale.square(), group["delta"], group["theta"])
        state = self._saved()
        if state is None:
            state = State.start(problem, self._flat())
        elif not group["reuse"]:
            value, gradient = problem.value_and_grad(state.x)
            state = replace(state, value=value, gradient=gradient, evaluations=state.evaluations + 1)
        before = state.value
        if not state.finite:
            raise ValueError(f"the objective is {before} and its gradient not finite everywhere at the start of the step; mend the closure")
        attempt = step(problem, state)
        state, self.stalled = attempt.state, not attempt.moved
        self._write(state.x, state.gradient)
        self.state[self._parameters[0]] = state.state_dict()
        return torch.tensor(before, dtype=torch.float64)


class _Closure:
    """A torch closure as a `Problem`."""

    def __init__(self, optimizer: ProjectedCG, closure: Callable[[], Tensor]) -> None:
        self.optimizer, self.closure = optimizer, closure

    def value_and_grad(self, x: Tensor) -> tuple[float, Tensor]:
        self.optimizer._write(x)
        with torch.enable_grad():
            value = float(self.closure().detach())
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.optimizer._parameters]
        return value, torch.cat([part.detach().flatten() for part in parts])
