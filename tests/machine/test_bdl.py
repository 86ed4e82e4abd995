"""MCsquare's beam data library: what is written is read back, what a machine becomes of it, bad files, and libraries of other programs."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from test_emittance import CASE, curves, table  # noqa: F401

from torchimpt.case import load_case
from torchimpt.checks import InputError, PhysicsWarning
from torchimpt.geometry import RangeShifter
from torchimpt.io.mcsquare.beam_data import beam_data
from torchimpt.machine import Machine, generic, read_bdl_machine, read_csv_machine, read_emittance_machine
from torchimpt.machine.bdl import COLUMNS, BeamDataLibrary, read_beam_data_library
from torchimpt.planning.load import load_machine

ROWS = np.array([[e, e + 0.5, 1.2, 2e7 + e, 4.0, 0.004, 0.3, 3.0, 0.003, -0.2] for e in (81.0, 100.0, 119.0, 138.0)]).T
KEYS = ("nominal", "real", "spread", "protons", "sigma_x", "divergence_x", "correlation_x", "sigma_y", "divergence_y", "correlation_y")


def library(share: float = 0.0) -> BeamDataLibrary:
    """Four energies; a second Gaussian of 20 and 12 mm, parallel."""
    one = np.ones(4)
    columns = dict(zip(KEYS, ROWS, strict=True)) | {"share": (1 - share) * one, "wide_share": share * one}
    wide = {"sigma_x": 20.0, "sigma_y": 12.0, "divergence_x": 0.0, "divergence_y": 0.0, "correlation_x": 0.0, "correlation_y": 0.0}
    return BeamDataLibrary(600.0, 2000.0, 2560.0, columns | {f"wide_{key}": value * one for key, value in wide.items()})


def write(folder: Path, text: str) -> Path:
    path = folder / "BDL.txt"
    path.write_text(text)
    return path


def test_what_is_written_is_read_back(tmp_path):
    """To the ten digits of the file."""
    wanted = library(0.03)
    found = read_beam_data_library(write(tmp_path, wanted.text("by a test")))
    assert (found.nozzle, found.smx, found.smy) == (600.0, 2000.0, 2560.0) and found.table.keys() == wanted.table.keys()
    for key, column in wanted.table.items():
        np.testing.assert_allclose(found.table[key], column, rtol=1e-10, err_msg=key)


def test_the_same_beam_as_an_emittance_table(tmp_path, curves):  # noqa: F811
    """Of two files that say the same the machines are equal: spreads in % and in MeV, the nozzle and plane_mm, magnets and sad_mm."""
    rows = [[e, e + 0.5, 0.012 * e, 2e7 + e, 4.0, 3.0, 0.004, 0.003, 0.3, -0.2] for e in ROWS[0].tolist()]
    other = read_emittance_machine(table(tmp_path, rows), plane_mm=600.0, curves=curves, sad_mm=(2000.0, 2560.0))
    machine = read_bdl_machine(write(tmp_path, library().text()), curves=curves)
    assert machine.fingerprint == other.fingerprint and machine.n_components == 2
    assert float(machine.protons_per_mu(100.0)) == pytest.approx(20.0001, rel=1e-9)


def test_second_gaussian_is_one_more_component(tmp_path, curves):  # noqa: F811
    """In air at the isocentre the three components have the second moments of the two Gaussians' mixture, as a product of x and y."""
    plain, machine = (read_bdl_machine(write(tmp_path, library(share).text()), curves=curves) for share in (0.0, 0.03))
    before, tables = plain.layers([100.0]), machine.layers([100.0])
    assert machine.n_components == 3
    torch.testing.assert_close(tables.fraction[2, 0], torch.full_like(tables.idd[0], 0.03), rtol=1e-9, atol=0)
    torch.testing.assert_close(tables.fraction[:2], 0.97 * before.fraction, rtol=1e-9, atol=0)
    torch.testing.assert_close(tables.variance[:2], before.variance, rtol=1e-9, atol=0)
    torch.testing.assert_close(tables.idd, before.idd, rtol=1e-12, atol=0)
    at = round(-tables.optics_start / tables.optics_step)
    air_x, air_y = float(tables.optics_variance[0, at]), float(tables.optics_variance_y[0, at])
    # what the medium adds at the surface is the curves' halo's alone, as these are made
    more = float(tables.variance[2, 0, 0] - (before.fraction * before.variance)[:, 0, 0].sum())
    assert (air_x + more) * (air_y + more) == pytest.approx(20.0**2 * 12.0**2, rel=1e-9)


