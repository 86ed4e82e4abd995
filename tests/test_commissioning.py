"""A known machine comes back from noisy tables, within its stated errors; derivatives; the machine file; bad configurations and files."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_case import command

from torchimpt.case import load_case
from torchimpt.checks import InputError
from torchimpt.commissioning import Commissioning, commission, read_tables, write_commissioning
from torchimpt.commissioning.fit import phase_space, standard_errors
from torchimpt.constants import IDD_GY_MM2_PER_MEV_CM2_G
from torchimpt.machine import read_commissioned_machine, read_csv_machine
from torchimpt.machine.optics import drift
from torchimpt.machine.parametric import DOSE, RANGE, SCATTER, SHARE, WIDE, depth_dose, scatter_basis, share_basis, wide_basis
from torchimpt.physics.bragg import (
    FLUENCE_SLOPE,
    LOCAL_FRACTION,
    RANGE_FACTOR,
    RANGE_POWER,
    bragg_curve,
    range_from_energy,
    range_straggling,
)  # fmt: skip
from torchimpt.planning.load import load_machine

ENERGIES, SPREAD = (80.0, 120.0, 160.0), 0.008
OPTICS = {"x": (4.0, 0.003, -0.4), "y": (5.0, 0.002, 0.3)}
SCATTER_TRUE, SHARE_TRUE, WIDE_TRUE = np.array([1.1, -0.05]), np.array([0.1, 0.05, -0.06]), np.array([150.0, 80.0, -40.0])
NOISE = {"dose": 0.003, "air": 0.01, "core": 0.02, "share": 0.002, "wide": 0.3}
"""Of depth doses in shares of value and tenth of the maximum, of widths in mm; that of the halo's width goes as 0.1 / share."""


def write(path: Path, header: str, rows: list[list[float]]) -> None:
    path.write_text("\n".join([header, *(",".join(repr(float(v)) for v in row) for row in rows)]) + "\n")


def truth(energy: float) -> dict[str, float]:
    """Bortfeld's curve is one of these: its two terms in closed form, and nothing in the others."""
    mean_range, a = float(range_from_energy(energy)), 1.0 / RANGE_POWER
    scale = 10.0 * IDD_GY_MM2_PER_MEV_CM2_G / (RANGE_FACTOR**a * (1.0 + FLUENCE_SLOPE * mean_range))
    dose = (scale * a * 100.0 ** (a - 1.0), scale * FLUENCE_SLOPE * (a + LOCAL_FRACTION) * 100.0**a, 0.0, 0.0, 0.0)
    return dict(zip(
        (*RANGE, *DOSE, *SCATTER, *SHARE, *WIDE),
        (mean_range, float(range_straggling(energy, SPREAD * energy)), *dose, *SCATTER_TRUE, *SHARE_TRUE, *WIDE_TRUE),
        strict=True,
    ))  # fmt: skip


def write_tables(folder: Path, generator: torch.Generator) -> None:
    """Tables of the known machine, depth doses by Bortfeld's formula itself, and the configuration."""
    normal = lambda n, size: size * torch.randn(n, generator=generator, dtype=torch.float64).numpy()  # noqa: E731
    dose, air, water = [], [], []
    planes = np.linspace(-200.0, 200.0, 9)
    for energy in ENERGIES:
        known = truth(energy)
        mean_range, spread = known["range_mm"], known["spread_mm"]
        z = np.arange(0.25, mean_range + 10.0, 0.5)
        exact = bragg_curve(torch.from_numpy(z), energy, SPREAD * energy).numpy()
        dose += list(
            zip(np.full(len(z), energy), z, (exact + normal(len(z), NOISE["dose"]) * (exact + 0.1 * exact.max())).clip(0), strict=True)
        )
        x, y = (np.sqrt(drift(*OPTICS[axis], -planes)) + normal(len(planes), NOISE["air"]) for axis in "xy")
        air += list(zip(np.full(9, energy), planes, x, y, strict=True))
        z = np.arange(0.5, mean_range + 4.0, 1.0)
        core = np.sqrt(16.0 + scatter_basis(z, mean_range) @ SCATTER_TRUE) + normal(len(z), NOISE["core"])
        share = share_basis(z, mean_range, spread) @ SHARE_TRUE
        wide = np.sqrt(16.0 + wide_basis(z, mean_range) @ WIDE_TRUE) + normal(len(z), NOISE["wide"]) * 0.1 / share.clip(0.02)
        measured = (share + normal(len(z), NOISE["share"])).clip(0.0, 1.0)
        water += list(zip(np.full(len(z), energy), z, core, wide, measured, strict=True))
    write(folder / "idd.csv", "energy_MeV,depth_mm,idd_Gy_mm2_per_1e6_protons", dose)
    write(folder / "air.csv", "energy_MeV,z_mm,sigma_x_mm,sigma_y_mm", air)
    write(folder / "sigma.csv", "energy_MeV,depth_mm,sigma1_mm,sigma2_mm,halo_fraction", water)
    write(folder / "mu.csv", "energy_MeV,protons_per_mu", [[80.0, 1e8], [160.0, 1.5e8]])
    (folder / "config.toml").write_text(CONFIG)


