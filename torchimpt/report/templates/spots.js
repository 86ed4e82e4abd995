// Spots in the beam's-eye view: every layer small, one large, with a way from where each was placed.

function spotMaps(root, data) {
  const [x, y, hx, hy] = ["x", "y", "home_x", "home_y"].map(name => data[name] && Array.from(numbers(data[name], Int16Array), v => v / 10));
  const weight = numbers(data.weight, Float32Array), layerOf = numbers(data.layer, Int16Array);
  const own = data.layers.map(() => []);
  layerOf.forEach((layer, i) => own[layer].push(i));
  const beams = data.beams.map((title, b) => ({ title, layers: data.layers.map((_, k) => k).filter(k => data.layers[k].beam === b) }));
  const large = root.querySelector(".large"), slider = root.querySelector("input[type=range]"), out = root.querySelector("output");
  let beam = beams.findIndex(one => one.layers.length), place = 0;

  // Middle and half side of the square around a beam's spots, the heaviest weight, and the area of its disc, mm.
  for (const one of beams) {
    const all = one.layers.flatMap(k => own[k]), xs = all.flatMap(i => hx ? [x[i], hx[i]] : [x[i]]), ys = all.flatMap(i => hy ? [y[i], hy[i]] : [y[i]]);
    if (!all.length) continue;
    const extremes = values => values.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);
    const [[left, right], [low, high]] = [extremes(xs), extremes(ys)];
    one.middle = [(left + right) / 2, (low + high) / 2];
    one.half = Math.max(right - left, high - low) / 2 + 6;
    one.heaviest = all.reduce((most, i) => Math.max(most, weight[i]), 0) || 1;
    one.weights = one.layers.map(k => own[k].reduce((sum, i) => sum + weight[i], 0));
  }
  const radius = (share, scale) => Math.max(0.5, 0.46 * data.apart * scale * Math.sqrt(share));

  function small(canvas, b, k) {
    const one = beams[b], side = 176, scale = side / (2 * one.half), context = canvas.getContext("2d");
    canvas.width = canvas.height = side;
    const style = getComputedStyle(document.documentElement), ink = style.getPropertyValue("--ink"), accent = style.getPropertyValue("--accent");
    const px = v => side / 2 + (v - one.middle[0]) * scale, py = v => side / 2 - (v - one.middle[1]) * scale;
    for (const i of own[k]) {
      context.fillStyle = accent; context.globalAlpha = hx ? 0.55 : 0.85;
      context.beginPath(); context.arc(px(x[i]), py(y[i]), radius(weight[i] / one.heaviest, scale), 0, 7); context.fill();
      if (!hx) continue;
      context.globalAlpha = 0.8; context.strokeStyle = ink;
      context.beginPath(); context.moveTo(px(hx[i]), py(hy[i])); context.lineTo(px(x[i]), py(y[i])); context.stroke();
    }
  }

  function drawLarge(width) {
    const one = beams[beam], k = one.layers[place], margin = 34, inner = width - margin - 6, scale = inner / (2 * one.half);
    large.replaceChildren();
    const svg = make("svg", { viewBox: `0 0 ${width} ${inner + margin + 4}`, width, height: inner + margin + 4, role: "img", "aria-label": out.textContent }, large);
    const px = v => margin + inner / 2 + (v - one.middle[0]) * scale, py = v => 2 + inner / 2 - (v - one.middle[1]) * scale;
    make("rect", { class: "field", x: margin, y: 2, width: inner, height: inner }, svg);
    const grid = make("g", { class: "grid" }, svg);
    for (const v of ticks(one.middle[0] - one.half, one.middle[0] + one.half, 5)) make("text", { x: px(v), y: inner + 18, "text-anchor": "middle" }, grid, minus(v));
    for (const v of ticks(one.middle[1] - one.half, one.middle[1] + one.half, 5)) make("text", { x: margin - 5, y: py(v) + 4, "text-anchor": "end" }, grid, minus(v));
    make("text", { class: "name", x: margin + inner / 2, y: inner + 32, "text-anchor": "middle" }, grid, "x, mm");
    make("text", { class: "name", x: 2, y: 12 }, grid, "y");
    const order = [...own[k]].sort((a, b) => weight[b] - weight[a]);
    for (const i of order) {
      const share = weight[i] / one.heaviest, disc = make("circle", { class: "spot", cx: px(x[i]).toFixed(1), cy: py(y[i]).toFixed(1), r: radius(share, scale).toFixed(2) }, svg);
      const way = hx ? `, moved ${Math.hypot(x[i] - hx[i], y[i] - hy[i]).toFixed(1)} mm` : "";
      make("title", {}, disc, `(${minus(x[i].toFixed(1))}, ${minus(y[i].toFixed(1))}) mm, ${(weight[i]).toPrecision(3)} million protons${way}`);
    }
    if (hx) for (const i of order) arrow(svg, px(hx[i]), py(hy[i]), px(x[i]), py(y[i]), weight[i] / one.heaviest);
  }

  // A way with a head at its end; fainter where the spot carries little.
  function arrow(svg, x1, y1, x2, y2, share) {
    const length = Math.hypot(x2 - x1, y2 - y1), head = Math.min(5, 0.5 * length);
    if (length < 0.7) return;
    const [ux, uy] = [(x2 - x1) / length * head, (y2 - y1) / length * head];
    const d = `M${x1.toFixed(1)} ${y1.toFixed(1)}L${x2.toFixed(1)} ${y2.toFixed(1)}m${(-ux - 0.5 * uy).toFixed(1)} ${(-uy + 0.5 * ux).toFixed(1)}L${x2.toFixed(1)} ${y2.toFixed(1)}l${(-ux + 0.5 * uy).toFixed(1)} ${(-uy - 0.5 * ux).toFixed(1)}`;
    make("path", { class: "way", d, "stroke-opacity": Math.min(1, 0.3 + 2 * share).toFixed(2) }, svg);
  }

  function drawWeights(width) {
    const one = beams[beam], energies = one.layers.map(k => data.layers[k].energy), low = Math.min(...energies), high = Math.max(...energies);
    const axes = new Axes(root.querySelector(".weights"), width, {
      x: [low - 2, high + 2], y: [0, 1.05 * Math.max(...one.weights) || 1], height: 170, xName: "Energy, MeV", yName: "10⁶ protons", label: "Weight of each energy layer",
    });
    one.layers.forEach((k, i) => {
      const attributes = { class: i === place ? "bar now" : "bar", x1: axes.px(energies[i]), x2: axes.px(energies[i]), y1: axes.py(0), y2: axes.py(one.weights[i]) };
      make("title", {}, make("line", attributes, axes.data), data.layers[k].name);
    });
  }

  function say() {
    const k = beams[beam].layers[place], spots = own[k].length;
    out.textContent = `Layer ${place + 1} of ${beams[beam].layers.length}: ${data.layers[k].name}, ${spots} spot${spots === 1 ? "" : "s"}`;
    slider.setAttribute("aria-valuetext", out.textContent);
    root.querySelectorAll(".maps button").forEach(node => node.setAttribute("aria-pressed", String(Number(node.dataset.layer) === k)));
  }

  const maps = root.querySelector(".maps");
  beams.forEach((one, b) => {
    const group = make("div", { class: "beam", "data-beam": b }, maps);
    make("h3", {}, group, one.title);
    const grid = make("div", { class: "tiles-of-layers" }, group);
    one.layers.forEach((k, i) => {
      const button = make("button", { type: "button", "data-layer": k }, grid), canvas = make("canvas", { width: 1, height: 1, "aria-hidden": "true" }, button);
      make("span", {}, button, data.layers[k].name);
      button.addEventListener("click", () => { choose(b, i); });
      small(canvas, b, k);
    });
  });
  const select = root.querySelector("select");
  beams.forEach((one, b) => { if (one.layers.length) make("option", { value: b }, select, one.title); });

  function choose(b, i) {
    beam = b; place = i;
    select.value = b; slider.max = beams[b].layers.length - 1; slider.value = i;
    maps.querySelectorAll(".beam").forEach(node => node.classList.toggle("now", Number(node.dataset.beam) === b));
    say();
    for (const again of drawn) again();
  }
  const drawn = [];
  choose(beam, beams[beam].weights.indexOf(Math.max(...beams[beam].weights)));
  drawn.push(fitted(large, drawLarge), fitted(root.querySelector(".weights"), drawWeights));
  select.addEventListener("change", () => { const b = Number(select.value); choose(b, beams[b].weights.indexOf(Math.max(...beams[b].weights))); });
  slider.addEventListener("input", () => choose(beam, Number(slider.value)));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => maps.querySelectorAll("canvas").forEach(canvas => {
    small(canvas, Number(canvas.closest(".beam").dataset.beam), Number(canvas.parentNode.dataset.layer));
  }));
}

document.querySelectorAll("[data-spots]").forEach(root => spotMaps(root, held(root.dataset.spots)));
