"""Sources that cannot be read: the error says where and why."""

import gzip
import os

import pytest
from source_files import ROWS, data, message_of, spec, write, write_jsonl


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
    assert f"{path}:3: 1 more values than the 2 columns: put quotes" in message_of(spec(path))


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
