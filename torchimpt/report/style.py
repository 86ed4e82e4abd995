"""How figures look: colours and type.

A figure is drawn at CSS size, 96 px to the inch, so that 9 pt in the figure is 12 px on the page.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from torchimpt.patient import Patient

INK, MUTED, ACCENT = "#1c2327", "#69727a", "#0e6b75"
# two targets and seven organs are far apart for protanopes, deuteranopes and tritanopes, too (tests/report/test_drawn.py)
_TARGETS = ("#c5283d", "#cc6729", "#a4336f", "#7a1f2b")
_ORGANS = (
    "#4161c6", "#1d9162", "#7222df", "#dea722", "#33c0df", "#883577", "#89bd6c", "#9b5b3a", "#3c4a9e", "#2c9c9c", "#8f8f3a", "#556b78",
)  # fmt: skip

RC: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "text.color": INK,
    # a name may have a $ in it
    "text.parse_math": False,
    "axes.edgecolor": "#c9c6be",
    "axes.labelcolor": MUTED,
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#efede8",
    "grid.linewidth": 0.8,
    "xtick.color": "#c9c6be",
    "ytick.color": "#c9c6be",
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 8,
}


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of `width` x `height` CSS pixels; call inside `rc()`."""
    return Figure(figsize=(width / 96, height / 96), dpi=96)


def rc() -> AbstractContextManager[None]:
    """The house style, for the time of a `with` block."""
    return matplotlib.rc_context(RC)


def colors_by_role(roles: Mapping[str, str]) -> dict[str, str]:
    """One colour a ROI from `{roi: role}`: warm ones for targets, cool ones for organs, grey for the body."""
    colors, targets, organs = {}, 0, 0
    for name, role in roles.items():
        if role == "external":
            colors[name] = "#9aa0a6"
        elif role == "target":
            colors[name], targets = _TARGETS[targets % len(_TARGETS)], targets + 1
        else:
            colors[name], organs = _ORGANS[organs % len(_ORGANS)], organs + 1
    return colors


def roi_colors(patient: Patient, first: Iterable[str] = ()) -> dict[str, str]:
    """One colour a ROI, the same in every figure; the ROIs of `first` choose before the others."""
    order = dict.fromkeys([*first, *patient.rois])
    return colors_by_role({name: patient.roi(name).role for name in order})


def shown_rois(patient: Patient, available: Iterable[str], first: Iterable[str] = (), limit: int = 12) -> list[str]:
    """The ROIs worth a curve: those of `first`, then targets, then the others; never the body, at most `limit`."""
    available = [name for name in available if name in patient.rois and patient.rois[name].role != "external"]
    order = [*first, *patient.targets, *available]
    return [name for name in dict.fromkeys(order) if name in available][:limit]


def mute(axes: Axes) -> None:
    """No ticks, no frame, no grid."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def slug(name: str) -> str:
    """A ROI's name for ids and tags, another for every other name: letters, digits and `_` stay, a space is `.`, the rest `-code-`."""
    return re.sub(r"\W", lambda found: "." if found[0] == " " else f"-{ord(found[0]):x}-", name)
