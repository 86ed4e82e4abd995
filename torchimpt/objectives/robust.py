"""Robust objective: the terms of one objective over the doses of all scenarios, each in its robust mode.

    F = sum_groups m_g(f_g1 .. f_gK),    f_gk = the group's terms at Q(D^k)

A group are the terms that share a mode, the plan's or a term's own; where the mode is `apart`, each term is a group. Q is the quantity that
the terms ask about (`torchimpt.quantities`). Terms that are constraints are in no group; what a solver sees is F and what they add
(`torchimpt.objectives.constraints`).
Doses are physical and stacked, `(n_scenarios, n_voxels)`, Gy, in the order of the scenarios. Among several processes they are those of this
process's scenarios, and so is `dF/dD`; values, rays and the rows of `terms` are of all scenarios.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from torchimpt.checks import InputError
from torchimpt.objectives.bound import BoundObjective
from torchimpt.objectives.constraints import Constraints, bound_constraints
from torchimpt.objectives.mode import Ray, RobustMode, sum_over_all
from torchimpt.objectives.modes import Sum
from torchimpt.objectives.term import as_loss
from torchimpt.quantities import PHYSICAL, Quantity


def heaviest_weight(bound: BoundObjective) -> float:
    """The largest weight of a term that is no constraint."""
    return max((b.term.weight for b in bound.bound_terms if not b.term.constraint), default=0.0)


class RobustObjective:
    """An objective over scenarios.

    Parameters
    ----------
    bound
        The objective that every scenario gets.
    mode
        What becomes of the scenarios' values; the sum when left out. Terms with a mode of their own have theirs.
    quantity
        What the terms ask about; the physical dose when left out.
    asks
        The terms' own name of it.
    heaviest
        Least penalty that constraints start with; left out, the weight of the heaviest other term.

    Attributes
    ----------
    constraints
        The terms that have to hold, with their multipliers.
    """

    def __init__(
        self,
        bound: BoundObjective,
        mode: RobustMode | None = None,
        quantity: Quantity = PHYSICAL,
        asks: str = "dose",
        heaviest: float | None = None,
    ) -> None:
        for b in bound.bound_terms:
            if b.term.quantity != asks:
                raise InputError(
                    f"objective {b.term.kind} of '{b.term.roi}' asks about '{b.term.quantity}', which doses alone do not tell; plan it "
                    "from a case file, or take MixedObjective"
                )
        self.bound, self.mode, self.quantity, self.team = bound, mode or Sum(), quantity, bound.team
        own = [b.term.mode or self.mode for b in bound.bound_terms]
        least = heaviest_weight(bound) if heaviest is None else heaviest
        self._held = [
            constraint
            for b, one in zip(bound.bound_terms, own, strict=True)
            if b.term.constraint
            for constraint in bound_constraints(b, one.nominal_only, max(b.term.weight, least), self.team)
        ]
        self.constraints = Constraints([(constraint, self._values) for constraint in self._held])
        groups: list[tuple[RobustMode, list[int]]] = []
        for i, one in enumerate(own):
            if bound.bound_terms[i].term.constraint:
                continue
            same = [members for mode, members in groups if mode == one and not mode.apart]
            if same:
                same[0].append(i)
            else:
                groups.append((one, [i]))
        self._members = [members for _, members in groups]
        self._groups = [
            (one, BoundObjective([bound.bound_terms[i] for i in members], bound.n_voxels, self.team)) for one, members in groups
        ]
        for one, _ in groups:
            if self.team.size > 1 and not one.shared:
                raise InputError(f"mode '{one.name}' is not made for several processes (`shared` of its class); start one")

    @property
    def modes(self) -> list[RobustMode]:
        """The modes of the groups, each once."""
        return [mode for i, (mode, _) in enumerate(self._groups) if mode not in [other for other, _ in self._groups[:i]]]

    @property
    def smoothed(self) -> bool:
        """Whether F is a smooth form of what its modes stand for."""
        return any(mode.exact() != mode for mode in self.modes)

    def exact_value(self, doses: Tensor) -> Tensor:
        """What F is a smooth form of, float64 `()`."""
        values = self._values(doses)
        parts = [mode.exact().value_and_grad(terms, values)[0] for mode, terms in self._groups]
        return torch.stack(parts).sum() if parts else values.new_zeros((), dtype=torch.float64)

    def for_start(self, doses: Tensor) -> tuple[RobustObjective, Tensor]:
        """What the weights of a start are scaled by, and its doses: all terms."""
        return self, doses

    def highest(self, doses: Tensor) -> float:
        """The highest value of the quantity in any scenario."""
        return float(self.team.largest(self._values(doses).max().reshape(1)))

    def _values(self, doses: Tensor) -> Tensor:
        """The quantity at the doses."""
        if doses.dim() != 2:
            raise InputError(f"doses must be stacked as (n_scenarios, n_voxels), got the shape {tuple(doses.shape)}")
        return self.quantity.value(doses)

    def value(self, doses: Tensor) -> Tensor:
        """F and what constraints add to it, float64 `()`, Gy^2."""
        return self.value_and_grad(doses)[0]

    def value_and_grad(self, doses: Tensor) -> tuple[Tensor, Tensor]:
        """F and what constraints add to it (float64 `()`), and the gradient in the doses' shape and dtype."""
        values = self._values(doses)
        parts: list[Callable[[Tensor], tuple[Tensor, Tensor]]] = [partial(mode.value_and_grad, terms) for mode, terms in self._groups]
        parts += [constraint.value_and_grad for constraint in self._held]
        value, grad = parts[0](values)
        for part in parts[1:]:
            more, way = part(values)
            value, grad = value + more, grad.add_(way)
        return value, self.quantity.pull(doses, grad)

    def __call__(self, doses: Tensor) -> Tensor:
        """The value as a torch loss, at the multipliers as they are; its backward is the hand-derived gradient."""
        return as_loss(self.value_and_grad, doses)

    def along(self, doses: Tensor, rates: Tensor) -> Ray:
        """The value on the ray of doses `doses + l rates`: calling it with `l` gives value and slope."""
        if not self.quantity.linear:
            return self._bent_ray(doses, rates)
        start, rate = self._values(doses), self._values(rates)
        rays = [mode.along(terms, start, rate) for mode, terms in self._groups]
        rays += [constraint.along(start, rate) for constraint in self._held]

        def restricted(length: float) -> tuple[float, float]:
            pairs = [ray(length) for ray in rays]
            return sum(value for value, _ in pairs), sum(slope for _, slope in pairs)

        return rays[0] if len(rays) == 1 else restricted

    def _bent_ray(self, doses: Tensor, rates: Tensor) -> Ray:
        """F on a ray of doses whose quantity does not follow a ray."""

        def restricted(length: float) -> tuple[float, float]:
            value, grad = self.value_and_grad(torch.add(doses, rates, alpha=length))
            return float(value), sum_over_all(self.team, grad.double() * rates)

        return restricted

    def curvature(self, like: Tensor) -> Tensor:
        """About half the second derivative of one scenario's terms by each voxel's dose, as if all were violated.

        `(n_voxels,)` in the dtype and on the device of `like`: the sum of the terms' weights at the voxel, times `(dQ/dD)^2` at no dose.
        """
        curvature = like.new_zeros(self.bound.n_voxels)
        for _, terms in self._groups:
            curvature += terms.curvature(like)
        for constraint in self._held:
            curvature += constraint.curvature(curvature)
        return curvature * self.quantity.slope(torch.zeros_like(curvature)).square()

    def terms(self, doses: Tensor) -> list[dict]:
        """Share of every term in every scenario: `scenario` (its index), `roi`, `kind`, `value` (what it has in F). Without constraints."""
        values, own = self._values(doses), self.bound.bound_terms
        shares = torch.zeros(len(doses), len(own), dtype=torch.float64)
        for members, (mode, terms) in zip(self._members, self._groups, strict=True):
            shares[:, members] = mode.shares(terms, values).cpu().double()
        by_scenario = self.team.gather(shares).tolist()
        return [
            {"scenario": k, "roi": bound.term.roi, "kind": bound.term.kind, "value": value}
            for k, row in enumerate(by_scenario)
            for bound, value in zip(own, row, strict=True)
            if not bound.term.constraint
        ]
