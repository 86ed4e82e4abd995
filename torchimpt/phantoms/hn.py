"""A head and neck: skull with air cells, spine, airway, glands, muscles, and a left oropharyngeal target.

Millimetres, LPS; z = 0 is about the tip of the dens, the mid-plane is x = 0. Sizes and places are those of an ordinary adult, rounded;
CT numbers are usual ones at 120 kV. The scan ends through the brain above and the lower neck below, as planning scans do.
"""

from __future__ import annotations

import math

import torch

from torchimpt.patient import Patient
from torchimpt.phantoms.solids import Canvas, Solid, below, both, box, column, ellipsoid, mirrored, tube

_AIR, _FAT, _WATER, _MUSCLE, _BRAIN, _SOFT = -1000.0, -95.0, 5.0, 55.0, 36.0, 40.0
_GLAND, _CARTILAGE, _MARROW, _SPONGY, _CORTEX, _TOOTH = 5.0, 160.0, 180.0, 320.0, 1000.0, 1900.0


def hn(spacing: float = 3.0) -> Patient:
    """The head-and-neck phantom.

    ROIs, named as in OpenKBP: `CTV` (about 50 cm^3: left tonsil and upper left neck; target), `Brainstem`, `SpinalCord`, `LeftParotid`,
    `RightParotid`, `Mandible`, `Larynx`, `Esophagus`, and `External`. These are what Xu et al. 2020 (Table 1) plan with, and a few more.

    Parameters
    ----------
    spacing
        Voxel size, mm.
    """
    canvas = _head(spacing)
    _target(canvas)
    return canvas.finish("hn")


def xu_hn(spacing: float = 3.0) -> Patient:
    """The same head and neck with a target that the limits of Xu et al. 2020 (Table 1) can be met for.

    The `CTV` (about 52 cm^3) is a tumour of the nasopharynx and the skull base that fills the air there, with what lies before the upper
    vertebrae: between and above the parotids, and some mm before brainstem and cord.

    Parameters
    ----------
    spacing
        Voxel size, mm.
    """
    canvas = _head(spacing)
    tumour = ellipsoid((0, -31, 40), (23.5, 18.6, 24))
    canvas.fill(tumour, 50.0, only=canvas.hu < -200)
    behind = tube([(0, -8, 20), (0, -4, -6)], 8.0).mask(canvas.grid) & (canvas.hu > -400)
    canvas.roi("CTV", tumour.mask(canvas.grid) | behind, "target")
    return canvas.finish("xu_hn")


def _head(spacing: float) -> Canvas:
    """The body with its organs, without a target."""
    canvas = Canvas((186.0, 222.0, 198.0), spacing, center=(0.0, -8.0, 0.0))
    body = _outline(0.0)
    canvas.organ("External", body, _FAT, "external")
    under_skin = _outline(4.5).mask(canvas.grid)
    _muscles(canvas, under_skin)
    _skull(canvas)
    _face(canvas, under_skin)
    _spine(canvas)
    _organs(canvas, under_skin)
    _airway(canvas, under_skin)
    return canvas


