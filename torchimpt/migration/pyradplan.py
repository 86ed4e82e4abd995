"""pyRadPlan's objects (github.com/e0404/pyRadPlan, 0.5): CT, structure set, plan and steering information, as ours in one call.

They are read by their attributes; pyRadPlan itself is not imported. Its frames are matRad's (`torchimpt.io.matrad`), its isocentres LPS.
It knows no fractions where it optimizes: weights, 10^6 particles, and doses are the course's, and doses are physical.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from torchimpt.checks import InputError
from torchimpt.geometry import Beam, bev_rotation
from torchimpt.io.lps import tilt, turned
from torchimpt.io.matrad.objectives import rows_of
from torchimpt.io.matrad.plan import RAY_OFF, shifter_of
from torchimpt.io.roles import role_of
from torchimpt.objectives import KINDS, Term
from torchimpt.patient import ROI, Patient
from torchimpt.spots import Spots

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FromPyRadPlan:
    """What pyRadPlan's objects hold.

    Attributes
    ----------
    patient
        CT and ROIs.
    terms
        The objectives' counterparts; for `Objective`.
    beams
        With their isocentres where there is steering information, or the plan says them.
    spots
        With the course's weights; None without steering information.
    fractions
        Of the plan, if there is one. pyRadPlan's weights are not divided by them.
    remarks
        What could not be taken over as it is.
    """

    patient: Patient
    terms: tuple[Term, ...]
    beams: tuple[Beam, ...]
    spots: Spots | None
    fractions: int | None
    remarks: tuple[str, ...]


def from_pyradplan(
    ct: Any, cst: Any, plan: Any = None, stf: Any = None, weights: Any = None, *, dtype: torch.dtype = torch.float32
) -> FromPyRadPlan:
    """pyRadPlan's objects as ours.

    Parameters
    ----------
    ct, cst
        A `CT` and a `StructureSet`.
    plan
        A `Plan` of protons.
    stf
        A `SteeringInformation`. Range shifters as for matRad's plans (`read_matrad_plan`).
    weights
        What `fluence_optimization` returns, `(n_spots,)`; left out, the beamlets' own.
    dtype
        Of position and weight.
    """
    patient = _patient(ct, cst)
    mode = getattr(plan, "radiation_mode", "protons")
    if mode != "protons":
        raise InputError(f"the plan is one of {mode}; torchimpt plans with protons")
    rows, remarks = [], []
    for voi in cst.vois:
        for aim in voi.objectives if voi.name in patient.rois else ():
            found, remark = _rows(voi.name, aim)
            rows += found
            remarks += [remark] if remark else []
    terms = tuple(KINDS[row.pop("kind")](row.pop("roi"), row.pop("dose_gy"), **row) for row in rows)
    spots = None if stf is None else _spots(stf, weights, dtype)
    beams = spots.beams if spots is not None else _beams(plan)
    for remark in remarks:
        logger.warning("%s", remark)
    fractions = getattr(plan, "num_of_fractions", None)
    return FromPyRadPlan(patient, terms, beams, spots, None if fractions is None else int(fractions), tuple(remarks))


def _patient(ct: Any, cst: Any) -> Patient:
    """CT and ROIs; of several CT scenarios the first."""
    image = ct.cube_hu
    volume, direction, spacing, origin = _volume(image, "CT")
    hu, grid = turned(volume.astype(np.float32), direction, spacing, origin)
    typed = any(voi.voi_type == "EXTERNAL" for voi in cst.vois)
    rois: dict[str, ROI] = {}
    for voi in cst.vois:
        mask, same = turned(_volume(voi.mask, voi.name)[0] > 0, direction, spacing, origin)
        if same != grid:
            raise InputError(f"VOI '{voi.name}' has {same.shape} voxels (z, y, x), the CT {grid.shape}")
        if not mask.any():
            logger.warning("VOI '%s' has no voxel and is left out", voi.name)
            continue
        external = voi.voi_type == "EXTERNAL" if typed else role_of(voi.name) == "external"
        role = "external" if external else "target" if voi.voi_type == "TARGET" else "oar"
        rois[voi.name] = ROI(voi.name, torch.from_numpy(mask), role)
    return Patient(torch.from_numpy(hu), grid, rois, name="pyRadPlan")


def _volume(image: Any, what: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Voxels `(k, j, i)`, direction, spacing and origin of an image."""
    values = sitk.GetArrayFromImage(image)
    n = image.GetDimension()
    direction = np.array(image.GetDirection()).reshape(n, n)[:3, :3]
    if n == 4:
        logger.warning("%s has %d scenarios; the first is taken", what, len(values))
        values = values[0]
    if tilt(direction) > 0:
        raise InputError(f"{what} lies {tilt(direction):.2f} degrees off the patient's axes; resample it in pyRadPlan")
    return values, direction, np.array(image.GetSpacing()[:3]), np.array(image.GetOrigin()[:3])


