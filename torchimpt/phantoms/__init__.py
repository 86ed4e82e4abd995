"""Ready-made patients: water blocks, the TG-119 C-shape, and bodies drawn from simple solids.

LPS, mm, head first supine. Edges carry partial-volume CT numbers, as in a scan; ROIs are by majority.
"""

from __future__ import annotations

from collections.abc import Callable

from torchimpt.checks import InputError, nearest
from torchimpt.patient import Patient
from torchimpt.phantoms.hn import hn, xu_hn
from torchimpt.phantoms.lung import lung, xu_lung
from torchimpt.phantoms.prostate import prostate, xu_prostate
from torchimpt.phantoms.simple import step, tg119, water

PHANTOMS: dict[str, Callable[..., Patient]] = {
    "water": water, "step": step, "tg119": tg119, "hn": hn, "lung": lung, "prostate": prostate, "xu_hn": xu_hn,
    "xu_lung": xu_lung, "xu_prostate": xu_prostate,
}  # fmt: skip


def phantom(name: str, spacing: float = 3.0) -> Patient:
    """The phantom of this name.

    Parameters
    ----------
    name
        One of `PHANTOMS`.
    spacing
        Voxel size, mm.
    """
    if name not in PHANTOMS:
        raise InputError(f"there is no phantom '{name}'{nearest(name, PHANTOMS)}; there are {', '.join(PHANTOMS)}")
    return PHANTOMS[name](spacing)


__all__ = ["PHANTOMS", "hn", "lung", "phantom", "prostate", "step", "tg119", "water", "xu_hn", "xu_lung", "xu_prostate"]
