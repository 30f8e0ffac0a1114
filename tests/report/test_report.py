"""`adg report`: what the page shows is what the run folder holds, in a real browser without a network."""

from __future__ import annotations

import json
import re
import shutil
import string
from dataclasses import replace

import numpy as np
import pytest
from browser import opened
from tiny_runs import choose, pool_rows, save

from adg_plugin.cli import main
from adg_plugin.errors import StoreError
from adg_plugin.report import figures, page
from adg_plugin.report.facets import Facet
from adg_plugin.report.gather import gather
from adg_plugin.report.rows import answered_rows, listed_rows
from adg_plugin.store import RunFolder

pytestmark = pytest.mark.tiny

INJECTION = (
    "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned = 2'>\u2028&lt;b&gt; {{pwned}} "
    "$title عربي עברית 🌍👩‍👩‍👧 " + "unbreakable" * 15
)


def rows():
    kinds = [{**row, "category": f"kind {n % 3}", "source": "<i>first</i>"} for n, row in enumerate(pool_rows(60))]
    odd = {
        "id": "odd<script>",
        "instruction": INJECTION,
        "output": INJECTION,
        "category": INJECTION[:40],
        "source": "x",
    }
    return [*kinds, odd, {"id": "empty", "instruction": ""}, {"id": "empty too", "instruction": " "}]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return choose(rows(), save(folder / "model"), folder / "run", bins=4, budget=20, score="residual").run_dir


@pytest.fixture(scope="module")
def report(run):
    main_quietly("report", str(run))
    return run / "report.html"


