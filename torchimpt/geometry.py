"""Frames and grids.

Patient frame: DICOM LPS, mm (x to patient left, y to posterior, z to superior); arrays are `(z, y, x)`.
IEC 61217 for a head-first supine patient: table frame `Xs = x - iso_x`, `Ys = z - iso_z`, `Zs = -(y - iso_y)`;
for one who lies otherwise: `table_axes`. The couch turns the table about the vertical `Zf`, the gantry turns about `Yf`
and has its source at `SAD (sin g, 0, cos g)`. `(Xg, Yg)` are the beam's-eye-view (BEV) axes, `Zg` points to the source.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch

from torchimpt.checks import InputError, nearest, triple

THICKEST = 400.0
"""No range shifter is thicker, mm of water: the range of 250 MeV is 380 mm."""

FINEST, COARSEST = 0.01, 1000.0
"""No voxels are smaller or larger, mm: a scanner's are 0.1 to 10, and those of another unit are a thousand times so."""

AWAY = 1e5
"""No patient lies farther from a frame of reference's origin, mm: 100 m."""

FARTHEST = 5000.0
"""No gantry's nozzle lies farther from the isocentre, mm."""

POSITIONS = ("HFS", "HFP", "HFDR", "HFDL", "FFS", "FFP", "FFDR", "FFDL")
"""How a patient lies on the table, by DICOM's names (Patient Position): head or feet first, that is towards the gantry; supine, prone, or
on the right or left side (decubitus)."""

SHIFTER_RULES = ("all", "layers", "beam")
"""Which energy layers of a beam go through its range shifter: every one; those that need it, in a group of their own; every one where any
needs it, and else none."""


@dataclass(frozen=True)
class Grid:
    """A regular, axis-aligned grid of voxels in LPS.

    Attributes
    ----------
    shape
        Number of voxels `(n_z, n_y, n_x)`.
    spacing
        Voxel size `(x, y, z)`, mm.
    origin
        Centre of voxel `[0, 0, 0]` as `(x, y, z)`, mm.

    Examples
    --------
    >>> grid = Grid(shape=(20, 40, 50), spacing=(2.0, 2.0, 3.0), origin=(-50.0, -40.0, 0.0))
    >>> grid.n_voxels, grid.voxel_volume
    (40000, 12.0)
    >>> grid.centers(torch.tensor([0, 1])).tolist()
    [[-50.0, -40.0, 0.0], [-48.0, -40.0, 0.0]]
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise InputError(f"a grid's shape must be three positive counts (z, y, x), got {self.shape}")
        spacing = triple("a grid's spacing", self.spacing)
        if min(spacing) <= 0:
            raise InputError(f"a grid's spacing must be positive, mm, got {self.spacing}")
        if min(spacing) < FINEST or max(spacing) > COARSEST:
            raise InputError(f"a grid's spacing must lie between {FINEST:g} and {COARSEST:g} mm, got {self.spacing}; check its unit")
        origin = triple("a grid's origin", self.origin)
        if max(map(abs, origin)) > AWAY:
            raise InputError(f"a grid's origin must lie within {AWAY:g} mm of that of its frame, got {self.origin}; check its unit")
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "spacing", spacing)
        object.__setattr__(self, "origin", origin)

    @property
    def n_voxels(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape)

    @property
    def voxel_volume(self) -> float:
        """Volume of one voxel, mm^3."""
        return math.prod(self.spacing)

    def axis(self, name: str) -> torch.Tensor:
        """Voxel centres along `"x"`, `"y"` or `"z"`, mm, float64."""
        i = "xyz".index(name)
        return self.origin[i] + self.spacing[i] * torch.arange(self.shape[2 - i], dtype=torch.float64)

    def centers(self, voxels: torch.Tensor | None = None) -> torch.Tensor:
        """LPS centres `(n, 3)` of the voxels with these flat indices (all of them when None), mm, float64."""
        if voxels is None:
            voxels = torch.arange(self.n_voxels)
        _, n_y, n_x = self.shape
        index = torch.stack((voxels % n_x, voxels // n_x % n_y, voxels // (n_x * n_y)), dim=1)
        spacing, origin = (torch.tensor(v, dtype=torch.float64, device=voxels.device) for v in (self.spacing, self.origin))
        return index * spacing + origin


@dataclass(frozen=True)
class RangeShifter:
    """A plate in the beam, upstream of the patient, that takes a fixed range off the protons that go through it.

    Attributes
    ----------
    thickness
        Water-equivalent, mm.
    distance
        From the isocentre to its downstream face, mm. None for one that moves: `place_spots` puts it near the patient.
    rule
        One of `SHIFTER_RULES`, for `place_spots`. What became of it stands in the spots' layers, so that it tells no two shifters apart.
    """

    thickness: float
    distance: float | None = None
    rule: str = field(default="all", compare=False)

    def __post_init__(self) -> None:
        thickness = float(self.thickness)
        if not 0.0 < thickness <= THICKEST:
            raise InputError(f"a range shifter must be thicker than 0 and at most {THICKEST:g} mm of water, got {thickness:g}")
        object.__setattr__(self, "thickness", thickness)
        if self.distance is not None:
            distance = float(self.distance)
            if not 0.0 <= distance <= FARTHEST:
                raise InputError(
                    f"a range shifter's downstream face must lie 0 to {FARTHEST:g} mm upstream of the isocentre, got {distance:g}"
                )
            object.__setattr__(self, "distance", distance)
        if self.rule not in SHIFTER_RULES:
            raise InputError(
                f"a range shifter's rule must be one of {', '.join(SHIFTER_RULES)}, got '{self.rule}'{nearest(self.rule, SHIFTER_RULES)}"
            )


@dataclass(frozen=True)
class Beam:
    """One treatment field.

    Attributes
    ----------
    gantry, couch
        IEC 61217 angles, degrees.
    isocenter
        LPS point, mm; None means the target's centroid, filled in by `place_spots`.
    shifter
        Range shifter that some or all of its energy layers go through; None where there is none.
    position
        How the patient lies, one of `POSITIONS`; None: as in the CT, filled in by `place_spots`, else head first supine.

    Examples
    --------
    Gantry 90 enters from the patient's left, LPS +x: a point on that side lies towards the source.

    >>> to_bev(torch.tensor([[30.0, 0.0, 0.0]]), Beam(gantry=90.0, isocenter=(0.0, 0.0, 0.0))).round(decimals=3).tolist()
    [[0.0, 0.0, 30.0]]
    """

    gantry: float = 0.0
    couch: float = 0.0
    isocenter: tuple[float, float, float] | None = None
    shifter: RangeShifter | None = None
    position: str | None = None

    def __post_init__(self) -> None:
        if self.position is not None:
            check_position(self.position)
        for name in ("gantry", "couch"):
            value = float(getattr(self, name))
            if not math.isfinite(value):
                raise InputError(f"a beam's {name} angle must be a finite number of degrees, got {value}")
            object.__setattr__(self, name, value)
        if self.isocenter is not None:
            object.__setattr__(self, "isocenter", triple("a beam's isocenter", self.isocenter))

    def at(self, isocenter: tuple[float, float, float]) -> Beam:
        """This beam with `isocenter` where it had none of its own."""
        return self if self.isocenter is not None else replace(self, isocenter=isocenter)

    def on(self, position: str) -> Beam:
        """This beam for a patient who lies in `position`, where it did not say."""
        return self if self.position is not None else replace(self, position=position)

    @property
    def lies(self) -> str:
        """The patient's position."""
        return self.position or "HFS"


