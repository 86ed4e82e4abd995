"""MCsquare's files, read back by a small parser of their own; its frame, spelled as its sources have it; its numbers where there are data.

`tests/cli/test_export.py` has the commands. What came of a run of MCsquare itself on such a folder is told there.
"""

from __future__ import annotations

import csv
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from torchimpt.checks import InputError
from torchimpt.constants import AIR_RSP, MEV_PER_GRAM_TO_GY
from torchimpt.geometry import Beam, Grid, RangeShifter, from_bev
from torchimpt.hu_table import HuTable
from torchimpt.io.mcsquare.beam_data import beam_data, phase_space
from torchimpt.io.mcsquare.dose import read_mcsquare_dose
from torchimpt.io.mcsquare.export import export_mcsquare, hu_and_density
from torchimpt.io.mcsquare.frame import in_frame, turned
from torchimpt.machine import Machine, generic, read_csv_machine
from torchimpt.machine.curves import DepthCurve, ScaledCurves
from torchimpt.machine.optics import Optics
from torchimpt.patient import ROI, Patient
from torchimpt.physics.bragg import bragg_curve
from torchimpt.physics.stopping import relative_stopping_power
from torchimpt.spots import Spots

GRID = Grid((9, 11, 13), (4.0, 5.0, 6.0), (-40.0, 10.0, -15.0))
BEAMS = [Beam(0.0, 0.0, (5.0, 30.0, 2.0)), Beam(75.0, 0.0, (6.0, 31.0, 3.0)), Beam(200.0, 340.0, (7.0, 32.0, 4.0))]


def patient() -> Patient:
    """Differs along every axis; a body, and an implant of its own stopping power that reaches out of it."""
    z, y, x = torch.meshgrid(*(torch.arange(n) for n in GRID.shape), indexing="ij")
    hu = (-700.0 + 100.0 * x + 7.0 * y + z).float()
    hu[0, 0] = 5000.0
    body, implant = (x > 2) & (y > 1), (z == 4) & (y > 7)
    rois = {"External": ROI("External", body, "external"), "Implant": ROI("Implant", implant, "oar", rsp=3.2)}
    return Patient(hu, GRID, rois, hu_table=HuTable([-1000.0, 0.0, 0.0, 1500.0], [0.001, 0.95, 1.0, 1.7]))


def plan() -> Spots:
    """Three beams, of which one has no weights, in float32; a layer in the third has a spot without weight."""
    rows = [(0, 100.0, -3.1, 2.7, 1.5), (0, 100.0, 4.0, 1.0, 2.5), (0, 88.7654321, 1e-6, 0.0, 3e-4)]
    rows += [(1, 90.0, 0.0, 0.0, 0.0), (2, 120.5, 10.0, -20.0, 7.0), (2, 120.5, 11.0, -20.0, 0.0)]
    return Spots.from_columns(BEAMS, *zip(*rows, strict=True))


def test_a_patient_who_lies_otherwise_is_refused(tmp_path):
    beams = [replace(BEAMS[0], position="FFP")]
    spots = Spots.from_columns(beams, (0,), (100.0,), (0.0,), (0.0,), (1.0,))
    with pytest.raises(InputError, match="the patient lies FFP; MCsquare's angles are for head first supine"):
        export_mcsquare(tmp_path / "mc", patient(), generic(), spots, 1, "t")


