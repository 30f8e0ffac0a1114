"""The authors' sampling: `generate(do_sample=True, temperature=1.4, top_p=0.9)`, which adds its own top-k of 50."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency, ks_2samp
from transformers import GenerationConfig

from adg_plugin.config.schema import ADGConfig
from adg_plugin.engines.forward.sampler import TokenSampler
from adg_plugin.engines.models.inference_state import replaced
from adg_plugin.engines.models.loading import Source
from adg_plugin.engines.one_pass.engine import OnePassEngine
from adg_plugin.store.records import Prompt

pytestmark = [pytest.mark.model, pytest.mark.slow]

QUESTIONS = ("Name a colour. One word.", "Is the sea deep? Say yes or no.", "Give me any number.")
DRAWS, LIMIT = 256, 8


@pytest.fixture(scope="module")
def backbone():
    return Source.configured(ADGConfig(model="demo", dtype="bfloat16")).load()


@pytest.fixture(scope="module")
def prompts(backbone):
    found = []
    for number, text in enumerate(QUESTIONS):
        turns = [{"role": "user", "content": text}]
        ids = backbone.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        found.append(Prompt(f"q{number}", np.array(ids, np.int32), (3, len(ids) - 5)))
    return found


@pytest.fixture(scope="module")
def ours(backbone, prompts):
    """Return the answers by id, and how many tokens were sampled inside and outside the model's top 50."""
    counts = Counter()
    draw = TokenSampler.draw

    def counting(sampler, logits, keys, steps):
        tokens = draw(sampler, logits, keys, steps)
        chosen = logits.gather(1, tokens[:, None])
        counts.update(((logits > chosen).sum(1) < 50).tolist())
        return tokens

    found = {prompt.id: [] for prompt in prompts}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TokenSampler, "draw", counting)
        for seed in range(DRAWS // 64):
            config = ADGConfig(num_samples=64, max_new_tokens=LIMIT, seed=seed)
            engine = OnePassEngine(backbone.model, backbone.tokenizer, config, backbone.eos_ids, vectors=False)
            for result in engine.run(prompts):
                found[result.id] += [answer.token_ids.tolist() for answer in result.answers]
    return found, counts


@pytest.fixture(scope="module")
def theirs(backbone, prompts):
    eos, found = sorted(backbone.eos_ids), {}
    torch.manual_seed(0)
    # Only these are named in the released code; what else `generate` does is its default.
    named = {"do_sample": True, "temperature": 1.4, "top_p": 0.9, "num_return_sequences": DRAWS}
    settings = GenerationConfig(eos_token_id=eos, pad_token_id=eos[0])
    with replaced(backbone.model, generation_config=settings), torch.no_grad():
        for prompt in prompts:
            ids = torch.from_numpy(prompt.token_ids).long()[None]
            output = backbone.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=LIMIT, **named)
            rows = output[:, ids.shape[1] :].tolist()
            found[prompt.id] = [row[: next((n for n, t in enumerate(row) if t in eos), LIMIT)] for row in rows]
    return found


@pytest.mark.parametrize("id", ["q0", "q1", "q2"])
def test_first_tokens_and_lengths_are_those_of_generate(ours, theirs, id):
    # The one-pass engine samples an empty answer again, so those of `generate` are left out.
    mine, other = ours[0][id], [answer for answer in theirs[id] if answer]
    assert len(mine) == DRAWS
    assert len(other) > 0.9 * DRAWS
    first = [Counter(answer[0] for answer in side) for side in (mine, other)]
    common = [token for token, n in (first[0] + first[1]).items() if n >= 10]
    table = [[side[t] for t in common] + [side.total() - sum(side[t] for t in common)] for side in first]
    table = np.array(table)[:, np.sum(table, axis=0) > 0]
    assert table.shape[1] > 1
    assert chi2_contingency(table).pvalue > 1e-3
    lengths = [[len(answer) for answer in side] for side in (mine, other)]
    assert len(set(lengths[0])) > 1
    assert ks_2samp(*lengths, method="asymp").pvalue > 1e-3


def test_no_token_is_sampled_outside_the_top_50(ours):
    assert ours[1].total() > 1_000
    assert ours[1][False] == 0
