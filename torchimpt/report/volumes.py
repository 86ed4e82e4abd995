"""CT, doses and ROIs as the page's script reads them: 8-bit volumes of the body's box, packed, and small enough for a page.

A volume is `(z, y, x)` bytes. Along x each voxel is stored as its difference to the one before, modulo 256, and the whole is deflated and
written in base64: a browser unpacks that by itself, value for value. CT numbers fill 0 to 255 over the display window, doses over the
highest dose of all, and eight ROIs share a byte. Where all of it together would be larger than asked, voxels are joined in pairs, first in
the axial plane.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import avg_pool3d

from torchimpt.geometry import Grid
from torchimpt.patient import Patient
from torchimpt.report.slices import WINDOW

BUDGET = 7_000_000
"""Characters that the volumes of a page may take; with the rest of it a page stays under 10 MB."""

MARGIN = 2
"""Voxels around the body that are shown, too."""


@dataclass(frozen=True)
class Volumes:
    """What is shown, on one grid.

    Attributes
    ----------
    grid
        Of all of it.
    hu
        CT numbers `(z, y, x)`, HU.
    doses
        By name, `(z, y, x)`, Gy; the first is what the others are compared with.
    masks
        By ROI, bool `(z, y, x)`.
    """

    grid: Grid
    hu: torch.Tensor
    doses: Mapping[str, torch.Tensor]
    masks: Mapping[str, torch.Tensor]


def volumes_of(patient: Patient, doses: Mapping[str, torch.Tensor], rois: Sequence[str]) -> Volumes:
    """The box of the body and of all dose, with a margin, on the patient's grid."""
    seen = patient.body.clone()
    for dose in doses.values():
        seen |= dose.cpu() > 0
    box = []
    for axis in range(3):
        hit = seen.any(dim=[a for a in range(3) if a != axis]).nonzero().flatten()
        low, high = (int(hit[0]), int(hit[-1])) if len(hit) else (0, seen.shape[axis] - 1)
        box.append(slice(max(low - MARGIN, 0), min(high + MARGIN + 1, seen.shape[axis])))
    place = (box[0], box[1], box[2])
    part = patient.hu[place]
    origin = tuple(o + s * box[2 - i].start for i, (o, s) in enumerate(zip(patient.grid.origin, patient.grid.spacing, strict=True)))
    return Volumes(
        Grid(tuple(part.shape), patient.grid.spacing, origin),
        part.float(),
        {name: dose.detach().cpu().float()[place] for name, dose in doses.items()},
        {name: patient.roi(name).mask[place] for name in rois},
    )


def joined(volumes: Volumes, factor: tuple[int, int, int]) -> Volumes:
    """Voxels joined to blocks of `factor` `(z, y, x)`: means of CT and dose, and of a mask what is inside by half.

    What does not fill a block at the far ends is left off.
    """
    grid = volumes.grid

    def mean(values: torch.Tensor) -> torch.Tensor:
        return avg_pool3d(values[None, None], factor)[0, 0]

    hu = mean(volumes.hu)
    spacing = tuple(s * f for s, f in zip(grid.spacing, reversed(factor), strict=True))
    origin = tuple(o + 0.5 * (wide - s) for o, s, wide in zip(grid.origin, grid.spacing, spacing, strict=True))
    return Volumes(
        Grid(tuple(hu.shape), spacing, origin),
        hu,
        {name: mean(dose) for name, dose in volumes.doses.items()},
        {name: mean(mask.float()) >= 0.5 for name, mask in volumes.masks.items()},
    )


def packed(values: np.ndarray) -> str:
    """A volume of bytes as base64 of deflated differences along its last axis."""
    differences = np.diff(values, axis=-1, prepend=np.zeros((*values.shape[:-1], 1), np.uint8))
    return base64.b64encode(zlib.compress(differences.tobytes(), 6)).decode("ascii")


def _bytes(values: torch.Tensor, low: float, high: float) -> np.ndarray:
    return ((values - low) * (255.0 / (high - low))).round().clamp(0, 255).to(torch.uint8).numpy()


