"""What the report says of other methods and of evaluations: the numbers of their files, and nothing without these."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from browser import browser, opened
from tiny_runs import SETTINGS, pool_rows, save, write_jsonl

from adg_plugin import select
from adg_plugin.compare import compare
from adg_plugin.config import ADGConfig
from adg_plugin.evaluation.protocol import averages
from adg_plugin.evaluation.results import Evaluation, TaskResult, write_results
from adg_plugin.report.beside import overlaps
from adg_plugin.report.gather import gather
from adg_plugin.report.page import page, write_figures, write_page
from adg_plugin.store import RunFolder

pytestmark = pytest.mark.tiny

INJECTION = "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned = 2'>" + "unbreakable" * 15
ROWS, BUDGET = 40, 10
METHODS = ("adg", "random", "longest")
HEAD = (
    "method", "chosen", "scored", "rejected", "bins of 4", "fullest bin", "prompt", "own answer", "alone", "choosing",
    "asking",
)  # fmt: skip
NOTHING = "–"


def evaluation(name, *, value=0.25, limit=None, versions=None):
    asked = 1319 if limit is None else limit
    tasks = (
        TaskResult("gsm8k", 8, "exact_match,strict-match", value, 0.0125, asked, 1319, 9.0, {}, {}, (1.0, 0.0)),
        TaskResult("mine", None, "acc,none", 0.5, None, 2000, 2000, 1.0, {"acc,none": 0.5}),
    )
    return Evaluation(
        model={"name": name, "base": "a/base", "adapter": name, "dtype": "bfloat16"},
        tasks=tasks,
        averages=averages({"gsm8k": value, "bbh": 0.75}),
        left_out={"mbpp": "it runs code"},
        notes=("a note",),
        settings={"limit": limit},
        versions={"lm_eval": "0.4.11"} if versions is None else versions,
        seconds=10.0,
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run folder with nothing beside its selection."""
    folder = tmp_path_factory.mktemp("sections")
    kinds = [f"kind {n}" for n in range(15)]
    pool = [
        {**row, "output": "a b " * n, "category": kinds[n % 15], "source": "<i>first</i>" if n % 4 else "x"}
        for n, row in enumerate(pool_rows(ROWS))
    ]
    model, files = save(folder / "model"), [str(write_jsonl(folder / "pool.jsonl", pool))]
    config = {**SETTINGS, "model": str(model), "datasets": files, "bins": 4, "budget": BUDGET}
    return select(config=config, output_dir=folder / "run", show_progress=False).run_dir


@pytest.fixture(scope="module")
def full(alone, tmp_path_factory):
    """The same with a comparison and two evaluations."""
    run = tmp_path_factory.mktemp("beside") / "run"
    shutil.copytree(alone, run)
    compare(ADGConfig.parse(RunFolder.read(run).manifest()["config"]), METHODS, run, show_progress=False)
    write_results(run / "eval" / "one.json", evaluation("runs/one/model"))
    write_results(run / "eval" / "odd.json", evaluation(INJECTION, value=0.125, limit=4))
    for path in (run / "eval").iterdir():
        os.utime(path, (1_700_000_000, 1_700_000_000))
    return run


def comparison_of(run):
    return json.loads((run / "compare.json").read_text())


@pytest.fixture(scope="module")
def chromium():
    with browser() as launched:
        yield launched


@pytest.fixture(scope="module")
def report(full):
    write_page(gather(full), full / "report.html")
    return full / "report.html"


def cells(shown, table):
    """Return the texts of the rows of a table."""
    rows = shown.locator(f"{table} tbody tr").all()
    return [[cell.text_content() for cell in row.locator("td").all()] for row in rows]


