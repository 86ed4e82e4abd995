"""A plan as matRad's variables `ct, cst, pln, stf, resultGUI` in one `.mat` file (version 5), for its GUI and its optimization.

The CT is the one that was read, the dose is interpolated to its voxels, as matRad does. A ray is a place in the isocentre plane with all
energies that have a spot there. Isocentres are in the frame of `ct.x` (matRad 3). matRad looks for the HU table by the scanner's name in
the CT, in its folders `hluts`: it is written beside the file under the name that the CT then has.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.io import savemat

from torchimpt.checks import InputError
from torchimpt.files import whole_folder
from torchimpt.geometry import Beam, Grid, bev_rotation
from torchimpt.hu_table import HuTable
from torchimpt.io.matrad.objectives import cell, to_struct
from torchimpt.machine import Machine
from torchimpt.patient import ROI, Patient
from torchimpt.physics.stopping import table_of
from torchimpt.resampling import values_on
from torchimpt.spots import Spots
from torchimpt.version import __version__

FILE = "plan.mat"

STEP = 1e-3
"""Width, HU, in which a step of the HU table is written: matRad's interpolation needs ascending HU."""

PRIORITY = {"target": 1.0, "oar": 2.0, "external": 2.0}
"""Where ROIs overlap, matRad gives voxels to the least number: targets keep theirs, as in an objective with overlap = "exclude"."""

LARGEST = 2**32 - 1
"""Bytes of a variable of version 5."""

logger = logging.getLogger(__name__)

Struct = dict[str, Any]


@dataclass(frozen=True)
class Wanted:
    """What a plan was made for.

    Attributes
    ----------
    fractions
        matRad's weights and doses are one's.
    rbe
        The constant factor on the dose; None where it is weighted by a model.
    objectives
        Rows of `[[objective]]`, each with its robust mode under `mode`.
    normalize, overlap
        Of `[optimizer]`.
    spacing, layer_spacing
        Of the spots, mm; what matRad would place further ones by.
    """

    fractions: int
    rbe: float | None
    objectives: Sequence[Mapping[str, Any]]
    normalize: bool = True
    overlap: str = "exclude"
    spacing: float = 5.0
    layer_spacing: float = 3.0


@dataclass(frozen=True)
class Exported:
    """What was written: the files' names, rays and spots, matRad's name of the machine, and objectives that it has no counterpart of."""

    files: tuple[str, ...]
    rays: int
    spots: int
    machine: str
    left_out: tuple[str, ...]


def export_matrad(folder: str | Path, patient: Patient, machine: Machine, spots: Spots, dose: torch.Tensor, wanted: Wanted) -> Exported:
    """Write the plan into a new folder, all or nothing.

    Parameters
    ----------
    folder
        Must be empty, or not be there.
    patient, machine
        What the plan is for; the patient on the dose grid.
    spots
        Weights of the course.
    dose
        Nominal dose of the course, weighted by the RBE, on the patient's grid `(z, y, x)`, Gy.
    wanted
        The rest.
    """
    if lying := {beam.lies for beam in spots.beams} - {"HFS"}:
        raise InputError(f"the patient lies {', '.join(sorted(lying))}; matRad's angles are for head first supine (HFS) only")
    if machine.sad[0] != machine.sad[1]:
        logger.warning("machine '%s' has sources at %g and %g mm; matRad knows one, the first is written", machine.name, *machine.sad)
    read = patient.original or patient
    if any(roi.rsp is not None for roi in read.rois.values()):
        logger.warning("stopping powers of ROIs (implants, couch) are not in the file; matRad takes those of the CT numbers")
    if 8 * read.grid.n_voxels > LARGEST:
        raise InputError(f"the CT has {read.grid.n_voxels:,} voxels, more than a .mat file of version 5 can have; read it resampled")
    own_name = machine.name.removeprefix("protons_")
    table = table_of(patient, machine)
    cst, left_out = _cst(read, wanted)
    stf, order = _stf(spots, machine, own_name, wanted)
    weight = spots.weight.detach().double().numpy()[order]
    content = {
        "ct": _ct(read, table), "cst": cst, "pln": _pln(spots, patient.grid, own_name, wanted), "stf": stf,
        "resultGUI": _result(read.grid, patient.grid, dose, weight, wanted),
        "torchimpt": {"version": __version__, "frame": "world", "spot": order[:, None] + 1.0, "weight": weight[:, None]},
    }  # fmt: skip
    hlut = f"{_MANUFACTURER}-{_MODEL}-ConvolutionKernel-0_protons.hlut"
    with whole_folder(folder) as scratch:
        savemat(scratch / FILE, content, do_compression=True, long_field_names=True)
        rows = "".join(f"{hu:.10g}\t{rsp:.10g}\n" for hu, rsp in _pairs(table))
        (scratch / hlut).write_text(f"# HU and relative stopping power, written by torchimpt\n{rows}", encoding="utf-8")
    return Exported((FILE, hlut), int(sum(one["numOfRays"] for one in stf[0])), spots.n_spots, own_name, tuple(left_out))


