"""The CSV machine: a folder written by the test with known curves, bad files, and the Monte Carlo commissioning of the reference data."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from torchimpt.checks import InputError
from torchimpt.machine import LayerTables, Machine, read_csv_machine
from torchimpt.physics.bragg import bragg_curve, range_from_energy

AIR, HALO_SIGMA, HALO = 4.0, 15.0, 0.08


def write(path: Path, header: str, rows: list[list[float]]) -> None:
    path.write_text("\n".join([header, *(",".join(f"{v:.9g}" for v in row) for row in rows)]) + "\n")


def core_variance(depth: np.ndarray, energy: float) -> np.ndarray:
    return AIR**2 + (0.022 * depth.clip(0, float(range_from_energy(energy)))) ** 2


def bin_means(energy: float) -> tuple[np.ndarray, np.ndarray]:
    """Exact means of Bortfeld's curve over 1 mm bins, to 40 mm beyond the range."""
    n, fine = math.ceil(float(range_from_energy(energy))) + 40, 50
    z = (torch.arange(n * fine, dtype=torch.float64) + 0.5) / fine
    return np.arange(n) + 0.5, bragg_curve(z, energy, 0.007 * energy).reshape(n, fine).mean(dim=1).numpy()


BEAM_HEADER = (
    "energy_MeV,sigma_x_mm,sigma_y_mm,divergence_x_rad,divergence_y_rad,correlation_x,correlation_y,smx_to_isocentre_mm,smy_to_isocentre_mm"
)


def csv_machine(path: Path) -> Path:
    """A complete machine with ranges of the rule, quadratic core and constant halo."""
    idd, sigma, beam = [], [], []
    for energy in (80.0, 100.0, 120.0, 140.0):
        depth, dose = bin_means(energy)
        idd += [[energy, z, d] for z, d in zip(depth, dose, strict=True)]
        inside = depth[depth < float(range_from_energy(energy)) + 3]
        sigma += [[energy, z, math.sqrt(v), HALO_SIGMA, HALO] for z, v in zip(inside, core_variance(inside, energy), strict=True)]
        beam.append([energy, AIR, AIR, 0.003, 0.003, -0.2, -0.2, 1900, 2300])
    write(path / "beam_model.csv", BEAM_HEADER, beam)
    write(path / "idd.csv", "energy_MeV,depth_mm,idd_Gy_mm2_per_1e6_protons", idd)
    write(path / "sigma.csv", "energy_MeV,depth_mm,sigma1_mm,sigma2_mm,halo_fraction", sigma)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return csv_machine(tmp_path)


def depths(tables: LayerTables, layer: int) -> torch.Tensor:
    return tables.depth_step[layer] * torch.arange(tables.idd.shape[1], dtype=torch.float64)


def test_depth_dose_is_the_curve_behind_the_bins(folder):
    # the means over 1 mm bins flatten the peak of 80 MeV by 4 %; 1 % of the maximum is left after the reconstruction
    tables = read_csv_machine(folder).layers([80.0, 100.0, 140.0])
    for i, (energy, tolerance) in enumerate([(80.0, 0.015), (100.0, 0.002), (140.0, 0.001)]):
        exact = bragg_curve(depths(tables, i), energy, 0.007 * energy)
        assert float((tables.idd[i] - exact).abs().max() / exact.max()) < tolerance


def test_bin_means_come_back(folder):
    tables = read_csv_machine(folder).layers([100.0])
    depth, dose = bin_means(100.0)
    fine = (np.arange(len(depth) * 400) + 0.5) / 400
    means = np.interp(fine, depths(tables, 0).numpy(), tables.idd[0].numpy(), right=0.0).reshape(len(depth), 400).mean(axis=1)
    np.testing.assert_allclose(means, dose, rtol=0, atol=2e-4 * dose.max())


def test_between_energies(folder):
    tables = read_csv_machine(folder).layers([90.0, 110.0, 130.0])
    torch.testing.assert_close(tables.r80, range_from_energy(torch.tensor([90.0, 110.0, 130.0])), rtol=0, atol=0.06)


