"""The pair kernel for GPUs, in Triton: dose, the three gradients and the matrix entries of one beam in several scenarios at once.

The formula is that of `torchimpt.dose.pencil_beam.kernel`. It is spelled again because Triton compiles what stands in its kernels only;
the tests hold it against the others, by Triton's interpreter where there is no GPU. No pair is stored and nothing is added to by two
programs, so that results are the same in every run.

Dose: a program has a tile of a row's voxels, which are neighbours, and meets the spots near it layer by layer: spots are sorted into cells
of the isocentre plane, as voxels are for the CPU's kernel, so that those within reach are one run a band of cells. Amplitude and fall-off
of a layer are read once a tile. Gradient and entries: a program has a spot, and meets the runs of voxels within its reach.

Scenarios have tables of their own, of different lengths. Kernels get a row of addresses each, and read the tables where they lie. Numbers
that need the kernel's precision come in tensors: Triton takes Python's floats as float32.

    addresses (n_scenarios, 7)  order, cells, p, q, ratio, amplitude, falloff: as in `PairTables`
    sizes (n_scenarios, 5)      voxels n, steps of ratio by component and by layer, rows, entries of a row of cells
    frame (n_scenarios, 3)      first, left, ratio_min
    reach (n_scenarios, n_components, n_layers)
    shape (3,)                  t_max, edge and gain of the cut-off
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _bin(value, width, count):  # pragma: no cover
    """The cell of a coordinate counted from the first cell's edge; what lies outside is in the outermost."""
    return tl.minimum(tl.maximum(value / width, 0.0), count - 1.0).to(tl.int32)


@triton.jit
def dose_kernel(
    doses, addresses, sizes, frame, reach, shape, tiles, x, y, w, start, corner, n_voxels, n_components, n_layers, n_bands, n_cells,
    BAND: tl.constexpr, CELL: tl.constexpr, VOXELS: tl.constexpr, SPOTS: tl.constexpr,
):  # fmt: skip  # pragma: no cover
    """Add the dose of a tile of voxels: `doses` `(n_scenarios, n_voxels)`, `tiles` `(n_tiles, 3)` scenario, begin and end.

    `x`, `y`, `w` are sorted by layer, band and cell, which begin at `start`; `corner` is where the cells do.
    """
    tile = tiles + 3 * tl.program_id(0)
    scenario = tl.load(tile)
    i = tl.load(tile + 1) + tl.arange(0, VOXELS)
    live = i < tl.load(tile + 2)
    at = addresses + 7 * scenario
    n = tl.load(sizes + 5 * scenario)
    by_component, by_layer = tl.load(sizes + 5 * scenario + 1), tl.load(sizes + 5 * scenario + 2)
    p = tl.load(tl.load(at + 2).to(doses.dtype) + i, mask=live, other=0.0)
    q = tl.load(tl.load(at + 3).to(doses.dtype) + i, mask=live, other=0.0)
    ratio = tl.load(at + 4).to(doses.dtype)
    amplitude = tl.load(at + 5).to(doses.dtype)
    falloff = tl.load(at + 6).to(doses.dtype)
    least = tl.load(frame + 3 * scenario + 2)
    t_max, edge, gain = tl.load(shape), tl.load(shape + 1), tl.load(shape + 2)
    left, bottom = tl.load(corner), tl.load(corner + 1)
    p_low, p_high = tl.min(tl.where(live, p, 1e30), axis=0), tl.max(tl.where(live, p, -1e30), axis=0)
    q_low, q_high = tl.min(tl.where(live, q, 1e30), axis=0), tl.max(tl.where(live, q, -1e30), axis=0)
    dose = tl.zeros((SPOTS, VOXELS), dtype=doses.dtype.element_ty)
    for layer in range(n_layers):
        for k in range(n_components):
            far = tl.load(reach + (scenario * n_components + k) * n_layers + layer)
            span = far / tl.sqrt(least)
            band_low, band_high = _bin(q_low - span - bottom, BAND, n_bands), _bin(q_high + span - bottom, BAND, n_bands) + 1
            own = start + layer * n_bands * n_cells
            if (far > 0.0) & (tl.load(own + band_high * n_cells) > tl.load(own + band_low * n_cells)):
                a = tl.load(amplitude + (k * n_layers + layer) * n + i, mask=live, other=0.0)
                f = tl.load(falloff + (k * n_layers + layer) * n + i, mask=live, other=0.0)
                r = tl.load(ratio + k * by_component + layer * by_layer + i, mask=live, other=1.0)
                for band in range(band_low, band_high):
                    # the outermost bands have what lies beyond them, too
                    below = tl.where(band > 0, bottom + band * BAND - q_high, 0.0)
                    above = tl.where(band < n_bands - 1, q_low - bottom - (band + 1) * BAND, 0.0)
                    gap = tl.maximum(tl.maximum(below, above), 0.0)
                    half = far * far - least * gap * gap
                    if half > 0.0:
                        half = tl.sqrt(half)
                        cells = own + band * n_cells
                        low = tl.load(cells + _bin(p_low - half - left, CELL, n_cells))
                        high = tl.load(cells + _bin(p_high + half - left, CELL, n_cells) + 1)
                        for first in range(low, high, SPOTS):
                            s = first + tl.arange(0, SPOTS)
                            here = s < high
                            dx = p[None, :] - tl.load(x + s, mask=here, other=0.0)[:, None]
                            dy = q[None, :] - tl.load(y + s, mask=here, other=0.0)[:, None]
                            weight = tl.load(w + s, mask=here, other=0.0)
                            t = f[None, :] * (dx * dx + r[None, :] * dy * dy)
                            dose += weight[:, None] * tl.where(t < t_max, a[None, :] * (tl.exp(-t) - edge), 0.0)
    out = doses + scenario.to(tl.int64) * n_voxels + tl.load(tl.load(at).to(addresses.dtype) + i, mask=live, other=0)
    tl.store(out, tl.load(out, mask=live, other=0.0) + gain * tl.sum(dose, axis=0), mask=live)