CONFIG = """name = "known"
sad_mm = [2000.0, 2560.0]
[depth_dose]
path = "idd.csv"
bins = false
[air]
path = "air.csv"
[water]
path = "sigma.csv"
[calibration]
path = "mu.csv"
"""


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> Path:
    """The tables' folder: tests change copies of it."""
    folder = tmp_path_factory.mktemp("tables")
    write_tables(folder, torch.Generator().manual_seed(7))
    return folder


@pytest.fixture(scope="module")
def fitted(tables) -> Commissioning:
    return commission(read_tables(tables / "config.toml"))


@pytest.fixture
def config(tables, tmp_path) -> Path:
    """A copy's configuration."""
    return Path(shutil.copytree(tables, tmp_path / "tables")) / "config.toml"


def deviations(fitted: Commissioning) -> dict[str, np.ndarray]:
    """How many standard errors each parameter is off, by name, `(n_energies,)`."""
    found = {}
    for i, energy in enumerate(ENERGIES):
        known = truth(energy) | {
            f"{part}_{axis}{unit}": OPTICS[axis][k]
            for axis in "xy" for k, (part, unit) in enumerate((("sigma", "_mm"), ("divergence", "_rad"), ("correlation", "")))
        }  # fmt: skip
        for section in ("curves", "optics"):
            values, errors = fitted.sections[section], fitted.sections[f"{section}_error"]
            for name in set(values) - {"energy_mev"}:
                found.setdefault(name, []).append((values[name][i] - known[name]) / errors[name][i])
    return {name: np.array(values) for name, values in found.items()}


def test_a_known_machine_comes_back_within_its_errors(fitted):
    """All of 21 parameters at three energies; errors are neither too small nor too large."""
    off = deviations(fitted)
    assert len(off) == 21
    for name, values in off.items():
        # of 63 normal deviates one in ten thousand exceeds 4.5
        assert np.abs(values).max() < 4.5, name
    everything = np.concatenate(list(off.values()))
    # parameters of a curve are correlated, so fewer are independent: between a half and twice
    assert 0.5 < float(np.sqrt(np.mean(everything**2))) < 1.6


def test_errors_are_as_small_as_clinics_need(fitted):
    errors = fitted.sections["curves_error"]
    assert errors["range_mm"].max() < 0.02 and errors["spread_mm"].max() < 0.02
    assert fitted.mean_energy == pytest.approx(ENERGIES, abs=0.02)
    assert fitted.energy_spread == pytest.approx([SPREAD * e for e in ENERGIES], rel=0.05)
    assert fitted.sections["optics_error"]["sigma_x_mm"].max() < 0.01


