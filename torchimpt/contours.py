"""Outlines drawn plane by plane, as planning systems draw them, and the volume between them.

A plane's contours are closed polygons. A point lies inside where a line from it crosses them an odd number of times (even-odd rule): so a
contour within another is a hole, one beside it an island, and a hole that is reached through a slit (keyhole) is one too, whichever way
round they were drawn. A plane stands for a slab: up to the middle between it and its neighbours. How much of a pixel lies inside is
measured along lines through it, exactly in their direction: a scan-line rule as in Foley et al., Computer Graphics, 1990, chapter 3.6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

LINES = 8
"""Scan lines through a pixel: a circle of five pixels across has its area within 0.5 %."""

FINEST = 64
"""Strips that a plane's contours are cut into for their area, besides those that end at their corners: only contours that cross each other
need them.
"""

_AT_ONCE = 1 << 22
"""Pairs of points and edges that are looked at together."""


@dataclass(frozen=True, eq=False)
class Plane:
    """The contours of one plane.

    Attributes
    ----------
    low, high
        Between which `w` they hold, mm.
    edges
        `(n, 2, 2)`: begin and end of each edge, as `(u, v)`, mm; all polygons of the plane, each closed.
    """

    low: float
    high: float
    edges: np.ndarray

    @property
    def area(self) -> float:
        """What lies inside, mm^2: exact, as between two corners' levels edges are straight."""
        v = self.edges[..., 1]
        levels = np.unique(np.concatenate((v.reshape(-1), np.linspace(v.min(), v.max(), FINEST + 1))))
        strip, along = _crossings(self.edges, 0.5 * (levels[1:] + levels[:-1]))
        return float(((along[1::2] - along[::2]) * np.diff(levels)[strip[::2]]).sum())


