"""`adg estimate`: what it reckons is what the run then does, and what it measures is not done again."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import SETTINGS, choose, parts, pool_rows, read_jsonl, write_jsonl

from adg_plugin.cli import main
from adg_plugin.config.schema import ADGConfig
from adg_plugin.errors import DataError, StoreError
from adg_plugin.store import RunFolder
from adg_plugin.tools.estimate.estimate import Chunk, extrapolate
from adg_plugin.tools.estimate.measure import measure

COSTS = {"loading_s": 10, "staging_s": 5, "choosing_s": 2, "memory_bytes": 3e9, "disk_bytes": 1e6}


def chunk(rows, seconds, length=8):
    return Chunk(rows, seconds, np.full(rows * 5, length))


def extrapolated(chunks, **changes):
    values = {"rows": 1000, "pending": 1000, "prompt_tokens": 1.0, "num_samples": 5, "max_new_tokens": 16, **changes}
    return extrapolate(chunks, **COSTS, **values)


def test_a_row_costs_the_difference_of_two_chunks_and_the_ends_come_once():
    about = extrapolated(
        [chunk(4, 9.0), chunk(20, 7.0), chunk(40, 12.0)]
    )  # 2 s and 0.25 s a row; warming up does not count
    assert about.seconds["sampling"] == pytest.approx(2 + 0.25 * 1000)
    assert about.total_s == pytest.approx(10 + 5 + 2 + 252)
    assert about.left_s == pytest.approx(2 + 10 + 2 + 0.25 * (1000 - 64))
    assert about.low_s < about.total_s < about.high_s
    assert about.dominant == "sampling"
    assert about.answer_tokens == 1000 * 5 * 8


def test_nothing_left_costs_the_choice_alone():
    assert extrapolated([chunk(4, 1.0), chunk(20, 7.0), chunk(40, 12.0)], pending=64).left_s == COSTS["choosing_s"]


def test_a_chunk_that_was_held_up_does_not_turn_the_line_upside_down():
    about = extrapolated([chunk(4, 1.0), chunk(20, 30.0), chunk(40, 12.0)])
    assert 0.15 * 1000 <= about.seconds["sampling"] <= 0.3 * 1000 + 12


def test_what_other_settings_take_follows_the_tokens():
    lengths = np.array([4, 16, 16, 16, 16] * 40)
    about = extrapolated([Chunk(10, 1.0, lengths[:50]), Chunk(10, 1.0, lengths[50:100]), Chunk(20, 2.0, lengths[100:])])
    assert about.what_if == {"num_samples: 3": 0.6, "max_new_tokens: 8": pytest.approx((4 + 4 * 8) / (4 + 4 * 16))}
    assert about.cut == 0.8


def test_the_cost_is_that_of_the_hours():
    summary = extrapolated([chunk(4, 1.0), chunk(20, 7.0), chunk(40, 12.0)]).summary(gpu_hour_price=2.0)
    assert summary["cost"]["total"] == pytest.approx(summary["total_s"] / 1800)
    assert "cost" not in extrapolated([chunk(4, 1.0), chunk(20, 7.0), chunk(40, 12.0)]).summary()


def test_rows_of_very_unequal_answers_widen_the_interval_to_nothing_at_least():
    lengths = np.array([1, 1, 1, 1, 256] * 2)
    about = extrapolated([Chunk(0, 0.0, lengths[:0]), Chunk(1, 1.0, lengths[:5]), Chunk(1, 9.0, lengths[5:])])
    assert about.low_s == 17
    assert about.high_s > about.total_s


@given(pending=st.integers(4, 40), rows=st.none() | st.integers(2, 50), samples=st.integers(3, 80))
def test_chunks_are_of_their_size_and_share_no_row(pending, rows, samples):
    from adg_plugin.tools.estimate.measure import _blocks, _sizes

    sizes = _sizes(pending, ADGConfig(num_samples=min(64, samples), device="cpu"), rows)
    assert min(sizes) >= 0
    assert min(sizes[1:]) >= 1
    assert sum(sizes) == (min(pending, max(2, rows)) if rows else min(pending // 2, sum(sizes)))
    left = [str(n) for n in range(pending)]
    rng = np.random.default_rng(0)
    for size in sizes:
        block = _blocks(left, size, rng)
        assert len(set(block)) == len(block) == size
        left = [id for id in left if id not in set(block)]


def test_several_devices_cost_their_number():
    chunks = [chunk(4, 1.0), chunk(20, 7.0), chunk(40, 12.0)]
    one, four = (extrapolated(chunks, devices=n).summary(2.0)["cost"]["total"] for n in (1, 4))
    assert four == pytest.approx(4 * one)
    assert ADGConfig(engine="vllm", vllm_options={"tensor_parallel_size": 4}).devices() == 4
    assert ADGConfig(engine="vllm-server", server_urls=("http://a:1", "http://b:1")).devices() == 2
    assert ADGConfig(executor="ray").devices() is None
    assert ADGConfig().devices(ranks=3) == 3


def settings(pool, model, **changes):
    return ADGConfig.parse({**SETTINGS, "datasets": [str(pool)], "model": str(model), **changes})


@pytest.mark.tiny
def test_what_is_measured_is_kept_and_changes_nothing(model, tmp_path):
    pool = write_jsonl(tmp_path / "pool.jsonl", pool_rows(80))
    about = measure(settings(pool, model), tmp_path / "run", show_progress=False)
    assert (about.rows, about.measured) == (80, 40)
    before = parts(tmp_path / "run")
    assert RunFolder.read(tmp_path / "run").counts().completed == 40
    one = choose(pool, model, tmp_path / "run")
    assert {name: part for name, part in parts(tmp_path / "run").items() if name in before} == before
    assert one.manifest["sampling"]["rows"] == 40
    other = choose(pool, model, tmp_path / "other")
    assert one.ids == other.ids


@pytest.mark.tiny
def test_tokens_and_disk_are_about_those_of_the_run(model, tmp_path):
    pool = write_jsonl(tmp_path / "pool.jsonl", pool_rows(200))
    about = measure(settings(pool, model), tmp_path / "run", rows=90, show_progress=False)
    assert about.measured == 90
    run = choose(pool, model, tmp_path / "whole")
    assert about.answer_tokens == pytest.approx(run.manifest["answer_tokens"], rel=0.15)
    files = [path for path in (tmp_path / "whole").rglob("*.parquet") if path.name.startswith(("part", "prompts"))]
    assert about.disk_bytes == pytest.approx(sum(path.stat().st_size for path in files), rel=0.5)
    assert about.memory_bytes > 1e8


@pytest.mark.tiny
def test_the_command_prints_json_and_lines(model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "pool.jsonl", pool_rows(60))
    (tmp_path / "select.yaml").write_text(
        f"model: {model}\ndatasets: [pool.jsonl]\nnum_samples: 4\nmax_new_tokens: 6\n", encoding="utf-8"
    )
    with pytest.raises(SystemExit) as ended:
        main(["estimate", "select.yaml", "--json", "--gpu-hour-price", "2.5"])
    assert not ended.value.code
    found = json.loads(capsys.readouterr().out)
    assert found["cost"]["low"] < found["cost"]["total"] < found["cost"]["high"]
    with pytest.raises(SystemExit):
        main(["estimate", "select.yaml", "--rows", "10"])
    out = capsys.readouterr().out
    assert "still to do" in out
    assert max(map(len, out.splitlines())) <= 80
    assert "num_samples: 3 takes 75% of it" in " ".join(out.split())


@pytest.mark.tiny
def test_a_finished_pool_and_rows_without_answers_are_said(model, tmp_path):
    pool = write_jsonl(tmp_path / "pool.jsonl", pool_rows(20))
    run = choose(pool, model, tmp_path / "run")
    for changes in ({}, {"max_new_tokens": 9}):
        with pytest.raises(StoreError, match=r"run holds a finished selection: .* give another --out"):
            measure(settings(pool, model, **changes), tmp_path / "run", show_progress=False)
    assert RunFolder.read(tmp_path / "run").manifest()["rows"] == run.manifest["rows"]
    measure(settings(pool, model), tmp_path / "other", rows=20, show_progress=False)
    with pytest.raises(DataError, match="0 rows are left to sample: there is nothing to measure, run adg select"):
        measure(settings(pool, model), tmp_path / "other", show_progress=False)
    few = write_jsonl(tmp_path / "few.jsonl", pool_rows(3))
    with pytest.raises(DataError, match="3 rows are left to sample"):
        measure(settings(few, model), tmp_path / "few", show_progress=False)


@pytest.mark.slow
@pytest.mark.model
def test_the_time_is_about_that_of_the_run(demo_model, tmp_path):
    """Of the right size: other work may share the machine. benchmarks/bench_estimate.py has the figure."""
    from adg_plugin.demo import pool_paths
    from adg_plugin.pipeline.run import select

    rows = [row for path in pool_paths() for row in read_jsonl(path)]
    pool = write_jsonl(tmp_path / "pool.jsonl", rows[::3])
    config = ADGConfig.parse({"model": str(demo_model), "datasets": [str(pool)], "budget": 10, "max_new_tokens": 8})
    about = measure(config, tmp_path / "run", show_progress=False)
    real = select(config=config, output_dir=tmp_path / "real", show_progress=False).manifest["seconds"]
    assert real / 4 < about.total_s < real * 4
