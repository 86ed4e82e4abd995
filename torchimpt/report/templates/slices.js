// Dose over CT in three planes: a slider a plane, a menu of doses, and the difference to the first of them.

const PLANES = [
  { name: "Axial", cut: 2, across: 0, along: 1, up: false, sides: ["R", "L", "A", "P"] },
  { name: "Sagittal", cut: 0, across: 1, along: 2, up: true, sides: ["A", "P", "S", "I"] },
  { name: "Coronal", cut: 1, across: 0, along: 2, up: true, sides: ["R", "L", "S", "I"] },
];

async function slices(root, data) {
  const find = name => root.querySelector(`[name=${name}]`), status = root.querySelector(".readout");
  const { shape, spacing, origin } = data, size = [shape[2], shape[1], shape[0]], nx = shape[2];
  const at = [...data.start], views = [];
  let picked = 0;
  const get = part => unpack(part, nx);
  const [ct, first] = await Promise.all([get(data.ct), get(data.doses[0].id)]);
  const masks = await Promise.all(data.masks.map(get));
  let dose = first;

  const differs = () => find("show").value === "difference" && picked > 0;
  const least = () => Number(find("least").value);
  const top = () => differs() ? data.most : data.top;

  // Gy of the level of a dose and, in a difference, of that of the first
  function picture(plane, index) {
    const own = cut(dose, shape, plane, index);
    if (differs()) {
      const base = cut(first, shape, plane, index);
      for (let i = 0; i < own.values.length; i++) own.values[i] -= base.values[i];
    }
    for (let i = 0; i < own.values.length; i++) own.values[i] *= data.step;
    return own;
  }

  function colour(value, from, span) {
    if (differs()) {
      const k = Math.round(127.5 + 127.5 * Math.max(-1, Math.min(1, value / span)));
      return [DIFFERENCE[k], Math.abs(value) < from ? 0 : 0.35 + 0.45 * Math.min(1, Math.abs(value) / span)];
    }
    return [DOSE[Math.round(255 * Math.max(0, Math.min(1, value / span)))], value < from || value <= 0 ? 0 : 0.6];
  }

  function draw(view) {
    const plane = PLANES[view.number], canvas = view.canvas, scale = Math.min(window.devicePixelRatio || 1, 2);
    const wide = canvas.clientWidth;
    if (!wide) return;
    const w = canvas.width = Math.round(wide * scale), h = canvas.height = Math.max(1, Math.round(w * view.tall / view.wide));
    const context = canvas.getContext("2d"), image = context.createImageData(w, h), own = picture(view.number, at[plane.cut]);
    const grey = enlarged(cut(ct, shape, view.number, at[plane.cut]), w, h), wash = enlarged(own, w, h), from = least(), span = top();
    for (let i = 0; i < w * h; i++) {
      const [rgb, share] = colour(wash[i], from, span);
      for (let p = 0; p < 3; p++) image.data[4 * i + p] = grey[i] * (1 - share) + rgb[p] * share;
      image.data[4 * i + 3] = 255;
    }
    context.putImageData(image, 0, 0);
    context.save();
    context.scale(w / own.columns, h / own.rows);
    const pixel = scale * own.columns / w;
    outlines(context, view.number, at[plane.cut], pixel);
    if (data.level && !differs()) stroke(context, contour(own, 0.95 * data.level), "#ffffff", 1.2 * pixel, "rgba(0,0,0,.55)");
    context.restore();
    letters(context, plane, w, h, scale);
    cross(context, plane, w, h, scale);
    view.out.textContent = `${plane.name} ${"xyz"[plane.cut]} = ${minus((origin[plane.cut] + spacing[plane.cut] * at[plane.cut]).toFixed(1))} mm`;
    view.slider.value = at[plane.cut];
    view.slider.setAttribute("aria-valuetext", view.out.textContent);
  }

  function stroke(context, path, style, width, halo) {
    for (const [colour, wide] of [[halo, 2.4 * width], [style, width]]) {
      context.strokeStyle = colour; context.lineWidth = wide; context.lineCap = "round"; context.stroke(path);
    }
  }

  function outlines(context, plane, index, pixel) {
    data.rois.forEach((roi, k) => {
      if (!regions.on.has(roi.name)) return;
      const bits = cut(masks[k >> 3], shape, plane, index), bit = 1 << (k & 7);
      let some = false;
      bits.values.forEach((v, i) => { bits.values[i] = v & bit ? 1 : 0; some = some || bits.values[i]; });
      if (some) stroke(context, contour(rounded(bits), 0.5), roi.color, (roi.target ? 2 : 1.4) * pixel, "rgba(255,255,255,.55)");
    });
  }

  function letters(context, plane, w, h, scale) {
    const [left, right, high, low] = plane.sides, gap = 11 * scale;
    context.font = `${12 * scale}px sans-serif`; context.textAlign = "center"; context.textBaseline = "middle"; context.lineWidth = 3 * scale;
    context.strokeStyle = "rgba(0,0,0,.6)"; context.fillStyle = "#f4f4f4";
    for (const [text, x, y] of [[left, gap, h / 2], [right, w - gap, h / 2], [high, w / 2, gap], [low, w / 2, h - gap]]) {
      context.strokeText(text, x, y); context.fillText(text, x, y);
    }
  }

  // Ticks at the edges where the other two planes cut.
  function cross(context, plane, w, h, scale) {
    const x = (at[plane.across] + 0.5) * w / size[plane.across], down = plane.up ? size[plane.along] - 1 - at[plane.along] : at[plane.along];
    const y = (down + 0.5) * h / size[plane.along], t = 7 * scale;
    context.strokeStyle = "rgba(255,255,255,.75)"; context.lineWidth = scale; context.beginPath();
    for (const [x1, y1, x2, y2] of [[x, 0, x, t], [x, h - t, x, h], [0, y, t, y], [w - t, y, w, y]]) { context.moveTo(x1, y1); context.lineTo(x2, y2); }
    context.stroke();
  }

  function all() { views.forEach(draw); bar(); }

  function bar() {
    const canvas = root.querySelector("canvas.gradation"), context = canvas.getContext("2d"), span = top(), low = differs() ? -span : 0, from = least();
    canvas.width = 512; canvas.height = 1;
    for (let i = 0; i < 512; i++) {
      const value = low + (span - low) * (i + 0.5) / 512, [rgb, share] = colour(value, from, span);
      context.fillStyle = `rgb(${rgb.map(v => Math.round(share ? v : 128)).join()})`;
      context.fillRect(i, 0, 1, 1);
    }
    const scale = root.querySelector(".scale");
    scale.replaceChildren();
    for (const value of ticks(low, span, 6)) {
      const node = make("span", { style: `left: ${100 * (value - low) / (span - low)}%` }, scale);
      node.textContent = minus(value) + (value === 0 || value === Math.max(...ticks(low, span, 6)) ? ` ${data.unit}` : "");
    }
    find("least").nextElementSibling.textContent = `${from.toFixed(1)} ${data.unit}`;
  }

  function told(view, event) {
    const plane = PLANES[view.number], box = view.canvas.getBoundingClientRect(), inside = v => Math.min(Math.max(v, 0), 0.9999);
    const across = Math.floor(inside((event.clientX - box.left) / box.width) * size[plane.across]);
    let along = Math.floor(inside((event.clientY - box.top) / box.height) * size[plane.along]);
    if (plane.up) along = size[plane.along] - 1 - along;
    const point = [...at];
    point[plane.across] = across; point[plane.along] = along;
    const i = (point[2] * shape[1] + point[1]) * nx + point[0], gray = v => (v * data.step).toFixed(1);
    const where = point.map((v, a) => minus((origin[a] + spacing[a] * v).toFixed(1))).join(", ");
    const hu = Math.round(data.window[0] + (data.window[1] - data.window[0]) * ct[i] / 255);
    const base = picked ? `, ${data.doses[0].label} ${gray(first[i])}, difference ${minus(((dose[i] - first[i]) * data.step).toFixed(1))}` : "";
    status.textContent = `(${where}) mm LPS: ${data.doses[picked].label} ${gray(dose[i])} ${data.unit}${base}; CT ${minus(hu)} HU`;
    return point;
  }

  PLANES.forEach((plane, number) => {
    const figure = root.querySelectorAll("figure")[number], canvas = figure.querySelector("canvas"), slider = figure.querySelector("input");
    const wide = size[plane.across] * spacing[plane.across], tall = size[plane.along] * spacing[plane.along];
    const view = { number, canvas, slider, out: figure.querySelector("output"), wide, tall };
    figure.style.flexGrow = (wide / tall).toFixed(4);
    canvas.style.aspectRatio = `${wide} / ${tall}`;
    slider.max = size[plane.cut] - 1;
    slider.addEventListener("input", () => { at[plane.cut] = Number(slider.value); all(); });
    let pressed = false;
    const go = event => { const point = told(view, event); if (pressed) { point.forEach((v, a) => { at[a] = v; }); all(); } };
    canvas.addEventListener("pointerdown", event => { pressed = true; go(event); });
    canvas.addEventListener("pointermove", go);
    for (const name of ["pointerup", "pointerleave", "pointercancel"]) canvas.addEventListener(name, () => { pressed = false; });
    views.push(view);
    fitted(canvas, () => draw(view));
  });

  const show = find("show"), slider = find("least");
  function thresholds() {
    const span = top();
    Object.assign(slider, { min: 0, max: (0.98 * span).toFixed(2), step: differs() ? 0.1 : 0.5 });
    slider.value = differs() ? Math.max(data.step, 0.05 * span) : 0.1 * (data.level || span);
  }
  async function pick(name) {
    const was = differs();
    picked = data.doses.findIndex(one => one.name === name);
    dose = await get(data.doses[picked].id);
    show.disabled = picked === 0;
    if (was !== differs()) thresholds();
    root.dataset.dose = name;
    all();
  }
  menu(find("dose"), data.doses.map(one => [one.name, one.label]), pick);
  show.addEventListener("change", () => { thresholds(); all(); });
  slider.addEventListener("input", all);
  regions.watchers.push(all);
  show.disabled = true;
  thresholds();
  all();
  root.dataset.dose = data.doses[0].name;
}

document.querySelectorAll("[data-slices]").forEach(root => {
  const data = held(root.dataset.slices);
  regionList(root.querySelector(".regions"), data.rois);
  slices(root, data).catch(error => { root.querySelector(".readout").textContent = error.message; });
});
