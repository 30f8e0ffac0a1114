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

function filled(element, ...children) {
  element.append(...children);
  return element;
}

// Text of the data set, which may run from right to left.
function either(element) {
  element.dir = "auto";
  return element;
}

async function unpack() {
  const packed = Uint8Array.from(atob(byId("data").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

const count = (n) => n.toLocaleString("en");
const share = (part, whole) => (whole ? `${((100 * part) / whole).toFixed(0)} %` : "");

const total = (values) => Object.values(values).reduce((a, b) => a + b, 0);
const minute = (when) => new Date(when).toISOString().slice(0, 16).replace("T", " ");

function clock(seconds) {
  if (seconds < 90) return `${seconds.toFixed(0)} s`;
  if (seconds < 5400) return `${(seconds / 60).toFixed(1)} min`;
  return `${(seconds / 3600).toFixed(2)} h`;
}

function facts(pairs) {
  const lines = pairs.map(([name, value]) => filled(make("div"), make("dt", name), make("dd", value)));
  return filled(make("dl", undefined, "facts"), ...lines);
}

// Whether the page is about a selection; else it has a comparison alone.
const hasSelection = (about) => about.summary.method !== null;

function showSummary(about) {
  const { rows, ...run } = about.summary;
  const made = ["created", minute(run.created)];
  if (!hasSelection(about)) {
    const methods = String(about.comparison.methods.length);
    byId("summary").append(facts([["methods compared", methods], ["pool", `${count(rows.pool)} rows`], ["rejected", count(total(about.rejected))], ["model", String(run.model)], made]));
    return;
  }
  const ofAdg = run.method === "adg";
  const pairs = [
    ["chosen", `${count(rows.selected)} of ${count(rows.scored)} rows`],
    ["pool", `${count(rows.pool)} rows`],
    ["rejected", count(total(rows.rejected))],
    ofAdg ? ["bins", count(rows.bins)] : ["method", run.method],
    ["model", String(run.model)],
    ...(run.answer_tokens ? [["answers", `${count(run.answer_tokens)} tokens`]] : []),
    made,
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
  const list = filled(make("ul"), ...about.warnings.map((warning) => make("li", warning)));
  byId("warnings").append(make("h2", "Warnings"), list);
}

function simpleTable(head, rows) {
  const top = filled(make("tr"), ...head.map((name) => make("th", name)));
  const lines = rows.map((row) => filled(make("tr"), ...row.map((cell) => either(make("td", String(cell), "text")))));
  const table = filled(make("table"), filled(make("thead"), top), filled(make("tbody"), ...lines));
  return filled(make("div", undefined, "scroll"), table);
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
  for (const figure of data.figures) {
    const box = make("div", undefined, figure.wide ? "figure wide" : "figure");
    box.id = `figure-${figure.name.replaceAll(" ", "-")}`;
    const place = make("div", undefined, "plot");
    box.append(make(figure.section ? "h3" : "h2", figure.title), make("p", figure.note, "note"), place);
    if (figure.name === "plane") {
      const rows = data.about.quadrants.map((q) => [q.dispersion, q.anisotropy, count(q.rows), count(q.chosen), share(q.chosen, q.rows)]);
      box.append(simpleTable(["dispersion", "anisotropy", "rows", "chosen", "share"], rows));
    }
    byId(figure.section ? `${figure.section}-figures` : "figures").append(box);
    figures.push({ spec: figure.spec, place, name: figure.name });
  }
}

function showContents() {
  const link = (id, text) => {
    const a = make("a", text);
    a.href = `#${id}`;
    byId("contents").append(a);
  };
  for (const box of byId("figures").children) link(box.id, box.querySelector("h2").textContent);
  for (const section of document.querySelectorAll("#figures ~ section")) {
    if (section.childNodes.length) link(section.id, section.querySelector("h2").textContent);
  }
}

// -- the rest --------------------------------------------------------------------------------------------------------

function showRejected(data) {
  const reasons = Object.entries(data.about.rejected).filter(([, n]) => n);
  if (!reasons.length) return;
  const section = filled(byId("rejected"), make("h2", "Rejected rows"));
  for (const [reason, rows] of reasons) {
    const examples = data.rejected.filter((row) => row.reason === reason);
    const all = hasSelection(data.about) ? "; all are in rejected.jsonl" : "";
    const more = rows > examples.length ? `, ${examples.length} of them here${all}` : "";
    const table = simpleTable(["id", "where", "why"], examples.map((row) => [row.id, row.where, row.detail]));
    section.append(filled(make("details"), make("summary", `${reason}: ${count(rows)} rows${more}`), table));
  }
}

function showSettings(about) {
  const { settings, recipe, versions } = about.summary;
  const pairs = (values) => Object.entries(values).map(([key, v]) => [key, typeof v === "string" ? v : JSON.stringify(v)]);
  const more = simpleTable(["", ""], [...pairs(recipe), ...pairs(versions)]);
  byId("settings").append(
    make("h2", "Settings"),
    simpleTable(["setting, where not the default", "value"], pairs(settings)),
    filled(make("details"), make("summary", "what the answers depend on, and versions"), more),
  );
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
}