def test_medium_variance_is_the_total_less_that_in_air(folder):
    tables = read_csv_machine(folder).layers([80.0, 120.0])
    for i, energy in enumerate((80.0, 120.0)):
        z = depths(tables, i).numpy()
        # the smoothing kernel of 8 mm adds its variance times the curvature, 8^2 x 0.022^2 = 0.031 mm^2
        near = z < float(range_from_energy(energy)) - 5
        np.testing.assert_allclose(tables.variance[0, i].numpy()[near], core_variance(z, energy)[near] - AIR**2, rtol=0, atol=0.04)
        np.testing.assert_allclose(tables.variance[1, i].numpy(), HALO_SIGMA**2 - AIR**2, rtol=1e-9)
    torch.testing.assert_close(tables.fraction[1], torch.full_like(tables.idd, HALO), rtol=1e-9, atol=0)
    torch.testing.assert_close(tables.fraction.sum(dim=0), torch.ones_like(tables.idd), rtol=0, atol=1e-12)


def test_optics_drift_from_the_isocentre(folder):
    # rho < 0 at the isocentre: the beam still converges there, so it is wider upstream
    tables = read_csv_machine(folder).layers([100.0])
    z = tables.optics_start + tables.optics_step * torch.arange(tables.optics_variance.shape[1], dtype=torch.float64)
    expected = AIR**2 + 2 * 0.2 * AIR * 0.003 * z + (0.003 * z) ** 2
    torch.testing.assert_close(tables.optics_variance[0], expected, rtol=1e-9, atol=0)


def test_name_sources_energies_and_no_table(folder):
    machine = read_csv_machine(folder)
    assert machine.sad == (1900.0, 2300.0) and machine.hu_table is None and machine.name == folder.name
    assert (machine.energy_min, machine.energy_max, machine.n_components) == (80.0, 140.0, 2)


def test_hu_table_of_the_folder(folder):
    (folder / "hu_to_rsp.csv").write_text("hu,rsp_100MeV\n-1000,0\n0,1\n")
    assert read_csv_machine(folder).hu_table(torch.tensor(-500.0)) == 0.5


def test_noise_makes_no_nonsense(folder, generator):
    header, *rows = (folder / "sigma.csv").read_text().splitlines()
    numbers = np.array([row.split(",") for row in rows], dtype=float)
    noise = torch.randn(len(numbers), 3, generator=generator, dtype=torch.float64).numpy()
    numbers[:, 2] += 0.05 * noise[:, 0]
    numbers[:, 4] = (0.001 * (1 + noise[:, 2])).clip(0, 1)
    numbers[:, 3] = (numbers[:, 3] + 10 * noise[:, 1]).clip(0.5, None)
    numbers[numbers[:, 1] > 150, 2] = 1.0
    write(folder / "sigma.csv", header, numbers.tolist())
    tables = read_csv_machine(folder).layers([80.0, 95.0, 140.0])
    assert bool((tables.variance >= 0).all()) and bool(torch.isfinite(tables.variance).all())
    assert bool((tables.fraction >= 0).all()) and bool((tables.fraction <= 1).all())
    assert float(tables.variance[0].max()) < 30 and float(tables.variance[1].max()) < 40**2


def test_lateral_tables_hold_beyond_their_end(folder):
    tables = read_csv_machine(folder).layers([100.0])
    far = depths(tables, 0) > tables.r80[0] + 3.5
    assert int(far.sum()) > 3
    for table in (tables.variance, tables.fraction):
        assert float((table[:, 0, far] - table[:, 0, -1:]).abs().max()) < 1e-9


@pytest.mark.parametrize("apart", [2.0, 4.0, 8.0])
def test_lateral_rows_may_lie_far_apart(folder, apart):
    """The kernel widens with the gaps: it has two rows to take a slope from, wherever it stands."""
    rows = []
    for energy in (80.0, 100.0, 120.0, 140.0):
        depth = np.arange(apart / 2, 200.0, apart)
        rows += [[energy, z, math.sqrt(v), HALO_SIGMA, HALO] for z, v in zip(depth, core_variance(depth, energy), strict=True)]
    every = read_csv_machine(folder).layers([80.0, 120.0])
    write(folder / "sigma.csv", "energy_MeV,depth_mm,sigma1_mm,sigma2_mm,halo_fraction", rows)
    tables = read_csv_machine(folder).layers([80.0, 120.0])
    for i, energy in enumerate((80.0, 120.0)):
        mean_range = float(range_from_energy(energy))
        inside = depths(tables, i) < mean_range
        difference = (tables.variance[0, i] - every.variance[0, i])[inside].abs()
        # the smoothing's bias as above, and behind the last row before the range its value holds: the slope over half a gap
        assert float(difference.max()) < 0.04 + 2 * 0.022**2 * mean_range * apart / 2
        np.testing.assert_allclose(tables.variance[1, i].numpy(), HALO_SIGMA**2 - AIR**2, rtol=1e-9)
    torch.testing.assert_close(tables.fraction[1], torch.full_like(tables.idd, HALO), rtol=1e-9, atol=0)


