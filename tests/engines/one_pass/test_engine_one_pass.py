"""One pass is re-encoding: the engine's vectors are those of a plain forward over prompt + sampled tokens."""

import numpy as np
import pytest
import torch
from engine_results import check_vectors
from tiny_models import LAYERS, ONE_PASS, VOCABULARY, WINDOW, tiny_model, tiny_prompts, tiny_tokenizer

from adg_plugin.config.schema import ADGConfig
from adg_plugin.engines.factory import make_engine
from adg_plugin.engines.forward import attention, memory
from adg_plugin.engines.forward.decode_group import DecodeGroup
from adg_plugin.engines.models.loading import Backbone
from adg_plugin.engines.one_pass.decode_state import DecodeState
from adg_plugin.engines.one_pass.engine import OnePassEngine

pytestmark = pytest.mark.tiny

MANY_EOS = tuple(range(0, 26))  # about a tenth of the vocabulary: answers end early, at once, or at the limit
LENGTHS = (3, 300, 17, 64, 129, 5, 40, 128, 131, 4, 90, 16)
LIMIT = WINDOW + 8  # so that short prompts, too, have answers longer than the window


def run(model, prompts, *, eos=MANY_EOS, **settings):
    """Return the results by id, and the ids in the order in which they came."""
    config = ADGConfig(**{"max_new_tokens": LIMIT, "keep_vectors": True, **settings})
    found = list(OnePassEngine(model, tiny_tokenizer(), config, eos).run(prompts))
    assert sorted(r.id for r in found) == sorted(p.id for p in prompts)
    return {r.id: r for r in found}, [r.id for r in found]


@pytest.mark.parametrize("family", ONE_PASS)
def test_vectors_are_those_of_a_plain_forward(family):
    model = tiny_model(family)
    prompts = tiny_prompts(LENGTHS)
    engine = make_engine(
        Backbone(model, tiny_tokenizer(), MANY_EOS), ADGConfig(max_new_tokens=LIMIT, keep_vectors=True)
    )
    assert isinstance(engine, OnePassEngine)
    results = {r.id: r for r in engine.run(prompts)}
    ends = {(a.finish_reason, len(a.token_ids)) for r in results.values() for a in r.answers}
    assert {("eos", 1), ("length", LIMIT)} <= ends  # the case is there
    check_vectors(model, prompts, results, plain=True)


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "gpt2", "mixtral"])
@pytest.mark.parametrize(
    ("batch_tokens", "max_rows", "prefill_tokens"),
    [(1, 160, 2048), (3000, 12, 40), (10**6, 10**4, 10**5)],
    ids=["one prompt at a time", "small", "all at once"],
)
def test_vectors_are_right_at_any_batch_size(family, batch_tokens, max_rows, prefill_tokens, monkeypatch):
    monkeypatch.setitem(memory._MAX_ROWS, "cpu", max_rows)
    monkeypatch.setitem(memory._PREFILL_TOKENS, "cpu", prefill_tokens)
    model, prompts = tiny_model(family), tiny_prompts(LENGTHS[:8], seed=1)
    results, _ = run(model, prompts, num_samples=3, batch_tokens=batch_tokens)
    check_vectors(model, prompts, results)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text"])
def test_an_answer_of_one_token_is_fed_once_for_its_state(family):
    model, prompts = tiny_model(family), tiny_prompts(LENGTHS[:6])
    results, _ = run(model, prompts, max_new_tokens=1)
    assert {len(a.token_ids) for r in results.values() for a in r.answers} == {1}
    assert {a.finish_reason for r in results.values() for a in r.answers} == {"length"}
    check_vectors(model, prompts, results)


@pytest.mark.parametrize("layers", [1, 2, LAYERS])
def test_the_number_of_averaged_layers_is_honoured(layers):
    model, prompts = tiny_model("qwen3"), tiny_prompts(LENGTHS[:4])
    results, _ = run(model, prompts, layers=layers, max_new_tokens=6)
    check_vectors(model, prompts, results, layers=layers, plain=True)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt_oss"])
def test_vectors_stay_right_while_cohorts_shrink(family, monkeypatch):
    shrunk = []
    keep = DecodeGroup.keep

    def watched(decode_group, live):
        before = decode_group.places
        keep(decode_group, live)
        if 0 < decode_group.places < before:
            shrunk.append((before, decode_group.places))

    monkeypatch.setattr(DecodeGroup, "keep", watched)
    model, prompts = tiny_model(family), tiny_prompts([20, 100, 60, 3, 128, 90, 45, 20], seed=2)
    results, _ = run(model, prompts, eos=tuple(range(40)), max_new_tokens=80)
    assert len(shrunk) >= 3  # the case is there
    assert max(len(a.token_ids) for r in results.values() for a in r.answers) > 20
    check_vectors(model, prompts, results)


def test_answers_longer_than_a_block_of_the_cache_and_prompts_of_several_blocks():
    model, prompts = tiny_model("mistral"), tiny_prompts([3, 500, 257])
    results, _ = run(model, prompts, eos=(2,), max_new_tokens=150, num_samples=3)
    assert max(len(a.token_ids) for r in results.values() for a in r.answers) == 150
    check_vectors(model, prompts, results)


