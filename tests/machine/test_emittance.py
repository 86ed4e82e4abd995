"""The emittance table: optics, ranges, spreads and calibration of a table written by the test, bad tables, and the clinic's own table."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from test_csv_folder import AIR, HALO, HALO_SIGMA, bin_means, core_variance, write

from torchimpt.case import Case, load_case
from torchimpt.checks import InputError, PhysicsWarning
from torchimpt.machine import Calibration, Machine, read_csv_machine, read_emittance_machine
from torchimpt.physics.bragg import bragg_curve, range_from_energy
from torchimpt.planning.load import load_machine

HEAD = """#"a model",,,,,,,,,
#"BMODPOS 600.0 mm",,,,,,,,,
#"Energy nominal [MeV]","# E real [MeV]","# E real sigma [MeV]","# protons/MU","# sigma x [mm]","# sigma y [mm]","# sigma x' [rad]","# sigma y' [rad]","# cor(x x')","# cor(y y')"
"""
ROWS = [[e, e + 0.5, 0.012 * e, 2e4 * e, 4.0 + 0.01 * e, 3.0, 0.004, 0.003, 0.3, -0.2] for e in (70.0, 81.0, 100.0, 119.0, 138.0, 160.0)]
SPREAD = 0.007
"""Of the curves: `bin_means` makes them with this share of the energy."""


def curves_folder(path: Path) -> Path:
    """A CSV machine whose depth doses are Bortfeld's, every 10 MeV."""
    path.mkdir(exist_ok=True)
    idd, sigma, beam = [], [], []
    for energy in np.arange(80.0, 141.0, 10.0):
        depth, dose = bin_means(energy)
        idd += [[energy, z, d] for z, d in zip(depth, dose, strict=True)]
        inside = depth[depth < float(range_from_energy(energy)) + 3]
        sigma += [[energy, z, math.sqrt(v), HALO_SIGMA, HALO] for z, v in zip(inside, core_variance(inside, energy), strict=True)]
        beam.append([energy, AIR, AIR, 2000, 2000, SPREAD * energy])
    names = "energy_MeV,sigma_x_mm,sigma_y_mm,smx_to_isocentre_mm,smy_to_isocentre_mm,energy_spread_MeV_1sigma"
    write(path / "beam_model.csv", names, beam)
    write(path / "idd.csv", "energy_MeV,depth_mm,idd_Gy_mm2_per_1e6_protons", idd)
    write(path / "sigma.csv", "energy_MeV,depth_mm,sigma1_mm,sigma2_mm,halo_fraction", sigma)
    return path


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return curves_folder(tmp_path_factory.mktemp("curves"))


def table(folder: Path, rows: list[list[float]] = ROWS, head: str = HEAD) -> Path:
    """The table as a file."""
    path = folder / "model.csv"
    path.write_text(head + "".join(",".join(map(repr, row)) + "\n" for row in rows))
    return path


def read(path: Path, curves: Path, plane: float = 600.0) -> Machine:
    return read_emittance_machine(path, plane_mm=plane, curves=curves, sad_mm=(2000.0, 2560.0))


def test_spots_drift_from_the_tables_plane_along_each_axis(tmp_path, curves):
    machine = read(table(tmp_path), curves)
    tables = machine.layers([100.0])
    z = tables.optics_start + tables.optics_step * np.arange(tables.optics_variance.shape[1])
    d = 600.0 - z
    np.testing.assert_allclose(tables.optics_variance[0].numpy(), 25.0 + 2 * 0.3 * 5.0 * 0.004 * d + (0.004 * d) ** 2, rtol=1e-12)
    np.testing.assert_allclose(tables.optics_variance_y[0].numpy(), 9.0 - 2 * 0.2 * 3.0 * 0.003 * d + (0.003 * d) ** 2, rtol=1e-12)
    assert machine.sad == (2000.0, 2560.0) and machine.name == "model" and machine.air_from == 600.0


def test_energies_are_nominal_and_as_many_as_the_curves_have(tmp_path, curves):
    machine = read(table(tmp_path), curves)
    assert (machine.energy_min, machine.energy_max) == (81.0, 138.0)
    source = read_csv_machine(curves)
    for nominal in (81.0, 100.0, 119.0, 138.0):
        # a broader spread moves R80 itself: for 1.2 % of the energy by less than 0.1 mm
        assert float(machine.r80(nominal)) == pytest.approx(float(source.r80(nominal + 0.5)), abs=0.1)
        assert float(machine.curves.integral_at(torch.tensor(nominal, dtype=torch.float64))) == pytest.approx(
            float(source.curves.integral_at(torch.tensor(nominal + 0.5, dtype=torch.float64))), rel=2e-3
        )


