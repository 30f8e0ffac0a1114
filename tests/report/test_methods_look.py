"""What is shown of a choice by another method than ADG: what the run folder holds, and nothing about drawn answers."""

from __future__ import annotations

import io
import json
import random
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from browser import browser, opened
from rich.console import Console
from tiny_runs import choose, pool_rows

from adg_plugin.cli import main
from adg_plugin.config.schema import ADGConfig
from adg_plugin.errors import ConfigError, DataError
from adg_plugin.report.explain import explain, print_explanation
from adg_plugin.report.gather import gather
from adg_plugin.report.page import page, write_figures
from adg_plugin.report.rows import answered_rows
from adg_plugin.report.summary import print_summary
from adg_plugin.scoring.stability import stability
from adg_plugin.selectors.columns import plain
from adg_plugin.store import RunFolder
from adg_plugin.tools.estimate.measure import measure
from adg_plugin.tools.stability import resample_rows

pytestmark = pytest.mark.tiny

BUDGET = 10  # of tiny_runs
METHODS = ("random", "longest", "zip", "mig", "ifd", "superfiltering")
SCORED = ("random", "longest", "ifd", "superfiltering")  # the others go step by step
OF_ALL = ["id", "chosen", "score", "rank"]
PARTS = {
    "random": [],
    "longest": ["reference_tokens"],
    "zip": ["set_compression_ratio"],
    "mig": ["information_gain", "quality"],
    "ifd": ["answer_nll", "answer_nll_alone", "reference_tokens"],
    "superfiltering": ["answer_nll", "answer_nll_alone", "reference_tokens"],
}
WORDS = ["sea", "wind", "stone", "light", "river", "bread", "seven", "green", "follow", "under"]
POOL = 130  # so that ZIP needs more than a step for 105


def rows():
    draw = random.Random(3)
    found = [
        {
            **row,
            "output": " ".join(draw.choices(WORDS, k=draw.randint(1, 12))),
            "category": f"kind {n % 3}",
            "labels": draw.sample(WORDS, 2),
            "quality": 1 + n % 4,
        }
        for n, row in enumerate(pool_rows(POOL))
    ]
    return [*found, {"id": "empty", "instruction": ""}]


@pytest.fixture(scope="module")
def run_of(model, tmp_path_factory):
    """A function that returns the run of a method, chosen once."""
    done = {}

    def of(method, **settings):
        key = (method, *sorted(settings.items()))
        if key not in done:
            folder = tmp_path_factory.mktemp(method) / "run"
            done[key] = choose(rows(), model, folder, method=method, small_model=str(model), **settings)
        return done[key]

    return of


@pytest.fixture(scope="module")
def chromium():
    with browser() as launched:
        yield launched


def table(selection):
    return {row["id"]: row for row in RunFolder.read(selection.run_dir).scores().to_pylist()}


def told(about, width=200):
    out = io.StringIO()
    print_explanation(about, Console(file=out, width=width))
    return out.getvalue()


def summary(selection, width=200, **more):
    out = io.StringIO()
    print_summary(selection.run_dir, Console(file=out, width=width), **more)
    return out.getvalue()


def texts(of, selector):
    return of.locator(selector).all_inner_texts()


# -- the terminal ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_summary_counts_names_the_method_and_shows_both_ends(run_of, method):
    chosen = run_of(method)
    scored = table(chosen)
    head, *lines = summary(chosen, examples=3).splitlines()
    rejected = POOL + 1 - len(scored)
    assert re.match(rf"10 of {len(scored)} scored rows chosen by {method}; pool 131, rejected {rejected} \(", head)
    assert not re.search(r"nan|None|bins|dispersion|corr", "\n".join(lines))
    parts = {line.split()[0]: line.split()[1:] for line in lines[1 : 2 + len(PARTS[method])]}
    values = np.array([row["score"] for row in scored.values() if row["score"] is not None])
    assert set(parts) == {*PARTS[method], "score"}
    shown_points = [float(text) for text in parts["score"]]
    np.testing.assert_allclose(shown_points, np.percentile(values, (5, 50, 95)), atol=1e-4)
    yes, no = ([line.split() for line in lines if line.startswith(word)] for word in ("yes ", "no "))
    assert [int(line[1]) for line in yes] == [1, 2, 3]
    if method in SCORED:
        assert [int(line[1]) for line in no] == [len(scored) - 2, len(scored) - 1, len(scored)]
    else:  # nothing stands there but what is known of the row
        assert len(no) == 3
        assert all(line[1].isalpha() or method == "mig" for line in no)