def _parts(volumes: Volumes, top: float) -> dict[str, str]:
    """Every volume packed, by its id on the page."""
    parts = {"volume-ct": packed(_bytes(volumes.hu, *WINDOW))}
    masks = list(volumes.masks.values())
    for first in range(0, len(masks), 8):
        byte = np.zeros(volumes.grid.shape, np.uint8)
        for bit, mask in enumerate(masks[first : first + 8]):
            byte |= mask.numpy().astype(np.uint8) << bit
        parts[f"volume-rois-{first // 8}"] = packed(byte)
    return parts | {f"volume-dose-{number}": packed(_bytes(dose, 0.0, top)) for number, dose in enumerate(volumes.doses.values())}


def volume_data(volumes: Volumes, point: Sequence[float], budget: int = BUDGET) -> tuple[dict[str, Any], dict[str, str]]:
    """What the script draws slices from, and the packed volumes by their ids.

    Parameters
    ----------
    volumes
        What is shown, at least one dose.
    point
        LPS, mm: the slices to begin with go through it.
    budget
        Characters that all packed volumes may take together; voxels are joined until they fit, or until an axis has 32 or fewer.

    Returns
    -------
    `shape`, `spacing`, `origin` as of a `Grid`; `window` of the CT, HU; `step`, Gy of one level of a dose; `top`, the highest dose, Gy;
    `most`, what differences are coloured up to, Gy; `doses`, each with `name` and `id`; `ct` and `masks`, ids; `start`, voxel `(x, y, z)`
    to begin at; `joined`, whether voxels were.
    """
    top = max(max(float(dose.max()) for dose in volumes.doses.values()), 1e-3)
    shown, parts = volumes, _parts(volumes, top)
    while sum(map(len, parts.values())) > budget and (factor := _coarser(shown.grid)) is not None:
        shown = joined(shown, factor)
        parts = _parts(shown, top)
    grid, doses = shown.grid, list(shown.doses)
    first = shown.doses[doses[0]]
    off = torch.cat([(dose - first).abs().flatten().float() for name, dose in shown.doses.items() if name != doses[0]] or [torch.zeros(1)])
    most = max(float(off.max()), 0.02 * top)
    index = [round((p - o) / s) for p, o, s in zip(point, grid.origin, grid.spacing, strict=True)]
    data = {
        "shape": grid.shape, "spacing": grid.spacing, "origin": grid.origin, "window": WINDOW,
        "step": top / 255.0, "top": top, "most": most,
        "ct": "volume-ct", "masks": [name for name in parts if name.startswith("volume-rois-")],
        "doses": [{"name": name, "id": f"volume-dose-{number}"} for number, name in enumerate(doses)],
        "start": [min(max(i, 0), n - 1) for i, n in zip(index, reversed(grid.shape), strict=True)],
        "joined": shown is not volumes,
    }  # fmt: skip
    return data, parts


def _coarser(grid: Grid) -> tuple[int, int, int] | None:
    """By what to join voxels `(z, y, x)`: in the axial plane while its voxels are no larger than those along z; None where few are left."""
    n_z, n_y, n_x = grid.shape
    flat = max(grid.spacing[:2]) <= grid.spacing[2]
    if min(n_y, n_x) <= 32 or (not flat and n_z <= 32):
        return None
    return (1, 2, 2) if flat else (2, 1, 1)


def most_telling(names: Sequence[str], worst: Sequence[str], limit: int = 9) -> list[str]:
    """The scenarios whose doses are shown, at most `limit`: the first, which is nominal, those that are worst for a goal, and the next.

    Parameters
    ----------
    names
        All, nominal first.
    worst
        Of each goal.
    limit
        At least 1.
    """
    order = [names[0], *(name for name in worst if name in names), *names]
    chosen = set(list(dict.fromkeys(order))[:limit])
    return [name for name in names if name in chosen]


def start_point(patient: Patient, dose: torch.Tensor, targets: Sequence[str]) -> tuple[float, ...]:
    """LPS, mm: the targets' centroid, or the point of highest dose where there is none."""
    targets = [name for name in targets if bool(patient.roi(name).mask.any())]
    if targets:
        return patient.centroid(targets)
    return tuple(patient.grid.centers(torch.tensor([int(dose.detach().cpu().argmax())]))[0].tolist())
