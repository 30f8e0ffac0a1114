"""Sources: every container gives the same rows, and what cannot be read says where and why."""

import json
import os
import subprocess
import sys

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from paths import SHARED_POOL
from source_files import NAMES, ROWS, data, message_of, read, spec, write, write_jsonl

from adg_plugin.config.schema import ADGConfig
from adg_plugin.data import json_stream
from adg_plugin.data.sources import Record, iter_memory, iter_records, pool_fingerprint
from adg_plugin.errors import DataError


@pytest.mark.parametrize("name", NAMES)
def test_every_file_format_gives_the_same_rows(tmp_path, name):
    assert data(spec(write(tmp_path / name))) == ROWS


def test_a_line_number_names_the_line_and_a_row_number_the_row(tmp_path):
    lines = tmp_path / "p.jsonl"
    lines.write_text('\n{"instruction": "a"}\n   \n{"instruction": "b"}')
    assert [r.where for r in read(spec(lines))] == [f"{lines}:2", f"{lines}:4"]
    table = write(tmp_path / "p.csv")
    assert [r.where for r in read(spec(table))] == [f"{table}:{line}" for line in (2, 3, 6)]
    for name in ("p.json", "p.parquet", "p.arrow"):
        path = write(tmp_path / name)
        assert [r.where for r in read(spec(path))] == [f"{path}:{n}" for n in (1, 2, 3)]


def test_a_byte_order_mark_is_not_part_of_the_first_row(tmp_path):
    for name in ("p.jsonl", "p.json", "p.csv"):
        path = write(tmp_path / name)
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert data(spec(path)) == ROWS


def test_json_lines_in_a_json_file_are_read_as_lines(tmp_path):
    path = write_jsonl(tmp_path / "p.json")
    assert [(r.data, r.where) for r in read(spec(path))] == [(row, f"{path}:{n}") for n, row in enumerate(ROWS, 1)]


@pytest.mark.parametrize("indent", [None, 2])
def test_an_object_that_holds_one_list_of_rows(tmp_path, indent):
    path = tmp_path / "p.json"
    document = {"version": "1.0", "tags": ["a", "b"], "none": [], "meta": {"n": [{"x": 1}]}, "data": ROWS, "count": 3}
    path.write_text(json.dumps(document, indent=indent))
    assert data(spec(path)) == ROWS


def test_one_row_alone_on_one_line_of_a_json_file(tmp_path):
    path = tmp_path / "p.json"
    path.write_text(json.dumps(ROWS[0]))
    assert data(spec(path)) == ROWS[:1]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    rows=st.lists(st.dictionaries(st.text(max_size=6), json_values, max_size=3), max_size=6), chunk=st.integers(1, 40)
)
def test_a_json_document_streamed_in_small_pieces_is_what_json_loads_says(tmp_path_factory, rows, chunk):
    path = tmp_path_factory.mktemp("json") / "p.json"
    for document in (rows, {"k": 1.5e300, "data": rows, "z": -12345678901234567890}):
        path.write_text(
            json.dumps(document, ensure_ascii=len(rows) % 2 == 0, indent=chunk % 3 or None), encoding="utf-8"
        )
        with pytest.MonkeyPatch.context() as patch, path.open("rb") as file:
            patch.setattr(json_stream, "CHUNK", chunk)
            if document is rows or rows:
                assert [row for _, row in json_stream.read_document(path, file)] == rows


@pytest.mark.parametrize("document", ["[{}]", '{"data": [{}]}'])
def test_memory_does_not_grow_with_a_json_document(tmp_path, document):
    import tracemalloc

    path = tmp_path / "p.json"
    path.write_text(document.replace("{}", ",".join(json.dumps({"instruction": "x" * 5000}) for _ in range(6000))))
    tracemalloc.start()
    try:
        assert sum(1 for _ in iter_records([spec(path)])) == 6000
        assert tracemalloc.get_traced_memory()[1] < path.stat().st_size / 2
    finally:
        tracemalloc.stop()


