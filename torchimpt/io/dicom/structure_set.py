"""RT Structure Sets (DICOM PS3.3, A.19): ROIs as they were drawn, on the planes of a CT.

Which ROI is what: by its interpreted type (PTV, CTV, GTV, EXTERNAL), and by its name where that says nothing.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from torchimpt.checks import InputError, one_line
from torchimpt.contours import Contours, Plane, closed
from torchimpt.io.dicom.catalog import STRUCTURES
from torchimpt.io.dicom.dataset import dataset, number
from torchimpt.io.roles import role_of

if TYPE_CHECKING:
    from pydicom import Dataset

TARGETS = ("PTV", "CTV", "GTV")
"""Interpreted types of targets."""

BY_NAME = ("", "ORGAN", "NONE")
"""Interpreted types that programs give to everything, so that the name says more."""

CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
"""Geometric types of contours that enclose something."""

TOGETHER = 0.02
"""Planes as near as this are one, mm: positions are written with two to five decimals."""

FLAT = 0.1
"""How far a contour may leave its plane, mm."""

APART = 1.5
"""Planes that are farther from each other than this times what is usual have nothing between them."""

MOST_SKIPPED = 3.5
"""A ROI may be drawn on every third slice of the CT; planes farther apart than this times a slice are islands."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class DrawnROI:
    """A ROI as the file has it.

    Attributes
    ----------
    number, name, kind
        As in the file; the name made its own where two have the same one. The kind is the interpreted type.
    role
        As of a `ROI`.
    contours
        LPS points `(n, 3)`, mm, of each closed contour.
    rsp
        Relative stopping power of all that is inside, where the file tells it (REL_STOP_RATIO).
    """

    number: int
    name: str
    kind: str
    role: str
    contours: tuple[np.ndarray, ...]
    rsp: float | None = None


@dataclass(frozen=True, eq=False)
class StructureSet:
    """A structure set.

    Attributes
    ----------
    path, label, uid
        The file, what it calls itself, and its SOP Instance UID.
    frame, series, images
        UIDs of the frame of reference, of the CT series, and of its slices, empty where the file does not say.
    rois
        In the file's order, those without a closed contour too.
    """

    path: str
    label: str
    uid: str
    frame: str
    series: str
    images: frozenset[str]
    rois: tuple[DrawnROI, ...]

    @property
    def step(self) -> float:
        """How far planes lie apart, mm: the least distance in a ROI; 3 where no ROI has two planes."""
        gaps = [np.diff(_levels(roi.contours)).min() for roi in self.rois if len(_levels(roi.contours)) > 1]
        return float(min(gaps, default=3.0))


def read_structure_set(path: str | os.PathLike) -> StructureSet:
    """Read an RT Structure Set. Points and open lines enclose nothing and are left out."""
    with dataset(path, "RT Structure Set", "RTSTRUCT", STRUCTURES) as file:
        observed = {int(item.get("ReferencedROINumber", -1)): item for item in file.get("RTROIObservationsSequence") or ()}
        kinds = {index: str(item.get("RTROIInterpretedType") or "").strip().upper() for index, item in observed.items()}
        drawn = {int(item.get("ReferencedROINumber", -1)): item for item in file.get("ROIContourSequence") or ()}
        rois = []
        for item in file.get("StructureSetROISequence") or ():
            index = int(item.ROINumber)
            name = one_line(str(item.get("ROIName") or "")).strip() or f"ROI {index}"
            contours = _contours(drawn[index], name) if index in drawn else ()
            rsp = _rsp(observed[index], name) if index in observed else None
            rois.append(DrawnROI(index, name, kinds.get(index, ""), "oar", contours, rsp))
        if not rois:
            raise InputError("the structure set has no ROI; export it with its structures")
        frame, series, images = references(file)
        label = str(file.get("StructureSetLabel") or file.get("StructureSetName") or "")
        rois = _with_roles(_own_names(rois))
        return StructureSet(str(path), one_line(label), str(file.get("SOPInstanceUID", "")), frame, series, images, tuple(rois))


