"""Spot placement: energy layers and a grid of spots in the beam's-eye view for every beam.

For each node of a grid in the isocentre plane, the spot's central axis is traced through the patient; the water-equivalent depths at
which it lies inside the target and its margin are where Bragg peaks are wanted. Layers step down from the deepest such depth; a
layer gets a spot wherever its peak falls within half a layer step of a wanted depth. With setup and range scenarios the wanted
depths are the union over all of them, so that the target is covered distally and proximally in each.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from torchimpt.checks import InputError, nearest, positive
from torchimpt.constants import AIR_RSP
from torchimpt.geometry import Beam, from_bev, magnification, to_bev
from torchimpt.machine import Machine
from torchimpt.margins import distances, within
from torchimpt.patient import Patient
from torchimpt.physics.stopping import relative_stopping_power
from torchimpt.physics.wepl import air_way, less_air, ray_directions, ray_profile
from torchimpt.scenarios import NOMINAL, Scenario
from torchimpt.spots.layers import beam_layers
from torchimpt.spots.shifter import nearest_place
from torchimpt.spots.spots import Spots

log = logging.getLogger(__name__)

PATTERNS = ("square", "hexagonal")

FIELD = 250.0
"""Largest deflection of a spot along x or y in the isocentre plane, mm: more than any scanned field (about 300 mm x 400 mm) needs."""

MOST_NODES = 100_000
"""Spot positions in a beam's view: 1 mm apart over 300 mm x 300 mm. Spots are 3 mm wide and more, so that closer ones are no use, and their
rays' crossings would take more than a gigabyte."""

MOST_SPOTS = 1_000_000
"""Spots of a plan, some hundred times what is delivered in a fraction."""

_TARGET, _ROBUST, _START = 4, 3, 2
"""Zones around the target, from inside."""

_RAYS = 4096
"""Rays traced at once: bounds the memory of their profiles to about 100 MB on a 512 x 512 x 200 CT."""


