"""The package from Python: what `select` takes and gives, and what importing it costs."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
from tiny_runs import SETTINGS, command, pool_rows, write_jsonl

import adg_plugin
from adg_plugin import ADGConfig, ADGError, Selection, load_config, select
from adg_plugin.errors import ConfigError, DataError, ModelError

pytestmark = pytest.mark.tiny


def test_a_pool_is_a_path_a_dataset_or_mappings(model, tmp_path):
    rows = pool_rows(20)
    path = write_jsonl(tmp_path / "pool.jsonl", rows)
    pools = {
        "path": path,
        "text": str(path),
        "dataset": datasets.Dataset.from_list(rows),
        "list": rows,
        "iterator": iter(rows),
        "stream": datasets.Dataset.from_list(rows).to_iterable_dataset(),
    }
    found = {
        name: select(pool, model=model, config=SETTINGS, output_dir=tmp_path / name, show_progress=False)
        for name, pool in pools.items()
    }
    for name, selection in found.items():
        assert isinstance(selection, Selection), name
        assert selection.ids == found["path"].ids, name
        assert list(selection.rows()) == list(found["path"].rows()), name
        assert selection.run_dir == tmp_path / name
        assert selection.path == tmp_path / name / "selected.jsonl"


def test_rows_and_dataset_give_the_chosen_rows_in_order(model, tmp_path):
    rows = {row["id"]: row for row in pool_rows(20, meta={"n": 1})}
    selection = select(list(rows.values()), model=str(model), config=SETTINGS, output_dir=tmp_path / "run")
    expected = [rows[i] for i in selection.ids]
    assert len(expected) == 10
    assert list(selection.rows()) == expected
    assert selection.dataset().to_list() == expected
    stored = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert {**selection.manifest, "files": stored["files"]} == stored


def test_a_dataset_of_mixed_layouts_has_every_row(model, tmp_path):
    rows: list[dict[str, object]] = [*pool_rows(5)]
    rows += [{"id": f"c{n}", "messages": [{"role": "user", "content": f"Hello {n}"}]} for n in range(5)]
    selection = select(rows, model=str(model), config=SETTINGS, output_dir=tmp_path / "run", show_progress=False)
    table = selection.dataset()
    assert table["id"][:] == list(selection.ids)
    assert set(table.column_names) >= {"id", "instruction", "output", "messages"}
    of = {row["id"]: row for row in table}
    assert of["c3"]["messages"][0]["content"] == "Hello 3"
    assert of["row-3"]["instruction"] == rows[3]["instruction"]


def test_a_dataset_of_rows_that_no_table_can_hold_is_refused(model, tmp_path):
    rows = [*pool_rows(5, meta="text"), *pool_rows(5, start=5, meta=["a", "list"])]
    selection = select(rows, model=str(model), config=SETTINGS, output_dir=tmp_path / "run", show_progress=False)
    with pytest.raises(DataError, match=r"selected.jsonl cannot become one table \(.*\): read its lines, or use"):
        selection.dataset()
    assert len(list(selection.rows())) == 10


def test_the_run_folder_and_the_pool_may_come_from_the_config(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "pool.jsonl", pool_rows(12))
    config = ADGConfig.parse({**SETTINGS, "model": model, "datasets": ["pool.jsonl"], "output_dir": "out/here"})
    assert select(config=config, show_progress=False).path == Path("out/here/selected.jsonl")
    bare = config.updated(output_dir=None)
    assert select(config=bare, show_progress=False).path == Path("runs/selection/selected.jsonl")
    assert select(config=bare, output_dir="other", show_progress=False).run_dir == Path("other")


def test_arguments_win_over_the_config(model, tmp_path):
    pool = write_jsonl(tmp_path / "pool.jsonl", pool_rows(12))
    config = {**SETTINGS, "model": "no/such/model", "datasets": ["no-such.jsonl"]}
    selection = select(pool, model=str(model), config=config, output_dir=tmp_path / "run", show_progress=False)
    assert len(selection.ids) == 10


def test_columns_of_rows_in_memory_may_be_named(model, tmp_path):
    rows = pool_rows(12)
    renamed = [{"key": r["id"], "question": r["instruction"], "output": r["output"]} for r in rows]
    columns = {"path": "memory", "type": "alpaca", "field_id": "key", "field_instruction": "question"}
    dataset = datasets.Dataset.from_list(renamed)
    expected = select(rows, model=str(model), config=SETTINGS, output_dir=tmp_path / "run", show_progress=False)
    config = {**SETTINGS, "datasets": [columns]}
    found = select(dataset, model=str(model), config=config, output_dir=tmp_path / "run2", show_progress=False)
    assert found.ids == expected.ids
    # A data set of the same content whose columns mean something else is staged again.
    config = {**SETTINGS, "datasets": [{**columns, "field_instruction": "output"}]}
    other = select(dataset, model=str(model), config=config, output_dir=tmp_path / "run2", show_progress=False)
    assert other.manifest["sampling"]["rows"] == 12


def test_a_pool_in_memory_and_one_in_the_config_contradict_each_other(model, tmp_path):
    with pytest.raises(ConfigError, match=r"^datasets is pool.jsonl, but the pool is the data set in memory: leave it"):
        select(pool_rows(3), model=str(model), config={"datasets": ["pool.jsonl"]}, output_dir=tmp_path)


def test_budgets_per_data_set_are_for_axolotl_alone(model, tmp_path):
    with pytest.raises(ConfigError, match=r"^budget_per_dataset is set: only Axolotl selects from each data set"):
        select(pool_rows(3), model=str(model), config={"budget_per_dataset": [1]}, output_dir=tmp_path)


def test_what_is_missing_is_named(model, tmp_path):
    with pytest.raises(ConfigError, match=r"^datasets is missing: give a pool, such as datasets: \[pool.jsonl\]$"):
        select(model=str(model), output_dir=tmp_path)
    with pytest.raises(ModelError, match=r"^model is missing: set it to the backbone that will be trained"):
        select(pool_rows(3), output_dir=tmp_path)
    with pytest.raises(ConfigError, match="budgt is not a setting: did you mean `budget`"):
        select(pool_rows(3), model=str(model), config={"budgt": 3}, output_dir=tmp_path)
    splits = datasets.DatasetDict({"train": datasets.Dataset.from_list(pool_rows(3))})
    with pytest.raises(DataError, match="dataset is a DatasetDict with train: pass one split of it"):
        select(splits, model=str(model), output_dir=tmp_path)
    with pytest.raises(DataError, match=r"^dataset: no rows: give a data set with rows$"):
        select([], model=str(model), output_dir=tmp_path / "run")


def test_every_error_is_an_adg_error_with_an_exit_code():
    from adg_plugin import errors

    kinds = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, ADGError)]
    assert len(kinds) >= 7
    assert {kind.__name__: kind.exit_code for kind in kinds if kind.exit_code > 2} == {
        "StoreError": 3,
        "NumericalError": 4,
        "OutOfMemoryError": 5,
        "ServerError": 6,
    }


def test_the_public_names_are_there():
    assert set(adg_plugin.__all__) <= set(dir(adg_plugin))
    assert adg_plugin.ADGConfig is ADGConfig
    assert adg_plugin.load_config is load_config
    with pytest.raises(AttributeError, match="has no attribute 'selct'"):
        adg_plugin.selct  # noqa: B018


def test_importing_the_package_loads_no_torch_and_says_nothing():
    code = (
        "import sys, adg_plugin\n"
        "adg_plugin.ADGConfig, adg_plugin.load_config, adg_plugin.ADGError\n"
        "import adg_plugin.cli, adg_plugin.scoring.geometry, adg_plugin.scoring.bins\n"
        "import adg_plugin.scoring.quota, adg_plugin.scoring.score\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'pickle_'} & sys.modules.keys()))\n"
    )
    out, err = command(code=code).communicate(timeout=120)
    assert (out, err) == ("[]\n", "")
