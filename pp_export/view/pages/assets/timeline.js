// Who did what, when.
const LANE = 12, GAP = 5, AXIS = 34;

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

// timeline: as pp_export gives it, end: seconds that are shown at first
kinds.timeline = ({ timeline, end }) => {
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
      line(pen, x(at), 0, x(at), height);
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
  drawn(draw);

  const words = timeline.words.filter((word) => used.has(word));
  const buttons = [
    button("+", () => zoom(0.5, middle())),
    button("\u2212", () => zoom(2, middle())),
    button("whole", () => show(0, end)),
  ];
  return element("div", {}, legend(words, (word) => COLORS[word] || "#888", ...buttons),
    element("div", { class: "scroll" }, canvas));
};
