"""The matRad machine: files written by the test, bad files, and the generic machine that matRad ships."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import loadmat, savemat

from torchimpt.checks import InputError
from torchimpt.machine import Machine, generic, read_matrad_machine
from torchimpt.physics.bragg import bragg_curve, range_from_energy

UNIT = 1.602176634e-2
"""MeV cm^2/g per proton in Gy mm^2 per 10^6 protons."""

DISTANCE = np.array([9000.0, 9500.0, 10000.0, 10500.0, 11000.0])


def base_data(energy: float, double: bool = True) -> dict[str, Any]:
    """One energy: Bortfeld's curve on uneven depths, kernels that are easy to check."""
    mean_range = float(range_from_energy(energy))
    depth = np.unique(np.concatenate((np.linspace(0.0, mean_range - 10, 40), np.linspace(mean_range - 10, mean_range + 15, 250))))
    entry = {
        "energy": energy, "depths": depth, "Z": bragg_curve(torch.from_numpy(depth), energy, 0.006 * energy).numpy() / UNIT, "offset": 0.0,
        "initFocus": {"dist": DISTANCE, "sigma": 3.0 + (DISTANCE - 9000.0) / 1000.0 + energy / 1000.0},
    }  # fmt: skip
    if double:
        entry |= {"sigma1": 0.02 * depth, "sigma2": 10.0 + 0 * depth, "weight": 0.1 * depth / depth[-1]}
    else:
        entry |= {"sigma": 0.02 * depth}
    return entry


def save(path: Path, entries: list[dict[str, Any]], **meta: Any) -> Path:
    """A list of structs as MATLAB stores it: a struct array."""
    data = np.empty((1, len(entries)), dtype=[(name, object) for name in entries[0]])
    for i, entry in enumerate(entries):
        data[0, i] = tuple(entry.values())
    savemat(path, {"machine": {"meta": {"SAD": 10000.0, "radiationMode": "protons"} | meta, "data": data}})
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return save(tmp_path / "protons_Test.mat", [base_data(e) for e in (90.0, 100.0, 110.0, 120.0)])


def test_depth_dose_range_and_sources(file):
    machine = read_matrad_machine(file)
    assert (machine.name, machine.sad, machine.n_components, machine.hu_table) == ("protons_Test", (10000.0, 10000.0), 2, None)
    tables = machine.layers([100.0, 105.0])
    z = tables.depth_step[0] * torch.arange(tables.idd.shape[1], dtype=torch.float64)
    exact = bragg_curve(z, 100.0, 0.6)
    assert float((tables.idd[0] - exact).abs().max() / exact.max()) < 2e-3
    torch.testing.assert_close(tables.r80, range_from_energy(tables.energy), rtol=0, atol=0.05)


def test_kernel_in_water_and_hold_beyond_the_range(file):
    tables = read_matrad_machine(file).layers([100.0])
    z = tables.depth_step[0] * torch.arange(tables.idd.shape[1], dtype=torch.float64)
    end = float(tables.r80[0]) + 3.0
    held = z.clamp_max(end)
    last = float(torch.from_numpy(base_data(100.0)["depths"]).max())
    # the tables are linear in the squares between 0.1 mm depths near the peak, and hold from the last depth before R80 + 3 mm
    torch.testing.assert_close(tables.variance[0, 0], (0.02 * held) ** 2, rtol=5e-3, atol=5e-3)
    torch.testing.assert_close(tables.fraction[1, 0], 0.1 * held / last, rtol=0, atol=2e-4)
    torch.testing.assert_close(tables.variance[1, 0], torch.full_like(z, 100.0), rtol=1e-9, atol=0)
    torch.testing.assert_close(tables.fraction.sum(dim=0), torch.ones_like(tables.idd), rtol=0, atol=1e-12)


def test_optics_count_from_the_source(file):
    # dist 9000 is the nozzle, 1000 mm upstream of the isocentre: the thinnest beam lies at Zg = +1000
    tables = read_matrad_machine(file).layers([100.0])
    z = tables.optics_start + tables.optics_step * torch.arange(tables.optics_variance.shape[1], dtype=torch.float64)
    assert (float(z[0]), float(z[-1])) == (-1000.0, 1000.0)
    torch.testing.assert_close(tables.optics_variance[0].sqrt(), 3.1 + (1000.0 - z) / 1000.0, rtol=1e-9, atol=0)


def test_single_gaussian(tmp_path):
    machine = read_matrad_machine(save(tmp_path / "protons_One.mat", [base_data(e, double=False) for e in (90.0, 100.0)]))
    assert machine.n_components == 1
    assert bool((machine.layers([95.0]).fraction == 1).all())


def test_one_energy_and_any_order(tmp_path):
    machine = read_matrad_machine(save(tmp_path / "a.mat", [base_data(100.0)]))
    assert machine.energy_min == machine.energy_max == 100.0
    machine = read_matrad_machine(save(tmp_path / "b.mat", [base_data(e) for e in (110.0, 90.0, 100.0)]))
    assert machine.curves.energy.tolist() == [90.0, 100.0, 110.0]


