"""`adg export`: the chosen rows as other tools load them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tiny_runs import choose, pool_rows, read_jsonl

from adg_plugin.cli import main
from adg_plugin.data.sources import DatasetSpec, iter_records
from adg_plugin.errors import DataError, StoreError
from adg_plugin.store import RunFolder
from adg_plugin.tools.export import export_rows

pytestmark = pytest.mark.tiny


@pytest.fixture(scope="module")
def run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = pool_rows(20, meta={"ä": [1, None], "n": 2}, weight=0.5)
    rows[3]["input"] = 'In words,\n"please".'
    return choose(rows, model, tmp_path_factory.mktemp("runs") / "run", budget=12, bins=2).run_dir


def chosen(run: Path) -> list[dict[str, object]]:
    return read_jsonl(run / "selected.jsonl")


@pytest.mark.parametrize("form", ["jsonl", "parquet", "csv"])
def test_rows_come_out_as_they_were_best_first_and_can_be_a_pool_again(run, tmp_path, form):
    path = export_rows(run, form, out=tmp_path / f"rows.{form}")
    found = [record.data for record in iter_records([DatasetSpec(path=str(path))])]
    names = {name for row in chosen(run) for name in row}
    whole = [{name: row.get(name) for name in names} for row in chosen(run)]
    if form == "jsonl":
        assert found == chosen(run)
    elif form == "parquet":
        assert found == whole
    else:
        plain = [{n: "" if v is None else v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)
                  for n, v in row.items()} for row in whole]  # fmt: skip
        assert found == plain


def test_json_is_one_array_whose_rows_have_an_input(run):
    assert export_rows(run, "json") == run / "export.json"
    text = (run / "export.json").read_text(encoding="utf-8")
    assert "ä" in text
    assert json.loads(text) == [{**row, "input": row.get("input", "")} for row in chosen(run)]
    assert all(list(row)[1:3] == ["instruction", "input"] for row in json.loads(text) if row["id"] != "row-3")
    assert RunFolder.read(run).manifest() is not None  # the run is as complete as before


def test_an_input_may_have_another_name_and_turns_have_none(model, tmp_path):
    rows = [{"q": row["instruction"], "ctx": None} for row in pool_rows(6)]
    spec = {"path": "memory", "field_instruction": "q", "field_input": "ctx"}
    run = choose(rows, model, tmp_path / "run", budget=3, datasets=[spec]).run_dir
    assert {row["ctx"] for row in json.loads(export_rows(run, "json").read_text())} == {""}
    rows = [{"messages": [{"role": "user", "content": row["instruction"]}]} for row in pool_rows(6)]
    run = choose(rows, model, tmp_path / "turns", budget=3).run_dir
    assert json.loads(export_rows(run, "json").read_text()) == chosen(run)


def test_columns_of_choice_and_what_is_known_of_the_row(run, tmp_path):
    asked = ["instruction", "input", "output", "adg_id", "adg_rank", "adg_score", "adg_dispersion", "adg_bin"]
    found = json.loads(export_rows(run, "json", columns=asked, out=tmp_path / "rows.json").read_text(encoding="utf-8"))
    scores = {row["id"]: row for row in RunFolder.read(run).scores().to_pylist()}
    for place, (row, whole) in enumerate(zip(found, chosen(run), strict=True), 1):
        assert list(row) == asked
        about = scores[whole["id"]]
        assert (row["adg_id"], row["adg_rank"]) == (whole["id"], place)
        assert [row[f"adg_{name}"] for name in ("score", "dispersion", "bin")] == [
            about[name] for name in ("score", "dispersion", "bin")
        ]
    with (export_rows(run, "csv", columns=["adg_rank", "adg_reason"], out=tmp_path / "rows.csv")).open() as file:
        assert next(csv.reader(file)) == ["adg_rank", "adg_reason"]


@pytest.mark.parametrize("method", ["random", "longest", "zip"])
def test_every_method_exports_its_choice_in_its_order(model, tmp_path, method):
    run = choose(pool_rows(12), model, tmp_path / "run", budget=5, method=method).run_dir
    table = pq.read_table(export_rows(run, "parquet", columns=["id", "adg_id", "adg_rank", "adg_score"]))
    assert table["adg_id"].to_pylist() == table["id"].to_pylist() == [row["id"] for row in chosen(run)]
    assert table["adg_rank"].to_pylist() == [1, 2, 3, 4, 5]


def test_what_cannot_be_written_is_said_and_leaves_nothing(run, model, tmp_path):
    with pytest.raises(
        DataError, match=r"^columns names x, which no row has: there are id, instruction, input, output, meta, "
    ):
        export_rows(run, "json", columns=["id", "x"], out=tmp_path / "rows.json")
    for own in ("selected.jsonl", "prompts.json", "answers/x.json", "data/../manifest.json", "export.csv"):
        with pytest.raises(DataError, match=r" is in the run folder, which is the selection's own: give an --out outs"):
            export_rows(run, "jsonl", out=run / own)
    with pytest.raises(DataError, match=r" is a folder: give the path of a file as --out$"):
        export_rows(run, "jsonl", out=tmp_path)
    mixed = [{**row, "tag": n if n % 2 else "text"} for n, row in enumerate(pool_rows(6))]
    other = choose(mixed, model, tmp_path / "mixed", budget=6).run_dir
    with pytest.raises(
        DataError, match=r"^column tag cannot be a column of Parquet \(.*\): use jsonl, or leave it out$"
    ):
        export_rows(other, "parquet", out=tmp_path / "rows.parquet")
    assert not list(tmp_path.glob("rows*"))
    with pytest.raises(StoreError, match="there is no run folder"):
        export_rows(tmp_path / "none", "json")


def test_the_command_prints_the_path(run, tmp_path, capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        main(
            [
                "export",
                str(run),
                "--format",
                "csv",
                "--columns",
                "id, adg_score",
                "--out",
                str(tmp_path / "a" / "b.csv"),
            ]
        )
    assert capsys.readouterr().out == f"{tmp_path / 'a' / 'b.csv'}\n"
    assert (tmp_path / "a" / "b.csv").read_text().startswith("id,adg_score\n")
