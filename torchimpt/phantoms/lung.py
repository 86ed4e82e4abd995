"""A thorax: lungs with vessels, heart, great vessels, ribs, spine, and a target in the right lung.

Millimetres, LPS; z = 0 is just below the carina, the mid-plane is x = 0. Sizes and places are those of an ordinary adult with raised arms,
rounded; CT numbers are usual ones at 120 kV.
"""

from __future__ import annotations

import math
from functools import reduce
from operator import or_

import torch

from torchimpt.patient import Patient
from torchimpt.phantoms.solids import Canvas, Solid, both, box, column, ellipsoid, tube

_FAT, _MUSCLE, _BLOOD, _LUNG, _VESSEL, _AIR, _SPONGY, _CORTEX = -100.0, 50.0, 45.0, -760.0, 20.0, -1000.0, 220.0, 800.0


def lung(spacing: float = 3.0) -> Patient:
    """The lung phantom.

    ROIs: `CTV` (about 100 cm^3 around a solid tumour in the right lung; target), `LeftLung`, `RightLung` (without the tumour),
    `Heart`, `Esophagus`, `SpinalCord`, and `External`: what Xu et al. 2020 (Table 1) plan with, and the heart.

    Parameters
    ----------
    spacing
        Voxel size, mm.
    """
    tumour, margin = ellipsoid((-72, 18, 14), (19, 21, 20)), ellipsoid((-72, 18, 14), (28, 30, 29))
    return _thorax(spacing, tumour, margin - _oval_outside()).finish("lung")


