"""What the report says of other methods and of evaluations: the numbers of their files, and nothing without these."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from browser import opened
from report_sections import BUDGET, HEAD, INJECTION, METHODS, NOTHING, ROWS, cells, comparison_of, copied, evaluation

from adg_plugin.report.compared import overlaps
from adg_plugin.report.gather import gather
from adg_plugin.report.page import page, write_figures, write_page
from adg_plugin.tools.evaluation.results import write_results

pytestmark = pytest.mark.tiny


def test_the_table_of_methods_has_the_numbers_of_the_comparison(chromium, report, full):
    found = comparison_of(full)
    bins, lengths = found["bins"], found["lengths"]
    with opened(chromium, report) as shown:
        assert tuple(shown.locator("#comparison .numbers").first.locator("th").all_text_contents()) == HEAD
        *lines, pool = cells(shown, "#comparison .numbers >> nth=0 >>")
        assert "14%" in shown.text_content("#comparison-figures .note")
        told = shown.locator("#comparison > .note").all_text_contents()
        when = found["created"][:16].replace("T", " ")
        assert told[0] == f"Compared on {when}: each method was to choose {BUDGET} of {ROWS} rows."
        assert told[1].startswith("Fullest bin: ")
        footer = (
            f"Rows that all methods chose: {found['chosen_by']['all']}; that none chose: {found['chosen_by']['none']}."
        )
        assert shown.text_content("#comparison .chosen-by") == footer
        assert shown.locator("#comparison-figures canvas").count() == 1
        links = shown.locator("#contents a").all_text_contents()
        assert links[-4:] == ["Other methods on this pool", "Evaluations", "Rows", "Settings"]
        coverage = cells(shown, "#comparison .numbers >> nth=1 >>"), cells(shown, "#comparison .numbers >> nth=2 >>")
    for at, (one, line) in enumerate(zip(found["methods"], lines, strict=True)):
        model_time = f"{found['costs']['answers']['seconds']:.1f} s" if one["asked"] else NOTHING
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
            model_time,
        ]
    assert (lines[0][-1] != NOTHING, lines[2][2:4]) == (True, ["39", "1"])  # a row without a reference response
    assert pool[:3] == ["the pool", "", str(ROWS)]
    for kind, shown_lines in zip(found["coverage"], coverage, strict=True):
        assert shown_lines == [shares(name, values) for name, values in shown_values(kind["values"])]
    assert coverage[0][0][0] == "<i>first</i>"
    assert [line[0] for line in coverage[1][-2:]] == ["3 others", "no value"]
    assert coverage[1][-1][1] == f"3 ({rounded(100 * 3 / ROWS)} %)"
    for column in range(1, 5):  # nothing is left out
        assert sum(int(line[column].split()[0]) for line in coverage[1]) == (ROWS if column == 1 else BUDGET)


def shown_values(values):
    """Return what the page shows of the values of a kind: a name and those that are counted together."""
    named = [value for value in values if value["value"] is not None]
    yield from ((value["value"], [value]) for value in named[:12])
    if named[12:]:
        yield f"{len(named[12:])} others", named[12:]
    yield from (("no value", [value]) for value in values if value["value"] is None)


def shares(name, values):
    counts = [sum(value["pool"] for value in values)]
    counts += [sum(value["chosen"][at] for value in values) for at in range(len(METHODS))]
    sizes = (ROWS, BUDGET, BUDGET, BUDGET)
    return [name, *(f"{n} ({rounded(100 * n / of)} %)" for n, of in zip(counts, sizes, strict=True))]


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
        ["odd", "gsm8k", "8", metric, "0.1250", "0.0125", "4 of 1,319, limited"],
        ["odd", "mine", NOTHING, "acc,none", "0.5000", NOTHING, "2,000 of 2,000"],
        ["one", "gsm8k", "8", metric, "0.2500", "0.0125", "1,319 of 1,319"],
        ["one", "mine", NOTHING, "acc,none", "0.5000", NOTHING, "2,000 of 2,000"],
    ]
    assert means[4:6] == [
        ["one", "reasoning", "0.5000"],
        ["one", "knowledge", "not given, mmlu, truthfulqa_mc2 missing"],
    ]
    assert notes[0] == (
        "odd: eval/odd.json, of an earlier selection than the one on this page, 2026-01-02 03:04, lm_eval 0.4.11, "
        f"model {INJECTION}, base a/base, bfloat16, 4-bit, chat template, limit 4"
    )
    assert notes[3:] == [
        "one: eval/one.json, 2026-01-02 03:04, lm_eval 0.4.11, model runs/one/model, base a/base, bfloat16, plain text",
        "one: mbpp left out: it runs code",
        "one: a note",
    ]


def test_figures_that_do_not_compare_are_warned_of(full, tmp_path):
    told = [warning for warning in gather(full).about["warnings"] if "evaluations" in warning]
    assert told == [
        "evaluations odd, one: their figures of gsm8k, mine do not compare, they differ in chat template, limit"
    ]
    run = copied(full, tmp_path)
    (run / "eval" / "odd.json").unlink()
    other = evaluation("runs/two/model", value=0.5)
    write_results(run / "eval" / "two.json", replace(other, tasks=(replace(other.tasks[0], digest="e"),)))
    assert [warning for warning in gather(run).about["warnings"] if "evaluations" in warning] == [
        "evaluations one, two: their figures of gsm8k do not compare, they differ in questions, examples or metric"
    ]
    write_results(run / "eval" / "two.json", evaluation("runs/two/model", value=0.5))
    assert not [warning for warning in gather(run).about["warnings"] if "evaluations" in warning]


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
    by_name["adg"]["asked"], by_name["longest"]["asked"] = "answers", None  # as they were when there was one at most
    by_name["adg"]["warnings"] = ["3 of the chosen rows have no <i>answer</i>"]
    by_name["random"] |= {"asked": ["ifd"], "warnings": ["a warning"]}
    found["methods"].append({**by_name["random"], "name": "zip", "asked": ["answers", "gone"], "warnings": []})
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
    of_adg = "adg: 3 of the chosen rows have no <i>answer</i>"
    assert told == [of_adg, "random: a warning", "longest failed: no row has <b>an</b> answer"]


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


FIX = "delete it and run adg compare again"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pool_digest": "another"}, None),
        ({"jaccard": ...}, f"compare.json has no jaccard: {FIX}"),
        ({"created": ...}, f"compare.json has no created: {FIX}"),
        ({"rows": {"pool": 40}}, f"compare.json has no candidates: {FIX}"),
        ({"chosen_by": {}}, f"compare.json has no all: {FIX}"),
        ({"alone": [1, 2]}, f"compare.json is not as adg compare writes it (2 values for 3 methods): {FIX}"),
        ({"methods": 3}, f"compare.json is not as adg compare writes it ('int' object is not iterable): {FIX}"),
        (
            {"by_chance": {"jaccard": [[float("nan")] * 3] * 3}},
            f"compare.json is not as adg compare writes it (nan for a number): {FIX}",
        ),
        (
            {"names": ["adg", "random"]},
            f"compare.json is not as adg compare writes it (names are not those of the methods that chose): {FIX}",
        ),
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


def test_the_page_says_how_the_comparison_stands_to_its_selection(chromium, full, tmp_path):
    run = copied(full, tmp_path)
    found = comparison_of(run)
    found |= {"created": "2023-01-02T03:04:05+00:00", "budget": 8}
    found["config"] |= {"budget": 8, "score": "residual", "bins": None, "device": "elsewhere", "method": "zip"}
    found["bins"]["without_a_bin"] = [0, 2, 0]
    (run / "compare.json").write_text(json.dumps(found))
    gathered = gather(run)
    assert gathered.about["comparison"]["selection"] == {
        "is_earlier": True,
        "differing": {
            "budget": {"compared": 8, "selection": 10},
            "score": {"compared": "residual", "selection": "raw"},
            "bins": {"compared": None, "selection": 4},
        },
    }
    write_page(gathered, tmp_path / "page.html")
    with opened(chromium, tmp_path / "page.html") as shown:
        told = shown.locator("#comparison > .note").all_text_contents()
        head = shown.locator("#comparison .numbers").first.locator("th").all_text_contents()
        lines = cells(shown, "#comparison .numbers >> nth=0 >>")
    assert told[:3] == [
        f"Compared on 2023-01-02 03:04: each method was to choose 8 of {ROWS} rows.",
        "Not under the settings of the selection on this page: budget 8 (there 10), score residual (there raw), bins "
        "none (there 4). A method of the same name may have chosen other rows.",
        "It is older than the selection on this page: run adg compare again for one that is not.",
    ]
    assert told[3].endswith("No bin: rows of the choice without answers, which are in no bin.")
    assert head[6] == "no bin"
    assert [line[6] for line in lines] == ["0", "2", "0", ""]


def test_the_json_has_all_but_the_ids(full):
    about = gather(full).about["comparison"]
    stored = comparison_of(full)
    for one in stored["methods"]:
        one["chosen"] = len(one.pop("ids"))
    assert about == {**stored, "selection": {"is_earlier": False, "differing": {}}}


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
