"use strict";
function drawOverview() {
  document.title = `${DATA.title} · RL run`;
  byId("title").textContent = DATA.title;
  byId("status").textContent = DATA.status.text;
  byId("status").classList.add(DATA.status.kind);
  byId("facts").append(...DATA.facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
  byId("cards").append(...DATA.cards.map((card) => make("div", { class: "card stat " + card.state },
    make("span", { class: "label" }, card.label), make("strong", {}, card.value), make("span", { class: "note" }, card.note))));
  drawHero();
}

function drawHero() {
  const hero = byId("hero");
  if (!DATA.accuracy) {
    hero.append(make("h2", {}, "Held-out accuracy"), make("p", { class: "muted" },
      "This run was not evaluated. Give task.heldout and eval.every in the recipe to measure what it learned."));
    return;
  }
  const { before, after } = DATA.accuracy;
  const percent = (point) => (point.accuracy * 100).toFixed(1);
  const big = make("p", { class: "big" }, make("span", { class: after ? "was" : "" }, percent(before)));
  if (after) big.append(make("span", { class: "arrow", "aria-label": "to" }, "→"), make("span", {}, percent(after)));
  big.append(make("small", {}, "%"));
  const gain = after ? (after.accuracy - before.accuracy) * 100 : 0;
  const delta = after ? make("span", { class: "pill " + (gain > 0 ? "good" : "bad") },
    `${gain >= 0 ? "+" : "−"}${Math.abs(gain).toFixed(1)} points by RL`) : null;
  const prompts = before.num_prompts ? `${before.num_prompts} prompts never trained on, 95 % intervals` : "95 % intervals";
  hero.append(make("h2", {}, "Held-out accuracy"), make("div", { class: "hero-row" }, big, delta),
    make("div", { class: "intervals" }, interval("before", before, "was"), after ? interval("after", after, "now") : null, axis()),
    make("p", { class: "muted" }, prompts));
}

function interval(label, point, kind) {
  const low = point.accuracy_low === null ? point.accuracy : point.accuracy_low;
  const high = point.accuracy_high === null ? point.accuracy : point.accuracy_high;
  return make("div", { class: "interval " + kind, role: "img",
    "aria-label": `${label}, step ${point.step}: ${format(point.accuracy, "%")}, interval ${format(low, "%")} to ${format(high, "%")}` },
    make("span", { class: "name" }, `${label} · step ${point.step}`),
    make("span", { class: "track" }, make("i", { class: "span", style: `left:${low * 100}%;width:${(high - low) * 100}%` }),
      make("i", { class: "point", style: `left:${point.accuracy * 100}%` })),
    make("span", { class: "range" }, `${(low * 100).toFixed(1)}–${(high * 100).toFixed(1)}`));
}

function axis() {
  return make("div", { class: "interval axis", "aria-hidden": "true" }, make("span", {}), make("span", { class: "track" },
    [0, 25, 50, 75, 100].map((v) => make("b", { style: `left:${v}%` }, v))), make("span", {}));
}

function drawNumbers() {
  if (!DATA.metrics.length) return byId("metric-table").append(make("p", { class: "empty" }, "No metrics were recorded."));
  const body = make("tbody", {}, DATA.metrics.map((metric) => {
    const known = metric.y.filter((v) => v !== null);
    const cell = (value) => make("td", { class: "num" }, format(value, metric.unit));
    const least = known.reduce((a, b) => Math.min(a, b), Infinity), most = known.reduce((a, b) => Math.max(a, b), -Infinity);
    const shown = known.length ? [known[0], known[known.length - 1], least, most] : [null, null, null, null];
    return make("tr", {}, make("th", { scope: "row" }, make("code", {}, metric.name), make("span", {}, metric.meaning)),
      make("td", {}, spark(metric.y)), shown.map(cell));
  }));
  const head = make("thead", {}, make("tr", {}, ["Metric", "", "First", "Last", "Least", "Most"].map((t, i) =>
    make("th", { scope: "col", class: i > 1 ? "num" : "" }, t))));
  byId("metric-table").append(make("details", { class: "fold" }, make("summary", {}, `${DATA.metrics.length} metrics`),
    make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "All metrics" }, make("table", { class: "numbers" }, head, body))));
}

function spark(values) {
  const known = values.map((v, i) => [i, v]).filter(([, v]) => v !== null);
  if (known.length < 2) return null;
  const low = known.reduce((a, [, v]) => Math.min(a, v), Infinity), high = known.reduce((a, [, v]) => Math.max(a, v), -Infinity);
  const d = known.map(([i, v], k) => `${k ? "L" : "M"}${(i / (values.length - 1) * 108 + 1).toFixed(1)} ${(21 - (v - low) / (high - low || 1) * 18).toFixed(1)}`);
  return make("svg", { width: 110, height: 24, class: "spark", "aria-hidden": "true" }, make("path", { d: d.join("") }));
}

function drawSetup() {
  const box = byId("setup-body");
  if (DATA.config) {
    const lines = DATA.config.trimEnd().split("\n").flatMap((line, i) => {
      const found = line.match(/^(\s*(?:- )?)([\w.-]+)(:.*)$/);
      const parts = found ? [found[1], make("b", {}, found[2]), found[3]] : [line];
      return i ? ["\n", ...parts] : parts;
    });
    box.append(make("div", { class: "card" }, make("h3", {}, "Recipe, resolved"),
      make("pre", { class: "config", tabindex: 0, "aria-label": "Resolved recipe" }, lines)));
  }
  if (DATA.environment.length) {
    box.append(make("div", { class: "card" }, make("h3", {}, "Environment"), make("dl", { class: "pairs env" },
      DATA.environment.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]))));
  }
  if (!box.children.length) box.append(make("p", { class: "empty" }, "Neither config.yaml nor environment.json is in the run folder."));
}

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
}
byId("theme").addEventListener("click", () => {
  const now = document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  setTheme(now === "dark" ? "light" : "dark");
});
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !/^(INPUT|SELECT)$/.test(event.target.tagName) && byId("filter-text")) {
    event.preventDefault();
    byId("filter-text").focus();
  }
});
// Print light, with the plots at the width of the paper.
let themeBeforePrint;
addEventListener("beforeprint", () => { themeBeforePrint = document.documentElement.dataset.theme; setTheme("light"); redraw(true); });
addEventListener("afterprint", () => { setTheme(themeBeforePrint); redraw(true); });

drawOverview();
drawSamples();
drawNumbers();
drawSetup();
drawCharts();
