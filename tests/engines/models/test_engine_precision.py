"""Weights in float32 that are asked in half precision: as a model that was loaded in it, and untouched afterwards."""

import logging
import weakref

import numpy as np
import pytest
import torch
from tiny_models import ONE_PASS, save_tiny_model, tiny_model, tiny_prompts, tiny_tokenizer
from transformers import AutoModelForCausalLM

from adg_plugin.config.schema import ADGConfig
from adg_plugin.engines.factory import make_engine
from adg_plugin.engines.models import inference_state as module
from adg_plugin.engines.models.inference_state import cast_weights, inference_state
from adg_plugin.engines.models.loading import Backbone, Source
from adg_plugin.errors import ModelError

pytestmark = pytest.mark.tiny

CONFIG = ADGConfig(num_samples=3, max_new_tokens=8)
SPREAD = r"^the model is spread over {}, as device_map='auto' does, and in pieces it cannot sample: load it on one "


def answers(model):
    backbone = Backbone(model, tiny_tokenizer(), (2,))
    return {result.id: result for result in make_engine(backbone, CONFIG).run(tiny_prompts([30, 5, 60]))}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", [*ONE_PASS, "gpt_oss", "mamba"])
def test_cast_weights_give_the_logits_of_a_model_that_was_loaded_so(family, dtype, tmp_path):
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype).eval()
    ids = torch.arange(5, 45)[None]
    with torch.no_grad(), cast_weights(model, dtype):
        found = model(input_ids=ids, use_cache=False).logits
        assert {n: w.dtype for n, w in model.named_parameters()} == {n: w.dtype for n, w in loaded.named_parameters()}
        assert torch.equal(found, loaded(input_ids=ids, use_cache=False).logits)


def test_cast_weights_draw_the_answers_of_a_model_that_was_loaded_so(tmp_path):
    model = tiny_model()
    loaded = AutoModelForCausalLM.from_pretrained(save_tiny_model(tmp_path), dtype=torch.bfloat16).eval()
    in_float = answers(model)
    with cast_weights(model, torch.bfloat16):
        found = answers(model)
    for name, expected in answers(loaded).items():
        assert [a.text for a in found[name].answers] == [a.text for a in expected.answers]
        np.testing.assert_array_equal(found[name].gram, expected.gram)
    assert any(not np.array_equal(found[name].gram, in_float[name].gram) for name in found)


def test_the_weights_themselves_are_set_aside_and_come_back():
    model = tiny_model(tie_word_embeddings=True).train()
    weights = dict(model.named_parameters())
    next(iter(weights.values())).requires_grad_(False)
    values = {name: weight.detach().clone() for name, weight in weights.items()}
    ids = torch.arange(5, 45)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    grads = {name: weight.grad for name, weight in weights.items()}
    states = [(id(weight), weight.requires_grad, weight.data_ptr()) for weight in weights.values()]
    with cast_weights(model, torch.bfloat16):
        assert model.lm_head.weight is model.model.embed_tokens.weight  # tied ones stay tied
        assert model.dtype == torch.bfloat16
        assert not any(weight.requires_grad for weight in model.parameters())
        copy = weakref.ref(model.lm_head.weight)
    assert copy() is None
    after = dict(model.named_parameters())
    assert list(after) == list(weights)
    assert [(id(weight), weight.requires_grad, weight.data_ptr()) for weight in after.values()] == states
    assert all(torch.equal(weight, values[name]) for name, weight in after.items())
    assert all(weight.grad is grads[name] for name, weight in after.items())


def test_a_model_that_was_prepared_for_training_is_asked_by_its_own_forward_pass():
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    model = tiny_model()
    own = answers(model)
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        prepared = Accelerator(mixed_precision="bf16", cpu=True).prepare_model(model)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    wrapped = prepared.forward
    with inference_state(prepared) as backbone:
        found = answers(backbone)
    for name, expected in own.items():
        np.testing.assert_array_equal(found[name].gram, expected.gram)
    assert prepared.forward is wrapped


def test_too_little_memory_for_the_copies_is_told_before_anything_is_asked(monkeypatch):
    model = tiny_model()
    weights = list(model.parameters())
    needed = 2 * sum(weight.numel() for weight in weights)
    monkeypatch.setattr(module, "free_bytes", lambda _: int(1.1 * needed))
    told = (
        r"weights are in float32, and cpu has no room for them in bfloat16 beside that \(.* GiB are free\): load the "
        r"model in bfloat16 \(a trainer's dtype, or model_init_kwargs=\{'dtype': 'bfloat16'\}\), select first with "
        "`adg run`, or set the selection's dtype to float32"
    )
    with pytest.raises(ModelError, match=told), cast_weights(model, torch.bfloat16):
        pytest.fail("asked")
    assert all(one is other for one, other in zip(model.parameters(), weights, strict=True))
    monkeypatch.setattr(module, "free_bytes", lambda _: int(1.3 * needed))
    with cast_weights(model, torch.bfloat16):
        assert model.dtype == torch.bfloat16


def test_what_is_cast_is_said(caplog):
    with caplog.at_level(logging.INFO, "adg_plugin"), cast_weights(tiny_model(), torch.float16):
        pass
    assert "the model's weights are in float32; answers are sampled in float16" in caplog.text


def test_a_model_on_several_devices_is_refused_before_anything_is_asked():
    model = tiny_model()
    model.hf_device_map = {"model.embed_tokens": 0, "model.layers.0": 1, "lm_head": "cpu"}
    with pytest.raises(ModelError, match=SPREAD.format("0, 1, cpu")) as caught:
        Source.loaded(model, tiny_tokenizer(), CONFIG)
    for way in ("device_map={'': 0}", "model_init_kwargs={'device_map': {'': 0}}", "4-bit", "accelerate launch"):
        assert way in str(caught.value)
    del model.hf_device_map
    model.model.layers[2].to("meta")  # as accelerate leaves what it has put elsewhere
    with pytest.raises(ModelError, match=SPREAD.format("cpu, meta")):
        Source.loaded(model, tiny_tokenizer(), CONFIG)
    with pytest.raises(ModelError, match=SPREAD.format("meta")):
        Source.loaded(model.to("meta"), tiny_tokenizer(), CONFIG)


def test_a_model_on_one_device_may_have_a_map_of_it():
    model = tiny_model()
    model.hf_device_map = {"": "cpu"}
    assert Source.loaded(model, tiny_tokenizer(), CONFIG).load().model is model
