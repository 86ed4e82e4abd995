"""HU tables: the default one derived again, interpolation, steps, files, and the map of a patient."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from torchimpt.checks import InputError, PhysicsWarning
from torchimpt.hu_table import HuTable, default_hu_table, read_hu_table

# element: Z, A, mean excitation energy in compounds, eV (ICRU Report 37)
ELEMENTS = {
    "H": (1, 1.008, 19.2), "C": (6, 12.011, 81.0), "N": (7, 14.007, 82.0), "O": (8, 15.999, 106.0), "Na": (11, 22.990, 168.4),
    "Mg": (12, 24.305, 176.3), "P": (15, 30.974, 195.5), "S": (16, 32.06, 203.4), "Cl": (17, 35.45, 180.0), "Ar": (18, 39.95, 188.0),
    "K": (19, 39.098, 214.7), "Ca": (20, 40.078, 215.8), "Fe": (26, 55.845, 323.2),
}  # fmt: skip

# HU of its row in the table: density, g/cm^3, mass fractions (ICRU Report 44; spongiosa ICRP Publication 23)
TISSUES = {
    -999: (0.001205, {"N": 0.755, "O": 0.232, "Ar": 0.013}),
    -741: (0.26, {"H": 0.103, "C": 0.105, "N": 0.031, "O": 0.749, "Na": 0.002, "P": 0.002, "S": 0.003, "Cl": 0.003, "K": 0.002}),
    -77: (0.95, {"H": 0.114, "C": 0.598, "N": 0.007, "O": 0.278, "Na": 0.001, "S": 0.001, "Cl": 0.001}),
    43: (1.05, {"H": 0.102, "C": 0.143, "N": 0.034, "O": 0.710, "Na": 0.001, "P": 0.002, "S": 0.003, "Cl": 0.001, "K": 0.004}),
    102: (1.10, {"H": 0.096, "C": 0.099, "N": 0.022, "O": 0.744, "Na": 0.005, "P": 0.022, "S": 0.009, "Cl": 0.003}),
    287: (1.18, {"H": 0.085, "C": 0.404, "N": 0.028, "O": 0.367, "Na": 0.001, "Mg": 0.001, "P": 0.034, "S": 0.002, "Cl": 0.002, "K": 0.001, "Ca": 0.074, "Fe": 0.001}),
    1524: (1.92, {"H": 0.034, "C": 0.155, "N": 0.042, "O": 0.435, "Na": 0.001, "Mg": 0.002, "P": 0.103, "S": 0.003, "Ca": 0.225}),
}  # fmt: skip
WATER = {"H": 0.1119, "O": 0.8881}


def attenuation(mixture: dict[str, float]) -> float:
    """Schneider et al. 2000: linear attenuation per density, up to a constant."""
    return sum(
        w / ELEMENTS[e][1] * (ELEMENTS[e][0] + 1.24e-3 * ELEMENTS[e][0] ** 2.86 + 3.06e-5 * ELEMENTS[e][0] ** 4.62)
        for e, w in mixture.items()
    )


def mass_stopping(mixture: dict[str, float]) -> float:
    """Bethe's formula at 100 MeV without corrections, up to a constant."""
    electrons = {e: w * ELEMENTS[e][0] / ELEMENTS[e][1] for e, w in mixture.items()}
    total = sum(electrons.values())
    log_i = sum(n * math.log(ELEMENTS[e][2]) for e, n in electrons.items()) / total
    beta2 = 1 - 1 / (1 + 100 / 938.272) ** 2
    return total * (math.log(2 * 0.510999e6 * beta2 / (1 - beta2)) - beta2 - log_i)


@pytest.mark.parametrize("hu", TISSUES)
def test_default_table_follows_from_compositions(hu):
    density, mixture = TISSUES[hu]
    table = default_hu_table()
    row = table.hu.tolist().index(hu)
    assert 1000 * (density * attenuation(mixture) / attenuation(WATER) - 1) == pytest.approx(hu, abs=0.5)
    assert float(table.rsp[row]) == pytest.approx(density * mass_stopping(mixture) / mass_stopping(WATER), abs=1e-4)