@dataclass(frozen=True, eq=False)
class Contours:
    """A region between contours.

    Attributes
    ----------
    origin, axes
        The planes' frame: an LPS point is `origin + axes @ (u, v, w)`, mm; a plane has one `w`. The columns of `axes` `(3, 3)` have
        length 1 and need not be perpendicular: planes of a tilted gantry are sheared against each other.
    planes
        By ascending `w`; their slabs do not overlap.
    """

    origin: np.ndarray
    axes: np.ndarray
    planes: tuple[Plane, ...]

    @property
    def volume(self) -> float:
        """Of all slabs, mm^3."""
        return sum(plane.area * (plane.high - plane.low) for plane in self.planes) * abs(float(np.linalg.det(self.axes)))

    @property
    def box(self) -> np.ndarray:
        """Least and greatest LPS coordinates `(2, 3)`, mm, of the slabs' edges."""
        corners = [
            np.column_stack((plane.edges[:, 0], np.full(len(plane.edges), w))) for plane in self.planes for w in (plane.low, plane.high)
        ]
        points = np.concatenate(corners) @ self.axes.T + self.origin
        return np.stack((points.min(axis=0), points.max(axis=0)))

    def contains(self, points: torch.Tensor) -> torch.Tensor:
        """bool `(n,)`: which LPS points `(n, 3)`, mm, lie inside."""
        u, v, w = np.linalg.solve(self.axes, (points.detach().cpu().double().numpy() - self.origin).T)
        inside = np.zeros(len(points), dtype=bool)
        of = np.searchsorted([plane.low for plane in self.planes], w, side="right") - 1
        order = np.argsort(of, kind="stable")
        begins = np.searchsorted(of[order], np.arange(len(self.planes) + 1))
        for plane, begin, end in zip(self.planes, begins[:-1], begins[1:], strict=True):
            here = order[begin:end]
            here = here[w[here] < plane.high]
            for some in np.array_split(here, max(1, -(-len(here) * len(plane.edges) // _AT_ONCE))):
                inside[some] = _odd(plane.edges, u[some], v[some])
        return torch.from_numpy(inside)

    def fractions(self, low: Sequence[float], size: Sequence[float], shape: Sequence[int]) -> tuple[np.ndarray, tuple[int, int, int]]:
        """Share of each voxel that lies inside.

        Parameters
        ----------
        low, size, shape
            A regular grid in `(w, v, u)`: its low edge and voxel size, mm, and numbers of voxels.

        Returns
        -------
        float32 shares of a box of the grid, and the index of its first voxel; an empty box where all lies outside.
        """
        if not self.planes:
            return np.zeros((0, 0, 0), dtype=np.float32), (0, 0, 0)
        spans = (
            (min(p.low for p in self.planes), max(p.high for p in self.planes)),
            *((min(p.edges[..., i].min() for p in self.planes), max(p.edges[..., i].max() for p in self.planes)) for i in (1, 0)),
        )
        first, count = [], []
        for (begin, end), edge, voxel, n in zip(spans, low, size, shape, strict=True):
            start, stop = (int(np.clip(f((x - edge) / voxel), 0, n)) for f, x in ((np.floor, begin), (np.ceil, end)))
            first.append(start)
            count.append(max(0, stop - start))
        share = np.zeros(count, dtype=np.float32)
        if share.size:
            corner = [edge + voxel * start for edge, voxel, start in zip(low, size, first, strict=True)]
            for plane in self.planes:
                self._add(share, plane, corner, size)
        return share, (first[0], first[1], first[2])

    @staticmethod
    def _add(share: np.ndarray, plane: Plane, corner: Sequence[float], size: Sequence[float]) -> None:
        """Add a plane's slab to the voxels' shares."""
        begin, end = ((w - corner[0]) / size[0] for w in (plane.low, plane.high))
        first, last = max(0, int(np.floor(begin))), min(len(share), int(np.ceil(end)))
        if first < last:
            inside = coverage(plane.edges, (corner[2], corner[1]), (size[2], size[1]), share.shape[1:])
            for k in range(first, last):
                share[k] += max(0.0, min(end, k + 1) - max(begin, k)) * inside


def coverage(edges: np.ndarray, low: Sequence[float], size: Sequence[float], shape: Sequence[int]) -> np.ndarray:
    """Share of each pixel that lies inside polygons by the even-odd rule.

    Parameters
    ----------
    edges
        `(n, 2, 2)`, as of a `Plane`.
    low, size
        Low edge and pixel size along `(u, v)`, mm.
    shape
        Number of pixels along `(v, u)`.

    Returns
    -------
    `shape`, float64.
    """
    n_v, n_u = shape
    line, along = _crossings(edges, low[1] + size[1] / LINES * (np.arange(n_v * LINES) + 0.5))
    x = np.clip((along - low[0]) / size[0], 0.0, n_u)
    # what a crossing opens, or closes, is all to the right of it
    sign = np.where(np.arange(len(x)) % 2 == 0, 1.0, -1.0) / LINES
    pixel = x.astype(np.int64)
    at, part = line // LINES * (n_u + 2) + pixel, x - pixel
    filled = np.bincount(at, sign * (1.0 - part), n_v * (n_u + 2)) + np.bincount(at + 1, sign * part, n_v * (n_u + 2))
    # sums of signs end within rounding of 0 and 1
    return np.clip(filled.reshape(n_v, n_u + 2).cumsum(axis=1)[:, :n_u], 0.0, 1.0)


def closed(polygons: Sequence[np.ndarray]) -> np.ndarray:
    """The edges `(n, 2, 2)` of polygons `(m, 2)`, of which the last point is joined with the first."""
    return np.concatenate([np.stack((polygon, np.roll(polygon, -1, axis=0)), axis=1) for polygon in polygons])


def boundaries(mask: np.ndarray) -> list[np.ndarray]:
    """The edges of a mask's pixels as closed polygons, of just its area by the even-odd rule; holes are polygons of their own.

    Parameters
    ----------
    mask
        bool `(n_v, n_u)`.

    Returns
    -------
    Corners `(n, 2)`, `(u, v)` in pixels, pixel `[j, i]` lying between i and i + 1, j and j + 1; only where the direction changes. Pixels
    that touch in a corner belong to polygons of their own.
    """
    inside = np.pad(mask, 1)
    ends: dict[tuple[int, int], list[tuple[int, int]]] = {}
    # around each pixel from u to v: its edges to pixels outside, that begin at a corner and run along (u, v)
    for outside, corner, step in (
        (inside[:-2, 1:-1], (0, 0), (1, 0)),
        (inside[1:-1, 2:], (1, 0), (0, 1)),
        (inside[2:, 1:-1], (1, 1), (-1, 0)),
        (inside[1:-1, :-2], (0, 1), (0, -1)),
    ):
        for j, i in np.argwhere(mask & ~outside).tolist():
            ends.setdefault((i + corner[0], j + corner[1]), []).append(step)
    found = []
    while ends:
        start = at = next(iter(ends))
        way = ends[at][0]
        path: list[tuple[int, int, int, int]] = []
        while not path or at != start:
            ways = ends[at]
            # where two pixels touch in a corner, stay with the one
            way = next((to for to in ((-way[1], way[0]), way) if to in ways), ways[0])
            ways.remove(way)
            if not ways:
                del ends[at]
            path.append((*at, *way))
            at = at[0] + way[0], at[1] + way[1]
        steps = np.array(path, dtype=np.float64)
        found.append(steps[(steps[:, 2:] != np.roll(steps[:, 2:], 1, axis=0)).any(axis=1), :2])
    return found


def keyholed(polygons: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Each hole joined with what surrounds it by a slit of no width: the same area for whoever counts contours, and whoever fills each.

    Parameters
    ----------
    polygons
        As of `boundaries`: holes run the other way round.
    """
    ends = [np.roll(polygon, -1, axis=0) for polygon in polygons]
    areas = [float((a[:, 0] * b[:, 1] - b[:, 0] * a[:, 1]).sum()) for a, b in zip(polygons, ends, strict=True)]
    found = [polygon for polygon, area in zip(polygons, areas, strict=True) if area > 0]
    holes = [polygon for polygon, area in zip(polygons, areas, strict=True) if area < 0]
    # from its top each goes up to the next edge: of its surroundings, or of a hole that begins higher and is joined already
    for hole in sorted(holes, key=lambda polygon: float(polygon[:, 1].min())):
        top = int(np.lexsort((hole[:, 0], hole[:, 1]))[0])
        u, v = hole[top]
        above = []
        for number, polygon in enumerate(found):
            begin, end = polygon.T, np.roll(polygon, -1, axis=0).T
            over = (begin[1] == end[1]) & (begin[1] <= v) & (np.minimum(begin[0], end[0]) <= u) & (np.maximum(begin[0], end[0]) >= u)
            above += [(float(begin[1, i]), number, int(i)) for i in np.flatnonzero(over)]
        level, number, i = max(above)
        slit, around = np.array([[u, level]]), found[number]
        turned = np.roll(hole, -top, axis=0)
        found[number] = np.concatenate((around[: i + 1], slit, turned, turned[:1], slit, around[i + 1 :]))
    return found


def _crossings(edges: np.ndarray, lines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the edges cross lines of equal v, given ascending: the number of the line, ascending, and `u`, ascending on each line. Every
    line has an even number of them, so that those of even index lead inside and the others out.
    """
    (u0, v0), (u1, v1) = edges[:, 0].T, edges[:, 1].T
    first, last = np.searchsorted(lines, np.minimum(v0, v1)), np.searchsorted(lines, np.maximum(v0, v1))
    times = last - first
    edge = np.repeat(np.arange(len(edges)), times)
    line = np.arange(len(edge)) - (np.cumsum(times) - times)[edge] + first[edge]
    u = u0[edge] + (lines[line] - v0[edge]) / (v1 - v0)[edge] * (u1 - u0)[edge]
    order = np.lexsort((u, line))
    return line[order], u[order]


def _odd(edges: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Whether a line from each point `(n,)` to the right crosses an odd number of edges."""
    (u0, v0), (u1, v1) = edges[:, 0].T, edges[:, 1].T
    across = (v0 <= v[:, None]) != (v1 <= v[:, None])
    # the way along an edge that is crossed is between 0 and 1, however short the edge
    way = np.divide(v[:, None] - v0, v1 - v0, out=np.zeros(across.shape), where=across)
    return (across & (u[:, None] < u0 + way * (u1 - u0))).sum(axis=1) % 2 == 1
