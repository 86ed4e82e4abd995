"""Terms that have to hold, as the augmented Lagrangian of Powell, Hestenes and Rockafellar has them.

A constraint `g_j(d) <= 0` with the multiplier `l_j >= 0` and the penalty `r` adds to the objective

    r sum_j v_j (max(0, g_j + t_j)^2 - t_j^2),    t_j = l_j / (2 r v_j)

the term's own sum of squares, with violations shifted by `t_j`, Gy. (Rockafellar, J Optim Theory Appl 12:555, 1973.) The shift is zero at
first, so that the constraint begins as the objective of its kind, and an update takes `t_j` to `max(0, g_j + t_j)`; where it stays what it
was, no `g_j` is positive, and those with a multiplier are zero. `g_j` are

    min_dose, max_dose       every voxel's `p - d_v` or `d_v - p`, in every scenario: one multiplier each, `v_j` the voxel's volume
    min_dvh, max_dvh         likewise, of all but those that may violate the level: at any time those with the largest shifted violations
    mean_dose, gEUD, ...     one number in every scenario, `v_j` the voxel count

so that the function stays a sum of squared hinges, once differentiable, convex where the term is, and exact on rays of doses. A uniform
dose is two constraints. Solvers need no more: `torchimpt.optim.augmented` says when shifts are updated and penalties raised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from torchimpt.checks import InputError
from torchimpt.objectives.bound import BoundTerm, one_sided
from torchimpt.objectives.dose_volume import MaxDVH, MinDVH
from torchimpt.objectives.mode import Ray
from torchimpt.objectives.quantities import UNITS
from torchimpt.objectives.term import Term
from torchimpt.objectives.terms import GEUD, MaxDose, MeanDose, MinDose
from torchimpt.patient import Regions
from torchimpt.processes import ALONE, Team
from torchimpt.sums import total

See = Callable[[Tensor], Tensor]
"""From what a solver has, doses `(n_scenarios, n)`, to the values that a constraint's term sees."""


