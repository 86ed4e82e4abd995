"""An objective bound to the voxels of one dose vector: value, gradient, and the restriction to a ray of doses.

Squared hinges (min, max and uniform dose) are most of every plan. They are kept as dense arrays, one slot for the first hinge of each
voxel, one for the second and so on, so that value and gradient are a few vector operations with one gather of the doses that matter and
one scatter of the gradient. Along a ray of doses `D + l AD` they form a convex, once differentiable, piecewise quadratic function of `l`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from torchimpt.checks import InputError
from torchimpt.objectives import hinges
from torchimpt.objectives.term import Term, as_loss
from torchimpt.objectives.terms import MaxDose, MinDose
from torchimpt.processes import ALONE, Team
from torchimpt.sums import total


@dataclass(frozen=True)
class BoundTerm:
    """A term and where its voxels stand in the dose vector.

    Attributes
    ----------
    term
        What is asked.
    index
        `(n_roi,)` int64.
    factor
        On its value.
    volume
        `(n_roi,)`, float64: how many voxels each entry stands for, of points or of a sample; None: one each.
    """

    term: Term
    index: Tensor
    factor: float
    volume: Tensor | None = None

    @property
    def gain(self) -> Tensor:
        """`(n_roi,)` float64: the weight of each voxel."""
        one = torch.ones(self.index.numel(), dtype=torch.float64) if self.volume is None else self.volume.cpu().double()
        return self.factor * self.term.weight * one

    def value(self, doses: Tensor) -> Tensor:
        """The term's share of the objective `(...)`, float64, at the doses `(..., n_voxels)`."""
        own = doses.index_select(-1, self.index.to(doses.device))
        return self.factor * self.term.value_and_grad(own, *_volume(self.volume, own))[0]


def one_sided(bound: BoundTerm) -> list[BoundTerm]:
    """The term itself, or the parts that the sides of one of under-dose and over-dose, such as a uniform dose, are."""
    return [bound] if len(bound.term.signs) < 2 else [replace(bound, term=_hinge(bound.term, sign)) for sign in bound.term.signs]


def _hinge(term: Term, sign: float) -> Term:
    """One side of a term of hinges."""
    kind = MinDose if sign < 0 else MaxDose
    return kind(term.roi, term.dose, term.weight, mode=term.mode, quantity=term.quantity, constraint=term.constraint)


def _volume(volume: Tensor | None, like: Tensor) -> tuple[Tensor, ...]:
    """The further argument of a term's `value_and_grad`: none where there are only voxels."""
    return () if volume is None else (volume.to(like),)


class Ray:
    """Objective of each scenario on the ray `D + l AD` for `l >= 0`: calling it with `l` gives values and slopes."""

    def __init__(self, parts: Sequence[Callable[[float], tuple[Tensor, Tensor]]]) -> None:
        self._parts = parts

    def __call__(self, length: float) -> tuple[Tensor, Tensor]:
        """`(f(l), df/dl)`, each `(n_scenarios,)`: the sums of the parts'."""
        values, slopes = zip(*(part(length) for part in self._parts), strict=True)
        return torch.stack(values).sum(0), torch.stack(slopes).sum(0)


def _hinges_along(start: Tensor, rate: Tensor) -> Callable[[float], tuple[Tensor, Tensor]]:
    """`sum max(0, s + l r)^2` of each scenario and its slope, by torch."""

    def restricted(length: float) -> tuple[Tensor, Tensor]:
        excess = torch.add(start, rate, alpha=length).clamp_(min=0)
        return total(excess.square()), total(excess.mul_(rate)).mul_(2.0)

    return restricted


@dataclass(frozen=True)
class _Other:
    """A term that is no hinge: which of the packed doses it sees, its factor, and its entries' volumes, if they have any."""

    term: Term
    index: Tensor
    factor: float
    volume: tuple[Tensor, ...]

    def value_and_grad(self, dose: Tensor) -> tuple[Tensor, Tensor]:
        """Value and gradient at its own doses, without the factor."""
        return self.term.value_and_grad(dose, *self.volume)

    def along(self, dose: Tensor, rate: Tensor) -> Callable[[float], tuple[Tensor, Tensor]]:
        """Value and slope on a ray of its own doses, times the factor."""

        ray = self.term.along(dose, rate, *self.volume)

        def restricted(length: float) -> tuple[Tensor, Tensor]:
            value, slope = ray(length)
            return self.factor * value, self.factor * slope

        return restricted


