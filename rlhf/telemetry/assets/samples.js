"use strict";
const PAGE = 25;
const OUTCOME_KIND = { ok: "good", wrong: "bad", unparsable: "warn", limit: "warn", timeout: "bad", error: "bad" };
const samples = { rows: [], shown: PAGE, colour: "logprob", filters: {} };

function expand(runs) {
  const values = [];
  for (let i = 0; i < runs.length; i += 2) for (let n = 0; n < runs[i + 1]; n++) values.push(runs[i]);
  return values;
}

function tokensOf(segment) {
  const mask = expand(segment.mask), versions = expand(segment.versions), odd = new Map(segment.odd);
  let sampled = 0;
  return segment.ids.map((id, i) => ({
    id, trained: mask[i] === 1, version: versions[i],
    text: odd.has(i) ? odd.get(i) : DATA.samples.vocabulary[id],
    logprob: mask[i] === 1 ? segment.logprobs[sampled++] : null,
  }));
}

function completionOf(row) {
  if (row.completion !== undefined) return row.completion;
  return row.segments.map((s) => tokensOf(s).filter((t) => t.trained).map((t) => t.text).join("")).join(" ⋯ ");
}

function drawSamples() {
  samples.rows = DATA.samples.rows.map((row, place) => ({ ...row, place, text: completionOf(row) }));
  const box = byId("sample-table");
  if (!samples.rows.length) {
    byId("sample-tools").hidden = true;
    box.append(make("p", { class: "empty" }, "No samples were recorded (telemetry.samples_per_step: 0, or the run ended before its first step)."));
    return;
  }
  const { total } = DATA.samples, kept = samples.rows.length;
  byId("samples-note").textContent = kept < total
    ? `${kept.toLocaleString("en-US")} of ${total.toLocaleString("en-US")} recorded trajectories, spread evenly over the steps; all are in the folder samples/.`
    : `${total.toLocaleString("en-US")} recorded trajectories: of each step some of the best, some of the worst, the rest at random.`;
  drawTools();
  listSamples();
}

function drawTools() {
  const unique = (name) => [...new Set(samples.rows.map((row) => row[name]))];
  const select = (name, label, options) => make("label", {}, label, make("select", {
    id: "filter-" + name, onchange: (event) => setFilter(name, event.target.value),
  }, options.map(([value, text]) => make("option", { value }, text))));
  const counts = (name) => unique(name).sort().map((v) => [v, `${v.replace("_", " ")} (${samples.rows.filter((r) => r[name] === v).length})`]);
  byId("sample-tools").append(
    select("step", "Step", [["", "all"], ...unique("step").map((s) => [s, s])]),
    select("outcome", "Outcome", [["", "all"], ...counts("outcome")]),
    select("pick", "Chosen as", [["", "any"], ...counts("pick")]),
    select("sort", "Sort", [["", "step, newest first"], ["old", "step, oldest first"], ["high", "reward, highest first"],
      ["low", "reward, lowest first"], ["advantage", "advantage, highest first"], ["long", "longest first"]]),
    make("label", { class: "grow" }, "Search", make("input", {
      type: "search", id: "filter-text", placeholder: "prompt, completion or id", oninput: (event) => setFilter("text", event.target.value),
    })),
    make("span", { id: "sample-count", class: "count", role: "status" }));
}

function setFilter(name, value) {
  samples.filters[name] = value;
  samples.shown = PAGE;
  listSamples();
}

function showSamplesOf(step) {
  const steps = [...new Set(samples.rows.map((row) => row.step))];
  if (!steps.length) return;
  const near = steps.reduce((a, b) => Math.abs(b - step) < Math.abs(a - step) ? b : a);
  byId("filter-step").value = near;
  setFilter("step", String(near));
  hover(null);
  byId("samples").scrollIntoView({ behavior: "smooth" });
}

function filtered() {
  const { step, outcome, pick, text, sort } = samples.filters;
  const sought = (text || "").toLowerCase();
  const rows = samples.rows.filter((row) => (!step || String(row.step) === step) && (!outcome || row.outcome === outcome)
    && (!pick || row.pick === pick)
    && (!sought || `${row.prompt}\n${row.text}\n${row.prompt_id}`.toLowerCase().includes(sought)));
  const number = (value) => value === null ? -Infinity : value;
  const orders = {
    old: (a, b) => a.step - b.step, high: (a, b) => number(b.reward) - number(a.reward),
    low: (a, b) => number(a.reward) - number(b.reward), advantage: (a, b) => number(b.advantage) - number(a.advantage),
    long: (a, b) => b.tokens - a.tokens,
  };
  const order = orders[sort] || ((a, b) => b.step - a.step);
  return rows.sort((a, b) => order(a, b) || a.place - b.place);
}

