"""`adg explain` and `adg show`: what they say of a row is what a selection under those changes does."""

from __future__ import annotations

import io
import re
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.cells import cell_len
from rich.console import Console
from tiny_runs import SETTINGS, choose, pool_rows, save

from adg_plugin.cli import main
from adg_plugin.errors import DataError, StoreError
from adg_plugin.report.explain import explain, print_explanation
from adg_plugin.report.summary import print_summary
from adg_plugin.store import RunFolder, lookup, parts
from adg_plugin.store.parts import SCHEMA, row_groups, write_part

pytestmark = pytest.mark.tiny

MARKUP = "[red]not a colour[/red] <script>alert(1)</script> عربي 🌍 " + "long" * 60


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explain")
    rows = [*pool_rows(60), {"id": "odd", "instruction": MARKUP, "output": "x"}, {"id": "empty", "instruction": ""}]
    return choose(rows, save(folder / "model"), folder / "run", bins=4, budget=20)


def table(run_dir):
    return {row["id"]: row for row in RunFolder.read(run_dir).scores().to_pylist()}


def again(run, tmp_path, **settings):
    """Return what a selection from the same answers chooses under other settings."""
    copy = tmp_path / f"copy-{len(list(tmp_path.iterdir()))}"
    shutil.copytree(run.run_dir, copy)
    rows = [*pool_rows(60), {"id": "odd", "instruction": MARKUP, "output": "x"}, {"id": "empty", "instruction": ""}]
    model = run.manifest["config"]["model"]
    return table(choose(rows, model, copy, **{"bins": 4, "budget": 20, **settings}).run_dir)


def test_the_numbers_are_those_of_the_selection(run):
    for id, row in table(run.run_dir).items():
        about = explain(str(run.run_dir), id)
        assert (about.score, about.rank, about.quota, about.chosen) == (
            row["score"],
            row["rank_in_bin"],
            row["bin_quota"],
            row["chosen"],
        )
        assert about.eigenvalues.sum() == pytest.approx(SETTINGS["num_samples"] * about.dispersion, abs=1e-6)
        np.testing.assert_allclose(np.diag(about.similarity), 1, atol=1e-5)
        assert len(about.answers) == SETTINGS["num_samples"]


@pytest.mark.parametrize("form", ["rank", "residual", "zscore"])
def test_the_ranks_under_other_scores_are_those_of_such_a_selection(run, tmp_path, form):
    for id, row in again(run, tmp_path, score=form).items():
        about = explain(str(run.run_dir), id)
        assert about.ranks[form] == row["rank_in_bin"]
        flips = (row["rank_in_bin"] <= row["bin_quota"]) != about.chosen
        assert any(f"score: {form} would have" in change for change in about.changes) == flips


def test_the_budget_that_it_names_reaches_the_row(run, tmp_path):
    left = [id for id, row in table(run.run_dir).items() if not row["chosen"]]
    for id in left[::9]:
        (sentence,) = [c for c in explain(str(run.run_dir), id).changes if "a budget of about" in c]
        enough = int(sentence.partition("about ")[2].split()[0].replace(",", ""))
        assert enough > 20
        assert again(run, tmp_path, budget=enough)[id]["reason"] == "in quota"
        assert again(run, tmp_path, budget=enough - 1)[id]["reason"] != "in quota"


def test_the_score_that_it_names_is_the_cut(run):
    rows = table(run.run_dir)
    for id, row in rows.items():
        mates = sorted((r["score"] for r in rows.values() if r["bin"] == row["bin"]), reverse=True)
        (first,) = [c for c in explain(str(run.run_dir), id).changes if c.startswith("a score")]
        cut = mates[row["bin_quota"] - 1] if not row["chosen"] else mates[row["bin_quota"]]
        word = "below" if row["chosen"] else "above"
        assert first.startswith(f"a score {word} {cut:.4f} ({cut - row['score']:+.4f}) would have")


def test_a_row_that_is_not_there_and_one_that_was_rejected(run):
    with pytest.raises(DataError, match=r"there is no row 'row-5x' in .*: did you mean row-5"):
        explain(str(run.run_dir), "row-5x")
    with pytest.raises(DataError, match=r"row 'empty' of .* was rejected: "):
        explain(str(run.run_dir), "empty")


def test_an_unfinished_run_is_named(run, tmp_path, capsys):
    (run.run_dir / "manifest.json").rename(tmp_path / "manifest.json")
    try:
        with pytest.raises(StoreError, match="is not complete yet: run adg select on it"):
            explain(str(run.run_dir), "row-1")
        with pytest.raises(SystemExit) as ended:
            main(["show", str(run.run_dir)])
        assert ended.value.code == 3
    finally:
        (tmp_path / "manifest.json").rename(run.run_dir / "manifest.json")