def test_its_dose_is_the_known_ones(fitted):
    """Depth doses, widths and shares between the tables' energies, too."""
    tables = fitted.machine.layers([80.0, 120.0, 140.0, 160.0])
    for i, energy in enumerate((80.0, 120.0, 140.0, 160.0)):
        z = tables.depth_step[i] * torch.arange(tables.idd.shape[1], dtype=torch.float64)
        exact = bragg_curve(z, energy, SPREAD * energy)
        # noise of 0.3 %, and at 140 MeV what scaled range leaves between energies 40 MeV apart
        assert float((tables.idd[i] - exact).abs().max() / exact.max()) < (0.02 if energy == 140.0 else 0.006)
        inside = z.numpy() < truth(energy)["range_mm"]
        core = scatter_basis(z.numpy(), truth(energy)["range_mm"]) @ SCATTER_TRUE
        sigma = np.sqrt(16.0 + tables.variance[0, i].numpy())
        assert np.abs(sigma - np.sqrt(16.0 + core))[inside].max() < 0.05
        assert float(tables.fraction.sum(dim=0).sub(1.0).abs().max()) < 1e-12
    assert fitted.machine.n_components == 2 and not tables.round
    assert float(fitted.machine.protons_per_mu(120.0)) == pytest.approx(125.0)


def smeared(x: torch.Tensor, p: float) -> torch.Tensor:
    """`S_p(x)` by the trapezoidal rule over `t = u^8`, in which the integrand is smooth for every p: the oracle, which autograd sees through."""
    u = torch.linspace(0.0, 3.2, 20001, dtype=torch.float64)
    t = u**8
    integrand = 8.0 * u ** (8.0 * p - 1.0) * torch.exp(-0.5 * (t - x[:, None]) ** 2) / math.sqrt(2.0 * math.pi)
    return torch.trapezoid(integrand, u, dim=1)


def test_derivatives_are_those_of_autograd_through_a_plain_oracle():
    """Values and derivatives with respect to range and spread, before, in and behind the peak."""
    depth = torch.tensor([0.0, 30.0, 90.0, 97.0, 99.0, 100.0, 101.5, 104.0], dtype=torch.float64)
    mean_range, spread = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (100.0, 1.7))
    found = depth_dose(depth.numpy(), 100.0, 1.7)
    a = 1.0 / RANGE_POWER
    x = (mean_range - depth) / spread
    terms = [(spread / 100.0) ** (a + k - 1.0) * smeared(x, a + k) for k in range(4)]
    terms.append(-torch.exp(-depth / 15.0) * 0.5 * torch.erfc(-x / math.sqrt(2.0)))
    for k, term in enumerate(terms):
        np.testing.assert_allclose(found[0][:, k], term.detach().numpy(), rtol=1e-6, atol=1e-12)
        for j in range(len(depth)):
            wanted = torch.autograd.grad(term[j], (mean_range, spread), retain_graph=True)
            # the series of Gaussians behind the peak and the slope's difference keep seven digits
            assert [found[1][j, k], found[2][j, k]] == pytest.approx([float(v) for v in wanted], rel=1e-5, abs=1e-10)


def test_a_beam_of_no_divergence_has_none_and_no_error_is_made_up():
    z = np.linspace(-100.0, 100.0, 5)
    values, errors = phase_space(z, np.full(5, 6.0))
    assert values[0] == pytest.approx(6.0, abs=1e-6) and values[1] < 1e-5 and math.isfinite(errors[0])
    assert np.isnan(standard_errors(np.eye(3), np.ones(3))).all()


def test_written_whole_and_read_back(tmp_path, fitted):
    files = write_commissioning(tmp_path / "machine", fitted)
    assert {"machine.toml", "residuals.csv", "depth_dose.png", "core.png", "halo_share.png"} <= set(files)
    assert all((tmp_path / "machine" / file).stat().st_size > 1000 for file in files)
    for path in (tmp_path / "machine", tmp_path / "machine" / "machine.toml"):
        machine = read_commissioned_machine(path)
        assert machine.fingerprint == fitted.machine.fingerprint and machine.name == "known" and machine.sad == (2000.0, 2560.0)
        torch.testing.assert_close(machine.protons_per_mu([80.0, 120.0]), fitted.machine.protons_per_mu([80.0, 120.0]), rtol=0, atol=0)
    (tmp_path / "case.toml").write_text(
        '[patient]\nsource = "phantom"\nname = "water"\n[machine]\nformat = "torchimpt"\npath = "machine"\n'
    )
    assert load_machine(load_case(tmp_path / "case.toml")).fingerprint == fitted.machine.fingerprint
    with pytest.raises(InputError, match="is not empty; choose another folder"):
        write_commissioning(tmp_path / "machine", fitted)


