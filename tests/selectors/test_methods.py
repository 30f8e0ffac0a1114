"""Selectors other than ADG through the whole way from a pool to the chosen rows, with real tiny models."""

from __future__ import annotations

import hashlib
import random
import re
import zlib
from io import StringIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from slow_zip import slow_zip
from tiny_models import tiny_tokenizer
from tiny_runs import choose, parts, pool_rows, read_jsonl, save, write_jsonl
from transformers import AutoModelForCausalLM

from adg_plugin import select
from adg_plugin.config.schema import ADGConfig
from adg_plugin.engines.models import loading
from adg_plugin.errors import ConfigError, DataError
from adg_plugin.pipeline.ranks import SingleProcess
from adg_plugin.pipeline.run import run_selection, run_stage
from adg_plugin.pipeline.stage import Pool
from adg_plugin.report.explain import explain
from adg_plugin.report.summary import print_summary
from adg_plugin.selectors.base import Task
from adg_plugin.selectors.candidates import Candidates
from adg_plugin.selectors.registry import selector
from adg_plugin.store import RunFolder

pytestmark = pytest.mark.tiny

WORDS = "sea wind stone light river bread seven green follow under"


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch):
    """A function after whose call no model can be loaded."""

    def load(*args: object, **kwargs: object) -> None:
        raise AssertionError("the model was loaded")

    return lambda: monkeypatch.setattr(loading, "load_backbone", load)


def answered_rows(count: int) -> list[dict[str, object]]:
    """Return rows whose answers are of different lengths and words."""
    draw = random.Random(3)
    return [{**row, "output": " ".join(draw.choices(WORDS.split(), k=draw.randint(1, 12)))} for row in pool_rows(count)]


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "pool.jsonl", answered_rows(40))


BUDGET = 10  # of tiny_runs
METHODS = ("random", "longest", "zip", "ifd", "superfiltering")


def settings(method: str, model: Path) -> dict[str, object]:
    return {"method": method, "small_model": str(model)}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_spends_the_budget_exactly_and_the_order_of_the_pool_plays_no_part(method, pool, model, tmp_path):
    chosen = choose(pool, model, tmp_path / "run", **settings(method, model))
    scored = 40 - sum(chosen.manifest["rows"]["rejected"].values())  # a random model finds most ratios above 1
    assert len(set(chosen.ids)) == len(chosen.ids) == len(read_jsonl(chosen.path)) == min(BUDGET, scored)
    shuffled = read_jsonl(pool)
    random.Random(1).shuffle(shuffled)
    other = choose(
        write_jsonl(tmp_path / "other.jsonl", shuffled), model, tmp_path / "other", **settings(method, model)
    )
    assert other.ids == chosen.ids
    manifest = chosen.manifest
    assert (manifest["rows"]["scored"], manifest["rows"]["bins"]) == (scored, None)
    table = pq.read_table(tmp_path / "run" / "scores.parquet").to_pylist()
    assert len(table) == scored
    by_rank = sorted((row for row in table if row["chosen"]), key=lambda row: row["rank"])
    assert tuple(row["id"] for row in by_rank) == chosen.ids
    assert (tmp_path / "run" / "data" / "train-00000-of-00001.parquet").is_file()


def test_a_fraction_counts_the_pool_and_a_budget_above_it_takes_all(pool, model, tmp_path):
    assert len(choose(pool, model, tmp_path / "run", method="random", budget=0.25).ids) == 10
    everything = choose(pool, model, tmp_path / "run", method="random", budget=100)
    assert len(everything.ids) == 40
    assert everything.manifest["warnings"] == ["budget is 100, but only 40 rows can be chosen: all of them are"]


def test_random_is_uniform_and_another_seed_draws_others(model, tmp_path):
    rows = pool_rows(30)
    counts = dict.fromkeys((row["id"] for row in rows), 0)
    seeds = range(200)
    ids = np.array(sorted(counts), dtype=object)

    def drawn(seed):
        task = Task(None, ADGConfig(seed=seed), None, len(ids))
        return selector("random").pick(Candidates(ids), 6, task).rows

    for seed in seeds:
        for row in drawn(seed):
            counts[ids[row]] += 1
    # 200 draws of a share of 0.2: mean 40, standard deviation 5.7; of 30 rows the furthest is within four of them.
    assert all(abs(count - 40) < 23 for count in counts.values())
    assert sum(counts.values()) == 200 * 6
    number = {id: int.from_bytes(hashlib.blake2b(f"7\0{id}".encode(), digest_size=8).digest(), "big") for id in ids}
    assert ids[drawn(7)].tolist() == sorted(ids, key=number.__getitem__, reverse=True)[:6]


