"""Rows for which memory is short: counted, not scored, and tried again by the next run."""

from __future__ import annotations

import shutil

import pytest
import torch
from tiny_runs import choose, pool_rows, read_jsonl

from adg_plugin.config.schema import ADGConfig
from adg_plugin.engines.models import loading
from adg_plugin.errors import OutOfMemoryError
from adg_plugin.pipeline.ranks import RANKS, merge_rank_results
from adg_plugin.pipeline.stage import Pool
from adg_plugin.store import RunFolder

pytestmark = pytest.mark.tiny


@pytest.fixture
def short_of_memory(monkeypatch):
    """Let forward passes of more than so many tokens run out of memory, until told otherwise."""
    limit = [10**9]
    load = loading.load_backbone

    def check(_module, _args, kwargs):
        if kwargs["input_ids"].numel() > limit[0]:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")

    def loaded(*arguments):
        backbone = load(*arguments)
        backbone.model.register_forward_pre_hook(check, with_kwargs=True)
        return backbone

    monkeypatch.setattr(loading, "load_backbone", loaded)
    return limit


def test_a_row_without_memory_is_counted_now_and_sampled_by_the_next_run(model, tmp_path, short_of_memory):
    rows = [*pool_rows(12), {"id": "long", "instruction": "word " * 100, "output": "x"}]
    short_of_memory[0] = 300
    first = choose(rows, model, tmp_path / "run", budget=13)
    (rejected,) = read_jsonl(tmp_path / "run" / "rejected.jsonl")
    assert (rejected["id"], rejected["reason"]) == ("long", "out_of_memory")
    assert first.manifest["rows"]["rejected"] == {"out_of_memory": 1}
    assert "long" not in first.ids
    short_of_memory[0] = 10**9
    again = choose(rows, model, tmp_path / "run", budget=13)
    assert again.manifest["sampling"]["rows"] == 1
    assert set(again.ids) == {*first.ids, "long"}
    assert choose(rows, model, tmp_path / "fresh", budget=13).ids == again.ids


def test_a_device_that_somebody_else_fills_stops_the_run_and_loses_nothing(model, tmp_path, short_of_memory):
    rows = pool_rows(12)
    short_of_memory[0] = 25  # enough for the probe
    with pytest.raises(
        OutOfMemoryError, match=r"^out of memory on 3 consecutive rows at batch size 1: free the device"
    ):
        choose(rows, model, tmp_path / "run")
    short_of_memory[0] = 10**9
    again = choose(rows, model, tmp_path / "run")
    assert again.manifest["rows"]["rejected"] == {}
    assert again.ids == choose(rows, model, tmp_path / "fresh").ids


def test_a_kill_while_a_rank_s_folder_is_removed_leaves_a_usable_run_folder(model, tmp_path, monkeypatch):
    rows, run = pool_rows(12), tmp_path / "run"
    expected = choose(rows, model, run).ids
    RunFolder.open(run / RANKS / "1").close()

    def killed(path):
        (path / "config.json").unlink(missing_ok=True)
        raise KeyboardInterrupt

    with RunFolder.open(run) as folder:
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", killed)
            with pytest.raises(KeyboardInterrupt):
                merge_rank_results(folder)
        merge_rank_results(folder)
    assert not list(run.glob(".absorbed*"))
    assert choose(rows, model, run).ids == expected


def test_rows_without_an_answer_are_rejected_where_training_follows(model, tmp_path):
    rows = [*pool_rows(6), {"id": "empty", "instruction": "Say no."}]
    pools = [Pool.of(ADGConfig(), rows, for_training=train) for train in (True, False)]
    found = []
    for number, pool in enumerate(pools):
        from adg_plugin.pipeline.run import run_selection

        config = ADGConfig(model=str(model), budget=10, num_samples=3, max_new_tokens=4)
        selection = run_selection(pool, config, tmp_path / str(number), show_progress=False)
        found.append((selection.manifest["rows"]["rejected"], len(selection.ids)))
    assert found == [({"no_answer": 1}, 6), ({}, 7)]