def test_default_table_at_water_air_and_its_top():
    table = default_hu_table()
    assert float(table(torch.tensor(0.0))) == 1.0
    assert 0.0 < float(table(torch.tensor(-1000.0))) < 0.002
    slope = (table.rsp[-2] - table.rsp[-3]) / (table.hu[-2] - table.hu[-3])
    assert float(table.rsp[-1]) == pytest.approx(float(table.rsp[-2] + slope * (table.hu[-1] - table.hu[-2])), abs=1e-3)
    assert bool((table.rsp.diff() >= 0).all())


def test_interpolates_and_keeps_the_end_values():
    table = HuTable(torch.tensor([-1000.0, 0.0, 1000.0]), torch.tensor([0.0, 1.0, 1.5]), "t")
    hu = torch.tensor([[-2000.0, -1000.0, -250.0], [0.0, 500.0, 1000.0]], dtype=torch.float32)
    expected = torch.tensor([[0.0, 0.0, 0.75], [1.0, 1.25, 1.5]], dtype=torch.float64)
    torch.testing.assert_close(table(hu), expected, rtol=0, atol=1e-15)


def test_a_step_takes_its_upper_value_from_its_hu_on():
    table = HuTable(torch.tensor([-100.0, 0.0, 0.0, 100.0]), torch.tensor([0.9, 0.95, 1.05, 1.1], dtype=torch.float64), "step")
    rsp = table(torch.tensor([-1e-9, 0.0, 50.0], dtype=torch.float64))
    torch.testing.assert_close(rsp, torch.tensor([0.95, 1.05, 1.075], dtype=torch.float64), rtol=0, atol=1e-9)


def test_warns_above_the_last_entry_only():
    table = HuTable(torch.tensor([-1000.0, 100.0]), torch.tensor([0.0, 1.1]), "short")
    with pytest.warns(PhysicsWarning, match=r"2 voxels lie above the last entry of HU table 'short' \(100 HU.*up to 900"):
        rsp = table(torch.tensor([50.0, 300.0, 900.0]))
    assert rsp[1] == rsp[2] == table.rsp[-1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table(torch.tensor([-3000.0, 100.0]))


@pytest.mark.parametrize(
    ("hu", "rsp", "message"),
    [
        ([0.0], [1.0], "two or more pairs"),
        ([0.0, 1.0], [1.0], "two or more pairs"),
        ([0.0, math.nan], [1.0, 1.0], "NaN"),
        ([0.0, -10.0], [1.0, 0.9], "must ascend in hu, but -10 follows 0"),
        ([-1000.0, 0.0], [-0.1, 1.0], "negative rsp"),
        (
            [-1000.0, 0.0, 100.0, 200.0],
            [0.0, 1.0, 1.7, 1.2],
            r"'x' falls from rsp 1\.7 to 1\.2 at 200 HU \(entry 4\); stopping power grows with HU",
        ),
    ],
)
def test_wrong_tables(hu, rsp, message):
    with pytest.raises(InputError, match=message):
        HuTable(torch.tensor(hu), torch.tensor(rsp), "x")


def test_small_steps_back_are_those_of_real_tables():
    """MCsquare's scanners have 0.017 where the material changes."""
    assert HuTable([-1000.0, 0.0, 0.0, 500.0], [0.0, 1.017, 1.0, 1.3], "x")(torch.tensor(0.0)) == 1.0


def test_reads_both_column_names_and_ignores_others(tmp_path):
    for name in ("rsp", "rsp_100MeV"):
        path = tmp_path / f"{name}.csv"
        path.write_text(f"\ufeffhu, density,{name}\n-1000,0.001,0.001\n0,1,1\n", encoding="utf-8")
        table = read_hu_table(path)
        assert table.hu.tolist() == [-1000.0, 0.0] and table.rsp.tolist() == [0.001, 1.0] and table.name == str(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hu,rps\n0,1\n1,1\n", "has no column rsp or rsp_100MeV .did you mean 'rps'.*it has hu, rps"),
        ("density,rsp\n0,1\n1,1\n", "has no column hu"),
        ("hu,rsp\n0,1\n1,water\n", "line 3, column rsp: expected a number, got 'water'"),
        ("hu,rsp\n0,1\n1,inf\n", "line 3, column rsp"),
        ("hu,rsp\n0\n1,1\n", "line 2, column rsp: expected a number, got 'None'"),
        ("hu,rsp\n", "no row"),
        ("", "no column hu"),
    ],
)
def test_wrong_files(tmp_path, text, message):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_hu_table(path)


