"""A male pelvis: bladder, rectum, femora, pelvic bones, muscles, and a prostate target.

Millimetres, LPS; the origin is in the middle of the prostate. Sizes and places are those of an ordinary adult, rounded; CT numbers are
usual ones at 120 kV.
"""

from __future__ import annotations

import torch

from torchimpt.patient import Patient
from torchimpt.phantoms.solids import Canvas, Point, Solid, both, box, column, ellipsoid, mirrored, tube

_FAT, _MUSCLE, _BOWEL, _GAS, _SPONGY, _CORTEX = -100.0, 55.0, 30.0, -900.0, 260.0, 850.0


def prostate(spacing: float = 3.0) -> Patient:
    """The prostate phantom.

    ROIs: `CTV` (about 60 cm^3: prostate and the base of the seminal vesicles; target), `Bladder`, `Rectum`, `LeftFemoralHead`,
    `RightFemoralHead`, and `External`: what Xu et al. 2020 (Table 1) plan with.

    Parameters
    ----------
    spacing
        Voxel size, mm.
    """
    canvas, prostate_ = _pelvis(spacing)
    canvas.roi("CTV", prostate_, "target")
    return canvas.finish("prostate")


def xu_prostate(spacing: float = 3.0) -> Patient:
    """The same pelvis with a target of the size that the prostate case of Xu et al. 2020 has.

    The `CTV` (about 854 cm^3) is the prostate with the seminal vesicles and their surroundings, the nodes along the pelvic walls, and those
    before the sacrum; bladder and rectum are left out.

    Parameters
    ----------
    spacing
        Voxel size, mm.
    """
    canvas, prostate_ = _pelvis(spacing)
    walls = both(tube([(48, -18, 2), (56, 4, 30), (60, 18, 60), (50, 26, 90)], [22, 26, 27, 24]))
    behind = both(tube([(12, 64, 56), (36, 36, 66)], [14, 19])) | tube([(0, 40, 74), (0, 40, 92)], 22)
    around = ellipsoid((0, 4, 0), (47, 37, 38), power=2.2)
    whole = (walls | behind | around).mask(canvas.grid) | prostate_
    canvas.roi("CTV", whole & ~canvas.rois["Bladder"].mask & ~canvas.rois["Rectum"].mask, "target")
    return canvas.finish("xu_prostate")


def _pelvis(spacing: float) -> tuple[Canvas, torch.Tensor]:
    """The body with its organs, and a mask of the prostate with the base of the seminal vesicles."""
    canvas = Canvas((372.0, 252.0, 200.0), spacing, center=(0.0, 6.0, 0.0))
    body = column((0, 0), (178, 112), (-100, 100), power=2.5) | both(ellipsoid((70, 62, -20), (92, 64, 120), power=2.4))
    canvas.organ("External", body & box((-200, -200, -100), (200, 200, 100)), _FAT, "external")
    _muscles(canvas)
    _bones(canvas)
    return canvas, _organs(canvas).mask(canvas.grid)


def _muscles(canvas: Canvas) -> None:
    """The muscles of hip, thigh, back and abdominal wall, with fat between them."""
    gluteus = ellipsoid((86, 74, 12), (60, 30, 92), yaw=-16)
    medius = ellipsoid((134, 14, 50), (22, 52, 56), yaw=8)
    thigh = ellipsoid((112, -20, -88), (48, 52, 66))
    iliopsoas = tube([(62, -12, 104), (72, -32, 40), (92, -30, -10), (108, -12, -60)], [24, 20, 15, 12])
    rectus = ellipsoid((24, -86, 52), (24, 9, 90), yaw=8)
    pectineus = tube([(24, -44, -12), (62, -36, -40), (92, -22, -84)], [10, 16, 20])
    adductor = tube([(22, -14, -50), (56, 4, -104)], [14, 26])
    obturator = ellipsoid((52, 2, 0), (9, 34, 36), yaw=14)
    piriformis = tube([(30, 62, 48), (86, 50, 22)], [12, 10])
    for muscle in (gluteus, medius, thigh, iliopsoas, rectus, pectineus, adductor, obturator, piriformis):
        canvas.fill(both(muscle), _MUSCLE)
    canvas.fill(both(tube([(13, 14, 10), (11, 22, -22), (8, 32, -40)], [4, 6, 8])), _MUSCLE)
    canvas.fill(both(tube([(72, -52, 60), (78, -56, 0), (80, -54, -104)], [6, 6, 5])), 60.0)