def test_first_of_several_foci(tmp_path):
    entries = [base_data(e) for e in (90.0, 100.0)]
    for entry in entries:
        entry["initFocus"] = {"dist": np.stack((DISTANCE, DISTANCE)), "sigma": np.stack((0 * DISTANCE + 4.0, 0 * DISTANCE + 9.0))}
    tables = read_matrad_machine(save(tmp_path / "foci.mat", entries)).layers([100.0])
    assert float(tables.optics_variance.min()) == pytest.approx(16.0) and float(tables.optics_variance.max()) == pytest.approx(16.0)


@pytest.mark.parametrize("offset", [2.0, -2.0])
def test_offset_moves_the_curve(tmp_path, offset):
    entries = [base_data(e) | {"offset": offset} for e in (90.0, 100.0)]
    tables = read_matrad_machine(save(tmp_path / "offset.mat", entries)).layers([100.0])
    assert float(tables.r80[0]) == pytest.approx(float(range_from_energy(100.0)) + offset, abs=0.05)


def test_bad_files(tmp_path, file):
    with pytest.raises(InputError, match=r"no file .*gone\.mat; it must be matRad base data"):
        read_matrad_machine(tmp_path / "gone.mat")
    (tmp_path / "text.mat").write_text("no matlab file, " * 40)
    with pytest.raises(InputError, match=r"text\.mat is a damaged \.mat file"):
        read_matrad_machine(tmp_path / "text.mat")
    header = b"MATLAB 7.3 MAT-file".ljust(124, b" ") + b"\x00\x02IM"
    (tmp_path / "new.mat").write_bytes(header + bytes(512))
    with pytest.raises(InputError, match=r"new\.mat is a MATLAB file of version 7\.3; save it again"):
        read_matrad_machine(tmp_path / "new.mat")
    savemat(tmp_path / "other.mat", {"ct": 1.0})
    with pytest.raises(InputError, match="has no variable 'machine' but ct"):
        read_matrad_machine(tmp_path / "other.mat")
    with pytest.raises(InputError, match="is a machine for carbon"):
        read_matrad_machine(save(tmp_path / "carbon.mat", [base_data(90.0)], radiationMode="carbon"))


@pytest.mark.parametrize("name", ["depths", "Z", "sigma2", "weight", "initFocus"])
def test_missing_field_is_named(tmp_path, name):
    entries = [{k: v for k, v in base_data(e).items() if k != name} for e in (90.0, 100.0)]
    with pytest.raises(InputError, match=f"has no field '{name}'"):
        read_matrad_machine(save(tmp_path / "m.mat", entries))


WRONG = [("Z", np.ones(3)), ("weight", np.full(289, np.nan)), ("depths", np.arange(5.0)), ("depths", np.zeros(289))]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_wrong_columns_are_named(tmp_path, name, value):
    entries = [base_data(90.0) | {name: value}, base_data(100.0)]
    with pytest.raises(InputError, match=r"(depths|'Z'|'weight'|'sigma1').* of 90 MeV must"):
        read_matrad_machine(save(tmp_path / "m.mat", entries))


ODD = [
    np.zeros((0, 0)),
    np.nan,
    np.inf,
    "abc",
    np.array([1, "x"], dtype=object),
    1j,
    {"a": 1.0},
    np.full(289, 1e308),
    np.zeros((289, 2)),
]
"""What a field may hold that should be a number or a row of them."""


@pytest.mark.parametrize("name", list(base_data(90.0)))
@pytest.mark.parametrize("value", ODD, ids=[str(number) for number in range(len(ODD))])
def test_no_field_ends_in_a_traceback(tmp_path, name, value):
    for entries in ([base_data(90.0) | {name: value}, base_data(100.0)], [base_data(e) | {name: value} for e in (90.0, 100.0)]):
        with pytest.raises(InputError, match=r"m\.mat") as caught:
            read_matrad_machine(save(tmp_path / "m.mat", entries))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ODD, ids=[str(number) for number in range(len(ODD))])
