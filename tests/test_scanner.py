"""Scanner folders of MCsquare: densities and materials to stopping powers, and what may be wrong with them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tiny_case import tiny

from torchimpt.checks import InputError
from torchimpt.hu_table import read_hu_table
from torchimpt.planning.load import load_machine

POWERS = {"Air": 6.5, "Water": 7.25, "Bone": 6.8}
"""Mass stopping powers at 100 MeV, MeV cm^2/g."""


@pytest.fixture
def scanner(tmp_path) -> Path:
    """`Scanners/clinic` beside `Materials`: air up to -950 HU, water up to 150, bone above; densities between as MCsquare's."""
    folder = tmp_path / "Scanners" / "clinic"
    folder.mkdir(parents=True)
    (folder / "HU_Density_Conversion.txt").write_text("# HU density g/cm3\n\n-1000 0.001 # air\n0\t1.0\r\n1000  1.6\n")
    (folder / "HU_Material_Conversion.txt").write_text("# =====\n# HU\tMaterial label\n-1050 1 # Air\n-950 17 # Water\n150 38\n")
    materials = tmp_path / "Materials"
    for name, power in POWERS.items():
        (materials / name).mkdir(parents=True)
        (materials / name / "G4_Stop_Pow.dat").write_text(f"99.0 \t {power + 0.2}\n101.0\t{power - 0.2}\n")
    (materials / "list.dat").write_bytes(b"1 Air\t# gas\r\n17 Water\r\n\r\n38 Bone\t\t# hard\r\n")
    return folder


def rsp(folder: Path, *hu: float) -> list[float]:
    return read_hu_table(folder)(torch.tensor(hu, dtype=torch.float64)).tolist()


def test_density_times_relative_mass_stopping_power(scanner):
    air, bone = POWERS["Air"] / POWERS["Water"], POWERS["Bone"] / POWERS["Water"]
    got = rsp(scanner, -1000.0, -970.0, 0.0, -500.0, 500.0, 1000.0)
    assert got == pytest.approx([0.001 * air, (0.001 + 0.03 * 0.999) * air, 1.0, 0.5005, 1.3 * bone, 1.6 * bone], rel=1e-12)


def test_a_material_begins_above_its_hu(scanner):
    """As in MCsquare: the CT number of a row still has the material of the row before."""
    density = 1.09
    at, above = rsp(scanner, 150.0, 150.001)
    assert at == pytest.approx(density, rel=1e-12)
    assert above == pytest.approx((density + 6e-7) * POWERS["Bone"] / POWERS["Water"], rel=1e-12)


def test_the_first_material_counts_below_its_row_and_rows_beyond_the_densities_are_no_entries(scanner):
    (scanner / "HU_Material_Conversion.txt").write_text("-500 17\n1000 38\n3000 38\n")
    table = read_hu_table(scanner)
    assert table.hu.tolist() == [-1000.0, 0.0, 1000.0] and table.rsp.tolist() == [0.001, 1.0, 1.6] and table.name == str(scanner)


@pytest.mark.parametrize("place", ["Scanners/clinic/Materials", "Scanners/Materials"])
def test_materials_in_or_beside_the_scanner(scanner, tmp_path, place):
    expected = rsp(scanner, 500.0)
    (tmp_path / "Materials").rename(tmp_path / place)
    assert rsp(scanner, 500.0) == expected


def test_a_relative_path_finds_its_materials(scanner, monkeypatch):
    monkeypatch.chdir(scanner)
    assert float(read_hu_table(".")(torch.tensor(0.0))) == 1.0


def test_the_machine_of_a_case_has_the_scanners_table(scanner, tmp_path):
    table = load_machine(tiny(tmp_path, 'machine.hu_table="Scanners/clinic"')).hu_table
    assert table.name == str(scanner) and table(torch.tensor(500.0)) == pytest.approx(1.3 * POWERS["Bone"] / POWERS["Water"], rel=1e-12)


def test_no_materials_says_where_it_looked(scanner, tmp_path):
    shutil.rmtree(tmp_path / "Materials")
    with pytest.raises(
        InputError, match=r"needs MCsquare's folder Materials.*clinic/Materials, .*Scanners/Materials, .*; copy or link"
    ) as e:
        read_hu_table(scanner)
    assert str(tmp_path / "Materials") in str(e.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("HU_Density_Conversion.txt", "0 1\n-10 0.9\n", r"HU_Density_Conversion.txt must ascend in HU, but -10 follows 0"),
        ("HU_Material_Conversion.txt", "0 1\n0 17\n", r"HU_Material_Conversion.txt must ascend in HU, but 0 follows 0"),
        ("HU_Density_Conversion.txt", "-1000 -0.1\n0 1\n", r"negative density, -0.1 g/cm3"),
        ("HU_Density_Conversion.txt", "-1000 0.001\n0 nan\n", r"line 2, column density_g_cm3: expected a number, got 'nan'"),
        (
            "HU_Density_Conversion.txt",
            "-1000 1\n0 1000\n",
            r"gives water .0 HU. a relative stopping power of 1000, which must be 0.9 to 1.1",
        ),
        (
            "HU_Density_Conversion.txt",
            "",
            r"HU_Density_Conversion.txt has no row of numbers; it must have the columns HU and density_g_cm3",
        ),
        ("HU_Density_Conversion.txt", "0\n", r"line 1: expected 2 numbers separated by white space, HU and density_g_cm3, got '0'"),
        ("HU_Material_Conversion.txt", "-1000 17\n0 99\n", r"names the material 99, which is not in .*list.dat"),
        ("../../Materials/list.dat", "1 Air\n17\n", r"list of materials: .*list.dat cannot be read"),
        ("../../Materials/Bone/G4_Stop_Pow.dat", "1 200\n50 12\n", r"positive stopping power at 100 MeV, got 0 MeV cm2/g"),
        ("../../Materials/Bone/G4_Stop_Pow.dat", "110 7\n90 8\n", r"must ascend in energy"),
    ],
)
def test_wrong_contents(scanner, name, text, message):
    (scanner / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_hu_table(scanner)


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("HU_Material_Conversion.txt", r"a folder without HU_Material_Conversion.txt; a folder as HU table is a scanner of MCsquare"),
        ("../../Materials/Bone/G4_Stop_Pow.dat", r"stopping power of the material Bone: no file .*G4_Stop_Pow.dat"),
    ],
)
def test_missing_files(scanner, gone, message):
    (scanner / gone).unlink()
    with pytest.raises(InputError, match=message):
        read_hu_table(scanner)


def test_another_folder(tmp_path):
    with pytest.raises(InputError, match=r"a folder without HU_Density_Conversion.txt and HU_Material_Conversion.txt"):
        read_hu_table(tmp_path)


def test_binary_files(scanner):
    (scanner / "HU_Density_Conversion.txt").write_bytes(bytes(range(128, 256)))
    with pytest.raises(InputError, match=r"HU_Density_Conversion.txt is not text in UTF-8"):
        read_hu_table(scanner)