def test_a_budget_that_takes_all_has_one_end(run_of):
    everything = run_of("longest", budget=500)
    assert "no " not in {line[:3] for line in summary(everything).splitlines()}
    for id in ("row-1", "row-2"):
        assert explain(str(everything.run_dir), id).changes[0] == "every row that could be chosen was"


@pytest.mark.parametrize("width", [40, 80])
@pytest.mark.parametrize("method", ["ifd", "mig"])
def test_it_fits_the_terminal(run_of, method, width):
    selection = run_of(method)
    both = [summary(selection, width), told(explain(str(selection.run_dir), selection.ids[0]), width)]
    assert max(len(line) for text in both for line in text.splitlines()) <= width


# -- why one row -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_numbers_are_those_of_the_selection(run_of, method):
    selection = run_of(method)
    scored = table(selection)
    asked = {row["id"]: row for row in rows()}
    for id, row in list(scored.items())[::7]:
        about = explain(str(selection.run_dir), id)
        assert (about.chooser.name, about.rank, about.rows, about.chosen, about.reason) == (
            method,
            row["rank"],
            len(scored),
            row["chosen"],
            row["reason"],
        )
        assert about.score == row["score"]
        assert about.parts == {name: plain(row[name]) for name in PARTS[method]}
        assert (about.instruction, about.reference) == (asked[id]["instruction"], asked[id]["output"])
        assert asked[id]["instruction"] in about.prompt
        text = told(about)
        assert f"{'chosen' if row['chosen'] else 'not chosen'}, {row['reason']}" in text
        assert "nan" not in text
        assert "answer 1" not in text


@pytest.mark.parametrize("method", ["longest", "ifd", "superfiltering"])
def test_the_score_that_it_names_is_the_cut(run_of, method):
    selection = run_of(method)
    scored = table(selection)
    falling = sorted((row["score"] for row in scored.values()), reverse=True)
    for id, row in scored.items():
        first = explain(str(selection.run_dir), id).changes[0]
        cut = falling[BUDGET] if row["chosen"] else falling[BUDGET - 1]
        named, away = re.fullmatch(
            rf"a score {'below' if row['chosen'] else 'above'} (\S+) \((\S+)\) would have "
            + ("left it out" if row["chosen"] else "chosen it"),
            first,
        ).groups()
        assert float(named) == pytest.approx(cut, abs=1e-4)
        assert float(away) == pytest.approx(cut - row["score"], abs=1e-4)
        assert ("." in named) == (method != "longest")


@pytest.mark.parametrize("method", METHODS)
def test_the_budget_that_it_names_decides(run_of, method):
    selection = run_of(method)
    scored = table(selection)
    by_place = {row["rank"]: id for id, row in scored.items() if row["rank"]}
    last, beyond = by_place[BUDGET], by_place.get(BUDGET + 4)
    assert f"a budget below {BUDGET} would have left it out" in explain(str(selection.run_dir), last).changes
    assert last not in run_of(method, budget=BUDGET - 1).ids
    assert "budget" not in " ".join(explain(str(selection.run_dir), selection.ids[0]).changes)
    if beyond is None:
        return
    assert f"a budget of {BUDGET + 4} would have reached it" in explain(str(selection.run_dir), beyond).changes
    assert beyond in run_of(method, budget=BUDGET + 4).ids
    assert beyond not in run_of(method, budget=BUDGET + 3).ids


@pytest.mark.parametrize("method", ["zip", "mig"])
def test_a_row_that_a_stepwise_method_never_came_to(run_of, method):
    selection = run_of(method)
    id = next(id for id, row in table(selection).items() if row["rank"] is None)
    assert explain(str(selection.run_dir), id).changes == (
        f"{method} chooses one row after another and looks at each only beside those before it: after 10 it had not "
        "come to this one; a larger budget adds rows and takes none away",
    )
    assert re.search(r"^rank +none", told(explain(str(selection.run_dir), id)), re.MULTILINE)
    assert run_of(method, budget=105).ids[:BUDGET] == selection.ids  # "takes none away"


def test_of_lots_another_seed_is_told(run_of):
    selection = run_of("random")
    left = next(id for id, row in table(selection).items() if not row["chosen"])
    of_left, of_chosen = (explain(str(selection.run_dir), id).changes for id in (left, selection.ids[0]))
    assert of_left[0] == "the rows are drawn uniformly at random: another seed may choose it"
    assert of_chosen == ("the rows are drawn uniformly at random: another seed may leave it out",)