def check_position(position: str) -> str:
    """Return `position`, or raise where it is none of `POSITIONS`."""
    if position not in POSITIONS:
        raise InputError(f"a patient's position must be one of {', '.join(POSITIONS)}, got '{position}'{nearest(position, POSITIONS)}")
    return position


def table_axes(position: str = "HFS") -> torch.Tensor:
    """Rotation `(3, 3)`, float64, from LPS to the table of IEC 61217 for a patient who lies so: its rows are Xs, Ys, Zs in LPS.

    `Ys` runs into the gantry, along the body to the end that goes first; `Zs` up, to the side that does; `Xs = Ys x Zs`.
    """
    along = torch.tensor([0.0, 0.0, 1.0 if position.startswith("H") else -1.0], dtype=torch.float64)
    up = {"S": [0.0, -1.0, 0.0], "P": [0.0, 1.0, 0.0], "DR": [1.0, 0.0, 0.0], "DL": [-1.0, 0.0, 0.0]}[check_position(position)[2:]]
    vertical = torch.tensor(up, dtype=torch.float64)
    return torch.stack((torch.linalg.cross(along, vertical), along, vertical))


def bev_rotation(beam: Beam) -> torch.Tensor:
    """Rotation `(3, 3)`, float64: its rows are the axes Xg, Yg, Zg in LPS, so that `p_g = R (p - isocenter)`."""
    g, c = math.radians(beam.gantry), math.radians(beam.couch)
    couch = torch.tensor([[math.cos(c), -math.sin(c), 0], [math.sin(c), math.cos(c), 0], [0, 0, 1]], dtype=torch.float64)
    gantry = torch.tensor([[math.cos(g), 0, -math.sin(g)], [0, 1, 0], [math.sin(g), 0, math.cos(g)]], dtype=torch.float64)
    return gantry @ couch @ table_axes(beam.lies)


def to_bev(points: torch.Tensor, beam: Beam, shift: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> torch.Tensor:
    """LPS points to the gantry frame.

    Parameters
    ----------
    points
        `(n, 3)`, LPS, mm.
    beam
        With its isocenter set.
    shift
        Setup error: the patient lies displaced by this LPS vector, mm.

    Returns
    -------
    `(n, 3)`: `(Xg, Yg, Zg)`, mm.
    """
    if beam.isocenter is None:
        raise InputError("the beam has no isocenter; use beam.at(point), or place_spots, which takes the target's centroid")
    offset = torch.tensor(shift, dtype=points.dtype, device=points.device) - torch.tensor(
        beam.isocenter, dtype=points.dtype, device=points.device
    )
    return (points + offset) @ bev_rotation(beam).to(points).T


def from_bev(points: torch.Tensor, beam: Beam, shift: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> torch.Tensor:
    """Gantry-frame points `(n, 3)` to LPS, the inverse of `to_bev`."""
    offset = torch.tensor(beam.isocenter, dtype=points.dtype, device=points.device) - torch.tensor(
        shift, dtype=points.dtype, device=points.device
    )
    return points @ bev_rotation(beam).to(points) + offset


def magnification(depth: torch.Tensor, sad: tuple[float, float]) -> tuple[torch.Tensor, torch.Tensor]:
    """`m = (SAD - Zg) / SAD` for both scan directions: a spot at `(x, y)` in the isocentre plane crosses `Zg` at `(m_x x, m_y y)`."""
    return 1.0 - depth / sad[0], 1.0 - depth / sad[1]
