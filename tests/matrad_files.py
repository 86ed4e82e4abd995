"""A plan of matRad's by hand: a cube of water, two beams, and variables as MATLAB saves them. Shared by the tests of reading and of commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import savemat

FIRST = np.array([-57.0, -60.0, 33.0])
STEP = np.array([4.0, 3.0, 6.0])
CELLS = (40, 30, 20)
"""Voxels `(y, x, z)`: neither the axes nor the place of the first voxel are alike."""

TARGET = np.array([9.0, -9.0, 93.0])
"""The target's middle, LPS: the centre of a voxel."""


def structs(rows: list[dict[str, Any]]) -> np.ndarray:
    """A struct array `(1, n)`."""
    found = np.empty((1, len(rows)), dtype=[(key, object) for key in rows[0]])
    for i, row in enumerate(rows):
        found[0, i] = tuple(row.values())
    return found


def cell(*values: Any) -> np.ndarray:
    """A cell array of one row."""
    found = np.empty((1, len(values)), dtype=object)
    found[0, :] = values
    return found


def axis(i: int) -> np.ndarray:
    """Voxel centres along x, y or z, mm."""
    return FIRST[i] + STEP[i] * np.arange({0: CELLS[1], 1: CELLS[0], 2: CELLS[2]}[i])


def boxes() -> dict[str, np.ndarray]:
    """1-based linear indices of body and target."""
    y, x, z = np.meshgrid(axis(1), axis(0), axis(2), indexing="ij")
    away = np.stack((x, y, z), axis=-1) - TARGET
    inside = (np.abs(away) <= np.array([8.0, 9.0, 12.0])).all(axis=-1)
    return {"Body": np.arange(1, y.size + 1.0), "CTV": np.flatnonzero(inside.flatten(order="F")) + 1.0}


def ray(x: float, z: float, in_lps: list[float], energy: list[float], plates: list[tuple[float, float]] | None = None) -> dict[str, Any]:
    """A ray through `(x, z)` of the isocentre plane, which is `in_lps` from the isocentre; plates are (thickness, from the source)."""
    shifter = [{"ID": float(t > 0), "eqThickness": t, "sourceRashiDistance": d} for t, d in plates or [(0.0, 0.0)] * len(energy)]
    return {
        "rayPos_bev": np.array([[x, 0.0, z]]), "rayPos": np.array([in_lps]), "energy": np.array([energy]), "rangeShifter": structs(shifter),
        "focusIx": np.ones((1, len(energy))),
    }  # fmt: skip


def beam(gantry: float, couch: float, isocenter: np.ndarray, rays: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """An element of `stf`."""
    return {
        "gantryAngle": gantry, "couchAngle": couch, "isoCenter": isocenter[None, :], "SAD": 10000.0, "machine": "Generic",
        "ray": structs(rays), **more,
    }  # fmt: skip


def two_beams(isocenter: np.ndarray = TARGET) -> list[dict[str, Any]]:
    """Beams whose rays' `rayPos` were worked out by hand from matRad's rule: turned by the gantry about z, then by the couch about y, in LPS.

    Gantry 0: `[x 0 z]` is `(x, 0, z)`. Gantry 90 turns x to y, `(0, x, z)`, and couch 90 then z to x: `(z, x, 0)`.
    """
    first = [ray(-7.0, -11.0, [-7.0, 0.0, -11.0], [120.0, 100.0]), ray(7.0, 11.0, [7.0, 0.0, 11.0], [100.0])]
    second = [ray(-8.0, 7.0, [7.0, -8.0, 0.0], [110.0, 90.0], [(0.0, 0.0), (30.0, 9700.0)]), ray(8.0, -7.0, [-7.0, 8.0, 0.0], [110.0])]
    return [beam(0.0, 0.0, isocenter, first), beam(90.0, 90.0, isocenter, second)]


WEIGHTS = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
"""Of `two_beams`, in the order beam, ray, energy."""


def aim(name: str, *parameters: float, penalty: float = 1.0, robustness: str = "none") -> dict[str, Any]:
    """An objective of version 3."""
    return {
        "className": f"DoseObjectives.matRad_{name}", "parameters": cell(*parameters), "penalty": penalty, "robustness": robustness,
    }  # fmt: skip


def content(stf: Any = None, aims: Any = None, **changes: Any) -> dict[str, Any]:
    """The file's variables; `changes` replace them, None leaves one out."""
    ct = {
        "cubeHU": cell(np.zeros(CELLS)), "resolution": dict(zip("xyz", STEP, strict=True)),
        **{name: axis(i)[None, :] for i, name in enumerate("xyz")}, "cubeDim": np.array([CELLS], dtype=float), "numOfCtScen": 1.0,
    }  # fmt: skip
    cst = np.empty((2, 6), dtype=object)
    for i, (name, voxels) in enumerate(boxes().items()):
        own = (aim("SquaredDeviation", 60.0, penalty=800.0),) if name == "CTV" and aims is None else aims if name == "CTV" else None
        properties = {"Priority": 2.0 - i, "alphaX": 0.1, "betaX": 0.05, "Visible": 1.0}
        asked = np.empty((0, 0)) if own is None else own if isinstance(own, np.ndarray) else cell(*own)
        cst[i, :] = [float(i), name, ("OAR", "TARGET")[i], cell(voxels[:, None]), properties, asked]
    found = {
        "ct": ct, "cst": cst, "stf": stf if isinstance(stf, np.ndarray) else structs(stf or two_beams()),
        "pln": {
            "radiationMode": "protons", "machine": "Generic", "numOfFractions": 5.0, "propStf": {"bixelWidth": 6.0},
            "propOpt": {"quantityOpt": "physicalDose"},
        },
        "resultGUI": {"w": np.array(WEIGHTS)[:, None]},
    }  # fmt: skip
    return {key: value for key, value in (found | changes).items() if value is not None}


def save(path: Path, variables: dict[str, Any] | None = None) -> Path:
    """Write the file."""
    savemat(path, content() if variables is None else variables)
    return path