_MANUFACTURER, _MODEL = "torchimpt", "run"


def _structs(rows: Sequence[Struct]) -> np.ndarray:
    """A struct array `(1, n)`; all rows have the same keys."""
    found = np.empty((1, len(rows)), dtype=[(key, object) for key in rows[0]])
    for i, row in enumerate(rows):
        found[0, i] = tuple(row.values())
    return found


def _yxz(values: torch.Tensor) -> np.ndarray:
    """A volume `(z, y, x)` in matRad's order."""
    return np.ascontiguousarray(values.numpy().transpose(1, 2, 0))


def _pairs(table: HuTable) -> list[tuple[float, float]]:
    """HU and stopping power of a table with ascending HU."""
    pairs = list(zip(table.hu.tolist(), table.rsp.tolist(), strict=True))
    return [(hu - STEP * (i + 1 < len(pairs) and pairs[i + 1][0] == hu), rsp) for i, (hu, rsp) in enumerate(pairs)]


def _ct(patient: Patient, table: HuTable) -> Struct:
    """The CT with its table."""
    grid = patient.grid
    return {
        "cubeHU": cell([_yxz(patient.hu.double())]),
        "resolution": dict(zip("xyz", grid.spacing, strict=True)),
        **{name: grid.axis(name).numpy()[None, :] for name in "xyz"},
        "cubeDim": np.array([[grid.shape[1], grid.shape[2], grid.shape[0]]], dtype=np.float64),
        "numOfCtScen": 1.0,
        "hlut": np.array(list(zip(table.hu.tolist(), table.rsp.tolist(), strict=True))),
        "dicomInfo": {"Manufacturer": _MANUFACTURER, "ManufacturerModelName": _MODEL, "ConvolutionKernel": "0"},
    }


def _cst(patient: Patient, wanted: Wanted) -> tuple[np.ndarray, list[str]]:
    """ROIs with their objectives, one a row, and the objectives that are left out."""
    rows: list[list[Any]] = []
    left_out: list[str] = []
    for roi in patient.rois.values():
        voxels = np.flatnonzero(_yxz(roi.mask).flatten(order="F")) + 1.0
        if not len(voxels):
            logger.warning("ROI '%s' has no voxel and is left out", roi.name)
            continue
        aims = []
        for row in wanted.objectives:
            if row["roi"] != roi.name:
                continue
            penalty = float(row.get("weight", 1.0)) * (1.0 if wanted.normalize else len(voxels))
            struct = to_struct(row, penalty, str(row.get("mode", "nominal")))
            if struct is None:
                left_out.append(f"{row['kind']} of {roi.name}")
            else:
                aims.append(struct)
        rows.append(_cst_row(len(rows), roi, voxels, aims, wanted))
    if not rows:
        raise InputError("the patient has no ROI, which matRad needs; give it one")
    cst = np.empty((len(rows), 6), dtype=object)
    for i, own in enumerate(rows):
        cst[i, :] = own
    return cst, left_out


def _cst_row(number: int, roi: ROI, voxels: np.ndarray, aims: list[Struct], wanted: Wanted) -> list[Any]:
    """Number, name, type, voxels, properties, objectives."""
    kind = {"target": "TARGET", "oar": "OAR", "external": "EXTERNAL"}[roi.role]
    color = np.array([[(0.31 * number + 0.17) % 1.0, (0.57 * number + 0.39) % 1.0, (0.83 * number + 0.61) % 1.0]])
    properties = {
        "Priority": PRIORITY[roi.role] if wanted.overlap == "exclude" else 1.0, "alphaX": 0.1, "betaX": 0.05, "Visible": 1.0,
        "visibleColor": color, "TissueClass": 1.0,
    }  # fmt: skip
    return [float(number), roi.name, kind, cell([voxels[:, None]]), properties, cell(aims) if aims else np.empty((0, 0))]


def _rays(position: np.ndarray, energy: np.ndarray, shifted: np.ndarray) -> list[np.ndarray]:
    """A beam's spots `(n,)` by place, each place's in the order of energy, without range shifter first."""
    _, ray, count = np.unique(position, axis=0, return_inverse=True, return_counts=True)
    order = np.lexsort((energy, shifted, ray.reshape(-1)))
    return np.split(order, np.cumsum(count)[:-1])


