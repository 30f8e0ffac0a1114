"""Vectors of given sequences: definitions transcribed, batches that change nothing, memory that runs out."""

import numpy as np
import pytest
import torch
from tiny_models import tiny_model, tiny_prompts, tiny_tokenizer

from adg_plugin.engines.encode import embed as module
from adg_plugin.engines.encode.embed import (
    REFERENCE_LAYERS,
    Weighted,
    answer_sequence,
    embed,
    embed_reference,
    reference_sequence,
)

pytestmark = pytest.mark.tiny


def hidden_states(model, ids):
    with torch.no_grad():
        output = model(input_ids=torch.tensor([list(map(int, ids))]), output_hidden_states=True)
    return [h[0].double() for h in output.hidden_states]


def sequences(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Weighted(rng.integers(4, 260, n).astype(np.int32), rng.choice([0.0, 1.0, 1.3], n).astype(np.float32))
        for n in lengths
    ]


def test_a_vector_is_the_weighted_mean_of_the_chosen_layers_scaled_to_unit_length():
    model, batch = tiny_model("qwen3"), sequences([9, 40, 3, 120, 17])
    for s in batch:
        s.weights[-1] = 1  # none without weight
    found = embed(model, batch, (-4, -3, -2))
    assert found.dtype == torch.float32
    for vector, sequence in zip(found, batch, strict=True):
        states = torch.stack(hidden_states(model, sequence.token_ids)[-4:-1]).mean(0)
        mean = (states * torch.tensor(sequence.weights)[:, None]).sum(0) / sequence.weights.sum()
        np.testing.assert_allclose(vector.numpy(), (mean / mean.norm()).numpy(), atol=2e-6)


@pytest.mark.parametrize("budget", [1, 50, 10**6])
def test_batches_change_nothing(budget, monkeypatch):
    model, batch = tiny_model("mistral"), sequences([9, 40, 3, 120, 17, 40, 2, 90])
    for s in batch:
        s.weights[0] = 1
    alone = torch.cat([embed(model, [s], (-2, -1)) for s in batch])
    monkeypatch.setitem(module._BATCH_TOKENS, "cpu", budget)
    torch.testing.assert_close(embed(model, batch, (-2, -1)), alone, atol=2e-6, rtol=0)


def test_answers_are_embedded_after_their_prompt_and_without_it():
    model = tiny_model()
    (prompt,) = tiny_prompts([25])
    answers = [np.arange(10, 10 + n, dtype=np.int32) for n in (1, 7, 30)]
    found = embed(model, [answer_sequence(prompt.token_ids, tokens) for tokens in answers], (-4, -3, -2, -1))
    for vector, answer in zip(found, answers, strict=True):
        states = hidden_states(model, [*prompt.token_ids, *answer])
        mean = torch.stack(states[-4:]).mean(0)[25:].mean(0)
        np.testing.assert_allclose(vector.numpy(), (mean / mean.norm()).numpy(), atol=2e-6)


def test_a_sequence_without_weight_has_no_direction_and_the_others_are_not_touched():
    model, batch = tiny_model(), sequences([9, 12])
    batch[0].weights[:] = 0
    batch[1].weights[:] = 1
    found = embed(model, batch, (-1,))
    assert torch.isnan(found[0]).all()
    torch.testing.assert_close(found[1:], embed(model, batch[1:], (-1,)), atol=2e-6, rtol=0)


def test_a_token_that_is_not_counted_may_have_any_state():
    model, ids = tiny_model(), np.array([5, 6, 7, 8], dtype=np.int32)
    sequence = Weighted(ids, np.array([1, 1, 1, 0], dtype=np.float32))
    expected = embed(model, [sequence], (-1,))

    def overflow(_module, _args, states):
        states[:, 3] = torch.inf
        return states

    model.base_model.norm.register_forward_hook(overflow)
    torch.testing.assert_close(embed(model, [sequence], (-1,)), expected, atol=0, rtol=0)


def test_out_of_memory_halves_the_batch_and_one_sequence_that_does_not_fit_is_an_error():
    model, batch = tiny_model(), sequences([30] * 9)
    for s in batch:
        s.weights[0] = 1
    usual, sizes = embed(model, batch, (-1,)), []

    def check(_module, _args, kwargs):
        sizes.append(kwargs["input_ids"].numel())
        if sizes[-1] > limit:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")

    model.register_forward_pre_hook(check, with_kwargs=True)
    limit = 70
    torch.testing.assert_close(embed(model, batch, (-1,)), usual, atol=2e-6, rtol=0)
    assert sizes[0] == 270
    limit = 20
    with pytest.raises(torch.OutOfMemoryError):
        embed(model, batch, (-1,))


# --- pooling: reference


@pytest.mark.parametrize(
    ("token", "weight"),
    [
        ("word", 1.0),
        (" word", 1.0),
        (".", 0.0),
        (" ,", 0.0),
        ("\n", 0.0),
        ("", 0.0),
        ("?!", 0.0),
        ("a.", 1.0),
        ("7", 1.3),
        ("x1", 1.3),
        ("20%", 1.3),
        ("%", 1.3),
        ("℃", 1.3),
        ("°", 1.3),
        ("+", 1.0),
        ("…", 1.0),
        ("`~-_/\\", 0.0),
        ("\"'", 0.0),
        ("()[]{}", 0.0),
    ],
)
def test_the_weight_of_a_token(token, weight):
    assert module._reference_weight(token) == weight


def test_a_reference_sequence_is_instruction_space_answer_without_template_or_special_tokens():
    tokenizer = tiny_tokenizer()
    found = reference_sequence(tokenizer, "Add 2.", "It is 5%, ok")
    text = "Add 2. It is 5%, ok"
    assert tokenizer.decode(found.token_ids) == text
    # One token per byte: each is judged by itself.
    expected = [1.3 if c in "25%" else 0.0 if c in " .," else 1.0 for c in text]
    np.testing.assert_allclose(found.weights, expected)


def test_a_reference_sequence_is_cut_at_1024_tokens():
    found = reference_sequence(tiny_tokenizer(), "x" * 1000, "y" * 1000)
    assert len(found.token_ids) == len(found.weights) == 1024
    assert tiny_tokenizer().decode(found.token_ids) == "x" * 1000 + " " + "y" * 23


def test_reference_vectors_are_three_layers_averaged_by_weight():
    assert REFERENCE_LAYERS == (-4, -3, -2)
    model, tokenizer = tiny_model(), tiny_tokenizer()
    answers = ["It is 5, ok", "no."]
    found = embed_reference(model, tokenizer, "Add 2.", answers)
    for vector, answer in zip(found, answers, strict=True):
        ids = tokenizer("Add 2. " + answer)["input_ids"]
        states = hidden_states(model, ids)
        mean = (states[-4] + states[-3] + states[-2]) / 3
        weights = torch.tensor([1.3 if c in "25" else 0.0 if c in " .," else 1.0 for c in "Add 2. " + answer])
        mean = (mean * weights[:, None]).sum(0) / weights.sum()
        np.testing.assert_allclose(vector.numpy(), (mean / mean.norm()).numpy(), atol=2e-6)


def test_an_answer_sequence_counts_the_answer_alone():
    found = answer_sequence(np.array([1, 2, 3], dtype=np.int32), np.array([9, 8], dtype=np.int32))
    assert found.token_ids.tolist() == [1, 2, 3, 9, 8]
    assert found.weights.tolist() == [0, 0, 0, 1, 1]
