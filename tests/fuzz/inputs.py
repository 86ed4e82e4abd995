"""Every reader with a valid input of its own, what reads it, and what holds of whatever is read.

A kind's `build` writes the input into an empty folder and returns the files to be changed; its `read` is what a command would call, and
raises `AssertionError` where what it was given is no patient, machine, plan or dose that may be planned with. A changed digit that is
another valid file is no such thing: of the files here only the checkpoint has a checksum.
"""

from __future__ import annotations

import json
import math
import shutil
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import dicom_files
import numpy as np
import SimpleITK as sitk
import torch
from dicom_patient import as_dicom, write
from mutations import mutate, mutate_tree
from scipy.io import loadmat, savemat
from test_bdl import library
from test_commissioning import write_tables
from test_csv_folder import csv_machine
from test_emittance import curves_folder
from test_emittance import table as emittance_table
from test_matrad import content as matrad_patient
from test_matrad_machine import base_data
from test_matrad_machine import save as save_matrad_machine
from tiny_case import TINY, command, write_images, write_tiny

from torchimpt.case import load_case
from torchimpt.case.text import dump_toml
from torchimpt.commissioning import commission, read_tables, write_commissioning
from torchimpt.geometry import Beam, Grid
from torchimpt.hu_table import read_hu_table
from torchimpt.inspection import inspect
from torchimpt.io import read_image, read_matrad, read_openkbp, read_plan, write_plan
from torchimpt.io.dicom import read_dicom, read_ion_plan, read_rt_dose
from torchimpt.io.image import read_dose, write_image
from torchimpt.machine import (
    Machine,
    generic,
    read_bdl_machine,
    read_commissioned_machine,
    read_csv_machine,
    read_emittance_machine,
    read_matrad_machine,
)
from torchimpt.machine.machine import Calibration
from torchimpt.patient import ROI, Patient
from torchimpt.planning.load import load_machine, load_patient
from torchimpt.runs.checkpoint import read_checkpoint
from torchimpt.spots import Spots

CPU = torch.device("cpu")
BEAMS = (Beam(0.0, 0.0, (1.0, 2.0, 3.0)), Beam(90.0, 15.0, (1.0, 0.1, -7.0)))
SHORT = ("dose.grid_mm=10", "spots.spacing_mm=18", "optimizer.max_iterations=2", "optimizer.log_every=1", "dose.check_mm=off")


@dataclass(frozen=True)
class Kind:
    """An input and its reader.

    Attributes
    ----------
    name
        For the table.
    build
        Writes a valid input into a folder; returns the files that are changed.
    read
        Reads the folder, and checks what comes of it.
    share
        Of all inputs, relative to the others'.
    """

    name: str
    build: Callable[[Path], Sequence[Path]]
    read: Callable[[Path], None]
    share: float = 1.0


def bad(path: Path, content: bytes, rng: Random) -> bytes:
    """The content of a file changed: its bytes, or its tree where it has one."""
    if path.suffix in (".toml", ".json") and rng.random() < 0.5:
        toml = path.suffix == ".toml"
        tree = mutate_tree(tomllib.loads(content.decode()) if toml else json.loads(content), rng)
        return (dump_toml(tree) if toml else json.dumps(tree)).encode("utf-8", "replace")
    return mutate(content, rng)


# What holds of all that is read.


def check_patient(patient: Patient) -> None:
    """A CT in HU on a grid of millimetres, with ROIs that have a voxel."""
    grid = patient.grid
    assert all(0.01 <= size <= 100.0 for size in grid.spacing), f"voxels of {grid.spacing} mm"
    assert all(abs(place) <= 1e5 for place in grid.origin), f"an origin at {grid.origin} mm"
    assert tuple(patient.hu.shape) == grid.shape and grid.n_voxels <= 5e8
    assert bool(patient.hu.isfinite().all()) and float(patient.hu.min()) >= -2000 and float(patient.hu.max()) <= 32767
    for name, roi in patient.rois.items():
        assert roi.mask.dtype == torch.bool and tuple(roi.mask.shape) == grid.shape and bool(roi.mask.any()), name
        volume = patient.volume(name)
        assert math.isfinite(volume) and volume > 0, f"{name} has a volume of {volume} mm3"
    if patient.hu_table is not None:
        check_hu_table(patient.hu_table.hu, patient.hu_table.rsp)