def test_no_part_of_the_file_ends_in_a_traceback(tmp_path, value):
    entries, path = [base_data(e) for e in (90.0, 100.0)], tmp_path / "m.mat"
    files = [save(path, [e | {"initFocus": e["initFocus"] | {name: value}} for e in entries]).read_bytes() for name in ("dist", "sigma")]
    files.append(save(path, entries, SAD=value).read_bytes())
    for content in ({"machine": value}, {"machine": {"meta": value, "data": 1.0}}, {"machine": {"meta": {"SAD": 1e4}, "data": value}}):
        savemat(path, content)
        files.append(path.read_bytes())
    for content in files:
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"m\.mat") as caught:
            read_matrad_machine(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda e: {"initFocus": {"dist": DISTANCE, "sigma": 0 * DISTANCE}},
            "sigmas in air must lie between 1 and 300 mm, got 0 to 0; check",
        ),
        (lambda e: {"initFocus": {"dist": DISTANCE, "sigma": 0 * DISTANCE + 1e9}}, "sigmas in air must lie between 1 and 300 mm, got 1e"),
        (
            lambda e: {"initFocus": {"dist": DISTANCE, "sigma": 0 * DISTANCE + 0.4}},
            "between 1 and 300 mm, got 0.4 to 0.4; check their unit",
        ),
        (lambda e: {"initFocus": {"dist": DISTANCE / 1000, "sigma": 0 * DISTANCE + 4}}, "must reach from the nozzle past the isocentre"),
        (lambda e: {"initFocus": {"dist": DISTANCE[::-1], "sigma": 0 * DISTANCE + 4}}, "two or more distances that ascend"),
        (
            lambda e: {"sigma1": 1e9 + 0 * e["depths"]},
            "curves of 90 MeV: the lateral sigmas must lie between 0 and 300 mm; check their unit",
        ),
        (lambda e: {"sigma1": -1 - e["depths"]}, "sigma1 and sigma2 of 90 MeV must not be negative"),
        (lambda e: {"weight": 3 + 0 * e["depths"]}, "the shares of the lateral Gaussians must lie between 0 and 1"),
        (lambda e: {"depths": e["depths"] / 10}, r"the range is 6\.\d+ mm, that of protons in water is 6\d\.\d+ mm; check the units"),
        (lambda e: {"depths": e["depths"] * 1e6}, "depths must ascend from 0 to at most 3500 mm"),
        (lambda e: {"energy": e["energy"] * 1e6}, "energies must lie between 1 and 1000 MeV, got 9e"),
        (lambda e: {"Z": -e["Z"]}, r"curves of 90 MeV: the depth dose is negative, -\d.* mm; it must be 0 or more"),
        (lambda e: {"Z": 0 * e["Z"]}, "the depth dose must be positive"),
        (lambda e: {"Z": 1 + 0 * e["Z"]}, "fall below half its maximum at the end"),
    ],
)
def test_numbers_in_other_units_are_told(tmp_path, change, message):
    entries = [base_data(energy) | change(base_data(energy)) for energy in (90.0, 100.0)]
    with pytest.raises(InputError, match=message):
        read_matrad_machine(save(tmp_path / "m.mat", entries))


# ---- the machine that matRad ships


@pytest.fixture(scope="module")
def shipped(shared: Path) -> tuple[Machine, Any]:
    path = shared / "data" / "matrad" / "protons_Generic.mat"
    return read_matrad_machine(path), loadmat(path, squeeze_me=True, struct_as_record=False)["machine"]


def test_shipped_depth_doses_come_back(shipped):
    machine, raw = shipped
    tables = machine.layers([float(entry.energy) for entry in raw.data])
    assert tables.n_layers == 114 and tables.n_components == 2
    for i, entry in enumerate(raw.data):
        z = tables.depth_step[i].item() * np.arange(tables.idd.shape[1])
        fine = np.arange(0.0, entry.depths[-1], 0.02)
        ours, theirs = np.interp(fine, z, tables.idd[i].numpy()), np.interp(fine, entry.depths, entry.Z) * UNIT
        # theirs is linear between depths of up to 2 mm, ours a smooth curve through them
        assert np.abs(ours - theirs).max() < 5e-3 * theirs.max()
        assert ours.sum() == pytest.approx(theirs.sum(), rel=2e-4)
        assert float(tables.peak[i]) == pytest.approx(entry.peakPos, abs=0.35)
    assert bool((tables.r80.diff() > 0).all()) and bool((tables.variance >= 0).all())


def test_shipped_spot_size_at_the_isocentre(shipped):
    machine, raw = shipped
    tables = machine.layers([float(entry.energy) for entry in raw.data])
    at_isocentre = round(-tables.optics_start / tables.optics_step)
    fwhm = torch.tensor([entry.initFocus.SisFWHMAtIso for entry in raw.data], dtype=torch.float64)
    torch.testing.assert_close(tables.optics_variance[:, at_isocentre].sqrt() * 2.354820, fwhm, rtol=1e-4, atol=0)
    # narrowest at the nozzle, upstream
    assert bool((tables.optics_variance.diff(dim=1) <= 0).all())


def test_shipped_integrals_resemble_the_formula(shipped):
    # two independent machines: energy left in the water per proton, within 4 %
    machine, _ = shipped
    energy = torch.linspace(50.0, 230.0, 10, dtype=torch.float64)
    ratio = machine.curves.integral_at(energy) / generic().curves.integral_at(energy)
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=0.04)


def test_shipped_machine_predicts_left_out_energies(shipped):
    machine, _ = shipped
    curves = machine.curves
    by_energy = {name: getattr(curves, name)[::2] for name in ("energy", "r80", "integral", "shape")}
    half = replace(curves, **by_energy, variance=curves.variance[:, ::2], fraction=curves.fraction[:, ::2])
    energy = curves.energy[11:112:2]
    flat = (0.0, 1.0, torch.ones(len(energy), 1, dtype=torch.float64))
    predicted, known = half.layers(energy, *flat), curves.layers(energy, *flat)
    torch.testing.assert_close(predicted.r80, known.r80, rtol=0, atol=0.05)
    torch.testing.assert_close(predicted.idd.max(dim=1).values, known.idd.max(dim=1).values, rtol=5e-3, atol=0)