def _outline(depth: float) -> Solid:
    """Head and neck, `depth` mm under the skin."""

    def neck(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        flare = (((-62.0 - z) / 38.0).clamp(min=0.0)) ** 2
        a, b = 57.0 + 22.0 * flare - depth, 60.0 + 6.0 * flare - depth
        return (x / a) ** 2 + ((y - 14.0 + 0.06 * z) / b) ** 2 <= 1

    def shrunk(*radii: float) -> tuple[float, ...]:
        return tuple(r - depth for r in radii)

    head = ellipsoid((0, -2, 68), shrunk(75, 95, 88), power=2.2) | ellipsoid((0, -42, 14), shrunk(63, 52, 76), power=2.5)
    face = ellipsoid((0, -92, 33), shrunk(14, 17, 19)) | ellipsoid((0, -68, -38), shrunk(34, 25, 24), power=2.3)
    lips = ellipsoid((0, -88, 2), shrunk(26, 13, 18))
    cheeks = both(ellipsoid((44, 4, 4), shrunk(22, 30, 40), power=2.3))
    solid = head | face | lips | cheeks | (Solid.of(neck, (-80, -60, -130), (80, 95, 40)) & below(22.0))
    return solid if depth > 0 else solid | both(ellipsoid((76, 14, 36), (5, 15, 27), yaw=-18))


def _muscles(canvas: Canvas, inner: torch.Tensor) -> None:
    """Soft tissue under the subcutaneous fat; in the neck, muscles parted by fat."""
    canvas.hu[inner] = _SOFT
    # Fat fills the neck up to the skull base, behind a plane that rises from the hyoid to the jaw's angle.
    parted = Solid.of(lambda x, y, z: (z < 12.0 - 0.004 * x**2) & (z < -46.0 + 1.5 * (y + 40.0)), (-90, -42, -130), (90, 100, 16))
    canvas.fill(parted, _FAT + 25, only=inner)
    sternomastoid = tube([(54, 26, 22), (47, 10, -20), (38, -14, -62), (22, -32, -104)], [8, 10, 9, 8])
    trapezius = (_outline(6.0) - _outline(14.0)) & box((-90, 36, -130), (90, 100, 4))
    splenius = tube([(24, 52, 26), (17, 52, -40), (20, 50, -104)], [13, 14, 15])
    deep_back = tube([(9, 42, 24), (10, 46, -40), (10, 50, -104)], [9, 10, 9])
    levator = tube([(30, 26, 6), (36, 30, -40), (44, 36, -104)], [8, 10, 11])
    scalene = tube([(22, 10, -30), (30, 12, -66), (40, 10, -104)], [6, 9, 11])
    prevertebral = tube([(8, -2, 24), (9, -1, -40), (9, 4, -104)], [6, 6, 7])
    pterygoid = ellipsoid((36, -16, 10), (6, 13, 22), yaw=-14)
    strap = tube([(9, -36, -52), (10, -40, -80), (12, -40, -104)], [5, 5, 6])
    masseter = ellipsoid((56, -20, -4), (8, 17, 30), yaw=12)
    for muscle in (sternomastoid, splenius, deep_back, levator, scalene, prevertebral, strap, masseter, pterygoid):
        canvas.fill(both(muscle), _MUSCLE, only=inner)
    canvas.fill(trapezius, _MUSCLE)
    canvas.fill(both(ellipsoid((57, -48, 12), (8, 16, 20))), _FAT, only=inner)


def _skull(canvas: Canvas) -> None:
    """Cranial vault with the brain in it, skull base, petrous bones with air cells, sphenoid."""
    vault = ellipsoid((0, -1, 70), (69, 88, 80), power=2.15)
    inner = ellipsoid((0, -1, 70), (62.5, 81, 73.5), power=2.15)
    floor = Solid.of(lambda x, y, z: z > 34.0 - 0.16 * y - 9.0 * ((y - 45.0) / 40.0).clamp(-1, 1), (-80, -110, 10), (80, 110, 140))
    cavity = Solid.of(lambda x, y, z: z > 41.0 - 0.30 * y, (-80, -110, 0), (80, 110, 140))
    canvas.fill(vault & floor, _CORTEX)
    canvas.fill((ellipsoid((0, -1, 70), (67, 86, 78), power=2.15) - ellipsoid((0, -1, 70), (64.5, 83, 75.5), power=2.15)) & cavity, 450.0)
    canvas.fill(inner & cavity, _WATER + 4)
    canvas.fill(ellipsoid((0, -1, 70), (60.5, 79, 71.5), power=2.15) & cavity & box((-90, -120, 0), (90, 120, 140)), _BRAIN)
    cerebellum = both(ellipsoid((22, 48, 36), (25, 22, 20))) & vault
    canvas.fill(both(ellipsoid((22, 48, 36), (27, 24, 22))) & inner, _WATER + 4)
    canvas.fill(cerebellum & inner, _BRAIN + 4)
    petrous = tube([(58, 18, 32), (40, 12, 38), (14, -4, 42)], [13, 9, 6])
    canvas.fill(both(petrous), _CORTEX - 100)
    canvas.fill(both(ellipsoid((56, 26, 24), (9, 11, 17))), 650.0)
    canvas.fill(both(ellipsoid((55, 26, 26), (6, 8, 12))), -350.0)
    canvas.fill(both(tube([(80, 10, 34), (50, 10, 35)], 3.5)), _AIR)
    canvas.fill(column((0, 24), (15, 17), (12, 44)), _WATER)
    canvas.fill(tube([(0, -4, 46), (0, 14, 22)], [13, 9]), 500.0)
    ventricle = tube([(9, -34, 92), (8, -8, 98), (16, 26, 92), (26, 34, 78), (28, 8, 66)], [4.5, 5.5, 6.5, 6, 3.5])
    canvas.fill(both(ventricle) | ellipsoid((0, -2, 80), (2.5, 13, 12)) | ellipsoid((0, 26, 44), (6, 5, 9)), _WATER)
    canvas.fill(both(Solid.of(lambda x, y, z: (z - 54 - 0.12 * x - 0.2 * y).abs() < 1.5, (24, -45, 40), (66, 12, 70))) & inner, _WATER + 4)
    canvas.fill(box((-1.2, -80, 84), (1.2, 80, 140)) & inner, 70.0)


def _face(canvas: Canvas, under_skin: torch.Tensor) -> None:
    """Orbits, sinuses, nose, maxilla, teeth, mandible (a ROI), zygoma."""
    orbit = ellipsoid((32, -62, 58), (19, 24, 17), yaw=-14)
    canvas.fill(both(ellipsoid((32, -62, 58), (22, 25, 20), yaw=-14)), 750.0, only=under_skin)
    canvas.fill(both(orbit), _FAT, only=under_skin)
    canvas.fill(both(ellipsoid((32, -72, 58), (12, 12, 12))), 12.0)
    canvas.fill(both(ellipsoid((32, -81, 58), (5, 2.5, 5))), 80.0)
    canvas.fill(both(tube([(31, -60, 58), (12, -32, 56)], 2.5)), 40.0)
    canvas.fill(both(tube([(50, -58, 38), (62, -30, 34), (64, -4, 34)], [6, 4, 4])), 800.0)

    arch = _arch((0, -30), (29, 46), 11.0)
    canvas.fill(arch & box((-60, -100, 3), (60, -26, 26)), 600.0)
    canvas.fill(ellipsoid((0, -48, 18), (26, 30, 3), power=2.6), 700.0)
    canvas.fill(both(ellipsoid((26, -52, 36), (16, 20, 18), power=2.4)), 600.0)
    canvas.fill(both(ellipsoid((26, -52, 36), (13.5, 17.5, 15.5), power=2.4)), _AIR)
    canvas.fill(both(ellipsoid((10, -46, 58), (7, 24, 11), power=2.6)), -600.0)
    canvas.fill(ellipsoid((0, -14, 50), (12, 12, 10)), 700.0)
    canvas.fill(ellipsoid((0, -14, 50), (9.5, 9.5, 7.5)), _AIR)
    canvas.fill(both(ellipsoid((12, -76, 88), (10, 4.5, 9))), _AIR)

    canvas.fill(ellipsoid((0, -90, 33), (12, 16, 16)), _SOFT - 20)
    nasal = ellipsoid((0, -52, 34), (13, 38, 14), power=2.6) & Solid.of(
        lambda x, y, z: y > -92 + 0.7 * (z - 22).clamp(min=0), (-20, -100, 0), (20, 0, 60)
    )
    canvas.fill(nasal, _AIR)
    canvas.fill(box((-1.3, -95, 20), (1.3, -24, 48)) & nasal, 120.0)
    canvas.fill(both(tube([(7.5, -82, 29), (7.5, -34, 29)], 3.2) | tube([(7.5, -74, 38), (7.5, -34, 38)], 2.6)), 50.0)

    teeth = _arch((0, -30), (26, 42), 8.0)
    gaps = Solid.of(lambda x, y, z: torch.sin(14.0 * torch.atan2(x, -30.0 - y) + 0 * z) > -0.6, (-60, -100, -40), (60, -20, 30))
    canvas.fill(teeth & gaps & box((-60, -100, 1.5), (60, -36, 11)), _TOOTH)
    canvas.fill(teeth & gaps & box((-60, -100, -12), (60, -36, -1)), _TOOTH)

    jaw = _arch((0, -22), (40, 58), 10.0) & Solid.of(
        lambda x, y, z: (y < -10) & (z > -38 + 0.25 * (y + 60).clamp(min=0)) & (z < -12 + 0 * x), (-60, -100, -40), (60, -8, -10)
    )
    ramus = both(ellipsoid((45, -10, 0), (5.5, 16, 31), power=3.0, yaw=8))
    joint = both(ellipsoid((49, 0, 28), (8, 6, 8)))
    canvas.organ("Mandible", jaw | ramus | joint, _CORTEX)
    marrow = _arch((0, -22), (37.5, 55.5), 5.0) & Solid.of(
        lambda x, y, z: (y < -20) & (z > -34 + 0.25 * (y + 60).clamp(min=0)) & (z < -15 + 0 * x), (-60, -100, -40), (60, -8, -10)
    )
    canvas.fill(marrow | both(ellipsoid((45, -10, -2), (2.5, 11, 24), power=3.0, yaw=8)), _MARROW)


def _arch(center: tuple[float, float], radii: tuple[float, float], thickness: float) -> Solid:
    """A dental arch: the anterior half of an elliptic ring, `radii` outside."""
    outer = column(center, radii, (-200, 200), power=2.2)
    inner = column(center, (radii[0] - thickness, radii[1] - thickness), (-200, 200), power=2.2)
    return (outer - inner) & box((-200, -200, -200), (200, center[1] + 18.0, 200))


def _spine(canvas: Canvas) -> None:
    """Cervical vertebrae C1 to C7, the canal, and the cord and brainstem (ROIs) in it."""
    low, top = -104.0, 8.0
    for i in range(7):
        z = 6.0 - 17.0 * i
        y = _canal(z) - 19.0
        height = 6.8 if i else 5.0
        if i:
            canvas.fill(column((0, y), (12.5, 9.0), (z - height, z + height), power=2.6), _CORTEX - 250)
            canvas.fill(column((0, y), (10.5, 7.2), (z - height + 1.6, z + height - 1.6), power=2.6), _SPONGY)
            canvas.fill(column((0, y), (11.5, 8.2), (z - 10.4, z - height), power=2.6), 85.0)
        wide = 19.0 if i else 26.0
        arch = column((0, y + 17), (15.5, 15.0), (z - 5, z + 4)) - column((0, y + 18), (11.5, 11.0), (z - 9, z + 9))
        canvas.fill(arch, _CORTEX - 250)
        canvas.fill(both(ellipsoid((wide - 3, y + 9, z), (8, 5.5, 6.5))), 600.0)
        spinous = 10.0 + 1.8 * i if i else 2.0
        canvas.fill(ellipsoid((0, y + 33 + 0.5 * spinous, z - 3 - 0.8 * i), (3.6, spinous * 0.75 + 2, 4.5), pitch=-18), 600.0)
    canvas.fill(ellipsoid((0, _canal(5) - 16, 8), (5, 5, 13)), _CORTEX - 250)

    heights = [low, -80.0, -60.0, -40.0, -20.0, top, 22.0]
    path = [(0.0, _canal(z), z) for z in heights]
    canvas.fill(tube(path, 8.8), _WATER)
    cord = tube(path, [5.6, 5.8, 5.8, 5.6, 5.4, 5.4, 5.6])
    canvas.fill(cord, _BRAIN)
    stem = tube([(0, 21, 14), (0, 19, 30), (0, 10, 47), (0, 8, 62), (0, 8, 74)], [5.8, 7.5, 9.0, 10.0, 10.0])
    pons = ellipsoid((0, 3, 52), (15, 11, 13))
    canvas.fill(ellipsoid((0, 4, 54), (19, 17, 20)) | tube([(0, 21, 14), (0, 19, 30), (0, 12, 50)], [10, 11, 13]), _WATER)
    canvas.organ("Brainstem", stem | pons, _BRAIN - 2)
    canvas.roi("SpinalCord", cord - (stem | pons))


def _canal(z: float) -> float:
    """The y of the spinal canal's middle, mm: the neck's lordosis."""
    return 21.0 + 3.0 * math.sin((z + 10.0) / 30.0) - 0.05 * z


def _organs(canvas: Canvas, under_skin: torch.Tensor) -> None:
    """Parotids (ROIs), other glands, tongue, vessels, hyoid, esophagus (a ROI)."""
    free = under_skin & (canvas.hu <= 300)
    gland = ellipsoid((57, 4, 2), (10, 19, 26), yaw=18) | ellipsoid((46, 12, 0), (10, 10, 20))
    canvas.organ("LeftParotid", gland, _GLAND - 30, only=free)
    canvas.organ("RightParotid", mirrored(gland), _GLAND - 30, only=free)
    canvas.fill(both(ellipsoid((30, -30, -40), (10, 14, 11))), _GLAND + 25, only=free)
    canvas.fill(both(tube([(17, -30, -76), (19, -26, -100)], [6, 8])), 120.0)
    canvas.fill(both(tube([(26, 6, 24), (27, 2, -20), (25, -8, -50), (23, -8, -104)], [3.0, 3.5, 4.5, 4.0])), 65.0)
    canvas.fill(both(tube([(33, 10, 24), (34, 6, -20), (33, -4, -50), (32, -6, -104)], [4.0, 5.0, 6.0, 6.0])), 60.0)
    constrictor = tube([(0, -15, 20), (0, -15, -8), (0, -14, -40), (0, -12, -56)], [15, 16, 15, 13])
    canvas.fill(constrictor, 48.0, only=free)
    tongue = ellipsoid((0, -46, -8), (22, 30, 15)) | ellipsoid((0, -36, -26), (17, 26, 14))
    canvas.fill(tongue, _MUSCLE + 5, only=free)
    canvas.fill(ellipsoid((0, -72, -34), (12, 8, 6)), _FAT, only=free)
    hyoid = (_arch((0, -14), (20, 25), 4.5)) & box((-30, -60, -50), (30, -12, -45))
    canvas.fill(hyoid, 450.0)
    canvas.organ("Esophagus", tube([(0, 0, -82), (0, 2, -106)], [6.5, 7.5]), 38.0)
    canvas.fill(tube([(0, -1, -84), (0, 1, -106)], 1.6), -300.0)


def _airway(canvas: Canvas, under_skin: torch.Tensor) -> None:
    """Pharynx, larynx (a ROI) with its cartilages, trachea."""
    free = canvas.hu <= 300
    canvas.fill(tube([(0, -24, 38), (0, -17, 26), (0, -16, 10)], [9, 8, 6]), _AIR, only=free)
    throat = [(0, -16, 12), (0, -17, -8), (0, -18, -30), (0, -15, -48)]
    flat = Solid.of(lambda x, y, z: (x / 11) ** 2 + ((y + 16.5) / 4.5) ** 2 <= 1 + 0 * z, (-12, -22, -50), (12, -11, 12))
    canvas.fill(flat | tube(throat, [5, 5, 4.5, 4.5]), _AIR, only=free)
    canvas.fill(ellipsoid((0, -46, 8.5), (17, 22, 1.8)), _AIR, only=free)
    canvas.fill(ellipsoid((0, -25, -38), (9, 2, 9), pitch=-20), 70.0)

    shield = _arch((0, -8), (22, 32), 3.5) & box((-30, -60, -78), (30, -8, -56))
    larynx = ellipsoid((0, -18, -68), (19, 23, 20), power=2.4)
    canvas.organ("Larynx", larynx, 45.0, only=under_skin)
    canvas.fill(shield, _CARTILAGE, only=under_skin)
    canvas.fill(column((0, -18), (14, 15), (-88, -80)) - column((0, -18), (10, 11), (-88, -80)), _CARTILAGE + 120)
    canvas.fill(tube([(0, -15, -46), (0, -17, -58), (0, -18, -68), (0, -18, -84)], [6, 6.5, 3.5, 8]), _AIR)
    canvas.fill(tube([(0, -18, -84), (0, -18, -106)], 9.0), _AIR)


def _target(canvas: Canvas) -> None:
    """The CTV: left tonsil with its margin, and the nodes beside the left jugular vein; air and bone are left out."""
    spared = (canvas.hu < -400) | (canvas.hu > 300)
    tumour = ellipsoid((21, -19, -6), (10, 13, 16))
    node = ellipsoid((36, 3, -34), (8, 9, 13))
    canvas.fill(tumour | node, 68.0, only=~spared)
    volume = ellipsoid((21, -16, -5), (16, 19, 22.5), power=2.3) | tube([(33, 3, -16), (35, 3, -36), (31, -3, -52)], [11, 13, 10])
    canvas.roi("CTV", volume.mask(canvas.grid) & ~spared, "target")
