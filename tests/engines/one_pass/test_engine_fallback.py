"""A model that cannot be run in one pass is told apart, once and aloud, and still gets right vectors."""

import logging

import numpy as np
import pytest
import torch
from engine_results import check_vectors
from tiny_models import FAMILIES, ONE_PASS, WINDOW, tiny_model, tiny_prompts, tiny_tokenizer

from adg_plugin.config.schema import ADGConfig
from adg_plugin.engines.factory import make_engine
from adg_plugin.engines.forward.hidden_states import HiddenStateRecorder, last_layers
from adg_plugin.engines.generate import GenerateEngine
from adg_plugin.engines.models.loading import Backbone
from adg_plugin.engines.one_pass.engine import OnePassEngine
from adg_plugin.engines.one_pass.probe import one_pass_problem

pytestmark = pytest.mark.tiny

EOS = tuple(range(12))
UNTOLD = "its masks have a window of 16 tokens, of which its attention does not know"
# What stands in the way, and a piece of what is said about it.
OTHERS = {
    "mamba": "it has layers of type linear_attention",
    "recurrent_gemma": "it has layers of type linear_attention",
    "bloom": "0 of its 5 layers use the attention they are given",
    "openai-gpt": "0 of its 5 layers use the attention they are given",
    "opt": "its hidden states differ from those of a plain forward pass",  # its base model is never called
    "doge": "it builds its own attention mask",
    "qwen2_moe": UNTOLD,
    "phimoe": UNTOLD,
}
SETTINGS = {"qwen2_moe": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 5}}


def engine_of(model, **settings):
    config = ADGConfig(**{"num_samples": 3, "max_new_tokens": 6, "keep_vectors": True, **settings})
    return make_engine(Backbone(model, tiny_tokenizer(), EOS), config)


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING, logger="adg_plugin")
    return lambda: [r.getMessage() for r in caplog.records if r.name.startswith("adg_plugin")]


@pytest.mark.parametrize("family", OTHERS)
def test_it_warns_once_and_the_vectors_are_those_of_a_plain_forward(family, warnings):
    model, prompts = tiny_model(family, **SETTINGS.get(family, {})), tiny_prompts([30, 3, 21])
    engine = engine_of(model)
    assert isinstance(engine, GenerateEngine)
    results = {r.id: r for r in engine.run(prompts)}
    assert list(results) == ["p0", "p1", "p2"]
    (said,) = warnings()
    assert said.startswith(f"{type(model).__name__} cannot be run in one pass ({OTHERS[family]}")
    assert said.endswith("): generating and re-encoding instead, which is slower")
    check_vectors(model, prompts, results, plain=True)


def test_a_model_whose_attention_ignores_ours_is_noticed(warnings):
    model, prompts = tiny_model(), tiny_prompts([30, 3])
    model.set_attn_implementation = lambda name: None
    engine = engine_of(model)
    assert isinstance(engine, GenerateEngine)
    check_vectors(model, prompts, {r.id: r for r in engine.run(prompts)}, plain=True)
    assert len(warnings()) == 1


@pytest.mark.parametrize("family", [*ONE_PASS, "gpt_oss"])
def test_the_named_architectures_need_no_fallback(family, warnings):
    assert isinstance(engine_of(tiny_model(family)), OnePassEngine)
    assert warnings() == []


def test_a_window_that_no_sequence_can_reach_is_no_reason():
    settings = {**SETTINGS["qwen2_moe"], "sliding_window": 1024, "max_position_embeddings": 1024}
    assert one_pass_problem(tiny_model("qwen2_moe", **settings), last_layers(4)) is None


@pytest.mark.parametrize("family", ["llama", "mamba", "bloom", "gemma2"])
def test_the_question_leaves_the_model_as_it_was(family):
    assert family in FAMILIES
    model = tiny_model(family)
    before = model.config._attn_implementation
    torch.manual_seed(3)
    random = torch.random.get_rng_state()
    one_pass_problem(model, last_layers(4))
    assert model.config._attn_implementation == before
    assert torch.equal(torch.random.get_rng_state(), random)
    hooks = [h for m in model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    assert not any(isinstance(getattr(h, "__self__", None), HiddenStateRecorder) for h in hooks)


def test_generated_answers_do_not_depend_on_the_order_of_the_rows():
    model, prompts = tiny_model("bloom"), tiny_prompts([30, 3, 21, 9])
    engine = engine_of(model)
    torch.manual_seed(0)
    there = {r.id: r for r in engine.run(prompts)}
    torch.manual_seed(1)
    back = {r.id: r for r in engine.run(prompts[::-1])}
    alone = {r.id: r for p in prompts for r in engine.run([p])}
    for other in (back, alone):
        for name, result in there.items():
            assert [a.token_ids.tolist() for a in other[name].answers] == [a.token_ids.tolist() for a in result.answers]
            np.testing.assert_array_equal(other[name].gram, result.gram)
    answers = {a.token_ids.tobytes() for r in there.values() for a in r.answers}
    assert len(answers) == sum(len(r.answers) for r in there.values())  # no two streams alike


def test_generated_answers_leave_the_end_token_out_and_say_how_they_ended():
    model, prompts = tiny_model("bloom"), tiny_prompts([30, 3, 21, 9])
    answers = [a for r in engine_of(model, num_samples=8).run(prompts) for a in r.answers]
    assert {a.finish_reason for a in answers} == {"eos", "length"}
    for answer in answers:
        assert not np.isin(answer.token_ids, EOS).any()
        assert (answer.finish_reason == "length") == (len(answer.token_ids) == 6)
        assert answer.text == tiny_tokenizer().decode(answer.token_ids.tolist(), skip_special_tokens=True)


def test_rotations_that_depend_on_the_longest_row_of_a_batch_are_left_to_generate(warnings):
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    model = tiny_model("llama", rope_parameters=rope)
    assert isinstance(engine_of(model, max_prompt_tokens=1000), OnePassEngine)
    assert isinstance(engine_of(model, max_prompt_tokens=1020), GenerateEngine)
    assert (
        "beyond 1024 tokens its positions depend on the longest row of a batch, and rows may have 1026" in warnings()[0]
    )
