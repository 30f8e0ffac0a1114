"""Sampling is right: draws follow the distribution of `generate`, from streams that belong to a row alone."""

import hashlib
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from tiny_models import tiny_model, tiny_prompts, tiny_tokenizer
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from adg_plugin.config.schema import ADGConfig
from adg_plugin.engines.forward import sampler as sampling
from adg_plugin.engines.forward.sampler import TokenSampler, exponentials, stream_keys
from adg_plugin.engines.generate import GenerateEngine
from adg_plugin.engines.one_pass.engine import OnePassEngine

NEVER = (10**6,)  # an end-of-answer token that no model draws
ENOUGH = 1e-4  # p-value of a right sampler below which these tests fail, once in 10,000 choices of seed


def distribution(logits, temperature, top_p, top_k=0):
    """Return it by definition: tokens not below the k-th, whose strictly likelier ones hold less than `top_p`."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    if 0 < top_k < len(scaled):
        scaled = np.where(scaled < np.sort(scaled)[-top_k], -np.inf, scaled)
    probs = np.exp(scaled - scaled.max())
    probs /= probs.sum()
    likelier = (probs[None, :] * (probs[None, :] > probs[:, None])).sum(1)
    kept = np.where((likelier < top_p) | (top_p == 1), probs, 0)
    return kept / kept.sum()


def draws(logits, count, *, temperature=1.0, top_p=1.0, top_k=0, seed=0, step=0):
    rows = torch.as_tensor(np.asarray(logits), dtype=torch.float32).expand(count, -1)
    keys = torch.from_numpy(stream_keys(seed, np.array([1, 2, 3], dtype=np.int32), count))
    steps = torch.full((count,), step)
    return TokenSampler(temperature, top_k, top_p).draw(rows, keys, steps).numpy()


def p_value(counts, probs):
    """Return the chi-square test's p-value; rare outcomes are put together, impossible ones must not occur."""
    counts, expected = np.ravel(counts).astype(float), np.ravel(probs) * np.sum(counts)
    assert counts[expected == 0].sum() == 0, "outside of what may be sampled"
    common = expected >= 5
    observed = np.append(counts[common], counts[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum())
    use = wanted > 0
    assert use.sum() > 1, "nothing to compare"
    return stats.chisquare(observed[use], wanted[use]).pvalue


# (2, 1): the first look is at far too few candidates. The block of 4 sorts a part of the vocabulary only.
@pytest.mark.parametrize(("first_candidates", "block"), [(1024, 32), (2, 4), (2, 1)])
@pytest.mark.parametrize(
    ("vocabulary", "temperature", "top_k", "top_p"),
    [
        (11, 1.4, 0, 0.9),
        (11, 0.7, 0, 0.5),
        (11, 3.0, 0, 1.0),
        (2, 1.0, 0, 0.95),
        (130, 1.4, 0, 0.9),
        (130, 1.0, 0, 0.3),
        (130, 1.4, 7, 1.0),
        (130, 1.4, 50, 0.9),
        (130, 2.0, 5, 0.7),
        (11, 1.4, 50, 0.9),
        (2, 1.0, 2, 1.0),
    ],
)
def test_draws_follow_the_tempered_distribution_cut_by_top_k_and_nucleus(
    vocabulary, temperature, top_k, top_p, first_candidates, block, monkeypatch
):
    monkeypatch.setattr(sampling, "_NUCLEUS", first_candidates)
    monkeypatch.setattr(sampling, "_TIES", 0 if first_candidates == 2 else 14)
    monkeypatch.setattr(sampling, "_BLOCK", block)
    logits = np.random.default_rng(vocabulary).normal(0, 1.5, vocabulary)
    found = draws(logits, 20_000, temperature=temperature, top_p=top_p, top_k=top_k)
    wanted = distribution(logits, temperature, top_p, top_k)
    assert p_value(np.bincount(found, minlength=vocabulary), wanted) > ENOUGH


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.9), (6, 1.0), (9, 0.8)])
@pytest.mark.parametrize("penalty", [1.0, 1.6])
def test_the_distribution_is_that_of_transformers(top_k, top_p, penalty):
    logits = torch.from_numpy(np.random.default_rng(5).normal(0, 1.5, (1, 40)))
    asked = torch.tensor([[3, 9, 9, 31, 3]])
    steps = [RepetitionPenaltyLogitsProcessor(penalty), TemperatureLogitsWarper(1.4)]
    steps += [TopKLogitsWarper(top_k)] if top_k else []
    wanted = LogitsProcessorList([*steps, TopPLogitsWarper(top_p)])(asked, logits.clone())[0].softmax(-1).numpy()
    penalised = TokenSampler(1.4, top_k, top_p, penalty).penalised(logits.float(), asked)[0]
    np.testing.assert_allclose(distribution(penalised.numpy(), 1.4, top_p, top_k), wanted, atol=1e-6)
    found = draws(penalised, 20_000, temperature=1.4, top_p=top_p, top_k=top_k)
    assert p_value(np.bincount(found, minlength=40), wanted) > ENOUGH
    assert set(found) == set(np.flatnonzero(wanted))


