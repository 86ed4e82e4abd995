// Volumes that the page holds, and slices of them. Arrays are (z, y, x).

// A packed volume: deflated bytes in base64, each row as differences from voxel to voxel, modulo 256 (`torchimpt.report.volumes`).
const unpacked = {};
async function unpack(id, row) {
  if (unpacked[id]) return unpacked[id];
  if (typeof DecompressionStream === "undefined") throw new Error("This browser is too old to unpack the doses. All else on the page holds.");
  const bytes = numbers(document.getElementById(id).textContent.trim(), Uint8Array);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const values = new Uint8Array(await new Response(stream).arrayBuffer());
  for (let from = 0; from < values.length; from += row) for (let i = from + 1; i < from + row; i++) values[i] += values[i - 1];
  return unpacked[id] = values;
}

// The picture of a slice: `across` columns and `along` rows, the first row on top.
function cut(values, shape, plane, index) {
  const [nz, ny, nx] = shape;
  const [rows, columns] = plane === 0 ? [ny, nx] : plane === 1 ? [nz, ny] : [nz, nx];
  const picture = new Float32Array(rows * columns);
  for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) {
    const z = plane === 0 ? index : nz - 1 - i, y = plane === 0 ? i : plane === 1 ? j : index, x = plane === 1 ? index : j;
    picture[i * columns + j] = values[(z * ny + y) * nx + x];
  }
  return { rows, columns, values: picture };
}

// Pixel values between the middles of the picture's voxels, bilinear, on `w` x `h` pixels.
function enlarged({ rows, columns, values }, w, h) {
  const out = new Float32Array(w * h), lefts = new Int32Array(w), shares = new Float32Array(w);
  for (let u = 0; u < w; u++) {
    const at = Math.min(Math.max((u + 0.5) * columns / w - 0.5, 0), columns - 1);
    lefts[u] = Math.min(Math.floor(at), Math.max(columns - 2, 0));
    shares[u] = at - lefts[u];
  }
  const next = columns > 1 ? 1 : 0;
  for (let v = 0; v < h; v++) {
    const at = Math.min(Math.max((v + 0.5) * rows / h - 0.5, 0), rows - 1), top = Math.min(Math.floor(at), Math.max(rows - 2, 0));
    const share = at - top, a = top * columns, b = (rows > 1 ? top + 1 : top) * columns;
    for (let u = 0; u < w; u++) {
      const left = lefts[u], f = shares[u];
      const high = values[a + left] * (1 - f) + values[a + left + next] * f, low = values[b + left] * (1 - f) + values[b + left + next] * f;
      out[v * w + u] = high * (1 - share) + low * share;
    }
  }
  return out;
}

// The line where a picture crosses `level`, as a path in voxels, middles at 0.5: marching squares.
function contour({ rows, columns, values }, level) {
  const path = new Path2D();
  for (let i = 0; i + 1 < rows; i++) for (let j = 0; j + 1 < columns; j++) {
    const a = values[i * columns + j], b = values[i * columns + j + 1], c = values[(i + 1) * columns + j + 1], d = values[(i + 1) * columns + j];
    const code = (a >= level) + 2 * (b >= level) + 4 * (c >= level) + 8 * (d >= level);
    if (code === 0 || code === 15) continue;
    const at = (p, q) => (level - p) / (q - p), ends = [];
    if ((a >= level) !== (b >= level)) ends.push([j + at(a, b), i]);
    if ((b >= level) !== (c >= level)) ends.push([j + 1, i + at(b, c)]);
    if ((c >= level) !== (d >= level)) ends.push([j + 1 - at(c, d), i + 1]);
    if ((d >= level) !== (a >= level)) ends.push([j, i + 1 - at(d, a)]);
    // of the two ways through a saddle the one that keeps what is above apart
    const order = ends.length === 4 && code === 5 ? [3, 0, 1, 2] : [0, 1, 2, 3];
    for (let k = 0; k + 1 < ends.length; k += 2) {
      const [from, to] = [ends[order[k]], ends[order[k + 1]]];
      path.moveTo(from[0] + 0.5, from[1] + 0.5);
      path.lineTo(to[0] + 0.5, to[1] + 0.5);
    }
  }
  return path;
}

// A mask's picture with its border rounded by less than a voxel; one so thin that it would vanish stays as it is.
function rounded({ rows, columns, values }) {
  const out = new Float32Array(values.length);
  let most = 0;
  for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) {
    let sum = 0;
    for (let di = -1; di <= 1; di++) for (let dj = -1; dj <= 1; dj++) {
      const p = Math.min(Math.max(i + di, 0), rows - 1), q = Math.min(Math.max(j + dj, 0), columns - 1);
      sum += values[p * columns + q] * (di ? 1 : 2) * (dj ? 1 : 2);
    }
    out[i * columns + j] = sum / 16;
    most = Math.max(most, sum / 16);
  }
  return { rows, columns, values: most > 0.5 ? out : values };
}

// 256 colours through the anchors, as [red, green, blue] of 0 to 255.
function colours(anchors) {
  return Array.from({ length: 256 }, (_, k) => {
    const at = k / 255 * (anchors.length - 1), i = Math.min(Math.floor(at), anchors.length - 2), f = at - i;
    const part = (hex, p) => parseInt(hex.slice(1 + 2 * p, 3 + 2 * p), 16);
    return [0, 1, 2].map(p => Math.round(part(anchors[i], p) * (1 - f) + part(anchors[i + 1], p) * f));
  });
}

// viridis for dose; blue to orange for differences: both keep their order for every kind of colour vision
const DOSE = colours(["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725"]);
const DIFFERENCE = colours(["#1c6fd0", "#58a1ea", "#b9d8f5", "#f5f3ee", "#f8cf9e", "#f09a3e", "#d86a00"]);