def _stf(spots: Spots, machine: Machine, machine_name: str, wanted: Wanted) -> tuple[np.ndarray, np.ndarray]:
    """A struct a beam that has spots, and each bixel's spot `(n_spots,)`."""
    position = spots.position.detach().double().numpy()
    energy, shifted, beam = spots.energy.numpy(), spots.shifted.numpy(), spots.beam.numpy()
    per_mu = 1e6 * machine.protons_per_mu(spots.energy.cpu()).numpy()
    found, order = [], []
    for number in sorted(set(beam.tolist())):
        own = np.flatnonzero(beam == number)
        rays = [own[ray] for ray in _rays(position[own], energy[own], shifted[own])]
        field = spots.beams[number]
        to_lps = bev_rotation(field).numpy()  # rows are Xg, Yg, Zg
        sad = float(machine.sad[0])
        rows = [_ray(position[ray[0]], energy[ray], shifted[ray], per_mu[ray], field, to_lps, sad) for ray in rays]
        counts = np.array([[float(len(ray)) for ray in rays]])
        order.append(np.concatenate(rays))
        found.append({
            "gantryAngle": field.gantry, "couchAngle": field.couch, "isoCenter": np.array([field.isocenter]),
            "bixelWidth": wanted.spacing, "radiationMode": "protons", "machine": machine_name, "SAD": sad,
            "sourcePoint_bev": np.array([[0.0, -sad, 0.0]]), "sourcePoint": sad * to_lps[2][None, :],
            "numOfRays": float(len(rays)), "ray": _structs(rows), "numOfBixelsPerRay": counts,
            "longitudinalSpotSpacing": wanted.layer_spacing, "totalNumOfBixels": float(counts.sum()),
        })  # fmt: skip
    return _structs(found), np.concatenate(order)


def _ray(
    place: np.ndarray, energy: np.ndarray, shifted: np.ndarray, per_mu: np.ndarray, beam: Beam, to_lps: np.ndarray, sad: float
) -> Struct:
    """One ray: through `place` in the isocentre plane, and as far beyond."""
    x, z = place.tolist()
    plates = []
    for behind in shifted.tolist():
        assert not behind or (beam.shifter is not None and beam.shifter.distance is not None)
        plate = (beam.shifter.thickness, sad - beam.shifter.distance) if behind else (0.0, 0.0)  # type: ignore[union-attr, operator]
        plates.append({"ID": float(behind), "eqThickness": plate[0], "sourceRashiDistance": plate[1]})
    in_plane, one = x * to_lps[0] + z * to_lps[1], np.ones((1, len(energy)))
    return {
        "rayPos_bev": np.array([[x, 0.0, z]]), "targetPoint_bev": np.array([[2.0 * x, sad, 2.0 * z]]), "rayPos": in_plane[None, :],
        "targetPoint": (2.0 * in_plane - sad * to_lps[2])[None, :], "energy": energy[None, :], "rangeShifter": _structs(plates),
        "focusIx": one, "numParticlesPerMU": per_mu[None, :], "minMU": 0.0 * one, "maxMU": np.inf * one,
    }  # fmt: skip


def _pln(spots: Spots, grid: Grid, machine_name: str, wanted: Wanted) -> Struct:
    """What matRad's GUI and optimization ask of a plan."""
    used = [spots.beams[number] for number in sorted(set(spots.beam.tolist()))]
    weighted = wanted.rbe is None or wanted.rbe != 1.0
    return {
        "radiationMode": "protons", "machine": machine_name, "numOfFractions": float(wanted.fractions),
        "bioModel": "constRBE" if weighted else "none", "multScen": "nomScen",
        "propStf": {
            "generator": "ParticleIMPT", "bixelWidth": wanted.spacing, "longitudinalSpotSpacing": wanted.layer_spacing,
            "gantryAngles": np.array([[beam.gantry for beam in used]]), "couchAngles": np.array([[beam.couch for beam in used]]),
            "numOfBeams": float(len(used)), "isoCenter": np.array([beam.isocenter for beam in used]),
        },
        "propDoseCalc": {"engine": "HongPB", "doseGrid": {"resolution": dict(zip("xyz", grid.spacing, strict=True))}},
        "propOpt": {"quantityOpt": "RBExDose" if weighted else "physicalDose", "runDAO": False},
        "propSeq": {"runSequencing": False},
    }  # fmt: skip


def _result(ct: Grid, grid: Grid, dose: torch.Tensor, weight: np.ndarray, wanted: Wanted) -> Struct:
    """Weights and doses of a fraction, on the CT's voxels."""
    told = _yxz(values_on(dose.double(), grid, ct)) / wanted.fractions
    found: Struct = {"w": weight[:, None] / wanted.fractions}
    if wanted.rbe is not None:
        found["physicalDose"] = told / wanted.rbe
    if wanted.rbe != 1.0:
        found["RBExDose"] = told
    return found
