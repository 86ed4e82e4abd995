"""Plans in matRad's files: `stf` (where spots are), `pln` (fractions) and `resultGUI.w` (weights), as an `IonPlan`.

A bixel of matRad's is a spot: a ray's `rayPos_bev` and one of its energies, with a range shifter of its own. `resultGUI.w` is 10^6
particles of a fraction; the course's is `w * numOfFractions`. What this package exported also has a variable `torchimpt`: each bixel's
number among the spots and its weight in the course, which is used where it is that of `w` to rounding, so that plans come back bit for bit.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchimpt.checks import InputError
from torchimpt.files import input_file, reader
from torchimpt.geometry import Beam, RangeShifter, bev_rotation
from torchimpt.io.dicom import IonField, IonPlan
from torchimpt.io.mat import field, has, load, number, numbers, structs, text
from torchimpt.io.matrad.frame import in_lps, source_distance
from torchimpt.io.matrad.objectives import objective_rows
from torchimpt.io.matrad.patient import patient_of

VARIABLES = ("ct", "cst", "pln", "stf", "resultGUI", "torchimpt")

RAY_OFF = 0.01
"""How far a ray's `rayPos` may be from where its `rayPos_bev` is in our gantry frame, mm."""

DRIFT_OFF = 1.0
"""Range shifters of one beam that lie farther apart than this are worth a word, mm."""

SAME_WEIGHT = 1e-9
"""Share by which a weight of the course may differ from `w * numOfFractions` and still be that of it: rounding."""

logger = logging.getLogger(__name__)


def is_mat(path: str | os.PathLike) -> bool:
    """Whether a file is MATLAB's, by its name."""
    return Path(path).suffix.lower() == ".mat"


@reader("matRad plan")
def read_matrad_plan(path: str | os.PathLike) -> IonPlan:
    """Read a plan that matRad saved.

    Parameters
    ----------
    path
        A `.mat` file with `ct`, `cst`, `pln`, `stf` and `resultGUI`, in MATLAB's format 7 or older.

    Returns
    -------
    Its fields with the weights of the course. All range shifters of a beam must be of one thickness; where they lie at several distances,
    they are taken to lie at the mean of these, weighted by protons, with a logged warning. A plan whose rays are not where our gantry frame
    has them, within 0.01 mm, is refused, and so is one whose isocentre could be in either of matRad's frames (`torchimpt.io.matrad.frame`).
    """
    path = input_file(path, "matRad plan")
    content = load(path, VARIABLES)
    missing = [name for name in VARIABLES[:-1] if name not in content]
    if missing:
        raise InputError(f"{path} has no variable {' and '.join(missing)}, so it is no matRad plan; save {', '.join(VARIABLES[:-1])}")
    pln, beams = content["pln"], structs(content["stf"])
    mode = text(pln, "radiationMode") or "protons"
    if mode != "protons":
        raise InputError(f"{path} is a plan of {mode[:40]}; torchimpt plans with protons")
    fractions = number(path, pln, "numOfFractions", "pln") if has(pln, "numOfFractions") else 1.0
    if fractions != int(fractions) or fractions < 1:
        raise InputError(f"{path}: pln.numOfFractions must be a whole number, 1 or more, got {fractions:g}")
    columns = [_bixels(path, stf, f"stf({i + 1})") for i, stf in enumerate(beams)]
    weight = numbers(path, content["resultGUI"], "w", "resultGUI", sum(len(own) for own, _ in columns))
    number_, course = _own(content.get("torchimpt"), weight * fractions)
    patient = patient_of(path, content)
    prescribed = {row["roi"] for row in objective_rows(path, content["cst"])[0]}
    isocenters = in_lps(path, content, patient, prescribed, beams, [own[:, 1:3] for own, _ in columns])
    fields, start = [], 0
    for i, (stf, (own, focus)) in enumerate(zip(beams, columns, strict=True)):
        part = slice(start, start + len(own))
        order = np.argsort(number_[part], kind="stable")
        columns_ = np.column_stack((own, weight[part], course[part]))[order]
        fields.append(_field(path, stf, i, isocenters[i], columns_, text(stf, "machine") or text(pln, "machine")))
        if (focus > 1).any():
            logger.warning("%s: %d spots of beam %d are not of the machine's first focus, which is taken", path, (focus > 1).sum(), i)
        start += len(own)
    return IonPlan(str(path), path.stem, int(fractions), tuple(fields))