@pytest.mark.parametrize("halo", [0.0, 1.0])
def test_a_machine_of_one_gaussian(folder, halo):
    """A component without dose has a width all the same: nothing in the tables is NaN."""
    header, *rows = (folder / "sigma.csv").read_text().splitlines()
    write(folder / "sigma.csv", header, [[*map(float, row.split(",")[:4]), halo] for row in rows])
    tables = read_csv_machine(folder).layers([80.0, 140.0])
    torch.testing.assert_close(tables.fraction[1], torch.full_like(tables.idd, halo), rtol=0, atol=1e-12)
    assert bool(torch.isfinite(tables.variance).all())
    np.testing.assert_allclose(tables.variance[1].numpy(), HALO_SIGMA**2 - AIR**2, rtol=1e-9)


def changed(folder: Path, file: str, column: int, change) -> None:
    """One column of a file, every value put through `change`."""
    header, *rows = (folder / file).read_text().splitlines()
    numbers = np.array([row.split(",") for row in rows], dtype=float)
    numbers[:, column] = change(numbers[:, column])
    write(folder / file, header, numbers.tolist())


@pytest.mark.parametrize(
    ("file", "column", "change", "message"),
    [
        ("sigma.csv", 1, lambda z: z + 300, r"at 80 MeV 0 depths lie before the end of the range, 5\d\.\d mm, 4 are needed; add rows"),
        ("sigma.csv", 1, lambda z: z - 300, "depths of 80 MeV must be 0 to 1000 mm, got -299.5 to"),
        ("sigma.csv", 2, lambda s: 1e9 * s, "sigma1_mm and sigma2_mm must be positive and at most 500, got 15 to 4"),
        ("idd.csv", 1, lambda z: 1e6 * z, r"depths of 80 MeV must be 0 to 1000 mm, got 500000 to 9\.15e\+07"),
        ("idd.csv", 0, lambda e: e - 300, "energy_MeV must be positive, got -220"),
        ("idd.csv", 2, lambda d: -d, "the depth dose of 80 MeV is negative, -0.7"),
        ("idd.csv", 2, lambda d: 0 * d, "the depth dose of 80 MeV holds 0 times the energy of its protons; it must be whole, and in Gy mm"),
        ("idd.csv", 2, lambda d: 1e300 * d, r"holds 9\.\d+e\+299 times the energy"),
        ("idd.csv", 2, lambda d: 4 * d, r"holds 3\.92 times the energy of its protons"),
        (
            "idd.csv",
            2,
            lambda d: d + 0.09,
            r"the depth dose of 80 MeV ends at 91\.5 mm with 11 % of its maximum; add rows until it is over",
        ),
        # centimetres for millimetres
        ("beam_model.csv", 1, lambda s: s / 10, r"sigmas in air must lie between 1 and 300 mm, got 0\.39\d* to .*; check their unit"),
        ("beam_model.csv", 7, lambda s: s / 10, r"sad must be two positive distances, 500 to 1e\+07 mm, got \(190"),
        ("sigma.csv", 2, lambda s: s / 10, r"at 80 MeV half of the sigma1_mm are below 0\.4\d*, and in air the spot has 4 mm"),
        (
            "sigma.csv",
            1,
            lambda z: z / 10,
            r"at 80 MeV the depths end at 5\.\d+ mm of a range of 5\d\.\d mm; add rows, or check that they are mm",
        ),
        ("idd.csv", 1, lambda z: z / 10, r"the depth dose of 80 MeV holds 0\.09\d* times the energy"),
        ("beam_model.csv", 1, lambda s: 1e200 * s, r"sigma_x_mm must be positive and at most 500, got 4e\+200"),
        ("beam_model.csv", 3, lambda d: 1e3 + d, "divergence_x_rad must be between -1 and 1, got 1000"),
        ("beam_model.csv", 7, lambda s: -s, r"sad must be two positive distances, 500 to 1e\+07 mm, got \(-1900"),
    ],
)
def test_numbers_that_cannot_be_are_told_by_file(folder, file, column, change, message):
    """Each ended in NaN, in a traceback from within SciPy, or in a machine that no beam is."""
    changed(folder, file, column, change)
    with pytest.raises(InputError, match=message):
        read_csv_machine(folder)


