// Last of the scripts: what it calls stands in the others.
async function start() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  setTheme(dark.matches ? "dark" : "light");
  const data = await unpack();
  showSummary(data.about);
  showWarnings(data.about);
  showRejected(data);
  showSettings(data.about);
  showComparison(data.about.comparison);
  showEvaluations(data.about.evaluations);
  placeFigures(data);
  if (!hasSelection(data.about)) byId("rows").remove();
  showContents();
  if (hasSelection(data.about)) prepareTable(data);
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
