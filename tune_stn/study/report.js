"use strict";
// Draws the figures of the report into its <svg> elements. Names come from users, so they only ever become text.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const colours = Object.fromEntries(data.methods.map((one) => [one.name, one.colour]));
  const dashed = new Set(data.methods.filter((one) => one.dashed).map((one) => one.name));
  const hidden = new Set();
  const chosen = { measure: data.measures[0].name, hp: "", seed: "" };
  const tip = document.getElementById("tip");
  const drawings = [];
  const redraw = () => drawings.forEach((draw) => draw());

  function add(parent, tag, attributes = {}, text = "") {
    const node = document.createElementNS(parent.namespaceURI, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.textContent = text;
    return parent.appendChild(node);
  }
  const coloured = (node, method) => (node.style.setProperty("--colour", colours[method]), node);
  function short(value) {
    const rounded = Number(value.toPrecision(4));
    return rounded !== 0 && Math.abs(rounded) < 1e-3 ? rounded.toExponential() : String(rounded);
  }

  function ticks(low, high, log, count) {
    const found = [];
    if (log && high / low > 5) {
      const every = Math.ceil(Math.log10(high / low) / count);
      const digits = high / low < 100 ? [1, 2, 5] : [1];
      for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += every)
        digits.forEach((digit) => found.push(Number(`${digit}e${power}`)));
    } else {
      const raw = (high - low) / count, size = 10 ** Math.floor(Math.log10(raw));
      const step = [1, 2, 5, 10].find((times) => times * size >= raw) * size;
      for (let n = Math.ceil(low / step); n * step <= high; n++) found.push(Number((n * step).toPrecision(12)));
    }
    return found.filter((value) => value >= low && value <= high);
  }

  // A linear or log scale from numbers to pixels, with its inverse; a little wider than what it shows unless it is tight.
  function scale(values, log, from, to, tight) {
    let low = Infinity, high = -Infinity;
    for (const value of values) if (value !== null && (!log || value > 0)) {
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
    if (low > high) return null;
    const there = (value) => (log ? Math.log(Math.max(value, 1e-300)) : value), back = (value) => (log ? Math.exp(value) : value);
    let a = there(low), b = there(high);
    const margin = tight ? 0 : 0.05 * (b - a);
    const below = back(a - margin);
    a = low >= 0 && below < 0 ? 0 : a - margin;
    b += margin;
    if (a === b) [a, b] = log || a === 0 ? [a - 0.5, b + 0.5] : [a - 0.1 * Math.abs(a), b + 0.1 * Math.abs(b)];
    const pixel = (value) => from + ((there(value) - a) / (b - a)) * (to - from);
    return { pixel, inverse: (at) => back(a + ((at - from) / (to - from)) * (b - a)), low: back(a), high: back(b), log };
  }

  function frame(svg, height, left, below = 40) {
    const width = Math.max(svg.parentNode.clientWidth, 200);
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("height", height);
    return { left, right: width - 12, top: 10, bottom: height - below };
  }
  const nothing = (svg, box) => add(svg, "text", { x: 4, y: box.top + 16 }, "nothing to show");

  function axis(svg, box, x, label) {
    for (const value of ticks(x.low, x.high, x.log, (box.right - box.left) / 70)) {
      add(svg, "line", { class: "grid", x1: x.pixel(value), x2: x.pixel(value), y1: box.top, y2: box.bottom });
      add(svg, "text", { x: x.pixel(value), y: box.bottom + 15, "text-anchor": "middle" }, short(value));
    }
    add(svg, "text", { x: (box.left + box.right) / 2, y: box.bottom + 33, "text-anchor": "middle" }, label);
  }

  // A value holds until the next point: steps, with gaps where there is no value yet.
  function steps(xs, ys, x, y) {
    let path = "", open = false;
    xs.forEach((at, i) => {
      if (ys[i] === null) open = false;
      else path += open ? `H${x.pixel(at).toFixed(1)}V${y.pixel(ys[i]).toFixed(1)}` : `M${x.pixel(at).toFixed(1)} ${y.pixel(ys[i]).toFixed(1)}`;
      open = ys[i] !== null;
    });
    return path;
  }
  function band(line, x, y) {
    const there = line.x.map((_, i) => i).filter((i) => line.low[i] !== null);
    const pick = (values) => there.map((i) => values[i]);
    const upper = steps(pick(line.x), pick(line.high), x, y);
    const points = there.map((i, n) => [line.x[i], line.low[i], n ? line.low[there[n - 1]] : null]).reverse();
    return upper + points.map(([at, low, before]) => `L${x.pixel(at).toFixed(1)} ${y.pixel(low).toFixed(1)}` + (before === null ? "" : `V${y.pixel(before).toFixed(1)}`)).join("") + "Z";
  }

  // Lines of {method, label, x, y, low?, high?, thin?} with axes; hovering tells the values of the nearest.
  function lineChart(svg, height, make) {
    let told = null;
    const draw = () => {
      const { lines, xLabel, xLog, yLog } = make();
      const box = frame(svg, height, 56);
      const shown = lines.filter((line) => !hidden.has(line.method));
      const x = scale(shown.flatMap((line) => line.x), xLog, box.left, box.right, true);
      const y = scale(shown.flatMap((line) => [...line.y, ...(line.low || []), ...(line.high || [])]), yLog, box.bottom, box.top);
      told = null;
      if (!x || !y) return nothing(svg, box);
      axis(svg, box, x, xLabel);
      for (const value of ticks(y.low, y.high, y.log, (box.bottom - box.top) / 45)) {
        add(svg, "line", { class: "grid", x1: box.left, x2: box.right, y1: y.pixel(value), y2: y.pixel(value) });
        add(svg, "text", { x: box.left - 6, y: y.pixel(value) + 4, "text-anchor": "end" }, short(value));
      }
      for (const line of shown) if (line.low) coloured(add(svg, "path", { class: "band", d: band(line, x, y) }), line.method);
      for (const line of shown)
        coloured(add(svg, "path", { class: (line.thin ? "thin" : "line") + (dashed.has(line.method) ? " dashed" : ""), d: steps(line.x, line.y, x, y) }), line.method);
      const cursor = add(svg, "line", { class: "cursor", y1: box.top, y2: box.bottom, visibility: "hidden" });
      told = { shown, x, y, xLabel, cursor, box };
    };
    svg.addEventListener("pointermove", (event) => {
      if (!told) return;
      const { shown, x, y, xLabel, cursor, box } = told, place = svg.getBoundingClientRect();
      const px = Math.min(Math.max(event.clientX - place.left, box.left), box.right), at = x.inverse(px);
      const rows = [];
      for (const line of shown) {
        const index = line.x.findLastIndex((one) => one <= at * (1 + 1e-9));
        const value = index < 0 ? null : line.y[index];
        if (value !== null) rows.push({ line, value, far: Math.abs(y.pixel(value) - (event.clientY - place.top)) });
      }
      rows.sort((a, b) => a.far - b.far).splice(10);
      rows.sort((a, b) => y.pixel(a.value) - y.pixel(b.value));
      for (const side of ["x1", "x2"]) cursor.setAttribute(side, px);
      cursor.setAttribute("visibility", "visible");
      tell(event, `${short(at)} ${xLabel}`, rows.map((row) => [row.line.method, row.line.label, row.value]));
    });
    svg.addEventListener("pointerleave", () => (tip.hidden = true, told?.cursor.setAttribute("visibility", "hidden")));
    drawings.push(draw);
  }

  function tell(event, head, rows) {
    tip.replaceChildren();
    add(tip, "div", { class: "quiet" }, head);
    for (const [method, label, value] of rows) coloured(add(tip, "div", { class: "key" }, `${label}: ${short(value)}`), method);
    tip.hidden = false;
    const right = event.clientX + 16 + tip.offsetWidth > document.documentElement.clientWidth;
    tip.style.left = `${Math.max(4, right ? event.clientX - 16 - tip.offsetWidth : event.clientX + 16)}px`;
    tip.style.top = `${Math.max(4, Math.min(event.clientY + 12, window.innerHeight - tip.offsetHeight - 4))}px`;
  }

  function dotChart(svg, panel) {
    drawings.push(() => {
      const methods = data.methods.map((one) => one.name).filter((name) => !hidden.has(name));
      const box = frame(svg, 44 + 22 * Math.max(methods.length, 1), Math.min(120, svg.parentNode.clientWidth / 3), 24);
      const dots = panel.dots.filter((dot) => methods.includes(dot.method));
      const x = scale([...(panel.ends || []), ...dots.map((dot) => dot.value)], panel.log, box.left, box.right, Boolean(panel.ends));
      if (!x || !dots.length) return nothing(svg, box);
      axis(svg, box, x, "");
      methods.forEach((method, row) => {
        const y = box.top + 11 + 22 * row;
        add(svg, "line", { class: "grid", x1: box.left, x2: box.right, y1: y, y2: y });
        add(svg, "text", { x: 0, y: y + 4 }, method.length > 15 ? `${method.slice(0, 14)}…` : method);
        for (const dot of dots.filter((one) => one.method === method)) {
          const node = coloured(add(svg, "circle", { class: "dot", cx: x.pixel(dot.value), cy: y, r: 5 }), method);
          node.addEventListener("pointermove", (event) => tell(event, panel.name, [[method, `${method}, seed ${dot.seed}`, dot.value]]));
          node.addEventListener("pointerleave", () => (tip.hidden = true));
        }
      });
    });
  }

  function pick(id, options, key) {
    const select = document.getElementById(id);
    for (const [value, label] of options) add(select, "option", { value }, label);
    select.value = chosen[key];
    select.addEventListener("change", () => {
      chosen[key] = select.value;
      for (const figure of document.querySelectorAll("figure[data-hp]"))
        figure.hidden = chosen.hp !== "" && figure.dataset.hp !== chosen.hp;
      for (const grid of document.querySelectorAll(".panels")) grid.classList.toggle("one", chosen.hp !== "");
      redraw();
    });
  }

  for (const { name } of data.methods) {
    const chip = coloured(add(document.getElementById("methods"), "button", { type: "button", class: "key", "aria-pressed": "true" }, name), name);
    chip.addEventListener("click", () => {
      if (!hidden.delete(name)) hidden.add(name);
      chip.setAttribute("aria-pressed", String(!hidden.has(name)));
      redraw();
    });
  }
  pick("measure", data.measures.map((one) => [one.name, one.label]), "measure");
  pick("hp", [["", "all"], ...data.schedules.map((one) => [one.name, one.name])], "hp");
  const seeds = [...new Set(data.schedules.flatMap((panel) => panel.lines.map((line) => line.seed)))].sort((a, b) => a - b);
  chosen.seed = String(seeds[0] ?? "");
  pick("seed", [["", "all"], ...seeds.map((seed) => [seed, seed])], "seed");

  const logLoss = document.getElementById("log");
  logLoss.checked = data.wideLoss;
  logLoss.addEventListener("change", redraw);
  for (const { name, label, log } of data.axes)
    lineChart(document.getElementById(name), 340, () => {
      const key = chosen.measure, lines = [];
      for (const [method, curve] of Object.entries(data.curves[name])) {
        for (const run of curve.runs) lines.push({ method, label: `${method}, seed ${run.seed}`, x: run.x, y: run.y[key], thin: true });
        const several = curve.runs.length !== 1;
        if (several) lines.push({ method, label: `${method}, mean`, x: curve.x, y: curve.y[key], low: curve.low[key], high: curve.high[key] });
        else lines[lines.length - 1].thin = false;
      }
      return { lines, xLabel: label, xLog: log, yLog: logLoss.checked };
    });
  data.schedules.forEach((panel, index) =>
    lineChart(document.getElementById(`schedule-${index}`), 230, () => {
      const lines = panel.lines.filter((line) => chosen.seed === "" || line.seed === Number(chosen.seed));
      return { lines: lines.map((line) => ({ ...line, label: `${line.method}, seed ${line.seed}`, thin: line.y.every((value) => value === line.y[0]) })), xLabel: "training step", yLog: panel.log };
    }));
  data.values.forEach((panel, index) => dotChart(document.getElementById(`value-${index}`), panel));
  redraw();
  let waiting = 0;
  window.addEventListener("resize", () => (cancelAnimationFrame(waiting), (waiting = requestAnimationFrame(redraw))));
})();
