"use strict";
const plots = { charts: [], hovered: null, smooth: false };
const MARGIN = { left: 52, right: 12, top: 10, bottom: 24 };

function drawCharts() {
  const box = byId("charts");
  if (!DATA.charts.length) box.append(make("p", { class: "empty" }, "No metrics were recorded."));
  for (const chart of DATA.charts) box.append(chartCard(chart));
  const observer = new ResizeObserver(() => requestAnimationFrame(redraw));
  observer.observe(box);
  byId("smooth").addEventListener("change", (event) => { plots.smooth = event.target.checked; redraw(true); });
  redraw(true);
}

function chartCard(chart) {
  chart.colours = chart.series.map((s, i) => s.overlay ? "var(--text)" : `var(--c${(i % 8) + 1})`);
  const values = chart.series.map(() => make("b", {}));
  const legend = make("div", { class: "legend" }, chart.series.map((s, i) =>
    make("span", {}, make("i", { style: `background:${chart.colours[i]}`, class: s.overlay ? "thin" : "" }), s.label + " ", values[i])));
  const canvas = make("div", { class: "canvas", tabindex: 0, role: "img", "aria-label": describe(chart) });
  const state = { chart, canvas, values, width: 0 };
  canvas.addEventListener("pointermove", (event) => {
    hover(nearest(state, event.clientX), state, event.clientX, event.clientY);
  });
  canvas.addEventListener("pointerleave", () => hover(null));
  canvas.addEventListener("click", (event) => showSamplesOf(DATA.steps[nearest(state, event.clientX)]));
  canvas.addEventListener("keydown", (event) => chartKey(event, state));
  canvas.addEventListener("blur", () => hover(null));
  plots.charts.push(state);
  const unit = chart.unit && chart.unit !== "%" ? make("span", { class: "unit" }, chart.unit) : null;
  return make("figure", { class: "card chart" + (chart.wide ? " wide" : "") },
    make("figcaption", {}, make("h3", {}, chart.title, unit), make("p", {}, chart.note), legend), canvas);
}

function describe(chart) {
  const parts = chart.series.map((s) => {
    const found = s.y.map((v, i) => [v, DATA.steps[i]]).filter(([v]) => v !== null);
    const [first, last] = [found[0], found[found.length - 1]];
    return first ? `${s.label}: ${format(first[0], chart.unit)} at step ${first[1]}, ` +
      `${format(last[0], chart.unit)} at step ${last[1]}` : `${s.label}: no values`;
  });
  return `${chart.title}. ${parts.join(". ")}`;
}

function chartKey(event, state) {
  const last = DATA.steps.length - 1;
  const now = plots.hovered === null ? last : plots.hovered;
  const moves = { ArrowLeft: Math.max(0, now - 1), ArrowRight: Math.min(last, now + 1), Home: 0, End: last };
  if (event.key === "Enter" && plots.hovered !== null) return showSamplesOf(DATA.steps[plots.hovered]);
  if (event.key === "Escape") return hover(null);
  if (!(event.key in moves)) return;
  event.preventDefault();
  const box = state.canvas.getBoundingClientRect();
  hover(moves[event.key], state, box.left + state.x(DATA.steps[moves[event.key]]), box.top + 20);
}

function nearest(state, clientX) {
  const x = clientX - state.canvas.getBoundingClientRect().left;
  let best = 0;
  DATA.steps.forEach((step, i) => {
    if (Math.abs(state.x(step) - x) < Math.abs(state.x(DATA.steps[best]) - x)) best = i;
  });
  return best;
}

function hover(index, active, clientX, clientY) {
  plots.hovered = index;
  for (const state of plots.charts) {
    const shown = index !== null;
    state.cursor.setAttribute("visibility", shown ? "visible" : "hidden");
    if (shown) for (const end of ["x1", "x2"]) state.cursor.setAttribute(end, state.x(DATA.steps[index]));
    state.dots.forEach((dot, i) => {
      const value = shown ? state.chart.series[i].y[index] : null;
      const drawn = value !== null && state.chart.kind === "line" && (!state.chart.log || value > 0);
      dot.setAttribute("visibility", drawn ? "visible" : "hidden");
      if (drawn) { dot.setAttribute("cx", state.x(DATA.steps[index])); dot.setAttribute("cy", state.y(value)); }
    });
    legendValues(state, index);
  }
  if (index === null || !active) return hideTip();
  const rows = active.chart.series.map((s, i) => s.y[index] === null ? null :
    make("div", {}, make("i", { style: `background:${active.chart.colours[i]}` }), s.label + " ",
      make("b", {}, format(s.y[index], active.chart.unit)), ribbonText(s, index, active.chart.unit)));
  showTip(clientX, clientY, make("strong", {}, `step ${DATA.steps[index]}`), ...rows.filter(Boolean));
}