HLUT = "# a clinic's table\n#\n# First column: HU\n-1024.0 0.00324\n200.0   1.2\t# as fat\n\n3071\t2.53061"


@pytest.mark.parametrize("header", ["", "HU RSP\n", "clinic's own table of 2026\nHU RSP\n"])
def test_reads_hlut(tmp_path, header):
    path = tmp_path / "clinic.HLUT"
    path.write_text(header + HLUT)
    table = read_hu_table(path)
    assert table.hu.tolist() == [-1024.0, 200.0, 3071.0] and table.rsp.tolist() == [0.00324, 1.2, 2.53061] and table.name == str(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"clinic.hlut has no row of numbers; it must have the columns HU and RSP, separated by white space"),
        ("# only\n# comments\n", "no row of numbers"),
        ("hu,rsp\n0,1\n", "no row of numbers"),
        ("-1000 0.001\n0 1 2\n", r"line 2: expected 2 numbers separated by white space, HU and RSP, got '0 1 2'"),
        ("-1000 0.001\n0\n", r"line 2: expected 2 numbers"),
        ("-1000 0.001\n0 water\n", r"line 2, column RSP: expected a number, got 'water'"),
        ("-1000 nan\n0 1\n", r"line 1, column RSP: expected a number, got 'nan'"),
        ("-1000 -0.1\n0 1\n", r"negative rsp, -0.1"),
        ("0 1\n-1000 0.001\n", r"must ascend in hu, but -1000 follows 0"),
        ("0 1\n", "two or more pairs"),
    ],
)
def test_wrong_hlut(tmp_path, text, message):
    path = tmp_path / "clinic.hlut"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_hu_table(path)


@pytest.mark.parametrize(
    ("text", "water"),
    [("-1000,0.1\n0,100\n1000,160\n", "100"), ("0,0.001\n1000,1\n4000,2.5\n", "0.001"), ("-1000,0\n-500,0.5\n", "0.5")],
    ids=["percent", "shifted by 1000", "ends below water"],
)
def test_a_table_that_does_not_know_water(tmp_path, text, water):
    path = tmp_path / "table.csv"
    path.write_text("hu,rsp\n" + text)
    with pytest.raises(InputError, match=rf"table.csv' gives water .0 HU. a relative stopping power of {water}, which must be 0.9 to 1.1"):
        read_hu_table(path)


def test_a_table_denser_than_any_metal(tmp_path):
    (tmp_path / "table.csv").write_text("hu,rsp\n-1000,0.001\n0,1\n3000,1e308\n")
    with pytest.raises(InputError, match=r"table.csv' goes up to rsp 1e\+308; stopping powers relative to water are 15 at most"):
        read_hu_table(tmp_path / "table.csv")


@pytest.mark.parametrize("name", ["table.csv", "table.hlut"])
def test_binary_files(tmp_path, name):
    (tmp_path / name).write_bytes(bytes(range(128, 256)))
    with pytest.raises(InputError, match=rf"{name} is not text in UTF-8"):
        read_hu_table(tmp_path / name)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"no file .*nowhere\.csv"):
        read_hu_table(tmp_path / "nowhere.csv")


def test_reference_table_steps_at_water(shared):
    table = read_hu_table(shared / "data" / "mc" / "hu_to_rsp.csv")
    rsp = table(torch.tensor([-1.0, 0.0, 1.0, -700.0]))
    torch.testing.assert_close(rsp, torch.tensor([1.01663, 1.0, 1.02093, 0.32409], dtype=torch.float64), rtol=0, atol=1e-9)


def test_below_a_table_that_does_not_begin_with_air():
    with pytest.warns(PhysicsWarning, match=r"2 voxels lie below the first entry of HU table 'bones' \(50 HU; they go down to -900\)"):
        HuTable(torch.tensor([50.0, 1500.0]), torch.tensor([1.05, 1.8]), "bones")(torch.tensor([-900.0, 0.0, 60.0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        default_hu_table()(torch.tensor([-3024.0]))