def main_quietly(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert not ended.value.code


def scored(run):
    return {row["id"]: row for row in RunFolder.read(run).scores().to_pylist()}


def texts(page, selector):
    return page.locator(selector).all_inner_texts()


def test_every_figure_is_drawn_and_nothing_is_loaded_or_complained_of(chromium, report, run):
    names = [figure.name for figure in gather(run).figures]
    with opened(chromium, report) as page:
        assert page.locator("#figures canvas").count() == len(names) >= 8
        for name in names:
            # Something was painted: more than one colour among the canvas' pixels.
            colours = page.evaluate(
                """(id) => { const c = document.querySelector(`#${id} canvas`);
                   const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
                   return new Set(new Uint32Array(d.buffer)).size; }""",
                f"figure-{name.replace(' ', '-')}",
            )
            assert colours > 10, name


def test_the_numbers_are_those_of_the_run_folder(chromium, report, run):
    table = scored(run)
    with opened(chromium, report) as page:
        facts = dict(zip(texts(page, ".facts dt"), texts(page, ".facts dd"), strict=True))
        assert facts["chosen"] == f"20 of {len(table)} rows"
        assert facts["rejected"] == "2"
        assert texts(page, "#count") == [f"{len(table)} rows"]
        best = sorted(table.values(), key=lambda row: -row["score"])[:25]
        shown = [float(text) for text in texts(page, "#table tbody tr td:nth-child(3)")]
        assert shown == pytest.approx([row["score"] for row in best], abs=1e-4)


def test_rows_are_sorted_searched_filtered_and_paged(chromium, report, run):
    table = scored(run)
    with opened(chromium, report) as page:
        page.click("th[data-column=D] button")
        falling = sorted((row["dispersion"] for row in table.values()), reverse=True)
        shown = [float(text) for text in texts(page, "#table tbody tr td:nth-child(4)")]
        assert shown == pytest.approx(falling[:25], abs=1e-4)
        page.click("th[data-column=D] button")
        assert page.get_attribute("th[data-column=D]", "aria-sort") == "ascending"
        assert float(texts(page, "#table tbody tr td:nth-child(4)")[0]) == pytest.approx(falling[-1], abs=1e-4)
        page.click("#next")
        page.click("#next")
        assert texts(page, "#page") == [f"51 to {len(table)}"]
        assert page.is_disabled("#next")
        page.select_option("#which", "chosen")
        assert texts(page, "#count") == ["20 rows"]
        assert set(texts(page, "#table tbody tr td:nth-child(2)")) == {"yes"}
        page.select_option("#which", "all")
        page.fill("#search", "ROW-17")
        assert texts(page, "td.id") == ["row-17"]
        page.fill("#search", "no such row")
        assert texts(page, "#page") == ["no row"]


def test_a_row_opens_with_its_answers_side_by_side(chromium, report, run):
    (result,) = RunFolder.read(run).results(["row-17"])
    with opened(chromium, report) as page:
        page.fill("#search", "row-17")
        page.click("td.id button")
        shown = page.locator(".answers .said").all_text_contents()
        assert shown == [answer.text for answer in result.answers]
        cosines = [float(cell) for cell in page.locator(".similarity td").all_text_contents()]
        np.testing.assert_allclose(cosines, result.gram.ravel(), atol=6e-4)
        boxes = [page.locator(".answers > div").nth(n).bounding_box() for n in range(len(shown))]
        assert len({round(box["y"]) for box in boxes}) == 1  # side by side


def test_markup_in_a_row_is_text_wherever_it_stands(chromium, report):
    with opened(chromium, report) as page:
        page.fill("#search", "odd<script>")
        assert texts(page, "td.id") == ["odd<script>"]
        page.click("td.id button")
        assert page.locator(".detail .said").all_text_contents()[:2] == [INJECTION, INJECTION]
        assert page.evaluate("window.pwned === undefined")
        assert page.locator("main img, main i, main b").count() == 0


def test_a_click_on_a_point_opens_its_row(chromium, report, run):
    with opened(chromium, report) as page:
        canvas = page.locator("#figure-plane canvas")
        box = canvas.bounding_box()
        for x in range(60, int(box["width"]), 6):  # across the cloud, until a point is met
            for y in range(20, int(box["height"]) - 60, 12):
                page.mouse.click(box["x"] + x, box["y"] + y, delay=0)
                if page.locator(".detail").count():
                    opened_row = page.locator("td.id button[aria-expanded=true]").all_inner_texts()
                    assert opened_row[0] in scored(run)
                    assert texts(page, "#count") == [f"{len(scored(run))} rows"]  # it is found, not searched for
                    return
                if page.evaluate("scrollY"):
                    page.evaluate("scrollTo(0, 0)")
    pytest.fail("no point answered")


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_wider_than_the_screen(chromium, report, width, dark, tmp_path):
    with opened(chromium, report, width=width, height=844, dark=dark) as page:
        page.fill("#search", "odd")
        page.click("td.id button")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        if width < 500:  # nor does the table need to be pushed aside to be read
            assert page.evaluate("(e => e.scrollWidth - e.clientWidth)(document.querySelector('#rows .scroll'))") <= 1
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) is dark
        drawn = page.evaluate("document.documentElement.dataset.drawn")
        page.click("#theme")  # and back
        page.wait_for_function(f"document.documentElement.dataset.drawn === '{drawn}'")
        shot = page.screenshot(path=tmp_path / "page.png", full_page=True)
        assert len(shot) > 50_000


