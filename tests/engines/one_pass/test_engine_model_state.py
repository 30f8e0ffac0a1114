"""The engine only borrows the model: whoever had it goes on with it, and with torch's random numbers, as before."""

import numpy as np
import pytest
import torch
from tiny_models import tiny_model, tiny_prompts, tiny_tokenizer
from transformers import GenerationConfig

from adg_plugin.config.schema import ADGConfig
from adg_plugin.engines.encode.embed import embed_reference
from adg_plugin.engines.factory import make_engine
from adg_plugin.engines.forward.hidden_states import HiddenStateRecorder
from adg_plugin.engines.generate import GenerateEngine
from adg_plugin.engines.models.loading import Backbone
from adg_plugin.engines.one_pass.engine import OnePassEngine

pytestmark = pytest.mark.tiny

EOS = tuple(range(12))
ENGINES = pytest.mark.parametrize("kind", [OnePassEngine, GenerateEngine])


class Interruption(Exception):
    pass


def built(kind, model, **settings):
    config = ADGConfig(**{"num_samples": 3, "max_new_tokens": 10, **settings})
    return kind(model, tiny_tokenizer(), config, EOS)


def traces(model):
    """Return all that the engine changes for its work, as it is now."""
    modules = list(model.modules())
    hooks = [h for m in modules for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    return {
        "attention": model.config._attn_implementation,
        "generation": model.generation_config,
        "taps": sum(isinstance(getattr(h, "__self__", None), HiddenStateRecorder) for h in hooks),
        "training": [m.training for m in modules],
        "grads": [p.requires_grad for p in model.parameters()],
    }


def trained(model):
    """Return the loss of a training step's forward pass, with the gradients in place."""
    ids = torch.arange(5, 45)[None]
    model.zero_grad()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return float(loss.detach()), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.fixture
def model():
    model = tiny_model()
    model.generation_config = GenerationConfig(temperature=0.3, eos_token_id=7, top_k=3, do_sample=True)
    return model


def assert_trains_as_before(model, before):
    loss, grads = trained(model)
    assert loss == before[0]
    for ours, theirs in zip(grads, before[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@ENGINES
def test_a_run_leaves_the_model_as_it_was(model, kind):
    before, step = traces(model), trained(model)
    list(built(kind, model).run(tiny_prompts([30, 5, 60])))
    assert traces(model) == before
    assert torch.is_grad_enabled()
    assert_trains_as_before(model, step)


@ENGINES
def test_an_error_leaves_the_model_as_it_was(model, kind):
    before, step = traces(model), trained(model)
    calls = []

    def fail(_module, _args):
        calls.append(1)
        if len(calls) == 4:
            raise Interruption

    handle = model.register_forward_pre_hook(fail)
    with pytest.raises(Interruption):
        list(built(kind, model).run(tiny_prompts([30, 5, 60])))
    handle.remove()
    assert traces(model) == before
    assert torch.is_grad_enabled()
    assert_trains_as_before(model, step)


@ENGINES
def test_an_error_in_the_pool_leaves_the_model_as_it_was(model, kind):
    before = traces(model)

    def pool():
        yield from tiny_prompts([30, 5])
        raise Interruption

    with pytest.raises(Interruption):
        list(built(kind, model).run(pool()))
    assert traces(model) == before


@ENGINES
def test_a_run_that_is_not_finished_leaves_the_model_as_it_was(model, kind):
    before = traces(model)
    results = built(kind, model).run(tiny_prompts([30, 5, 60] * 5))
    next(results)
    results.close()
    assert traces(model) == before
    assert torch.is_grad_enabled()


def test_the_model_can_be_used_between_two_results(model, monkeypatch):
    prompts = tiny_prompts([30, 5, 60, 12, 40])
    before, usual = traces(model), {r.id: r for r in built(OnePassEngine, model).run(prompts)}
    step = trained(model)
    for result in built(OnePassEngine, model).run(prompts):
        assert traces(model) == before
        assert torch.is_grad_enabled()
        assert_trains_as_before(model, step)
        np.testing.assert_array_equal(result.gram, usual[result.id].gram)


def test_reference_pooling_embeds_between_the_results(model):
    prompts = tiny_prompts([30, 5, 60, 12, 40])
    config = ADGConfig(num_samples=4, max_new_tokens=10, pooling="reference", keep_vectors=True)
    engine = make_engine(Backbone(model, tiny_tokenizer(), EOS), config)
    plain = {r.id: r for r in built(OnePassEngine, model, num_samples=4).run(prompts)}
    results = list(engine.run(prompts))
    assert {r.id for r in results} == {p.id for p in prompts}
    for result in results:
        mine = plain[result.id]
        assert [a.text for a in result.answers] == [a.text for a in mine.answers]
        np.testing.assert_array_equal(result.prompt_vector, mine.prompt_vector)
        instruction = next(p.instruction for p in prompts if p.id == result.id)
        vectors = embed_reference(model, tiny_tokenizer(), instruction, [a.text for a in result.answers])
        np.testing.assert_allclose(result.gram, (vectors @ vectors.T).numpy(), atol=1e-6)
        np.testing.assert_allclose(result.vectors.astype(float), vectors.numpy(), atol=1e-3)
        assert np.abs(result.gram - mine.gram).max() > 1e-3


@ENGINES
def test_the_random_numbers_of_torch_go_on_as_if_nothing_had_been_drawn(model, kind):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    for _ in built(kind, model).run(tiny_prompts([30, 5, 60])):
        pass
    assert torch.equal(torch.rand(3), expected)


def test_answers_do_not_depend_on_the_random_state_of_torch_numpy_or_python(model):
    import random

    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        results = built(OnePassEngine, model).run(tiny_prompts([30, 5, 60]))
        found.append({r.id: [a.token_ids.tolist() for a in r.answers] for r in results})
    assert found[0] == found[1]
