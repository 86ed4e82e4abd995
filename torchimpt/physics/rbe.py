"""Variable relative biological effectiveness (RBE) of protons, from LETd, dose per fraction and alpha/beta of the tissue.

All models here are linear-quadratic, with the RBE at vanishing and at high dose (D. J. Carlson et al., Radiat. Res. 169:447, 2008)

    RBEmax = a0 + a1 L / ab,    RBEmin = b0 + b1 ab^q L,

where L is LETd, keV/um, and ab the alpha/beta of photons, Gy. Equal effect, `ab E + E^2 = ab RBEmax d + (RBEmin d)^2`, gives the
RBE-weighted dose of a fraction with the physical dose d. As RBEmax and RBEmin are linear in L, it needs d and l = L d only,

    E(d, l) = sqrt(ab^2 / 4 + ab a0 d + a1 l + m^2) - ab / 2,    m = b0 d + b1 ab^q l,

with nothing divided by the dose: value and derivatives are finite where there is none, `dE/dd = a0`, `dE/dl = a1 / ab`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class RBEModel:
    """The coefficients of a model; see the module.

    Attributes
    ----------
    name
        In case files.
    a0, a1
        Of RBEmax; `a1` in Gy um/keV.
    b0, b1, q
        Of RBEmin; `b1` in um/keV Gy^-q.
    """

    name: str
    a0: float
    a1: float
    b0: float
    b1: float
    q: float

    def weighted(self, dose: torch.Tensor, letd_dose: torch.Tensor, alpha_beta: torch.Tensor | float, fractions: int) -> torch.Tensor:
        """RBE-weighted dose of a course, Gy(RBE), in the shape of the doses; differentiable.

        Parameters
        ----------
        dose, letd_dose
            Physical dose, Gy, and LETd x dose, Gy keV/um, of the whole course.
        alpha_beta
            Of photons, Gy, positive, broadcastable.
        fractions
            That the course is given in, all alike.
        """
        root, _ = self._root(dose, letd_dose, alpha_beta, fractions)
        return fractions * (root - 0.5 * alpha_beta)

    def partials(
        self, dose: torch.Tensor, letd_dose: torch.Tensor, alpha_beta: torch.Tensor | float, fractions: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Derivatives of `weighted` by dose and LETd x dose, by hand: `(ab a0 / 2 + b0 m) / root`, `(a1 / 2 + b1 ab^q m) / root`."""
        root, m = self._root(dose, letd_dose, alpha_beta, fractions)
        return (0.5 * self.a0 * alpha_beta + self.b0 * m) / root, (0.5 * self.a1 + self.b1 * alpha_beta**self.q * m) / root

    def _root(
        self, dose: torch.Tensor, letd_dose: torch.Tensor, alpha_beta: torch.Tensor | float, fractions: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        d, l = dose / fractions, letd_dose / fractions  # noqa: E741  # the module's letters
        m = self.b0 * d + self.b1 * alpha_beta**self.q * l
        inside = 0.25 * alpha_beta**2 + alpha_beta * self.a0 * d + self.a1 * l + m**2
        return inside.sqrt(), m


RBE_MODELS: dict[str, RBEModel] = {
    model.name: model
    for model in (
        RBEModel("mcnamara", 0.99064, 0.35605, 1.1012, -0.0038703, 0.5),
        RBEModel("wedenberg", 1.0, 0.434, 1.0, 0.0, 0.0),
        RBEModel("carabe", 0.843, 0.154 * 2.686, 1.09, 0.006 * 2.686, -1.0),
    )
}
"""By name: A. L. McNamara et al., Phys. Med. Biol. 60:8399, 2015; M. Wedenberg et al., Acta Oncol. 52:580, 2013; A. Carabe et al., Phys.
Med. Biol. 57:1159, 2012 (whose 2.686 Gy is the alpha/beta of V79 cells, that their fit is relative to)."""
