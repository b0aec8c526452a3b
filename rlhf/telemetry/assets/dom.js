"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);

// Every text on the page goes through textContent: what a model wrote is never parsed as HTML.
function make(tag, attributes, ...children) {
  const svg = ["svg", "g", "path", "line", "rect", "circle", "text", "title"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) if (child !== null && child !== undefined) node.append(child);
  return node;
}

const byId = (id) => document.getElementById(id);

const SMALL = ["⁰", "¹", "²", "³", "⁴", "⁵", "⁶", "⁷", "⁸", "⁹"];
function power(exponent) {
  const digits = String(Math.abs(exponent)).split("").map((d) => SMALL[d]).join("");
  return "10" + (exponent < 0 ? "⁻" : "") + digits;
}

function format(value, unit) {
  if (value === null || value === undefined) return "–";
  if (unit === "%" || unit === "share") return (value * 100).toFixed(1) + " %";
  if (unit === "bytes") {
    const size = value >= 1e9 ? [1e9, " GB"] : value >= 1e6 ? [1e6, " MB"] : [1e3, " kB"];
    return (value / size[0]).toFixed(1) + size[1];
  }
  const size = Math.abs(value);
  let text;
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) text = value.toExponential(1).replace("e-", "e−").replace("e+", "e");
  else if (size >= 1000) text = Math.round(value).toLocaleString("en-US");
  else text = String(Number(value.toPrecision(3)));
  return text + (unit === "s" ? " s" : "");
}

const tip = byId("tip");
function showTip(x, y, ...lines) {
  tip.replaceChildren(...lines);
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = x + 14 + box.width > innerWidth ? x - 14 - box.width : x + 14;
  tip.style.left = Math.max(4, left) + "px";
  tip.style.top = Math.max(4, Math.min(y + 14, innerHeight - box.height - 8)) + "px";
}
function hideTip() { tip.hidden = true; }