def test_our_own_export_comes_back(tmp_path, shared):
    """A machine written as MCsquare has it and read with its own curves: ranges, widths in air and calibration again."""
    folder = shared / "data" / "mc"
    machine = read_csv_machine(folder)
    data = beam_data(machine, [], -200.0, 250.0)
    found = read_bdl_machine(write(tmp_path, data.text), curves=folder)
    energies = torch.arange(75.0, 225.0, 7.5, dtype=torch.float64)
    # mean energies are found back within 0.02 MeV, so ranges within 0.05 mm
    torch.testing.assert_close(found.r80(energies), machine.r80(energies), rtol=0, atol=0.06)
    torch.testing.assert_close(found.protons_per_mu(energies), machine.protons_per_mu(energies), rtol=2e-3, atol=0)
    ours, theirs = machine.layers(energies), found.layers(energies)
    assert theirs.round
    torch.testing.assert_close(theirs.optics_variance[:, 10:28].sqrt(), ours.optics_variance[:, 10:28].sqrt(), rtol=0, atol=0.01)


def test_export_has_widths_along_x_and_y(tmp_path, curves):  # noqa: F811
    machine = read_bdl_machine(write(tmp_path, library().text()), curves=curves)
    data = beam_data(machine, [], -200.0, 300.0)
    table = read_beam_data_library(write(tmp_path, data.text)).table
    assert data.misfit < 1e-3
    for key in ("sigma", "correlation", "divergence"):
        assert not np.allclose(table[f"{key}_x"], table[f"{key}_y"], rtol=0.05)
    # the phase space on the plane 300 mm downstream of the library's
    np.testing.assert_allclose(table["sigma_y"] ** 2, 9 - 2 * 0.2 * 3 * 0.003 * 300 + (0.003 * 300) ** 2, rtol=1e-3)


def test_a_round_machine_is_exported_as_before(tmp_path):
    """One set of widths for both directions where there is one."""
    table = read_beam_data_library(write(tmp_path, beam_data(generic(), [], -100.0, 200.0).text)).table
    for part in ("sigma", "divergence", "correlation"):
        assert np.array_equal(table[f"{part}_x"], table[f"{part}_y"])


TEXT = library(0.03).text()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("(double gaussian)", "(single gaussian)", r"must begin with '--UPenn beam model .double gaussian.--', got '--UPenn beam model .single"),
        ("SMX to Isocenter distance\n", "SMX distance\n", "has no line 'SMX to Isocenter distance'"),
        ("SMX to Isocenter distance\n2000", "SMX to Isocenter distance\nfar", "line 8: expected a number, got 'far'"),
        ("Beam parameters", "Parameters", "has no line 'Beam parameters' .did you mean 'Parameters'"),
        ("ProtonsMU", "ProtonMU", "has no column ProtonsMU .did you mean 'ProtonMU'"),
        ("4 energies", "5 energies", "as many rows as it says under 'Beam parameters', '5 energies', got 4"),
        ("4 energies", "some", "'some', got 4"),
        ("100 100.5", "100 100.5 7", "line 18: expected 18 numbers"),
        ("100 100.5", "100 x", "line 18: expected a number, got 'x'"),
        ("0.97", "0.9", "Weight1 and Weight2 of 81 MeV must add up to 1, got 0.93"),
        ("119 119.5", "99 99.5", "'NominalEnergy' must ascend, but 99 follows 100; sort its rows"),
        ("138 138.5 ", "138 238.5 ", "real energy of 238.5 MeV is 73 % off the nominal 138"),
        (" 4 0.004", " 0.4 0.004", "'SpotSize1x' must lie between 1 and 50, got 0.4 to 0.4; check that it is mm"),
        (" 4 0.004", " 4 4", "'Divergence1x' must lie between 0 and 0.1, got 4 to 4; check that it is rad"),
        (" 20 0 0 12", " 2 0 0 2", "at 81 MeV the second Gaussian is narrower at the isocentre than the first; exchange them"),
        (" 20 0", " 0.02 0", "'SpotSize2x' must lie between 1 and 200"),
        ("distance\n600", "distance\n-600", "'Nozzle exit to Isocenter distance' must be 0 to 5000, mm upstream of the isocentre, got -600"),
        ("distance\n2000", "distance\n200", "sad must be two positive distances"),
        (TEXT[150:], "", "has no line 'Beam parameters'"),
        (TEXT, "", "must begin with '--UPenn"),
    ],
)  # fmt: skip
def test_bad_libraries(tmp_path, curves, old, new, message):  # noqa: F811
    assert old in TEXT
    with pytest.raises(InputError, match=message) as error:
        read_bdl_machine(write(tmp_path, TEXT.replace(old, new)), curves=curves)
    assert "BDL.txt" in str(error.value) or "machine 'BDL'" in str(error.value)