def test_a_row_that_the_method_drops_says_why(run_of):
    selection = run_of("ifd")
    dropped = next(r for r in RunFolder.read(selection.run_dir).rejections() if r.id.startswith("row-"))
    said = f"row {dropped.id!r} of {dropped.where} was rejected: {dropped.reason} ({dropped.detail})"
    with pytest.raises(DataError, match=f"^{re.escape(said)}$"):
        explain(str(selection.run_dir), dropped.id)


# -- the report ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_report_holds_what_the_method_has_and_nothing_about_draws(run_of, method, capsys):
    selection = run_of(method)
    found = gather(selection.run_dir)
    columns = [name for name in found.table if name != "language"]  # needs a package
    assert columns == [*OF_ALL, *PARTS[method], "why", "instruction", "category"]
    names = [figure.name for figure in found.figures]
    own = {
        "random": [],
        "longest": ["scores"],
        "zip": ["set_compression_ratio"],
        "mig": ["information_gain", "quality"],
        "ifd": ["scores", "answer_nll", "answer_nll_alone"],
        "superfiltering": ["scores", "answer_nll", "answer_nll_alone"],
    }[method]
    if method == "zip":  # a step takes 100 rows, and all of a step have one number: nothing to draw
        own = []
    language = ["language"] if "language" in names else []
    assert names == [*own, "prompt_tokens", "reference_words", "category", *language]
    whole = json.dumps([found.about, found.table, found.texts, [f.spec for f in found.figures]], allow_nan=False)
    assert not re.search("dispersion|anisotropy|overlap", whole)
    about = found.about
    assert about["summary"]["method"] == method
    assert [about[name] for name in ("quadrants", "stability", "answers_cut_at_the_limit")] == [None] * 3
    assert about["summary"]["rows"]["bins"] is None
    assert not any("answers" in text for text in found.texts.values())
    assert len(found.texts) == about["summary"]["rows"]["scored"]
    assert f"<title>Selection by {method}: run</title>" in page(found)
    with pytest.raises(SystemExit) as ended:
        main(["report", str(selection.run_dir), "--json"])
    assert not ended.value.code
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(about))


def test_the_histogram_holds_every_row_and_its_cut_is_the_lowest_chosen_score(run_of):
    selection = run_of("longest")
    (figure,) = (f for f in gather(selection.run_dir).figures if f.name == "scores")
    bars = figure.spec["data"]["values"]
    assert sum(bar["rows"] for bar in bars if bar["row"] == "chosen") == BUDGET
    assert sum(bar["rows"] for bar in bars) == POOL
    cut = min(row["score"] for row in table(selection).values() if row["chosen"])
    assert figure.spec["layer"][1]["data"]["values"] == [{"at": cut}]
    assert figure.note.endswith(f"The cut is at {cut:.4g} (dashed), the lowest score that was chosen.")


def test_what_a_stepwise_method_gained_is_drawn_in_the_order_of_choice(run_of):
    selection = run_of("mig")
    scored = table(selection)
    (figure,) = (f for f in gather(selection.run_dir).figures if f.name == "information_gain")
    points = figure.spec["data"]["values"]
    assert [point["rank"] for point in points] == list(range(1, BUDGET + 1))
    gains = [scored[id]["information_gain"] for id in selection.ids]
    assert [point["value"] for point in points] == pytest.approx(gains, rel=1e-4)
    found = {figure.name: figure for figure in gather(run_of("zip", budget=105).run_dir).figures}
    assert len(found["set_compression_ratio"].spec["data"]["values"]) == 105  # two steps: now there is a line


def test_answers_of_an_earlier_choice_by_adg_stay_in_sight_but_count_for_nothing(model, tmp_path):
    choose(rows()[:40], model, tmp_path / "run", bins=4)
    selection = choose(rows()[:40], model, tmp_path / "run", method="longest")
    found = gather(selection.run_dir)
    assert all(len(text["answers"]) == 3 for text in found.texts.values())
    assert (found.about["quadrants"], found.about["answers_cut_at_the_limit"]) == (None, None)
    assert not any("max_new_tokens" in warning for warning in found.about["warnings"])
    for part in (selection.run_dir / "answers").glob("*.parquet"):
        part.unlink()
    assert not any("answers" in text for text in gather(selection.run_dir).texts.values())


