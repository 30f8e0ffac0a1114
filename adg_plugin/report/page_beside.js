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
  const list = make("ul", undefined, "note");
  for (const [name, text] of lines) {
    const item = make("li", `${name}: ${text}`);
    item.dir = "auto";
    list.append(item);
  }
  return lines.length ? [list] : [];
}

const NOTHING = "–";
const known = (value, digits = 0) => (value === null || value === undefined ? NOTHING : value.toFixed(digits));
const total = (values) => Object.values(values).reduce((a, b) => a + b, 0);

function showComparison(found) {
  if (!found) return;
  const place = make("div");
  place.id = "comparison-figures";
  const { budget, rows } = found;
  const { all, none } = found.chosen_by;
  byId("comparison").append(
    make("h2", "Other methods on this pool"),
    make("p", `Each was to choose ${count(budget)} of ${count(rows.candidates)} rows.`, "note"),
    place,
    make("h3", "The choices"),
    methodsTable(found),
    make("p", MEASURES, "note"),
    ...notes(found.methods.flatMap((one) => [...(one.error === null ? [] : [[`${one.name} failed`, one.error]]), ...one.warnings.map((text) => [one.name, text])])),
    ...found.coverage.flatMap((kind) => [make("h3", `Rows by ${kind.kind}`), coverageTable(kind, found.names)]),
    make("p", `Rows that all methods chose: ${count(all)}; that none chose: ${count(none)}.`, "chosen-by"),
  );
}

const MEASURES =
  "Fullest bin: its share of the choice. Prompt: median tokens. Own answer: median words. Alone: rows that no other method chose. " +
  "Asking: what asking a model took before, for all methods that ask the same, earlier runs included (+: some left no record, " +
  `?: none did, ${NOTHING}: no model is asked). Choosing: what came after that.`;

function methodsTable(found) {
  const { bins, names, lengths, alone } = found;
  const reached = bins ? [`bins of ${count(bins.total)}`, "fullest bin"] : [];
  const medians = (of) => [known(of.prompt_tokens.p50), known(of.reference_words.p50)];
  const lines = found.methods.map((one) => {
    const at = names.indexOf(one.name);
    if (one.error !== null) return [one.name, "failed"];
    return [
      one.name,
      count(one.chosen),
      count(one.scored),
      count(total(one.rejected)),
      ...(bins ? [count(bins.reached[at]), `${known(100 * bins.largest_share[at])} %`] : []),
      ...medians(lengths[at]),
      count(alone[at]),
      `${known(one.seconds, 1)} s`,
      asking(one, found.costs),
    ];
  });
  lines.push(["the pool", "", count(found.rows.candidates), "", ...reached.map(() => ""), ...medians(found.lengths_of_pool)]);
  return numbersTable(["method", "chosen", "scored", "rejected", ...reached, "prompt", "own answer", "alone", "choosing", "asking"], lines);
}

function asking(one, costs) {
  if (one.asked === null) return NOTHING;
  const cost = Object.hasOwn(costs, one.asked) ? costs[one.asked] : { rows: 0 };
  return cost.rows ? `${known(cost.seconds, 1)} s${cost.is_whole ? "" : " +"}` : "?";
}

// The values come most frequent first; those beyond the most frequent are counted together, as `N others`.
function coverageTable({ kind, values }, names) {
  const sum = (of) => Math.max(1, values.map(of).reduce((a, b) => a + b, 0));
  const inPool = sum((line) => line.pool);
  const chosen = names.map((_, at) => sum((line) => line.chosen[at]));
  const part = (n, of) => `${count(n)} (${((100 * n) / of).toFixed(0)} %)`;
  const lines = values.map((line) => [line.value, part(line.pool, inPool), ...line.chosen.map((n, at) => part(n, chosen[at]))]);
  return numbersTable([kind, "pool", ...names], lines);
}

function showEvaluations(found) {
  if (!found.length) return;
  const lines = found.flatMap(({ model, tasks }) => tasks.map((task) => [
    model,
    task.task,
    task.shots === null ? NOTHING : String(task.shots),
    task.metric,
    known(task.value, 4),
    known(task.stderr, 4),
    task.limited ? `${count(task.rows)} of ${count(task.rows_in_task)}, limited` : `${count(task.rows)} of ${count(task.rows_in_task)}`,
  ]));
  const averages = found.flatMap(({ model, averages }) => averages.map(({ name, value, missing }) => [
    model,
    name,
    value === null ? `not measured, ${missing.join(", ")} not run` : known(value, 4),
  ]));
  byId("evaluations").append(
    make("h2", "Evaluations"),
    numbersTable(["model", "task", "shots", "metric", "value", "standard error", "questions"], lines),
    ...(averages.length ? [make("h3", "Averages of the paper's benchmarks"), numbersTable(["model", "average", "value"], averages)] : []),
    ...notes(found.flatMap(aboutEvaluation)),
  );
}

function aboutEvaluation(found) {
  const base = found.base && found.base !== found.model ? [`base ${found.base}`] : [];
  const how = [found.file, found.when.slice(0, 16).replace("T", " "), `lm_eval ${found.harness ?? "of unknown version"}`, ...base, ...(found.dtype ? [found.dtype] : [])];
  const left = Object.entries(found.left_out).map(([task, reason]) => `${task} left out: ${reason}`);
  return [[found.model, how.join(", ")], ...[...left, ...found.notes].map((text) => [found.model, text])];
}
