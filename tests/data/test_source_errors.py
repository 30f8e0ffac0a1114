"""Sources that cannot be read: the error says where and why."""

import gzip
import json
import math
import os
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_files import ROWS, data, message_of, read, spec, write, write_jsonl

from adg_plugin import digests
from adg_plugin.data import json_stream, readers
from adg_plugin.data.rows import row_json, unique_rows
from adg_plugin.data.sources import iter_memory, pool_fingerprint
from adg_plugin.errors import DataError


def test_a_missing_file_is_named_with_the_accepted_formats(tmp_path):
    text = message_of(spec(tmp_path / "none.jsonl"))
    assert text.startswith(f"{tmp_path}/none.jsonl: no such file or folder: give a file or folder that exists")
    assert ".jsonl" in text
    assert ".parquet" in text
    assert "no such file or folder" in message_of(spec("none.jsonl"))  # not taken for a name on the hub
    assert "no such file or folder" in message_of(spec("./none"))


def test_bad_json_names_the_line_and_what_was_seen(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"instruction": "a"}\n{"instruction": "b", oops}\n')
    assert message_of(spec(path)) == (
        f"{path}:2: not JSON (Expecting property name enclosed in double quotes, column 22): "
        'saw \'{"instruction": "b", oops}\'; '
        "a .jsonl file has one JSON object per line, a .json file may have one list of objects"
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"a": 1}\n[1, 2]\n', "p.jsonl:2: saw '[1, 2]', expected a JSON object: one row per line"),
        (b'{"a": 1}\n{"a": "\xff"}\n', "p.jsonl:2: not UTF-8 (invalid start byte, byte 0xff): save it as UTF-8"),
        (b'{"a": 1}\n{"a": \n', "p.jsonl:2: not JSON (Expecting value, column 6): saw the end of the line"),
        (b"[" * 100_000 + b"\n", "p.jsonl:1: not JSON that can be read"),
        (b"9" * 5000 + b"\n", "p.jsonl:1: not JSON that can be read"),
    ],
)  # fmt: skip
def test_a_broken_line_is_named(tmp_path, content, expected):
    path = tmp_path / "p.jsonl"
    path.write_bytes(content)
    assert expected in message_of(spec(path))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('[\n{"a": 1},\n{"a": 2]\n', "p.json:3: not JSON (Expecting ',' delimiter)"),
        ('[\n{"a": 1},\n', "p.json:3: not JSON (Expecting value): saw the end of the line"),
        ('[\n{"a": 1}\n', "p.json:3: not JSON (expected ']')"),
        ('[{"a": 1}] {}', "p.json:1: not JSON (more text after the end of the rows)"),
        ('[{"a": 1}, 7]', "p.json: row 2 is '7', expected a JSON object"),
        ('"text"', "p.json:1: not JSON (neither a list nor an object)"),
        ('{"a": 1,\n"b": [1]}', "p.json: an object with a, b and no list of rows"),
        ('{"a": [{"x": 1}],\n"b": [{"x": 2}]}', "p.json: both 'a' and 'b' hold lists of rows"),
        ('[{"a": "' + "x" * 3_000_000, "p.json:1: not JSON (Unterminated string starting at)"),
    ],
)  # fmt: skip
def test_a_broken_json_document_is_named(tmp_path, content, expected):
    path = tmp_path / "p.json"
    path.write_text(content)
    assert expected in message_of(spec(path))


@pytest.mark.parametrize("name", ["p.txt", "p", "p.parquet.gz", "p.jsonl.rar"])
def test_an_unknown_extension_lists_the_known_ones(tmp_path, name):
    (tmp_path / name).write_text('{"instruction": "a"}\n')
    text = message_of(spec(tmp_path / name))
    assert f"{name}: unknown file format: use JSON lines (.jsonl, .ndjson), JSON (.json)" in text
    assert "set ds_type to json, csv, parquet or arrow" in text


def test_ds_type_tells_what_the_name_does_not(tmp_path):
    assert data(spec(write_jsonl(tmp_path / "p.txt"), ds_type="json")) == ROWS
    assert data(spec(write_jsonl(tmp_path / "p.jsonl"), ds_type="json")) == ROWS
    assert data(spec(write(tmp_path / "p.tsv"), ds_type="csv")) == ROWS


@pytest.mark.parametrize("name", ["p.parquet", "p.arrow", "p.jsonl.gz", "p.jsonl.zst"])
def test_a_file_that_is_not_what_its_name_says(tmp_path, name):
    (tmp_path / name).write_text("hello, this is plain text\n" * 20)
    assert str(tmp_path / name) in message_of(spec(tmp_path / name))


def test_a_file_cut_short_is_an_error_after_the_rows_before(tmp_path):
    path = tmp_path / "p.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n' * 1000)[:-20])
    assert "p.jsonl.gz: cannot be read" in message_of(spec(path))