def test_the_page_of_a_large_run_stays_small_and_answers(chromium, run, tmp_path):
    many = 50_000
    rng = np.random.default_rng(0)
    letters = np.array(list(string.ascii_letters + "    "))

    def noise(length):  # compresses worse than any text
        return "".join(rng.choice(letters, length))

    instructions = [noise(160) for _ in range(many)]
    found = gather(run)
    small = found.table
    table = {
        **{name: (rng.random(many).round(5).tolist()) for name in ("score", "D", "I", "tokens")},
        **{name: rng.integers(0, 1000, many).tolist() for name in ("bin", "rank", "quota")},
        "id": [f"row-{n}" for n in range(many)],
        "chosen": rng.integers(0, 2, many).tolist(),
        "instruction": instructions,
        "why": {"kinds": ["a", "b"], "codes": rng.integers(0, 2, many).tolist()},
    }
    assert table.keys() <= small.keys()
    answer = [[noise(1200), 256, 1] for _ in range(5)]
    full = {"instruction": noise(2000), "reference": "", "where": "", "answers": answer, "similarity": [[1.0]]}
    held = {f"row-{n}": {**full, "instruction": instructions[n], "reference": noise(1200)} for n in range(2000)}
    page.write_page(replace(found, table=table, texts=held), tmp_path / "large.html")
    assert (tmp_path / "large.html").stat().st_size < 10_000_000
    with opened(chromium, tmp_path / "large.html") as shown:
        assert texts(shown, "#count") == ["50,000 rows"]
        assert shown.locator("#table tbody tr").count() == 25
        shown.fill("#search", "row-49999")
        assert texts(shown, "td.id") == ["row-49999"]


def test_a_large_pool_is_listed_in_part_with_all_it_chose_and_the_ends_and_the_cut_answered(run):
    table = RunFolder.read(run).scores()
    rng = np.random.default_rng(0)
    listed = listed_rows(table, 30, rng)
    chosen = table["chosen"].to_numpy()
    assert len(set(listed.tolist())) == 30
    assert chosen[listed].sum() == 15  # half of the list, where more were chosen
    assert listed_rows(table, len(table), rng).tolist() == list(range(len(table)))
    at_random = listed[:9]
    answered = answered_rows(table, listed, at_random, 18)
    assert len(answered) <= 18
    score, bins, rank, chosen = (table[name].to_numpy() for name in ("score", "bin", "rank_in_bin", "chosen"))
    assert {listed[score[listed].argmax()], listed[score[listed].argmin()], *at_random} <= set(answered.tolist())
    # Those beside the cut of their bin come first: a neighbour in rank got the opposite decision.
    fate = {(b, r): c for b, r, c in zip(bins, rank, chosen, strict=True)}
    at_the_cut = [
        row for row in listed if any(fate.get((bins[row], rank[row] + s), chosen[row]) != chosen[row] for s in (1, -1))
    ]
    assert len(set(at_the_cut) & set(answered.tolist())) >= min(3, len(at_the_cut))


@pytest.mark.parametrize("subset", ["middle", "bottom"])
def test_the_cut_is_told_only_where_there_is_one(run, tmp_path, subset):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    config = RunFolder.read(run).manifest()["config"]
    other = choose(rows(), config["model"], copy, bins=4, budget=20, score="residual", subset=subset)
    notes = {figure.name: figure.note for figure in gather(other.run_dir).figures}
    assert "cut" not in notes["scores"]
    assert "cut" in {figure.name: figure.note for figure in gather(run).figures}["scores"]


