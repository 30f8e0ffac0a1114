// -- what lies beside the selection: other methods, evaluations ------------------------------------------------------

// A table of numbers, its first column a name. On a narrow screen each row becomes a box that names its numbers.
function numbersTable(head, rows) {
  const scroll = simpleTable(head, rows.map((row) => head.map((_, n) => row[n] ?? "")));
  scroll.firstChild.className = "numbers";
  for (const tr of scroll.querySelectorAll("tbody tr")) {
    for (const [n, td] of [...tr.cells].entries()) {
      td.className = "";
      td.dataset.head = head[n];
    }
  }
  return scroll;
}

// Lines of which each begins with a name.
function notes(lines) {
  const items = lines.map(([name, text]) => either(make("li", `${name}: ${text}`)));
  return lines.length ? [filled(make("ul", undefined, "note"), ...items)] : [];
}

const NOTHING = "–";
const known = (value, digits = 0) => (value === null || value === undefined ? NOTHING : value.toFixed(digits));

function showComparison(found) {
  if (!found) return;
  const place = make("div");
  place.id = "comparison-figures";
  const { all, none } = found.chosen_by;
  byId("comparison").append(
    make("h2", found.selection ? "Other methods on this pool" : "Methods on this pool"),
    ...aboutComparison(found).map((text) => make("p", text, "note")),
    place,
    make("h3", "The choices"),
    methodsTable(found),
    make("p", MEASURES + (someWithoutABin(found) ? IN_NO_BIN : ""), "note"),
    ...notes(found.methods.flatMap((one) => [...(one.error === null ? [] : [[`${one.name} failed`, one.error]]), ...one.warnings.map((text) => [one.name, text])])),
    ...found.coverage.flatMap((kind) => [make("h3", `Rows by ${kind.kind}`), coverageTable(kind, found)]),
    make("p", `Rows that all methods chose: ${count(all)}; that none chose: ${count(none)}.`, "chosen-by"),
  );
}

// When, with what budget, and what it has to do with the selection that the rest of the page is about.
function aboutComparison({ created, budget, rows, selection }) {
  const told = [`Compared on ${minute(created)}: each method was to choose ${count(budget)} of ${count(rows.candidates)} rows.`];
  if (!selection) return told;
  const of = (value) => (value === null ? "none" : typeof value === "string" ? value : JSON.stringify(value));
  const differing = Object.entries(selection.differing).map(([key, now]) => `${key} ${of(now.compared)} (there ${of(now.selection)})`);
  if (differing.length) told.push(`Not under the settings of the selection on this page: ${differing.join(", ")}. A method of the same name may have chosen other rows.`);
  if (selection.is_earlier) told.push("It is older than the selection on this page: run adg compare again for one that is not.");
  return told;
}

const someWithoutABin = ({ bins }) => Boolean(bins && bins.without_a_bin.some((n) => n));
const IN_NO_BIN = " No bin: rows of the choice without answers, which are in no bin.";

const MEASURES =
  "Fullest bin: its share of the choice. Prompt: median tokens. Own answer: median words. Alone: rows that no other method chose. " +
  "Model: what its work took before, for all methods that use the same results, earlier runs included (+: some left no record, " +
  `?: none did, ${NOTHING}: there is none). Choosing: what came after that.`;

function methodsTable(found) {
  const { bins, names, lengths, alone } = found;
  const lost = someWithoutABin(found);
  const reached = bins ? [`bins of ${count(bins.total)}`, "fullest bin", ...(lost ? ["no bin"] : [])] : [];
  const medians = (of) => [known(of.prompt_tokens.p50), known(of.reference_words.p50)];
  const lines = found.methods.map((one) => {
    const at = names.indexOf(one.name);
    if (one.error !== null) return [one.name, "failed"];
    return [
      one.name,
      count(one.chosen),
      count(one.scored),
      count(total(one.rejected)),
      ...(bins ? [count(bins.reached[at]), `${known(100 * bins.largest_share[at])} %`, ...(lost ? [count(bins.without_a_bin[at])] : [])] : []),
      ...medians(lengths[at]),
      count(alone[at]),
      `${known(one.seconds, 1)} s`,
      modelTime(one, found.costs),
    ];
  });
  lines.push(["the pool", "", count(found.rows.candidates), "", ...reached.map(() => ""), ...medians(found.lengths_of_pool)]);
  return numbersTable(["method", "chosen", "scored", "rejected", ...reached, "prompt", "reference", "alone", "choosing", "model"], lines);
}