def test_longest_are_those_of_the_most_tokens(pool, model, tmp_path):
    chosen = choose(pool, model, tmp_path / "run", method="longest")
    tokenizer = tiny_tokenizer()
    lengths = {row["id"]: len(tokenizer(row["output"], add_special_tokens=False).input_ids) for row in read_jsonl(pool)}
    assert chosen.ids == tuple(sorted(lengths, key=lambda id: (-lengths[id], id))[:10])


def test_zip_compresses_worse_than_what_random_takes(pool, model, tmp_path):
    def ratio(ids):
        rows = {row["id"]: row for row in read_jsonl(pool)}
        text = "\n".join(f"{rows[id]['instruction']}\n{rows[id]['output']}" for id in ids).encode()
        return len(text) / len(zlib.compress(text, 9))

    chosen = choose(pool, model, tmp_path / "run", method="zip")
    others = [choose(pool, model, tmp_path / "run", method="random", seed=seed).ids for seed in range(5)]
    assert ratio(chosen.ids) < min(ratio(ids) for ids in others)


def nll(model: torch.nn.Module, prompt: list[int], answer: list[int]) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *answer]])).logits[0].double()
    logp = logits.log_softmax(-1)
    return -sum(float(logp[len(prompt) + t - 1, token]) for t, token in enumerate(answer)) / len(answer)


def test_ifd_agrees_with_a_transcription(pool, model, tmp_path):
    """Mean -log p of each answer after its prompt, over that after the template's opening; up to 1, highest first."""
    chosen = choose(pool, model, tmp_path / "run", method="ifd", dtype="float32")
    backbone = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokenizer = tiny_tokenizer()
    opening = tokenizer("<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False).input_ids
    staged = pq.read_table(tmp_path / "run" / "prompts.parquet").to_pylist()
    found = {}
    for row in staged:
        answer = tokenizer(row["reference"], add_special_tokens=False).input_ids
        prompt = [int(token) for token in row["token_ids"]]
        found[row["id"]] = nll(backbone, prompt, answer) / nll(backbone, opening, answer)
    usable = {id: value for id, value in found.items() if value <= 1}
    assert 0 < len(usable) < 40
    table = {row["id"]: row for row in pq.read_table(tmp_path / "run" / "scores.parquet").to_pylist()}
    assert table.keys() == usable.keys()
    assert {id: row["score"] for id, row in table.items()} == pytest.approx(usable, abs=1e-4)
    assert chosen.ids == tuple(sorted(usable, key=lambda id: (-usable[id], id))[:10])
    rejected = {row["id"]: row for row in read_jsonl(tmp_path / "run" / "rejected.jsonl")}
    assert rejected.keys() == found.keys() - usable.keys()
    for id, row in rejected.items():
        assert row["reason"] == "ifd_above_1"
        told = re.fullmatch(r"IFD is ([\d.]+), above 1: the prompt makes the answer harder to predict", row["detail"])
        assert told is not None
        assert float(told[1]) == pytest.approx(found[id], abs=1e-4)


def test_superfiltering_agrees_with_a_transcription_and_ranks_otherwise_than_ifd(model, tmp_path):
    """The perplexity of each answer after `instruction\\ninput\\n` over that of it alone; below 1, highest first.

    The tokenizer puts nothing before a text, so the first token of the answer cannot be predicted where it is alone.
    """
    rows = [{**row, "input": f"Use {n} words." if n % 2 else ""} for n, row in enumerate(answered_rows(40))]
    chosen = choose(rows, model, tmp_path / "run", method="superfiltering", small_model=str(model), budget=40)
    small, tokens = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), tiny_tokenizer()

    def nlls(row):
        asked = f"{row['instruction']}\n{row['input']}\n" if row["input"] else f"{row['instruction']}\n"
        prompt, (first, *answer) = (tokens(t, add_special_tokens=False).input_ids for t in (asked, row["output"]))
        return nll(small, [*prompt, first], answer), nll(small, [first], answer)

    found = {row["id"]: nlls(row) for row in rows}
    ratio = {id: np.exp(after) / np.exp(alone) for id, (after, alone) in found.items()}
    usable = [id for id in ratio if ratio[id] < 1]
    assert 2 < len(usable) < 40
    assert chosen.ids == tuple(sorted(usable, key=lambda id: -ratio[id]))
    assert chosen.ids != tuple(sorted(usable, key=lambda id: -found[id][0] / found[id][1]))  # as IFD would rank them
    table = {row["id"]: row["score"] for row in pq.read_table(tmp_path / "run" / "scores.parquet").to_pylist()}
    assert table == pytest.approx({id: ratio[id] for id in usable}, abs=1e-4)


