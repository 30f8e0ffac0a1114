"""Parts that are cut short, altered, foreign, small, or there twice."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from store_rows import IDS, check, parts, pending, result, stage, staged, write

from adg_plugin.errors import StoreError
from adg_plugin.store import RunFolder
from adg_plugin.store.parts import merge_small, take_stock, write_part


@pytest.mark.parametrize("harm", ["cut short", "emptied", "a byte flipped", "bytes appended", "another part's bytes"])
def test_a_damaged_part_is_set_aside_and_its_rows_are_drawn_again(tmp_path: Path, harm: str):
    ids = IDS[:40]
    stage(tmp_path, ids)
    victim, other = write(tmp_path, ids)[3:5]
    data = bytearray(victim.read_bytes())
    data[random.Random(harm).randrange(len(data))] ^= 0x10
    harmed = {
        "cut short": data[: len(data) // 2],
        "emptied": b"",
        "a byte flipped": data,
        "bytes appended": victim.read_bytes() + b"\0",
        "another part's bytes": other.read_bytes(),
    }[harm]
    victim.write_bytes(harmed)

    reader = RunFolder.read(tmp_path)
    assert len(list(reader.results())) == 35
    assert reader.damage[0].startswith(
        f"{victim} is damaged (its bytes do not match the checksum in its name): left out"
    )
    assert victim.exists()  # a reader changes nothing

    with RunFolder.open(tmp_path) as run:
        [sentence] = run.damage
        assert sentence.startswith(f"{victim} is damaged")
        assert sentence.endswith(f"moved to {tmp_path}/answers/damaged, its rows are to be sampled or measured again")
        assert (tmp_path / "answers" / "damaged" / victim.name).read_bytes() == harmed
        assert pending(run) == ids[15:20]
        for id in pending(run):
            run.append(result(id))
    check(tmp_path, ids)


def test_any_flipped_byte_is_found(tmp_path: Path):
    stage(tmp_path, IDS[:6])
    [part] = write(tmp_path, IDS[:6], rows_per_part=6)
    staged_pool = tmp_path / "prompts.parquet"
    moments = random.Random(1)
    for path in (part, staged_pool):
        good = path.read_bytes()
        for _ in range(150):
            data = bytearray(good)
            data[moments.randrange(len(data))] ^= 1 << moments.randrange(8)
            path.write_bytes(data)
            reader = RunFolder.read(tmp_path)
            if path == part:
                assert reader.stock.completed == set()
            else:
                assert reader.staged_digest() is None
            assert len(reader.damage) == 1
        path.write_bytes(good)
    check(tmp_path, IDS[:6])
    assert RunFolder.read(tmp_path).staged_digest() == "d"


def test_foreign_files_are_left_alone_and_leftovers_removed(tmp_path: Path):
    stage(tmp_path, IDS[:10])
    [part, _] = write(tmp_path, IDS[:10])
    answers = tmp_path / "answers"
    shutil.copy(part, answers / "part-000009.parquet")
    (answers / ".DS_Store").write_bytes(b"x")
    (answers / f"{part.name}.adg-tmp").write_bytes(b"half a part")
    (tmp_path / "scores.parquet.adg-tmp").write_bytes(b"half a table")
    (tmp_path / "notes.txt").write_text("mine")
    with RunFolder.open(tmp_path) as run:
        unread = answers / "part-000009.parquet"
        assert run.damage == [f"{unread} is not read: its name has no checksum, so this run did not write it"]
        assert pending(run) == []
    assert not list(tmp_path.rglob("*adg-tmp"))
    assert {p.name for p in answers.iterdir()} >= {"part-000009.parquet", ".DS_Store"}
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_many_small_parts_are_merged_on_closing(tmp_path: Path):
    ids = IDS[:200]
    stage(tmp_path, ids)
    for start in range(0, 130, 2):  # 65 runs that ended early
        with RunFolder.open(tmp_path) as run:
            run.append(result(ids[start]))
            run.append(result(ids[start + 1]))
            assert len(parts(tmp_path)) == start // 2
    assert len(parts(tmp_path)) == 1
    write(tmp_path, ids, rows_per_part=256)
    assert len(parts(tmp_path)) == 2
    check(tmp_path, ids)


def test_merging_keeps_to_neighbours_and_a_size(tmp_path: Path):
    stage(tmp_path, IDS)
    write(tmp_path, IDS[:6], rows_per_part=2)
    write(tmp_path, IDS[6:106], rows_per_part=100)
    write(tmp_path, IDS[106:110], rows_per_part=2)
    with RunFolder.open(tmp_path, rows_per_part=50) as run:
        assert run.compact() == 3
        assert [part.rows for part in run.stock.parts] == [6, 100, 4]
        assert run.compact() == 0
        for id in IDS[110:]:
            run.append(result(id))
    check(tmp_path, IDS)


@pytest.mark.parametrize("gone", [0, 1, 3, 5])
def test_a_merge_cut_off_between_its_steps(tmp_path: Path, gone: int):
    ids = IDS[:24]
    stage(tmp_path, ids)
    sources = {path: path.read_bytes() for path in write(tmp_path, ids, rows_per_part=4)}
    with RunFolder.open(tmp_path) as run:
        assert run.compact() == 5
    [merged] = parts(tmp_path)
    for path in list(sources)[gone:]:  # as after a crash with the merged part written and `gone` sources deleted
        path.write_bytes(sources[path])
    check(tmp_path, ids)
    with RunFolder.open(tmp_path) as run:
        assert pending(run) == []
        assert merged.exists()
        assert len(parts(tmp_path)) <= 2  # those that only repeat others are gone
    check(tmp_path, ids)


def test_of_two_results_for_one_row_the_first_counts(tmp_path: Path):
    """Only copying can bring this about: within one run folder a second result is not taken."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for path, num_answers in ((ours, 3), (theirs, 4)):
        with RunFolder.open(path, rows_per_part=2) as run:
            run.stage_prompts([staged(id) for id in IDS[:6]], digest="d")
            for id in IDS[:2] if path == ours else [*IDS[4:6], IDS[1], IDS[2]]:
                run.append(result(id, num_answers=num_answers))
    shutil.copy(parts(theirs)[1], ours / "answers")
    with RunFolder.open(ours, rows_per_part=9) as run:
        for _ in ("apart", "merged"):
            assert [(r.id, len(r.answers)) for r in run.results()] == list(zip(IDS[:3], [3, 3, 4], strict=True))
            assert [(group.rows.tolist(), len(group.grams[0])) for group in run.geometry().grams] == [
                ([0, 1], 3),
                ([2], 4),
            ]
            run.compact()
        [part] = run.stock.parts
        assert part.rows == 3