function listSamples() {
  const rows = filtered();
  byId("sample-count").textContent = `${rows.length.toLocaleString("en-US")} shown`;
  const head = make("div", { class: "sample-head", "aria-hidden": "true" },
    ["Step", "Outcome", "Reward", "Advantage", "Tokens", "Prompt", "Completion"].map((t) => make("span", {}, t)));
  const list = make("div", { class: "sample-list" }, rows.slice(0, samples.shown).map(sampleItem));
  const more = rows.length > samples.shown ? make("button", {
    type: "button", class: "more", onclick: () => { samples.shown += PAGE * 2; listSamples(); },
  }, `Show more (${rows.length - samples.shown} left)`) : null;
  const none = rows.length ? null : make("p", { class: "empty" }, "No sample matches these filters.");
  byId("sample-table").replaceChildren(...[head, list, none, more].filter(Boolean));
}

function sampleItem(row) {
  const badge = make("span", { class: "pill " + (OUTCOME_KIND[row.outcome] || "plain") }, row.outcome.replace("_", " "));
  const sign = row.advantage === null ? "–" : (row.advantage > 0 ? "+" : row.advantage < 0 ? "−" : "") + Math.abs(row.advantage).toFixed(2);
  const kind = row.advantage > 0 ? "up" : row.advantage < 0 ? "down" : "";
  const cell = (label, content, name) => make("span", { class: name, "data-label": label }, content);
  const item = make("details", { class: "sample" }, make("summary", {},
    cell("step", row.step, "num"), cell("", badge, "verdict"),
    cell("reward", row.reward === null ? "–" : row.reward.toFixed(2), "num strong"),
    cell("advantage", sign, "num " + kind), cell("tokens", row.tokens, "num"),
    cell("", row.prompt, "clip muted"), cell("", row.text, "clip mono")));
  item.addEventListener("toggle", () => { if (item.open && item.children.length === 1) item.append(sampleBody(row)); });
  return item;
}

function sampleBody(row) {
  const facts = [["prompt id", row.prompt_id], ["chosen as", row.pick], ["sample", row.sample_index], ["stopped by", row.stop]];
  if (row.reference !== null) facts.splice(1, 0, ["reference", row.reference]);
  const side = make("aside", {}, make("h4", {}, "Reward"), partsTable(row),
    make("dl", { class: "pairs" }, [...facts, ...Object.entries(row.detail)].flatMap(([k, v]) => [make("dt", {}, k), make("dd", {}, v)])));
  const panel = make("div", { class: "tokens-box" });
  drawTokens(panel, row);
  return make("div", { class: "sample-body" }, make("div", { class: "reading" },
    make("h4", {}, "Prompt"), make("pre", { class: "text", tabindex: 0, "aria-label": "Prompt" }, row.prompt),
    conversation(row), panel), side);
}

function conversation(row) {
  const turns = row.turns || [];
  const said = (turn) => [turn.thinking && `<think>\n${turn.thinking}\n</think>`, turn.text, ...turn.calls].filter(Boolean).join("\n");
  const line = (turn) => make("li", { class: "turn " + turn.role.split(" ")[0] + (turn.is_error ? " failed" : "") },
    make("b", {}, turn.role + (turn.reward ? ` (reward ${format(turn.reward, "")})` : "")), make("pre", { class: "text" }, said(turn)));
  return make("div", {}, turns.length ? [make("h4", {}, "Episode"), make("ol", { class: "turns" }, turns.map(line))] : []);
}

function partsTable(row) {
  const parts = Object.entries(row.parts);
  const bar = (value) => make("span", { class: "bar" }, make("i", { style: `width:${Math.max(0, Math.min(1, value || 0)) * 100}%` }));
  const line = (name, value, strong) => make("tr", { class: strong ? "total" : "" }, make("th", { scope: "row" }, name),
    make("td", {}, bar(value)), make("td", { class: "num" }, value === null ? "–" : format(value, "")));
  return make("table", { class: "parts" }, make("tbody", {}, parts.map(([n, v]) => line(n, v)), line("total", row.reward, true)));
}