def test_top_k_0_is_off():
    found = draws(np.zeros(300), 30_000)
    assert len(set(found)) == 300
    assert p_value(np.bincount(found, minlength=300), np.full(300, 1 / 300)) > ENOUGH


@pytest.mark.parametrize("first_candidates", [2, 1024])
def test_tokens_that_tie_at_an_edge_are_all_inside_or_all_outside(first_candidates, monkeypatch):
    monkeypatch.setattr(sampling, "_NUCLEUS", first_candidates)
    logits = [2.0, -1.0, 2.0, 1.0, 2.0, 1.0, -3.0]
    found = draws(logits, 9_000, top_p=0.3)  # one of the three would fill it
    assert p_value(np.bincount(found, minlength=7), [1 / 3, 0, 1 / 3, 0, 1 / 3, 0, 0]) > ENOUGH
    found = draws(logits, 9_000, top_p=0.85)  # the three hold 0.78, the next two share the edge
    assert set(found) == {0, 2, 3, 4, 5}
    assert p_value(np.bincount(found, minlength=7), distribution(logits, 1, 0.85)) > ENOUGH


@pytest.mark.parametrize("ties", [10, 300])  # fewer and more than the candidates that are looked at first
def test_all_tokens_that_tie_with_the_k_th_can_be_drawn(ties):
    logits = np.full(3_000, -5.0)
    logits[::3][:ties] = 0.5
    logits[-1] = 1.0
    found = draws(logits, 40 * ties, top_k=4, temperature=2.0)
    assert set(found) == set(np.flatnonzero(logits > -5))
    assert p_value(np.bincount(found, minlength=3_000), distribution(logits, 2.0, 1.0, 4)) > ENOUGH


def test_a_tiny_nucleus_holds_the_likeliest_token_alone():
    logits = np.random.default_rng(0).normal(size=200)
    assert set(draws(logits, 500, top_p=1e-9)) == {logits.argmax()}
    assert set(draws(logits, 500, top_p=1e-9, top_k=20)) == {logits.argmax()}


def test_a_change_in_one_candidate_moves_no_other_draw():
    logits = np.random.default_rng(1).normal(0, 1.5, 500)
    before = draws(logits, 5_000, top_k=20)
    order = np.argsort(logits)
    changed = logits.copy()
    changed[order[-21]] = changed[order[-20]] - 1e-3  # outside, and so another neighbour of the edge
    np.testing.assert_array_equal(draws(changed, 5_000, top_k=20), before)
    changed[order[-20]] = -10.0  # the last inside goes, and the one just outside comes in
    after = draws(changed, 5_000, top_k=20)
    moved = before != after
    assert ((before[moved] == order[-20]) | (after[moved] == order[-21])).all()
    assert 0 < moved.mean() < 0.05