def check_hu_table(hu: torch.Tensor, rsp: torch.Tensor) -> None:
    """Ascending HU, stopping powers that tissue and metal have."""
    assert bool((hu.diff() >= 0).all()) and bool(hu.isfinite().all())
    assert float(rsp.min()) >= 0 and float(rsp.max()) <= 25.0, f"stopping powers up to {float(rsp.max()):g}"


def check_machine(machine: Machine) -> None:
    """Tables at its lowest, middle and highest energy are finite, positive and add up."""
    low, high = machine.energy_min, machine.energy_max
    assert 1 <= low <= high <= 1000 and all(map(math.isfinite, machine.sad))
    energies = torch.tensor([low, 0.5 * (low + high), high], dtype=torch.float64)
    tables = machine.layers(energies)
    for name in ("idd", "variance", "fraction", "optics_variance", "r80", "depth_step"):
        assert bool(getattr(tables, name).isfinite().all()), f"{name} is not finite"
    assert float(tables.idd.min()) >= 0 and float(tables.variance.min()) >= 0 and float(tables.optics_variance.min()) > 0
    assert float(tables.fraction.min()) >= -1e-9 and float((tables.fraction.sum(dim=0) - 1).abs().max()) < 1e-6
    assert low == high or bool((tables.r80.diff() > 0).all()), f"ranges {tables.r80.tolist()}"
    protons = machine.protons_per_mu(energies)
    assert bool(protons.isfinite().all()) and float(protons.min()) > 0, f"{protons.tolist()} 10^6 protons in an MU"


def check_spots(spots: Spots) -> None:
    """Finite places that a scanner reaches, weights that are not negative, energies of protons."""
    position, weight = spots.position.detach(), spots.weight.detach()
    assert bool(position.isfinite().all()) and bool(weight.isfinite().all()) and float(weight.min()) >= 0
    assert float(position.abs().max()) <= 1000.0, f"a spot {float(position.abs().max()):g} mm off the axis"
    assert bool(((spots.energy > 0) & (spots.energy <= 1000)).all()), "energies beyond those of protons"
    assert bool((spots.layer_beam[spots.layer] == spots.beam).all()) and int(spots.beam.max()) < len(spots.beams)


def check_dose(dose: torch.Tensor, grid: Grid) -> None:
    """Finite, on a grid of millimetres."""
    assert tuple(dose.shape) == grid.shape and bool(dose.isfinite().all())
    assert all(0.01 <= size <= 100.0 for size in grid.spacing), f"voxels of {grid.spacing} mm"


def told(folder: Path, *arguments: object) -> None:
    """A command does what it is asked, or says in lines of its own why not."""
    done = command(*arguments, cwd=folder)
    assert done.status in (0, 2, 3), done
    assert "Traceback" not in done.err and "this should not happen" not in done.err, done.err
    if done.status == 2:
        raise Refused(done.err.splitlines()[-1])


class Refused(Exception):
    """A command ended with status 2, and this line."""


# Patients.


def body(size: int = 6) -> Patient:
    """Water in air, with a target."""
    hu = torch.full((size,) * 3, -1000.0)
    hu[1:-1, 1:-1, 1:-1] = 0.0
    target = torch.zeros((size,) * 3, dtype=torch.bool)
    target[2:4, 2:4, 2:4] = True
    grid = Grid((size,) * 3, (10.0, 10.0, 10.0), (-25.0, -25.0, -25.0))
    return Patient(hu, grid, {"Target": ROI("Target", target, "target"), "External": ROI("External", hu > -500, "external")})


