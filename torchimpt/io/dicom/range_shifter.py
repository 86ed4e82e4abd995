"""The range shifter of a field in an RT Ion Plan.

Each control point may say of each range shifter whether it is in the beam from there on, how thick it is (water-equivalent) and how far
its downstream edge is from the isocentre (`RangeShifterSettingsSequence`); what is not said again stays. A field can have one, of one
thickness in one place, that some of its layers go through.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from torchimpt.checks import InputError
from torchimpt.geometry import RangeShifter
from torchimpt.io.dicom.dataset import number

if TYPE_CHECKING:
    from pydicom import Dataset

Setting = tuple[float, float | None]
"""Thickness, mm of water, and distance of the downstream edge from the isocentre, mm, where it is told."""


def field_shifter(points: Sequence[Dataset], where: str) -> tuple[RangeShifter | None, np.ndarray, bool]:
    """The shifter that is ever in the beam, at which control points it is `(n_points,)`, and whether there are any settings.

    Parameters
    ----------
    points
        The field's control points.
    where
        The field, for messages.
    """
    now: dict[int, Setting | None] = {}
    found: list[Setting | None] = []
    for i, point in enumerate(points):
        here = f"{where}, control point {i}"
        for item in point.get("RangeShifterSettingsSequence") or ():
            which = int(item.get("ReferencedRangeShifterNumber") or 1)
            out = str(item.get("RangeShifterSetting") or "IN").upper() == "OUT"
            now[which] = None if out else _setting(item, now.get(which), here)
        inside = [setting for setting in now.values() if setting is not None and setting[0] != 0]
        if len(inside) > 1:
            raise InputError(f"{here} has {len(inside)} range shifters in the beam at once; fields with one can be read")
        found.append(inside[0] if inside else None)
    different = sorted({setting for setting in found if setting is not None}, key=str)
    if len(different) > 1:
        told = ", ".join(f"{thickness:g} mm of water at {distance} mm" for thickness, distance in different)
        raise InputError(f"{where} has range shifters of {told}; fields with one thickness in one place can be read, split it into such")
    return (RangeShifter(*different[0]) if different else None), np.array([setting is not None for setting in found]), bool(now)


def _setting(item: Dataset, before: Setting | None, here: str) -> Setting:
    """What an item says, and what was said before where it is silent."""
    thickness, distance = before or (None, None)
    if item.get("RangeShifterWaterEquivalentThickness") is not None:
        thickness = _single(number(item, "RangeShifterWaterEquivalentThickness", here))
    if item.get("IsocenterToRangeShifterDistance") is not None:
        distance = _single(number(item, "IsocenterToRangeShifterDistance", here))
    if thickness is None:
        raise InputError(f"{here} puts in a range shifter without its RangeShifterWaterEquivalentThickness; export the plan with it")
    return thickness, distance


def _single(value: float) -> float:
    """The short number behind one that was stored in single precision: 135.9, not 135.899994."""
    return float(str(np.float32(value)))
