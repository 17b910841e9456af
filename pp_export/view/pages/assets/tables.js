// Facts and tables. A table is sorted by clicking a header, and filtered by words and by picking a value; of
// many rows it shows `SHOWN` at a time, but sorts and filters all.
const SHOWN = 100, FEW = 8, MOST_CHOICES = 300;

// text, good: what a report says in one line
kinds.verdict = ({ text, good }) => element("p", { class: good ? "verdict good" : "verdict bad" }, text);

// rows: [[name, text]]
kinds.facts = ({ rows }) => element("table", { class: "facts" }, ...rows.map(([name, text]) =>
  element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, text))));

// columns: [{name, as, choices, values}], rows: [[cell]]; with `values` a cell is a place in them
kinds.table = ({ title, columns, rows }) => {
  const value = (row, at) => (columns[at].values ? columns[at].values[row[at]] : row[at]);
  const text = (row, at) => {
    const found = value(row, at);
    return found === null || found === undefined ? "" : said[columns[at].as](found);
  };
  const state = { words: [], chosen: new Map(), by: -1, down: false, first: 0, rows };
  let texts = null; // of each row, for searching: made when somebody searches

  const matching = () => {
    let found = rows;
    for (const [at, choice] of state.chosen) found = found.filter((row) => text(row, at) === choice);
    if (state.words.length === 0) return found;
    texts ||= new Map(rows.map((row) => [row, columns.map((_, at) => text(row, at)).join("\n").toLowerCase()]));
    return found.filter((row) => state.words.every((word) => texts.get(row).includes(word)));
  };
  const sorted = (found) => {
    if (state.by < 0) return found;
    const sign = state.down ? -1 : 1;
    const keys = new Map(found.map((row) => {
      const known = value(row, state.by);
      return [row, known === null || known === undefined ? null : sortable(known, columns[state.by].as)];
    }));
    const natural = new Intl.Collator("en", { numeric: true });
    return [...found].sort((one, other) => {
      const a = keys.get(one), b = keys.get(other);
      if (a === null || b === null) return (a === null) - (b === null); // what isn't known comes last
      return sign * (typeof a === "number" && typeof b === "number" ? a - b : natural.compare(String(a), String(b)));
    });
  };

  const kindOf = (at) => (isNumeric[columns[at].as] ? "number" : columns[at].as);
  const cell = (words, at) => // what is short isn't broken
    element("td", { class: kindOf(at) + (words.length <= (columns[at].as === "code" ? 80 : 24) ? " short" : "") }, words);
  const body = element("tbody", {}), count = element("output", { class: "count" });
  const heads = columns.map(({ name }, at) =>
    element("th", { class: kindOf(at), scope: "col" }, button(name, () => {
      state.down = state.by === at ? !state.down : Boolean(isNumeric[columns[at].as]);
      state.by = at;
      heads.forEach((head, number) =>
        head.setAttribute("aria-sort", number !== at ? "none" : state.down ? "descending" : "ascending"));
      change();
    })));
  const back = button("\u2039", () => turn(-SHOWN), { "aria-label": "rows before these" });
  const on = button("\u203a", () => turn(SHOWN), { "aria-label": "rows after these" });

  const show = () => {
    const page = state.rows.slice(state.first, state.first + SHOWN), all = rows.length.toLocaleString("en");
    body.replaceChildren(...page.map((row) =>
      element("tr", {}, ...columns.map((_, at) => cell(text(row, at), at)))));
    const found = state.rows.length.toLocaleString("en");
    const range = state.rows.length > SHOWN ? `${state.first + 1}\u2013${state.first + page.length} of ` : "";
    count.textContent = range + (state.rows.length === rows.length ? all : `${found} (of ${all})`);
    back.disabled = state.first === 0;
    on.disabled = state.first + SHOWN >= state.rows.length;
    back.hidden = on.hidden = state.rows.length <= SHOWN;
  };
  const turn = (distance) => { state.first += distance; show(); };
  const change = () => { state.rows = sorted(matching()); state.first = 0; show(); };

  const controls = [];
  if (rows.length > FEW) {
    const search = element("input", { type: "search", placeholder: "search", "aria-label": `search in ${title}` });
    search.addEventListener("input", () => {
      state.words = search.value.toLowerCase().split(" ").filter(Boolean);
      change();
    });
    controls.push(search);
    columns.forEach((column, at) => {
      const choices = column.choices ? [...new Set(rows.map((row) => text(row, at)))].sort() : [];
      if (choices.length < 2 || choices.length > MOST_CHOICES) return;
      const options = choices.map((each) => element("option", { value: each }, each));
      const pick = element("select", { "aria-label": `${column.name} in ${title}` },
        element("option", { value: "" }, `any ${column.name}`), ...options);
      pick.addEventListener("change", () => {
        if (pick.selectedIndex > 0) state.chosen.set(at, choices[pick.selectedIndex - 1]);
        else state.chosen.delete(at);
        change();
      });
      controls.push(pick);
    });
    controls.push(count, back, on);
  }
  show();
  const shown = element("table", {}, element("thead", {}, element("tr", {}, ...heads)), body);
  return element("div", {}, ...(controls.length ? [element("div", { class: "controls" }, ...controls)] : []),
    element("div", { class: "wide" }, shown));
};