def test_different_x_and_y_are_kept_and_the_medium_adds_to_x_what_is_above_its_air(folder):
    beam = [[e, 3.0, 5.0, 1900, 1900] for e in (60.0, 150.0)]
    write(folder / "beam_model.csv", "energy_MeV,sigma_x_mm,sigma_y_mm,smx_to_isocentre_mm,smy_to_isocentre_mm", beam)
    tables = read_csv_machine(folder).layers([100.0])
    assert not tables.round
    torch.testing.assert_close(tables.optics_variance, torch.full_like(tables.optics_variance, 9.0))
    torch.testing.assert_close(tables.optics_variance_y, torch.full_like(tables.optics_variance, 25.0))
    assert float(tables.variance[1, 0, 0]) == pytest.approx(HALO_SIGMA**2 - 9.0)


def test_equal_x_and_y_make_round_spots(folder):
    assert read_csv_machine(folder).layers([100.0]).round


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("idd.csv", "depth_mm", "deph_mm", r"idd\.csv has no column depth_mm .did you mean 'deph_mm'"),
        ("sigma.csv", "halo_fraction", "halo", r"sigma\.csv has no column halo_fraction"),
        ("idd.csv", "\n80,0.5,", "\n80,0.5,x", r"idd\.csv, line 2, column idd_Gy_mm2_per_1e6_protons: expected a number, got 'x"),
        ("idd.csv", "\n80,0.5,", "\n80,1.5,", "depths of 80 MeV must be 8 or more and ascend"),
        ("idd.csv", "\n80,0.5,", "\n80,0.7,", "first bin of 80 MeV starts at"),
        ("sigma.csv", ",0.08\n", ",1.08\n", "at 80 MeV a halo_fraction is not between 0 and 1"),
        ("beam_model.csv", "\n140,", "\n135,", "beam_model.csv spans 80 to 135 MeV, but idd.csv 80 to 140 MeV; add rows"),
        ("beam_model.csv", "\n140,", "\n100,", "energy_MeV must ascend"),
        ("beam_model.csv", "\n140,4,4,", "\n140,4,0,", "must be positive"),
        ("beam_model.csv", "\n140,4,4,0.003,0.003,-0.2,", "\n140,4,4,0.003,0.003,-1.2,", "correlation_x must lie between -1 and 1"),
        ("beam_model.csv", ",1900,2300\n", ",1910,2300\n", "smx_to_isocentre_mm must be the same in every row"),
    ],
)
def test_bad_files(folder, file, old, new, message):
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=message):
        read_csv_machine(folder)


def test_files_with_different_energies(folder):
    text = (folder / "sigma.csv").read_text()
    (folder / "sigma.csv").write_text(text.replace("\n80,", "\n85,"))
    with pytest.raises(InputError, match="must have the same energies, but only one of them has 80, 85 MeV"):
        read_csv_machine(folder)


@pytest.mark.parametrize("file", ["beam_model.csv", "idd.csv", "sigma.csv"])
def test_missing_files(folder, file):
    (folder / file).unlink()
    with pytest.raises(InputError, match=f"no file .*{file}"):
        read_csv_machine(folder)
    with pytest.raises(InputError, match=r"no folder .*beam_model\.csv, idd\.csv and sigma\.csv"):
        read_csv_machine(folder / "nothing")


# ---- the Monte Carlo commissioning of the reference data


@pytest.fixture(scope="module")
def monte_carlo(shared: Path) -> Machine:
    return read_csv_machine(shared / "data" / "mc")


def columns(path: Path) -> dict[str, np.ndarray]:
    table = np.genfromtxt(path, delimiter=",", names=True)
    return {name: table[name] for name in table.dtype.names}


