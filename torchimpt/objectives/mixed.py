"""An objective whose terms ask about several quantities: RBE-weighted dose, LETd and LETd x dose besides the dose.

    F = sum_q F_q(Q_q(D, LD)),    dF/dD = sum_q dQ_q/dD' dF_q/dQ_q,    dF/dLD likewise

D and LD are linear in the weights, by the matrices of dose and of LETd x dose, and by the same pair kernel in the positions. They are
one vector here, `x = (D, LD)` for every scenario: D at all voxels of the objective, LD only at those whose terms need it. So whatever
maps spots to doses maps them to x (`torchimpt.dose.joined`), and gradients by weights and positions, scenarios, solvers and rays are the
same as for dose alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from torchimpt.checks import InputError
from torchimpt.objectives.bound import BoundObjective
from torchimpt.objectives.constraints import Constraints, See
from torchimpt.objectives.mode import Ray, RobustMode, sum_over_all
from torchimpt.objectives.quantities import LETQuantity
from torchimpt.objectives.robust import RobustObjective, heaviest_weight
from torchimpt.objectives.term import as_loss
from torchimpt.quantities import PHYSICAL, Quantity


class DosePart:
    """What terms of dose ask about, of vectors `x = (D, LD)`.

    Parameters
    ----------
    quantity
        Of D.
    n_dose
        Entries of D.
    model, letd
        Where the dose is weighted by LETd: that quantity, and the entries at which LD stands; at others it is `quantity`.
    """

    def __init__(self, quantity: Quantity, n_dose: int, model: LETQuantity | None = None, letd: Tensor | None = None) -> None:
        self._quantity, self._n, self._model, self._letd = quantity, n_dose, model, letd
        self.linear = model is None

    def value(self, dose: Tensor) -> Tensor:
        """The quantity at D."""
        value = self._quantity.value(dose[..., : self._n])
        if self._model is None or self._letd is None:
            return value
        entries = self._letd.to(dose.device)
        own = self._model.value(dose[..., : self._n].index_select(-1, entries), dose[..., self._n :])
        return value.index_copy(-1, entries, own)


def letd_entries(bound: BoundObjective, names: frozenset[str]) -> Tensor:
    """Entries of the dose vector `(n_letd,)`, ascending, that terms of the quantities `names` see."""
    seen = [b.index.cpu() for b in bound.bound_terms if b.term.quantity in names]
    return torch.cat(seen).unique() if seen else torch.zeros(0, dtype=torch.int64)


class MixedObjective:
    """The terms of one objective over scenarios, grouped by what they ask about; what `RobustObjective` is for dose alone.

    Parameters
    ----------
    bound
        All terms, bound to the entries of D.
    quantities
        Functions of D and LD at the entries `letd`, by the name that the terms have for them.
    letd
        `(n_letd,)`: the entries of D at which LD stands in `x`, in its order (`letd_entries`).
    mode
        What becomes of the scenarios' values; the sum when left out.
    dose
        What terms of every other name ask about, a quantity of the dose alone.

    Attributes
    ----------
    constraints
        The terms that have to hold, with their multipliers.
    """

    def __init__(
        self,
        bound: BoundObjective,
        quantities: Mapping[str, LETQuantity],
        letd: Tensor,
        mode: RobustMode | None = None,
        dose: Quantity = PHYSICAL,
    ) -> None:
        self.n_dose, self._letd, self.team = bound.n_voxels, letd, bound.team
        self.quantity = DosePart(dose, self.n_dose, quantities.get("dose"), letd)
        place = torch.full((self.n_dose,), -1)
        place[letd.cpu()] = torch.arange(len(letd))
        plain = [b for b in bound.bound_terms if b.term.quantity not in quantities]
        self._order = [i for i, b in enumerate(bound.bound_terms) if b.term.quantity not in quantities]
        heaviest = heaviest_weight(bound)
        dose_bound = BoundObjective(plain, self.n_dose, self.team)
        self._plain = RobustObjective(dose_bound, mode, dose, heaviest=heaviest) if plain else None
        self._groups: list[tuple[LETQuantity, RobustObjective]] = []
        for name, quantity in quantities.items():
            own = [b for b in bound.bound_terms if b.term.quantity == name]
            if own:
                self._order += [i for i, b in enumerate(bound.bound_terms) if b.term.quantity == name]
                moved = [replace(b, index=place[b.index.cpu()]) for b in own]
                robust = RobustObjective(BoundObjective(moved, len(letd), self.team), mode, asks=name, heaviest=heaviest)
                self._groups.append((quantity, robust))
        self.constraints = Constraints(
            [
                (constraint, partial(self._values, number, see))
                for number, (_, robust) in enumerate(self._parts())
                for constraint, see in robust.constraints.members
            ]
        )

        coupling = [mode for _, part in self._parts() for mode in part.modes if mode.couples]
        twice = [mode.name for i, mode in enumerate(coupling) if mode in coupling[:i]]
        if twice:
            raise InputError(
                f"mode '{twice[0]}' is of the scenarios' totals, and is not there for objectives of several quantities together; take "
                f"'objectivewise' or 'voxelwise', or give those of {', '.join(name for name, _ in self._parts() if name != 'dose')} a mode "
                "of their own"
            )

    def _parts(self) -> list[tuple[str, RobustObjective]]:
        """The terms of each quantity, with its name."""
        plain = [] if self._plain is None else [("dose", self._plain)]
        return plain + [(robust.bound.bound_terms[0].term.quantity, robust) for _, robust in self._groups]

    def for_start(self, doses: Tensor) -> tuple[RobustObjective | MixedObjective, Tensor]:
        """What the weights of a start are scaled by, and its doses: the terms of dose; LETd does not change when all weights do."""
        return (self, doses) if self._plain is None else (self._plain, doses[:, : self.n_dose].contiguous())

    def highest(self, doses: Tensor) -> float:
        """The highest value of the dose's quantity in any scenario."""
        return float(self.team.largest(self.quantity.value(doses).max().reshape(1)))

    def parts(self, doses: Tensor) -> tuple[Tensor, Tensor]:
        """D `(n_scenarios, n_dose)` and LD `(n_scenarios, n_letd)`."""
        if doses.dim() != 2 or doses.shape[1] != self.n_dose + len(self._letd):
            raise InputError(
                f"doses must be stacked as (n_scenarios, {self.n_dose} + {len(self._letd)}), dose and then LETd x dose, got the shape "
                f"{tuple(doses.shape)}"
            )
        return doses[:, : self.n_dose], doses[:, self.n_dose :]

    def value(self, doses: Tensor) -> Tensor:
        """F and what constraints add to it, float64 `()`."""
        return self.value_and_grad(doses)[0]

    def value_and_grad(self, doses: Tensor) -> tuple[Tensor, Tensor]:
        """F and what constraints add to it (float64 `()`), and the gradient in the shape and dtype of `doses`."""
        dose, letd_dose = self.parts(doses)
        grad, value = torch.zeros_like(doses), torch.zeros((), dtype=torch.float64, device=doses.device)
        if self._plain is not None:
            value, grad[:, : self.n_dose] = self._plain.value_and_grad(dose.contiguous())
        entries = self._letd.to(doses.device)
        here = dose.index_select(1, entries)
        for quantity, robust in self._groups:
            more, residual = robust.value_and_grad(quantity.value(here, letd_dose))
            by_dose, by_letd = quantity.pull(here, letd_dose, residual)
            value = value + more
            grad.index_add_(1, entries, by_dose)
            grad[:, self.n_dose :] += by_letd
        return value, grad

    def __call__(self, doses: Tensor) -> Tensor:
        """F as a torch loss; its backward is the hand-derived gradient."""
        return as_loss(self.value_and_grad, doses)

    def along(self, doses: Tensor, rates: Tensor) -> Ray:
        """F on the ray `doses + l rates`: exact pieces of the terms of dose, the others evaluated at each `l`."""
        dose, _ = self.parts(doses)
        rate, _ = self.parts(rates)
        plain = None if self._plain is None else self._plain.along(dose.contiguous(), rate.contiguous())
        entries = self._letd.to(doses.device)
        start, slope = (torch.cat((part.index_select(1, entries), both[:, self.n_dose :])) for part, both in ((dose, doses), (rate, rates)))

        def restricted(length: float) -> tuple[float, float]:
            value, rise = (0.0, 0.0) if plain is None else plain(length)
            here, letd_dose = torch.add(start, slope, alpha=length).chunk(2)
            for quantity, robust in self._groups:
                more, residual = robust.value_and_grad(quantity.value(here, letd_dose))
                grads = zip(quantity.pull(here, letd_dose, residual), slope.chunk(2), strict=True)
                value, rise = value + float(more), rise + sum(sum_over_all(self.team, grad.double() * way) for grad, way in grads)
            return value, rise

        return restricted

    def curvature(self, like: Tensor) -> Tensor:
        """About half the second derivative by each entry of `x` `(n_dose + n_letd,)`, as if all terms were violated, at typical doses."""
        gain = like.new_zeros(self.n_dose + len(self._letd))
        if self._plain is not None:
            gain[: self.n_dose] = self._plain.curvature(like)
        for quantity, robust in self._groups:
            own = robust.curvature(like)
            by_dose, by_letd = quantity.typical(own)
            gain.index_add_(0, self._letd.to(gain.device), own * by_dose.square())
            gain[self.n_dose :] += own * by_letd.square()
        return gain

    def _values(self, number: int, see: See, doses: Tensor) -> Tensor:
        """What a constraint of one of the quantities sees."""
        return see(self._seen(doses)[number][1])

    def _seen(self, doses: Tensor) -> list[tuple[RobustObjective, Tensor]]:
        """The terms of each quantity, and what they see."""
        dose, letd_dose = self.parts(doses)
        here = dose.index_select(1, self._letd.to(doses.device))
        plain = [] if self._plain is None else [(self._plain, dose.contiguous())]
        return plain + [(robust, quantity.value(here, letd_dose)) for quantity, robust in self._groups]

    @property
    def smoothed(self) -> bool:
        """Whether F is a smooth form of what its modes stand for."""
        return any(part.smoothed for _, part in self._parts())

    def exact_value(self, doses: Tensor) -> Tensor:
        """What F is a smooth form of, float64 `()`."""
        return torch.stack([robust.exact_value(values) for robust, values in self._seen(doses)]).sum()

    def terms(self, doses: Tensor) -> list[dict]:
        """Rows as of `RobustObjective.terms`, in the terms' own order; those of other quantities than dose name theirs."""
        found = [(robust, robust.terms(values)) for robust, values in self._seen(doses)]
        rows: dict[tuple[int, int], dict] = {}
        first = 0
        for robust, own in found:
            told = [i for i, b in enumerate(robust.bound.bound_terms) if not b.term.constraint]
            for i, row in enumerate(own):
                number = told[i % len(told)]
                name = robust.bound.bound_terms[number].term.quantity
                rows[row["scenario"], self._order[first + number]] = row if name == "dose" else {**row, "quantity": name}
            first += len(robust.bound.bound_terms)
        return [rows[key] for key in sorted(rows)]


PlanObjective = RobustObjective | MixedObjective
"""What a plan is optimized for."""
