"use strict";
// Everything that came out of a data set is put in place by textContent: never as markup.
const PAGE_ROWS = 25;
const byId = (id) => document.getElementById(id);

function make(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

async function unpack() {
  const packed = Uint8Array.from(atob(byId("data").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

const count = (n) => n.toLocaleString("en");
const share = (part, whole) => (whole ? `${((100 * part) / whole).toFixed(0)} %` : "");

function clock(seconds) {
  if (seconds < 90) return `${seconds.toFixed(0)} s`;
  if (seconds < 5400) return `${(seconds / 60).toFixed(1)} min`;
  return `${(seconds / 3600).toFixed(2)} h`;
}

function facts(pairs) {
  const list = make("dl", undefined, "facts");
  for (const [name, value] of pairs) {
    const pair = make("div");
    pair.append(make("dt", name), make("dd", value));
    list.append(pair);
  }
  return list;
}

function showSummary(about) {
  const { rows, ...run } = about.summary;
  const ofAdg = run.method === "adg";
  const rejected = Object.values(rows.rejected).reduce((a, b) => a + b, 0);
  const pairs = [
    ["chosen", `${count(rows.selected)} of ${count(rows.scored)} rows`],
    ["pool", `${count(rows.pool)} rows`],
    ["rejected", count(rejected)],
    ofAdg ? ["bins", count(rows.bins)] : ["method", run.method],
    ["model", String(run.model)],
    ...(run.answer_tokens ? [["answers", `${count(run.answer_tokens)} tokens`]] : []),
    ["created", new Date(run.created).toISOString().slice(0, 16).replace("T", " ")],
  ];
  if (run.sampled_rows) {
    pairs.push([ofAdg ? "sampling, last run" : "measuring, last run", `${clock(run.sampling_seconds)} for ${count(run.sampled_rows)} rows`]);
    pairs.push(["speed", `${count(Math.round(run.sampled_tokens / Math.max(run.sampling_seconds, 1e-9)))} tokens/s`]);
  }
  if (run.cost !== undefined) {
    const cost = run.cost === null ? "unknown: Ray decided how many devices" : run.cost.toFixed(2);
    pairs.push(["cost of the last run", cost]);
  }
  if (about.stability) pairs.push(["expected overlap of another run", `${(100 * about.stability.expected_overlap.mean).toFixed(0)} %`]);
  byId("summary").append(facts(pairs));
}

function showWarnings(about) {
  if (!about.warnings.length) return;
  const list = make("ul");
  for (const warning of about.warnings) list.append(make("li", warning));
  byId("warnings").append(make("h2", "Warnings"), list);
}

function simpleTable(head, rows) {
  const table = make("table");
  const line = make("tr");
  for (const name of head) line.append(make("th", name));
  const top = make("thead");
  top.append(line);
  const body = make("tbody");
  for (const row of rows) {
    const tr = make("tr");
    for (const cell of row) {
      const td = make("td", String(cell), "text");
      td.dir = "auto";
      tr.append(td);
    }
    body.append(tr);
  }
  table.append(top, body);
  const scroll = make("div", undefined, "scroll");
  scroll.append(table);
  return scroll;
}

// -- figures ---------------------------------------------------------------------------------------------------------

function themeConfig() {
  const style = getComputedStyle(document.documentElement);
  const [text, soft, line] = ["--text", "--soft", "--line"].map((name) => style.getPropertyValue(name).trim());
  const axis = { labelColor: soft, titleColor: soft, gridColor: line, domainColor: line, tickColor: line, titleFontWeight: 500 };
  const legend = { labelColor: text, titleColor: soft };
  return { background: "transparent", view: { stroke: line }, axis, legend, header: { labelColor: soft, titleColor: soft } };
}

let figures = [];
const views = [];

async function drawFigures() {
  while (views.length) views.pop().finalize();
  const config = themeConfig();
  for (const { spec, place, name } of figures) {
    const options = { actions: { export: true, source: false, compiled: false, editor: false }, config, renderer: "canvas" };
    const { view } = await vegaEmbed(place, structuredClone(spec), options);
    views.push(view);
    if (name === "plane") {
      view.addEventListener("click", (event, item) => item && item.datum && item.datum.id !== undefined && showRow(item.datum.id));
    }
  }
  document.documentElement.dataset.drawn = String(views.length);
}

function placeFigures(data) {
  const contents = byId("contents");
  const link = (id, text) => {
    const a = make("a", text);
    a.href = `#${id}`;
    contents.append(a);
  };
  for (const figure of data.figures) {
    const box = make("div", undefined, figure.wide ? "figure wide" : "figure");
    box.id = `figure-${figure.name.replaceAll(" ", "-")}`;
    const place = make("div", undefined, "plot");
    box.append(make("h2", figure.title), make("p", figure.note, "note"), place);
    if (figure.name === "plane") {
      const rows = data.about.quadrants.map((q) => [q.dispersion, q.anisotropy, count(q.rows), count(q.chosen), share(q.chosen, q.rows)]);
      box.append(simpleTable(["dispersion", "anisotropy", "rows", "chosen", "share"], rows));
    }
    byId("figures").append(box);
    figures.push({ spec: figure.spec, place, name: figure.name });
    link(box.id, figure.title);
  }
  for (const [id, text] of [["rows", "Rows"], ["rejected", "Rejected rows"], ["settings", "Settings"]]) {
    if (byId(id).childNodes.length || id === "rows") link(id, text);
  }
}

// -- the table of rows -----------------------------------------------------------------------------------------------

// Columns of these names stand first, in this order; then what else is a number, then the kinds that rows are of.
const FIRST = ["id", "chosen", "score", "D", "I", "bin", "rank", "again", "tokens"];
const NOT_SHOWN = ["quota", "why", "instruction"];
const state = { column: "score", falling: true, first: 0, open: null, order: [] };
let table, texts, haystack, columns, parts;

const value = (name, row) => {
  const column = table[name];
  return column.codes ? column.kinds[column.codes[row]] : column[row];
};

function prepareTable(data) {
  ({ table, texts } = data);
  haystack = table.id.map((id, row) => `${id} ${table.instruction[row]}`.toLowerCase());
  const kinds = Object.keys(table).filter((name) => table[name].codes && name !== "why");
  parts = Object.keys(table).filter((name) => !table[name].codes && !FIRST.includes(name) && !NOT_SHOWN.includes(name));
  columns = [...FIRST.filter((name) => table[name]), ...parts, ...kinds, "instruction"];
  const head = make("tr");
  for (const name of columns) {
    const th = make("th", undefined, narrow(name));
    const button = make("button", name.replaceAll("_", " "));
    button.type = "button";
    button.addEventListener("click", () => sortBy(name));
    th.dataset.column = name;
    th.append(button);
    head.append(th);
  }
  byId("table").tHead.append(head);
  byId("search").addEventListener("input", () => { state.first = 0; arrange(); });
  byId("which").addEventListener("change", () => { state.first = 0; arrange(); });
  byId("back").addEventListener("click", () => turn(-PAGE_ROWS));
  byId("next").addEventListener("click", () => turn(PAGE_ROWS));
  matchMedia("(max-width: 760px)").addEventListener("change", showPage);
  const answered = Object.keys(texts).length;
  const drawn = Object.values(texts).some((about) => about.answers);
  if (!drawn) byId("which").querySelector("[value=answers]").remove();
  const scored = data.about.summary.rows.scored;
  const listed = table.id.length < scored ? `${count(table.id.length)} of ${count(scored)} rows are listed. ` : "";
  const chance = table.again ? "`again`: how likely another run with other draws chooses the row. " : "";
  const held = answered < table.id.length ? `${drawn ? "Answers" : "Whole texts"} are in this file for ${count(answered)} rows; for any other: adg explain RUN_DIR ID.` : "";
  byId("rows-note").textContent = chance + listed + held;
  arrange();
}

const narrow = (name) => (["id", "score", "instruction", "chosen"].includes(name) ? name : `wider ${name}`);

function sortBy(name) {
  state.falling = state.column === name ? !state.falling : name !== "id" && name !== "instruction";
  state.column = name;
  state.first = 0;
  arrange();
}

function arrange() {
  const wanted = byId("search").value.trim().toLowerCase();
  const which = byId("which").value;
  const rows = [];
  for (let row = 0; row < table.id.length; row++) {
    if (which === "chosen" && !table.chosen[row]) continue;
    if (which === "left" && table.chosen[row]) continue;
    if (which === "answers" && !(Object.hasOwn(texts, table.id[row]) && texts[table.id[row]].answers)) continue;
    if (wanted && !haystack[row].includes(wanted)) continue;
    rows.push(row);
  }
  const keys = new Map(rows.map((row) => [row, value(state.column, row)]));
  const sign = state.falling ? -1 : 1;
  rows.sort((a, b) => {
    const [one, other] = [keys.get(a), keys.get(b)];
    if (one === null || other === null) return (one === null) - (other === null) || a - b; // last, whichever way
    return one < other ? -sign : one > other ? sign : a - b;
  });
  state.order = rows;
  showPage();
}

function turn(by) {
  state.first = Math.max(0, Math.min(state.first + by, Math.floor((state.order.length - 1) / PAGE_ROWS) * PAGE_ROWS));
  showPage();
}

function showPage() {
  for (const th of byId("table").tHead.rows[0].cells) {
    th.setAttribute("aria-sort", th.dataset.column !== state.column ? "none" : state.falling ? "descending" : "ascending");
  }
  const shown = state.order.slice(state.first, state.first + PAGE_ROWS);
  byId("table").tBodies[0].replaceChildren(...shown.flatMap(lines));
  byId("count").textContent = `${count(state.order.length)} ${state.order.length === 1 ? "row" : "rows"}`;
  byId("page").textContent = shown.length ? `${count(state.first + 1)} to ${count(state.first + shown.length)}` : "no row";
  byId("back").disabled = state.first === 0;
  byId("next").disabled = state.first + PAGE_ROWS >= state.order.length;
}

function lines(row) {
  const tr = make("tr", undefined, table.chosen[row] ? "chosen" : "");
  for (const name of columns) {
    const td = make("td", undefined, name === "instruction" ? "text" : narrow(name));
    if (name === "id") {
      const button = make("button", table.id[row]);
      button.type = "button";
      button.setAttribute("aria-expanded", String(state.open === row));
      button.addEventListener("click", () => {
        state.open = state.open === row ? null : row;
        showPage();
        for (const other of document.querySelectorAll("#table td.id button")) {
          if (other.textContent === table.id[row]) other.focus(); // it is a new one
        }
      });
      td.append(button);
    } else {
      td.textContent = cell(name, row);
      td.dir = "auto";
    }
    tr.append(td);
  }
  return state.open === row ? [tr, detail(row)] : [tr];
}

function cell(name, row) {
  if (name === "chosen") return table.chosen[row] ? "yes" : "no";
  if (name === "rank" && table.quota) return `${table.rank[row]} / ${table.quota[row]}`;
  if (name === "again") return `${Math.round(100 * table.again[row])} %`;
  const found = value(name, row);
  if (found === null) return "";
  if (name === "D" || name === "I" || (name === "score" && table.D)) return found.toFixed(4);
  return (name === "score" || parts.includes(name)) && !Number.isInteger(found) ? found.toFixed(4) : String(found);
}

function said(title, text) {
  const paragraph = make("p", text, "said");
  paragraph.dir = "auto";
  return [make("h3", title), paragraph];
}

function detail(row) {
  const tr = make("tr", undefined, "detail");
  const td = make("td");
  // No more than are seen: on a narrow screen each further one would take its share of the width.
  td.colSpan = [...byId("table").tHead.rows[0].cells].filter((th) => th.getClientRects().length).length;
  const id = table.id[row];
  const about = Object.hasOwn(texts, id) ? texts[id] : null;
  const numbers = table.quota
    ? `D ${cell("D", row)}, I ${cell("I", row)}, bin ${table.bin[row]}, rank ${table.rank[row]} for ${table.quota[row]} places: ${value("why", row)}`
    : `${["score", "rank", ...parts].filter((name) => table[name][row] !== null).map((name) => `${name.replaceAll("_", " ")} ${cell(name, row)}`).join(", ") || "no score"}: ${value("why", row)}`;
  td.append(make("p", about ? `${about.where} · ${numbers}` : numbers, "note"));
  if (!about) {
    td.append(...said("instruction", table.instruction[row]));
    tr.append(td);
    return tr;
  }
  td.append(...said("instruction", about.instruction));
  if (about.reference) td.append(...said("the row's own answer", about.reference));
  if (about.answers) td.append(...drawnAnswers(about));
  tr.append(td);
  return tr;
}

function drawnAnswers(about) {
  const answers = make("div", undefined, "answers");
  about.answers.forEach(([text, tokens, cut], number) => {
    const box = make("div");
    box.append(...said(`answer ${number + 1} · ${tokens} tokens${cut ? ", cut" : ""}`, text));
    answers.append(box);
  });
  const similarity = make("table", undefined, "similarity");
  const head = make("tr");
  head.append(make("th"), ...about.similarity.map((_, n) => make("th", String(n + 1))));
  similarity.append(head);
  for (const [n, line] of about.similarity.entries()) {
    const r = make("tr");
    r.append(make("th", String(n + 1)));
    for (const cosine of line) r.append(make("td", cosine.toFixed(3)));
    similarity.append(r);
  }
  return [make("h3", "answers of the model"), answers, make("h3", "similarity of the answers"), similarity];
}

function showRow(id) {
  const row = table.id.indexOf(id);
  byId("which").value = "all";
  byId("search").value = row < 0 ? id : "";
  state.open = row < 0 ? null : row;
  arrange();
  if (row < 0) byId("page").textContent = `${id} is not among the rows of this file: adg explain RUN_DIR ${id}`;
  state.first = row < 0 ? 0 : Math.floor(state.order.indexOf(row) / PAGE_ROWS) * PAGE_ROWS;
  if (row >= 0) showPage();
  byId("rows").scrollIntoView({ behavior: "smooth" });
}

// -- the rest --------------------------------------------------------------------------------------------------------

function showRejected(data) {
  const reasons = Object.entries(data.about.rejected).filter(([, n]) => n);
  if (!reasons.length) return;
  const section = byId("rejected");
  section.append(make("h2", "Rejected rows"));
  for (const [reason, rows] of reasons) {
    const examples = data.rejected.filter((row) => row.reason === reason);
    const details = make("details");
    const more = rows > examples.length ? `, ${examples.length} of them here; all are in rejected.jsonl` : "";
    details.append(make("summary", `${reason}: ${count(rows)} rows${more}`));
    details.append(simpleTable(["id", "where", "why"], examples.map((row) => [row.id, row.where, row.detail])));
    section.append(details);
  }
}

function showSettings(about) {
  const section = byId("settings");
  section.append(make("h2", "Settings"));
  const pairs = (values) => Object.entries(values).map(([key, v]) => [key, typeof v === "string" ? v : JSON.stringify(v)]);
  section.append(simpleTable(["setting, where not the default", "value"], pairs(about.summary.settings)));
  const details = make("details");
  details.append(make("summary", "what the answers depend on, and versions"));
  details.append(simpleTable(["", ""], [...pairs(about.summary.recipe), ...pairs(about.summary.versions)]));
  section.append(details);
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
}

async function start() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  setTheme(dark.matches ? "dark" : "light");
  const data = await unpack();
  showSummary(data.about);
  showWarnings(data.about);
  showRejected(data);
  showSettings(data.about);
  placeFigures(data);
  prepareTable(data);
  dark.addEventListener("change", () => { setTheme(dark.matches ? "dark" : "light"); drawFigures(); });
  byId("theme").addEventListener("click", () => {
    setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
    drawFigures();
  });
  await drawFigures();
  document.documentElement.dataset.ready = "yes";
}

start().catch((error) => {
  const text = typeof DecompressionStream === "undefined" ? "This browser cannot unpack the page: use one from 2023 or later." : `The page failed: ${error}`;
  byId("summary").append(make("p", text));
  console.error(error);
});