def _bones(canvas: Canvas) -> None:
    """Pelvis and femora, each a cortex with spongy bone inside; the femoral heads are ROIs."""
    for hu, shell in ((_CORTEX, 0.0), (_SPONGY, 2.4)):
        canvas.fill(both(_hip_bone(shell)) | _sacrum(shell), hu)
    canvas.fill(box((-3.5, -64, -26), (3.5, -44, 0)), 110.0)
    head = ellipsoid((90, 4, 4), (24, 24, 24))
    canvas.fill(both(ellipsoid((90, 4, 4), (26, 26, 26))), 60.0)
    for hu, shell in ((_CORTEX, 0.0), (_SPONGY, 2.4)):
        canvas.fill(both(ellipsoid((90, 4, 4), (24 - shell,) * 3) | _femur(shell)), hu)
    canvas.fill(both(tube([(132, 8, -52), (132, 4, -104)], 7.5)), -40.0)
    canvas.roi("LeftFemoralHead", head)
    canvas.roi("RightFemoralHead", mirrored(head))


def _hip_bone(shell: float) -> Solid:
    """Ilium, acetabulum, pubis and ischium of the left side, `shell` mm under their surface."""

    def bar(points: list[Point], radii: list[float]) -> Solid:
        return tube(points, [r - shell for r in radii])

    ilium = bar([(88, 2, 28), (94, 22, 62), (100, 26, 108)], [15, 11, 9]) | bar([(94, 22, 62), (62, 58, 84), (48, 66, 104)], [10, 9, 10])
    rim = ellipsoid((86, 4, 4), (32 - shell, 32 - shell, 33 - shell)) - ellipsoid((90, 4, 4), (26 + shell,) * 3)
    pubis = bar([(7, -52, -10), (34, -52, 2), (66, -26, 12)], [9, 8, 10]) | bar([(7, -50, -18), (26, -26, -46), (44, 14, -60)], [8, 7, 8])
    ischium = bar([(70, 26, -4), (58, 38, -36), (48, 30, -62)], [14, 14, 13])
    return ilium | (rim & box((40, -60, -60), (102, 60, 60))) | pubis | ischium


def _sacrum(shell: float) -> Solid:
    """Sacrum and coccyx, `shell` mm under their surface."""
    middle = tube([(0, 58, 104), (0, 82, 72), (0, 88, 40), (0, 76, 14), (0, 66, 6)], [r - shell for r in (26, 22, 13, 7, 5)])
    return middle | both(tube([(24, 62, 100), (30, 74, 72)], [18 - shell, 11 - shell]))


def _femur(shell: float) -> Solid:
    """Neck, trochanter and shaft of the left femur, `shell` mm under their surface."""
    neck = tube([(90, 4, 4), (116, 8, -12), (134, 12, -28)], [r - shell for r in (14, 14, 18)])
    return neck | tube([(134, 12, -28), (132, 4, -104)], [16 - shell, 14 - shell])


def _organs(canvas: Canvas) -> Solid:
    """Bladder and rectum (ROIs), seminal vesicles, bowel, bulb; returned is the prostate with the base of the vesicles."""
    loops = [(-58, -52, 92), (-22, -66, 78), (16, -58, 90), (46, -64, 76), (58, -30, 94), (20, -34, 98), (-24, -30, 96), (-52, -20, 84)]
    canvas.fill(tube(loops, 14.0), _BOWEL, only=canvas.hu < 200)
    canvas.fill(tube(loops[1:3], 6.0) | tube(loops[4:6], 6.0), _GAS + 50)
    sigmoid = tube([(4, 62, 66), (24, 40, 78), (44, 16, 88), (62, 10, 104)], [14, 14, 14, 14])
    canvas.fill(sigmoid, _BOWEL, only=canvas.hu < 200)

    vesicles = both(tube([(3, 14, 24), (16, 20, 31), (30, 21, 36)], [7, 7, 5]))
    gland = ellipsoid((0, 0, 0), (25, 20, 22), power=2.2)
    path = [(0, 44, -44), (0, 34, -26), (0, 36, 0), (0, 42, 26), (2, 56, 50), (4, 62, 66)]
    rectum = tube(path, [12, 14, 15, 15, 15, 14]) - gland
    canvas.fill(vesicles - rectum, 40.0)
    bladder = ellipsoid((0, -24, 48), (42, 34, 30), power=2.2) - gland - vesicles
    canvas.fill(ellipsoid((0, -24, 48), (44, 36, 32), power=2.2) - gland - vesicles - rectum, 40.0)
    canvas.organ("Bladder", bladder, 8.0)
    canvas.organ("Rectum", rectum, 42.0)
    canvas.fill(tube(path, [4, 8, 10, 10, 9, 8]) - gland, 15.0)
    canvas.fill(tube([(0, 33, 8), (0, 38, 26)], [4.5, 5.5]), _GAS)
    canvas.fill(gland, 44.0)
    canvas.fill(tube([(0, -2, 22), (0, 2, -24)], 2.5), 20.0)
    canvas.fill(ellipsoid((0, -6, -42), (12, 18, 10)), 48.0)
    base = vesicles & box((-18, -50, -50), (18, 50, 50))
    return (ellipsoid((0, 0, 0), (27, 22, 24), power=2.2) - rectum - bladder) | (base - rectum)
