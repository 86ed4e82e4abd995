"""Dose as a colour wash on three CT slices through the target, with the outlines of the ROIs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patheffects import Normal, Stroke
from scipy.ndimage import gaussian_filter, zoom

from torchimpt.geometry import Grid
from torchimpt.patient import Patient
from torchimpt.report.style import INK, MUTED, mute, new_figure, rc

WINDOW = (-180.0, 320.0)
"""CT window, HU: soft tissue with bone still told apart."""


@dataclass(frozen=True)
class Plane:
    """One way to cut: the axis that is cut, those that run right and down the picture, whether the vertical one points up, and letters."""

    title: str
    cut: str
    across: str
    along: str
    up: bool
    sides: tuple[str, str, str, str]


PLANES = (
    Plane("Axial", "z", "x", "y", False, ("R", "L", "A", "P")),
    Plane("Sagittal", "x", "y", "z", True, ("A", "P", "S", "I")),
    Plane("Coronal", "y", "x", "z", True, ("R", "L", "S", "I")),
)


def _slice(volume: np.ndarray, plane: Plane, index: int) -> np.ndarray:
    """The picture `(along, across)` of a `(z, y, x)` volume; the remaining axes are already in this order."""
    return np.take(volume, index, axis="zyx".index(plane.cut))


def _window(mask: np.ndarray, grid: Grid, margin: float) -> dict[str, tuple[float, float]]:
    """Bounds of the mask along x, y and z, widened by `margin`, inside the grid; mm."""
    bounds = {}
    for name in "xyz":
        axis, i = "zyx".index(name), "xyz".index(name)
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        origin, step, n = grid.origin[i], grid.spacing[i], grid.shape[2 - i]
        low, high = (origin + step * (hit[0] - 0.5), origin + step * (hit[-1] + 0.5)) if hit.size else (origin, origin + step * (n - 1))
        bounds[name] = (max(low - margin, origin - step / 2), min(high + margin, origin + step * (n - 0.5)))
    return bounds


def wash() -> ListedColormap:
    """The dose scale: blue through green and yellow to red, fading out towards zero dose."""
    table = colormaps["turbo"](np.linspace(0.08, 0.93, 256))
    table[:, 3] = 0.55 * np.clip(np.linspace(0, 1, 256) / 0.3, 0, 1) ** 0.8
    return ListedColormap(table, name="dose")


def _outline(axes: Axes, mask: np.ndarray, across: np.ndarray, along: np.ndarray, color: str, width: float) -> None:
    """The border of a mask `(along, across)`, rounded by less than a voxel, with a faint halo so that it shows on any dose."""
    if not mask.any() or min(mask.shape) < 2:
        return
    rows, columns = (slice(max(i.min() - 3, 0), i.max() + 4) for i in np.nonzero(mask))
    part = mask[rows, columns].astype(float)
    smooth = gaussian_filter(part, 0.8)
    fine = zoom(smooth if smooth.max() > 0.5 else part, 4, order=1)
    across, along = across[columns], along[rows]
    lines = axes.contour(
        np.linspace(across[0], across[-1], fine.shape[1]),
        np.linspace(along[0], along[-1], fine.shape[0]),
        fine,
        levels=[0.5],
        colors=[color],
        linewidths=[width],
    )
    lines.set_path_effects([Stroke(linewidth=width + 1.3, foreground="white", alpha=0.45), Normal()])


def _panel(
    axes: Axes,
    plane: Plane,
    patient: Patient,
    dose: np.ndarray,
    point: Sequence[float],
    scale: float,
    outlines: Mapping[str, tuple[str, float]],
    bounds: Mapping[str, tuple[float, float]],
) -> AxesImage:
    """Draw one plane through `point`; returns the wash, for the colour bar."""
    grid, i = patient.grid, "xyz".index(plane.cut)
    index = min(max(round((point[i] - grid.origin[i]) / grid.spacing[i]), 0), grid.shape[2 - i] - 1)
    across, along = (grid.axis(name).numpy() for name in (plane.across, plane.along))
    step = {name: grid.spacing["xyz".index(name)] for name in "xyz"}
    sides = ((across, step[plane.across]), (along, step[plane.along]))
    picture: dict[str, Any] = {"origin": "lower", "extent": [edge for c, s in sides for edge in (c[0] - s / 2, c[-1] + s / 2)]}
    ct = _slice(patient.hu.numpy(), plane, index)
    axes.imshow(ct, cmap="gray", vmin=WINDOW[0], vmax=WINDOW[1], interpolation="bicubic", **picture)
    image = axes.imshow(_slice(dose, plane, index), cmap=wash(), vmin=0, vmax=1.1 * scale, interpolation="bilinear", **picture)
    cut = _slice(dose, plane, index)
    if cut.max() > 0.95 * scale and min(cut.shape) > 1:
        axes.contour(across, along, cut, levels=[0.95 * scale], colors=["white"], linewidths=[0.9], linestyles=[(0, (3, 1.5))])
    for name, (color, width) in outlines.items():
        _outline(axes, _slice(patient.rois[name].mask.numpy(), plane, index), across, along, color, width)
    axes.set_aspect("equal")
    axes.set_xlim(bounds[plane.across])
    axes.set_ylim(bounds[plane.along] if plane.up else bounds[plane.along][::-1])
    mute(axes)
    axes.set_facecolor("black")
    left, right, top, bottom = plane.sides
    place = {left: (0.025, 0.5), right: (0.975, 0.5), top: (0.5, 0.965), bottom: (0.5, 0.035)}
    dark = [Stroke(linewidth=2.2, foreground="black", alpha=0.55), Normal()]
    for letter, (x, y) in place.items():
        axes.text(x, y, letter, transform=axes.transAxes, color="#f0f0f0", fontsize=8, ha="center", va="center", path_effects=dark)
    axes.set_title(f"{plane.title}   {plane.cut} = {point[i]:.0f} mm", fontsize=8.5, color=MUTED, loc="left", pad=5)
    return image


def slices_figure(
    patient: Patient,
    dose: torch.Tensor,
    colors: Mapping[str, str],
    *,
    targets: Sequence[str] = (),
    rois: Sequence[str] = (),
    prescription: float | None = None,
    width: float = 1100,
) -> Figure:
    """Axial, sagittal and coronal slice through the targets' centroid (the point of highest dose when there is none).

    The wash runs from 0 to 110 % of the prescription (of the highest dose when there is none); the dashed white line is 95 % of it.

    Parameters
    ----------
    patient
        CT and ROIs.
    dose
        `(z, y, x)` on the patient's grid, Gy.
    colors
        By ROI.
    targets
        Whose centroid the slices go through, and whose outlines are thicker.
    rois
        Whose outlines are drawn besides.
    prescription
        Gy.
    width
        CSS pixels; the height follows.
    """
    volume = dose.detach().cpu().float().numpy()
    scale = prescription or float(volume.max()) or 1.0
    targets = [name for name in targets if bool(patient.roi(name).mask.any())]
    if targets:
        point = patient.centroid(targets)
    else:
        point = tuple(patient.grid.centers(torch.tensor([int(volume.argmax())]))[0].tolist())
    reach = (volume > 0.1 * scale) | (patient.union(targets).numpy() if targets else False)
    bounds = _window(reach & patient.body.numpy() if (reach & patient.body.numpy()).any() else reach, patient.grid, 25.0)
    outlines = {name: (colors[name], 1.1) for name in rois if name not in targets} | {name: (colors[name], 1.7) for name in targets}
    aspects = [(bounds[p.across][1] - bounds[p.across][0]) / (bounds[p.along][1] - bounds[p.along][0]) for p in PLANES]
    gap, bar, head = 14.0, 74.0, 24.0
    height = min((width - bar - 2 * gap) / sum(aspects), 460.0)
    left = (width - bar - 2 * gap - height * sum(aspects)) / 2
    total = height + head + 6.0
    with rc():
        figure = new_figure(width, total)
        for plane, aspect in zip(PLANES, aspects, strict=True):
            axes = figure.add_axes((left / width, 6.0 / total, aspect * height / width, height / total))
            image = _panel(axes, plane, patient, volume, point, scale, outlines, bounds)
            left += aspect * height + gap
        _bar(figure, image, scale, (left / width, 6.0 / total, 11.0 / width, height / total), prescription)
    return figure


def _bar(figure: Figure, image: AxesImage, scale: float, place: tuple[float, float, float, float], prescription: float | None) -> None:
    """The colour scale in Gy, with the prescription and 95 % of it named."""
    axes = figure.add_axes(place)
    table = colormaps["turbo"](np.linspace(0.08, 0.93, 256))[:, None, :3]
    axes.imshow(table, origin="lower", aspect="auto", extent=(0, 1, 0, 1.1 * scale), interpolation="bilinear")
    mute(axes)
    axes.yaxis.tick_right()
    levels = [fraction * scale for fraction in (0.0, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0, 1.1)]
    axes.set_yticks(levels, [f"{level:.3g}" + (" Gy" if level == levels[-1] else "") for level in levels], color=INK)
    axes.tick_params(length=0, pad=4)
    if prescription:
        axes.axhline(0.95 * scale, color="white", linewidth=1.0, linestyle=(0, (3, 1.5)))
        axes.axhline(scale, color="white", linewidth=1.0)
