"""LETd of a case: alpha/beta of its tissue, the quantities that its objectives and goals ask about, and dose as an RBE model weights it."""

from __future__ import annotations

import torch

from torchimpt.case import Case
from torchimpt.objectives import LETd, LETdDose, LETQuantity, VariableRBE
from torchimpt.patient import Regions
from torchimpt.physics.rbe import RBE_MODELS

LEAST_PERCENT, LEAST_GY = 1.0, 0.1
"""LETd fades below this share of the highest prescription; below so many Gy where there is none."""


def least_dose(case: Case) -> float:
    """Physical dose of the course below which LETd fades, Gy."""
    if case.dose.letd_least_gy is not None:
        return case.dose.letd_least_gy
    prescription = case.highest_prescription()
    return LEAST_PERCENT / 100.0 * prescription if prescription else LEAST_GY


def alpha_beta(case: Case, regions: Regions, entries: torch.Tensor) -> torch.Tensor:
    """Photons' alpha/beta `(n,)`, Gy, at `entries` `(n,)` of the ROIs' masks: flat indices of a patient's grid, or of points."""
    found = torch.full(entries.shape, case.dose.alpha_beta_gy, dtype=torch.float64)
    for tissue in case.tissue:
        if tissue.roi in regions.rois:
            found[regions.roi(tissue.roi).mask.flatten()[entries.cpu()]] = tissue.alpha_beta_gy
    return found


def quantity(case: Case, name: str, regions: Regions, entries: torch.Tensor) -> LETQuantity:
    """A quantity of `UNITS` at `entries` `(n,)`, as of `alpha_beta`; `"dose"` is the model's that the case weights dose by."""
    if name == "letd":
        return LETd(least_dose(case))
    if name == "letd_dose":
        return LETdDose()
    model = RBE_MODELS[str(case.dose.rbe) if name == "dose" else name]
    return VariableRBE(model, alpha_beta(case, regions, entries), case.delivery.fractions)


def weighted(case: Case, regions: Regions, dose: torch.Tensor, letd_dose: torch.Tensor | None, entries: torch.Tensor) -> torch.Tensor:
    """Dose in the case's own weighting, Gy(RBE), from physical dose and LETd x dose `(..., n)`, on the CPU, at `entries` `(n,)`."""
    if letd_dose is None or not isinstance(case.dose.rbe, str):
        return case.quantity().value(dose)
    return quantity(case, "dose", regions, entries).value(dose, letd_dose)