def test_the_figures_come_as_files(run_of, tmp_path):
    found = gather(run_of("mig").run_dir)
    write_figures(replace(found, figures=found.figures[:2]), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}.{kind}" for name in ("information_gain", "quality") for kind in ("png", "svg")
    }
    assert all(b"<path" in path.read_bytes() for path in tmp_path.glob("*.svg"))


def test_of_a_large_pool_the_ends_and_the_cut_have_their_texts(run_of):
    scores = RunFolder.read(run_of("longest").run_dir).scores()
    every = np.arange(len(scores))
    answered = set(answered_rows(scores, every, every[:0], 18).tolist())
    rank = scores["rank"].to_numpy()
    shown_ranks = {int(rank[row]) for row in answered}
    assert {1, 2, 3, 10, 11, 128, 129, 130} < shown_ranks
    assert len(shown_ranks) == 9
    assert shown_ranks & {9, 12}  # as near to the cut, one of them


@pytest.mark.parametrize(("method", "head"), [("ifd", "answer nll"), ("mig", "information gain")])
def test_the_page_draws_itself_and_opens_rows_without_answers(chromium, run_of, tmp_path, method, head):
    selection = run_of(method)
    found = gather(selection.run_dir)
    path = tmp_path / f"{method}.html"
    path.write_text(page(found), encoding="utf-8")
    scored = table(selection)
    with opened(chromium, path) as shown_page:
        facts = dict(zip(texts(shown_page, ".facts dt"), texts(shown_page, ".facts dd"), strict=True))
        assert facts["method"] == method
        assert facts["chosen"] == f"10 of {len(scored)} rows"
        assert not {"bins", "answers", "expected overlap of another run"} & set(facts)
        assert shown_page.locator("#figures canvas").count() == len(found.figures)
        assert texts(shown_page, "#which option") == ["all rows", "chosen", "left"]
        assert texts(shown_page, "#table th")[:5] == ["id", "chosen", "score", "rank", head]
        assert texts(shown_page, "#table tbody td:nth-child(4)")[:BUDGET] == [str(n) for n in range(1, BUDGET + 1)]
        shown_page.click("th[data-column=rank] button")
        shown_page.click("th[data-column=rank] button")  # rising; those without a rank stay last
        assert texts(shown_page, "#table tbody td:nth-child(4)")[0] == "1"
        shown_page.fill("#search", selection.ids[0])
        shown_page.locator("td.id button").first.click()
        assert shown_page.locator(".detail .said").count() == 2  # instruction and the reference response
        assert shown_page.locator(".answers").count() == 0
        assert f"{head} " in texts(shown_page, ".detail .note")[0]
        assert texts(shown_page, ".detail .note")[0].endswith(": among the best")
        assert shown_page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_an_opened_row_leaves_a_narrow_table_readable(chromium, run_of, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(page(gather(run_of("mig").run_dir)), encoding="utf-8")
    with opened(chromium, path, width=390, height=844) as narrow:
        before = narrow.locator("#table th.instruction").bounding_box()["width"]
        narrow.locator("td.id button").first.click()
        assert narrow.locator("#table th.instruction").bounding_box()["width"] == before > 150
        narrow.set_viewport_size({"width": 1280, "height": 900})
        # On a wide one it spans them all again.
        columns = narrow.locator("#table th").count()
        narrow.wait_for_function(f"document.querySelector('.detail td').colSpan === {columns}")


# -- what only ADG has -----------------------------------------------------------------------------------------------


def test_what_is_about_draws_refuses_with_a_plain_sentence(run_of, model, tmp_path, capsys):
    folder = str(run_of("longest").run_dir)
    said = "method is 'longest': `adg stability` says how much of a choice is sampling noise; use method: adg"
    with pytest.raises(ConfigError, match=f"^{re.escape(said)}$"):
        stability(folder)
    with pytest.raises(SystemExit) as ended:
        main(["stability", folder])
    assert (ended.value.code, capsys.readouterr().err.splitlines()[-1]) == (2, f"error: {said}")
    said = "method is 'longest': fresh answers are drawn only where ADG has drawn some; use method: adg"
    with pytest.raises(ConfigError, match=f"^{re.escape(said)}$"):
        resample_rows(folder, 10, SimpleNamespace(ids=[]))
    said = "method is 'ifd': `adg estimate` times the drawing of answers, and only ADG draws them; use method: adg"
    config = ADGConfig.parse({"model": str(model), "datasets": ["pool.jsonl"], "method": "ifd"})
    with pytest.raises(ConfigError, match=f"^{re.escape(said)}$"):
        measure(config, tmp_path / "run", show_progress=False)
    assert not (tmp_path / "run").exists()