def test_shape_of_a_gaussian_without_a_share_does_not_matter(tmp_path, curves):  # noqa: F811
    bare = library()
    bare = dataclasses.replace(bare, table=bare.table | {"wide_sigma_x": np.zeros(4), "wide_divergence_y": np.full(4, 9.0)})
    machine = read_bdl_machine(write(tmp_path, bare.text()), curves=curves)
    assert machine.fingerprint == read_bdl_machine(write(tmp_path, library().text()), curves=curves).fingerprint


def test_case_file_needs_the_curves_and_nothing_else(tmp_path, curves):  # noqa: F811
    write(tmp_path, TEXT)
    (tmp_path / "curves").symlink_to(curves)
    text = re.sub(r"format = .*\npath = .*\nplane_mm.*\n(curves.*\n)sad_mm.*\n", r'format = "bdl"\npath = "BDL.txt"\n\1', CASE)
    (tmp_path / "case.toml").write_text(text)
    machine = load_machine(load_case(tmp_path / "case.toml"))
    assert machine.n_components == 3 and machine.air_from == 600.0
    assert load_machine(load_case(tmp_path / "case.toml", ["machine.air=false"])).air_from is None
    with pytest.raises(InputError, match=r"machine\.air must be a valid boolean, got 3"):
        load_case(tmp_path / "case.toml", ["machine.air=3"])
    with pytest.raises(InputError, match="machine: format = 'bdl' takes no plane_mm"):
        load_case(tmp_path / "case.toml", ["machine.plane_mm=3"])
    with pytest.raises(InputError, match="machine: format = 'bdl' needs curves"):
        load_case(tmp_path / "case.toml", ["machine={format='bdl', path='BDL.txt'}"])


@pytest.mark.parametrize(
    ("name", "components", "energies", "nozzle", "protons", "shifter"),
    [
        ("BDL_default_DN_RangeShifter", 3, (100.0, 225.0), 410.0, 86.7033, RangeShifter(74.1)),
        ("BDL_matrad", 2, (70.0, 225.0), 420.0, 90.622552, None),
    ],
)
def test_libraries_of_other_programs(shared, name, components, energies, nozzle, protons, shifter):
    """Tabs do no harm; a second Gaussian without a share adds no component."""
    path = shared / "data" / "dicom" / "bdl" / f"{name}.txt"
    with pytest.warns(PhysicsWarning, match="energies are spread less"):
        machine: Machine = read_bdl_machine(path, curves=shared / "data" / "mc")
    assert read_beam_data_library(path).nozzle == nozzle
    assert machine.shifter == shifter
    assert (machine.n_components, machine.energy_min, machine.energy_max) == (components, *energies)
    assert float(machine.protons_per_mu(100.0)) == pytest.approx(protons, rel=1e-6)
    # the curves stay as they are, or become a little broader, which moves R80 by less than 0.1 mm
    real = 100.8181 if components == 2 else 100.305
    assert float(machine.r80(100.0)) == pytest.approx(float(read_csv_machine(shared / "data" / "mc").r80(real)), abs=0.1)


def test_range_shifters_read_back(tmp_path):
    """Each by its name; one that has no thickness of its own is not the machine's."""
    table = {key: np.array([100.0, 110.0]) for key in COLUMNS}
    library = BeamDataLibrary(400.0, 2000.0, 1900.0, table, {"A": 45.0, "B": 74.1})
    (tmp_path / "BDL.txt").write_text(library.text())
    found = read_beam_data_library(tmp_path / "BDL.txt")
    assert found.shifters == {"A": 45.0, "B": 74.1} and np.array_equal(found.table["real"], table["real"])
    (tmp_path / "BDL.txt").write_text(
        library.text().replace("RS_WET = 45", "RS_WET = 0.0\t# analog").replace("RS_ID = B", "RS_ID = C # comment")
    )
    assert read_beam_data_library(tmp_path / "BDL.txt").shifters == {"C": 74.1}
