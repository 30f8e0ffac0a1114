"""The whole way from a pool to the chosen rows, with real tiny models: what is exact, what is reused, what is not."""

from __future__ import annotations

import json
import logging
import os
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny_models import tiny_tokenizer
from tiny_runs import (
    BAD,
    break_altogether,
    choose,
    fall_silent,
    parts,
    pool_rows,
    read_jsonl,
    save,
    scores,
    write_jsonl,
)

from adg_plugin.console import SamplingProgress
from adg_plugin.engines.models import loading
from adg_plugin.errors import DataError, NumericalError, StoreError
from adg_plugin.pipeline import run as pipeline
from adg_plugin.store import RunFolder

pytestmark = pytest.mark.tiny


def sampled(selection: pipeline.Selection) -> int:
    return selection.manifest["sampling"]["rows"]


def test_the_result_is_exactly_the_budget_best_first_and_the_rows_as_they_were(tmp_path: Path, model: Path):
    rows = [
        {"output": f"ä {n}", "id": f"r{n}", "instruction": f"Count to {n} ☃", "meta": {"z": [1, None, 0.5], "a": True}}
        for n in range(30)
    ]
    pool = write_jsonl(tmp_path / "pool.jsonl", rows)
    selection = choose(pool, model, tmp_path / "run", budget=7, bins=4)
    lines = selection.path.read_text(encoding="utf-8").splitlines()
    assert selection.path == tmp_path / "run" / "selected.jsonl"
    original = {row["id"]: row for row in rows}
    assert [list(json.loads(line).items()) for line in lines] == [list(original[i].items()) for i in selection.ids]
    assert len(set(selection.ids)) == len(lines) == 7

    table = pq.read_table(tmp_path / "run" / "scores.parquet").to_pylist()
    assert {row["id"] for row in table} == original.keys()
    by_score = sorted((row for row in table if row["chosen"]), key=lambda row: (-row["score"], row["id"]))
    assert tuple(row["id"] for row in by_score) == selection.ids
    assert RunFolder.read(tmp_path / "run").manifest()["rows"] == {
        "pool": 30, "duplicates": 0, "rejected": {}, "scored": 30, "bins": len({r["bin"] for r in table}), "selected": 7
    }  # fmt: skip