def build_openkbp(folder: Path) -> list[Path]:
    cube = np.zeros((128, 128, 128), dtype=bool)
    cube[60:66, 60:66, 60:66] = True
    inside = np.flatnonzero(cube)
    files = {
        "voxel_dimensions.csv": "3.906\n3.906\n2.5\n",
        "ct.csv": ",data\n" + "".join(f"{i},{1000 + i % 90}\n" for i in inside),
        "PTV70.csv": ",data\n" + "".join(f"{i},\n" for i in inside[50:90]),
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    return [folder / name for name in files]


def build_matrad_patient(folder: Path) -> list[Path]:
    return [save_mat(folder / f"{name}.mat", matrad_patient(), name == "packed") for name in ("plain", "packed")]


def save_mat(path: Path, content: dict, packed: bool) -> Path:
    """scipy's file without the time of day that it writes into the head: the same bytes on every day."""
    savemat(path, content, do_compression=packed)
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(116) + path.read_bytes()[116:])
    return path


def build_images(folder: Path) -> list[Path]:
    write_images(folder / "ct")
    mask = sitk.ReadImage(str(folder / "ct" / "Target.mha"))
    for name in ("Cord.nii.gz", "Organ.nrrd", "Other.mhd"):
        sitk.WriteImage(mask, str(folder / "ct" / name), useCompression=name != "Other.mhd")
    return sorted((folder / "ct").iterdir())


def build_dicom(folder: Path) -> list[Path]:
    slices, structures = as_dicom(body())
    write(folder, [*slices, structures])
    return sorted(path for path in folder.iterdir() if path.is_file())


# Machines.


def build_matrad_machine(folder: Path) -> list[Path]:
    first = save_matrad_machine(folder / "first", [base_data(energy) for energy in (90.0, 100.0, 110.0)])
    machine = {"machine": loadmat(first)["machine"]}
    return [save_mat(folder / f"protons_{name}.mat", machine, name == "packed") for name in ("plain", "packed")]


def build_emittance(folder: Path) -> list[Path]:
    curves_folder(folder / "curves")
    return [emittance_table(folder)]


def build_bdl(folder: Path) -> list[Path]:
    curves_folder(folder / "curves")
    (folder / "BDL.txt").write_text(library(0.03).text("by a test"))
    return [folder / "BDL.txt"]


def build_csv_machine(folder: Path) -> list[Path]:
    csv_machine(folder)
    (folder / "hu_to_rsp.csv").write_text("hu,rsp\n-1000,0.001\n0,1.0\n1500,1.7\n")
    return sorted(folder.glob("*.csv"))


def build_commissioning(folder: Path) -> list[Path]:
    write_tables(folder, torch.Generator().manual_seed(1))
    return sorted(path for path in folder.iterdir() if path.is_file())


def build_commissioned(folder: Path) -> list[Path]:
    write_tables(folder, torch.Generator().manual_seed(1))
    write_commissioning(folder / "machine", commission(read_tables(folder / "config.toml")))
    return [folder / "machine" / "machine.toml"]


def read_commissioning(folder: Path) -> None:
    read_tables(folder / "config.toml")


def build_hu_tables(folder: Path) -> list[Path]:
    (folder / "table.csv").write_text("hu,rsp\n-1000,0.001\n-100,0.93\n0,1.0\n100,1.06\n1500,1.7\n3071,2.5\n")
    (folder / "table.hlut").write_text("# HU RSP\n-1024 0\n200 1.2\n449 1.2\n2000 2.49\n3071 2.5\n")
    scanner = folder / "Scanners" / "one"
    scanner.mkdir(parents=True)
    (scanner / "HU_Density_Conversion.txt").write_text("# HU density\n-1000 0.0012\n0 1.0\n1500 1.9\n3000 2.8\n")
    (scanner / "HU_Material_Conversion.txt").write_text("# HU material\n-1000 1\n-500 2\n")
    for number, (name, power) in enumerate({"Air": (7.0, 6.4), "Water": (7.7, 7.2)}.items(), start=1):
        place = folder / "Materials" / name
        place.mkdir(parents=True)
        (place / "G4_Stop_Pow.dat").write_text(f"# MeV, MeV cm2/g\n90 {power[0]}\n110 {power[1]}\n")
        with (folder / "Materials" / "list.dat").open("a") as file:
            file.write(f"{number} {name}\n")
    return sorted(path for path in folder.rglob("*") if path.is_file())


