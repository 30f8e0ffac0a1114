"""Single rows and texts out of the parts: the first result of a row counts, and no more parts are read than needed."""

from __future__ import annotations

from pathlib import Path

import pytest
from store_rows import IDS, assert_same, key_of, parts, result, stage, staged, write

from adg_plugin.store import RunFolder
from adg_plugin.store.lookup import find_result, write_index
from adg_plugin.store.staging import row_digest

ROWS = IDS[:23]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder of 23 rows in parts of 5, with its index; the last row is rejected."""
    stage(tmp_path, ROWS)
    write(tmp_path, ROWS[:-1])
    with RunFolder.open(tmp_path) as folder:
        folder.append(result(ROWS[-1], reason="out_of_memory"))
        folder.flush()
        write_index(tmp_path / "index.parquet", tmp_path / "prompts.parquet", folder.stock.parts)
    return tmp_path


def found(run: Path, id: str, **settings: str):
    return find_result(run / "index.parquet", run / "answers", id, row_digest(id, key_of(id, **settings)))


def test_every_row_is_found_and_comes_from_its_part(run: Path):
    for id in ROWS[:-1]:
        assert_same(found(run, id), result(id))
    assert found(run, ROWS[-1]).reason == "out_of_memory"
    assert found(run, "nobody") is None
    assert found(run, ROWS[0], settings="T=1") is None  # answers under other settings are another row's


def test_merged_parts_keep_their_rows_findable(run: Path):
    with RunFolder.open(run, rows_per_part=100) as folder:
        assert folder.compact() == 5
    assert len(parts(run)) == 1
    for id in ROWS[:-1]:
        assert_same(found(run, id), result(id))


def test_a_damaged_or_missing_part_gives_nothing_and_neither_does_a_folder_without_an_index(run: Path):
    first, second, *_ = parts(run)
    first.write_bytes(first.read_bytes()[:-1])
    second.unlink()
    assert [found(run, id) for id in ROWS[:10]] == [None] * 10
    assert_same(found(run, ROWS[10]), result(ROWS[10]))
    (run / "index.parquet").unlink()
    assert found(run, ROWS[10]) is None
    assert_same(RunFolder.read(run).result(staged(ROWS[10]).prompt), result(ROWS[10]))  # all parts are looked at


def test_texts_are_those_of_each_row_s_first_result_also_of_those_not_written_yet(tmp_path: Path):
    stage(tmp_path, ROWS)
    write(tmp_path, ROWS[:7])
    with RunFolder.open(tmp_path) as folder:
        folder.append(result(ROWS[0], reason="too late"))
        folder.append(result(ROWS[7]))
        texts = dict(folder.answer_texts())
    assert texts == {id: [answer.text for answer in result(id).answers] for id in ROWS[:8]}