@pytest.mark.parametrize("width", [40, 80, 200])
def test_it_fits_the_terminal_and_shows_texts_as_they_are(run, width):
    out = io.StringIO()
    print_explanation(explain(str(run.run_dir), "odd"), Console(file=out, width=width))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "[red]not a colour[/red]" in text
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)  # nothing that would drive the terminal
    if width == 200:
        assert "<script>alert(1)</script>" in text


def test_the_commands(run, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    for arguments in (["explain", str(run.run_dir), "row-3"], ["show", str(run.run_dir), "--rows", "3"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "row row-3 of " in out
    assert "20 of 61 scored rows chosen from 4 bins" in out
    assert max(map(cell_len, out.splitlines())) == 80  # of the panels


def test_the_heading_names_what_stands_below_it(run):
    out = io.StringIO()
    print_summary(run.run_dir, Console(file=out, width=200), examples=1)
    (row, *_) = sorted(table(run.run_dir).values(), key=lambda row: -row["score"] * row["chosen"])
    assert "rank/quota" in out.getvalue()
    assert f" {row['rank_in_bin']}/{row['bin_quota']} " in out.getvalue()


@pytest.fixture
def many_parts(run, tmp_path):
    """Return a copy of the finished run whose answers lie in one part for each row."""
    copy = tmp_path / "many"
    shutil.copytree(run.run_dir, copy)
    (whole,) = RunFolder.read(copy).stock.parts
    (table,) = row_groups(whole, SCHEMA.names)
    whole.path.unlink()
    for number in range(len(table)):
        write_part(copy / "answers", number, table.slice(number, 1))
    with RunFolder.open(copy) as folder:
        folder.write_manifest({key: value for key, value in run.manifest.items() if key != "files"})
    return copy


@pytest.fixture
def opened(monkeypatch):
    """Return the parts that are opened, or read for their checksum."""
    found = set()

    def spy(module, name):
        original = getattr(module, name)

        def noting(path, *arguments, **options):
            found.update(re.findall(r"part-\d+", str(path)))
            return original(path, *arguments, **options)

        monkeypatch.setattr(module, name, noting)

    for module, name in ((pq, "ParquetFile"), (pq, "read_table"), (parts, "digest_file"), (lookup, "digest_file")):
        spy(module, name)
    return found


def test_one_row_is_explained_from_one_part(many_parts, run, opened):
    for id in ("row-3", "row-59"):
        opened.clear()
        found, expected = explain(str(many_parts), id), explain(str(run.run_dir), id)
        assert len(opened) == 2  # one of each run
        assert [answer.text for answer in found.answers] == [answer.text for answer in expected.answers]
        np.testing.assert_array_equal(found.similarity, expected.similarity)


def test_it_is_found_in_the_part_that_its_own_was_merged_into(many_parts, opened):
    with RunFolder.open(many_parts) as folder:
        assert folder.compact() > 0
    for harmless in ("index", "no index"):
        opened.clear()
        assert explain(str(many_parts), "row-59").id == "row-59"
        assert len(opened) == 1, harmless
        (many_parts / "index.parquet").unlink(missing_ok=True)  # as in a run of before: all parts are read


def test_only_damage_to_its_own_part_is_in_the_way(many_parts):
    index = {row["id"]: row["part"] for row in pq.read_table(many_parts / "index.parquet").to_pylist()}
    assert len(set(index.values())) == len(index) == 61
    for path in (many_parts / "answers").glob("part-*"):
        if f"part-{index['row-3']:06d}" not in path.name:
            path.write_bytes(path.read_bytes()[:-50])
    assert explain(str(many_parts), "row-3").id == "row-3"
    with pytest.raises(StoreError, match="lost answers since it was finished: run adg select on it again"):
        explain(str(many_parts), "row-4")


@pytest.mark.parametrize("harm", ["removed", "damaged", "no folder"])
def test_lost_answers_are_told(run, tmp_path, harm, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run.run_dir, copy)
    (part,) = (path for path in (copy / "answers").iterdir() if path.is_file())
    if harm == "damaged":
        part.write_bytes(part.read_bytes()[:-50])
    elif harm == "removed":
        part.unlink()
    else:
        shutil.rmtree(copy / "answers")
    with pytest.raises(SystemExit) as ended:
        main(["explain", str(copy), "row-3"])
    assert ended.value.code == 3
    said = f"error: {copy} lost answers since it was finished: run adg select on it again"
    assert capsys.readouterr().err.splitlines()[-1] == said