def test_every_token_is_fed_once():
    model, prompts = tiny_model(), tiny_prompts([40, 70, 100, 64], seed=3)
    fed = []
    handle = model.register_forward_pre_hook(lambda _m, _a, kw: fed.append(kw["input_ids"].numel()), with_kwargs=True)
    results, _ = run(model, prompts, eos=(2,))
    handle.remove()
    needed = sum(map(len, prompts)) + sum(r.num_tokens for r in results.values())
    assert needed <= sum(fed) <= needed + 15 * fed.count(16)  # batches below 16 tokens are filled up to it


def test_new_prompts_are_admitted_while_others_are_still_drawn(monkeypatch):
    monkeypatch.setitem(memory._MAX_ROWS, "cpu", 20)
    taken, results = [], []

    def source():
        for prompt in tiny_prompts([30] * 30):
            taken.append(prompt.id)
            yield prompt

    config = ADGConfig(max_new_tokens=LIMIT)
    for result in OnePassEngine(tiny_model(), tiny_tokenizer(), config, MANY_EOS).run(source()):
        results.append(result.id)
        assert len(taken) - len(results) <= 20 / 5 + 1 + 4  # no further ahead than the batch, the next, and what is out
    assert len(results) == 30
    assert results != taken  # not one batch after the other


def test_the_repetition_penalty_sees_each_rows_own_prompt_and_answer(monkeypatch):
    captured, seen = [], DecodeState.seen

    def watched(draws):
        found = seen(draws)
        for row, tokens in zip(draws.rows.tolist(), found.tolist(), strict=True):
            captured.append((draws.prompts[row // 4].id, row % 4, draws.decode_group.age, set(tokens)))
        return found

    monkeypatch.setattr(DecodeState, "seen", watched)
    model, prompts = tiny_model(), tiny_prompts([5, 60, 131, 17, 40, 9])
    settings = {"num_samples": 4, "repetition_penalty": 1.4, "eos": tuple(range(12))}
    together, _ = run(model, prompts, **settings)
    asked = {p.id: set(p.token_ids.tolist()) for p in prompts}
    whole = [id for id, result in together.items() if len(result.answers) == 4]  # else answers lose their numbers
    assert len(whole) > 3
    checked = 0
    for id, k, age, tokens in captured:
        if id in whole:
            assert tokens == asked[id] | set(together[id].answers[k].token_ids[:age].tolist())
            checked += 1
    assert checked > 100
    assert len({len(a.token_ids) for a in together["p0"].answers}) > 1  # rows end at different times
    for prompt in prompts:
        alone, _ = run(model, [prompt], **settings)
        for one, other in zip(alone[prompt.id].answers, together[prompt.id].answers, strict=True):
            np.testing.assert_array_equal(one.token_ids, other.token_ids)


def test_without_vectors_the_answers_are_the_same():
    model, prompts = tiny_model(), tiny_prompts(LENGTHS)
    results, _ = run(model, prompts)
    config = ADGConfig(max_new_tokens=LIMIT)
    engine = OnePassEngine(model, tiny_tokenizer(), config, MANY_EOS, vectors=False)
    for bare in engine.run(prompts):
        assert bare.gram is None
        assert bare.prompt_vector is None
        for ours, theirs in zip(bare.answers, results[bare.id].answers, strict=True):
            np.testing.assert_array_equal(ours.token_ids, theirs.token_ids)
            assert ours.finish_reason == theirs.finish_reason


def test_answers_hold_neither_the_prompt_nor_the_end_token_and_their_text_is_decoded():
    model, prompts = tiny_model(), tiny_prompts(LENGTHS)
    results, _ = run(model, prompts)
    for result in results.values():
        for answer in result.answers:
            assert 1 <= len(answer.token_ids) <= LIMIT
            assert not np.isin(answer.token_ids, MANY_EOS).any()
            assert answer.token_ids.max() < VOCABULARY
            assert answer.text == tiny_tokenizer().decode(answer.token_ids.tolist(), skip_special_tokens=True)
            assert answer.finish_reason == ("length" if len(answer.token_ids) == LIMIT else "eos")


def test_equal_answers_have_equal_rows_in_the_gram_matrix():
    model, prompts = tiny_model(), tiny_prompts([12, 20])
    results, _ = run(model, prompts, top_p=1e-6, max_new_tokens=5, eos=(2,))
    for result in results.values():
        assert len({a.token_ids.tobytes() for a in result.answers}) == 1
        assert (result.gram == result.gram[0, 0]).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_of_large_keys_are_not_rounded(dtype):
    # Qwen2's biases make scores of hundreds, which bfloat16 knows to the next whole number only.
    generator = torch.Generator().manual_seed(0)
    queries, keys = (torch.randn(3, n, 16, generator=generator).mul_(60).to(dtype) for n in (5, 40))
    exact = queries.double() @ keys.double().transpose(1, 2)
    torch.testing.assert_close(attention._products(queries, keys), exact.float(), rtol=1e-5, atol=1e-1)
    assert exact.abs().max() > 10_000


def test_large_keys_do_not_overflow_in_float16():
    model = tiny_model("qwen2", dtype=torch.float16)
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.q_proj.bias.fill_(100)
            block.self_attn.k_proj.bias.fill_(100)  # 8 products of 10,000 each
    results, _ = run(model, tiny_prompts([30, 40]), num_samples=3, max_new_tokens=4)
    assert {r.reason for r in results.values()} == {None}