def references(file: Dataset) -> tuple[str, str, frozenset[str]]:
    """The frame of reference, the CT series and its slices that a structure set names; empty where it does not."""
    frames, series, images = [], [], set()
    for frame in file.get("ReferencedFrameOfReferenceSequence") or ():
        frames.append(str(frame.get("FrameOfReferenceUID") or ""))
        for study in frame.get("RTReferencedStudySequence") or ():
            for one in study.get("RTReferencedSeriesSequence") or ():
                series.append(str(one.get("SeriesInstanceUID") or ""))
                images |= {str(image.get("ReferencedSOPInstanceUID", "")) for image in one.get("ContourImageSequence") or ()}
    return next(filter(None, frames), ""), next(filter(None, series), ""), frozenset(images)


def _rsp(observed: Dataset, name: str) -> float | None:
    """The relative stopping power that is told of a ROI, None where none is."""
    for told in observed.get("ROIPhysicalPropertiesSequence") or ():
        if told.get("ROIPhysicalProperty") == "REL_STOP_RATIO":
            return number(told, "ROIPhysicalPropertyValue", f"ROI '{name}'")
    return None


def _contours(item: Dataset, name: str) -> tuple[np.ndarray, ...]:
    """The closed contours of a ROI; one that is there twice once, as two would be a hole."""
    found: dict[bytes, np.ndarray] = {}
    other: Counter[str] = Counter()
    for contour in item.get("ContourSequence") or ():
        kind = str(contour.get("ContourGeometricType") or "")
        if kind not in CLOSED:
            other[kind] += 1
            continue
        values = _coordinates(contour)
        if values.ndim != 1 or values.size % 3 or not np.isfinite(values).all():
            raise InputError(f"ROI '{name}': a contour must be points of three finite numbers, got {values.size} values; export it anew")
        points = values.reshape(-1, 3)
        if len(points) > 1 and bool((points[0] == points[-1]).all()):
            points = points[:-1]
        if len(points) > 2:
            found.setdefault(points.tobytes(), points)
    for kind, count in other.items():
        logger.info("ROI '%s': %d contours of type %s enclose nothing and are left out", name, count, kind or "unknown")
    return tuple(found.values())


def _coordinates(contour: Dataset) -> np.ndarray:
    """A contour's numbers, float64: as text from the file, since an object for each, as pydicom makes, takes ten times as long."""
    if "ContourData" not in contour:
        return np.zeros(0)
    value = contour.get_item("ContourData").value
    if not isinstance(value, bytes):
        return np.asarray(value if value is not None else (), dtype=np.float64)
    return np.array([text for text in value.decode("ascii").strip("\0 ").split("\\") if text], dtype=np.float64)


def _own_names(rois: list[DrawnROI]) -> list[DrawnROI]:
    """ROIs that share a name get their number behind it."""
    count = Counter(roi.name for roi in rois)
    twice = [name for name, n in count.items() if n > 1]
    if twice:
        example = next(f"{roi.name} #{roi.number}" for roi in rois if roi.name in twice)
        logger.warning("several ROIs are named %s: they are told apart by their numbers, as in '%s'", ", ".join(twice), example)
    return [replace(roi, name=f"{roi.name} #{roi.number}") if count[roi.name] > 1 else roi for roi in rois]


def _with_roles(rois: list[DrawnROI]) -> list[DrawnROI]:
    """Each with its role; at most one is the external."""
    roles = []
    for roi in rois:
        named = role_of(roi.name) if roi.kind in BY_NAME else "oar"
        roles.append("external" if roi.kind == "EXTERNAL" else "target" if roi.kind in TARGETS else named)
    bodies = [i for i, role in enumerate(roles) if role == "external"]
    # drawn, then of that type, then named so, then the first
    best = min(bodies, key=lambda i: (not rois[i].contours, rois[i].kind != "EXTERNAL", role_of(rois[i].name) != "external", i), default=-1)
    for i in bodies:
        if i != best:
            logger.warning("ROI '%s' is a second outline of the body beside '%s', which counts", rois[i].name, rois[best].name)
            roles[i] = "oar"
    return [replace(roi, role=role) for roi, role in zip(rois, roles, strict=True)]