def _rows(roi: str, aim: Any) -> tuple[list[dict[str, Any]], str]:
    """An objective as rows of matRad's kind: its parameters in order, `f_diff` as matRad's number, and the EUD's exponent `1 / k`."""
    name = type(aim).__name__
    if getattr(aim, "quantity", "physical_dose") != "physical_dose":
        return [], f"{roi}: {name} of {aim.quantity} has no counterpart here, and is left out"
    values = [{"linear": 1.0, "quadratic": 2.0}.get(value, value) for value in aim.parameters]
    if name == "EUD" and len(values) > 1:
        values[1] = 1.0 / values[1]
    return rows_of(name, roi, [float(value) for value in values], float(aim.priority))


def _beams(plan: Any) -> tuple[Beam, ...]:
    """The plan's beams, without steering information; `place_spots` fills in isocentres that it does not say."""
    properties = {} if plan is None else plan.prop_stf
    gantry = np.atleast_1d(properties.get("gantry_angles", ()))
    couch = np.atleast_1d(properties.get("couch_angles", np.zeros(len(gantry))))
    told = properties.get("iso_center")
    if len(gantry) == 0:
        return ()
    if len(couch) != len(gantry):
        raise InputError(f"the plan has {len(gantry)} gantry angles and {len(couch)} couch angles; it needs one each")
    places = [None] * len(gantry) if told is None else np.broadcast_to(np.asarray(told, dtype=float), (len(gantry), 3)).tolist()
    return tuple(Beam(float(g), float(c), None if p is None else tuple(p)) for g, c, p in zip(gantry, couch, places, strict=True))


def _spots(stf: Any, weights: Any, dtype: torch.dtype) -> Spots:
    """Spots in pyRadPlan's order: beam, ray, beamlet."""
    counts = [sum(len(ray.beamlets) for ray in beam.rays) for beam in stf.beams]
    if weights is None:
        weights = [beamlet.weight for beam in stf.beams for ray in beam.rays for beamlet in ray.beamlets]
    weight = torch.as_tensor(np.asarray(weights, dtype=np.float64)).flatten()
    if len(weight) != sum(counts):
        raise InputError(f"weights must be {sum(counts)} numbers, one for each beamlet, got {len(weight)}")
    beams: list[Beam] = []
    columns: list[torch.Tensor] = []
    for i, (beam, own) in enumerate(zip(stf.beams, torch.split(weight, counts), strict=True)):
        found, column = _of_beam(i, beam, own)
        beams.append(found)
        columns.append(column)
    energy, x, y, thickness = torch.cat(columns, dim=1)
    number = torch.repeat_interleave(torch.arange(len(beams)), torch.tensor(counts))
    return Spots.from_columns(beams, number, energy, x, y, weight, dtype, thickness > 0)


def _of_beam(i: int, beam: Any, weight: torch.Tensor) -> tuple[Beam, torch.Tensor]:
    """A beam, and energy, x, y and range shifter's thickness `(4, n)` of its beamlets."""
    where = f"beam {i} of the steering information"
    if beam.radiation_mode != "protons":
        raise InputError(f"{where} is one of {beam.radiation_mode}; torchimpt plans with protons")
    angles = Beam(float(beam.gantry_angle), float(beam.couch_angle), tuple(np.asarray(beam.iso_center, dtype=float).tolist()))
    _check_rays(where, angles, beam.rays)
    rows = [
        (one.energy, ray.ray_pos_bev[0], ray.ray_pos_bev[2], one.range_shifter.eq_thickness, one.range_shifter.source_rashi_distance)
        for ray in beam.rays
        for one in ray.beamlets
    ]
    energy, x, y, thickness, distance = torch.tensor(rows, dtype=torch.float64).T
    shifter = shifter_of(where, float(beam.sad), thickness, distance, weight)
    return Beam(angles.gantry, angles.couch, angles.isocenter, shifter), torch.stack((energy, x, y, thickness))


def _check_rays(where: str, beam: Beam, rays: Sequence[Any]) -> None:
    """Rays lie where our gantry frame has them."""
    place = np.array([ray.ray_pos_bev for ray in rays], dtype=float)
    told = np.array([ray.ray_pos for ray in rays], dtype=float)
    off = float(np.abs(place[:, [0, 2]] @ bev_rotation(beam).numpy()[:2] - told).max())
    if off > RAY_OFF or float(np.abs(place[:, 1]).max()) > 0:
        raise InputError(f"{where} has rays that are {off:.3g} mm from where IEC 61217 has them; its frame is not pyRadPlan's")