def read_hu_tables(folder: Path) -> None:
    for path in (folder / "table.csv", folder / "table.hlut", folder / "Scanners" / "one"):
        table = read_hu_table(path)
        check_hu_table(table.hu, table.rsp)


# Plans, doses and runs.


def build_plans(folder: Path) -> list[Path]:
    generator = torch.Generator().manual_seed(3)
    beam, x = torch.tensor([0, 0, 1, 1, 1, 0]), 50 * torch.randn(2, 6, generator=generator, dtype=torch.float64)
    spots = Spots.from_columns(BEAMS, beam, 90.0 + 10.0 * beam.double(), x[0], x[1], torch.rand(6, generator=generator))
    for name in ("plan.json", "plan.csv"):
        write_plan(folder / name, spots, generic(), title="Plan", fractions=30)
    return [folder / "plan.json", folder / "plan.csv"]


def read_plans(folder: Path) -> None:
    check_spots(read_plan(folder / "plan.json", machine=generic(), rbe=1.1))
    check_spots(read_plan(folder / "plan.csv", BEAMS))


def build_doses(folder: Path) -> list[Path]:
    grid = Grid((3, 4, 5), (2.0, 2.0, 3.0), (-4.0, -3.0, -3.0))
    values = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
    for name in ("dose.mha", "dose.nii", "dose.nii.gz", "dose.nrrd"):
        write_image(folder / name, values, grid)
    return sorted(folder.iterdir())


