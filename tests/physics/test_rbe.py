"""Variable RBE: published numbers, limits, and the hand-derived derivatives."""

from __future__ import annotations

import pytest
import torch

from torchimpt.physics.rbe import RBE_MODELS

GRID = torch.tensor([0.05, 0.5, 2.0, 8.0], dtype=torch.float64)


def textbook(name: str, dose: torch.Tensor, letd: torch.Tensor, ab: float) -> torch.Tensor:
    """RBE of one fraction as the papers print it."""
    low, high = {
        "mcnamara": (0.99064 + 0.35605 * letd / ab, 1.1012 - 0.0038703 * ab**0.5 * letd),
        "wedenberg": (1.0 + 0.434 * letd / ab, torch.ones_like(letd)),
        "carabe": (0.843 + 0.154 * 2.686 / ab * letd, 1.09 + 0.006 * 2.686 / ab * letd),
    }[name]
    return ((ab**2 + 4.0 * dose * ab * low + 4.0 * dose**2 * high**2).sqrt() - ab) / (2.0 * dose)


@pytest.mark.parametrize("name", RBE_MODELS)
@pytest.mark.parametrize("alpha_beta", [2.0, 10.0])
def test_weights_as_the_papers_do(name: str, alpha_beta: float) -> None:
    for letd in (0.5, 2.5, 12.0):
        l_ = torch.full_like(GRID, letd)
        course = RBE_MODELS[name].weighted(30 * GRID, 30 * GRID * l_, alpha_beta, 30)
        assert torch.allclose(course, 30 * GRID * textbook(name, GRID, l_, alpha_beta), rtol=1e-12)


def test_known_values() -> None:
    # 2 Gy, 2.5 keV/um, alpha/beta 2 Gy: RBE of the papers' formulas worked out by hand
    dose, letd_dose = torch.tensor(2.0, dtype=torch.float64), torch.tensor(5.0, dtype=torch.float64)
    found = {name: float(model.weighted(dose, letd_dose, 2.0, 1)) / 2.0 for name, model in RBE_MODELS.items()}
    assert found == pytest.approx({"mcnamara": 1.19363, "wedenberg": 1.17108, "carabe": 1.18597}, abs=2e-5)


@pytest.mark.parametrize("name", RBE_MODELS)
def test_derivatives(name: str) -> None:
    model = RBE_MODELS[name]
    dose = torch.tensor([0.0, 1e-9, 0.3, 20.0, 70.0], dtype=torch.float64, requires_grad=True)
    letd_dose = (torch.tensor([0.0, 3e-9, 0.6, 50.0, 700.0], dtype=torch.float64)).requires_grad_()
    ab = torch.tensor([2.0, 3.0, 10.0, 2.0, 10.0], dtype=torch.float64)
    value = model.weighted(dose, letd_dose, ab, 30)
    by = torch.autograd.grad(value.sum(), (dose, letd_dose))
    for own, torchs in zip(model.partials(dose.detach(), letd_dose.detach(), ab, 30), by, strict=True):
        assert torch.allclose(own, torchs, rtol=1e-12, atol=0)
    assert float(value[0].detach()) == 0.0
    by_dose, _ = model.partials(dose.detach(), letd_dose.detach(), ab, 30)
    assert float(by_dose[0]) == pytest.approx(model.a0)  # finite without dose