class _Packed:
    """The arrays of a bound objective on one device, in one dtype.

    `voxels (m,)`: positions in the dose vector that any term needs; `level, sign, gain (slots, m)`: hinge `j` of voxel `v` is
    `gain_jv max(0, sign_jv (d_v - level_jv))^2`, and `gain` is zero in an empty slot; `hinged, hinge_level, hinge_root (n_hinges,)`: the
    same hinges one after the other for rays, float64, with `root = sign sqrt(gain)`; `others`: the terms that are no hinges.
    """

    def __init__(self, terms: Sequence[BoundTerm], n_voxels: int, device: torch.device, dtype: torch.dtype) -> None:
        voxels = torch.cat([bound.index.cpu() for bound in terms]).unique()
        place = torch.full((n_voxels,), -1)
        place[voxels] = torch.arange(len(voxels))
        hinges = [(b, sign) for b in terms for sign in b.term.signs if b.factor * b.term.weight > 0]
        count = torch.zeros(len(voxels), dtype=torch.int64)
        for bound, _ in hinges:
            count[place[bound.index.cpu()]] += 1
        level, sign_, gain = torch.zeros(3, int(count.max()) if len(count) else 0, len(voxels), dtype=torch.float64)
        count.zero_()
        for bound, sign in hinges:
            here = place[bound.index.cpu()]
            slot = count[here]
            level[slot, here], sign_[slot, here], gain[slot, here] = bound.term.dose, sign, bound.gain
            count[here] += 1
        where = {"device": device, "dtype": dtype}
        self.voxels = None if len(voxels) == n_voxels else voxels.to(device)
        self.level, self.sign, self.gain = level.to(**where), sign_.to(**where), gain.to(**where)
        slot, used = gain.nonzero(as_tuple=True)
        self.hinged, self.hinge_level = used.to(device), level[slot, used].to(device)
        self.hinge_root = (sign_[slot, used] * gain[slot, used].sqrt()).to(device)
        self.others = [
            _Other(b.term, place[b.index.cpu()].to(device), b.factor, _volume(b.volume, self.gain))
            for b in terms
            if not b.term.signs and b.term.weight > 0
        ]

    def hinges(self, local: Tensor) -> tuple[Tensor, Tensor]:
        """Values and gradients of all hinges at the doses `(..., m)`."""
        if local.device.type == "cpu":
            value, grad = hinges.value_and_grad(torch.atleast_2d(local).contiguous(), self.level, self.sign, self.gain)
            return value.view(local.shape[:-1]), grad.view(local.shape)
        value, grad = local.new_zeros(local.shape[:-1], dtype=torch.float64), torch.zeros_like(local)
        for level, sign, gain in zip(self.level, self.sign, self.gain, strict=True):
            excess = torch.sub(local, level).mul_(sign).clamp_(min=0)
            pull = excess * gain
            value += total(pull.mul(excess))
            grad.addcmul_(pull, sign, value=2.0)
        return value, grad

    def gather(self, dose: Tensor) -> Tensor:
        return dose if self.voxels is None else dose.index_select(-1, self.voxels)

    def scatter(self, grad: Tensor, like: Tensor) -> Tensor:
        return grad if self.voxels is None else torch.zeros_like(like).index_copy_(-1, self.voxels, grad)