def read_doses(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        check_dose(*read_dose(path))


def build_ion_plan(folder: Path) -> list[Path]:
    return [dicom_files.save(dicom_files.ion_plan(), folder / "RP.dcm")]


def read_dicom_plan(folder: Path) -> None:
    machine = calibrated()
    plan = read_ion_plan(folder / "RP.dcm")
    assert plan.fractions <= 1000
    check_spots(plan.spots(machine))


def calibrated() -> Machine:
    """The generic machine with a calibration of its own."""
    machine = generic()
    energy = machine.curves.energy
    return replace(machine, calibration=Calibration(energy, machine.protons_per_mu(energy)))


def build_rt_dose(folder: Path) -> list[Path]:
    return [dicom_files.save(dicom_files.dose(), folder / "RD.dcm")]


def read_dicom_dose(folder: Path) -> None:
    found = read_rt_dose(folder / "RD.dcm")
    check_dose(found.dose, found.grid)


def build_case(folder: Path) -> list[Path]:
    return [write_tiny(folder)]


def read_case(folder: Path) -> None:
    """As far as a plan's patient, machine and beams; what is written out loads again."""
    case = load_case(folder / "tiny.toml")
    (folder / "again.toml").write_text(case.to_toml())
    assert load_case(folder / "again.toml").to_toml() == case.to_toml()
    case.scenarios(), case.terms(), case.goals(), case.delivery.model()
    check_machine(load_machine(case))
    check_patient(load_patient(case))


def flags(*overrides: str) -> list[str]:
    return [flag for override in overrides for flag in ("--set", override)]


def build_planned(folder: Path) -> list[Path]:
    text = TINY.replace("grid_mm = 8.0", "grid_mm = 10.0").replace("max_iterations = 200", "max_iterations = 2")
    (folder / "tiny.toml").write_text(text.replace("spacing_mm = 9.0", "spacing_mm = 18.0"))
    return [folder / "tiny.toml"]


def read_planned(folder: Path) -> None:
    """All of a plan; what is complete is finite."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    told(folder, "plan", "tiny.toml", "--out", "run", "--quiet", "--device", "cpu")
    check_spots(read_plan(folder / "run" / "plan.json"))


def build_run(folder: Path) -> list[Path]:
    """A finished run, and a copy of it that stays."""
    write_tiny(folder)
    done = command("plan", "tiny.toml", "--out", "run", "--quiet", *flags(*SHORT), cwd=folder)
    assert done.status == 3, done
    shutil.copytree(folder / "run", folder / "other")
    return [folder / "run" / name for name in ("metrics.json", "dvh.csv", "case.toml", "dose.mha", "plan.json")]


def build_followed(folder: Path) -> list[Path]:
    build_run(folder)
    return [folder / "run" / name for name in ("metrics.json", "history.jsonl", "case.toml", "run.json", "log.txt")]


def build_checkpoint(folder: Path) -> list[Path]:
    build_run(folder)
    return [folder / "run" / "checkpoint.pt"]


def read_saved(folder: Path) -> None:
    """A checkpoint has a checksum: none that is changed may pass."""
    case = load_case(folder / "tiny.toml", SHORT)
    content = (folder / "run" / "checkpoint.pt").read_bytes()
    read_checkpoint(folder / "run" / "checkpoint.pt", case, CPU)
    assert content == (folder / "other" / "checkpoint.pt").read_bytes(), "a changed checkpoint was taken"


def build_anything(folder: Path) -> list[Path]:
    files = []
    for name in ("openkbp", "matRad patient", "images", "DICOM patient", "matRad machine", "plans", "RT Ion Plan", "case"):
        (folder / name).mkdir()
        files += KINDS[name].build(folder / name)
    return files


def read_anything(folder: Path) -> None:
    inspect(folder)


def _patient(read: Callable[..., Patient], name: str = ".") -> Callable[[Path], None]:
    return lambda folder: check_patient(read(folder / name))


def _machine(read: Callable[..., Machine], name: str = ".") -> Callable[[Path], None]:
    return lambda folder: check_machine(read(folder / name))


def _both(read: Callable[[Path], None], *names: str) -> Callable[[Path], None]:
    def each(folder: Path) -> None:
        for name in names:
            read(folder / name)

    return each


KINDS = {
    kind.name: kind
    for kind in (
        Kind("case", build_case, read_case),
        Kind("case, planned", build_planned, read_planned, 0.1),
        Kind("openkbp", build_openkbp, _patient(read_openkbp)),
        Kind("matRad patient", build_matrad_patient, _both(_patient(read_matrad), "plain.mat", "packed.mat"), 2.0),
        Kind("images", build_images, _patient(read_image, "ct"), 2.0),
        Kind("DICOM patient", build_dicom, _patient(read_dicom), 2.0),
        Kind("HU tables", build_hu_tables, read_hu_tables),
        Kind("csv machine", build_csv_machine, _machine(read_csv_machine)),
        Kind(
            "emittance",
            build_emittance,
            lambda folder: check_machine(
                read_emittance_machine(folder / "model.csv", plane_mm=600.0, curves=folder / "curves", sad_mm=(2000.0, 2560.0))
            ),
            0.7,
        ),
        Kind("bdl", build_bdl, lambda folder: check_machine(read_bdl_machine(folder / "BDL.txt", curves=folder / "curves")), 0.7),
        Kind("matRad machine", build_matrad_machine, _both(_machine(read_matrad_machine), "protons_plain.mat", "protons_packed.mat"), 2.0),
        Kind("commissioned machine", build_commissioned, _machine(read_commissioned_machine, "machine")),
        Kind("commissioning tables", build_commissioning, read_commissioning),
        Kind("plans", build_plans, read_plans, 2.0),
        Kind("doses", build_doses, read_doses, 1.5),
        Kind("RT Ion Plan", build_ion_plan, read_dicom_plan, 2.0),
        Kind("RT Dose", build_rt_dose, read_dicom_dose, 1.5),
        Kind("checkpoint", build_checkpoint, read_saved),
        Kind("compare", build_run, lambda folder: told(folder, "compare", "run", "other"), 0.7),
        Kind("watch", build_followed, lambda folder: told(folder, "watch", "run"), 0.7),
        Kind("inspect", build_anything, read_anything, 0.5),
    )
}
"""By name."""
