"""Rows that cannot be scored are rejected with their reason; all others are as if nothing had happened."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_results import assert_equal
from paths import HELPERS
from tiny_models import tiny_model, tiny_prompts, tiny_tokenizer

from adg_plugin.config.schema import ADGConfig
from adg_plugin.engines.forward import memory
from adg_plugin.engines.forward.sampler import TokenSampler, stream_keys
from adg_plugin.engines.generate import GenerateEngine
from adg_plugin.engines.one_pass.engine import OnePassEngine
from adg_plugin.store.records import Prompt

pytestmark = pytest.mark.tiny

EOS = tuple(range(0, 20))
LENGTHS = (40, 3, 60, 17, 5, 30, 64, 12, 50, 4)


def run(model, prompts, *, eos=EOS, engine=OnePassEngine, **settings):
    config = ADGConfig(**{"max_new_tokens": 12, "keep_vectors": True, **settings})
    results = list(engine(model, tiny_tokenizer(), config, eos).run(prompts))
    assert sorted(r.id for r in results) == sorted(p.id for p in prompts)  # nothing lost, nothing twice
    return {r.id: r for r in results}


# --- empty answers


@pytest.mark.parametrize("samples", [3, 5])
def test_an_empty_answer_is_drawn_again_from_the_next_stream_at_most_twice(samples):
    model, prompts = tiny_model(), tiny_prompts([20 + i for i in range(24)])
    eos = tuple(i for i in range(260) if i % 4)  # three of four tokens
    results = run(model, prompts, eos=eos, num_samples=samples, max_new_tokens=2)
    sampler, reasons = TokenSampler(1.4, 50, 0.9), []
    for prompt in prompts:
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(prompt.token_ids).long()[None]).logits[0, -1]
        streams = torch.from_numpy(stream_keys(0, prompt.token_ids, 3 * samples))
        drawn = sampler.draw(logits.expand(3 * samples, -1), streams, torch.zeros(3 * samples, dtype=torch.long))
        attempts = drawn.view(3, samples).T.tolist()
        wanted = [next(t for t in a if t not in eos) for a in attempts if not set(a) <= set(eos)]
        result = results[prompt.id]
        assert [int(a.token_ids[0]) for a in result.answers] == wanted
        assert result.reason == ("too_few_answers" if len(wanted) < 3 else None)
        if len(wanted) >= 3:
            assert result.gram.shape == (len(wanted), len(wanted))
            assert result.vectors.shape == (len(wanted), 48)
        else:
            assert result.gram is result.prompt_vector is result.vectors is None
        reasons.append((len(wanted), any(a[0] in eos and a[1] in eos and a[2] not in eos for a in attempts)))
    assert {n for n, _ in reasons} >= {2, 3}  # the cases are there
    assert any(second for _, second in reasons)


def test_a_row_whose_answers_are_all_empty_is_rejected_without_any():
    prompts = tiny_prompts([10, 30, 3])
    for result in run(tiny_model(), prompts, eos=tuple(range(260))).values():
        assert (result.reason, result.answers, result.num_tokens) == ("too_few_answers", (), 0)


def test_generating_draws_empty_answers_again_at_most_twice():
    model, prompts = tiny_model(), tiny_prompts([10, 30, 3])
    asked = []
    generate = model.generate
    model.generate = lambda *args, **kw: asked.append(kw["num_return_sequences"]) or generate(*args, **kw)
    results = run(model, prompts, eos=tuple(range(260)), engine=GenerateEngine)
    assert asked == [5, 5, 5] * 3
    assert {(r.reason, r.answers) for r in results.values()} == {("too_few_answers", ())}
    asked.clear()
    results = run(model, prompts[:1], eos=tuple(range(0, 260, 2)), engine=GenerateEngine)
    kept = len(results["p0"].answers)
    assert asked[0] == 5
    assert len(asked) <= 3
    assert asked == sorted(set(asked), reverse=True)  # each time only what is missing
    assert results["p0"].reason == ("too_few_answers" if kept < 3 else None)


# --- NaN and infinity


def poisoned(family, value):
    """Return a model in which token 259 makes every state after it `value`; it is never drawn."""
    model = tiny_model(family, tie_word_embeddings=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[259] = value
        head = model.get_output_embeddings()
        head.weight[259] = 0  # its logit is 0: drawn at times, unless
        head.bias = torch.nn.Parameter(torch.zeros(head.weight.shape[0]))
        head.bias[259] = -100
    return model


@pytest.mark.parametrize("engine", [OnePassEngine, GenerateEngine])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral"])
def test_a_row_of_nan_states_is_rejected_and_its_neighbours_are_not_touched(family, value, engine):
    model = poisoned(family, value)
    healthy = tiny_prompts(LENGTHS, vocabulary=259)
    bad = Prompt("bad", np.array([5, 6, 259, 7, 8, 9], dtype=np.int32), (1, 5))
    if engine is GenerateEngine:  # slower
        healthy = healthy[:3]
    usual = run(model, healthy, engine=engine)
    assert all(r.reason is None for r in usual.values())
    disturbed = run(model, [*healthy[:2], bad, *healthy[2:]], engine=engine)
    rejected = disturbed.pop("bad")
    assert rejected.reason == "non_finite_states"
    assert rejected.gram is rejected.prompt_vector is rejected.vectors is None
    if family == "mixtral":  # experts get tokens of several rows: the same but for rounding
        for name, result in usual.items():
            np.testing.assert_allclose(result.gram, disturbed[name].gram, atol=1e-5)
    else:
        assert_equal(usual, disturbed)


# --- memory


def refusing(model, tokens):
    """Let a forward pass of more than so many tokens run out of memory."""

    def check(_module, _args, kwargs):
        if kwargs["input_ids"].numel() > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")

    return model.register_forward_pre_hook(check, with_kwargs=True)


@pytest.mark.parametrize("tokens", [64, 100, 200])
def test_out_of_memory_halves_the_batch_and_changes_nothing(tokens, caplog):
    model, prompts = tiny_model(), tiny_prompts(LENGTHS * 2)
    usual = run(model, prompts)
    refusing(model, tokens)
    assert_equal(usual, run(model, prompts))
    said = [r.message for r in caplog.records]
    assert said[0] == "out of memory: going on with 50 answers at a time; nothing is lost"
    assert len(said) < 8


@pytest.mark.parametrize("call", [1, 2, 3, 5, 9, 14])
def test_out_of_memory_at_any_moment_changes_nothing(call, monkeypatch):
    monkeypatch.setitem(memory._MAX_ROWS, "cpu", 30)
    model, prompts = tiny_model(), tiny_prompts(LENGTHS * 2)
    usual = run(model, prompts)
    calls = []

    def fail_once(_module, _args):
        calls.append(1)
        if len(calls) == call:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    model.base_model.layers[3].register_forward_pre_hook(fail_once)
    assert_equal(usual, run(model, prompts))
    assert len(calls) > call


def test_a_row_that_never_fits_is_rejected_and_the_others_are_not():
    model = tiny_model()
    prompts = tiny_prompts([30, 20, 100, 40, 5])
    usual = run(model, prompts)
    refusing(model, 64)
    results = run(model, prompts)
    rejected = results.pop("p2")
    assert (rejected.reason, rejected.answers, rejected.gram) == ("out_of_memory", (), None)
    del usual["p2"]
    assert_equal(usual, results)


def test_the_batch_grows_again_once_a_row_that_never_fits_is_gone(monkeypatch):
    made, build = [], memory.Capacity.of
    monkeypatch.setattr(memory.Capacity, "of", lambda *given: made.append(build(*given)) or made[-1])
    model = tiny_model()
    refusing(model, 64)
    results = run(model, tiny_prompts([100, *[10] * 12]), num_samples=4)
    assert [name for name, result in results.items() if result.reason] == ["p0"]
    assert made[0].rows >= 16


def test_a_row_that_fits_alone_is_not_rejected_for_what_it_shared_the_batch_with(monkeypatch):
    monkeypatch.setitem(memory._MAX_ROWS, "cpu", 6)  # the second prompt is admitted beside the end of the first
    model, prompts = tiny_model(), tiny_prompts([40, 45, 50, 42])
    usual = run(model, prompts, max_new_tokens=30)
    admitted = []

    def fail_once(_module, _args, kwargs):
        admitted.append(kwargs["input_ids"].numel())
        if admitted.count(45) == 1 and admitted[-1] == 45:
            assert admitted[-2] == 16  # beside rows that are being drawn
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")

    model.register_forward_pre_hook(fail_once, with_kwargs=True)
    assert_equal(usual, run(model, prompts, max_new_tokens=30))
    assert admitted.count(45) == 2


def test_generating_draws_fewer_answers_at_a_time_without_memory_for_all():
    model, prompts = tiny_model(), tiny_prompts([30, 60, 40])
    refusing(model, 250)  # five answers after 60 tokens are 300 and more
    results = run(model, prompts, engine=GenerateEngine)
    assert {r.reason for r in results.values()} == {None}
    assert {len(r.answers) for r in results.values()} == {5}
    texts = {a.token_ids.tobytes() for a in results["p1"].answers}
    assert len(texts) == 5  # the halves are not drawn alike


def test_generating_rejects_a_row_that_does_not_fit_alone():
    model, prompts = tiny_model(), tiny_prompts([30, 60, 40])
    refusing(model, 55)
    results = run(model, prompts, engine=GenerateEngine)
    assert {name: r.reason for name, r in results.items()} == {"p0": None, "p1": "out_of_memory", "p2": None}


@pytest.mark.parametrize("engine", [OnePassEngine, GenerateEngine])
def test_another_error_is_not_taken_for_memory(engine):
    model = tiny_model()

    def fail(_module, _args):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run(model, tiny_prompts([5]), engine=engine)


CHILD = """
import resource, sys
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
from test_engine_failures import run
from engine_results import assert_equal
from tiny_models import tiny_model, tiny_prompts
from adg_plugin.engines.forward import memory

memory._MAX_ROWS["cpu"] = 600
settings = dict(num_samples=3, max_new_tokens=2, layers=1)
model = tiny_model(num_hidden_layers=1, num_attention_heads=8, num_key_value_heads=8, head_dim=512)
prompts = tiny_prompts([120, 90, 128, 100] * 20)
usual = run(model, prompts, **settings, batch_tokens=1000)
held = int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmSize"))) * 1024
limit = held + (150 << 20)  # the cache of all prompts takes 330 MB
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
assert_equal(usual, run(model, prompts, **settings))
print("all there")
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux: limits a process's memory")
def test_a_real_lack_of_memory_loses_nothing():
    code = CHILD.format(paths=[str(HELPERS), str(Path(__file__).parent)])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "all there"
    assert "out of memory: going on with" in done.stderr