def place_spots(
    patient: Patient,
    machine: Machine,
    beams: Sequence[Beam],
    target: str | Sequence[str],
    spacing: float = 5.0,
    *,
    pattern: str = "square",
    margin: float = 5.0,
    start_margin: float | None = None,
    layer_spacing: float | str = "bragg80",
    scenarios: Sequence[Scenario] = (NOMINAL,),
    dtype: torch.dtype = torch.float32,
) -> Spots:
    """Place the spots of a plan, each with weight 1, or some of them with weight 0.

    Parameters
    ----------
    patient, machine, beams
        What to plan on, with what, from where. A beam without an isocenter gets the target's centroid, one without a position that of the
        patient, a range shifter without a distance a place near the body; its rule says which layers go through it, and a beam that has
        none that do loses it.
    target
        A ROI, or several (their union).
    spacing
        Distance between neighbouring spots of a layer in the isocentre plane, mm. The grid has a node on the isocenter.
    pattern
        `"square"` or `"hexagonal"`.
    margin
        Peaks are placed up to this distance around the target, mm, inside the body. Other scenarios than the nominal one take
        the grid cell's circumradius (0.71 spacing for the square) instead where that is less: enough for a spot near every voxel.
    start_margin
        Spots whose peaks are wanted farther than this from the target only, and than the circumradius, get weight 0: to be there for an
        optimizer, without dose where nothing asks to have it taken off again. None: all have weight 1.
    layer_spacing
        `"bragg80"`: each layer lies the width of its own Bragg peak at 80 % deeper than the next; or a number, mm of water.
    scenarios
        In each of them the target is to be covered. The nominal one always counts.
    dtype
        Of the spots' position and weight.

    Examples
    --------
    >>> import torchimpt as ti
    >>> patient = ti.resample(ti.phantom("water"), 10.0)
    >>> spots = place_spots(patient, ti.machine.generic(), [ti.Beam(gantry=0.0)], patient.targets, spacing=20.0)
    >>> bool((spots.weight == 1).all()), tuple(spots.position.shape) == (spots.n_spots, 2)
    (True, True)

    Returns
    -------
    Spots sorted by beam and falling energy, those behind a range shifter after the others. Where the lowest energy still has its peak
    behind a part of the target, that part gets no peaks, and a warning is logged.
    """
    start = math.inf if start_margin is None else start_margin
    spacing, layer_spacing = _check(beams, spacing, pattern, margin, start, layer_spacing)
    robust = min(margin, spacing / math.sqrt(2.0 if pattern == "square" else 3.0))
    zones = _zones(patient, target, (margin, min(margin, max(start, robust)), robust, 0.0))
    points = patient.grid.centers(zones.nonzero().flatten())
    center = patient.centroid(target)
    beams = [beam.at(center).on(patient.position) for beam in beams]
    rsp = relative_stopping_power(patient, machine)
    columns: list[tuple[torch.Tensor, ...]] = []
    for number, beam in enumerate(beams):
        label = f"beam {number} (gantry {beam.gantry:g}, couch {beam.couch:g})"
        nodes = _nodes(points, beam, machine.sad, spacing, pattern, scenarios, label)
        ray, enter, leave, zone = _wanted(patient, rsp, zones, beam, machine, nodes, scenarios)
        if ray.numel() == 0:
            raise InputError(f"{label} misses the target: no spot's axis crosses it; check the isocenter {beam.isocenter} and the spacing")
        surface = float(enter[zone == _TARGET].min()) if (zone == _TARGET).any() else math.inf
        layers = beam_layers(machine, beam.shifter, layer_spacing, (float(enter.min()), surface, float(leave.max())), label)
        peak, half = layers.peak, layers.half
        if surface < float(peak[-1] - half[-1]):
            log.warning(
                "%s: the target begins at %.1f mm of water, but machine '%s' has its shallowest peak at %.1f mm (%g MeV); what lies before "
                "that gets no peaks from this beam; a range shifter (range_shifter_mm) moves them there",
                *(label, surface, machine.name, float(peak[-1]), machine.energy_min),
            )
        _few_enough(sum(len(c[0]) for c in columns), len(peak), len(nodes), label)
        layer, node = _mark(peak, half, ray, enter, leave, len(nodes)).nonzero().unbind(1)
        near = zone >= _START
        begun = _mark(peak, half, ray[near], enter[near], leave[near], len(nodes))[layer, node].double()
        columns.append((torch.full_like(layer, number), layers.energy[layer], *nodes[node].unbind(1), begun, layers.shifted[layer]))
        beams[number] = _with_shifter(patient, beam, machine.sad, nodes[node[layers.shifted[layer]]], label)
        log.debug("%s: %d spots in %d layers, peaks %.1f to %.1f mm", label, len(layer), len(peak), float(peak.min()), float(peak.max()))
    of_beam, energy, x, y, weight, shifted = (torch.cat(c) for c in zip(*columns, strict=True))
    return Spots.from_columns(beams, of_beam, energy, x, y, weight, dtype, shifted)


def _with_shifter(patient: Patient, beam: Beam, sad: tuple[float, float], positions: torch.Tensor, label: str) -> Beam:
    """The beam with its range shifter in its place, for spots behind it at `positions` `(n, 2)`; without it where there are none."""
    if beam.shifter is None or len(positions) == 0:
        return replace(beam, shifter=None)
    if beam.shifter.distance is not None:
        return beam
    distance = nearest_place(patient, beam, sad, positions)
    log.info("%s: range shifter of %g mm of water, %g mm from the isocentre", label, beam.shifter.thickness, distance)
    return replace(beam, shifter=replace(beam.shifter, distance=distance))


def _check(
    beams: Sequence[Beam], spacing: float, pattern: str, margin: float, start: float, layer_spacing: float | str
) -> tuple[float, float | str]:
    """The spacings, checked with the other arguments of `place_spots`."""
    if not beams:
        raise InputError("a plan needs at least one beam, got none")
    if not 0 <= margin < math.inf:
        raise InputError(f"margin must be zero or a positive number of mm, got {margin}")
    if not start >= 0:
        raise InputError(f"start_margin must be zero or a positive number of mm, got {start}")
    if pattern not in PATTERNS:
        raise InputError(f"pattern must be {' or '.join(PATTERNS)}, got '{pattern}'{nearest(str(pattern), PATTERNS)}")
    if isinstance(layer_spacing, str) and layer_spacing != "bragg80":
        raise InputError(f"layer_spacing must be 'bragg80' or a number of mm of water, got '{layer_spacing}'")
    return positive("spacing", spacing), layer_spacing if isinstance(layer_spacing, str) else positive("layer_spacing", layer_spacing)


