"use strict";
// The data is one JSON value: {sections: [{kind, title, note, ...}]}. A kind of section is a function of
// `kinds` that gives an element. Texts become text nodes only, so that nothing in them is markup.
const kinds = {};

function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function button(text, act, attributes = {}) {
  const made = element("button", { type: "button", ...attributes }, text);
  made.addEventListener("click", act);
  return made;
}

function bytes(count) {
  for (const unit of ["B", "KB", "MB", "GB"]) {
    if (count < 999.5) return `${Number(count.toPrecision(3))} ${unit}`;
    count /= 1000;
  }
  return `${Number(count.toPrecision(3))} TB`;
}

function seconds(value) {
  return value < 0.1 ? `${Number((value * 1000).toPrecision(3))} ms` : `${Number(value.toPrecision(4))} s`;
}

function number(value) {
  return typeof value === "number" ? String(Number(value.toPrecision(3))) : String(value);
}

// How a column's values are said, and by what it is sorted.
const said = {
  bytes, seconds, number,
  text: String, code: String,
  count: (value) => (typeof value === "number" ? value.toLocaleString("en") : String(value)),
  shape: (sizes) => `[${sizes.join(", ")}]`,
};
const isNumeric = { bytes: true, seconds: true, number: true, count: true };

function sortable(value, as) {
  return as === "shape" ? value.reduce((product, size) => product * size, 1) : value;
}