@triton.jit
def _chords(cells, first, left, least, n_edges, row, live, x, y, far, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):  # pragma: no cover
    """Begin and end of the runs of these rows that a spot of this reach can touch, as `torchimpt.dose.inlines.run` has them."""
    low = first + row * HEIGHT
    gap = tl.maximum(tl.maximum(low - y, y - low - HEIGHT), 0.0)
    half = far * far - least * gap * gap
    live = live & (half > 0.0)
    half = tl.sqrt(tl.maximum(half, 0.0))
    begin = tl.minimum(tl.maximum((x - half - left) / WIDTH, 0.0), n_edges - 1.0).to(tl.int32)
    end = tl.minimum(tl.maximum((x + half - left) / WIDTH + 1.0, 0.0), n_edges - 1.0).to(tl.int32)
    edges = cells + row * n_edges
    return tl.load(edges + begin, mask=live, other=0).to(tl.int32), tl.load(edges + end, mask=live, other=0).to(tl.int32)


@triton.jit
def gradient_kernel(
    gradient, residuals, addresses, sizes, frame, reach, shape, layers, x, y, w, n_spots, n_voxels, n_scenarios, n_components, n_layers,
    MOVE: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, VOXELS: tl.constexpr,
):  # fmt: skip  # pragma: no cover
    """Add a spot's `(dF/dw, dF/dx, dF/dy)` to `gradient` `(3, n_spots)`, over all scenarios; the first of them alone unless `MOVE`."""
    s = tl.program_id(0)
    layer, x_s, y_s = tl.load(layers + s), tl.load(x + s), tl.load(y + s)
    t_max, edge, gain = tl.load(shape), tl.load(shape + 1), tl.load(shape + 2)
    g_w = tl.zeros((ROWS, VOXELS), dtype=gradient.dtype.element_ty)
    g_x, g_y = g_w, g_w
    n_voxels = tl.zeros((), dtype=tl.int64) + n_voxels  # all scenarios' doses may be more than int32 counts
    for scenario in range(n_scenarios):
        at = addresses + 7 * scenario
        n = tl.load(sizes + 5 * scenario)
        by_component, by_layer = tl.load(sizes + 5 * scenario + 1), tl.load(sizes + 5 * scenario + 2)
        n_rows, n_edges = tl.load(sizes + 5 * scenario + 3), tl.load(sizes + 5 * scenario + 4)
        order, cells = tl.load(at).to(addresses.dtype), tl.load(at + 1).to(addresses.dtype)
        p_, q_ = tl.load(at + 2).to(gradient.dtype), tl.load(at + 3).to(gradient.dtype)
        ratio = tl.load(at + 4).to(gradient.dtype) + layer * by_layer
        amplitude = tl.load(at + 5).to(gradient.dtype) + layer * n
        falloff = tl.load(at + 6).to(gradient.dtype) + layer * n
        first, left, least = tl.load(frame + 3 * scenario), tl.load(frame + 3 * scenario + 1), tl.load(frame + 3 * scenario + 2)
        for k in range(n_components):
            far = tl.load(reach + (scenario * n_components + k) * n_layers + layer)
            if far > 0.0:
                span = far / tl.sqrt(least)
                from_row = tl.maximum((y_s - span - first) / HEIGHT, 0.0).to(tl.int32)
                to_row = tl.minimum(tl.maximum((y_s + span - first) / HEIGHT + 1.0, 0.0), n_rows * 1.0).to(tl.int32)
                a_k, f_k, r_k = amplitude + k * n_layers * n, falloff + k * n_layers * n, ratio + k * by_component
                for row_0 in range(from_row, to_row, ROWS):
                    row = row_0 + tl.arange(0, ROWS)
                    begin, end = _chords(cells, first, left, least, n_edges, row, row < to_row, x_s, y_s, far, HEIGHT, WIDTH)
                    for offset in range(0, tl.max(end - begin, axis=0), VOXELS):
                        i = begin[:, None] + offset + tl.arange(0, VOXELS)[None, :]
                        live = i < end[:, None]
                        dx = tl.load(p_ + i, mask=live, other=0.0) - x_s
                        dy = tl.load(q_ + i, mask=live, other=0.0) - y_s
                        f = tl.load(f_k + i, mask=live, other=0.0)
                        ry = tl.load(r_k + i, mask=live, other=1.0) * dy
                        t = f * (dx * dx + ry * dy)
                        voxel = tl.load(order + i, mask=live, other=0)
                        a = tl.load(a_k + i, mask=live, other=0.0)
                        a = tl.where(t < t_max, a * tl.load(residuals + scenario * n_voxels + voxel, mask=live, other=0.0), 0.0)
                        e = tl.exp(-t)
                        g_w += a * (e - edge)
                        if MOVE:
                            slope = a * e * f
                            g_x += slope * dx
                            g_y += slope * ry
    out = gradient + s
    tl.store(out, tl.load(out) + gain * tl.sum(tl.sum(g_w, axis=1), axis=0))
    if MOVE:
        gain = 2.0 * gain * tl.load(w + s)
        tl.store(out + n_spots, tl.load(out + n_spots) + gain * tl.sum(tl.sum(g_x, axis=1), axis=0))
        tl.store(out + 2 * n_spots, tl.load(out + 2 * n_spots) + gain * tl.sum(tl.sum(g_y, axis=1), axis=0))


