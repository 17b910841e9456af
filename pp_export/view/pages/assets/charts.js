// Bars and lines.

// series: {name: [a number for each of many, for example of each rank]}, of: what they are of, unit: "bytes" or "s"
kinds.bars = ({ series, of, unit }) => {
  const names = Object.keys(series), colorOf = (name) => COLORS[name] || SHADES[names.indexOf(name) % SHADES.length];
  const canvas = element("canvas", { role: "img", "aria-label": names.join(", ") });
  const count = Math.max(...names.map((name) => series[name].length));
  const say = unit === "bytes" ? bytes : seconds;
  const height = 180, foot = 18, tall = height - foot - 12;
  const top = Math.max(1e-9, ...names.map((name) => series[name].reduce((a, b) => Math.max(a, b), 0)));

  drawn(() => {
    const [pen, width] = prepare(canvas, height);
    const each = (width - LEFT) / count, bar = Math.min(48, Math.max(0.7, (each * 0.8) / names.length));
    const bottom = height - foot;
    pen.fillStyle = ink("--soft");
    pen.strokeStyle = ink("--line");
    for (const share of [0, 0.5, 1]) {
      pen.fillText(share ? say(top * share) : "0", 8, bottom - tall * share, LEFT - 12);
      line(pen, LEFT, bottom - tall * share, width, bottom - tall * share);
    }
    for (let at = 0; at < count; at += Math.max(1, step(count, width / 70))) {
      pen.fillText(count < 20 ? `${of} ${at}` : at.toLocaleString("en"), LEFT + at * each + 2, height - foot / 2);
    }
    names.forEach((name, place) => {
      pen.fillStyle = colorOf(name);
      series[name].forEach((value, at) => {
        const size = (value / top) * tall;
        pen.fillRect(LEFT + at * each + 2 + place * bar, bottom - size, Math.max(0.7, bar - (bar > 6)), size);
      });
    });
  });
  canvas.addEventListener("pointerleave", (event) => hintAt(event, ""));
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const at = Math.floor(((event.clientX - box.left - LEFT) / (box.width - LEFT)) * count);
    const told = names.map((name) => `${name}: ${say(series[name][at] || 0)}`);
    hintAt(event, at >= 0 && at < count ? [`${of} ${at}`, ...told].join("\n") : "");
  });
  return element("div", {}, legend(names, colorOf), element("div", { class: "scroll" }, canvas));
};

// series: {name: [[x, y]]} over whole numbers `of` something; y is logarithmic, and 0 is `zero`, below all others
kinds.lines = ({ series, of, zero }) => {
  const names = Object.keys(series), colorOf = (name) => SHADES[names.indexOf(name) % SHADES.length];
  const canvas = element("canvas", { role: "img", "aria-label": names.join(", ") });
  const points = Object.values(series).flat(), sizes = points.map(([, y]) => y).filter((y) => y > 0);
  const most = (values, start) => values.reduce((a, b) => Math.max(a, b), start);
  const least = (values, start) => values.reduce((a, b) => Math.min(a, b), start);
  const first = least(points.map(([x]) => x), Infinity), last = most(points.map(([x]) => x), -Infinity);
  const low = Math.floor(Math.log10(least(sizes, Infinity))) || 0;
  const high = Math.max(low + 1, Math.ceil(Math.log10(most(sizes, 0))));
  const height = 300, foot = 34, head = 12, left = 90, hidden = new Set();
  const placeOf = (width) => (x) => left + 20 + ((x - first) / Math.max(1, last - first)) * (width - left - 40);
  const bottom = height - foot - 26; // of the scale; equal lies below it
  const y = (size) => (size > 0
    ? bottom - ((Math.log10(size) - low) / (high - low)) * (bottom - head) : height - foot);

  const draw = () => {
    const [pen, width] = prepare(canvas, height), x = placeOf(width);
    pen.fillStyle = ink("--soft");
    pen.strokeStyle = ink("--line");
    for (let power = low; power <= high; power += Math.max(1, step(high - low, 8))) {
      pen.fillText(`1e${power}`, 8, y(10 ** power));
      line(pen, left, y(10 ** power), width, y(10 ** power));
    }
    pen.fillText(zero, 8, y(0));
    line(pen, left, y(0), width, y(0));
    const every = Math.max(1, step(Math.max(1, last - first), width / 60));
    for (let at = first; at <= last; at += every) pen.fillText(String(at), x(at) - 3, height - 16);
    pen.fillText(of, 8, height - 16);
    pen.lineWidth = 1.5;
    for (const name of names.filter((each) => !hidden.has(each))) {
      pen.strokeStyle = pen.fillStyle = colorOf(name);
      series[name].forEach(([at, size], number) => {
        if (number) line(pen, x(series[name][number - 1][0]), y(series[name][number - 1][1]), x(at), y(size));
        pen.fillRect(x(at) - 2.5, y(size) - 2.5, 5, 5);
      });
    }
  };
  drawn(draw);
  canvas.addEventListener("pointerleave", (event) => hintAt(event, ""));
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect(), share = (event.clientX - box.left - left - 20) / (box.width - left - 40);
    const at = Math.round(first + share * (last - first));
    const told = names.flatMap((name) => series[name].filter(([x]) => x === at).map(([, size]) =>
      `${name}: ${size > 0 ? number(size) : zero}`));
    hintAt(event, told.length ? [`${of} ${at}`, ...told].join("\n") : "");
  });
  const switches = names.map((name) => {
    const made = button(name, () => {
      if (!hidden.delete(name)) hidden.add(name);
      made.setAttribute("aria-pressed", String(!hidden.has(name)));
      draw();
    }, { "aria-pressed": "true", class: "series", style: `border-color:${colorOf(name)}` });
    return made;
  });
  return element("div", {}, legend([], colorOf, ...switches), element("div", { class: "scroll" }, canvas));
};
