"use strict";
// The data is one JSON value: {sections: [{kind, title, note, ...}]}. A kind of section is a function of
// `kinds` that gives an element. Texts become text nodes only, so that nothing in them is markup.

const COLORS = {
  starts: "#8d99ae", describes: "#b08968", plans: "#9c6644", waits: "#c3c8d0", reads: "#3a86ff", sends: "#ff9f1c",
  receives: "#ffbf69", pastes: "#2ec4b6", encodes: "#8ac926", hashes: "#9b5de5", writes: "#e63946",
  verifies: "#06a77d", publishes: "#f15bb5",
};
const LANE = 12, GAP = 5, LEFT = 150, AXIS = 34;

function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
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

const hint = element("div", { id: "hint", hidden: "" });

function hintAt(event, text) {
  hint.hidden = !text;
  if (!text) return;
  hint.textContent = text;
  hint.style.left = `${Math.min(event.clientX + 12, window.innerWidth - 320)}px`;
  hint.style.top = `${event.clientY + 14}px`;
}

function prepare(canvas, height) {
  const width = canvas.clientWidth || 1000;
  const scale = Math.min(window.devicePixelRatio || 1, 8000 / height, 2);
  canvas.style.height = `${height}px`;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = "11px system-ui, sans-serif";
  pen.textBaseline = "middle";
  return [pen, width];
}

function ink(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name);
}

// Round distances of marks on an axis: about `count` of them.
function step(length, count) {
  const rough = length / count, power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough);
}

// A span of the timeline's rows; see pp_export/core/timeline.py.
function spanOf(row, words, files) {
  const [word, begin, length, size, file = -1, count = 1, idle = 0] = row;
  return {
    word: words[word], begin: begin / 1e6, end: (begin + length) / 1e6, bytes: size,
    file: file < 0 ? "" : files[file], count, busy: (length - idle) / 1e6,
  };
}

function lanesOf(timeline) {
  const lanes = [];
  let y = AXIS;
  for (const rank of timeline.ranks) {
    rank.lanes.forEach(([worker, rows], number) => {
      const spans = rows.map((row) => spanOf(row, timeline.words, rank.files));
      lanes.push({ rank: rank.rank, worker, spans, y, isFirst: number === 0 });
      y += LANE;
    });
    y += GAP;
  }
  return [lanes, y];
}

function told(span, lane) {
  const length = span.end - span.begin;
  const lines = [
    `rank ${lane.rank}, ${lane.worker}: ${span.word}${span.file ? ` ${span.file}` : ""}`,
    `${span.begin.toFixed(3)} to ${span.end.toFixed(3)} s: ${seconds(length)}`,
  ];
  if (span.count > 1) lines.push(`${span.count} times, ${seconds(span.busy)} of it`);
  if (span.bytes) lines.push(`${bytes(span.bytes)}, ${bytes(span.bytes / Math.max(span.busy, 1e-6))}/s`);
  return lines.join("\n");
}