# On a grid that float32 resolves at every temperature: logits that differ by less are ties to the sampler.
@given(
    st.lists(st.integers(-512, 512).map(lambda n: n / 64), min_size=2, max_size=30),
    st.floats(0.2, 5),
    st.integers(0, 40),
    st.floats(0.01, 0.99),
    st.integers(0, 2**63 - 1),
)
def test_a_token_outside_is_never_drawn(logits, temperature, top_k, top_p, seed):
    # Float32 may set the edge elsewhere by a rounding error.
    inside = distribution(logits, temperature, min(1.0, top_p + 1e-5), top_k) > 0
    assert inside[draws(logits, 64, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)].all()


@pytest.mark.parametrize("top_k", [0, 50])
@pytest.mark.parametrize("vocabulary", [2, 3, 5, 31, 1000, 49_152])
def test_a_row_draws_the_same_whatever_its_neighbours(vocabulary, top_k, monkeypatch):
    monkeypatch.setitem(sampling._LOGITS, "cpu", 20 * vocabulary)  # three chunks of rows
    rng = np.random.default_rng(vocabulary)
    rows = 50
    logits = torch.from_numpy(rng.normal(0, 2, (rows, vocabulary)).astype(np.float32))
    keys = torch.from_numpy(stream_keys(0, np.arange(4, dtype=np.int32), rows))
    steps = torch.from_numpy(rng.integers(0, 300, rows))
    sampler = TokenSampler(1.4, top_k, 0.9)
    together = sampler.draw(logits, keys, steps)
    assert (together < vocabulary).all()
    order = torch.from_numpy(rng.permutation(rows))
    torch.testing.assert_close(sampler.draw(logits[order], keys[order], steps[order]), together[order])
    alone = [sampler.draw(logits[i : i + 1], keys[i : i + 1], steps[i : i + 1]) for i in range(0, rows, 7)]
    torch.testing.assert_close(torch.cat(alone), together[::7])