class BoundConstraint:
    """One constraint with its shifts and its penalty.

    Parameters
    ----------
    bound
        The term, of one side, and its voxels.
    nominal
        Whether it holds in the first scenario alone.
    penalty
        `r`, in the place of the term's weight; the term's factor stands before it.
    team
        The processes that the scenarios are shared out among: values and shifts are of this one's, numbers that are told are of all.
    """

    def __init__(self, bound: BoundTerm, nominal: bool, penalty: float, team: Team = ALONE) -> None:
        self.term, self.nominal, self.penalty, self._team = bound.term, nominal, penalty, team
        self.shift: Tensor | None = None
        """`t` `(n_scenarios, n_violations)`, Gy; None for zeros."""
        self._first = penalty
        self._bound = replace(bound, term=replace(bound.term, weight=1.0))
        bound.term.excess(torch.zeros(len(bound.index), dtype=torch.float64), bound.volume)  # raises for terms that cannot be one

    def _own(self, values: Tensor) -> Tensor:
        """What the term sees, in the scenarios that it holds in; in none, where the nominal one is another process's."""
        return values[: self._count(len(values))].index_select(-1, self._bound.index.to(values.device))

    def _count(self, n_scenarios: int) -> int:
        return n_scenarios if not self.nominal else 1 if self._team.leads else 0

    def _of_all(self, own: Tensor, n_scenarios: int) -> Tensor:
        """Numbers of the scenarios that the constraint holds in, summed over those of all processes."""
        padded = own.new_zeros(n_scenarios, *own.shape[1:])
        padded[: len(own)] = own
        return self._team.gather(padded).sum(0)

    def _volume(self, own: Tensor) -> Tensor | None:
        return None if self._bound.volume is None else self._bound.volume.to(own)

    def _squares(self, shift: Tensor) -> Tensor:
        """`sum_j v_j t_j^2` in each scenario, float64."""
        squares, volume = shift.double().square(), self._bound.volume
        if shift.shape[-1] != len(self._bound.index):  # one number
            return squares.squeeze(-1) * (len(self._bound.index) if volume is None else float(volume.sum()))
        return total(squares if volume is None else squares * volume.to(squares))

    @property
    def _factor(self) -> float:
        return self.penalty * self._bound.factor

    def value_and_grad(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """What it adds, float64 `()`, and the gradient in the values' shape and dtype."""
        own = self._own(values)
        value, slope = self._bound.term.value_and_grad(own, self._volume(own), self.shift)
        grad = torch.zeros_like(values)
        grad[: len(own)].index_copy_(-1, self._bound.index.to(values.device), slope.mul_(self._factor))
        return self._of_all(self._factor * (value - self._offset(value)), len(values)), grad

    def _offset(self, like: Tensor) -> Tensor:
        return torch.zeros_like(like) if self.shift is None else self._squares(self.shift)

    def value(self, values: Tensor) -> Tensor:
        """What it adds, float64 `()`."""
        return self.value_and_grad(values)[0]

    def along(self, values: Tensor, rates: Tensor) -> Ray:
        """What it adds on the ray `values + l rates`: where each voxel has its square, without looking at the term again."""
        here, gain = self._own(values), self._own(rates)
        term, volume, shift, factor = self._bound.term, self._volume(here), self.shift, self._factor
        offset = self._offset(here.new_zeros(len(here), dtype=torch.float64))

        def told(value: Tensor, slope: Tensor) -> tuple[float, float]:
            both = self._of_all(torch.stack((value - factor * offset, slope), dim=-1), len(values))
            return float(both[0]), float(both[1])

        if term.signs:
            (side,) = term.signs
            root = math.sqrt(factor) if volume is None else (factor * volume.double()).sqrt()
            start = (side * (here.double() - term.dose) + (0.0 if shift is None else shift)) * root
            change = side * gain.double() * root

            def hinges(length: float) -> tuple[float, float]:
                excess = torch.add(start, change, alpha=length).clamp_(min=0)
                return told(total(excess.square()), 2.0 * total(excess.mul_(change)))

            return hinges

        ray = term.along(here, gain, volume, shift)

        def restricted(length: float) -> tuple[float, float]:
            value, slope = ray(length)
            return told(factor * value, factor * slope)

        return restricted

    def curvature(self, like: Tensor) -> Tensor:
        """As of `BoundObjective`, with the penalty as weight."""
        gain = self.penalty * self._bound.gain
        return like.new_zeros(like.shape).index_add_(0, self._bound.index.to(like.device), gain.to(like))

    def violations(self, values: Tensor) -> Tensor:
        """`violation` of the term in each scenario `(n_scenarios,)`, float64; NaN where it does not hold."""
        own = self._own(values)
        found = torch.full((len(values),), math.nan, dtype=torch.float64, device=values.device)
        if own.shape[-1] == 0:  # a sample that is not drawn yet
            found[: len(own)] = -math.inf
        else:
            found[: len(own)] = self.term.violation(own, self._volume(own)).double()
        return self._team.gather(found).cpu()

    def energy(self, values: Tensor) -> float:
        """Penalty of what is violated now, shifts left out: `r sum_j v_j max(0, g_j)^2`, Gy^2."""
        own = self._own(values)
        return self._factor * float(self._of_all(self._squares(self._bound.term.excess(own, self._volume(own))), len(values)))

    def advance(self, values: Tensor) -> float:
        """Update the shifts; the largest change of any, Gy: no violation and no slack of what has a multiplier is larger."""
        own = self._own(values)
        shift = self._bound.term.excess(own, self._volume(own), self.shift)
        change = (shift if self.shift is None else shift - self.shift).abs().double()
        self.shift = shift
        return float(self._team.largest(change.amax().reshape(1) if change.numel() else change.new_zeros(1)))

    def stiffen(self, factor: float) -> None:
        """Raise the penalty; the multipliers stay."""
        self.penalty *= factor
        self.shift = None if self.shift is None else self.shift / factor

    def reset(self) -> None:
        """No shifts, and the penalty of the start."""
        self.penalty, self.shift = self._first, None

    def state_dict(self) -> dict:
        """Shifts, of the scenarios of all processes, and penalty."""
        if self.shift is None:
            return {"shift": None, "penalty": self.penalty}
        return {"shift": self.shift.clone() if self.nominal else self._team.gather(self.shift).clone(), "penalty": self.penalty}

    def load_state_dict(self, state: dict) -> None:
        """Take up earlier ones; where there are more voxels now, after those of then, the further ones have no shift yet."""
        self.penalty, shift = state["penalty"], state["shift"]
        if shift is not None:
            shift = shift[: self._count(1)] if self.nominal else self._team.own(shift)
        if shift is not None and shift.shape[-1] != 1:
            shift = torch.nn.functional.pad(shift, (0, len(self._bound.index) - shift.shape[-1]))
        self.shift = None if shift is None else shift.clone()


class Constraints(Sequence[BoundConstraint]):
    """All constraints of an objective over scenarios, each with what it sees of a solver's doses."""

    def __init__(self, members: Sequence[tuple[BoundConstraint, See]] = ()) -> None:
        self.members = tuple(members)

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # int or slice, as of a tuple
        return tuple(constraint for constraint, _ in self.members)[index]

    def value(self, doses: Tensor) -> float:
        """What they add to the objective, Gy^2."""
        return sum(float(constraint.value(see(doses))) for constraint, see in self.members)

    def violations(self, doses: Tensor) -> Tensor:
        """By how much each is violated in each scenario `(n_constraints, n_scenarios)`, Gy, negative inside; NaN where it does not hold."""
        rows = [constraint.violations(see(doses)) for constraint, see in self.members]
        return torch.stack(rows) if rows else torch.zeros(0, len(doses), dtype=torch.float64)

    def worst(self, doses: Tensor) -> float:
        """The largest violation of any, Gy, at least zero."""
        return worst(self.violations(doses))

    def energy(self, doses: Tensor) -> float:
        """Penalty of what is violated now, shifts left out, Gy^2."""
        return sum(constraint.energy(see(doses)) for constraint, see in self.members)

    def rows(self, violations: Tensor, names: Sequence[str], tolerance: float) -> list[dict[str, Any]]:
        """What to tell of each: its `violation` in the worst of the scenarios, and `violations` in every one that it holds in, in Gy or the
        quantity's `unit`, negative by how far the plan is inside the level; the `value` in the worst; whether it is `met`.

        Parameters
        ----------
        violations
            As `violations` gives them.
        names
            Of the scenarios.
        tolerance
            The largest violation that counts as met.
        """
        rows = []
        for constraint, own in zip(self, violations, strict=True):
            term = constraint.term
            by_scenario = {name: float(violation) for name, violation in zip(names, own, strict=True) if not violation.isnan()}
            where = max(by_scenario, key=lambda name: by_scenario[name])
            largest, side = by_scenario[where], term.signs[0] if term.signs else term.side or 1.0
            volume = {"volume_percent": term.volume_percent} if isinstance(term, (MinDVH, MaxDVH)) else {}
            quantity = {} if term.quantity == "dose" else {"quantity": term.quantity}
            rows.append(
                {
                    "roi": term.roi, "kind": term.kind, **quantity, "level": term.dose, **volume, "unit": UNITS[term.quantity],
                    "value": term.dose + side * largest, "violation": largest, "worst_scenario": where, "violations": by_scenario,
                    "tolerance": tolerance, "met": largest <= tolerance,
                }
            )  # fmt: skip
        return rows

    def advance(self, doses: Tensor) -> list[float]:
        """Update the shifts of each; by how much they changed at most, Gy."""
        return [constraint.advance(see(doses)) for constraint, see in self.members]

    def stiffen(self, number: int, factor: float) -> None:
        """Raise one's penalty."""
        self.members[number][0].stiffen(factor)

    def reset(self) -> None:
        """Forget what earlier runs found: no shifts, and the penalties of the start."""
        for constraint in self:
            constraint.reset()

    def state_dict(self) -> list[dict]:
        """Shifts and penalties."""
        return [constraint.state_dict() for constraint, _ in self.members]

    def load_state_dict(self, state: Sequence[dict]) -> None:
        """Take up earlier ones."""
        for (constraint, _), own in zip(self.members, state, strict=True):
            constraint.load_state_dict(own)


def bound_constraints(bound: BoundTerm, nominal: bool, penalty: float, team: Team) -> list[BoundConstraint]:
    """One for each side of a term."""
    return [BoundConstraint(side, nominal, penalty, team) for side in one_sided(bound)]


def seen_whole(terms: Sequence[Term], regions: Regions) -> list[str]:
    """ROIs of which every scenario has to see all parts (`torchimpt.points`): those with a constraint that one part alone can violate.

    A mean is told by fewer parts as well. The body has too many: of it, its voxels are held as far as they are looked at.
    """
    held = [term.roi for term in terms if term.constraint and not isinstance(term, MeanDose)]
    return [roi for roi in dict.fromkeys(held) if regions.roi(roi).role != "external"]


def largest(violations: Tensor) -> list[float]:
    """Of what `Constraints.violations` gave each one's largest, Gy; negative inside."""
    return violations.where(~violations.isnan(), -math.inf).amax(1).tolist() if len(violations) else []


def worst(violations: Tensor) -> float:
    """The largest of what `Constraints.violations` gave, at least zero."""
    return max([0.0, *largest(violations)])


def check_consistent(terms: Sequence[Term]) -> None:
    """Raise where two constraints of one ROI cannot both hold, whatever the dose: one asks some of it for more than the other allows."""
    for low in terms:
        for high in terms:
            if low.roi == high.roi and low.quantity == high.quantity and _least(low, high) > high.dose:
                raise InputError(
                    f"constraints of '{low.roi}' contradict each other: {_told(low)} cannot be had with {_told(high)}; take one out, make "
                    "one an objective, or change a level"
                )


def _least(low: Term, high: Term) -> float:
    """What `high` is about is at least so much where `low` holds; minus infinity where that says nothing."""
    share = 0.0 if isinstance(low, MinDose) else low.excused_percent if isinstance(low, MinDVH) else math.nan
    if math.isnan(share):
        return -math.inf
    if isinstance(high, (MaxDose, MaxDVH)):
        allowed = 0.0 if isinstance(high, MaxDose) else high.excused_percent
        return low.dose if share + allowed < 100.0 else -math.inf
    # no gEUD with a of 1 or more is below the mean
    return low.dose * (1.0 - share / 100.0) if isinstance(high, (MeanDose, GEUD)) else -math.inf


def _told(term: Term) -> str:
    volume = f" for {term.volume_percent:g} %" if isinstance(term, (MinDVH, MaxDVH)) else ""
    return f"{term.kind} {term.dose:g}{volume}"