def test_csv_with_a_value_too_many_names_the_line(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("instruction,output\na,b\nhello, world,c\n")
    assert f"{path}:3: 3 values for 2 columns: fill up short rows" in message_of(spec(path))


def test_csv_fields_may_be_long(tmp_path):
    rows = [{"instruction": "x" * 300_000, "output": "y"}]
    assert data(spec(write(tmp_path / "p.csv", rows))) == rows


@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.csv"])
def test_an_empty_pool_is_an_error(tmp_path, name):
    path = tmp_path / name
    path.write_text("[]" if name == "p.json" else "")
    assert message_of(spec(path)) == f"no rows in {path}: give a data set with rows"
    full = write_jsonl(tmp_path / "full.jsonl")
    assert data(spec(path), spec(full)) == ROWS


def test_no_data_sets_at_all():
    assert message_of() == "no rows in datasets, which is empty: give a data set with rows"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_permission_denied_is_named(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl")
    path.chmod(0)
    assert "p.jsonl: cannot be read" in message_of(spec(path))


def test_a_link_to_nothing_among_the_files_of_a_folder_is_named(tmp_path):
    write(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "gone.jsonl")
    assert "b.jsonl: a link to" in message_of(spec(tmp_path))


@pytest.mark.parametrize("pattern", [None, "data/train-*.jsonl"])
def test_a_part_that_is_missing_is_named(tmp_path, pattern):
    folder = tmp_path / "data"
    folder.mkdir()
    for number in (0, 2):
        write(folder / f"train-{number:05d}-of-00003.jsonl")
    expected = "train-00001-of-00003.jsonl: no such file, and 2 of its 3 parts are there"
    assert expected in message_of(spec(tmp_path, data_files=pattern))
    assert len(read(spec(tmp_path, data_files="data/train-00000-of-00003.jsonl"))) == len(ROWS)


def test_a_folder_may_have_brackets_in_its_name(tmp_path):
    folder = tmp_path / "pool[v2]"
    folder.mkdir()
    write(folder / "rows.jsonl")
    assert data(spec(folder, data_files="*.jsonl")) == ROWS


def test_blanks_around_the_names_of_columns_are_no_part_of_them(tmp_path):
    (tmp_path / "pool.csv").write_text("instruction, input , output\nSum up,The text,The answer\n")
    assert data(spec(tmp_path / "pool.csv")) == [{"instruction": "Sum up", "input": "The text", "output": "The answer"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("instruction,input,output\na,b,c\nsecond\n", "pool.csv:3: 1 values for 3 columns"),
        ("instruction,input,output\na,b,c,d\n", "pool.csv:2: 4 values for 3 columns"),
        ("instruction,output,output\nq,one,two\n", "pool.csv:1: two columns are named 'output': rename one"),
    ],
)
def test_a_table_whose_rows_do_not_fit_its_header_is_named_with_the_line(tmp_path, text, message):
    (tmp_path / "pool.csv").write_text(text)
    assert message in message_of(spec(tmp_path / "pool.csv"))


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("inner", ["examples", "tools"])
def test_a_document_that_is_a_row_is_one_whatever_lists_it_holds(tmp_path, indent, inner):
    row = {"id": "a", inner: [{"instruction": "INNER", "output": "x"}], "instruction": "MAIN", "output": "y"}
    (tmp_path / "pool.json").write_text(json.dumps(row, indent=indent))
    assert data(spec(tmp_path / "pool.json")) == [row]
    turns = {"messages": [{"role": "user", "content": "Why?"}]}
    (tmp_path / "pool.json").write_text(json.dumps(turns, indent=indent))
    assert data(spec(tmp_path / "pool.json")) == [turns]


def test_a_date_beyond_the_year_9999_is_a_text(tmp_path):
    far = pa.array([2**60, 0], pa.timestamp("us"))
    pq.write_table(pa.table({"instruction": ["a", "b"], "when": far}), tmp_path / "pool.parquet")
    rows = data(spec(tmp_path / "pool.parquet"))
    assert [row["instruction"] for row in rows] == ["a", "b"]
    assert all(isinstance(row["when"], str) for row in rows)


def test_a_value_that_json_cannot_hold_is_named_with_its_column():
    rows = [{"instruction": "a", "output": "b", "count": np.int64(3)}]
    with pytest.raises(DataError, match=r"dataset:1: column 'count': a value of type int64 cannot be written as JSON"):
        list(unique_rows(iter_memory(rows)))


@pytest.mark.parametrize("name", ["pool.jsonl", "pool.json"])
def test_a_row_that_no_memory_is_for_is_named(tmp_path, monkeypatch, name):
    for module in (json_stream, readers):
        monkeypatch.setattr(module, "LONGEST_VALUE", 1 << 20)
        monkeypatch.setattr(json_stream, "CHUNK", 1 << 16)
    rows = [{"instruction": "a"}, {"instruction": "b" * (2 << 20)}]
    text = json.dumps(rows) if name == "pool.json" else "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / name).write_text(text)
    assert re.search(
        r"pool.json(l:2: a line|:1: not JSON \(a row) of more than 1 MiB", message_of(spec(tmp_path / name))
    )


def test_what_json_has_no_word_for_is_null():
    row = {"instruction": "a", "score": math.nan, "nested": [{"x": math.inf}, (1.5, -math.inf)]}
    assert json.loads(row_json(row)) == {"instruction": "a", "score": None, "nested": [{"x": None}, [1.5, None]]}


def test_a_file_of_the_pool_that_cannot_be_read_is_named_before_a_model_is_looked_at(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(digests, "_stats", refuse)
    path = write(tmp_path / "pool.jsonl")
    with pytest.raises(DataError, match=rf"^{path}: cannot be read: Permission denied$"):
        pool_fingerprint([spec(path)])