# -- folders, splits, slices


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path):
    for name in ("b.jsonl", "a.parquet", "sub/c.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, [{"instruction": name}])
    for name in ("README.md", ".hidden.jsonl", "_part.jsonl", "dataset_infos.json", ".cache/x.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("not rows")
    assert [row["instruction"] for row in data(spec(tmp_path))] == ["a.parquet", "b.jsonl", "sub/c.json"]


def test_a_folder_without_data_says_what_it_holds(tmp_path):
    (tmp_path / "README.md").write_text("x")
    assert "no data file in this folder (saw README.md): use JSON lines" in message_of(spec(tmp_path))


def test_splits_in_file_names_are_kept_apart(tmp_path, caplog):
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001", "validation"):
        write(tmp_path / f"{name}.parquet", [{"instruction": name}])
    names = [row["instruction"] for row in data(spec(tmp_path))]
    assert names == ["train-00000-of-00002", "train-00001-of-00002"]
    assert "leaves out test-00000-of-00001.parquet, validation.parquet" in caplog.text
    assert [row["instruction"] for row in data(spec(tmp_path, split="test"))] == ["test-00000-of-00001"]
    assert [row["instruction"] for row in data(spec(tmp_path, split="val"))] == ["validation"]
    assert "no file of split 'extra' in this folder, which has test, train, validation: set split" in message_of(
        spec(tmp_path, split="extra")
    )


def test_split_with_row_numbers_takes_these_rows(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl")
    assert data(spec(path, split="train[1:]")) == ROWS[1:]
    assert data(spec(path, split="train[:2]")) == ROWS[:2]
    assert "use a name, or a name and row numbers" in message_of(spec(path, split="train[:10%]"))
    assert "use a name, or a name and row numbers" in message_of(spec(path, split="train+test"))


def test_data_files_within_a_folder_or_with_a_builder_name(tmp_path, monkeypatch):
    for name in ("a.jsonl", "b.jsonl", "c.csv"):
        write(tmp_path / name, [{"instruction": name}])
    assert [r["instruction"] for r in data(spec(tmp_path, data_files="*.jsonl"))] == ["a.jsonl", "b.jsonl"]
    monkeypatch.chdir(tmp_path)
    found = data(spec("json", data_files=["b.jsonl", str(tmp_path / "a.jsonl")]))
    assert [r["instruction"] for r in found] == ["b.jsonl", "a.jsonl"]
    assert "z.jsonl: no such file" in message_of(spec("json", data_files="z.jsonl"))
    assert "json: no such file or folder: set data_files" in message_of(spec("json"))


def test_the_demo_pool_is_read_from_the_package():
    records = read(spec("demo"))
    assert records[0].where == "demo/pool.jsonl:1"
    assert any(record.where.startswith("demo/chat.jsonl:") for record in records)
    assert len(records) >= 200


@pytest.mark.skipif(not SHARED_POOL.exists(), reason="the shared pool is not here")
def test_the_shared_pool_is_read_whole():
    assert len(read(spec(SHARED_POOL))) == len(SHARED_POOL.read_bytes().splitlines())


# -- the datasets library


def test_a_saved_dataset_folder(tmp_path):
    import datasets

    saved = datasets.Dataset.from_list(ROWS)
    saved.select([2, 0]).save_to_disk(tmp_path / "one")
    assert data(spec(tmp_path / "one")) == [ROWS[2], ROWS[0]]
    datasets.DatasetDict({"train": saved, "test": saved.select([1])}).save_to_disk(tmp_path / "many")
    (record,) = read(spec(tmp_path / "many", split="test"))
    assert record.data == ROWS[1]
    assert record.where == f"{tmp_path / 'many'}[test]:1"
    assert "no split 'dev', it has train, test: set split" in message_of(spec(tmp_path / "many", split="dev"))
    next((tmp_path / "one").glob("*.arrow")).unlink()
    assert "one: not a whole folder of Dataset.save_to_disk" in message_of(spec(tmp_path / "one"))


def test_objects_in_memory():
    import datasets

    dataset = datasets.Dataset.from_list(ROWS)
    for rows in (dataset, dataset.to_iterable_dataset(), ROWS, iter(ROWS)):
        records = list(iter_memory(rows))
        assert [r.data for r in records] == ROWS
        assert [r.where for r in records] == ["dataset:1", "dataset:2", "dataset:3"]
    numbers = datasets.Dataset.from_dict({"instruction": ["a"], "n": [[1, 2]]}).with_format("numpy")
    assert [r.data for r in iter_memory(numbers)] == [{"instruction": "a", "n": [1, 2]}]


def test_objects_in_memory_that_are_not_rows():
    import datasets

    with pytest.raises(DataError, match="dataset is a DatasetDict with train, test: pass one split of it"):
        list(iter_memory(datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS), "test": None})))
    with pytest.raises(DataError, match="dataset:2: a str, expected a mapping"):
        list(iter_memory([ROWS[0], "text"]))
    with pytest.raises(DataError, match="no rows"):
        list(iter_memory([]))