def test_zip_goes_on_where_it_was_cut_off(model, tmp_path, monkeypatch):
    from adg_plugin.selectors.zip import greedy as zip_ratio

    rows = answered_rows(230)
    settings = {"method": "zip", "budget": 220}
    whole = choose(rows, model, tmp_path / "whole", **settings)
    calls, step = [], zip_ratio._least_redundant

    def counted(*given):
        calls.append(given)
        if len(calls) == 2 and not (tmp_path / "again").exists():
            raise KeyboardInterrupt
        return step(*given)

    monkeypatch.setattr(zip_ratio, "_least_redundant", counted)
    with pytest.raises(KeyboardInterrupt):
        choose(rows, model, tmp_path / "run", **settings)
    (tmp_path / "again").touch()
    calls.clear()
    assert choose(rows, model, tmp_path / "run", **settings).ids == whole.ids
    assert len(calls) == 2  # steps of 100 and 20: the first is there
    calls.clear()
    assert choose(rows, model, tmp_path / "run", method="zip", budget=150).ids == whole.ids[:150]
    assert calls == []


def test_zip_looks_at_the_answers_too(model, tmp_path):
    """Rows that differ in nothing else are chosen as their texts with the answers compress."""
    rows = [{**row, "instruction": "Say something."} for row in answered_rows(14)]
    chosen = choose(rows, model, tmp_path / "run", method="zip", budget=6)
    by_id = sorted(rows, key=lambda row: row["id"])
    texts = [f"{row['instruction']}\n{row['output']}".encode() for row in by_id]
    expected, _ = slow_zip(texts, 6, 10_000, 200, 100)
    assert chosen.ids == tuple(by_id[row]["id"] for row in expected)


def test_a_stepwise_choice_shows_its_progress_without_a_speed_in_tokens(pool, model, tmp_path, capsys):
    config = {"method": "zip", "budget": 10}
    for _ in ("chosen", "there already"):
        select(str(pool), model=str(model), config=config, output_dir=tmp_path / "run", show_progress=True)
        assert re.search(r"^choosing: 10/10 rows, 0:\d\d passed, 0:00 left$", capsys.readouterr().err, re.MULTILINE)


@pytest.mark.parametrize("method", ["ifd", "superfiltering"])
def test_what_is_measured_is_not_measured_again(method, pool, model, tmp_path, no_model):
    first = choose(pool, model, tmp_path / "run", **settings(method, model))
    assert first.manifest["sampling"]["rows"] == 40
    no_model()
    again = choose(pool, model, tmp_path / "run", **settings(method, model), budget=5)
    assert again.manifest["sampling"]["rows"] == 0
    assert again.ids == first.ids[:5]


def test_methods_share_a_run_folder_and_leave_its_answers(pool, model, tmp_path, no_model):
    adg = choose(pool, model, tmp_path / "run")
    before = parts(tmp_path / "run")
    for method in METHODS:
        choose(pool, model, tmp_path / "run", **settings(method, model))
    assert parts(tmp_path / "run") == before
    no_model()
    assert choose(pool, model, tmp_path / "run").ids == adg.ids


def test_rows_without_an_answer_are_rejected_by_every_method(model, tmp_path):
    rows = answered_rows(20)
    rows[3]["output"] = " "
    pool = write_jsonl(tmp_path / "pool.jsonl", rows)
    for method in METHODS:
        chosen = choose(pool, model, tmp_path / "run", **settings(method, model), budget=19)
        assert chosen.ids
        assert "row-3" not in chosen.ids
        told = {row["id"]: (row["reason"], row["detail"]) for row in read_jsonl(tmp_path / "run" / "rejected.jsonl")}
        assert told["row-3"] == (
            "no_answer",
            "there is no answer of the row's own; name its column (field_output, field_completion) if there is one",
        )