function drawTokens(panel, row) {
  if (!row.segments.length) {
    panel.replaceChildren(make("h4", {}, "Completion"), make("p", { class: "muted" }, "Too long to embed token by token; the file in samples/ has all of it."),
      make("pre", { class: "text" }, row.completion));
    return;
  }
  const modes = [["logprob", "log-probability"], ["mask", "trained or not"], ["version", "weight version"]];
  const buttons = make("div", { class: "modes", role: "group", "aria-label": "Colour tokens by" }, modes.map(([mode, label]) =>
    make("button", { type: "button", "aria-pressed": String(samples.colour === mode), onclick: () => { samples.colour = mode; drawTokens(panel, row); } }, label)));
  const segments = row.segments.map((segment, i) => tokenLine(tokensOf(segment), row.segments.length > 1 ? `Segment ${i + 1}` : "Tokens"));
  panel.replaceChildren(make("div", { class: "tokens-head" }, make("h4", {}, "Tokens"), buttons, scale(row)), ...segments);
}

function scale(row) {
  if (samples.colour === "logprob") {
    return make("span", { class: "scale" }, "sure", ...[0, 0.25, 0.5, 0.75, 1].map((heat) => make("i", { style: `--heat:${heat}`, class: "heat" })), "surprised");
  }
  if (samples.colour === "mask") return make("span", { class: "scale" }, make("i", { class: "trained" }), "sampled and trained", make("i", { class: "given" }), "given");
  const versions = [...new Set(row.segments.flatMap((s) => expand(s.versions)))].filter((v) => v >= 0).sort((a, b) => a - b);
  return make("span", { class: "scale" }, versions.map((v) => [make("i", { style: `background:var(--v${v % 4})` }), `version ${v} `]));
}

function tokenLine(tokens, label) {
  const line = make("div", { class: "tokens", tabindex: 0, role: "group", "aria-label": label + ", use the arrow keys to walk through them" });
  const nodes = tokens.map(tokenChip);
  line.append(...nodes);
  let active = -1;
  const point = (index) => {
    if (active >= 0) nodes[active].classList.remove("active");
    active = index;
    if (index < 0) return hideTip();
    nodes[index].classList.add("active");
    const box = nodes[index].getBoundingClientRect();
    showTip(box.left, box.bottom - 8, ...tokenFacts(tokens[index]));
  };
  line.addEventListener("pointerover", (event) => point(nodes.indexOf(event.target)));
  line.addEventListener("pointerleave", () => point(-1));
  line.addEventListener("blur", () => point(-1));
  line.addEventListener("keydown", (event) => {
    const next = { ArrowRight: active + 1, ArrowLeft: active - 1, Home: 0, End: nodes.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    point(Math.max(0, Math.min(nodes.length - 1, next)));
  });
  return line;
}

function tokenChip(token) {
  const shown = token.text.replace(/\n/g, "⏎\n").replace(/\t/g, "⇥\t") || "∅";
  if (samples.colour === "mask") return make("span", { class: token.trained ? "trained" : "given" }, shown);
  if (!token.trained) return make("span", { class: "quiet" }, shown);
  if (samples.colour === "version") return make("span", { style: `background:var(--v${token.version % 4})` }, shown);
  const heat = token.logprob === null ? 1 : Math.min(1, -token.logprob / 4000);
  return make("span", { class: "heat", style: `--heat:${Math.sqrt(heat).toFixed(2)}` }, shown);
}

function tokenFacts(token) {
  const row = (name, value) => make("div", {}, name + " ", make("b", {}, value));
  const facts = [make("strong", { class: "mono" }, JSON.stringify(token.text)), row("id", token.id)];
  if (!token.trained) return [...facts, make("div", {}, "given, not trained")];
  const logprob = token.logprob === null ? "not finite" : (token.logprob / 1000).toFixed(3).replace("-", "−");
  const chance = token.logprob === null ? "" : ` (p ${Math.exp(token.logprob / 1000).toPrecision(2)})`;
  return [...facts, row("log-prob", logprob + chance), row("weight version", token.version), make("div", {}, "sampled, trained")];
}