def test_a_hub_name_is_streamed_with_its_settings(monkeypatch):
    import datasets

    asked = {}

    def load_dataset(path, **settings):
        asked.update(settings, path=path)
        return datasets.Dataset.from_list(ROWS).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    records = read(spec("some-org/some.set", name="en", split="train_sft[:2]", revision="abc", data_files="x/*.json"))
    assert [r.data for r in records] == ROWS[:2]
    assert [r.where for r in records] == ["some-org/some.set[train_sft]:1", "some-org/some.set[train_sft]:2"]
    assert asked == {
        "path": "some-org/some.set", "name": "en", "split": "train_sft", "revision": "abc",
        "data_files": "x/*.json", "streaming": True,
    }  # fmt: skip


def test_a_url_is_streamed_by_the_builder_of_its_format(tmp_path):
    path = write(tmp_path / "p.tsv")
    without_blanks = [{name: value or None for name, value in row.items()} for row in ROWS]  # as pandas reads them
    assert data(spec(f"file://{path}")) == without_blanks
    assert "unknown file format" in message_of(spec("https://example.org/pool.txt"))


def test_a_hub_that_is_out_of_reach_says_so():
    code = (
        "from adg_plugin.config.schema import DatasetSpec\nfrom adg_plugin.data.sources import iter_records\n"
        "try:\n    list(iter_records([DatasetSpec(path='no-such-org/no-such-set')]))\n"
        "except Exception as err:\n    print(type(err).__name__, err)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.startswith(
        "DataError no-such-org/no-such-set: neither a file nor a folder here, nor a data set that"
    )
    assert run.stdout.strip().endswith("check the name, or download it and give the path")


def test_reading_a_pool_loads_no_torch(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl")
    code = (
        "import sys\nfrom adg_plugin.config.schema import DatasetSpec\n"
        "from adg_plugin.data.sources import iter_records\n"
        "from adg_plugin.data.rows import unique_rows\n"
        f"assert len(list(unique_rows(iter_records([DatasetSpec(path={str(path)!r})])))) == 3\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'pyarrow') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


# -- the fingerprint


def test_the_fingerprint_changes_with_any_file_and_setting(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl")
    first = pool_fingerprint([spec(path)])
    assert first is not None
    assert first == pool_fingerprint([spec(path)])
    assert first != pool_fingerprint([spec(path, field_instruction="output")])
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b"Add 2", b"Add 9"))  # as long, and the time put back
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert pool_fingerprint([spec(path)]) not in (first, None)
    folder = pool_fingerprint([spec(tmp_path)])
    write_jsonl(tmp_path / "q.jsonl")
    assert pool_fingerprint([spec(tmp_path)]) not in (folder, None)


def test_the_fingerprint_of_a_saved_dataset_the_demo_and_the_hub(tmp_path):
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "d")
    first = pool_fingerprint([spec(tmp_path / "d")])
    datasets.Dataset.from_list(ROWS[:2]).save_to_disk(tmp_path / "d")
    assert pool_fingerprint([spec(tmp_path / "d")]) not in (first, None)
    assert pool_fingerprint([spec("demo")]) is not None
    assert pool_fingerprint([spec("demo"), spec("some-org/some-set")]) is None


def test_records_carry_their_own_spec(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl")
    config = ADGConfig.parse({"datasets": [{"path": str(path), "type": "alpaca", "field_output": "answer"}]})
    (record, *_) = iter_records(config.datasets)
    assert isinstance(record, Record)
    assert record.spec.type == "alpaca"
    assert record.spec.field_output == "answer"


def test_a_data_set_that_is_a_script_says_what_to_do(monkeypatch):
    import datasets

    def load_dataset(*_, **__):
        raise RuntimeError("Dataset scripts are no longer supported, but found x.py")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"^org/x: Dataset scripts are no longer .*; use a revision or a copy of it in"):
        read(spec("org/x"))


def test_rows_of_tables_are_as_they_were_written(tmp_path):
    """A struct gives every object the keys of all others, as nulls."""
    rows = [
        {"id": n, "turns": [{"role": "assistant", "calls": [{"arguments": {name: n}}]}], "tags": ["x", None]}
        for n, name in enumerate("ab")
    ]
    table = Dataset.from_list(rows)
    assert table[0]["turns"][0]["calls"][0]["arguments"] == {"a": 0, "b": None}
    table.to_parquet(tmp_path / "pool.parquet")
    table.save_to_disk(tmp_path / "saved")
    for path in ("pool.parquet", "saved"):
        assert [record.data for record in iter_records([spec(tmp_path / path)])] == rows
    for held in (table, table.to_iterable_dataset()):
        assert [record.data for record in iter_memory(held)] == rows
    assert [record.data for record in iter_memory([{"a": {"b": None}}])] == [{"a": {"b": None}}]
