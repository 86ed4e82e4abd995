// Convergence and the HU table's curve; what the tables and the printer do to the page.

document.querySelectorAll("[data-convergence]").forEach(root => {
  const data = held(root.dataset.convergence), place = root.querySelector(".chart");
  const values = data.lines.flatMap(line => line.values).filter(v => v > 0), high = Math.max(...data.lines[0].values, 1e-12);
  const low = Math.max(Math.min(...values, high), 1e-5 * Math.max(data.lines[0].values[data.lines[0].values.length - 1], 1e-12));
  fitted(place, width => {
    const axes = new Axes(place, width, {
      x: [data.iterations[0], data.iterations[data.iterations.length - 1]], y: [0.8 * low, 1.3 * high], log: true, xName: "Iteration", yName: "Objective, Gy²",
      height: 300, label: "Objective over iterations",
    });
    [...data.lines].reverse().forEach(line => {
      const node = axes.line(line.iterations || data.iterations, line.values, { class: "curve", stroke: line.color, "stroke-width": line.name === "Total" ? 2 : 1.4 });
      make("title", {}, node, line.name);
    });
  });
});

document.querySelectorAll("[data-hu]").forEach(root => {
  const data = held(root.dataset.hu), [curve, histogram] = root.querySelectorAll(".chart"), x = [data.edges[0], data.edges[data.edges.length - 1]];
  fitted(curve, width => {
    const axes = new Axes(curve, width, { x, y: [0, 1.05 * Math.max(...data.table[1])], yName: "Relative stopping power", height: 210, label: "Relative stopping power over CT number" });
    axes.line(...data.table, { class: "muted", "stroke-width": 1.2 });
    if (data.used) axes.line(...data.used, { class: "used", "stroke-width": 3.5, "stroke-linecap": "round" });
  });
  fitted(histogram, width => {
    const axes = new Axes(histogram, width, { x, y: [1e-3, 100], log: true, yTicks: [0.01, 1, 100], xName: "CT number, HU", yName: "Voxels, %", height: 150, label: "CT numbers of the voxels" });
    data.share.forEach((share, i) => {
      if (share <= 1e-3) return;
      const left = axes.px(data.edges[i]), y = axes.py(share);
      make("rect", { class: "column", x: left, y, width: Math.max(0.5, axes.px(data.edges[i + 1]) - left), height: axes.py(1e-3) - y }, axes.data);
    });
  });
});

// On paper what is folded away is open.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(node => { node.open = true; }));

document.querySelectorAll("button[data-scenario]").forEach(button => {
  button.addEventListener("click", () => scenario.set(button.dataset.scenario));
});
