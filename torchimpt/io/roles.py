"""Roles from ROI names, for files that tell only names."""

from __future__ import annotations

import re

_EXTERNAL = re.compile(r"(external|body|skin|outer ?contour)", re.IGNORECASE)
_TARGET = re.compile(r"(ptv|ctv|gtv|itv).*|.*target.*", re.IGNORECASE)


def role_of(name: str) -> str:
    """The role that a ROI's name tells.

    `External`, `Body`, `Skin` and `Outer Contour` are the external; names that begin with PTV, CTV, GTV or ITV or hold
    "target" are targets; the rest are organs at risk. Case does not matter.
    """
    if _EXTERNAL.fullmatch(name.strip()):
        return "external"
    return "target" if _TARGET.fullmatch(name.strip()) else "oar"