function ribbonText(series, index, unit) {
  if (!series.low || series.low[index] === null) return null;
  return ` [${format(series.low[index], unit)}, ${format(series.high[index], unit)}]`;
}

function legendValues(state, index) {
  state.chart.series.forEach((s, i) => {
    const known = s.y.filter((v) => v !== null);
    state.values[i].textContent = format(index === null ? known[known.length - 1] : s.y[index], state.chart.unit);
  });
}

function redraw(force) {
  for (const state of plots.charts) {
    const width = state.canvas.clientWidth;
    if (!width || (width === state.width && force !== true)) continue;
    state.width = width;
    drawChart(state);
    legendValues(state, null);
  }
}

function drawChart(state) {
  const { chart, canvas, width } = state;
  const height = canvas.clientHeight;
  const svg = make("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  scales(state, width, height);
  grid(state, svg, width, height);
  if (chart.kind === "stack") drawStack(state, svg);
  chart.series.forEach((s, i) => {
    if (chart.kind === "line" || s.overlay) drawLine(state, svg, s, chart.colours[i]);
  });
  if (chart.bound) drawBound(state, svg, width);
  state.cursor = make("line", { class: "cursor", y1: MARGIN.top, y2: height - MARGIN.bottom, visibility: "hidden" });
  state.dots = chart.series.map((s, i) => make("circle", { r: 3.5, fill: chart.colours[i], class: "dot", visibility: "hidden" }));
  svg.append(state.cursor, ...state.dots);
  canvas.replaceChildren(svg);
}

function scales(state, width, height) {
  const { chart } = state;
  const first = DATA.steps[0], last = DATA.steps[DATA.steps.length - 1];
  const half = chart.kind === "stack" ? 0.5 : 0;
  const [x0, x1] = first === last ? [first - 1, last + 1] : [first - half, last + half];
  state.x = (step) => MARGIN.left + (step - x0) / (x1 - x0) * (width - MARGIN.left - MARGIN.right);
  let [low, high] = extent(chart);
  state.log = chart.log && high > 0;
  const place = state.log ? Math.log10 : (v) => v;
  if (state.log) { low = 10 ** Math.floor(Math.log10(low)); high = 10 ** Math.ceil(Math.log10(high * 1.0001)); }
  state.low = low;
  state.high = high;
  state.y = (value) => {
    const share = (place(value) - place(low)) / (place(high) - place(low) || 1);
    return height - MARGIN.bottom - Math.max(-0.02, Math.min(1.02, share)) * (height - MARGIN.top - MARGIN.bottom);
  };
}

function extent(chart) {
  let values = [];
  if (chart.kind === "stack") {
    values = DATA.steps.map((_, i) => chart.series.reduce((sum, s) => s.overlay ? sum : sum + (s.y[i] || 0), 0));
    values.push(...chart.series.filter((s) => s.overlay).flatMap((s) => s.y), 0);
  } else {
    for (const s of chart.series) values.push(...s.y, ...(s.low || []), ...(s.high || []));
    if (chart.bound) values.push(chart.bound.y, 0);
  }
  values = values.filter((v) => v !== null && (!chart.log || v > 0));
  if (!values.length) return [0, 1];
  let low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
  if (chart.log) return [low, high];
  if (chart.unit === "%" && high <= 1) high = Math.min(1, high + (high - low) * 0.08);
  else high += (high - low) * 0.08;
  if (low >= 0 && low < 0.5 * high) low = 0;
  else if (low !== 0) low -= (high - low) * 0.08;
  return low === high ? [low - (Math.abs(low) * 0.1 || 0.5), high + (Math.abs(high) * 0.1 || 0.5)] : [low, high];
}

function ticks(low, high, count) {
  const raw = (high - low) / count;
  const scale = 10 ** Math.floor(Math.log10(raw));
  const size = [1, 2, 2.5, 5, 10].map((m) => m * scale).find((s) => s >= raw);
  const found = [];
  for (let i = Math.ceil(low / size - 1e-9); i * size <= high + size * 1e-9; i++) found.push(Number((i * size).toPrecision(12)));
  return found;
}

function grid(state, svg, width, height) {
  let levels = ticks(state.low, state.high, 4);
  if (state.log) {
    const [low, high] = [Math.round(Math.log10(state.low)), Math.round(Math.log10(state.high))];
    const stride = Math.max(1, Math.ceil((high - low) / 5));
    levels = [];
    for (let e = low; e <= high; e += stride) levels.push(10 ** e);
  }
  for (const level of levels) {
    const y = state.y(level);
    svg.append(make("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y, y2: y }),
      make("text", { class: "tick", x: MARGIN.left - 7, y: y + 3.5, "text-anchor": "end" }, tickText(state, level)));
  }
  const first = DATA.steps[0], last = DATA.steps[DATA.steps.length - 1];
  for (const step of ticks(first, Math.max(last, first + 1), Math.max(2, width / 90))) {
    if (!Number.isInteger(step) || step > last) continue;
    svg.append(make("text", { class: "tick", x: state.x(step), y: height - 7, "text-anchor": "middle" }, step));
  }
}

function tickText(state, level) {
  if (state.log) return power(Math.round(Math.log10(level)));
  if (state.chart.unit === "%") return Number((level * 100).toPrecision(3)) + " %";
  if (Math.abs(level) >= 10000) return Number((level / 1000).toPrecision(3)) + " k";
  return format(level, "");
}

function drawLine(state, svg, series, colour) {
  const points = series.y.map((value, i) => [DATA.steps[i], value]);
  const known = points.filter(([, v]) => v !== null && (!state.log || v > 0));
  const sparse = known.length < points.length * 0.6 || known.length < 3;
  if (series.low) svg.append(ribbon(state, series, colour));
  const style = { class: series.overlay ? "line overlay" : "line", stroke: colour };
  const smooth = plots.smooth && !sparse;
  if (smooth) svg.append(make("path", { ...style, class: "line faint", d: path(state, points) }));
  // A sparse curve (evaluations) is joined over the steps between; a gap in a dense one is a gap.
  svg.append(make("path", { ...style, d: path(state, smooth ? average(points) : sparse ? known : points) }));
  if (sparse && known.length <= 60) for (const [step, v] of known) svg.append(make("circle", { cx: state.x(step), cy: state.y(v), r: 3, fill: colour }));
}

function average(points) {
  let mean = null;
  return points.map(([step, v]) => {
    if (v !== null) mean = mean === null ? v : 0.85 * mean + 0.15 * v;
    return [step, v === null ? null : mean];
  });
}

function path(state, points) {
  let pen = "M";
  return points.map(([step, value]) => {
    if (value === null || (state.log && value <= 0)) { pen = "M"; return ""; }
    const part = `${pen}${state.x(step).toFixed(1)} ${state.y(value).toFixed(1)}`;
    pen = "L";
    return part;
  }).join("");
}

function ribbon(state, series, colour) {
  const known = DATA.steps.map((step, i) => [step, series.low[i], series.high[i]]).filter(([, l, h]) => l !== null && h !== null);
  const upper = known.map(([step, , h]) => [step, h]);
  const lower = known.map(([step, l]) => [step, l]).reverse();
  if (known.length === 1) {
    const [step, low, high] = known[0];
    upper.splice(0, 1, [step - 0.03, high], [step + 0.03, high]);
    lower.splice(0, 1, [step + 0.03, low], [step - 0.03, low]);
  }
  return make("path", { class: "ribbon", fill: colour, d: path(state, upper) + path(state, lower).replace("M", "L") + "Z" });
}

function drawStack(state, svg) {
  const gap = state.x(1) - state.x(0);
  const width = Math.max(1, Math.min(26, gap * 0.78));
  DATA.steps.forEach((step, i) => {
    let base = 0;
    state.chart.series.forEach((s, k) => {
      if (s.overlay || !s.y[i]) return;
      const [bottom, top] = [state.y(base), state.y(base + s.y[i])];
      svg.append(make("rect", { x: state.x(step) - width / 2, y: top, width, height: Math.max(0, bottom - top), fill: state.chart.colours[k] }));
      base += s.y[i];
    });
  });
}

function drawBound(state, svg, width) {
  const y = state.y(state.chart.bound.y);
  svg.append(make("line", { class: "bound", x1: MARGIN.left, x2: width - MARGIN.right, y1: y, y2: y }),
    make("text", { class: "bound-text", x: width - MARGIN.right, y: y - 5, "text-anchor": "end" },
      `${state.chart.bound.label} ${state.chart.bound.y}`));
}