def _few_enough(before: int, n_layers: int, n_nodes: int, label: str) -> None:
    """Raise where so many layers of so many nodes may make more spots than a plan can use; half of them or more do."""
    if before + n_layers * n_nodes > 2 * MOST_SPOTS:
        raise InputError(
            f"{label}: {n_layers} energy layers of up to {n_nodes:,} spots make {before + n_layers * n_nodes:.2g} spots with those of the "
            f"beams before, a plan can use {MOST_SPOTS:,}; give a larger spacing or layer_spacing"
        )


def _zones(patient: Patient, target: str | Sequence[str], limits: tuple[float, ...]) -> torch.Tensor:
    """Which voxels peaks are wanted in: uint8 `(n_voxels + 1,)`.

    How many of the `limits`, falling, a voxel's distance from the target is within: `_TARGET` inside it, `_ROBUST` and `_START` near it, 1
    within the margin, 0 elsewhere and outside the body.

    The one entry more is zero, for the index -1 of `ray_profile`'s unused slots.
    """
    mask = patient.union(target)
    inside = mask & patient.body
    if not inside.any():
        raise InputError(
            f"target {target} lies outside the body (ROI '{patient.external.name if patient.external else 'none'}'); check the contours"
        )
    outside = int(mask.sum()) - int(inside.sum())
    if outside:
        log.warning("%d of the target's %d voxels lie outside the body and get no spots", outside, int(mask.sum()))
    box, distance = distances(inside, patient.grid.spacing, limits[0])
    zone = sum(within(distance, limit).to(torch.uint8) for limit in limits)
    zones = torch.zeros(patient.grid.shape, dtype=torch.uint8)
    zones[box] = zone * patient.body[box]
    return torch.cat((zones.flatten(), torch.zeros(1, dtype=torch.uint8)))


def _nodes(
    points: torch.Tensor,
    beam: Beam,
    sad: tuple[float, float],
    spacing: float,
    pattern: str,
    scenarios: Sequence[Scenario],
    label: str,
) -> torch.Tensor:
    """Grid nodes `(n, 2)` in the isocentre plane that may see any of the points in any scenario, within the scan field."""
    bev = to_bev(points, beam)
    reach = max((math.dist(s.shift, NOMINAL.shift) for s in scenarios), default=0.0)
    if float(bev[:, 2].max()) + reach >= min(sad):
        raise InputError(f"{label} misses the target: it lies behind the source; check the isocenter {beam.isocenter}")
    narrow = torch.stack(magnification(bev[:, 2], sad), dim=1)
    low, high = (bev[:, :2] / narrow).amin(dim=0), (bev[:, :2] / narrow).amax(dim=0)
    extent = f"x {low[0]:.0f} to {high[0]:.0f} mm, y {low[1]:.0f} to {high[1]:.0f} mm in its isocentre plane"
    if bool((low > FIELD).any() or (high < -FIELD).any()):
        raise InputError(f"{label} misses the target, which lies at {extent}: the field ends at {FIELD:g} mm; check the isocenter")
    if bool((low < -FIELD).any() or (high > FIELD).any()):
        log.warning("%s: the target reaches over %s, the field ends at %g mm: what is beyond gets no spots", label, extent, FIELD)
    pad = spacing + reach * (1.0 + FIELD / min(sad)) / float(narrow.min())
    low, high = (low - pad).clamp(min=-FIELD), (high + pad).clamp(max=FIELD)
    row = spacing if pattern == "square" else spacing * math.sqrt(0.75)
    width, height = (high - low).tolist()
    estimate = (width / spacing) * (height / row)
    if estimate > MOST_NODES:
        enough = math.sqrt(width * height * (1.0 if pattern == "square" else 0.75**-0.5) / MOST_NODES)
        raise InputError(
            f"{label}: a spacing of {spacing:g} mm makes {estimate:.2g} spots in a layer ({extent}), at most {MOST_NODES:,} are placed; "
            f"give {math.ceil(10 * enough) / 10:g} mm or more; 3 to 10 mm is usual"
        )
    j = torch.arange(math.ceil(float(low[1]) / row), math.floor(float(high[1]) / row) + 1)
    i = torch.arange(math.ceil(float(low[0]) / spacing) - 1, math.floor(float(high[0]) / spacing) + 1)
    j, i = torch.meshgrid(j, i, indexing="ij")
    x = spacing * (i + (0.5 * (j % 2) if pattern == "hexagonal" else 0.0))
    nodes = torch.stack((x.flatten().to(torch.float64), row * j.flatten().to(torch.float64)), dim=1)
    return nodes[((nodes >= low) & (nodes <= high)).all(dim=1)]


