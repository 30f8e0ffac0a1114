"""Poolings and agreement: what the engines add up on the way is what a plain forward pass over the tokens gives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import ONE_PASS, tiny_model, tiny_prompts, tiny_tokenizer
from tiny_runs import choose, parts, pool_rows, read_jsonl

from adg_plugin.config.schema import ADGConfig
from adg_plugin.engines.encode.embed import RepeatingEncoder
from adg_plugin.engines.encode.shared_prompt import SharedPromptEncoder
from adg_plugin.engines.forward.hidden_states import fixed_weights
from adg_plugin.engines.generate import GenerateEngine
from adg_plugin.engines.one_pass.engine import OnePassEngine
from adg_plugin.errors import ConfigError
from adg_plugin.store import RunFolder
from adg_plugin.store.records import Answer, Sampled

pytestmark = pytest.mark.tiny

EOS = tuple(range(0, 26))
LENGTHS = (3, 17, 130, 40, 5, 64)
POOLINGS = ("answer", "last_token", "skip_first", "surprisal")


def with_own_answers(prompts):
    """Return the prompts, most with a reference response, of one token to many."""
    rng = np.random.default_rng(1)
    lengths = [1, 9, 2, None, 30, 5]
    return [
        replace(p, reference_ids=None if n is None else rng.integers(30, 250, n).astype(np.int32))
        for p, n in zip(prompts, lengths, strict=True)
    ]


@torch.no_grad()
def expected(model, prompt, answer, pooling):
    """Return the unit vector of an answer, in a few lines that share nothing with the package."""
    ids = torch.tensor(np.concatenate((prompt, answer)).astype(np.int64))[None]
    output = model(input_ids=ids, output_hidden_states=True)
    states = torch.stack([h[0].double() for h in output.hidden_states[-4:]]).mean(0)[len(prompt) :]
    if pooling == "last_token":
        states = states[-1:]
    if pooling == "skip_first" and len(states) > 1:
        states = states[1:]
    weights = torch.ones(len(states), dtype=torch.float64)
    if pooling == "surprisal":
        of_tokens = torch.log_softmax(output.logits[0].double(), -1)[len(prompt) - 1 : -1]
        weights = -of_tokens[torch.arange(len(answer)), torch.tensor(answer, dtype=torch.long)]
    vector = (states * weights[:, None]).sum(0)
    return (vector / vector.norm()).numpy()


def check(model, prompts, results, pooling):
    found = {result.id: result for result in results}
    assert found.keys() == {prompt.id for prompt in prompts}
    seen = 0
    for prompt in prompts:
        result = found[prompt.id]
        if result.reason == "too_few_answers":
            continue
        seen += 1
        vectors = np.stack([expected(model, prompt.token_ids, a.token_ids, pooling) for a in result.answers])
        np.testing.assert_allclose(result.gram, vectors @ vectors.T, atol=3e-5)
        if prompt.reference_ids is None:
            assert result.agreement is None
            continue
        own, mean = expected(model, prompt.token_ids, prompt.reference_ids, pooling), vectors.mean(0)
        assert result.agreement == pytest.approx(own @ mean / np.linalg.norm(mean), abs=3e-5)
    assert seen > len(prompts) // 2


def settings(pooling, **changes):
    return ADGConfig(**{"max_new_tokens": 12, "pooling": pooling, **changes})


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("family", ONE_PASS)
def test_the_one_pass_engine_pools_as_a_plain_forward_says(family, pooling):
    model, prompts = tiny_model(family), with_own_answers(tiny_prompts(LENGTHS))
    check(model, prompts, OnePassEngine(model, tiny_tokenizer(), settings(pooling), EOS).run(prompts), pooling)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("encoder", [SharedPromptEncoder, RepeatingEncoder])
def test_encoders_pool_as_a_plain_forward_says(encoder, pooling):
    model, prompts = tiny_model("gemma2"), with_own_answers(tiny_prompts(LENGTHS))
    drawn = OnePassEngine(model, tiny_tokenizer(), settings(pooling), EOS, vectors=False).run(prompts)
    by_id = {prompt.id: prompt for prompt in prompts}
    rows = [Sampled(by_id[r.id], r.answers) for r in drawn if r.reason is None]
    check(model, [row.prompt for row in rows], encoder(model, settings(pooling)).run(rows), pooling)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_fallback_pools_as_a_plain_forward_says(pooling):
    model, prompts = tiny_model("llama"), with_own_answers(tiny_prompts(LENGTHS))
    check(model, prompts, GenerateEngine(model, tiny_tokenizer(), settings(pooling), EOS).run(prompts), pooling)


def test_poolings_differ_and_draw_the_same_answers():
    model, prompts = tiny_model("llama"), tiny_prompts(LENGTHS)
    found = {}
    for pooling in POOLINGS:
        results = OnePassEngine(model, tiny_tokenizer(), settings(pooling), EOS).run(prompts)
        found[pooling] = {r.id: r for r in results}
    for id, result in found["answer"].items():
        for pooling in POOLINGS[1:]:
            other = found[pooling][id]
            assert [a.token_ids.tolist() for a in other.answers] == [a.token_ids.tolist() for a in result.answers]
            if result.gram is not None and sum(len(a.token_ids) for a in result.answers) > 2 * len(result.answers):
                assert np.abs(other.gram - result.gram).max() > 1e-3


def test_feeding_own_answers_changes_no_bit_of_anything_else():
    model, prompts = tiny_model("llama"), tiny_prompts(LENGTHS)
    engine = OnePassEngine(model, tiny_tokenizer(), settings("answer"), EOS)
    without, beside = ({r.id: r for r in engine.run(p)} for p in (prompts, with_own_answers(prompts)))
    for id, result in without.items():
        other = beside[id]
        assert [a.token_ids.tolist() for a in result.answers] == [a.token_ids.tolist() for a in other.answers]
        if result.gram is not None:
            assert result.gram.tobytes() == other.gram.tobytes()
            assert result.prompt_vector.tobytes() == other.prompt_vector.tobytes()


def test_an_answer_of_one_token_has_a_vector_under_every_pooling():
    for pooling in POOLINGS:
        assert fixed_weights(pooling, 1).tolist() == [1]
    assert fixed_weights("last_token", 3).tolist() == [0, 0, 1]
    assert fixed_weights("skip_first", 3).tolist() == [0, 1, 1]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("encoder", [SharedPromptEncoder, RepeatingEncoder])
def test_a_reference_response_of_no_token_is_none(encoder, pooling):
    model, prompts = tiny_model("llama"), tiny_prompts(LENGTHS)
    drawn = OnePassEngine(model, tiny_tokenizer(), settings(pooling), EOS, vectors=False).run(prompts)
    by_id = {prompt.id: replace(prompt, reference_ids=np.empty(0, np.int32)) for prompt in prompts}
    rows = [Sampled(by_id[r.id], r.answers) for r in drawn if r.reason is None]
    bare = [Sampled(replace(row.prompt, reference_ids=None), row.answers) for row in rows]
    found, expected = (list(encoder(model, settings(pooling)).run(some)) for some in (rows, bare))
    assert [(r.id, r.reason, r.agreement) for r in found] == [(r.id, None, None) for r in expected]
    assert all(r.gram.tobytes() == e.gram.tobytes() for r, e in zip(found, expected, strict=True))


@pytest.mark.parametrize("encoder", [SharedPromptEncoder, RepeatingEncoder])
def test_an_answer_of_no_token_rejects_its_row_under_every_pooling(encoder):
    model, (prompt, *_) = tiny_model("llama"), tiny_prompts(LENGTHS)
    answers = tuple(Answer(np.arange(30, 30 + n, dtype=np.int32), "", "stop") for n in (3, 0, 5, 0))
    for pooling in POOLINGS:
        (result,) = encoder(model, settings(pooling)).run([Sampled(prompt, answers)])
        assert (result.reason, result.gram) == ("non_finite_states", None)


def test_rows_that_agree_least_are_rejected_with_their_reason(model, tmp_path):
    rows = [*pool_rows(40), {"id": "bare", "instruction": "What is left of nothing at all?"}]
    whole = choose(rows, model, tmp_path / "run", filters={"min_agreement": -1}, budget=5)
    agreement = {row["id"]: row["agreement"] for row in RunFolder.read(whole.run_dir).scores().to_pylist()}
    assert np.isnan(agreement.pop("bare"))  # nothing to agree with: it stays
    before = parts(whole.run_dir)

    fewer = choose(rows, model, tmp_path / "run", filters={"drop_least_agreeing": 0.25}, budget=5)
    assert parts(whole.run_dir) == before  # nothing was sampled again
    lowest = sorted(agreement, key=agreement.get)[:10]
    rejected = read_jsonl(fewer.run_dir / "rejected.jsonl")
    assert {row["id"] for row in rejected} == set(lowest)
    assert {row["reason"] for row in rejected} == {"low_agreement"}
    assert rejected[0]["detail"].endswith("filters.drop_least_agreeing is 0.25")
    assert fewer.manifest["rows"]["rejected"] == {"low_agreement": 10}
    assert fewer.manifest["rows"]["scored"] == 31
    assert not set(lowest) & set(fewer.ids)

    cut = sorted(agreement.values())[20]
    half = choose(rows, model, tmp_path / "run", filters={"min_agreement": cut}, budget=5)
    assert {row["id"] for row in read_jsonl(half.run_dir / "rejected.jsonl")} == set(
        sorted(agreement, key=agreement.get)[:20]
    )


def test_agreement_is_sampled_for_only_when_it_is_asked_for(model, tmp_path):
    plain = choose(pool_rows(20), model, tmp_path / "run", budget=5)
    assert "agreement" not in RunFolder.read(plain.run_dir).scores().column_names
    asked = choose(pool_rows(20), model, tmp_path / "run", budget=5, filters={"min_agreement": -1})
    assert not np.isnan(RunFolder.read(asked.run_dir).scores()["agreement"].to_numpy()).any()
    assert asked.ids == plain.ids


def test_agreement_that_cannot_be_is_said(model, tmp_path):
    with pytest.raises(
        ConfigError, match=r"pooling is 'reference': use another pooling, or leave filters\.min_agreement"
    ):
        ADGConfig.parse({"pooling": "reference", "filters": {"min_agreement": 0.5}})
    bare = [{"prompt": f"What is {n} times seven?"} for n in range(12)]
    run = choose(bare, model, tmp_path / "run", filters={"min_agreement": 0.5}, budget=5)
    assert "no row has an answer of its own, so the filter on agreement rejects nothing" in run.manifest["warnings"]