def test_monte_carlo_tables_come_back(shared, monte_carlo):
    idd, sigma = columns(shared / "data" / "mc" / "idd.csv"), columns(shared / "data" / "mc" / "sigma.csv")
    energies = np.unique(idd["energy_MeV"])
    tables = monte_carlo.layers(energies.tolist())
    for i, energy in enumerate(energies):
        rows = idd["energy_MeV"] == energy
        dose = idd["idd_Gy_mm2_per_1e6_protons"][rows]
        fine = (np.arange(len(dose) * 100) + 0.5) / 100
        z = depths(tables, i).numpy()
        means = np.interp(fine, z, tables.idd[i].numpy(), right=0.0).reshape(-1, 100).mean(axis=1)
        assert np.abs(means - dose).max() / dose.max() < 1e-3
        assert means.sum() == pytest.approx(dose.sum(), rel=3e-4)
        rows = sigma["energy_MeV"] == energy
        depth = sigma["depth_mm"][rows]
        local = np.interp(depth, z, tables.idd[i].numpy())
        core = np.sqrt(float(tables.optics_variance[i, 20]) + np.interp(depth, z, tables.variance[0, i].numpy()))
        error = np.sqrt(np.average((core - sigma["sigma1_mm"][rows]) ** 2, weights=local))
        assert error < 0.04, f"{energy} MeV: core sigma off by {error:.3f} mm"


def test_monte_carlo_ranges_and_integrals(monte_carlo):
    # the README: 98.5 % of the beam's energy stays in the water at 70 MeV, 96 % at 150, 93 % at 230
    energy = torch.tensor([70.0, 150.0, 230.0], dtype=torch.float64)
    tables = monte_carlo.layers(energy)
    share = (tables.idd.sum(dim=1) - tables.idd[:, 0] / 2) * tables.depth_step / (energy * 0.1602176634)
    torch.testing.assert_close(share, torch.tensor([0.985, 0.961, 0.928], dtype=torch.float64), rtol=0, atol=1e-3)
    assert monte_carlo.sad == (2000.0, 2000.0) and monte_carlo.hu_table is not None


def test_left_out_energies_are_predicted(shared, monte_carlo, tmp_path):
    # every second energy from its neighbours 10 MeV away on either side: the real gaps are half as wide, and the errors a quarter of these
    source = shared / "data" / "mc"
    for name in ("idd.csv", "sigma.csv"):
        lines = (source / name).read_text().splitlines()
        kept = [line for line in lines[1:] if float(line.split(",")[0]) % 20 == 10]
        (tmp_path / name).write_text("\n".join([lines[0], *kept]) + "\n")
    shutil.copy(source / "beam_model.csv", tmp_path)
    energy = torch.arange(80.0, 221.0, 20.0, dtype=torch.float64)
    predicted, known = read_csv_machine(tmp_path).layers(energy), monte_carlo.layers(energy)
    torch.testing.assert_close(predicted.r80, known.r80, rtol=0, atol=0.06)
    torch.testing.assert_close(predicted.peak, known.peak, rtol=0, atol=0.35)
    integral = [(t.idd.sum(dim=1) - t.idd[:, 0] / 2) * t.depth_step for t in (predicted, known)]
    torch.testing.assert_close(integral[0], integral[1], rtol=2e-3, atol=0)
    for i in range(len(energy)):
        z = depths(known, i)
        dose = torch.from_numpy(np.interp(z.numpy(), depths(predicted, i).numpy(), predicted.idd[i].numpy(), right=0.0))
        assert float((dose - known.idd[i]).abs().max() / known.idd[i].max()) < 0.02
        assert float(predicted.idd[i].max() / known.idd[i].max()) == pytest.approx(1.0, abs=0.01)
        assert float(dose[0] / known.idd[i, 0]) == pytest.approx(1.0, abs=0.01)
        # on the beam's axis the dose is idd times the sum of a_k / (2 pi sigma_k^2)
        axis = []
        for t in (predicted, known):
            values = (t.fraction[:, i] / (t.optics_variance[i, 20] + t.variance[:, i])).sum(dim=0).numpy()
            axis.append(np.interp(z.numpy(), depths(t, i).numpy(), values)[z.numpy() < float(known.r80[i])])
        assert np.abs(axis[0] / axis[1] - 1).max() < 0.025
