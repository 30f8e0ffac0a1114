"""The run folder on a good day: what goes in comes out, once, whatever the order."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_rows import assert_same, key_of, pending, result, run_child, staged

from adg_plugin.errors import StoreError
from adg_plugin.store import Counts, Rejection, RunFolder, StagedRow
from adg_plugin.store.records import Answer, RowResult

IDS = [f"row-{n}" for n in range(10)]


def filled(path: Path, ids: list[str] = IDS, **opening: int) -> Path:
    with RunFolder.open(path, **opening) as run:
        run.stage_prompts([staged(id) for id in ids], digest="d")
        for id in ids:
            run.append(result(id))
    return path


@st.composite
def row_results(draw: st.DrawFn) -> RowResult:
    texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    id, key = draw(texts), draw(st.binary(min_size=16, max_size=16))
    tokens = st.lists(st.integers(0, 2**31 - 1), max_size=4).map(lambda t: np.array(t, np.int32))
    answers = st.builds(Answer, tokens, texts, st.sampled_from(["eos", "length"]))
    if draw(st.booleans()):
        return RowResult(id, key, tuple(draw(st.lists(answers, max_size=3))), None, None, draw(texts))
    k, width = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    seed = np.random.default_rng(draw(st.integers(0, 99)))
    return RowResult(
        id,
        key,
        tuple(draw(st.lists(answers, min_size=k, max_size=k))),
        seed.standard_normal((k, k)).astype(np.float32),
        seed.standard_normal(width).astype(np.float16),
        None,
        seed.standard_normal((k, width)).astype(np.float16) if draw(st.booleans()) else None,
    )


@settings(max_examples=25, deadline=None)
@given(st.lists(row_results(), max_size=8, unique_by=lambda r: r.id), st.integers(1, 4))
def test_results_come_back_as_they_went_in(tmp_path_factory: pytest.TempPathFactory, rows: list[RowResult], size: int):
    path = tmp_path_factory.mktemp("run")
    with RunFolder.open(path, rows_per_part=size) as run:
        prompts = [staged("x").prompt.__class__(r.id, np.arange(3, dtype=np.int32), (0, 2), r.key) for r in rows]
        run.stage_prompts([StagedRow(p, "", "", "{}", "") for p in prompts], digest="d")
        for row in rows:
            run.append(row)
    got = list(RunFolder.read(path).results())
    assert [r.id for r in got] == [r.id for r in rows]
    for a, b in zip(got, rows, strict=True):
        assert_same(a, b)


def test_staged_prompts_come_back_in_windows_without_the_rejected_and_the_completed(tmp_path: Path):
    ids = [f"row-{n}" for n in range(5000)]
    rows: list[StagedRow | Rejection] = [staged(id) for id in ids]
    rows[7:7] = [Rejection("bad", "empty instruction", "only white space", "pool.jsonl:8")]
    with RunFolder.open(tmp_path) as run:
        assert run.staged_digest() is None
        assert run.stage_prompts(iter(rows), digest="digest of the pool") == 5000
        assert run.staged_digest() == "digest of the pool"
        assert list(run.staged_rejections()) == [
            Rejection("bad", "empty instruction", "only white space", "pool.jsonl:8")
        ]
        windows = list(run.iter_windows())
        assert [len(window) for window in windows] == [2047, 2048, 905]
        assert [p.id for w in windows for p in w] == ids
        for prompt in windows[1][:50]:
            want = staged(prompt.id).prompt
            assert (prompt.key, prompt.span, prompt.token_ids.dtype) == (want.key, want.span, np.int32)
            np.testing.assert_array_equal(prompt.token_ids, want.token_ids)
        for id in ids[:2500]:
            run.append(result(id))
        assert pending(run) == ids[2500:]  # also what is only buffered is not handed out again
        assert [p.id for w in run.iter_windows(pending_only=False) for p in w] == ids
        assert run.counts() == Counts(prompts=5000, completed=2500, rejected=1)
        assert run.counts().pending == 2500
        [row] = run.staged_rows(["row-4999"])
        want = staged("row-4999")
        assert (row.text, row.reference, row.data, row.where) == (want.text, want.reference, want.data, want.where)


def test_rows_with_long_texts_come_in_smaller_groups(tmp_path: Path):
    with RunFolder.open(tmp_path) as run:
        run.stage_prompts((staged(f"{n}", text="x" * (8 << 20)) for n in range(9)), digest="d")
        assert [len(window) for window in run.iter_windows()] == [4, 4, 1]


def test_a_staging_that_fails_leaves_the_old_pool(tmp_path: Path):
    def rows():
        yield from (staged(f"new-{n}") for n in range(3000))
        raise RuntimeError("the pool's file broke off")

    with RunFolder.open(filled(tmp_path)) as run:
        with pytest.raises(RuntimeError, match="broke off"):
            run.stage_prompts(rows(), digest="new")
        assert run.staged_digest() == "d"
        assert [p.id for w in run.iter_windows(pending_only=False) for p in w] == IDS
    assert not list(tmp_path.glob("*tmp*"))


def test_changed_settings_reuse_nothing_and_the_old_ones_come_back(tmp_path: Path):
    filled(tmp_path)
    with RunFolder.open(tmp_path) as run:
        assert pending(run) == []
        run.stage_prompts([staged(id, settings="T=1") for id in IDS], digest="d2")
        assert pending(run) == IDS
        assert len(run.geometry()) == 0
        run.append(result("row-3", settings="T=1"))
        assert [r.id for r in run.results()] == ["row-3"]
        assert_same(next(run.results()), result("row-3", settings="T=1"))
    with RunFolder.open(tmp_path) as run:
        run.stage_prompts([staged(id) for id in IDS], digest="d")
        assert pending(run) == []
        assert_same(next(run.results(["row-3"])), result("row-3"))


def test_the_first_result_of_a_row_stays(tmp_path: Path):
    first, second = result("row-0"), result("row-0", reason="too late")
    with RunFolder.open(tmp_path, rows_per_part=1) as run:
        run.stage_prompts([staged("row-0")], digest="d")
        run.append(first)
        run.append(second)
        [got] = run.results()
        assert_same(got, first)


def test_an_engines_rejection_is_not_drawn_again(tmp_path: Path):
    with RunFolder.open(tmp_path) as run:
        run.stage_prompts([staged("a"), staged("b")], digest="d")
        run.append(result("b", reason="NaN in the states"))
    with RunFolder.open(tmp_path) as run:
        assert pending(run) == ["a"]
        assert run.geometry().rejections == (Rejection("b", "NaN in the states", where="f:b"),)
        with pytest.raises(ValueError, match="row 'a' has neither a reason nor both"):
            run.append(RowResult("a", key_of("a"), (), None, None))


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_geometry_depends_on_no_order(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    shuffle = data.draw(st.integers(0, 10**6).map(random.Random))
    ids = data.draw(st.lists(st.text("aAzZ0é€😀_", min_size=1, max_size=6), unique=True, max_size=30))
    ks = {id: data.draw(st.sampled_from([0, 3, 4, 5])) for id in ids}  # 0: rejected
    pool, order = shuffle.sample(ids, len(ids)), shuffle.sample(ids, len(ids))
    done = order[: data.draw(st.integers(0, len(ids)))]
    path = tmp_path_factory.mktemp("run")
    with RunFolder.open(path, rows_per_part=data.draw(st.integers(1, 9))) as run:
        run.stage_prompts([staged(id) for id in pool], digest="d")
        run.append(result("of another pool"))
        for id in done:
            run.append(result(id, num_answers=ks[id], reason=None if ks[id] else "bad"))
            run.append(result(id, settings="other", num_answers=3))
    geometry = RunFolder.read(path).geometry()

    scored = sorted(id for id in done if ks[id])
    assert list(geometry.ids) == scored
    assert [r.id for r in geometry.rejections] == sorted(id for id in done if not ks[id])
    want = {id: result(id, num_answers=ks[id]) for id in scored}
    assert geometry.prompt_vectors.dtype == np.float16
    for id, vector, tokens in zip(geometry.ids, geometry.prompt_vectors, geometry.answer_tokens, strict=True):
        np.testing.assert_array_equal(vector, want[id].prompt_vector)
        assert tokens == want[id].num_tokens
    assert [group.grams.shape[1] for group in geometry.grams] == sorted({ks[id] for id in scored})
    assert sorted(np.concatenate([[], *(group.rows for group in geometry.grams)])) == list(range(len(scored)))
    for group in geometry.grams:
        assert (np.diff(group.rows) > 0).all()
        for row, gram in zip(group.rows, group.grams, strict=True):
            np.testing.assert_array_equal(gram, want[geometry.ids[row]].gram)


def test_selected_rows_are_the_original_ones_in_the_order_asked_for(tmp_path: Path):
    originals = {
        "b": '{"id": "b",  "x": 1.0, "big": 12345678901234567890123, "s": "\\u00e9\\n"}',
        "a": '{"instruction": "é",\n "n": null}\n',
        "c": "{ }",
        "d": '{"not chosen": 1}',
        "e": '{"id": null}',
    }
    with RunFolder.open(tmp_path) as run:
        run.stage_prompts([staged(id, data=text) for id, text in originals.items()], digest="d")
        path = run.write_selected(["c", "a", "e", "b"])
        assert path.read_text(encoding="utf-8").split("\n") == [
            '{"id": "c"}',
            '{"id": "a", "instruction": "é",  "n": null}',
            '{"id": null}',
            originals["b"],
            "",
        ]
        with pytest.raises(ValueError, match="the chosen id 'nobody' is not among the prompts"):
            run.write_selected(["a", "nobody"])
        with pytest.raises(ValueError, match="1 of the 2 chosen ids are repeated"):
            run.write_selected(["a", "a"])
        assert len(path.read_text().splitlines()) == 4
        assert run.write_selected([]).read_bytes() == b""


def test_the_manifest_means_complete(tmp_path: Path):
    table = pa.table({"id": ["a"], "score": [0.5]})

    def finish(run: RunFolder) -> None:
        run.write_scores(table)
        run.write_selected(["row-1"])
        run.write_manifest({"rows": 1})

    with RunFolder.open(filled(tmp_path)) as run:
        assert run.manifest() is None
        with pytest.raises(StoreError, match=r"selected\.jsonl does not exist: write it before manifest\.json"):
            run.write_manifest({})
        finish(run)
        manifest = run.manifest()
        assert manifest is not None
        assert manifest["rows"] == 1
        assert set(manifest["files"]) == {"selected.jsonl", "scores.parquet"}
        assert run.scores() == table
        for undo in (
            lambda: run.append(result("another")),
            lambda: run.stage_prompts([staged(id) for id in IDS], digest="e"),
            lambda: run.write_scores(table),
            lambda: run.selected_path.write_text("{}\n"),
            lambda: run.selected_path.unlink(),
        ):
            finish(run)
            assert run.manifest() is not None
            undo()
            assert run.manifest() is None
        finish(run)
        run.append(result("row-1"))  # known: nothing new
    assert RunFolder.read(tmp_path).manifest() is not None


def test_rejected_rows_are_written_and_counted(tmp_path: Path):
    rows = [Rejection("a", "too long", "2,000 tokens", "f:1"), Rejection("b", "empty"), Rejection("c", "empty")]
    with RunFolder.open(tmp_path) as run:
        assert run.write_rejected(iter(rows)) == {"empty": 2, "too long": 1}
        assert list(run.rejections()) == rows
    line = (tmp_path / "rejected.jsonl").read_text().splitlines()[0]
    assert json.loads(line) == {"id": "a", "reason": "too long", "detail": "2,000 tokens", "where": "f:1"}


def test_a_rejected_row_may_hold_what_utf8_cannot(tmp_path: Path):
    with RunFolder.open(tmp_path) as run:
        run.stage_prompts([Rejection("\ud800", "encoding", "holds '\udfff'", "f:1")], digest="d")
        [row] = run.staged_rejections()
        assert row == Rejection("\\ud800", "encoding", "holds '\\udfff'", "f:1")
        run.write_rejected([Rejection("\ud800", "encoding")])
        assert [r.id for r in run.rejections()] == ["\ud800"]


def test_results_are_written_by_number_by_time_and_at_the_end(tmp_path: Path):
    def parts() -> int:
        return len(list((tmp_path / "answers").glob("part-*")))

    with RunFolder.open(tmp_path, rows_per_part=4, flush_s=1000) as run:
        for n in range(4):
            assert parts() == 0
            run.append(result(f"{n}"))
        assert parts() == 1
        run.append(result("4"))
        assert parts() == 1
    assert parts() == 2
    with RunFolder.open(tmp_path, flush_s=0) as run:
        run.append(result("5"))
        assert parts() == 3
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path)
    assert parts() == 4


def interrupted(path: Path) -> None:
    with RunFolder.open(path) as run:
        run.append(result("6"))
        raise KeyboardInterrupt


def test_the_store_loads_no_torch():
    assert run_child(code="import sys, adg_plugin.store; print('torch' in sys.modules)") == "False\n"