def test_the_table_of_methods_has_the_numbers_of_the_comparison(chromium, report, full):
    found = comparison_of(full)
    bins, lengths = found["bins"], found["lengths"]
    with opened(chromium, report) as shown:
        assert tuple(shown.locator("#comparison .numbers").first.locator("th").all_text_contents()) == HEAD
        *lines, pool = cells(shown, "#comparison .numbers >> nth=0 >>")
        assert "14%" in shown.text_content("#comparison-figures .note")
        footer = (
            f"Rows that all methods chose: {found['chosen_by']['all']}; that none chose: {found['chosen_by']['none']}."
        )
        assert shown.text_content("#comparison .chosen-by") == footer
        assert shown.locator("#comparison-figures canvas").count() == 1
        links = shown.locator("#contents a").all_text_contents()
        assert links[-4:] == ["Other methods on this pool", "Evaluations", "Rows", "Settings"]
        coverage = cells(shown, "#comparison .numbers >> nth=1 >>"), cells(shown, "#comparison .numbers >> nth=2 >>")
    for at, (one, line) in enumerate(zip(found["methods"], lines, strict=True)):
        asking = f"{found['costs']['answers']['seconds']:.1f} s" if one["asked"] else NOTHING
        assert line == [
            METHODS[at],
            str(BUDGET),
            str(one["scored"]),
            str(sum(one["rejected"].values())),
            str(bins["reached"][at]),
            f"{100 * bins['largest_share'][at]:.0f} %",
            rounded(lengths[at]["prompt_tokens"]["p50"]),
            rounded(lengths[at]["reference_words"]["p50"]),
            str(found["alone"][at]),
            f"{one['seconds']:.1f} s",
            asking,
        ]
    assert (lines[0][-1] != NOTHING, lines[2][2:4]) == (True, ["39", "1"])  # a row without an own answer
    assert pool[:3] == ["the pool", "", str(ROWS)]
    for kind, shown_lines in zip(found["coverage"], coverage, strict=True):
        assert [line[0] for line in shown_lines] == [value["value"] for value in kind["values"]]
        for line, value in zip(shown_lines, kind["values"], strict=True):
            counts = [value["pool"], *value["chosen"]]
            assert line[1:] == [
                f"{n} ({rounded(100 * n / of)} %)" for n, of in zip(counts, (ROWS, 10, 10, 10), strict=True)
            ]
    assert coverage[0][0][0] == "<i>first</i>"
    assert len(coverage[1]) == 13
    assert coverage[1][-1][0] == "3 others"


def rounded(value):
    """Return a number as JavaScript's toFixed(0) does, which rounds a half up."""
    return str(int(value + 0.5))


def test_evaluations_have_the_numbers_of_their_files(chromium, report):
    with opened(chromium, report) as shown:
        tasks = cells(shown, "#evaluations .numbers >> nth=0 >>")
        means = cells(shown, "#evaluations .numbers >> nth=1 >>")
        notes = shown.locator("#evaluations li").all_text_contents()
        assert shown.evaluate("window.pwned === undefined")
        assert shown.locator("main img, main i").count() == 0
    metric = "exact_match,strict-match"
    assert tasks == [
        [INJECTION, "gsm8k", "8", metric, "0.1250", "0.0125", "4 of 1,319, limited"],
        [INJECTION, "mine", NOTHING, "acc,none", "0.5000", NOTHING, "2,000 of 2,000"],
        ["runs/one/model", "gsm8k", "8", metric, "0.2500", "0.0125", "1,319 of 1,319"],
        ["runs/one/model", "mine", NOTHING, "acc,none", "0.5000", NOTHING, "2,000 of 2,000"],
    ]
    assert means[4:6] == [
        ["runs/one/model", "reasoning", "0.5000"],
        ["runs/one/model", "knowledge", "not measured, mmlu, truthfulqa_mc2 not run"],
    ]
    assert notes[3:] == [
        "runs/one/model: eval/one.json, 2023-11-14 22:13, lm_eval 0.4.11, base a/base, bfloat16",
        "runs/one/model: mbpp left out: it runs code",
        "runs/one/model: a note",
    ]


@pytest.mark.parametrize("dark", [False, True])
def test_the_sections_fit_a_phone(chromium, report, dark):
    with opened(chromium, report, width=390, height=844, dark=dark) as shown:
        assert shown.evaluate("document.documentElement.scrollWidth") <= 390
        boxes = "[...document.querySelectorAll('#comparison .scroll, #evaluations .scroll')]"
        assert max(shown.evaluate(f"{boxes}.map((e) => e.scrollWidth - e.clientWidth)")) <= 1
        name = shown.locator("#comparison .numbers td").nth(1)
        label = name.evaluate("(e) => getComputedStyle(e, '::before').content")
        assert label == '"chosen"'  # there is no head above a box


def test_a_run_without_either_has_neither(chromium, alone, tmp_path):
    found = gather(alone)
    assert (found.about["comparison"], found.about["evaluations"]) == (None, [])
    assert "overlap of methods" not in [figure.name for figure in found.figures]
    write_page(found, tmp_path / "page.html")
    with opened(chromium, tmp_path / "page.html") as shown:
        for section in ("#comparison", "#evaluations"):
            assert shown.locator(section).inner_html() == ""
            assert not shown.locator(section).is_visible()
        links = shown.locator("#contents a").all_text_contents()
        assert not {"Other methods on this pool", "Evaluations"} & set(links)
        assert links[-1] == "Settings"