const kinds = {
  // rows: [[name, text]]
  facts({ rows }) {
    return element("table", {}, ...rows.map(([name, text]) =>
      element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, text))));
  },

  // columns: [name], rows: [[cell]]; numbers are shown at the right
  table({ columns, rows }) {
    const isNumber = columns.map((_, at) => rows.every((row) => /^[-\d.,]+( [KMGT]?B| m?s)?$/.test(row[at])));
    const cell = (name, text, at) => element(name, isNumber[at] ? { class: "number" } : {}, text);
    const head = element("tr", {}, ...columns.map((text, at) => cell("th", text, at)));
    const body = rows.map((row) => element("tr", {}, ...row.map((text, at) => cell("td", String(text), at))));
    return element("table", {}, element("thead", {}, head), element("tbody", {}, ...body));
  },

  // timeline: as pp_export gives it, end: seconds that are shown at first
  timeline({ timeline, end }) {
    const [lanes, height] = lanesOf(timeline);
    const canvas = element("canvas", { role: "img", "aria-label": "who did what, when" });
    const view = { from: 0, to: end || 1 };
    const used = new Set(lanes.flatMap((lane) => lane.spans.map((span) => span.word)));

    const draw = () => {
      const [pen, width] = prepare(canvas, height);
      const x = (at) => LEFT + ((at - view.from) / (view.to - view.from)) * (width - LEFT);
      pen.fillStyle = ink("--soft");
      pen.strokeStyle = ink("--line");
      const distance = step(view.to - view.from, width / 110);
      for (let at = Math.ceil(view.from / distance) * distance; at <= view.to; at += distance) {
        pen.fillText(`${Number(at.toPrecision(6))} s`, x(at) + 3, 8);
        pen.beginPath();
        pen.moveTo(x(at), 0);
        pen.lineTo(x(at), height);
        pen.stroke();
      }
      Object.entries(timeline.phases).forEach(([name, [begin, ends]], number) => {
        const left = Math.max(LEFT, x(begin)), right = Math.min(width, x(ends));
        if (right <= left) return;
        pen.globalAlpha = number % 2 ? 0.08 : 0.16;
        pen.fillRect(left, 16, right - left, height);
        pen.globalAlpha = 1;
        pen.fillText(name, left + 3, 25, right - left);
      });
      for (const lane of lanes) {
        for (const span of lane.spans) {
          if (span.end < view.from || span.begin > view.to) continue;
          const left = Math.max(LEFT, x(span.begin)), right = Math.min(width, x(span.end));
          const share = span.end > span.begin ? span.busy / (span.end - span.begin) : 1;
          pen.globalAlpha = Math.max(0.25, Math.min(1, share));
          pen.fillStyle = COLORS[span.word] || "#888";
          pen.fillRect(left, lane.y + 1, Math.max(0.7, right - left), LANE - 2);
        }
        pen.globalAlpha = 1;
        pen.fillStyle = ink(lane.isFirst ? "--ink" : "--soft");
        pen.fillText(`${lane.isFirst ? `rank ${lane.rank}  ` : ""}${lane.worker}`, 4, lane.y + LANE / 2, LEFT - 8);
      }
    };
    const timeAt = (event) => {
      const box = canvas.getBoundingClientRect();
      return view.from + ((event.clientX - box.left - LEFT) / (box.width - LEFT)) * (view.to - view.from);
    };
    const show = (from, to) => {
      const length = Math.min(end, Math.max(to - from, 1e-4));
      view.from = Math.max(0, Math.min(from, end - length));
      view.to = view.from + length;
      draw();
    };
    const zoom = (factor, at) => show(at - (at - view.from) * factor, at + (view.to - at) * factor);
    const middle = () => (view.from + view.to) / 2;
    let grabbed = null;
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.shiftKey) return; // the page scrolls
      event.preventDefault();
      zoom((event.deltaY || event.deltaX) > 0 ? 1.25 : 0.8, timeAt(event));
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => { grabbed = timeAt(event); });
    window.addEventListener("pointerup", () => { grabbed = null; });
    canvas.addEventListener("dblclick", (event) => zoom(0.4, timeAt(event)));
    canvas.addEventListener("pointerleave", (event) => hintAt(event, ""));
    canvas.addEventListener("pointermove", (event) => {
      const at = timeAt(event);
      if (grabbed !== null && event.buttons) return show(view.from + grabbed - at, view.to + grabbed - at);
      const y = event.clientY - canvas.getBoundingClientRect().top;
      const lane = lanes.find((each) => y >= each.y && y < each.y + LANE);
      const pixel = (view.to - view.from) / Math.max(1, canvas.clientWidth);
      const span = lane && lane.spans.findLast((each) => at >= each.begin - pixel && at <= each.end + pixel);
      hintAt(event, span ? told(span, lane) : "");
    });
    window.addEventListener("resize", draw);
    queueMicrotask(draw);

    const button = (text, act) => {
      const made = element("button", { type: "button" }, text);
      made.addEventListener("click", act);
      return made;
    };
    const legend = timeline.words.filter((word) => used.has(word)).map((word) =>
      element("span", {}, element("i", { style: `background:${COLORS[word] || "#888"}` }), word));
    const buttons = [
      button("+", () => zoom(0.5, middle())),
      button("\u2212", () => zoom(2, middle())),
      button("whole", () => show(0, end)),
    ];
    return element("div", {}, element("div", { class: "legend" }, ...legend, ...buttons),
      element("div", { class: "scroll" }, canvas));
  },

  // series: {name: [a number for each of many, for example of each rank]}, of: what they are of, unit: "bytes" or "s"
  bars({ series, of, unit }) {
    const names = Object.keys(series), shades = Object.values(COLORS).slice(4);
    const canvas = element("canvas", { role: "img", "aria-label": names.join(", ") });
    const count = Math.max(...names.map((name) => series[name].length));
    const say = unit === "bytes" ? bytes : seconds;
    const height = 180, top = Math.max(1e-9, ...names.map((name) => series[name].reduce((a, b) => Math.max(a, b), 0)));

    const draw = () => {
      const [pen, width] = prepare(canvas, height);
      const each = (width - LEFT) / count, bar = Math.max(0.7, (each * 0.8) / names.length);
      pen.fillStyle = ink("--soft");
      for (const share of [0.5, 1]) pen.fillText(say(top * share), 4, (height - 10) * (1 - share) + 10, LEFT - 8);
      names.forEach((name, number) => {
        pen.fillStyle = shades[number % shades.length];
        series[name].forEach((value, at) => {
          const tall = (value / top) * (height - 10);
          pen.fillRect(LEFT + at * each + number * bar, height - tall, bar, tall);
        });
      });
    };
    canvas.addEventListener("pointerleave", (event) => hintAt(event, ""));
    canvas.addEventListener("pointermove", (event) => {
      const box = canvas.getBoundingClientRect();
      const at = Math.floor(((event.clientX - box.left - LEFT) / (box.width - LEFT)) * count);
      const lines = names.map((name) => `${name}: ${say(series[name][at] || 0)}`);
      hintAt(event, at >= 0 && at < count ? [`${of} ${at}`, ...lines].join("\n") : "");
    });
    window.addEventListener("resize", draw);
    queueMicrotask(draw);
    const legend = names.map((name, number) =>
      element("span", {}, element("i", { style: `background:${shades[number % shades.length]}` }), name));
    return element("div", {}, element("div", { class: "legend" }, ...legend),
      element("div", { class: "scroll" }, canvas));
  },
};

for (const section of JSON.parse(document.getElementById("data").textContent).sections) {
  const note = section.note ? [element("p", {}, section.note)] : [];
  document.querySelector("main").append(
    element("section", {}, element("h2", {}, section.title), ...note, kinds[section.kind](section)));
}
document.body.append(hint);