def xu_lung(spacing: float = 3.0) -> Patient:
    """The same thorax with the target and the sector that the lung case of Xu et al. 2020 asks for.

    The `CTV` (about 98 cm^3) lies in the anterior mediastinum, behind the sternum, and reaches into the lungs' edges: their limits leave
    less than a tenth of either lung for the beams. `Fan` is a sector behind it, where both beams stop.

    Parameters
    ----------
    spacing
        Voxel size, mm.
    """
    center = (0.0, -50.0, 26.0)
    canvas = _thorax(spacing, ellipsoid(center, (19, 15, 27)), ellipsoid(center, (25.5, 22.0, 41.5)) - _oval_outside())

    def behind(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        x, y = x - center[0], y - center[1]
        return (y > 1.2 * x.abs()) & (torch.hypot(x, y) > 62.0) & (torch.hypot(x, y) < 92.0) & (z > -14.0) & (z < 66.0)

    canvas.roi("Fan", Solid.of(behind, (-100.0, -50.0, -14.0), (100.0, 50.0, 66.0)))
    return canvas.finish("xu_lung")


def _thorax(spacing: float, tumour: Solid, target: Solid) -> Canvas:
    """The body with its organs, a solid tumour, and the CTV around it."""
    canvas = Canvas((342.0, 240.0, 210.0), spacing)
    body = _oval(165.0, 112.0) | both(ellipsoid((62, -96, 8), (52, 19, 46), power=2.3))
    canvas.organ("External", body, _FAT, "external")
    canvas.fill(_oval(147.0, 101.0), _MUSCLE)
    canvas.fill(both(ellipsoid((84, 82, 40), (54, 16, 62))), _MUSCLE, only=canvas.rois["External"].mask)
    _ribs(canvas)
    canvas.fill(_oval(128.0, 84.0) & box((-200, -200, -120), (200, 70, 120)), _FAT + 10)
    _abdomen(canvas)
    lungs = _lungs(canvas)
    _mediastinum(canvas)
    _spine(canvas)
    canvas.fill(tumour, 38.0)
    tissue = (canvas.hu == _LUNG) | (canvas.hu == _VESSEL)
    for name, solid in lungs.items():
        canvas.roi(name, solid.mask(canvas.grid) & tissue)
    canvas.roi("CTV", target, "target")
    return canvas


def _oval(a: float, b: float) -> Solid:
    """The trunk's cross-section, squared off a little, over the whole scan."""
    return column((0, 0), (a, b), (-105, 105), power=2.5)


def _oval_outside() -> Solid:
    """Chest wall and beyond: what the CTV does not reach into."""
    return box((-200, -200, -120), (200, 200, 120)) - _oval(131.0, 88.0)


def _ribs(canvas: Canvas) -> None:
    """Ribs as slanting rings, sternum, shoulder blades."""
    ring = column((0, 0), (137.0, 94.0), (-105, 105), power=2.4) - column((0, 0), (129.5, 86.5), (-105, 105), power=2.4)

    def slanting(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        height = z - 0.42 * y + 0.0010 * (x.abs() - 70.0) ** 2
        return torch.remainder(height, 27.0) < 10.5

    low, high = (-140.0, -96.0, -106.0), (140.0, 96.0, 106.0)
    canvas.fill(ring & Solid.of(slanting, low, high), 550.0)
    canvas.fill(box((-17, -95, -45), (17, -83, 78)), 420.0)
    canvas.fill(both(ellipsoid((92, 82, 52), (40, 4.5, 48), yaw=-26)), 600.0)


def _abdomen(canvas: Canvas) -> None:
    """Liver under the right dome of the diaphragm, stomach and spleen under the left."""
    canvas.fill(ellipsoid((-62, -2, -128), (66, 80, 62)), 62.0)
    canvas.fill(ellipsoid((58, -20, -138), (58, 56, 60)), 35.0)
    canvas.fill(ellipsoid((62, -34, -98), (26, 22, 14)), -880.0)
    canvas.fill(ellipsoid((86, 42, -118), (34, 36, 46)), 55.0)


def _lungs(canvas: Canvas) -> dict[str, Solid]:
    """Both lungs over the domes of the diaphragm, with their vessels; returned by name."""
    domes = ellipsoid((-62, -2, -128), (70, 84, 66)) | ellipsoid((62, 2, -136), (68, 82, 66)) | box((-140, -100, -140), (140, 100, -104))
    chest = column((0, -1), (127.0, 84.0), (-105, 105), power=2.4)
    right = (ellipsoid((-76, 4, -10), (66, 92, 132), power=2.6) & chest) - domes
    left = (ellipsoid((78, 4, -10), (62, 92, 132), power=2.6) & chest) - domes
    for side in (left, right):
        canvas.fill(side, _LUNG)
    canvas.fill(both(_vessels()), _VESSEL, only=canvas.hu == _LUNG)
    return {"LeftLung": left, "RightLung": right}


def _vessels() -> Solid:
    """Vessels that fan out from the hilum of the left lung."""
    hilum = (34.0, 10.0, -6.0)
    branches: list[Solid] = []
    for i in range(14):
        polar, turn = math.radians(18 + 144 * (i + 0.5) / 14), 2.4 * i
        direction = (abs(math.sin(polar) * math.cos(turn)) + 0.25, 0.9 * math.sin(polar) * math.sin(turn), 1.25 * math.cos(polar))
        middle = tuple(h + 34.0 * d for h, d in zip(hilum, direction, strict=True))
        end = tuple(h + 74.0 * d + 6.0 * math.sin(5.0 * i + j) for j, (h, d) in enumerate(zip(hilum, direction, strict=True)))
        twig = tuple(e + 14.0 * math.cos(i + j) for j, e in enumerate(end))
        branches.append(tube([hilum, middle, end], [5.0, 3.2, 1.4]) | tube([middle, twig], [2.2, 1.2]))
    return reduce(or_, branches)


def _mediastinum(canvas: Canvas) -> None:
    """Heart and esophagus (ROIs), great vessels, airway."""
    canvas.fill(column((0, 4), (30, 62), (-105, 105), power=2.4), -60.0)
    canvas.fill(ellipsoid((22, -34, -48), (58, 44, 46), yaw=22, pitch=-12), -70.0)
    canvas.organ("Heart", ellipsoid((22, -34, -48), (53, 40, 42), yaw=22, pitch=-12), _BLOOD)
    arch = [(-6, -26, -14), (-10, -28, 20), (-4, -18, 42), (14, 8, 46), (24, 36, 30), (25, 40, -20), (20, 40, -110)]
    canvas.fill(tube(arch, [15, 15, 14, 13, 13, 12, 11]), _BLOOD)
    canvas.fill(tube([(-26, -22, -20), (-26, -20, 40), (-22, -20, 104)], [10, 9, 8]), _BLOOD)
    canvas.fill(tube([(10, -34, -6), (18, -16, 18), (34, 6, 8)], [13, 12, 9]), _BLOOD)
    canvas.fill(tube([(8, -20, 16), (-20, -2, 4), (-34, 6, 0)], [11, 9, 8]), _BLOOD)
    canvas.fill(both(tube([(16, -8, 50), (20, -4, 108)], [5, 5])), _BLOOD)
    canvas.fill(tube([(0, 6, 108), (0, 10, 22)], 10.5) | both(tube([(0, 10, 20), (30, 14, -4), (44, 14, -12)], [8, 7, 5])), 40.0)
    canvas.fill(tube([(0, 6, 108), (0, 10, 22)], 8.5) | both(tube([(0, 10, 20), (30, 14, -4), (44, 14, -12)], [6.5, 5.5, 3.5])), _AIR)
    gullet = [(3, 25, 108), (3, 28, 20), (2, 28, -30), (10, 24, -110)]
    canvas.organ("Esophagus", tube(gullet, [8, 8, 8, 8.5]), 38.0)
    canvas.fill(tube(gullet, 1.8), -250.0)


def _spine(canvas: Canvas) -> None:
    """Thoracic vertebrae, the canal, and the cord (a ROI) in it."""
    for i in range(10):
        z = 96.0 - 22.0 * i
        canvas.fill(column((0, 56), (17, 14.5), (z - 9, z + 9), power=2.4), _CORTEX - 300)
        canvas.fill(column((0, 56), (15, 12.5), (z - 7.5, z + 7.5), power=2.4), _SPONGY)
        canvas.fill(column((0, 56), (16, 13.5), (z - 13.1, z - 9), power=2.4), 80.0)
        canvas.fill(column((0, 79), (15, 14), (z - 7, z + 5)) - column((0, 79), (10, 10), (z - 10, z + 10)), _CORTEX - 200)
        canvas.fill(both(tube([(14, 76, z), (34, 82, z + 2)], [5.5, 4])), 480.0)
        canvas.fill(tube([(0, 91, z - 2), (0, 103, z - 13)], [4, 3]), 480.0)
    canvas.fill(both(tube([(22, 92, 108), (22, 92, -108)], 13.0)) & _oval(150.0, 106.0), _MUSCLE + 5, only=canvas.hu < 300)
    canvas.fill(column((0, 78), (9, 8.5), (-105, 105)), 5.0)
    canvas.organ("SpinalCord", column((0, 78), (5.8, 5.2), (-105, 105)), 38.0)