def test_depth_dose_is_broadened_to_the_tables_spread(tmp_path, curves):
    """Against Bortfeld's curve of that spread; without broadening the peak is 14 % too high."""
    tables = read(table(tmp_path), curves).layers([100.0])
    z = tables.depth_step[0] * torch.arange(tables.idd.shape[1], dtype=torch.float64)
    broad, narrow = (bragg_curve(z, 100.5, s) for s in (1.2, SPREAD * 100.5))
    assert float((tables.idd[0] - broad).abs().max() / broad.max()) < 0.01
    assert float(narrow.max() / broad.max()) > 1.1
    # widths and shares are those of the curves
    assert float(tables.variance[1, 0].median()) == pytest.approx(HALO_SIGMA**2 - AIR**2, rel=0.01)
    assert float(tables.fraction[1, 0].median()) == pytest.approx(HALO, rel=1e-6)


@pytest.mark.parametrize("protons", [[100.0, -1.0], [100.0, 1e9], [0.0, 100.0], [100.0, float("nan")]])
def test_a_monitor_unit_has_some_protons(protons):
    with pytest.raises(InputError, match="a monitor unit must have more than 0 and at most"):
        Calibration(torch.tensor([70.0, 230.0]), torch.tensor(protons))


def test_calibration_is_linear_between_rows(tmp_path, curves):
    machine = read(table(tmp_path), curves)
    found = machine.protons_per_mu([81.0, 90.5, 138.0])
    torch.testing.assert_close(found, torch.tensor([1.62, 1.81, 2.76], dtype=torch.float64))


def test_curves_broader_than_the_table_stay_so_with_a_warning(tmp_path, curves):
    rows = [[*row[:2], 0.5 if row[0] > 110 else row[2], *row[3:]] for row in ROWS]
    with pytest.warns(
        PhysicsWarning, match=r"between 119 and 138 MeV energies are spread less than those of the curves .* by up to 0\.47 MeV"
    ):
        machine = read(table(tmp_path, rows), curves)
    source = read_csv_machine(curves)
    assert float(machine.width80(119.0)) == pytest.approx(float(source.width80(119.5)), rel=0.01)


def changed(column: int, change, row: int = 2) -> list[list[float]]:
    """The rows with one value changed in one row, or in all."""
    return [[change(v) if i == column and row in (k, -1) else v for i, v in enumerate(r)] for k, r in enumerate(ROWS)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROWS[0], ROWS[2], ROWS[1], *ROWS[3:]], r"'Energy nominal \[MeV\]' must ascend, but 81 follows 100; sort its rows"),
        ([*ROWS[:2], ROWS[1], *ROWS[2:]], "must ascend, but 81 follows 81"),
        (changed(1, lambda v: 80.0), r"'E real \[MeV\]' must ascend, but 80 follows 81\.5"),
        (changed(1, lambda v: 110.0), "a real energy of 110 MeV is 10 % off the nominal 100 MeV; check the columns and their unit"),
        (changed(4, lambda v: v / 10, -1), r"'sigma x \[mm\]' must lie between 1 and 50, got 0\.47 to 0\.56; check that it is mm"),
        (changed(5, lambda v: -v), r"'sigma y \[mm\]' must lie between 1 and 50, got -3 to 3"),
        (changed(6, lambda v: 1e3 * v, -1), r"'sigma x' \[rad\]' must lie between 0 and 0\.1, got 4 to 4; check that it is rad"),
        (changed(2, lambda v: -v), r"'E real sigma \[MeV\]' must lie between 0 and 20, got -1\.2"),
        (changed(3, lambda v: 0.0), "'protons/MU' must lie between 1000 and 1e.12, got 0 to"),
        (changed(9, lambda v: 1.2), r"'cor\(y y'\)' must lie between -1 and 1"),
        (changed(0, lambda v: v * 1e6, -1), "check that it is MeV"),
        (changed(7, lambda v: math.nan), "line 6: expected a number, got 'nan'"),
        ([row[:-1] for row in ROWS], "must have rows of 10 numbers under its head, got 6 of 9"),
        ([], "must have rows of 10 numbers under its head, got 0"),
        ([[10 * row[0], 10 * row[1], *row[2:]] for row in ROWS[:2]], "none of its real energies, 705 to 815 MeV, lies within .* give other curves"),
    ],
)  # fmt: skip
def test_numbers_that_no_beam_has(tmp_path, curves, rows, message):
    with pytest.raises(InputError, match=message) as error:
        read(table(tmp_path, rows), curves)
    assert "model.csv" in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"# sigma y [mm]"', '"# sigma y [cm]"', r"has no column 'sigma y \[mm\]' .did you mean 'sigma y \[cm\]'"),
        ('"# protons/MU"', '"# E"', "has no column 'protons/MU'"),
        ('"Energy nominal', '"Energy', r"has no column 'Energy nominal \[MeV\]'; it has none that it names in its head"),
        ("600.0 mm", "500.0 mm", r"says that its plane lies 500\.0 mm upstream of the isocentre, but plane_mm is 600"),
    ],
)
def test_head_that_lacks_something_or_contradicts(tmp_path, curves, old, new, message):
    assert old in HEAD
    with pytest.raises(InputError, match=message):
        read(table(tmp_path, head=HEAD.replace(old, new)), curves)