def test_a_page_of_another_choice_does_not_stay(run, report, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    assert (copy / "report.html").is_file()
    choose(rows(), RunFolder.read(run).manifest()["config"]["model"], copy, bins=4, budget=10)
    assert not (copy / "report.html").exists()


def test_languages_of_a_large_pool_are_of_samples_of_pool_and_choice():
    known = np.array(["en", "de", None, "en", "fr", None], dtype=object)
    facet = Facet(known, np.array([True, True, False, False, False, False]))
    assert facet.counted(np.array([False, False, False, True, True, True])) == [
        {"value": "de", "pool": 1, "chosen": 0},
        {"value": "en", "pool": 1, "chosen": 1},
        {"value": "fr", "pool": 0, "chosen": 1},
    ]
    assert "samples of both" in figures.composition("language", facet.counted(known == "en"), sampled=True).note


def test_the_json_adds_up(run, capsys):
    main_quietly("report", str(run), "--json", "--gpu-hour-price", "3.6")
    about = json.loads(capsys.readouterr().out)
    manifest = RunFolder.read(run).manifest()
    assert about["summary"]["rows"] == manifest["rows"]
    assert sum(q["rows"] for q in about["quadrants"]) == manifest["rows"]["scored"]
    assert sum(q["chosen"] for q in about["quadrants"]) == manifest["rows"]["selected"]
    assert sum(kind["chosen"] for kind in about["composition"]["category"]) == manifest["rows"]["selected"]
    assert about["summary"]["devices"] == 1
    assert about["summary"]["cost"] == pytest.approx(about["summary"]["sampling_seconds"] / 1000)
    assert 0 <= about["answers_cut_at_the_limit"] <= 1


def test_chosen_rows_that_repeat_each_other_are_warned_of(run, tmp_path):
    model = RunFolder.read(run).manifest()["config"]["model"]
    text = "Write a letter to the mayor of the town about the broken bridge near the mill, please, with {} sentences."
    twins = [{"id": f"twin-{n}", "instruction": text.format(n), "output": "x"} for n in range(6)]
    every = choose([*pool_rows(4), *twins], model, tmp_path / "run", bins=2, budget=10)
    about = gather(every.run_dir).about
    assert about["near_duplicates"] == {"rows": 5, "of": 10}
    assert any(warning.startswith("5 of 10 chosen rows nearly repeat") for warning in about["warnings"])


def test_the_stability_is_that_of_the_command(run, capsys):
    main_quietly("report", str(run), "--json")
    reported = json.loads(capsys.readouterr().out)["stability"]
    main_quietly("stability", str(run), "--json")
    assert reported == json.loads(capsys.readouterr().out)


def test_figures_come_as_png_and_svg(run, tmp_path):
    main_quietly("report", str(run), "--out", str(tmp_path / "deep/page.html"), "--figures", str(tmp_path / "figures"))
    assert (tmp_path / "deep/page.html").is_file()
    names = {figure.name.replace(" ", "_") for figure in gather(run).figures}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"{n}.{s}" for n in names for s in ("png", "svg")
    }
    for name in names:
        assert (tmp_path / f"figures/{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<path" in (tmp_path / f"figures/{name}.svg").read_text()


def test_the_same_run_gives_the_same_page(run):
    assert page.page(gather(run)) == page.page(gather(run))


def test_histograms_hold_every_row():
    rng = np.random.default_rng(0)
    score, chosen = rng.random(1000), rng.random(1000) < 0.3
    values = figures.scores(score, chosen, np.array([0.5])).spec["data"]["values"]
    assert sum(bar["rows"] for bar in values if bar["row"] == "chosen") == chosen.sum()
    assert sum(bar["rows"] for bar in values) == 1000


def test_agreement_is_a_figure_where_it_was_asked_for(run, tmp_path):
    model = RunFolder.read(run).manifest()["config"]["model"]
    rejecting = choose(rows(), model, tmp_path / "run", bins=4, budget=20, filters={"drop_least_agreeing": 0.2})
    found = gather(rejecting.run_dir)
    assert "agreement" in {figure.name for figure in found.figures}
    assert found.about["rejected"]["low_agreement"] == 12
    assert {row["reason"] for row in found.rejected} >= {"low_agreement"}
    assert "agreement" not in {figure.name for figure in gather(run).figures}


def test_a_run_without_a_result_or_with_lost_answers_has_no_report(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    for part in (copy / "answers").glob("*.parquet"):
        part.write_bytes(b"damaged")
    with pytest.raises(StoreError, match="lost answers since it was finished: run adg select on it again"):
        gather(copy)
    (copy / "manifest.json").unlink()
    with pytest.raises(StoreError, match="is not complete yet: run adg select on it"):
        gather(copy)


def test_without_the_extra_the_fix_is_named(run, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "vl_convert", None)
    with pytest.raises(SystemExit):
        main(["report", str(run)])
    assert "pip install 'adg-plugin[report]'" in capsys.readouterr().err
