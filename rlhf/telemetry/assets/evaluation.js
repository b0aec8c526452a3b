"use strict";
const SHARES = new Set(["accuracy", "format", "truncated", "ungradable"]);
const MEANINGS = {
  accuracy: "share of samples that are right (avg@n)", reward: "mean reward", format: "an answer could be read",
  truncated: "cut by a limit", ungradable: "no verdict", tokens: "sampled per completion",
  "pass@k": "one of k is right", "pass^k": "all of k are right", "maj@k": "the vote of k is right", "best@k": "the best-scored of k is right",
};
const PAGE = 25;
const view = { shown: PAGE, filters: {} };

function sampled(result) {
  const s = result.sampling;
  return `n=${s.num_samples}, T=${s.temperature}, top_p=${s.top_p}, max_tokens=${s.max_tokens}`;
}

function unitOf(name) { return SHARES.has(name) || /[@^]/.test(name) ? "%" : ""; }

function figureText(name, figure) {
  if (!figure) return "–";
  const unit = unitOf(name);
  return [make("strong", {}, format(figure.value, unit)), make("span", { class: "muted" }, ` [${format(figure.low, unit)}, ${format(figure.high, unit)}]`)];
}

function tableOf(headings, rows) {
  const head = make("thead", {}, make("tr", {}, headings.map((h, i) => make("th", { scope: "col", class: i ? "num" : "" }, h))));
  const body = make("tbody", {}, rows.map((cells) => make("tr", {}, cells.map((cell, i) =>
    i ? make("td", { class: "num" }, cell) : make("th", { scope: "row" }, cell)))));
  return make("div", { class: "scroll framed", tabindex: 0, role: "region" }, make("table", { class: "numbers" }, head, body));
}

function drawFigures() {
  document.title = `${DATA.title} · evaluation`;
  byId("title").textContent = DATA.title;
  for (const set of [...new Set(DATA.results.map((r) => r.set))]) {
    const results = DATA.results.filter((r) => r.set === set);
    const names = [...new Set(results.flatMap((r) => Object.keys(r.figures)))];
    const rows = names.map((name) => [
      make("span", {}, name, make("span", {}, MEANINGS[name] || MEANINGS[name.replace(/\d+$/, "k")] || "")),
      ...results.map((r) => figureText(name, r.figures[name])),
    ]);
    const used = results.map((r) => make("span", {}, r.model, make("span", {}, `${r.path} · ${sampled(r)} · ${r.counts.prompts} prompts`)));
    byId("figure-tables").append(make("h3", { class: "set" }, set), tableOf(["", ...used], rows));
  }
}

function drawCurves() {
  const box = byId("charts");
  for (const result of DATA.results) if (Object.values(result.curves).some((points) => points.length > 1)) box.append(curveCard(result));
  if (!box.children.length) box.append(make("p", { class: "empty" }, "One sample a prompt (eval.num_samples: 1): there is nothing to draw over k."));
}

function curveCard(result) {
  const names = Object.keys(result.curves), colour = (i) => `var(--c${(i % 8) + 1})`;
  const [width, height, left, bottom, top] = [440, 220, 46, 26, 10];
  const ks = [...new Set(names.flatMap((n) => result.curves[n].map((p) => p[0])))].sort((a, b) => a - b);
  const span = Math.log2(ks[ks.length - 1] / ks[0]) || 1;
  const x = (k) => left + Math.log2(k / ks[0]) / span * (width - left - 14);
  const y = (value) => height - bottom - value * (height - bottom - top);
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, width: "100%", "aria-hidden": "true" });
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    svg.append(make("line", { class: "grid", x1: left, x2: width - 10, y1: y(share), y2: y(share) }),
      make("text", { class: "tick", x: left - 6, y: y(share) + 4, "text-anchor": "end" }, `${share * 100} %`));
  }
  for (const k of ks) svg.append(make("text", { class: "tick", x: x(k), y: height - 8, "text-anchor": "middle" }, k));
  names.forEach((name, i) => {
    const points = result.curves[name], path = points.map(([k, v], j) => `${j ? "L" : "M"}${x(k)} ${y(v)}`).join("");
    const ribbon = [...points.map(([k, , low]) => [k, low]), ...points.map(([k, , , high]) => [k, high]).reverse()];
    svg.append(make("path", { class: "ribbon", fill: colour(i), d: ribbon.map(([k, v], j) => `${j ? "L" : "M"}${x(k)} ${y(v)}`).join("") + "Z" }),
      make("path", { class: "line", stroke: colour(i), d: path }));
    for (const [k, v] of points) svg.append(make("circle", { r: 3, cx: x(k), cy: y(v), fill: colour(i) }, make("title", {}, `${name.replace("k", k)}: ${format(v, "%")}`)));
  });
  const legend = make("div", { class: "legend" }, names.map((name, i) => {
    const points = result.curves[name], last = points[points.length - 1];
    return make("span", {}, make("i", { style: `background:${colour(i)}` }), `${name}, k=${last[0]} `, make("b", {}, format(last[1], "%")));
  }));
  return make("figure", { class: "card chart" }, make("figcaption", {}, make("h3", {}, `${result.model} on ${result.set}`),
    make("p", {}, `${sampled(result)}; ribbons are 95 % intervals over problems.`), legend),
  make("div", { role: "img", "aria-label": names.map((n) => `${n}: ${result.curves[n].map(([k, v]) => `${k} ${format(v, "%")}`).join(", ")}`).join(". ") }, svg));
}