def test_a_part_altered_while_in_use_does_not_get_a_new_checksum(tmp_path: Path):
    stage(tmp_path, IDS[:10])
    first, _ = write(tmp_path, IDS[:10])
    with RunFolder.open(tmp_path) as run:
        data = bytearray(first.read_bytes())
        data[100] ^= 1
        first.write_bytes(data)
        with pytest.raises(StoreError, match="was altered while in use: run the same command again"):
            run.compact()
    with RunFolder.open(tmp_path) as run:
        assert pending(run) == IDS[:5]


def test_parts_of_a_version_without_a_column_are_read_and_merged(tmp_path: Path):
    ids = IDS[:12]
    stage(tmp_path, ids)
    written = write(tmp_path, ids[:6], rows_per_part=6)
    older = pq.read_table(written[0]).drop_columns(["agreement"])
    written[0].unlink()
    write_part(tmp_path / "answers", 0, older)
    check(tmp_path, ids[:6])
    stock = take_stock(tmp_path / "answers", repair=False)
    with RunFolder.open(tmp_path, rows_per_part=3) as run:
        for id in ids[6:]:
            run.append(result(id))
    merge_small(take_stock(tmp_path / "answers", repair=True), tmp_path / "answers", small_rows=100)
    assert len(list((tmp_path / "answers").glob("*.parquet"))) == len(stock.parts) == 1
    check(tmp_path, ids)