def test_the_command_prints_what_was_fitted_and_where_it_lies(config):
    found = command("commission", "config.toml", "--out", "machine", cwd=config.parent)
    assert found.status == 0, found.err
    assert re.search(r"80\.00 +51\.[34]\d+ \+- 0\.0", found.out) and '[machine] format = "torchimpt", path = "machine"' in found.out
    assert read_commissioned_machine(config.parent / "machine").name == "known"
    found = command("commission", "confg.toml", "--out", "other", cwd=config.parent)
    assert found.status == 2 and "no file confg.toml (did you mean 'config.toml'?)" in found.err
    assert not (config.parent / "other").exists()


def test_without_water_and_calibration_there_is_one_gaussian_by_the_formula(config):
    config.write_text(CONFIG[: CONFIG.index("[water]")])
    result = commission(read_tables(config))
    assert result.machine.n_components == 1 and result.machine.calibration is None
    assert result.sections["curves"]["scatter"].tolist() == [1.0, 1.0, 1.0] and np.isnan(result.sections["curves_error"]["scatter"]).all()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "known"\n', "", "config.toml needs name"),
        ("[air]", "[airs]", r"unknown key 'airs' .did you mean 'air'"),
        ("sad_mm = [2000.0, 2560.0]", "sad_mm = [200.0, 256.0]", r"sad_mm must be two distances of 500 mm or more, \[x, y\], got \[200.0"),
        ('path = "air.csv"', 'path = "gone.csv"', r"no file .*gone\.csv"),
        ('path = "air.csv"', "file = 3", r"\[air\] needs path"),
        ("bins = false", "bins = 3", "depth_dose.bins must be true or false, got 3"),
        ("bins = false", "bin = false", r"unknown key 'depth_dose.bin' .did you mean 'bins'"),
        ("[depth_dose]", "[depth_dose", "is not valid TOML"),
    ],
)
def test_bad_configurations(config, old, new, message):
    assert old in CONFIG
    config.write_text(CONFIG.replace(old, new))
    with pytest.raises(InputError, match=message):
        read_tables(config)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("air.csv", lambda c: {**c, "sigma_x_mm": c["sigma_x_mm"] / 10}, r"air.csv: sigma_x_mm must lie between 1 and 50, got 0\.\d+ to .*unit"),
        ("air.csv", lambda c: {k: v[c["z_mm"] < -100] for k, v in c.items()}, r"\[air\] has two planes of 80 MeV; a size"),
        ("air.csv", lambda c: {k: v for k, v in c.items() if k != "z_mm"}, r"several rows of 80 MeV; a column z_mm has to say"),
        ("air.csv", lambda c: {k: v[c["energy_MeV"] > 100] for k, v in c.items()}, r"\[air\] spans 120 to 160 MeV, but \[depth_dose\] 80"),
        ("air.csv", lambda c: {k: v for k, v in c.items() if k != "sigma_y_mm"}, "has no column sigma_y_mm"),
        ("idd.csv", lambda c: {**c, "idd_Gy_mm2_per_1e6_protons": -c["idd_Gy_mm2_per_1e6_protons"]}, "idd_Gy_.* must lie between 0 and 100, got -"),
        ("idd.csv", lambda c: {**c, "depth_mm": c["depth_mm"][::-1]}, r"\[depth_dose\] depth_mm must ascend within 80 MeV"),
        ("idd.csv", lambda c: {k: v[:9] for k, v in c.items()}, r"\[depth_dose\] has 9 rows of 80 MeV, 20 are needed"),
        ("idd.csv", lambda c: {**c, "depth_mm": c["depth_mm"] / 10}, r"idd.csv: the range of 80 MeV is 5\.\d+ mm, that of protons in water is 51"),
        ("sigma.csv", lambda c: {k: v[c["energy_MeV"] > 100] for k, v in c.items()}, r"must have the same energies, but only one of them has 80 MeV"),
        ("sigma.csv", lambda c: {k: v for k, v in c.items() if k != "sigma2_mm"}, "must have both of sigma2_mm and halo_fraction"),
        ("mu.csv", lambda c: {**c, "energy_MeV": c["energy_MeV"][::-1]}, "mu.csv: energy_MeV must ascend"),
        ("mu.csv", lambda c: {**c, "protons_per_mu": c["protons_per_mu"] / 1e6}, "protons_per_mu must lie between 1000 and"),
    ],
)  # fmt: skip
def test_bad_tables(config, file, change, message):
    path = config.parent / file
    names = path.read_text().splitlines()[0].split(",")
    columns = change(dict(zip(names, np.loadtxt(path, delimiter=",", skiprows=1).T, strict=True)))
    write(path, ",".join(columns), np.stack(list(columns.values()), axis=1).tolist())
    with pytest.raises(InputError, match=message):
        read_tables(config)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("version = 1", "version = 2", "is of version 2 of its format, and this torchimpt reads 1; commission the machine anew"),
        ("version = 1", "", "is of version None"),
        ('format = "torchimpt machine"', 'format = "machine"', "must say format = 'torchimpt machine', got 'machine'"),
        ("[optics]", "[optic]", r"has no section \[optics\] .did you mean 'optic'"),
        ("range_mm", "range_cm", r"\[curves\] has no range_mm .did you mean 'range_cm'"),
        ("[80.0, 120.0, 160.0]", "[80.0, 160.0, 120.0]", r"\[curves\] energy_mev must ascend, but 120 follows 160"),
        ("[80.0, 120.0, 160.0]", "[80.0, 120.0]", r"\[curves\] range_mm must have 2 numbers, one an energy, got 3"),
        ("sad_mm = [2000.0, 2560.0]", "sad_mm = 2", "sad_mm must be two numbers, mm, got 2"),
        ("sad_mm = [2000.0, 2560.0]", "sad_mm = [200.0, 256.0]", "sad must be two positive distances"),
        ("dose_0 = [", "dose_0 = [nan, ", "dose_0 must be an array of finite numbers"),
        ("range_mm = [", "range_mm = [-", r"\[curves\] range_mm must be positive, got -5"),
        ("name =", "name", "is not valid TOML"),
    ],
)
def test_bad_machine_files(tmp_path, fitted, old, new, message):
    write_commissioning(tmp_path / "machine", fitted)
    file = tmp_path / "machine" / "machine.toml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(InputError, match=message) as error:
        read_commissioned_machine(file)
    assert "machine.toml" in str(error.value)