def test_failed_methods_lost_costs_and_no_bins_are_told(chromium, full, tmp_path):
    run = copied(full, tmp_path)
    found = comparison_of(run)
    by_name = {one["name"]: one for one in found["methods"]}
    by_name["longest"] |= {"error": "no row has <b>an</b> answer", "ids": [], "scored": 0}
    by_name["random"] |= {"asked": "ifd", "warnings": ["a warning"]}
    found["methods"].append({**by_name["random"], "name": "zip", "asked": "gone", "warnings": []})
    found["costs"] = {
        "answers": {"rows": 30, "seconds": 2.25, "is_whole": False},
        "ifd": {"rows": 0, "seconds": 0.0, "is_whole": False},
    }
    found["names"] = ["adg", "random", "zip"]
    found["bins"] = None
    (run / "compare.json").write_text(json.dumps(found))
    write_page(gather(run), tmp_path / "page.html")
    with opened(chromium, tmp_path / "page.html") as shown:
        adg, random, longest, zipped, _ = cells(shown, "#comparison .numbers >> nth=0 >>")
        told = shown.locator("#comparison li").all_text_contents()
    assert [line[-1] for line in (adg, random, zipped)] == ["2.3 s +", "?", "?"]
    assert longest == ["longest", "failed", *[""] * 7]
    assert told == ["random: a warning", "longest failed: no row has <b>an</b> answer"]


def copied(run, folder):
    return shutil.copytree(run, folder / "run")


def test_files_that_cannot_be_used_are_warned_of(full, tmp_path):
    run = copied(full, tmp_path)
    folder = run / "eval"
    (folder / "broken.json").write_text("{")
    (folder / "list.json").write_text("[]")
    (folder / "other.json").write_text('{"model": {"name": "x"}, "settings": {}}')
    (folder / "words.txt").write_text("not looked at")
    about = json.loads((folder / "one.json").read_text())
    about["tasks"][0]["value"] = float("nan")  # which no browser's JSON knows
    (folder / "one.json").write_text(json.dumps(about))
    (run / "compare.json").write_text("{")
    found = gather(run)
    fix = "run adg eval again, or delete it"
    told = [warning for warning in found.about["warnings"] if str(run) in warning]
    assert told == [
        f"{run}/compare.json is not JSON (Expecting property name enclosed in double quotes: line 1 column 2 "
        "(char 1)): delete it and run adg compare again",
        f"{folder}/broken.json is not JSON (Expecting property name enclosed in double quotes: line 1 column 2 "
        f"(char 1)): {fix}",
        f"{folder}/list.json holds a JSON list, not an object: {fix}",
        f"{folder}/other.json holds no results of adg eval: {fix}",
    ]
    assert found.about["comparison"] is None
    assert [one["file"] for one in found.about["evaluations"]] == ["eval/odd.json", "eval/one.json"]
    assert found.about["evaluations"][1]["tasks"][0]["value"] is None
    assert "NaN" not in json.dumps(found.about["evaluations"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pool_digest": "another"}, None),
        ({"jaccard": ...}, "compare.json has no jaccard: delete it and run adg compare again"),
    ],
)
def test_a_comparison_of_another_pool_is_not_shown_and_a_lacking_one_is_named(full, tmp_path, change, said):
    run = copied(full, tmp_path)
    found = {**comparison_of(run), **change}
    (run / "compare.json").write_text(json.dumps({key: value for key, value in found.items() if value is not ...}))
    about = gather(run).about
    assert about["comparison"] is None
    assert [warning for warning in about["warnings"] if "compare.json" in warning] == (
        [f"{run}/{said}"] if said else []
    )


def test_the_json_has_all_but_the_ids(full):
    about = gather(full).about["comparison"]
    stored = comparison_of(full)
    for one in stored["methods"]:
        one["chosen"] = len(one.pop("ids"))
    assert about == stored


def test_the_heat_map_has_each_overlap_and_comes_as_a_file(full, tmp_path):
    found = gather(full)
    figure = found.figures[-1]
    stored = comparison_of(full)
    assert figure == overlaps(stored)
    cells = {(cell["method"], cell["other"]): cell for cell in figure.spec["data"]["values"]}
    choices = {one["name"]: set(one["ids"]) for one in stored["methods"]}
    for one, ids in choices.items():
        for other, others in choices.items():
            share = len(ids & others) / len(ids | others)
            assert cells[one, other]["jaccard"] == pytest.approx(share, abs=1e-5)
            assert cells[one, other]["percent"] == f"{100 * share:.0f}"
    assert tmp_path / "overlap_of_methods.svg" in write_figures(found, tmp_path)
    drawn = (tmp_path / "overlap_of_methods.svg").read_text()
    assert all(name in drawn for name in METHODS)


def test_the_same_files_give_the_same_page(full):
    assert page(gather(full)) == page(gather(full))