def test_range_shifters(tmp_path):
    """Lexan by its number, and in a layer that goes through it place and thickness, less the air that MCsquare counts behind it."""
    shifter = RangeShifter(45.0, 300.0)
    beams = [BEAMS[0], replace(BEAMS[1], shifter=shifter)]
    rows = [(0, 100.0, 0.0, 0.0, 1.0, False), (1, 100.0, 0.0, 0.0, 1.0, False), (1, 100.0, 0.0, 0.0, 2.0, True)]
    *columns, shifted = zip(*rows, strict=True)
    water = Patient(torch.zeros(GRID.shape), GRID)
    done = export_mcsquare(tmp_path / "mc", water, generic(), Spots.from_columns(beams, *columns, shifted=shifted), 1)
    library, text = ((tmp_path / "mc" / name).read_text() for name in ("BDL.txt", "PlanPencil.txt"))
    assert done.nozzle == 346.0  # protons start upstream of it
    block = library.split("Range Shifter parameters\n")[1].split("\n\n")[0].splitlines()
    assert block == ["RS_ID = RS_1", "RS_type = binary", "RS_material = 66", "RS_density = 1.2", "RS_WET = 45"]
    first, second = text.split("#FIELD-DESCRIPTION")[1:]
    assert "RangeShifter" not in first and "###RangeShifterID\nRS_1\n###RangeShifterType\nbinary\n" in second
    open_air, behind = second.split("####ControlPointIndex")[1:]
    assert "RangeShifter" not in open_air
    lines = behind.splitlines()
    value = {key: lines[lines.index(f"####{key}") + 1] for key in ("RangeShifterSetting", "IsocenterToRangeShifterDistance")}
    assert value == {"RangeShifterSetting": "IN", "IsocenterToRangeShifterDistance": "300"}
    thickness = float(lines[lines.index("####RangeShifterWaterEquivalentThickness") + 1])
    half = [0.5 * n * s for n, s in zip(reversed(GRID.shape), GRID.spacing, strict=True)]
    middle = [o - 0.5 * s + h for o, s, h in zip(GRID.origin, GRID.spacing, half, strict=True)]
    assert BEAMS[1].isocenter is not None and BEAMS[1].couch == 0.0
    x, y = (m - i for m, i in zip(middle[:2], BEAMS[1].isocenter[:2], strict=True))
    sin, cos = math.sin(math.radians(75.0)), math.cos(math.radians(75.0))
    corner = x * sin - y * cos + half[0] * sin + half[1] * cos
    assert thickness == pytest.approx(45.0 - AIR_RSP * (300.0 - corner), abs=1e-6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("mcsquare") / "out"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CT numbers above the table
        done = export_mcsquare(path, patient(), generic(), plan(), fractions=20, title="Müller\n1")
    assert sorted(done.files) == sorted(file.name for file in path.iterdir())
    return path


def header(path) -> dict[str, str]:
    return dict(line.split(" = ") for line in path.read_text().splitlines())


def raw(folder) -> tuple[dict[str, str], np.ndarray]:
    found = header(folder / "CT.mhd")
    assert found["ElementType"] == "MET_FLOAT" and found["ElementByteOrderMSB"] == "False"
    shape = [int(n) for n in found["DimSize"].split()][::-1]
    return found, np.fromfile(folder / found["ElementDataFile"], "<f4").reshape(shape)


def library(path) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Distances by their names, and rows by their columns, as MCsquare reads them: a name's value is in the next line."""
    lines = path.read_text().splitlines()
    assert lines[0] == "--UPenn beam model (double gaussian)--"
    distances = {line: float(lines[i + 1]) for i, line in enumerate(lines) if line.endswith("Isocenter distance")}
    start = lines.index("Beam parameters")
    count, names = int(lines[start + 1].split()[0]), lines[start + 3].split()
    rows = [dict(zip(names, map(float, line.split()), strict=True)) for line in lines[start + 4 :]]
    assert len(rows) == count and lines[start + 2] == "" and len(names) == 18
    return distances, rows


def fields(path) -> tuple[dict[str, str], list[dict]]:
    """Head, and fields with their layers and spots; every `#` line names what the next line is."""
    lines = [line for line in path.read_text().splitlines() if line]
    head, found = {}, []
    i = 0
    while i < len(lines):
        key, _, rest = lines[i].lstrip("#").partition(" ")
        assert lines[i].startswith("#") and len(lines[i]) < 500
        if key == "FIELD-DESCRIPTION":
            found.append({"layers": []})
        elif key == "ControlPointIndex":
            found[-1]["layers"].append({key: int(lines[i + 1])})
            i += 1
        elif key == "X":
            assert rest == "Y Weight"
            n = int(found[-1]["layers"][-1]["NbOfScannedSpots"])
            found[-1]["layers"][-1]["spots"] = [tuple(map(float, line.split())) for line in lines[i + 1 : i + 1 + n]]
            i += n
        elif key not in ("TREATMENT-PLAN-DESCRIPTION", "SPOTS-DESCRIPTION"):
            (found[-1]["layers"][-1] if found and found[-1]["layers"] else found[-1] if found else head)[key] = lines[i + 1]
            i += 1
        i += 1
    return head, found


def test_plan_reads_back(folder):
    head, found = fields(folder / "PlanPencil.txt")
    distances, rows = library(folder / "BDL.txt")
    assert head["PlanName"] == "M?ller?1" and head["NumberOfFractions"] == "20" and head["NumberOfFields"] == "2"
    assert [float(f["GantryAngle"]) for f in found] == [0.0, 200.0] and [float(f["PatientSupportAngle"]) for f in found] == [0.0, 340.0]
    energy, protons = ([row[name] for row in rows] for name in ("NominalEnergy", "ProtonsMU"))
    assert energy == sorted(energy)
    got, total = [], 0.0
    for number, field in zip((0, 2), found, strict=True):
        assert int(field["NumberOfControlPoints"]) == len(field["layers"])
        for layer in field["layers"]:
            assert float(layer["Energy"]) in energy, "no interpolation between rows"
            per_mu = np.interp(float(layer["Energy"]), energy, protons)
            # protons of the course in millions, as weights are
            got += [(number, float(layer["Energy"]), x, y, mu * per_mu * 20 / 1e6) for x, y, mu in layer["spots"]]
            total += sum(mu for *_, mu in layer["spots"])
        assert float(field["layers"][-1]["CumulativeMetersetWeight"]) == pytest.approx(float(field["FinalCumulativeMeterSetWeight"]))
    assert float(head["TotalMetersetWeightOfAllFields"]) == pytest.approx(total, rel=1e-10)
    spots = plan()
    used = spots.subset(spots.weight > 0)
    wanted = zip(used.beam.tolist(), used.energy.tolist(), *used.position.T.tolist(), used.weight.tolist(), strict=True)
    assert np.allclose(got, list(wanted), rtol=2e-7, atol=1e-12)
    assert [distances[f"{name} to Isocenter distance"] for name in ("SMX", "SMY")] == list(generic().sad)


def test_ct_lies_where_itk_says(folder):
    """The independent reader finds every voxel's CT number where the patient has it; so the arrays are turned as the header says."""
    image, (found, values) = sitk.ReadImage(str(folder / "CT.mhd")), raw(folder)
    hu = hu_and_density(patient(), generic())[0]
    assert found["TransformMatrix"] == "-1 0 0 0 -1 0 0 0 1" and image.GetSpacing() == GRID.spacing
    for z, y, x in ((4, 5, 6), (0, 10, 3), (8, 2, 12), (1, 9, 4)):
        point = [GRID.origin[i] + GRID.spacing[i] * n for i, n in enumerate((x, y, z))]
        assert image[image.TransformPhysicalPointToIndex(point)] == float(hu[z, y, x])
        # MCsquare's own words: the index runs against x, and along its y, which runs against LPS y
        at = np.floor(np.array(in_frame(point, GRID)) / GRID.spacing).astype(int)
        assert values[at[2], at[1], GRID.shape[2] - 1 - at[0]] == float(hu[z, y, x])
    assert np.array_equal(turned(values), hu.numpy())


def interpolated(hu: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """As MCsquare does it: the segment is that of the last node below the value, and nothing becomes 1e-6."""
    assert (np.diff(nodes[:, 0]) > 0).all() and hu.min() >= nodes[0, 0] and hu.max() <= nodes[-1, 0]
    i = np.clip(np.searchsorted(nodes[:, 0], hu, side="left") - 1, 0, len(nodes) - 2)
    (x1, y1), (x2, y2) = (np.moveaxis(nodes[j], -1, 0) for j in (i, i + 1))
    return np.maximum((y2 - y1) / (x2 - x1) * (hu - x1) + y1, 1e-6)


def test_density_is_the_stopping_power(folder):
    """Everywhere: below and above the table, on its step, outside the body, in the implant; and every medium is water."""
    nodes = np.loadtxt(folder / "HU_Density_Conversion.txt")
    material = np.loadtxt(folder / "HU_Material_Conversion.txt")
    values = raw(folder)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rsp = relative_stopping_power(patient(), generic()).numpy()
    assert np.abs(interpolated(turned(values).astype(float), nodes) - rsp).max() < 2e-6
    assert set(material[:, 1]) == {17} and material[0, 0] < values.min() and material[-1, 0] > values.max()
    inside = turned(values)[6, 5, 3:8]
    assert np.array_equal(inside, patient().hu[6, 5, 3:8].numpy()), "where the table holds, the CT's own numbers"


def turn(point: np.ndarray, axis: str, angle: float) -> np.ndarray:
    """MCsquare's `rotateX`, `rotateY`, `rotateZ` of a vector."""
    x, y, z = point
    c, s = math.cos(angle), math.sin(angle)
    return {
        "x": np.array([x, y * c - z * s, y * s + z * c]),
        "y": np.array([x * c + z * s, y, -x * s + z * c]),
        "z": np.array([x * c - y * s, x * s + y * c, z]),
    }[axis]


@pytest.mark.parametrize("beam", [*BEAMS, Beam(123.0, 77.0, (1.0, 40.0, 0.0))])
@pytest.mark.parametrize("spot", [(0.0, 0.0), (31.0, -17.0)])
def test_a_spot_goes_where_ours_goes(beam, spot):
    """MCsquare's start of a proton, its direction, and the way to the CT's frame, step by step, against this package's frames."""
    sad, nozzle = (1800.0, 2300.0), 250.0
    start = np.array([spot[i] * (sad[i] - nozzle) / sad[i] for i in (0, 1)] + [nozzle])
    direction = np.array([0.0, 0.0, 1.0])
    for axis, angle in (("x", math.pi + math.atan(spot[1] / sad[1])), ("y", -math.atan(spot[0] / sad[0]))):
        direction = turn(direction, axis, angle)
    start, direction = (
        turn(turn(v, "y", math.radians(beam.gantry)), "z", -math.radians(beam.couch))[[0, 2, 1]] for v in (start, direction)
    )
    start = start + in_frame(beam.isocenter, GRID)
    for depth in (120.0, 0.0, -80.0):
        m = [(s - depth) / s for s in sad]
        ours = from_bev(torch.tensor([[spot[0] * m[0], spot[1] * m[1], depth]], dtype=torch.float64), beam)[0]
        away = np.array(in_frame(ours.tolist(), GRID)) - start
        # the two turns of the direction do not commute: 0.03 mm at 30 mm off the axis
        assert np.linalg.norm(away - (away @ direction) * direction) < 0.05


def test_phase_space_is_found_again():
    d = np.linspace(0.0, 500.0, 101)
    for s, slope, rho in ((5.0, 4e-3, -0.4), (3.0, 6e-3, 0.7), (6.0, 1e-3, -0.9)):
        found = phase_space(s**2 + 2 * rho * s * slope * d + (slope * d) ** 2, d)
        assert found == pytest.approx((s, slope, rho), rel=1e-4)
    # what no phase space has, or MCsquare cannot sample, becomes the nearest that it can
    for variance, off in ((np.full_like(d, 36.0), 0.02), (36.0 + 1e-4 * d, 0.02), (9.0 + 20.0 * np.sqrt(d / 500.0), 6.0)):
        s, slope, rho = phase_space(variance, d)
        assert s > 0 and slope >= 2e-5 and 1e-3 <= abs(rho) <= 0.99
        assert abs(rho) * slope >= 1.99e-6
        assert np.abs(s**2 + 2 * rho * s * slope * d + (slope * d) ** 2 - variance).max() < off


def test_beam_data_of_known_optics():
    """Optics made of a phase space come out as it, at every energy; the plan's own energies are rows, none twice in single precision."""
    data = beam_data(generic(), [77.7, 101.3, 101.3 + 1e-6, 70.0 + 1e-13], -100.0, 200.0)
    assert data.misfit < 1e-3 and data.nozzle == 200.0
    lines = [line.split() for line in data.text.splitlines() if line[:1].isdigit() and len(line.split()) == 18]
    assert {"77.7", "101.3", "70", "240"} <= {line[0] for line in lines} and len(lines) == 37
    # what MCsquare divides by
    assert (np.diff(np.array([line[0] for line in lines], np.float32)) > 0).all()


def test_a_machine_of_one_energy_has_two_rows():
    depth = torch.linspace(0.0, 170.0, 2000, dtype=torch.float64)
    curve = DepthCurve(150.0, depth, bragg_curve(depth, 150.0, 0.9), torch.ones(1, 2000).double(), torch.ones(1, 2000).double())
    sigma = torch.full((1, 1), 4.0, dtype=torch.float64)
    optics = Optics(torch.tensor([150.0], dtype=torch.float64), 0.0, 1.0, sigma)
    text = beam_data(Machine("one", (2e3, 2e3), ScaledCurves.of([curve]), optics), [150.0], -50.0, 80.0).text
    lines = [line.split() for line in text.splitlines() if len(line.split()) == 18][1:]
    assert "2 energies" in text and [line[0] for line in lines] == ["150", "151"] and lines[0][1:] == lines[1][1:]


def test_energies_and_spreads_are_those_of_monte_carlo(shared):
    """From MCsquare's depth doses back to the energies and spreads that they were made with."""
    machine = read_csv_machine(shared / "data" / "mc")
    text = beam_data(machine, [], -100.0, 200.0).text
    rows = {float(r[0]): r for r in (line.split() for line in text.splitlines()) if len(r) == 18 and r[0][0].isdigit()}
    with (shared / "data" / "mc" / "beam_model.csv").open() as file:
        known = {float(row["energy_MeV"]): row for row in csv.DictReader(file)}
    assert len(rows) == 17
    for energy, row in rows.items():
        assert float(row[1]) == pytest.approx(float(known[energy]["mean_energy_MeV"]), abs=0.02)
        assert float(row[2]) == pytest.approx(float(known[energy]["energy_spread_percent_1sigma"]), abs=0.06)
        assert float(row[5]) == pytest.approx(float(known[energy]["sigma_x_mm"]), abs=0.01)


def write_dose(folder, values: np.ndarray, spacing=GRID.spacing) -> str:
    """As MCsquare writes its dose: six decimals, no word about where it lies."""
    n_z, n_y, n_x = values.shape
    (folder / "Dose.mhd").write_text(
        f"ObjectType = Image\nNDims = 3\nDimSize = {n_x} {n_y} {n_z}\nElementSpacing = {' '.join(f'{s:f}' for s in spacing)}\n"
        "Offset = 0.000000 0.000000 0.000000\nElementType = MET_FLOAT\nElementByteOrderMSB = False\nElementDataFile = Dose.raw\n"
    )
    values.astype("<f4").tofile(folder / "Dose.raw")
    return str(folder / "Dose.mhd")


def test_dose_comes_back_in_gray(tmp_path, generator):
    """1 eV/g a proton and 1e12 protons are 1.602e-4 Gy; x and y are turned back."""
    values = torch.rand(GRID.shape, generator=generator).numpy()
    dose = read_mcsquare_dose(write_dose(tmp_path, values[:, ::-1, ::-1]), GRID, protons=1e12)
    assert np.allclose(dose.numpy(), values * 1.602176634e-4, rtol=1e-6) and dose.dtype == torch.float64
    assert pytest.approx(1.602176634e-10) == 1e6 * 1e-6 * MEV_PER_GRAM_TO_GY


def test_doses_that_are_none(tmp_path):
    values = np.ones(GRID.shape)
    with pytest.raises(InputError, match=r"has \(9, 11, 13\) voxels .* of \(4.0, 5.0, 6.5\) mm, the run"):
        read_mcsquare_dose(write_dose(tmp_path, values, (4.0, 5.0, 6.5)), GRID, 1.0)
    with pytest.raises(InputError, match=r"has \(9, 11, 12\) voxels"):
        read_mcsquare_dose(write_dose(tmp_path, values[:, :, 1:]), GRID, 1.0)
    values[0, 0, 0] = np.nan
    with pytest.raises(InputError, match="has 1 values that are NaN"):
        read_mcsquare_dose(write_dose(tmp_path, values), GRID, 1.0)
    (tmp_path / "Dose.raw").unlink()
    with pytest.raises(InputError, match="cannot read"):
        read_mcsquare_dose(tmp_path / "Dose.mhd", GRID, 1.0)


def test_a_plan_without_weights_is_refused(tmp_path):
    spots = plan()
    with torch.no_grad():
        spots.weight.zero_()
    with pytest.raises(InputError, match="no spot of the plan has a weight"):
        export_mcsquare(tmp_path / "out", patient(), generic(), spots, 20)
    assert not (tmp_path / "out").exists()