function modelTime(one, costs) {
  if (!one.asked.length) return NOTHING;
  const found = one.asked.map((name) => (Object.hasOwn(costs, name) ? costs[name] : { rows: 0 }));
  if (!found.every((cost) => cost.rows)) return "?";
  const seconds = found.reduce((sum, cost) => sum + cost.seconds, 0);
  return `${known(seconds, 1)} s${found.every((cost) => cost.is_whole) ? "" : " +"}`;
}

const MOST_VALUES = 12; // the rest, which are less frequent in the pool, are counted together

function coverageTable({ kind, values }, { names, methods, rows }) {
  const sizes = names.map((name) => methods.find((one) => one.name === name).chosen);
  const part = (n, of) => `${count(n)} (${((100 * n) / Math.max(1, of)).toFixed(0)} %)`;
  const line = (name, { pool, chosen }) => [name, part(pool, rows.candidates), ...chosen.map((n, at) => part(n, sizes[at]))];
  const named = values.filter(({ value }) => value !== null);
  const rest = named.slice(MOST_VALUES);
  const together = {
    pool: rest.reduce((sum, { pool }) => sum + pool, 0),
    chosen: names.map((_, at) => rest.reduce((sum, { chosen }) => sum + chosen[at], 0)),
  };
  return numbersTable([kind, "pool", ...names], [
    ...named.slice(0, MOST_VALUES).map((one) => line(one.value, one)),
    ...(rest.length ? [line(rest.length === 1 ? "1 other" : `${count(rest.length)} others`, together)] : []),
    ...values.filter(({ value }) => value === null).map((one) => line("no value", one)),
  ]);
}

function showEvaluations(found) {
  if (!found.length) return;
  const lines = found.flatMap(({ name, tasks }) => tasks.map((task) => [
    name,
    task.task,
    task.shots === null ? NOTHING : String(task.shots),
    task.metric,
    known(task.value, 4),
    known(task.stderr, 4),
    task.limited ? `${count(task.rows)} of ${count(task.rows_in_task)}, limited` : `${count(task.rows)} of ${count(task.rows_in_task)}`,
  ]));
  const averages = found.flatMap(({ name, averages }) => averages.map((average) => [
    name,
    average.name,
    average.value === null ? `not given, ${average.missing.join(", ")} missing` : known(average.value, 4),
  ]));
  byId("evaluations").append(
    make("h2", "Evaluations"),
    numbersTable(["evaluation", "task", "shots", "metric", "value", "standard error", "questions"], lines),
    ...(averages.length ? [make("h3", "Averages of the paper's benchmarks"), numbersTable(["evaluation", "average", "value"], averages)] : []),
    ...notes(found.flatMap(aboutEvaluation)),
  );
}

function aboutEvaluation(found) {
  const { name, model, base, adapter } = found;
  const how = [
    found.file,
    ...(found.of_earlier_selection ? ["of an earlier selection than the one on this page"] : []),
    ...(found.when ? [found.when.slice(0, 16).replace("T", " ")] : []),
    `lm_eval ${found.harness ?? "of unknown version"}`,
    ...(model === name ? [] : [`model ${model}`]),
    ...(adapter && adapter !== model ? [`adapter ${adapter}`] : []),
    ...(base && base !== model ? [`base ${base}`] : []),
    ...(found.dtype ? [found.dtype] : []),
    ...(found.load_in_4bit ? ["4-bit"] : []),
    found.chat_template ? "chat template" : "plain text",
    ...(found.limit === null ? [] : [`limit ${found.limit}`]),
  ];
  const left = Object.entries(found.left_out).map(([task, reason]) => `${task} left out: ${reason}`);
  return [[name, how.join(", ")], ...[...left, ...found.notes].map((text) => [name, text])];
}
