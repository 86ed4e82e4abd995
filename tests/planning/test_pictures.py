"""Doses of scenarios for pictures: those that were assessed, those that are computed besides, and the nominal one far from both."""

from __future__ import annotations

import pytest
import torch
from tiny_case import write_tiny

from torchimpt.case import load_case
from torchimpt.planning.load import set_up
from torchimpt.planning.pictures import SHOWN, picture_doses
from torchimpt.planning.plan import plan


@pytest.mark.parametrize("rbe", ["1.1", "mcnamara"])
def test_they_are_the_scenarios_own_doses(tmp_path, rbe):
    """Against whole doses, within rounding of float32 wherever there is a twentieth of the prescription in the nominal scenario, and nowhere
    far from them: what is left nominal is beyond the reach of the scenarios' range errors. They are far from the nominal dose.
    """
    overrides = ["optimizer.max_iterations=8", "spots.spacing_mm=12", f"dose.rbe={rbe}"]
    path = write_tiny(tmp_path, ('roi = "External"', 'roi = "Target"'))  # else all of the body is assessed in every scenario
    case = load_case(path, overrides)
    found = plan(case, device="cpu")
    whole = plan(load_case(path, [*overrides, "output.scenarios_dose=true"]), device="cpu").assessment
    scenarios = [scenario for scenario in case.scenarios() if not scenario.is_nominal]
    doses = picture_doses(case, found.patient, found.machine, found.spots, found.assessment, scenarios, set_up(case, "cpu"))
    assert list(doses) == [scenario.name for scenario in scenarios] and len(found.assessment.voxels) < 0.5 * whole.dose.numel()
    for scenario in scenarios:
        true, own = whole.scenario_doses[scenario.name], doses[scenario.name]
        shown = whole.dose >= SHOWN * 50.0
        assert torch.allclose(own[shown], true[shown], atol=1e-3) and float((own - true).abs().max()) < 0.5
        assert float((true - whole.dose).abs().max()) > 5.0
        known = found.assessment.voxels
        assert torch.equal(own.flatten()[known], found.assessment.voxel_doses[scenario.name])
        assert float((own == whole.dose).double().mean()) > 0.3 and float((own >= SHOWN * 50.0).double().mean()) > 0.02
    again = picture_doses(case, found.patient, found.machine, found.spots, whole, scenarios, set_up(case, "cpu"))
    assert all(again[name] is whole.scenario_doses[name] for name in again)
