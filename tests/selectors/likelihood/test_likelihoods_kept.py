"""Likelihoods in the run folder: measured once, kept through crashes, never stale, and stopped where all fail."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from likelihood_runs import Asking
from tiny_runs import BAD, break_altogether, pool_rows, save, spoil

from adg_plugin.engines.judges import causal_lm
from adg_plugin.errors import NumericalError, OutOfMemoryError
from adg_plugin.store import RunFolder, ledger
from adg_plugin.store.ledger import Ledger

pytestmark = pytest.mark.tiny


@pytest.fixture
def seen(monkeypatch):
    """Ids of the rows that reach a model, in order."""
    ids: list[str] = []
    continuations = causal_lm.continuations

    def noted(row, max_tokens):
        ids.append(row.id)
        return continuations(row, max_tokens)

    monkeypatch.setattr(causal_lm, "continuations", noted)
    return ids


def test_what_is_measured_is_not_measured_again_and_needs_no_model(tmp_path, backbone):
    asking = Asking(tmp_path / "run", backbone, pool_rows(12))
    asking.measure()
    before, found = [part.read_bytes() for part in asking.parts()], asking.found()
    asking.source = replace(asking.source, load=lambda: pytest.fail("there is nothing to measure"))
    assert asking.measure() == {"rows": 0, "total": 12, "cut": 0}
    assert [part.read_bytes() for part in asking.parts()] == before
    assert asking.found() == found


def test_a_killed_run_goes_on_with_the_rows_that_no_part_holds(tmp_path, backbone, seen, monkeypatch):
    asking = Asking(tmp_path / "run", backbone, pool_rows(30))
    whole = Asking(tmp_path / "whole", backbone, pool_rows(30))
    whole.measure()
    with RunFolder.open(asking.folder) as run:
        asking.stage(run)
    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "__exit__", lambda *_: None)  # no farewell: what is buffered is lost
        patched.setattr(ledger, "ROWS_PER_PART", 7)
        patched.setattr(ledger, "FLUSH_S", 1e9)
        append = Ledger.append

        def dying(self, result):
            if len(self.stock.completed) == 17:
                raise KeyboardInterrupt
            append(self, result)

        patched.setattr(Ledger, "append", dying)
        with pytest.raises(KeyboardInterrupt):
            asking.measure()
    assert len(asking.parts()) == 2
    (asking.folder / "measures" / "ifd" / "part-000002-0.parquet.adg-tmp").write_bytes(b"half a part")
    done = {id for id, row in asking.found().items() if row[3] is None}
    assert len(done) == 14
    seen.clear()
    assert asking.measure()["rows"] == 16
    assert sorted(seen) == sorted(set(whole.found()) - done)
    assert not list(asking.folder.rglob("*.adg-tmp"))
    for id, row in asking.found().items():
        assert row[:2] == pytest.approx(whole.found()[id][:2], rel=2e-5)


def test_a_changed_answer_or_prompt_is_measured_anew_and_the_old_value_is_not_used(tmp_path, backbone, seen):
    rows = pool_rows(6)
    asking = Asking(tmp_path / "run", backbone, rows)
    asking.measure()
    old = asking.found()
    asking.rows = [
        {**rows[0], "output": "another answer"},
        {**rows[1], "instruction": "Write nothing."},
        *rows[2:],
    ]
    seen.clear()
    with RunFolder.open(asking.folder) as run:
        asking.stage(run)
    assert [row[3] for row in asking.found().values()] == ["not_measured"] * 2 + [None] * 4
    assert asking.measure()["rows"] == 2
    assert seen == ["row-0", "row-1"]
    new = asking.found()
    assert all(new[id] != old[id] for id in seen)
    assert all(new[id] == old[id] for id in set(old) - set(seen))
    asking.rows = rows  # and back: both are kept
    assert asking.measure() == {"rows": 0, "total": 6, "cut": 0}
    assert asking.found() == old


def test_another_model_type_or_length_never_takes_the_values_of_the_first(tmp_path, backbone, small):
    rows = pool_rows(4)
    first = Asking(tmp_path / "run", backbone, rows)
    first.measure()
    old = first.found()
    for other in (
        Asking(tmp_path / "run", save(tmp_path / "other", seed=9), rows),
        Asking(tmp_path / "run", backbone, rows, dtype="bfloat16"),
        Asking(tmp_path / "run", save(tmp_path / "short", max_position_embeddings=512), rows),
    ):
        assert {row[3] for row in other.found().values()} == {"not_measured"}
        assert other.measure()["rows"] == 4
        assert {row[3] for row in other.found().values()} == {None}
    assert first.measure()["rows"] == 0
    assert first.found() == old


def test_a_damaged_part_is_set_aside_and_its_rows_are_measured_again(tmp_path, backbone, seen, caplog):
    asking = Asking(tmp_path / "run", backbone, pool_rows(5))
    asking.measure()
    asking.rows = pool_rows(9)
    asking.measure()
    good = asking.found()
    [victim, _] = asking.parts()
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    assert sum(row[3] == "not_measured" for row in asking.found().values()) == 5
    assert victim.exists()  # a reader changes nothing
    seen.clear()
    asking.measure()
    assert sorted(seen) == [f"row-{n}" for n in range(5)]
    assert f"{victim} is damaged" in caplog.text
    assert (victim.parent / "damaged" / victim.name).read_bytes() == data
    for id, row in asking.found().items():
        assert row[:2] == pytest.approx(good[id][:2], rel=2e-5)


def test_rows_that_are_not_finite_are_rejected_and_counted(tmp_path):
    rows = pool_rows(9)
    rows[2]["output"] = f"an answer {BAD}"
    asking = Asking(tmp_path / "run", save(tmp_path / "model", spoil), rows)
    asking.measure()
    found = asking.found()
    assert {id: row[3] for id, row in found.items() if row[3]} == {"row-2": "non_finite_states"}
    assert np.isnan(found["row-2"][:2]).all()
    assert asking.measure()["rows"] == 0


def test_a_broken_model_is_an_error(tmp_path):
    asking = Asking(tmp_path / "run", save(tmp_path / "model", break_altogether), pool_rows(9))
    with pytest.raises(NumericalError) as caught:
        asking.measure()
    assert str(caught.value) == (
        "9 of 9 rows gave NaN or infinity: set dtype to bfloat16 or float32 (float16 overflows in many models), or "
        "check the model's weights"
    )


def without_memory_for(monkeypatch, is_too_much):
    answers = causal_lm.Likelihoods.answers

    def limited(self, batch):
        if any(is_too_much(continuation) for continuation in batch):
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        return answers(self, batch)

    monkeypatch.setattr(causal_lm.Likelihoods, "answers", limited)


def test_a_row_without_memory_is_left_for_the_next_run(tmp_path, backbone, monkeypatch):
    rows = pool_rows(6)
    rows[3]["output"] = "a long answer " * 9
    asking = Asking(tmp_path / "run", backbone, rows)
    with monkeypatch.context() as patched:
        without_memory_for(patched, lambda sequence: sequence.targets > 100)
        assert asking.measure()["skipped"] == {"row-3": "out_of_memory"}
    assert {id: row[3] for id, row in asking.found().items() if row[3]} == {"row-3": "not_measured"}
    stats = asking.measure()
    assert (stats["rows"], "skipped" in stats) == (1, False)


def test_without_memory_for_any_row_it_is_an_error(tmp_path, backbone, monkeypatch):
    asking = Asking(tmp_path / "run", backbone, pool_rows(6))
    without_memory_for(monkeypatch, lambda sequence: True)
    with pytest.raises(OutOfMemoryError) as caught:
        asking.measure()
    assert str(caught.value) == (
        "out of memory on 3 consecutive rows at batch size 1: free the device or lower max_prompt_tokens. What is "
        "measured is kept"
    )


def test_many_small_parts_become_one(tmp_path, backbone, monkeypatch):
    rows = pool_rows(70)
    asking = Asking(tmp_path / "run", backbone, rows)
    monkeypatch.setattr(ledger, "FLUSH_S", 0)
    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "compact", lambda *_, **__: 0)
        asking.measure()
    assert len(asking.parts()) == 70
    before = asking.found()
    asking.measure()
    assert len(asking.parts()) == 1
    assert asking.found() == before
    schema = ledger.measure_schema()
    with RunFolder.open(asking.folder) as run, ledger.open_measures(run, "ifd", schema) as kept:
        assert len(kept.stock.completed) == 70
        assert kept.stock.damage == []
        one = next(iter(kept.stock.completed))
        table = ledger.read_measures(run, "ifd", schema, [one, b"\1" * 16, one])
    assert table["id"].is_null().to_pylist() == [False, True, False]
