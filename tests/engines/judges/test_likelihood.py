"""Likelihoods of given answers: the definition transcribed, batches that change nothing, rows without a result."""

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from judging import findings
from tiny_models import VOCABULARY, tiny_model

from adg_plugin.engines.judges.causal_lm import LikelihoodRow, Likelihoods, continuations

pytestmark = pytest.mark.tiny

BOS = 0
SHAPES = [(9, 4), (1, 30), (40, 1), (3, 2), (25, 60), (9, 9), (80, 7), (2, 44)]  # tokens of prompt and answer


def rows(shapes=SHAPES, seed=0, before=(BOS,)):
    rng = np.random.default_rng(seed)
    drawn = [[rng.integers(4, VOCABULARY, n).astype(np.int32) for n in shape] for shape in shapes]
    before = np.array(before, np.int32)
    return [LikelihoodRow(f"r{n}", *ids, before) for n, ids in enumerate(drawn)]


def measured(model, asked, max_tokens=None, **options):
    """Mean with the prompt and alone (None where there is none), tokens and reason of each row."""
    found = findings(Likelihoods(model, **options), asked, lambda row: continuations(row, max_tokens))
    each = [found[row.id] for row in asked]
    return [Found(*map(one.values.get, ("with_prompt", "alone")), one.num_tokens, one.reason) for one in each]


class Found(NamedTuple):
    with_prompt: float | None
    alone: float | None
    tokens: int
    reason: str | None


def mean_nll(model, before, answer, skip=0):
    """One sequence by itself in float64; the first `skip` tokens of the answer are not counted."""
    ids = torch.tensor([[*map(int, before), *map(int, answer)]])
    with torch.no_grad():
        log_p = torch.log_softmax(model(input_ids=ids).logits[0].double(), -1)
    places = range(len(before) + skip, ids.shape[1])
    return -sum(float(log_p[place - 1, ids[0, place]]) for place in places) / len(places)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen2_moe", "opt", "bloom", "mamba"])
def test_the_means_are_those_of_one_plain_forward_at_a_time(family):
    model, asked = tiny_model(family), rows()
    exact = model if family == "qwen2_moe" else tiny_model(family, dtype=torch.float64)  # no experts in float64
    for row, result in zip(asked, measured(model, asked), strict=True):
        assert (result.tokens, result.reason) == (len(row.answer_ids), None)
        assert result.with_prompt == pytest.approx(mean_nll(exact, row.prompt_ids, row.answer_ids), rel=2e-5)
        assert result.alone == pytest.approx(mean_nll(exact, [BOS], row.answer_ids), rel=2e-5)


@pytest.mark.parametrize("before", [(5,), (9, 7, 30)])
def test_alone_the_answer_follows_what_stands_before_it(before):
    model, asked = tiny_model(), rows(before=before)
    exact = tiny_model(dtype=torch.float64)
    for row, result in zip(asked, measured(model, asked), strict=True):
        assert result.tokens == len(row.answer_ids)
        assert result.alone == pytest.approx(mean_nll(exact, before, row.answer_ids), rel=2e-5)


def test_with_nothing_before_it_the_first_token_counts_in_neither_mean():
    model, asked = tiny_model("qwen2"), rows(before=())
    exact = tiny_model("qwen2", dtype=torch.float64)
    for row, result in zip(asked, measured(model, asked), strict=True):
        if len(row.answer_ids) == 1:
            assert result == (None, None, 0, "answer_too_short")
            continue
        assert result.tokens == len(row.answer_ids) - 1
        assert result.with_prompt == pytest.approx(mean_nll(exact, row.prompt_ids, row.answer_ids, 1), rel=2e-5)
        assert result.alone == pytest.approx(mean_nll(exact, [], row.answer_ids, 1), rel=2e-5)


@pytest.mark.parametrize("batch_tokens", [1, 60, 250, 10**6])
@pytest.mark.parametrize("family", ["mistral", "gpt2"])
def test_neither_the_batch_nor_the_order_changes_a_row(family, batch_tokens):
    model, asked = tiny_model(family), rows()
    alone = [measured(model, [row])[0] for row in asked]
    shuffled = [asked[place] for place in np.random.default_rng(1).permutation(len(asked))]
    results = measured(model, shuffled, batch_tokens=batch_tokens)
    found = dict(zip((row.id for row in shuffled), results, strict=True))
    for row, want in zip(asked, alone, strict=True):
        assert found[row.id].with_prompt == pytest.approx(want.with_prompt, rel=2e-5)
        assert found[row.id].alone == pytest.approx(want.alone, rel=2e-5)


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30)), max_size=12), st.integers(1, 200))
@settings(max_examples=30)
def test_a_model_that_knows_nothing_needs_log_v_for_every_token(shapes, batch_tokens):
    model = tiny_model()
    torch.nn.init.zeros_(model.lm_head.weight)
    for (_, length), result in zip(shapes, measured(model, rows(shapes), batch_tokens=batch_tokens), strict=True):
        assert result.tokens == length
        assert result.reason == (None if length else "no_answer")
        if length:
            assert result.with_prompt == pytest.approx(math.log(VOCABULARY), rel=1e-6)
            assert result.alone == pytest.approx(math.log(VOCABULARY), rel=1e-6)