function drawTables() {
  for (const result of DATA.results) {
    const lengths = result.lengths.map((row) => [`${row.least} to ${row.most} tokens`, row.samples.toLocaleString("en-US"), figureText("accuracy", row.accuracy)]);
    const bands = result.difficulties.map((row) => [
      row.low === row.high ? `${row.low * 100} % right` : `above ${row.low * 100} %${row.high === 1 ? ", below 100 %" : ` to ${row.high * 100} %`}`,
      row.problems.toLocaleString("en-US"), format(row.accuracy, "%"), format(row.tokens, ""), format(row.truncated, "%")]);
    byId("length-tables").append(make("h3", { class: "set" }, `${result.model} on ${result.set}`, make("small", { class: "muted" }, ` ${sampled(result)}`)),
      tableOf(["Length", "Samples", "Accuracy"], lengths), make("p", {}),
      tableOf(["Difficulty", "Problems", "Accuracy", "Tokens, mean", "Truncated"], bands));
  }
}

function drawSamples() {
  const rows = DATA.samples.rows, box = byId("sample-tools");
  byId("samples-note").textContent = rows.length < DATA.samples.total
    ? `${rows.length} of ${DATA.samples.total} chosen samples; the others are in samples.jsonl, all of them in collected/.`
    : `${rows.length} chosen samples; all of them are in collected/.`;
  const select = (name, label) => {
    const values = [...new Set(rows.map((row) => String(row[name])))].sort();
    return values.length < 2 ? null : make("label", {}, label, make("select", { onchange: (event) => setFilter(name, event.target.value) },
      make("option", { value: "" }, "all"), values.map((v) => make("option", { value: v }, `${v} (${rows.filter((r) => String(r[name]) === v).length})`))));
  };
  box.append(...[select("model", "Model"), select("set", "Set"), select("is_correct", "Right"), select("outcome", "Outcome"), select("stop", "Stopped by")].filter(Boolean),
    make("label", { class: "grow" }, "Search", make("input", { type: "search", placeholder: "prompt, completion or id", oninput: (event) => setFilter("text", event.target.value) })),
    make("span", { id: "sample-count", class: "count", role: "status" }));
  listSamples();
}

function setFilter(name, value) {
  view.filters[name] = value;
  view.shown = PAGE;
  listSamples();
}

function listSamples() {
  const { text, ...exact } = view.filters, sought = (text || "").toLowerCase();
  const rows = DATA.samples.rows.filter((row) => Object.entries(exact).every(([name, value]) => !value || String(row[name]) === value)
    && (!sought || `${row.prompt}\n${row.completion}\n${row.prompt_id}`.toLowerCase().includes(sought)));
  byId("sample-count").textContent = `${rows.length.toLocaleString("en-US")} shown`;
  const head = make("div", { class: "sample-head", "aria-hidden": "true" },
    ["Sample", "Verdict", "Reward", "Right", "Tokens", "Prompt", "Completion"].map((t) => make("span", {}, t)));
  const list = make("div", { class: "sample-list" }, rows.slice(0, view.shown).map(sampleItem));
  const more = rows.length > view.shown ? make("button", { type: "button", class: "more", onclick: () => { view.shown += PAGE * 2; listSamples(); } },
    `Show more (${rows.length - view.shown} left)`) : null;
  byId("sample-table").replaceChildren(...[head, list, more, rows.length ? null : make("p", { class: "empty" }, "No sample matches.")].filter(Boolean));
}

function sampleItem(row) {
  const cell = (content, name) => make("span", { class: name }, content);
  const rate = row.pass_rate === null ? "–" : format(row.pass_rate, "%");
  const item = make("details", { class: "sample" }, make("summary", {}, cell(row.index, "num"),
    cell(make("span", { class: "pill " + (row.is_correct ? "good" : row.reward === null ? "warn" : "bad") }, row.is_correct ? "right" : row.outcome.replace("_", " ")), "verdict"),
    cell(row.reward === null ? "–" : row.reward.toFixed(2), "num strong"), cell(rate, "num"), cell(row.tokens, "num"),
    cell(row.prompt, "clip muted"), cell(row.completion, "clip mono")));
  item.addEventListener("toggle", () => { if (item.open && item.children.length === 1) item.append(sampleBody(row)); });
  return item;
}

function sampleBody(row) {
  const facts = [["model", row.model], ["set", row.set], ["prompt id", row.prompt_id], ["reference", row.reference], ["answer", row.answer],
    ["stopped by", row.stop], ["right of this prompt", row.pass_rate === null ? null : format(row.pass_rate, "%")],
    ...Object.entries(row.parts).map(([name, value]) => [name, format(value, "")])].filter(([, value]) => value !== null);
  const text = (title, content) => [make("h4", {}, title), make("pre", { class: "text", tabindex: 0, "aria-label": title }, content)];
  const turns = row.turns.map((turn) => text(turn.role, turn.text));
  return make("div", { class: "sample-body" }, make("div", { class: "reading" }, text("Prompt", row.prompt), turns.length ? turns : text("Completion", row.completion)),
    make("aside", {}, make("dl", { class: "pairs" }, facts.flatMap(([k, v]) => [make("dt", {}, k), make("dd", {}, v)]))));
}

function drawSetup() {
  const box = byId("setup-body");
  if (DATA.config) box.append(make("div", { class: "card" }, make("h3", {}, "What was asked, resolved"), make("pre", { class: "config", tabindex: 0, "aria-label": "What was asked" }, DATA.config)));
  box.append(make("div", { class: "card" }, make("h3", {}, "Packages"), make("dl", { class: "pairs env" },
    Object.entries(DATA.environment).flatMap(([name, version]) => [make("dt", {}, name), make("dd", {}, version)]))));
}

drawFigures();
drawCurves();
drawTables();
drawSamples();
drawSetup();