class BoundObjective:
    """An objective whose terms know their places in the dose vector; made by `Objective.on`.

    Every method takes the dose of one scenario `(n_voxels,)` or of several `(n_scenarios, n_voxels)`, Gy, float32 or float64, on any
    device, and treats scenarios alone: values are `()` or `(n_scenarios,)`. Among several processes these are the scenarios of this one;
    `team` is for what looks at all (`RobustObjective`).
    """

    def __init__(self, terms: Sequence[BoundTerm], n_voxels: int, team: Team = ALONE) -> None:
        self.bound_terms, self.n_voxels, self.team = tuple(terms), n_voxels, team
        self._packs: dict[tuple[torch.device, torch.dtype], _Packed] = {}

    def among(self, team: Team) -> BoundObjective:
        """The same among processes."""
        return BoundObjective(self.bound_terms, self.n_voxels, team)

    @cached_property
    def singles(self) -> list[BoundObjective]:
        """Each term by itself."""
        return [BoundObjective([bound], self.n_voxels, self.team) for bound in self.bound_terms]

    @cached_property
    def sides(self) -> tuple[BoundObjective | None, BoundObjective | None]:
        """The terms of under-dose and those of over-dose, whose sum this is; None where there are none. A term of both, such as a uniform
        dose, has a part in each.
        """
        low, high = (self._side(side) for side in (-1.0, 1.0))
        low_terms, high_terms = (BoundObjective(side, self.n_voxels, self.team) if side else None for side in (low, high))
        return low_terms, high_terms

    def _side(self, side: float) -> list[BoundTerm]:
        found = []
        for bound in self.bound_terms:
            term = bound.term
            if side in term.signs:
                found.append(replace(bound, term=_hinge(term, side)))
            elif not term.signs and term.side is None:
                raise InputError(
                    f"objective {term.kind} of '{term.roi}' does not say whether it is of under-dose or over-dose (`side` of its class), "
                    "which a voxelwise mode has to know; give it another mode"
                )
            elif not term.signs and term.side == side:
                found.append(bound)
        return found

    def _pack(self, dose: Tensor) -> _Packed:
        if dose.shape[-1] != self.n_voxels or dose.dim() not in (1, 2):
            raise InputError(
                f"dose must have the shape ({self.n_voxels},) or (n_scenarios, {self.n_voxels}), got {tuple(dose.shape)}; "
                "bind the objective to the voxels that the dose is computed on"
            )
        if not dose.is_floating_point():
            raise TypeError(f"dose must be a floating-point tensor, got {dose.dtype}")
        if held := [bound.term for bound in self.bound_terms if bound.term.constraint]:
            raise InputError(
                f"objective {held[0].kind} of '{held[0].roi}' is a constraint, which a loss cannot hold: it has no multipliers; plan with "
                "ti.plan or ti.joint, or minimize a RobustObjective with torchimpt.optim.minimize, or take constraint out"
            )
        key = (dose.device, dose.dtype)
        if key not in self._packs:
            self._packs[key] = _Packed(self.bound_terms, self.n_voxels, *key)
        return self._packs[key]

    def value(self, dose: Tensor) -> Tensor:
        """Objective of each scenario, float64, Gy^2."""
        return self.value_and_grad(dose)[0]

    def value_and_grad(self, dose: Tensor) -> tuple[Tensor, Tensor]:
        """Objective of each scenario (float64), and the gradient with respect to the dose, in its shape and dtype."""
        pack = self._pack(dose)
        local = pack.gather(dose)
        value, grad = pack.hinges(local)
        for other in pack.others:
            more, slope = other.value_and_grad(local.index_select(-1, other.index))
            value += other.factor * more
            grad.index_copy_(-1, other.index, grad.index_select(-1, other.index).add_(slope, alpha=other.factor))
        return value, pack.scatter(grad, dose)

    def __call__(self, dose: Tensor) -> Tensor:
        """Objective as a torch loss; its backward is the hand-derived gradient."""
        return as_loss(self.value_and_grad, dose)

    def by_term(self, dose: Tensor) -> Tensor:
        """What each term has in the objective of each scenario `(..., n_terms)`, float64."""
        return torch.stack([bound.value(dose) for bound in self.bound_terms], dim=-1)

    def terms(self, dose: Tensor) -> list[dict]:
        """Each term's share of the objective at the dose `(n_voxels,)` of one scenario: `roi`, `kind`, `value`."""
        return [{"roi": b.term.roi, "kind": b.term.kind, "value": float(b.value(dose))} for b in self.bound_terms]

    def curvature(self, like: Tensor) -> Tensor:
        """Sum of the weights of all terms at each voxel `(n_voxels,)`, in the dtype and on the device of `like`."""
        gain = like.new_zeros(self.n_voxels)
        for bound in self.bound_terms:
            gain.index_add_(0, bound.index.to(gain.device), bound.gain.to(gain))
        return gain

    def along(self, dose: Tensor, rate: Tensor) -> Ray:
        """Restriction of each scenario's value to the ray `dose + l rate`.

        Parameters
        ----------
        dose, rate
            Dose at `l = 0`, and what it gains per unit of `l`, both in the same shape.

        Returns
        -------
        Ray
            Called with `l`, it gives values and slopes, `(n_scenarios,)` each (one for a single dose), in float64, without touching the
            dose vectors again.
        """
        pack = self._pack(dose)
        here, gain = (torch.atleast_2d(pack.gather(t)) for t in (dose, rate))
        if here.device.type == "cpu":
            hinged = hinges.along(here, gain, pack.hinged, pack.hinge_level, pack.hinge_root)
        else:
            start = here.index_select(-1, pack.hinged).double().sub_(pack.hinge_level).mul_(pack.hinge_root)
            hinged = _hinges_along(start, gain.index_select(-1, pack.hinged).double().mul_(pack.hinge_root))
        return Ray([hinged, *(o.along(here.index_select(-1, o.index), gain.index_select(-1, o.index)) for o in pack.others)])
