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
      either(td).textContent = cell(name, row);
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
  return [make("h3", title), either(make("p", text, "said"))];
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
  td.append(...said("instruction", about ? about.instruction : table.instruction[row]));
  if (about?.reference) td.append(...said("the reference response", about.reference));
  if (about?.answers) td.append(...drawnAnswers(about));
  return filled(tr, td);
}

function drawnAnswers(about) {
  const boxes = about.answers.map(([text, tokens, cut], number) =>
    filled(make("div"), ...said(`answer ${number + 1} · ${tokens} tokens${cut ? ", cut" : ""}`, text)));
  const heads = about.similarity.map((_, n) => make("th", String(n + 1)));
  const lines = about.similarity.map((line, n) =>
    filled(make("tr"), make("th", String(n + 1)), ...line.map((cosine) => make("td", cosine.toFixed(3)))));
  const similarity = filled(make("table", undefined, "similarity"), filled(make("tr"), make("th"), ...heads), ...lines);
  const answers = filled(make("div", undefined, "answers"), ...boxes);
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
