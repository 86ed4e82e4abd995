// DVHs: a line a ROI, over it the band of all scenarios; a line style a run.

const DASHES = ["", "8 3", "2 2.5", "9 3 2 3"];

class Curves {
  constructor(data, run) {
    this.n = data.n;
    this.scenarios = run.scenarios;
    this.values = numbers(run.curves, Uint16Array);
    this.count = this.values.length / (run.scenarios.length * data.n);
    this.bands = [];
  }

  // Volume in % of one ROI in one scenario; null where the run has none.
  curve(s, r) {
    const from = (s * this.count + r) * this.n, own = this.values.subarray(from, from + this.n);
    return own[0] === 65535 ? null : Array.from(own, v => v / 100);
  }

  band(r) {
    if (this.bands[r]) return this.bands[r];
    const low = new Array(this.n).fill(100), high = new Array(this.n).fill(0);
    for (let s = 0; s < this.scenarios.length; s++)
      (this.curve(s, r) || []).forEach((v, i) => { low[i] = Math.min(low[i], v); high[i] = Math.max(high[i], v); });
    return this.bands[r] = { low, high };
  }
}

// The last point that a curve needs: it is 0 from there on.
function reach(values) {
  let last = values.length - 1;
  while (last > 1 && values[last - 1] === 0) last--;
  return last;
}

function dvh(root, data) {
  const runs = data.runs.map(run => new Curves(data, run));
  const axis = Array.from({ length: data.n }, (_, i) => i * data.step);
  const place = root.querySelector(".chart"), bands = root.querySelector("[name=bands]"), readout = root.querySelector(".readout");
  let picked = runs[0].scenarios[0], axes = null;

  function shown() { return data.rois.map((roi, r) => [roi, r]).filter(([roi]) => regions.on.has(roi.name)); }

  function draw(width) {
    let top = 10 * data.step;
    for (const [, r] of shown()) for (const run of runs) if (run.curve(0, r)) top = Math.max(top, axis[reach(run.band(r).high)]);
    const marks = data.marks.filter(mark => regions.on.has(mark.roi));
    for (const x of [data.level || 0, ...marks.map(mark => mark.x)]) top = Math.max(top, 1.03 * x);
    const height = Math.max(300, Math.min(440, 0.68 * width));
    axes = new Axes(place, width, {
      x: [0, top], y: [0, 100], xName: data.axis, yName: "Volume, %", height, yTicks: [0, 20, 40, 60, 80, 100], label: "Dose-volume histograms",
    });
    if (data.level) level(axes, data.level);
    for (const [roi, r] of shown().reverse()) runs.forEach((run, k) => drawRoi(run, k, roi, r));
    for (const mark of marks) goal(axes, mark, data.rois.find(roi => roi.name === mark.roi).color);
  }

  function drawRoi(run, k, roi, r) {
    const s = Math.max(0, run.scenarios.indexOf(picked)), nominal = run.curve(0, r), own = run.curve(s, r);
    if (!nominal) return;
    const { low, high } = run.band(r), to = reach(high) + 1, xs = axis.slice(0, to);
    const tag = { "data-roi": roi.name, stroke: roi.color, "stroke-dasharray": DASHES[k % DASHES.length] };
    if (bands.checked && run.scenarios.length > 1)
      axes.band(xs, low.slice(0, to), high.slice(0, to), { class: "band", "data-roi": roi.name, fill: roi.color, "fill-opacity": runs.length > 1 ? 0.12 : 0.2 });
    if (s > 0) axes.line(xs, nominal.slice(0, to), { ...tag, class: "nominal", "stroke-width": 0.9, "stroke-opacity": 0.7 });
    if (own) make("title", {}, axes.line(xs, own.slice(0, to), { ...tag, class: "curve", "stroke-width": 1.8 }), roi.name);
  }

  const again = fitted(place, draw);
  regions.watchers.push(again);
  bands.addEventListener("change", again);
  const names = [...new Set(runs.flatMap(run => run.scenarios))].map(name => [name, name]);
  menu(root.querySelector("select"), names, name => { picked = name; again(); });

  place.addEventListener("pointermove", event => {
    if (!axes) return;
    const at = axes.x[1] * (event.clientX - axes.svg.getBoundingClientRect().left - axes.left) / axes.inner, i = Math.round(at / data.step);
    if (at < 0 || i >= data.n) return;
    const told = [];
    for (const [roi, r] of shown()) {
      const each = runs.map(run => run.curve(Math.max(0, run.scenarios.indexOf(picked)), r)).filter(Boolean).map(own => own[i].toFixed(1));
      if (each.length) told.push(`${roi.name} ${each.join(" | ")} %`);
    }
    readout.textContent = `From ${(i * data.step).toFixed(1)} ${data.unit}: ${told.join(", ")}`;
  });
}

// The prescription, a dotted line.
function level(axes, value) {
  const x = axes.px(value);
  make("line", { class: "level", x1: x, x2: x, y1: axes.top, y2: axes.top + axes.tall }, axes.data);
  make("text", { class: "note", x, y: axes.top - 4, "text-anchor": "middle" }, axes.data, `${value} Gy`);
}

// A small triangle at a goal's limit; it points to where the curve should be.
function goal(axes, mark, color) {
  const x = axes.px(mark.x), y = axes.py(mark.y), turn = { right: 0, down: 90, left: 180, up: 270 }[mark.way];
  const node = make("path", { class: "goal", d: "M-4 -4.5L5 0L-4 4.5Z", fill: color, transform: `translate(${x} ${y}) rotate(${turn})` }, axes.data);
  make("title", {}, node, mark.text);
}

document.querySelectorAll("[data-dvh]").forEach(root => {
  const data = held(root.dataset.dvh);
  for (const roi of data.rois) if (roi.shown) regions.on.add(roi.name);
  regionList(root.querySelector(".regions"), data.rois);
  dvh(root, data);
});
