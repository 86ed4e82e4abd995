// Charts as SVG, drawn at the width of their place and again when that changes: type stays as large as the page's, on a phone too.

const SVG = "http://www.w3.org/2000/svg";

function make(name, attributes, parent, text) {
  const svg = ["svg", "g", "path", "line", "text", "circle", "rect", "title"].includes(name);
  const node = svg ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const key in attributes) node.setAttribute(key, attributes[key]);
  if (text !== undefined) node.textContent = text;
  if (parent) parent.appendChild(node);
  return node;
}

// What the page holds as JSON, or null.
function held(id) {
  const node = document.getElementById(id);
  return node && JSON.parse(node.textContent);
}

// Numbers that the page holds in base64, little-endian.
function numbers(text, Type) {
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return new Type(bytes.buffer);
}

function minus(text) { return String(text).replace("-", "\u2212"); }

// Round numbers from low to high, about `count` of them.
function ticks(low, high, count) {
  const rough = (high - low) / count, power = Math.pow(10, Math.floor(Math.log10(rough)));
  const step = power * [1, 2, 5, 10].find(m => m * power >= rough * 0.999), found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) found.push(Number((k * step).toPrecision(12)));
  return found;
}

// Call `draw(width)` now and whenever the width of `place` changes; returns a function that draws again.
function fitted(place, draw) {
  let width = 0;
  const again = () => { if (width > 0) draw(width); };
  const look = () => { const now = Math.round(place.clientWidth); if (now > 0 && now !== width) { width = now; draw(width); } };
  new ResizeObserver(look).observe(place);
  look();
  return again;
}

// Axes in `place`; `x` and `y` are ranges, `log` says that y is logarithmic.
class Axes {
  constructor(place, width, { x, y, log = false, xName = "", yName = "", height = 300, yTicks = null, label = "" }) {
    const left = 46, right = 12, top = 24, bottom = xName ? 40 : 22;
    Object.assign(this, { place, width, height, x, y, log, left, top, inner: width - left - right, tall: height - top - bottom });
    place.replaceChildren();
    this.svg = make("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label }, place);
    const grid = make("g", { class: "grid" }, this.svg);
    this.data = make("g", {}, this.svg);
    for (const value of yTicks || (log ? this.decades() : ticks(y[0], y[1], Math.max(2, this.tall / 45)))) {
      make("line", { x1: left, x2: left + this.inner, y1: this.py(value), y2: this.py(value) }, grid);
      this.yText(value, log, grid);
    }
    for (const value of ticks(x[0], x[1], Math.max(2, this.inner / 64)))
      make("text", { x: this.px(value), y: top + this.tall + 16, "text-anchor": "middle" }, grid, minus(value.toLocaleString("en")));
    make("line", { class: "axis", x1: left, x2: left + this.inner, y1: top + this.tall, y2: top + this.tall }, grid);
    if (xName) make("text", { class: "name", x: left + this.inner / 2, y: height - 4, "text-anchor": "middle" }, grid, xName);
    if (yName) make("text", { class: "name", x: 2, y: 9 }, grid, yName);
  }

  yText(value, log, grid) {
    const node = make("text", { x: this.left - 7, y: this.py(value) + 4, "text-anchor": "end" }, grid);
    const power = Math.log10(value);
    if (!log || (power >= -2 && power < 5)) { node.textContent = minus(value.toLocaleString("en", { maximumFractionDigits: 6 })); return; }
    node.textContent = "10";
    const raised = document.createElementNS(SVG, "tspan");
    raised.setAttribute("dy", "-4"); raised.setAttribute("font-size", "9"); raised.textContent = minus(Math.round(power));
    node.appendChild(raised);
  }

  decades() {
    const [low, high] = this.y.map(Math.log10), step = Math.max(1, Math.ceil((high - low) / 6)), found = [];
    for (let k = Math.ceil(low - 1e-9); k <= high + 1e-9; k += step) found.push(Math.pow(10, k));
    return found;
  }

  px(value) { return this.left + this.inner * (value - this.x[0]) / (this.x[1] - this.x[0]); }

  py(value) {
    const [low, high, own] = this.log ? [...this.y, Math.max(value, this.y[0])].map(Math.log10) : [...this.y, value];
    return this.top + this.tall * (1 - (own - low) / (high - low));
  }

  path(xs, ys) {
    let text = "";
    for (let i = 0; i < xs.length; i++) text += `${i ? "L" : "M"}${this.px(xs[i]).toFixed(1)} ${this.py(ys[i]).toFixed(1)}`;
    return text;
  }

  line(xs, ys, attributes) { return make("path", { fill: "none", "stroke-linejoin": "round", ...attributes, d: this.path(xs, ys) }, this.data); }

  band(xs, low, high, attributes) {
    const back = this.path([...xs].reverse(), [...high].reverse());
    return make("path", { stroke: "none", ...attributes, d: `${this.path(xs, low)}L${back.slice(1)}Z` }, this.data);
  }
}

// One checkbox a ROI; all lists of the page show and set the same state.
const regions = { on: new Set(), watchers: [] };

function setRegion(name, shown) {
  if (shown) regions.on.add(name); else regions.on.delete(name);
  document.querySelectorAll("input[data-roi]").forEach(box => { box.checked = regions.on.has(box.dataset.roi); });
}

function toldRegions() { for (const watcher of regions.watchers) watcher(); }

function regionList(place, rois) {
  for (const roi of rois) {
    const label = make("label", { style: `--c: ${roi.color}` }, place);
    const box = make("input", { type: "checkbox", "data-roi": roi.name }, label);
    make("span", {}, label, roi.name);
    box.checked = regions.on.has(roi.name);
    box.addEventListener("change", () => { setRegion(roi.name, box.checked); toldRegions(); });
  }
  for (const [text, shown] of [["All", true], ["None", false]])
    make("button", { type: "button", class: "plain" }, place, text).addEventListener("click", () => {
      for (const roi of rois) setRegion(roi.name, shown);
      toldRegions();
    });
}

// The scenario that is looked at: every menu of the page follows.
const scenario = { menus: [], set(name) { for (const menu of this.menus) menu(name); } };

function menu(select, names, change) {
  for (const [value, text] of names) make("option", { value }, select, text);
  scenario.menus.push(name => { if (select.value !== name && names.some(([value]) => value === name)) { select.value = name; change(name); } });
  select.addEventListener("change", () => { change(select.value); scenario.set(select.value); });
}