def test_plain_head_and_no_word_on_the_plane_will_do(tmp_path, curves):
    plain = HEAD.splitlines()[2].replace("#", "").replace('"', "") + "\n"
    machine = read(table(tmp_path, head=plain), curves, 400.0)
    assert machine.fingerprint != read(table(tmp_path), curves).fingerprint


def test_curves_without_their_energy_spread_and_planes_that_cannot_be(tmp_path, curves):
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in curves.iterdir():
        (bare / path.name).write_text(path.read_text().replace("energy_spread_MeV_1sigma", "spread"))
    with pytest.raises(InputError, match=r"beam_model\.csv has no column energy_spread_MeV_1sigma"):
        read(table(tmp_path), bare)
    with pytest.raises(InputError, match="plane_mm must be 0 to 5000, mm upstream of the isocentre, got -600"):
        read(table(tmp_path), curves, -600.0)
    with pytest.raises(InputError, match=r"no folder .*nowhere"):
        read(table(tmp_path), tmp_path / "nowhere")


CASE = """
[patient]
source = "phantom"
name = "water"
[machine]
format = "emittance"
path = "model.csv"
plane_mm = 600.0
curves = "curves"
sad_mm = [2000.0, 2560.0]
"""


def test_case_file_names_the_machine_by_relative_paths(tmp_path, curves):
    table(tmp_path)
    (tmp_path / "curves").symlink_to(curves)
    (tmp_path / "case.toml").write_text(CASE)
    case = load_case(tmp_path / "case.toml")
    assert load_machine(case).fingerprint == read(tmp_path / "model.csv", curves).fingerprint
    (tmp_path / "again.toml").write_text(case.to_toml())
    assert load_case(tmp_path / "again.toml").machine == case.machine


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("plane_mm = 600.0\n", "", "machine: format = 'emittance' needs plane_mm"),
        ('curves = "curves"\n', "", "machine: format = 'emittance' needs curves"),
        ("sad_mm = [2000.0, 2560.0]\n", "", "machine: format = 'emittance' needs sad_mm"),
        ("[2000.0, 2560.0]", "[2000.0]", r"sad_mm: must be two numbers \[x, y\], mm"),
        ("plane_mm = 600.0", "plane_mm = -1.0", "plane_mm"),
        ('format = "emittance"\npath = "model.csv"', 'format = "csv"\npath = "curves"', "format = 'csv' takes no plane_mm"),
        ('format = "emittance"\npath = "model.csv"', 'name = "generic"', "the generic machine takes no plane_mm"),
    ],
)
def test_case_file_with_keys_too_few_or_too_many(tmp_path, curves, old, new, message):
    table(tmp_path)
    (tmp_path / "curves").symlink_to(curves)
    assert old in CASE
    (tmp_path / "case.toml").write_text(CASE.replace(old, new))
    with pytest.raises(InputError, match=message):
        load_case(tmp_path / "case.toml")


def test_no_keys_of_a_format_are_needed_where_there_is_none():
    assert load_machine(Case(patient={"source": "phantom", "name": "water"})).name == "generic"


def test_the_clinics_own_table(shared):
    """Only with the sign of its correlations as it is do x and y agree at the isocentre, which tells of the plane, too."""
    with pytest.warns(PhysicsWarning, match="between 217.9 and 229.9 MeV energies are spread less"):
        machine = read(shared / "data/dicom/DCPT_beam_model__v5.csv", shared / "data/mc")
    tables = machine.layers([80.0, 120.0, 149.4, 149.45, 200.0])
    at = round(-tables.optics_start / tables.optics_step)
    x, y = tables.optics_variance[:, at].sqrt(), tables.optics_variance_y[:, at].sqrt()
    assert bool(((x / y - 1).abs() < 0.05).all()) and bool(
        (tables.optics_variance[:, -1] > 1.2 * tables.optics_variance_y[:, -1])[2:].any()
    )
    assert float(machine.protons_per_mu(70.0)) == pytest.approx(2.029456)
    assert float(machine.r80(149.4)) == pytest.approx(157.3, abs=0.2)