def _wanted(
    patient: Patient,
    rsp: torch.Tensor,
    zones: torch.Tensor,
    beam: Beam,
    machine: Machine,
    nodes: torch.Tensor,
    scenarios: Sequence[Scenario],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Crossings of an axis with a voxel that is to be covered, over all scenarios: node, WEPL at entry, at exit, the voxel's zone."""
    parts, sad = [], machine.sad
    if machine.air_from is not None:
        rsp = less_air(rsp)
    for shift in dict.fromkeys(s.shift for s in (NOMINAL, *scenarios)):
        scales = dict.fromkeys(s.range_scale for s in (NOMINAL, *scenarios) if s.shift == shift)
        for first in range(0, len(nodes), _RAYS):
            some = nodes[first : first + _RAYS]
            plane = from_bev(torch.cat((some, torch.zeros_like(some[:, :1])), dim=1), beam, shift)
            direction, reach = ray_directions(plane, beam, sad, shift)
            voxels, enter, leave = ray_profile(rsp, patient.grid, plane + reach[:, None] * direction, -direction)
            zone = zones[voxels]
            ray, slot = zone.nonzero().unbind(1)
            zone = zone[ray, slot]
            above, below = enter[ray, slot], leave[ray, slot]
            if machine.air_from is not None:  # to the voxel's centre: half a voxel more or less is a thousandth of that
                air = AIR_RSP * air_way(patient.grid.centers(voxels[ray, slot]), beam, sad, machine.air_from, shift)
                above, below = above + air, below + air
            crossing = ray + first, above, below, zone
            for scale in scales:
                nominal = shift == NOMINAL.shift and scale == NOMINAL.range_scale
                node, above, below, of = crossing if nominal else (v[zone >= _ROBUST] for v in crossing)
                parts.append((node, scale * above, scale * below, of))
    ray, enter, leave, zone = (torch.cat(p) for p in zip(*parts, strict=True))
    return ray, enter, leave, zone


def _mark(peak: torch.Tensor, half: torch.Tensor, ray: torch.Tensor, enter: torch.Tensor, leave: torch.Tensor, n_rays: int) -> torch.Tensor:
    """bool `(n_layers, n_rays)`: is a peak of this layer within its half step of a wanted depth on this ray?"""
    # Layers fall in depth; both ends of their cells rise when flipped, so that the layers a crossing wants are one run of them.
    low, high = (peak - half).flip(0), (peak + half).flip(0)
    first, end = torch.searchsorted(high, enter), torch.searchsorted(low, leave, right=True)
    some, size = end > first, (len(peak) + 1) * n_rays
    starts, ends = (torch.bincount((v * n_rays + ray)[some], minlength=size) for v in (first, end))
    count = (starts - ends).reshape(len(peak) + 1, n_rays)
    return (count.cumsum(0)[:-1] > 0).flip(0)


def stagger(spots: Spots, spacing: float) -> Spots:
    """The same spots with each energy layer's lattice offset against the others', so that layers do not repeat each other's gaps.

    Layer l is offset by `spacing (frac(l / g) - 1/2, frac(l / g^2) - 1/2)`, g = 1.3247 the plastic number: offsets of neighbouring layers
    are far apart and fill the cell evenly (Roberts' R2 sequence). Where depths overlap, layers 4 mm apart act as one finer lattice; and
    spots that move start from a place that is no symmetric stationary point.
    """
    g = 1.3247179572447460
    number = torch.arange(spots.n_layers, dtype=torch.float64, device=spots.position.device)
    offset = torch.stack(((number / g) % 1.0, (number / g**2) % 1.0), dim=1) - 0.5
    position = spots.position.detach() + (positive("spacing", spacing) * offset[spots.layer]).to(spots.position)
    return spots.at(position)
