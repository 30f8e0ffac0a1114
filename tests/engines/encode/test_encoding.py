"""Answers embedded after their shared prompt: the vectors of the one-pass engine, in any batch, on any architecture."""

import numpy as np
import pytest
import torch
from tiny_models import ONE_PASS, WINDOW, tiny_model, tiny_prompts, tiny_tokenizer

from adg_plugin.config.schema import ADGConfig
from adg_plugin.engines.encode.embed import RepeatingEncoder
from adg_plugin.engines.encode.shared_prompt import SharedPromptEncoder
from adg_plugin.engines.factory import make_encoder, make_engine
from adg_plugin.engines.models.loading import Backbone
from adg_plugin.engines.one_pass.engine import OnePassEngine
from adg_plugin.store.records import Sampled

pytestmark = pytest.mark.tiny

MANY_EOS = tuple(range(0, 26))
LENGTHS = (3, 300, 17, 64, 129, 5, 40, 128, 131, 4, 90, 16)
CONFIG = ADGConfig(max_new_tokens=WINDOW + 8, keep_vectors=True)


def sampled_rows(model, config=CONFIG, lengths=LENGTHS):
    """Return rows with answers, and the engine's own results for them by id."""
    prompts = tiny_prompts(lengths)
    by_id = {p.id: p for p in prompts}
    results = [r for r in OnePassEngine(model, tiny_tokenizer(), config, MANY_EOS).run(prompts) if r.reason is None]
    assert len(results) > len(lengths) / 2
    return [Sampled(by_id[r.id], r.answers) for r in results], {r.id: r for r in results}


def check(found, expected, *, atol=2e-5):
    assert sorted(r.id for r in found) == sorted(expected)
    for result in found:
        own = expected[result.id]
        assert (result.reason, result.key) == (None, own.key)
        assert [a.token_ids.tolist() for a in result.answers] == [a.token_ids.tolist() for a in own.answers]
        np.testing.assert_allclose(result.gram, own.gram, atol=atol)
        np.testing.assert_allclose(result.prompt_vector, own.prompt_vector, atol=1e-3)
        np.testing.assert_allclose(result.vectors, own.vectors, atol=2e-3)  # kept in float16


@pytest.mark.parametrize("family", [*ONE_PASS, "gpt_oss"])
def test_the_vectors_are_those_of_the_one_pass_engine(family):
    model = tiny_model(family)
    rows, expected = sampled_rows(model)
    check(list(SharedPromptEncoder(model, CONFIG).run(rows)), expected)


@pytest.mark.parametrize("batch_tokens", [1, 300, 10**6])
def test_batches_and_order_change_nothing(batch_tokens):
    model = tiny_model()
    rows, expected = sampled_rows(model)
    check(list(SharedPromptEncoder(model, CONFIG, batch_tokens=batch_tokens).run(rows[::-1])), expected)


def test_each_prompt_goes_through_the_model_once():
    model = tiny_model()
    rows, _ = sampled_rows(model)
    seen = []
    handle = model.register_forward_pre_hook(lambda _m, _a, kw: seen.append(kw["input_ids"].numel()), with_kwargs=True)
    list(SharedPromptEncoder(model, CONFIG).run(rows))
    handle.remove()
    assert sum(seen) == sum(map(len, rows))


@pytest.mark.parametrize("family", ["bloom", "mamba"])
def test_other_architectures_encode_each_answer_after_its_own_prompt(family):
    model = tiny_model(family)
    backbone = Backbone(model, tiny_tokenizer(), MANY_EOS)
    prompts = tiny_prompts(LENGTHS)
    by_id = {p.id: p for p in prompts}
    expected = {r.id: r for r in make_engine(backbone, CONFIG).run(prompts) if r.reason is None}
    encoder = make_encoder(backbone, CONFIG)
    assert isinstance(encoder, RepeatingEncoder)
    check(list(encoder.run([Sampled(by_id[id], r.answers) for id, r in expected.items()])), expected)


def test_reference_pooling_embeds_the_texts():
    model, config = tiny_model(), CONFIG.updated(pooling="reference")
    backbone = Backbone(model, tiny_tokenizer(), MANY_EOS)
    prompts = tiny_prompts(LENGTHS)
    by_id = {p.id: p for p in prompts}
    expected = {r.id: r for r in make_engine(backbone, config).run(prompts) if r.reason is None}
    rows = [Sampled(by_id[id], r.answers) for id, r in expected.items()]
    check(list(make_encoder(backbone, config).run(rows)), expected)


def limited(model, tokens):
    """Let `model` run out of memory beyond so many tokens, and return the sizes of what it is fed."""
    sizes = []

    def check_size(_module, _args, kwargs):
        sizes.append(kwargs["input_ids"].numel())
        if sizes[-1] > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")

    model.register_forward_pre_hook(check_size, with_kwargs=True)
    return sizes


def test_out_of_memory_halves_the_batch_and_rejects_a_row_that_does_not_fit_alone():
    model = tiny_model()
    rows, expected = sampled_rows(model)
    longest = max(rows, key=len)
    sizes = limited(model, len(longest) - 1)
    found = list(SharedPromptEncoder(model, CONFIG, batch_tokens=10**6).run(rows))
    assert sizes[0] == sum(map(len, rows))
    (rejected,) = [r for r in found if r.reason is not None]
    assert (rejected.id, rejected.reason, rejected.gram) == (longest.id, "out_of_memory", None)
    check([r for r in found if r.reason is None], {id: r for id, r in expected.items() if id != longest.id})


def test_equal_answers_have_one_vector():
    model = tiny_model()
    rows, _ = sampled_rows(model)
    one = rows[0]
    (result,) = SharedPromptEncoder(model, CONFIG).run([Sampled(one.prompt, one.answers[:1] * 4)])
    assert len(np.unique(result.gram)) == 1


def test_a_row_of_nan_is_rejected_alone():
    model = tiny_model()
    rows, expected = sampled_rows(model)
    poison = int(rows[0].prompt.token_ids[0])
    others = [r for r in rows if not any(poison in t for t in (r.prompt.token_ids, *(a.token_ids for a in r.answers)))]
    with torch.no_grad():
        model.get_input_embeddings().weight[poison] = torch.nan
    found = {r.id: r for r in SharedPromptEncoder(model, CONFIG).run([rows[0], *others])}
    assert (found[rows[0].id].reason, found[rows[0].id].gram) == ("non_finite_states", None)
    check([found[r.id] for r in others], {r.id: expected[r.id] for r in others})
