"""Conjugate-gradient update factors as free functions of a few scalar products.

With gradient `g`, step direction `d`, `y = g_k - g_{k-1}` and a symmetric positive metric `M` (the identity in the paper):

    DY   = g_k' M g_k / d_{k-1}' y          Dai and Yuan, Ann Oper Res 103:33, 2001
    HS   = g_k' M y   / d_{k-1}' y          Hestenes and Stiefel, 1952
    DYHS = max(0, min(DY, HS))              Xu et al. 2020, Eq. 8
    PR+  = max(0, g_k' M y / g_{k-1}' M g_{k-1})
    FR   = g_k' M g_k / g_{k-1}' M g_{k-1}

Eq. 9 of Xu et al. prints `|g_{k-1}|^2` in the numerator of DY; the rule of Dai and Yuan that it cites has `|g_k|^2`, which is used here.
A denominator that is not positive gives 0, which is a restart with steepest descent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torchimpt.checks import InputError, nearest


@dataclass(frozen=True)
class Products:
    """Scalar products that the rules need.

    Attributes
    ----------
    gg, gg_old
        `g_k' M g_k` and `g_{k-1}' M g_{k-1}`.
    gy
        `g_k' M y`.
    dy
        `d_{k-1}' y`.
    """

    gg: float
    gg_old: float
    gy: float
    dy: float


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else 0.0


def dy(p: Products) -> float:
    """Dai and Yuan."""
    return _ratio(p.gg, p.dy)


def hs(p: Products) -> float:
    """Hestenes and Stiefel; may be negative."""
    return _ratio(p.gy, p.dy)


def dyhs(p: Products) -> float:
    """The hybrid of Xu et al. 2020, Eq. 8."""
    return max(0.0, min(dy(p), hs(p)))


def pr_plus(p: Products) -> float:
    """Polak, Ribiere and Polyak, cut at zero."""
    return max(0.0, _ratio(p.gy, p.gg_old))


def fr(p: Products) -> float:
    """Fletcher and Reeves."""
    return _ratio(p.gg, p.gg_old)


RULES: dict[str, Callable[[Products], float]] = {"dyhs": dyhs, "dy": dy, "hs": hs, "pr+": pr_plus, "fr": fr}
"""Every rule by its name."""


def rule(name: str) -> Callable[[Products], float]:
    """The rule of this name."""
    if name not in RULES:
        raise InputError(f"beta must be one of {', '.join(RULES)}, got '{name}'{nearest(name, RULES)}")
    return RULES[name]