def test_scores_and_choice_agree_with_the_definitions(finished: tuple[Path, Path]):
    """Section 2 of the design, written out again from the stored Gram matrices."""
    run = RunFolder.read(finished[1])
    table = {row["id"]: row for row in run.scores().to_pylist()}
    for result in run.results():
        k = len(result.gram)
        centring = np.eye(k) - 1 / k
        spectrum = np.linalg.eigvalsh(centring @ result.gram.astype(float) @ centring)
        dispersion, anisotropy = spectrum.sum() / k, 1 - spectrum[-1] / spectrum.sum()
        row = table[result.id]
        assert (row["dispersion"], row["anisotropy"]) == pytest.approx((dispersion, anisotropy), abs=1e-6)
        assert row["score"] == pytest.approx(0.6 * dispersion + 0.4 * anisotropy, abs=1e-6)
        assert (row["num_answers"], row["answer_tokens"]) == (k, sum(len(a.token_ids) for a in result.answers))
    sizes = Counter(row["bin"] for row in table.values())
    quota = {b: 10 * size // 40 for b, size in sizes.items()}
    for b in sorted(sizes, key=lambda b: (-(10 * sizes[b] % 40), b))[: 10 - sum(quota.values())]:
        quota[b] += 1
    for b in sizes:
        best = sorted((r for r in table.values() if r["bin"] == b), key=lambda r: (-r["score"], r["id"]))
        assert [r["chosen"] for r in best] == [n < quota[b] for n in range(len(best))]
        assert [r["rank_in_bin"] for r in best] == [n + 1 for n in range(len(best))]


@pytest.mark.parametrize("batch_tokens", [None, 60, 400])
def test_the_order_of_the_pool_and_the_batch_change_nothing(finished, model, tmp_path, batch_tokens):
    rows = pool_rows(40)
    random.Random(batch_tokens or 0).shuffle(rows)
    selection = choose(rows, model, tmp_path / "run", batch_tokens=batch_tokens)
    assert selection.ids == tuple(row["id"] for row in read_jsonl(finished[1] / "selected.jsonl"))
    got, expected = scores(tmp_path / "run"), scores(finished[1])
    assert got.keys() == expected.keys()
    np.testing.assert_allclose([got[i] for i in expected], list(expected.values()), atol=1e-5)


def test_any_number_of_interruptions_changes_nothing(finished, pool, model, tmp_path, monkeypatch):
    add = SamplingProgress.add
    left = [0]

    def add_some(self, tokens, *, rejected):
        add(self, tokens, rejected=rejected)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(SamplingProgress, "add", add_some)
    done = 0
    for count in (1, 7, 2, 15):
        left[0] = count
        with pytest.raises(KeyboardInterrupt):
            choose(pool, model, tmp_path / "run")
        done += count
        with RunFolder.open(tmp_path / "run") as folder:
            assert folder.counts().completed == done
            assert folder.manifest() is None
    left[0] = 0
    selection = choose(pool, model, tmp_path / "run")
    assert sampled(selection) == 40 - done
    assert selection.ids == tuple(row["id"] for row in read_jsonl(finished[1] / "selected.jsonl"))
    assert scores(tmp_path / "run").keys() == scores(finished[1]).keys()


def test_a_run_folder_in_use_is_refused(run, pool, model):
    with RunFolder.open(run), pytest.raises(StoreError) as caught:
        choose(pool, model, run)
    said = f"run folder {run} is in use by process {os.getpid()} on host "
    assert str(caught.value).startswith(said)
    assert str(caught.value).endswith(": wait for it, or give another --out")


@pytest.mark.parametrize("harm", ["cut", "altered"])
def test_a_damaged_part_is_set_aside_and_its_rows_sampled_again(finished, pool, model, tmp_path, caplog, harm):
    rows, run = pool_rows(40), tmp_path / "run"
    choose(rows[:25], model, run)
    whole = parts(run).keys()
    choose(pool, model, run)
    (late,) = parts(run).keys() - whole
    path = run / "answers" / late
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data[: len(data) // 2] if harm == "cut" else data)
    with caplog.at_level(logging.WARNING, logger="adg_plugin"):
        selection = choose(pool, model, run)
    assert sampled(selection) == 15
    assert selection.ids == tuple(row["id"] for row in read_jsonl(finished[1] / "selected.jsonl"))
    assert (run / "answers" / "damaged" / late).exists()
    assert f"{path} is damaged" in caplog.text
    assert "its rows are to be sampled or measured again" in caplog.text


def test_a_damaged_pool_is_staged_again(run, pool, model, caplog, no_model):
    path = run / "prompts.parquet"
    path.write_bytes(path.read_bytes()[:-10])
    no_model()
    with caplog.at_level(logging.WARNING, logger="adg_plugin"):
        assert sampled(choose(pool, model, run)) == 0
    assert f"{path} is damaged" in caplog.text


def test_rows_that_the_engine_rejects_are_counted_and_not_drawn_again(spoilt, tmp_path, no_model):
    rows = pool_rows(30)
    for row in rows[::6]:
        row["instruction"] += BAD
    first = choose(rows, spoilt, tmp_path / "run")
    rejected = {row["id"]: row for row in read_jsonl(tmp_path / "run" / "rejected.jsonl")}
    assert {row["id"] for row in rows[::6]} <= rejected.keys()
    assert {row["reason"] for row in rejected.values()} == {"non_finite_states"}
    assert rejected["row-6"]["where"] == "dataset:7"
    assert first.manifest["rows"]["rejected"] == {"non_finite_states": len(rejected)}
    assert first.manifest["rows"]["scored"] == 30 - len(rejected)
    assert not rejected.keys() & scores(tmp_path / "run").keys()
    no_model()
    second = choose(rows, spoilt, tmp_path / "run", budget=4)
    assert second.manifest["rows"]["rejected"] == first.manifest["rows"]["rejected"]


def test_every_row_is_chosen_scored_or_rejected_with_its_reason(spoilt, tmp_path):
    rows = pool_rows(20)
    rows[2]["instruction"] = "  \n"
    rows[5]["instruction"] = "long " * 300
    rows[7]["instruction"] += BAD
    del rows[9]["instruction"]
    rows += [dict(rows[0]), dict(rows[11])]
    selection = choose(rows, spoilt, tmp_path / "run", max_prompt_tokens=200)
    rejected = read_jsonl(tmp_path / "run" / "rejected.jsonl")
    reasons = Counter(row["reason"] for row in rejected)
    assert reasons.items() >= {"only_white_space": 1, "prompt_too_long": 1, "no_instruction": 1, "duplicate": 2}.items()
    assert reasons["non_finite_states"] >= 1
    assert selection.manifest["rows"]["rejected"] == dict(reasons)
    assert selection.manifest["rows"]["duplicates"] == 2
    assert selection.manifest["rows"]["pool"] == 22
    assert len(scores(tmp_path / "run")) + len(rejected) == 22


def test_a_duplicate_counts_once(model, tmp_path):
    rows = [{k: v for k, v in row.items() if k != "id"} for row in pool_rows(10)]
    selection = choose(rows + rows[:7] + rows[:3], model, tmp_path / "run", budget=0.5)
    assert selection.manifest["rows"] == {
        "pool": 20, "duplicates": 10, "rejected": {"duplicate": 10}, "scored": 10, "bins": 1, "selected": 5
    }  # fmt: skip
    assert read_jsonl(tmp_path / "run" / "rejected.jsonl")[0]["detail"] == "same as dataset:1"
    assert len({row["instruction"] for row in selection.rows()}) == 5


@pytest.mark.parametrize(("budget", "chosen"), [(0.25, 10), (0.0001, 1), (1.0, 40), (1, 1), (40, 40)])
def test_a_budget_is_met_exactly(run, pool, model, budget, chosen):
    selection = choose(pool, model, run, budget=budget)
    assert len(selection.ids) == len(set(selection.ids)) == len(read_jsonl(selection.path)) == chosen
    assert not any("budget" in sentence for sentence in selection.manifest["warnings"])


def test_a_budget_above_the_pool_takes_all_and_says_so(run, pool, model, caplog):
    with caplog.at_level(logging.WARNING, logger="adg_plugin"):
        selection = choose(pool, model, run, budget=41)
    assert len(selection.ids) == 40
    said = "budget is 41, but only 40 rows can be chosen: all of them are"
    assert said in selection.manifest["warnings"]
    assert said in caplog.text


def test_no_row_to_sample_is_an_error_that_shows_the_reasons(model, tmp_path, no_model):
    no_model()
    with pytest.raises(DataError) as caught:
        choose([{"instruction": " "}, {"instruction": "\t"}], model, tmp_path / "run")
    rejected = tmp_path / "run" / "rejected.jsonl"
    assert str(caught.value) == f"none of the 2 rows can be sampled (only_white_space 2): see {rejected}"
    assert [row["reason"] for row in read_jsonl(rejected)] == ["only_white_space"] * 2


def test_answers_that_are_all_empty_leave_no_row(tmp_path):
    silent = save(tmp_path / "silent", fall_silent)
    with pytest.raises(DataError) as caught:
        choose(pool_rows(12), silent, tmp_path / "run")
    rejected = tmp_path / "run" / "rejected.jsonl"
    said = f"none of the 12 sampled rows can be scored (too_few_answers 12): see {rejected}"
    assert str(caught.value) == said
    assert len(read_jsonl(rejected)) == 12


@pytest.mark.parametrize("count", [40, 5])
def test_a_model_that_gives_nan_stops_the_run_with_a_hint(tmp_path, count):
    broken = save(tmp_path / "broken", break_altogether)
    with pytest.raises(NumericalError) as caught:
        choose(pool_rows(count), broken, tmp_path / "run")
    seen = min(count, 32)
    assert str(caught.value) == (
        f"{seen} of {seen} rows gave NaN or infinity: set dtype to bfloat16 or float32 (float16 overflows in many "
        "models), or check the model's weights"
    )
    assert caught.value.exit_code == 4
    assert not (tmp_path / "run" / "manifest.json").exists()


@pytest.mark.parametrize("count", [24, 64])
def test_some_rows_of_nan_stop_nothing_and_more_than_half_do(spoilt, tmp_path, count):
    rows = pool_rows(count)
    for row in rows[::5]:
        row["instruction"] += BAD
    assert choose(rows, spoilt, tmp_path / "a").manifest["rows"]["rejected"]["non_finite_states"] >= count // 5
    for row in rows[: count // 2 + 3]:
        row["instruction"] = f"{BAD} {row['instruction']}"
    with pytest.raises(NumericalError, match=r"\d+ of \d+ rows gave NaN or infinity: set dtype"):
        choose(rows, spoilt, tmp_path / "b")


def test_vectors_are_kept_when_asked_for(run, pool, model):
    choose(pool, model, run, keep_vectors=True)
    for result in RunFolder.read(run).results():
        vectors = result.vectors.astype(np.float32)
        np.testing.assert_allclose(vectors @ vectors.T, result.gram, atol=2e-3)


def test_the_manifest_says_what_produced_the_choice(run, pool, model):
    selection = choose(pool, model, run, weight=0.7)
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["config"]["weight"] == 0.7
    assert manifest["recipe"]["model"] == loading.fingerprint(pipeline.ADGConfig(model=str(model)))
    assert manifest["recipe"]["eos_ids"] == [tiny_tokenizer().eos_token_id]
    assert manifest["versions"].keys() >= {"adg-plugin", "torch", "transformers"}
    assert json.loads((run / "config.json").read_text(encoding="utf-8"))["config"] == manifest["config"]
    assert json.loads(json.dumps(selection.manifest))["rows"] == manifest["rows"]