def test_no_row_at_all_is_an_error_that_counts_the_reasons(model, tmp_path):
    pool = write_jsonl(tmp_path / "pool.jsonl", [{**row, "output": ""} for row in pool_rows(5)])
    with pytest.raises(DataError, match=r"^none of the 5 rows can be chosen by longest \(no_answer 5\): see "):
        choose(pool, model, tmp_path / "run", method="longest")


def test_a_row_that_cannot_be_measured_is_told_with_length_limit_and_fix(model, tmp_path):
    small = save(tmp_path / "small", max_position_embeddings=100)
    rows = answered_rows(20)
    rows[2]["instruction"] = "Go on and on. " * 9
    rows[4]["output"] = "x"
    choose(rows, model, tmp_path / "run", method="superfiltering", small_model=str(small))
    told = {row["id"]: (row["reason"], row["detail"]) for row in read_jsonl(tmp_path / "run" / "rejected.jsonl")}
    assert told["row-2"] == (
        "prompt_too_long",
        f"the prompt has 127 tokens of small_model {str(small)!r}, which takes 100, the answer included: shorten its "
        "instruction",
    )
    assert told["row-4"] == (
        "answer_too_short",
        "the answer is a single token, and nothing stands before it where it is alone: there is nothing to compare; "
        "give it a longer answer",
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"method": "best"},
            "method is 'best': use 'adg', 'random', 'longest', 'ifd', 'superfiltering', 'zip', 'mig' or 'scar'",
        ),
        (
            {"method": "random", "subset": "bottom"},
            "subset is 'bottom': leave it out, or use method: adg: random draws no answers",
        ),
    ],
)
def test_settings_that_contradict_a_method_are_refused(wrong, message):
    with pytest.raises(ConfigError) as caught:
        ADGConfig.parse(wrong)
    assert str(caught.value) == message


def test_filters_on_the_answers_are_refused_because_nothing_is_sampled():
    for filters in ({"min_agreement": 0.1}, {"underspecified": True}):
        with pytest.raises(ConfigError, match="leave min_agreement, drop_least_agreeing and underspecified out, or"):
            ADGConfig.parse({"method": "ifd", "filters": filters})


class Two(SingleProcess):
    """A team that is not alone."""

    size = 2


def test_what_samples_answers_is_refused_for_a_method_that_draws_none(pool, model, tmp_path):
    config = ADGConfig.parse({"model": str(model), "datasets": [str(pool)], "method": "random"})
    with pytest.raises(ConfigError) as caught:
        run_stage("sample", config, tmp_path / "run")
    assert str(caught.value) == (
        "method is 'random': `adg sample` is about the answers that ADG draws; use method: adg"
    )
    with pytest.raises(ConfigError, match="only ADG samples on Ray's workers"):
        run_selection(Pool.of(config), config.updated(executor="ray"), tmp_path / "run")
    for method in ("ifd", "scar"):
        with pytest.raises(ConfigError, match=f"method is '{method}': one process measures; select first with `adg se"):
            run_selection(Pool.of(config), config.updated(method=method), tmp_path / "run", team=Two())
    for model_of_mig in ("tagger", "quality_scorer"):
        asking = config.updated(method="mig", **{model_of_mig: str(model)})
        with pytest.raises(ConfigError, match="method is 'mig': one process measures"):
            run_selection(Pool.of(config), asking, tmp_path / "run", team=Two())
    with RunFolder.open(tmp_path / "run") as run, pytest.raises(ConfigError) as caught:
        selector(config.method).decide(Task(run, config, None, 0))
    assert str(caught.value) == "method is 'random', and there is no model to ask: use method: adg"


def test_a_pool_in_memory_is_chosen_from_too(model, tmp_path):
    chosen = select(
        answered_rows(12), model=str(model), config={"method": "longest", "budget": 3}, output_dir=tmp_path / "run"
    )
    assert len(list(chosen.rows())) == 3


def test_nothing_is_shown_where_no_row_is_asked_for(pool, model, tmp_path):
    for method in ("adg", "random"):
        choose(pool, model, tmp_path / "run", method=method)
        console = Console(record=True, width=120, file=StringIO())
        print_summary(tmp_path / "run", console, examples=0)
        assert "What is" not in console.export_text()


def test_where_every_row_is_chosen_another_seed_changes_nothing(pool, model, tmp_path):
    choose(pool, model, tmp_path / "run", method="random", budget=40)
    changes = explain(str(tmp_path / "run"), "row-3").changes
    assert changes[0] == "every row that could be chosen was"
    assert not any("seed" in sentence for sentence in changes)
