"""Ids and duplicates: every row has an id, and each content is one row."""

import json
import random
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parsed_rows import parse, unique

from adg_plugin.config.schema import DatasetSpec
from adg_plugin.data.cells import Reason
from adg_plugin.data.rows import Rejection, Row, canonical_json, unique_rows
from adg_plugin.data.sources import Record, iter_records
from adg_plugin.errors import DataError


def test_ids_are_the_rows_own_or_a_hash_of_the_content():
    rows = unique(
        {"id": "a", "instruction": "x"},
        {"id": 7, "instruction": "x"},
        {"id": 8.0, "instruction": "x"},
        {"id": None, "instruction": "y"},
        {"id": "", "instruction": "z"},
        {"instruction": "w"},
    )
    assert [row.id for row in rows[:3]] == ["a", "7", "8"]
    assert all(len(row.id) == 17 and row.id[0] == "h" and int(row.id[1:], 16) >= 0 for row in rows[3:])
    assert [row.id for row in unique({"key": "k", "id": 1, "instruction": "x"}, field_id="key")] == ["k"]


def test_the_hash_is_the_same_in_every_run_and_order_of_columns():
    import hashlib

    text = '{"input":"","instruction":"Sag \\u00fc"}'
    expected = "h" + hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    for row in ({"instruction": "Sag ü", "input": ""}, {"input": "", "instruction": "Sag ü", "id": None}):
        assert parse(row).id == expected


def test_exact_duplicates_are_kept_once_and_reported():
    first, second, third = unique({"instruction": "a"}, {"instruction": "b"}, {"id": None, "instruction": "a"})
    assert isinstance(second, Row)
    assert (third.reason, third.detail, third.id) == ("duplicate", "same as p.jsonl:1", first.id)
    first, second, third = unique(
        {"id": 1, "instruction": "a"}, {"id": 2, "instruction": "a"}, {"instruction": "a", "id": 1}
    )
    assert isinstance(second, Row)
    assert third.reason == "duplicate"


def test_two_equal_ids_on_different_rows_are_an_error_that_names_them():
    with pytest.raises(DataError) as caught:
        unique({"id": "x", "instruction": "a"}, {"id": "y", "instruction": "a"}, {"id": "x", "instruction": "b"})
    assert str(caught.value) == (
        "p.jsonl:3: id 'x' is taken by a different row, p.jsonl:1: "
        "make ids unique, or set field_id: '' to use content hashes instead"
    )
    rows = unique({"id": "x", "instruction": "a"}, {"id": "x", "instruction": "b"}, field_id="")
    assert all(isinstance(row, Row) for row in rows)


def test_equal_ids_in_two_files_name_both(tmp_path):
    for name, text in (("a.jsonl", "a"), ("b.jsonl", "b")):
        (tmp_path / name).write_text(json.dumps({"id": 1, "instruction": text}))
    with pytest.raises(DataError, match=r"b\.jsonl:1: id '1' is taken by a different row, .*a\.jsonl:1"):
        list(unique_rows(iter_records([DatasetSpec(path=str(tmp_path / name)) for name in ("a.jsonl", "b.jsonl")])))


@given(st.lists(st.integers(0, 5), max_size=30))
def test_every_record_comes_out_once_and_each_content_is_one_row(contents):
    results = unique(*({"instruction": f"ask {n}"} for n in contents))
    assert [r.where for r in results] == [f"p.jsonl:{n}" for n in range(1, len(contents) + 1)]
    kept = [r for r in results if isinstance(r, Row)]
    assert sorted(row.instruction for row in kept) == sorted({f"ask {n}" for n in contents})
    assert len({row.id for row in kept}) == len(kept)


@given(st.lists(st.text(), unique=True, min_size=1), st.randoms())
def test_ids_do_not_depend_on_the_order_of_the_pool(texts, order: random.Random):
    rows = [{"instruction": text} for text in texts]
    ids = {row.data["instruction"]: row.id for row in unique(*rows)}
    order.shuffle(rows)
    assert {row.data["instruction"]: row.id for row in unique(*rows)} == ids


def test_lone_surrogates_and_dates_have_ids_too():
    import datetime
    import decimal

    (row,) = unique(
        {"instruction": "half \ud83d", "when": datetime.date(2024, 1, 1), "n": decimal.Decimal("1.5"), "b": b"x"}
    )
    assert (type(row), row.reason) == (Rejection, Reason.BAD_TEXT)
    (row,) = unique({"instruction": "a", "when": datetime.date(2024, 1, 1), "n": decimal.Decimal("1.5"), "b": b"x"})
    assert isinstance(row, Row)
    with pytest.raises(
        DataError,
        match=r"p\.jsonl:1: column 'image': a value of type object cannot be written as JSON: drop that column",
    ):
        unique({"instruction": "a", "image": object()})


def test_canonical_json_ignores_the_order_of_keys_only():
    assert canonical_json({"b": [1, 2], "a": {"d": 1, "c": "é"}}) == '{"a":{"c":"\\u00e9","d":1},"b":[1,2]}'
    assert canonical_json({"b": [2, 1]}) != canonical_json({"b": [1, 2]})


def test_memory_per_row_stays_small():
    def pool(count):
        spec = DatasetSpec(path="p")
        for n in range(1, count + 1):
            yield Record({"instruction": f"{n} " + "x" * 500}, f"p:{n}", spec)

    count = 20_000
    rows = unique_rows(pool(count))
    tracemalloc.start()
    try:
        for _ in rows:
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak / count < 200