def _levels(contours: tuple[np.ndarray, ...]) -> np.ndarray:
    """Different z of contours, ascending, mm."""
    levels = np.sort([points[:, 2].mean() for points in contours]) if contours else np.zeros(0)
    return levels[np.diff(levels, prepend=-np.inf) > TOGETHER]


def outline(
    roi: DrawnROI,
    step: float,
    origin: np.ndarray | None = None,
    axes: np.ndarray | None = None,
    slices: np.ndarray | None = None,
) -> Contours:
    """The region between a ROI's contours.

    Parameters
    ----------
    roi
        With its contours.
    step
        How thick a plane is that has no neighbour, mm, where `slices` do not tell.
    origin, axes
        Frame of the planes, as of `Contours`; None: the patient's own, planes of one z.
    slices
        Where the CT's slices lie along `w`, mm, ascending.

    Returns
    -------
    A region without planes where nothing is drawn.

    Raises
    ------
    InputError
        Where a contour does not lie in one plane of the frame.
    """
    origin, axes = np.zeros(3) if origin is None else origin, np.eye(3) if axes is None else axes
    drawn = [np.linalg.solve(axes, (points - origin).T).T for points in roi.contours]
    for points in drawn:
        bend = float(np.ptp(points[:, 2]))
        if bend > FLAT:
            raise InputError(
                f"ROI '{roi.name}' has a contour that leaves the plane of the CT's slices by {bend:.3g} mm; contours on other planes "
                "cannot be read: export it as contours on the CT's slices"
            )
    drawn.sort(key=lambda points: float(points[:, 2].mean()))
    levels = np.array([points[:, 2].mean() for points in drawn])
    of = np.cumsum(np.diff(levels, prepend=-np.inf) > TOGETHER) - 1
    planes = [np.flatnonzero(of == i) for i in range(of[-1] + 1)] if len(of) else []
    middle = np.array([levels[one].mean() for one in planes])
    low, high = slabs(middle, step, slices)
    if len(skipped := np.flatnonzero((low[1:] - high[:-1] > TOGETHER) & (np.diff(middle) < 2.0 * MOST_SKIPPED * step))):
        logger.warning("ROI '%s': nothing is drawn between planes %g and %g mm: it has a gap there", roi.name, *middle[skipped[0] :][:2])
    made = zip(planes, low, high, strict=True)
    return Contours(origin, axes, tuple(Plane(float(a), float(b), closed([drawn[i][:, :2] for i in one])) for one, a, b in made))


def slabs(planes: np.ndarray, step: float, slices: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """From where to where `(n,)` each plane holds, mm: to the middle between neighbours, and as far at an end.

    Parameters
    ----------
    planes
        `w`, ascending.
    step, slices
        As for `outline`.
    """
    if not len(planes):
        return planes, planes
    if slices is not None and len(slices) > 1:
        local = np.interp(planes, 0.5 * (slices[1:] + slices[:-1]), np.diff(slices))
    else:
        local = np.full(len(planes), step)
    gaps = np.diff(planes)
    least = float(gaps.min()) if len(gaps) else 0.0
    usual = np.maximum(local, least if least <= MOST_SKIPPED * float(local.min()) else 0.0)
    joined = gaps <= APART * np.maximum(usual[1:], usual[:-1]) if len(gaps) else np.zeros(0, dtype=bool)
    below, above = np.append(np.nan, np.where(joined, gaps, np.nan)), np.append(np.where(joined, gaps, np.nan), np.nan)
    alone = np.where(np.isnan(above), np.where(np.isnan(below), usual, below), above)
    return planes - 0.5 * np.where(np.isnan(below), alone, below), planes + 0.5 * np.where(np.isnan(above), alone, above)