def test_half_precision_logits_are_drawn_from_as_they_are():
    logits = torch.randn(64, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    keys = torch.from_numpy(stream_keys(0, np.arange(4, dtype=np.int32), 64))
    steps = torch.zeros(64, dtype=torch.long)
    sampler = TokenSampler(1.4, 20, 0.9)
    before = logits.clone()
    torch.testing.assert_close(sampler.draw(logits, keys, steps), sampler.draw(logits.float(), keys, steps))
    torch.testing.assert_close(logits, before)


def test_streams_differ_between_answers_rows_seeds_and_steps():
    prompts = [np.array(p, dtype=np.int32) for p in ([1, 2], [2, 1], [1, 2, 0], [1], [258])]
    keys = np.concatenate([stream_keys(seed, p, 15) for seed in (0, 1, 2**62) for p in prompts])
    assert len(set(keys.tolist())) == 15 * 3 * 5
    tokens = torch.arange(500).expand(len(keys), -1)
    at = [torch.full((len(keys),), step) for step in (0, 1, 255)]
    everything = torch.cat([exponentials(torch.from_numpy(keys), step, tokens) for step in at])
    correlation = np.corrcoef(everything.numpy()) - np.eye(len(everything))
    assert np.abs(correlation).max() < 5.5 / np.sqrt(500)  # the largest of 227,000 standard normals
    assert stats.kstest(everything.numpy().ravel(), "expon").pvalue > ENOUGH
    # The streams of a prompt are the first ones, however many are asked for.
    np.testing.assert_array_equal(stream_keys(7, prompts[0], 3), stream_keys(7, prompts[0], 9)[:3])


def test_a_tokens_number_does_not_depend_on_the_other_candidates():
    keys = torch.from_numpy(stream_keys(3, np.arange(5, dtype=np.int32), 4))
    steps = torch.tensor([0, 5, 5, 255])
    whole = exponentials(keys, steps, torch.arange(20).expand(4, -1))
    some = torch.tensor([[3, 19, 0], [1, 2, 3], [19, 18, 17], [5, 5, 4]])
    torch.testing.assert_close(exponentials(keys, steps, some), whole.gather(1, some), rtol=0, atol=0)
    assert (whole > 0).all()
    assert torch.isfinite(whole).all()


def splitmix(x):
    """Return SplitMix64's output for a state, in Python's whole numbers."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def test_the_generator_is_splitmix64():
    golden = 0x9E3779B97F4A7C15
    # The first numbers of the published implementation from the state 1234567.
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [splitmix((1234567 + n * golden) % 2**64) for n in (1, 2, 3)] == known
    key, step = -5 % 2**64, 17
    state = splitmix(splitmix((key + (step + 1) * golden) % 2**64))
    wanted = [-np.log(((splitmix((state + n * golden) % 2**64) >> 11) + 0.5) * 2.0**-53) for n in (1, 2, 49_001)]
    found = exponentials(torch.tensor([-5]), torch.tensor([17]), torch.tensor([[0, 1, 49_000]]))
    np.testing.assert_allclose(found[0].numpy(), wanted, rtol=1e-12)
    # Another rule here would give other answers for the same settings: raise keys.SAMPLING_VERSION with it.
    row = hashlib.blake2b(struct.pack("<3i", 9, 8, 700), digest_size=8, key=struct.pack("<Q", 42)).digest()
    wanted_keys = [splitmix((int.from_bytes(row, "little") + n * golden) % 2**64) for n in (1, 2)]
    found_keys = stream_keys(42, np.array([9, 8, 700], dtype=np.int32), 2)
    assert found_keys.view(np.uint64).tolist() == wanted_keys


def absurd():
    """Return a generation config of which nothing may be applied."""
    return GenerationConfig(
        do_sample=True,
        temperature=0.01,
        top_k=1,
        top_p=0.1,
        repetition_penalty=50.0,
        min_new_tokens=2,
        suppress_tokens=list(range(6)),
        begin_suppress_tokens=[7, 8],
        no_repeat_ngram_size=1,
        num_beams=1,
        max_length=3,
    )


@pytest.mark.parametrize(("engine", "seeds"), [(OnePassEngine, 60), (GenerateEngine, 30)])
@pytest.mark.parametrize(
    ("top_k", "top_p", "penalty"), [(0, 0.9, 1.0), (6, 1.0, 1.0), (7, 0.8, 1.0), (7, 0.9, 1.5)],
    ids=["nucleus", "top-k", "both", "penalty"],
)  # fmt: skip
def test_two_tokens_follow_the_models_joint_distribution(engine, seeds, top_k, top_p, penalty):
    vocabulary, temperature = 10, 1.4
    model = tiny_model(
        "llama", vocab_size=vocabulary, num_hidden_layers=4, bos_token_id=None, eos_token_id=None, pad_token_id=None
    )
    (prompt,) = tiny_prompts([4], vocabulary=vocabulary)
    with torch.no_grad():
        ids = torch.from_numpy(prompt.token_ids).long()
        pairs = torch.stack([torch.cat((ids, torch.tensor([t]))) for t in range(vocabulary)])
        logits = model(input_ids=pairs).logits[:, -2:].numpy()

    def after(logits, seen):
        """Return the distribution of the next token, the penalty by its definition."""
        lowered = [(x / penalty if x > 0 else x * penalty) if t in seen else x for t, x in enumerate(logits)]
        return distribution(lowered, temperature, top_p, top_k)

    asked = set(prompt.token_ids.tolist())
    first = after(logits[0, 0], asked)
    joint = np.stack([p * after(logits[t, 1], asked | {t}) for t, p in enumerate(first)])
    assert 0 < (joint == 0).sum() < joint.size  # some pairs cannot be sampled

    model.generation_config = absurd()
    counts = np.zeros_like(joint)
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "repetition_penalty": penalty}
    for seed in range(seeds):
        config = ADGConfig(num_samples=64, max_new_tokens=2, seed=seed, **settings)
        (result,) = engine(model, tiny_tokenizer(), config, NEVER).run([prompt])
        for answer in result.answers:
            counts[tuple(answer.token_ids)] += 1
    assert counts.sum() == 64 * seeds
    assert p_value(counts.sum(1), first) > ENOUGH
    assert p_value(counts, joint) > ENOUGH