def _bixels(path: Path, stf: Any, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Energy, x, y, range shifter's thickness and its distance from the source `(n, 5)` of a beam's bixels, in order; and their foci."""
    rotation = bev_rotation(_beam(path, stf, what)).numpy()
    rows, foci = [], []
    rays = structs(field(path, stf, "ray", what))
    for j, ray in enumerate(rays):
        here = f"{what}.ray({j + 1})"
        place = numbers(path, ray, "rayPos_bev", here, 3)
        if place[1] != 0:
            raise InputError(f"{path}: {here}.rayPos_bev must lie in the isocentre's plane, [x 0 z], got {place.tolist()}")
        if has(ray, "rayPos"):
            told = numbers(path, ray, "rayPos", here, 3)
            ours = place[[0, 2]] @ rotation[:2]
            if np.abs(told - ours).max() > RAY_OFF:
                raise InputError(
                    f"{path}: {here}.rayPos is {np.round(told, 3).tolist()}, but rayPos_bev at these angles is "
                    f"{np.round(ours, 3).tolist()} by IEC 61217; the file's frame is not matRad's"
                )
        energy = numbers(path, ray, "energy", here)
        shifter = structs(ray.rangeShifter) if has(ray, "rangeShifter") else []
        if len(shifter) not in (0, len(energy)):
            raise InputError(f"{path}: {here} has {len(energy)} energies and {len(shifter)} range shifters; it needs one for each")
        plates = [[number(path, one, key, f"{here}.rangeShifter") for key in _PLATE] for one in shifter] or [[0.0, 0.0]] * len(energy)
        rows += [[e, place[0], place[2], *plate] for e, plate in zip(energy, plates, strict=True)]
        foci.append(numbers(path, ray, "focusIx", here, len(energy)) if has(ray, "focusIx") else np.ones(len(energy)))
    if not rows:
        raise InputError(f"{path}: {what} has no ray")
    return np.array(rows), np.concatenate(foci)


_PLATE = ("eqThickness", "sourceRashiDistance")


def _beam(path: Path, stf: Any, what: str) -> Beam:
    """The angles of a beam."""
    return Beam(number(path, stf, "gantryAngle", what), number(path, stf, "couchAngle", what), (0.0, 0.0, 0.0), position="HFS")


def _own(ours: Any, course: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the bixels among the spots, and the course's weights: those of the variable `torchimpt` where it fits these weights."""
    there = np.arange(len(course), dtype=np.float64), course
    if ours is None or not (has(ours, "spot") and has(ours, "weight")):
        return there
    spot, weight = np.atleast_1d(ours.spot), np.atleast_1d(ours.weight)
    if spot.shape != course.shape or weight.shape != course.shape or spot.dtype.kind not in "fiu" or weight.dtype.kind != "f":
        return there
    same = np.abs(weight - course) <= SAME_WEIGHT * np.abs(course)
    return (spot.astype(np.float64), weight) if same.all() else there  # optimized again since


def _field(path: Path, stf: Any, i: int, isocenter: np.ndarray, columns: np.ndarray, machine: str) -> IonField:
    """A field of bixels' columns: as `_bixels`, weight of a fraction, weight of the course."""
    what = f"stf({i + 1})"
    sad = source_distance(path, stf, what)
    beam = _beam(path, stf, what)
    energy, x, y, thickness, distance, fraction, course = (torch.from_numpy(np.ascontiguousarray(column)) for column in columns.T)
    shifter = shifter_of(f"{path}: {what}", sad, thickness, distance, fraction)
    at = (float(isocenter[0]), float(isocenter[1]), float(isocenter[2]))
    return IonField(
        number=i + 1, name=machine, beam=Beam(beam.gantry, beam.couch, at, shifter, "HFS"), sad=(sad, sad), unit="1e6 protons", devices=(),
        shifter=shifter, shifted=thickness > 0, beside=None, energy=energy, x=x, y=y, meterset=fraction, weight=course,
    )  # fmt: skip


def shifter_of(what: str, sad: float, thickness: torch.Tensor, distance: torch.Tensor, weight: torch.Tensor) -> RangeShifter | None:
    """The range shifter of a beam, of each bixel's thickness, distance from the source, and weight `(n,)`; None where there is none.

    matRad's pencil beams and its DICOM import have `sourceRashiDistance` where the plate ends.
    """
    inside = thickness > 0
    if not bool(inside.any()):
        return None
    kinds = thickness[inside].unique()
    if len(kinds) > 1:
        told = ", ".join(f"{t:g}" for t in kinds.tolist())
        raise InputError(f"{what} has range shifters of {told} mm; a beam can have one, so split it in matRad")
    places = sad - distance[inside]
    share = weight[inside] if float(weight[inside].sum()) > 0 else torch.ones_like(places)
    # the mean of equal numbers is not always that number
    place = float(places[0]) if bool((places == places[0]).all()) else float((places * share).sum() / share.sum())
    if float(places.max() - places.min()) > DRIFT_OFF:
        logger.warning(
            "%s has its range shifter %.4g to %.4g mm from the isocentre; the mean, %.4g mm, is taken", what,
            float(places.min()), float(places.max()), place,
        )  # fmt: skip
    return RangeShifter(float(kinds[0]), place)
