"""A row gets the same answers and the same vectors, bit for bit, whatever shares its batch."""

import numpy as np
import pytest
import torch
from engine_results import assert_equal
from tiny_models import tiny_model, tiny_prompts, tiny_tokenizer

from adg_plugin.config.schema import ADGConfig
from adg_plugin.engines.forward import memory
from adg_plugin.engines.one_pass.engine import OnePassEngine

pytestmark = pytest.mark.tiny

EOS = tuple(range(0, 20))
LENGTHS = (40, 3, 200, 17, 130, 64, 128, 4, 90)


def run(model, prompts, **settings):
    config = ADGConfig(**{"max_new_tokens": 16, "keep_vectors": True, **settings})
    results = list(OnePassEngine(model, tiny_tokenizer(), config, EOS).run(prompts))
    assert sorted(r.id for r in results) == sorted(p.id for p in prompts)
    return {r.id: r for r in results}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_batch_size_and_order_change_nothing(family, dtype, monkeypatch):
    model, prompts = tiny_model(family, dtype=dtype), tiny_prompts(LENGTHS)
    usual = run(model, prompts)
    assert_equal(usual, run(model, prompts[::-1], batch_tokens=1))
    shuffled = [prompts[i] for i in np.random.default_rng(0).permutation(len(prompts))]
    for rows, prefill in ((12, 150), (1000, 1)):
        monkeypatch.setitem(memory._MAX_ROWS, "cpu", rows)
        monkeypatch.setitem(memory._PREFILL_TOKENS, "cpu", prefill)
        assert_equal(usual, run(model, shuffled, batch_tokens=50 * rows))


def test_a_part_of_the_pool_gets_what_the_whole_pool_gives_it():
    model, prompts = tiny_model("qwen2"), tiny_prompts(LENGTHS)
    usual = run(model, prompts)
    part = prompts[2::5]
    assert_equal({p.id: usual[p.id] for p in part}, run(model, part))


def test_equal_prompts_have_equal_answers_and_other_seeds_others():
    model = tiny_model()
    (prompt,) = tiny_prompts([30])
    twin = type(prompt)("twin", prompt.token_ids, prompt.span)
    found = run(model, [prompt, *tiny_prompts([25, 60], seed=4)[1:], twin])
    answers = [[a.token_ids.tolist() for a in found[name].answers] for name in (prompt.id, "twin")]
    assert answers[0] == answers[1]
    assert len({tuple(a) for a in answers[0]}) == 5  # the K answers of a row differ
    other = run(model, [prompt], seed=1)[prompt.id]
    assert not {tuple(a) for a in answers[0]} & {tuple(a.token_ids.tolist()) for a in other.answers}


def test_more_answers_begin_with_the_same_streams():
    model, prompts = tiny_model(), tiny_prompts([30, 45])
    few, many = run(model, prompts, num_samples=3), run(model, prompts, num_samples=7)
    for name, result in few.items():
        if all(len(r.answers) == k for r, k in ((result, 3), (many[name], 7))):
            first = [a.token_ids.tolist() for a in many[name].answers[:3]]
            # A redrawn answer comes from a stream whose number depends on K.
            assert sum(a.token_ids.tolist() == b for a, b in zip(result.answers, first, strict=True)) >= 2
