"""DVHs and metrics: closed forms, the definitions' corners, NumPy as the oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchimpt.checks import InputError
from torchimpt.evaluate import Metric, common_axis, conformity, d, dose_axis, dvh, dvh_band, homogeneity, v

doses = st.lists(st.floats(0, 100, width=32), min_size=1, max_size=50).map(torch.tensor)


def test_d_of_an_even_ladder():
    """101 voxels with 0, 1, ..., 100 Gy: D_q is 100 - q exactly."""
    ladder = torch.arange(101.0)[torch.randperm(101, generator=torch.Generator().manual_seed(1))]
    assert d(ladder, 0, 2, 50, 95, 98, 100) == [100.0, 98.0, 50.0, 5.0, 2.0, 0.0]


@given(doses, st.floats(0, 100))
@settings(deadline=None, max_examples=60)
def test_d_is_numpys_percentile(dose, q):
    assert d(dose, q)[0] == pytest.approx(np.percentile(dose.double().numpy(), 100 - q), rel=1e-6, abs=1e-6)


@given(doses, st.floats(0, 100, width=32))
@settings(deadline=None, max_examples=60)
def test_dvh_counts_voxels_at_or_above(dose, level):
    expected = 100.0 * int((dose >= level).sum()) / dose.numel()
    assert float(dvh(dose, torch.tensor([level], dtype=torch.float64))[0]) == pytest.approx(expected, abs=1e-12)
    assert v(dose, level) == pytest.approx(expected, abs=1e-12)


def test_dvh_falls_from_100_to_0_on_its_axis(generator):
    dose = 70 * torch.rand(1000, generator=generator)
    axis = dose_axis(float(dose.max()))
    volume = dvh(dose, axis)
    assert volume[0] == 100 and volume[-1] == 0
    assert (volume.diff() <= 0).all()


@pytest.mark.parametrize("maximum", [0.0, 1e-4, 0.7, 1.0, 19.99, 73.5, 2000.0])
def test_axis_reaches_past_the_maximum_in_round_steps(maximum):
    axis = dose_axis(maximum, 400)
    step = float(axis[1])
    assert axis[-1] > maximum and axis[-2] <= max(maximum, 1e-3) and len(axis) <= 402
    assert round(step / 10 ** np.floor(np.log10(step) + 1e-9)) in (1, 2, 5)


def test_band_encloses_every_scenario_and_keeps_the_first_as_nominal(generator):
    scenarios = [60 + 5 * torch.rand(200, generator=generator) - i for i in range(3)]
    axis = common_axis({str(i): {"PTV": dose} for i, dose in enumerate(scenarios)})
    band = dvh_band(scenarios, axis)
    for dose in scenarios:
        assert (band.low <= dvh(dose, axis)).all() and (dvh(dose, axis) <= band.high).all()
    assert torch.equal(band.nominal, dvh(scenarios[0], axis))


def test_homogeneity_and_conformity_by_hand():
    assert homogeneity(torch.full((10,), 70.0)) == 0.0
    assert homogeneity(torch.arange(101.0)) == pytest.approx((98 - 2) / 50)
    assert np.isnan(homogeneity(torch.zeros(5)))
    # 10 target voxels, 8 at the prescription; 4 voxels outside too: 8^2 / (10 * 12).
    target = torch.tensor([70.0] * 8 + [0.0] * 2)
    body = torch.cat((target, torch.tensor([68.0] * 4), torch.zeros(100)))
    assert conformity(target, body, 70.0) == pytest.approx(64 / 120)
    assert conformity(torch.zeros(3), torch.zeros(9), 70.0) == 0.0


def test_every_metric_from_text():
    dose = torch.arange(101.0)
    values = {"d(2)": 98.0, "D(95)": 5.0, " v(20.0) ": 100 * 81 / 101, "mean": 50.0, "max": 100.0, "min": 0.0, "hi": 96 / 50}
    for text, value in values.items():
        assert Metric.parse(text)(dose) == pytest.approx(value)
    assert str(Metric.parse("v(20.0)")) == "v(20)" and Metric.parse("v(20)").unit == "%" and Metric.parse("d(2)").unit == "Gy"
    assert Metric.parse("ci")(dose, prescription=0.0, body=dose) == 1.0 and Metric.parse("ci").unit == ""


@pytest.mark.parametrize("text", ["d95", "d(101)", "v(-3)", "median", "d()", ""])
def test_a_metric_that_is_none_names_those_that_are(text):
    with pytest.raises(InputError, match="d\\(q\\)"):
        Metric.parse(text)


def test_metrics_refuse_what_they_cannot_measure():
    with pytest.raises(InputError, match="no voxel"):
        Metric.parse("mean")(torch.zeros(0))
    with pytest.raises(InputError, match="prescription"):
        Metric.parse("ci")(torch.ones(3))
