// What all drawings share: a canvas, its axes' steps, and a hint beside the pointer.
const COLORS = {
  starts: "#8d99ae", describes: "#b08968", plans: "#9c6644", waits: "#c3c8d0", reads: "#3a86ff", sends: "#ff9f1c",
  receives: "#ffbf69", pastes: "#2ec4b6", encodes: "#8ac926", hashes: "#9b5de5", writes: "#e63946",
  verifies: "#06a77d", publishes: "#f15bb5",
};
const SHADES = ["#3a86ff", "#ff9f1c", "#e63946", "#06a77d", "#9b5de5", "#8ac926", "#f15bb5", "#2ec4b6", "#9c6644", "#8d99ae"];
const LEFT = 150;

const hint = element("div", { id: "hint", hidden: "" });

function hintAt(event, text) {
  hint.hidden = !text;
  if (!text) return;
  hint.textContent = text;
  hint.style.left = `${Math.max(4, Math.min(event.clientX + 12, window.innerWidth - 320))}px`;
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

// Draw now, and again whenever the page's width or its colors change.
function drawn(draw) {
  queueMicrotask(draw);
  window.addEventListener("resize", draw);
  if (window.matchMedia) window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}

// Round distances of marks on an axis: about `count` of them.
function step(length, count) {
  const rough = length / count, power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough);
}

function line(pen, x, y, toX, toY) {
  pen.beginPath();
  pen.moveTo(x, y);
  pen.lineTo(toX, toY);
  pen.stroke();
}

function legend(names, colorOf, ...more) {
  const shown = names.map((name) =>
    element("span", {}, element("i", { style: `background:${colorOf(name)}` }), name));
  return element("div", { class: "legend" }, ...shown, ...more);
}