@triton.jit
def entries_kernel(
    values, columns, counts, room, addresses, sizes, frame, reach, shape, layers, x, y, n_components, n_layers,
    FILL: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, VOXELS: tl.constexpr,
):  # fmt: skip  # pragma: no cover
    """Count a spot's entries in one scenario, `reach` `(n_layers,)` that of its widest component; with `FILL` write them from `room[s]` on.

    They come row by row, not in the order of the dose vector.
    """
    s = tl.program_id(0)
    layer, x_s, y_s = tl.load(layers + s), tl.load(x + s), tl.load(y + s)
    t_max, edge, gain = tl.load(shape), tl.load(shape + 1), tl.load(shape + 2)
    n, by_component, by_layer = tl.load(sizes), tl.load(sizes + 1), tl.load(sizes + 2)
    n_rows, n_edges = tl.load(sizes + 3), tl.load(sizes + 4)
    order, cells = tl.load(addresses).to(addresses.dtype), tl.load(addresses + 1).to(addresses.dtype)
    p_, q_ = tl.load(addresses + 2).to(values.dtype), tl.load(addresses + 3).to(values.dtype)
    ratio = tl.load(addresses + 4).to(values.dtype) + layer * by_layer
    amplitude = tl.load(addresses + 5).to(values.dtype) + layer * n
    falloff = tl.load(addresses + 6).to(values.dtype) + layer * n
    first, left, least = tl.load(frame), tl.load(frame + 1), tl.load(frame + 2)
    far = tl.load(reach + layer)
    total = tl.load(room + s)
    begin_room = total
    if far > 0.0:
        span = far / tl.sqrt(least)
        from_row = tl.maximum((y_s - span - first) / HEIGHT, 0.0).to(tl.int32)
        to_row = tl.minimum(tl.maximum((y_s + span - first) / HEIGHT + 1.0, 0.0), n_rows * 1.0).to(tl.int32)
        for row in range(from_row, to_row):
            begin, end = _chords(cells, first, left, least, n_edges, row, row < to_row, x_s, y_s, far, HEIGHT, WIDTH)
            for offset in range(begin, end, VOXELS):
                i = offset + tl.arange(0, VOXELS)
                live = i < end
                dx = tl.load(p_ + i, mask=live, other=0.0) - x_s
                dy = tl.load(q_ + i, mask=live, other=0.0) - y_s
                value = tl.zeros((VOXELS,), dtype=values.dtype.element_ty)
                for k in range(n_components):
                    f = tl.load(falloff + k * n_layers * n + i, mask=live, other=0.0)
                    a = tl.load(amplitude + k * n_layers * n + i, mask=live, other=0.0)
                    t = f * (dx * dx + tl.load(ratio + k * by_component + i, mask=live, other=1.0) * dy * dy)
                    value += tl.where(t < t_max, a * (tl.exp(-t) - edge), 0.0)
                kept = value > 0.0
                if FILL:
                    place = total + tl.cumsum(kept.to(tl.int32), axis=0) - 1
                    tl.store(columns + place, tl.load(order + i, mask=live, other=0).to(tl.int32), mask=kept)
                    tl.store(values + place, gain * value, mask=kept)
                total += tl.sum(kept.to(tl.int32), axis=0)
    tl.store(counts + s, total - begin_room)