def test_the_end_of_an_answer_that_is_too_long_is_cut_so_that_gpt2_has_positions_for_it():
    model = tiny_model("gpt2")
    [long] = rows([(1000, 200)])
    cut = LikelihoodRow("cut", long.prompt_ids, long.answer_ids[:24], long.before_ids)
    [found, want] = measured(model, [long, cut], max_tokens=1024)
    assert (found.tokens, want.tokens) == (24, 24)
    assert found.with_prompt == pytest.approx(want.with_prompt, rel=1e-6)
    assert found.alone == pytest.approx(want.alone, rel=1e-6)


def test_a_prompt_that_leaves_no_room_is_rejected_and_one_without_tokens_is_an_error():
    model = tiny_model()
    found = measured(model, rows([(20, 5), (19, 5), (21, 0)]), max_tokens=20)
    assert [(result.tokens, result.reason) for result in found] == [(0, "prompt_too_long"), (1, None), (0, "no_answer")]
    with pytest.raises(ValueError, match="row 'r0' has a prompt without tokens"):
        measured(model, rows([(0, 3)]))


def test_the_head_sees_only_the_places_that_are_asked_for():
    model, asked, seen = tiny_model(), rows(), []
    handle = model.lm_head.register_forward_hook(lambda module, given, logits: seen.append(logits.shape[:2]))
    measured(model, asked)
    assert sum(one * places for one, places in seen) == 2 * sum(answer for _, answer in SHAPES)
    handle.remove()
    assert not model.lm_head._forward_pre_hooks  # nothing of ours is left


def test_a_model_whose_head_cannot_be_found_gives_the_same(monkeypatch):
    model, asked = tiny_model(), rows()
    want = measured(model, asked)
    monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
    assert measured(model, asked) == want


def test_half_precision_ends_at_the_logits():
    model, asked = tiny_model(dtype=torch.bfloat16), rows()
    for row in asked:
        [result] = measured(model, [row])
        assert result.with_prompt == pytest.approx(mean_nll(model, row.prompt_ids, row.answer_ids), rel=1e-5)


def test_a_row_that_is_not_finite_is_rejected_and_its_neighbours_are_not():
    model, asked, bad = tiny_model(), rows(), 5
    for row in asked:
        row.prompt_ids[row.prompt_ids == bad] = row.answer_ids[row.answer_ids == bad] = bad + 1
    usual = measured(model, asked)
    asked[4].prompt_ids[3] = asked[6].answer_ids[2] = bad
    with torch.no_grad():
        model.model.embed_tokens.weight[bad] = torch.nan
    for place, (result, want) in enumerate(zip(measured(model, asked), usual, strict=True)):
        if place in (4, 6):
            assert result == (None, None, 0, "non_finite_states")
        else:
            assert result.with_prompt == pytest.approx(want.with_prompt, rel=2e-5)
            assert result.alone == pytest.approx(want.alone, rel=2e-5)


def test_padding_is_never_a_token_whose_states_are_not_finite():
    model, asked = tiny_model(), rows(before=(4,))
    usual = measured(model, asked)
    with torch.no_grad():
        model.model.embed_tokens.weight[:4] = torch.nan  # the special tokens, of which the rows have none
    for result, want in zip(measured(model, asked), usual, strict=True):
        assert result.with_prompt == pytest.approx(want.with_prompt, rel=2e-5)
        assert result.alone == pytest.approx(want.alone, rel=2e-5)


def limited(model, tokens):
    """Let memory run out in batches of more tokens; return the list of batches' sizes."""
    sizes = []

    def check(_module, _args, given):
        sizes.append(given["input_ids"].numel())
        if sizes[-1] > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")

    model.register_forward_pre_hook(check, with_kwargs=True)
    return sizes


def test_when_memory_runs_out_batches_are_halved_and_only_what_does_not_fit_alone_is_left():
    model, asked = tiny_model(), rows([(20, 10)] * 9 + [(90, 10), (20, 10)])
    usual = measured(model, asked)
    sizes = limited(model, 70)
    found = measured(model, asked)
    assert found[9] == (None, None, 0, "out_of_memory")
    for place in (*range(9), 10):
        assert found[place].with_prompt == pytest.approx(usual[place].with_prompt, rel=2e-5)
        assert found[place].alone == pytest.approx(usual[place].alone, rel=2e-5)
    assert sum(size > 70 for size in sizes) < 12  # it does not go back to what failed


def test_another_error_is_not_taken_for_memory():
    model = tiny_model()

    def fail(*_):
        raise RuntimeError("a kernel is broken")

    model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="a kernel is broken"):
        measured(model, rows())
