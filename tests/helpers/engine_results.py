"""What tests of engines ask of their results."""

import numpy as np
import torch

from adg_plugin.engines.encode.embed import answer_sequence, embed


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, one in ours.items():
        other = theirs[name]
        assert (one.reason, one.key) == (other.reason, other.key)
        assert [a.token_ids.tolist() for a in one.answers] == [a.token_ids.tolist() for a in other.answers]
        assert [(a.text, a.finish_reason) for a in one.answers] == [(a.text, a.finish_reason) for a in other.answers]
        for field in ("gram", "prompt_vector", "vectors"):
            np.testing.assert_array_equal(getattr(one, field), getattr(other, field), err_msg=f"{name} {field}")


@torch.no_grad()
def plain_forward(model, ids, layers=4):
    """Return the mean of the last hidden states, (L, H); nothing of the package is used."""
    output = model(input_ids=torch.tensor(np.asarray(ids), dtype=torch.long)[None], output_hidden_states=True)
    return torch.stack([h[0].float() for h in output.hidden_states[-layers:]]).mean(0)


def gap(ours, theirs):
    """Return the largest 1 - cosine between rows."""
    ours, theirs = (torch.as_tensor(np.asarray(x), dtype=torch.float64) for x in (ours, theirs))
    return float((1 - torch.cosine_similarity(ours, theirs, dim=-1)).max())


def check_vectors(model, prompts, results, *, layers=4, plain=False):
    """Assert that vectors, Gram matrix and prompt vector of each row are those of a forward over its tokens."""
    for prompt in prompts:
        result = results[prompt.id]
        answers = [a.token_ids for a in result.answers]
        if result.reason == "too_few_answers":
            assert len(answers) < 3
            continue
        assert result.reason is None
        if plain:
            states = [plain_forward(model, np.concatenate((prompt.token_ids, a)), layers) for a in answers]
            vectors = torch.stack([s[len(prompt) :].mean(0) for s in states])
            vectors = vectors / vectors.norm(dim=1, keepdim=True)
        else:
            sequences = [answer_sequence(prompt.token_ids, tokens) for tokens in answers]
            vectors = embed(model, sequences, tuple(range(-layers, 0)))
        assert gap(result.vectors, vectors) < 1e-5
        np.testing.assert_allclose(result.gram, (vectors @ vectors.T).numpy(), atol=2e-5)
        instruction = plain_forward(model, prompt.token_ids, layers)[slice(*prompt.span)].mean(0)
        # Stored in float16: coordinates off by 2^-11 at most turn a vector by less than 1e-6.
        assert gap(result.prompt_vector, instruction) < 1e-5
        assert abs(np.linalg.norm(result.prompt_vector.astype(float)) - 1) < 1e-3