@pytest.mark.slow
def test_monte_carlo_tables(tmp_path, shared):
    """Simulated depth doses and widths: what the formulas leave of them, and the dose of the fit against the tables read as they are."""
    folder = shared / "data" / "mc"
    config = tmp_path / "config.toml"
    sections = {"depth_dose": "idd", "air": "beam_model", "water": "sigma"}
    config.write_text(
        'name = "mc"\nsad_mm = [2000.0, 2000.0]\n' + "".join(f'[{key}]\npath = "{folder}/{file}.csv"\n' for key, file in sections.items())
    )
    result, known = commission(read_tables(config)), read_csv_machine(folder)
    for r in result.residuals:
        rms = float(np.sqrt(np.mean((r.fitted - r.given) ** 2)))
        # the peak's shoulder is not a Gaussian's; widths of the core have 0.03 mm of noise
        limit = {"depth_dose": 0.0035 * r.given.max(), "core": 0.1, "halo_share": 0.011, "halo_sigma": 3.5}.get(r.table, 1e-6)
        assert rms < limit, (r.table, r.energy)
    energies = torch.arange(70.0, 231.0, 5.0, dtype=torch.float64)
    torch.testing.assert_close(result.machine.r80(energies), known.r80(energies), rtol=0, atol=0.2)
    torch.testing.assert_close(result.machine.curves.integral_at(energies), known.curves.integral_at(energies), rtol=5e-3, atol=0)
