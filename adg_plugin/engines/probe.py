"""Whether a model can be run in one pass: asked of the model itself, by comparing with a plain forward pass."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from adg_plugin.engines.attention import Cohort, Decode, Prefill, attending, shared_prefix_attention
from adg_plugin.engines.states import StateTap

_KNOWN_LAYERS = {"full_attention", "sliding_attention"}
_PROMPT, _ANSWER, _ROWS = 6, 3, 2  # tokens, tokens, answers of the probe
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.02}  # of 1 - cosine


@torch.no_grad()
def one_pass_problem(model: PreTrainedModel, indices: tuple[int, ...]) -> str | None:
    """Return why `model` cannot be sampled in one pass, or None where it can.

    Runs a few tokens through the shared-prefix attention and through the model's own, and compares states and logits.
    """
    unknown = set(getattr(model.config.get_text_config(), "layer_types", None) or ()) - _KNOWN_LAYERS
    if unknown:
        return f"it has layers of type {', '.join(sorted(unknown))}"
    vocabulary = model.config.get_text_config().vocab_size
    tokens = torch.arange(_PROMPT + _ROWS * _ANSWER, device=model.device) * 7 % (vocabulary - 1) + 1
    prompt, answers = tokens[:_PROMPT], tokens[_PROMPT:].view(_ROWS, _ANSWER)
    try:
        ours = _one_pass(model, prompt, answers, indices)
    except Exception as err:  # any architecture may fail here in its own way, and all of them mean: fall back
        return f"{type(err).__name__}: {err}"
    theirs = _plain(model, prompt, answers, indices)
    limit = _TOLERANCE.get(model.dtype, 0.02)
    for name, one, other in zip(("hidden states", "logits"), ours, theirs, strict=True):
        gap = float((1 - torch.cosine_similarity(one.float(), other.float(), dim=-1)).max())
        if not gap <= limit:
            return f"its {name} differ from those of a plain forward pass (1 - cosine {gap:.2g})"
    return None


def _one_pass(
    model: PreTrainedModel, prompt: Tensor, answers: Tensor, indices: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Return states and logits of the answers' tokens, (rows * tokens, H) and (rows * tokens, V)."""
    tap = StateTap(indices)
    cohort = Cohort.of([len(prompt)], len(answers), model.device)
    states, logits = [], []
    with shared_prefix_attention(model), tap.on(model):
        with attending(Prefill(cohort, 0, [len(prompt)])):
            positions = torch.arange(len(prompt), device=model.device)
            model(input_ids=prompt[None], position_ids=positions[None], use_cache=False, logits_to_keep=1)
        tap.take()
        for step in range(answers.shape[1]):
            with attending(Decode([cohort])):
                output = model(
                    input_ids=answers[None, :, step],
                    position_ids=cohort.positions()[None],
                    use_cache=False,
                    logits_to_keep=torch.arange(len(answers), device=model.device),
                )
            cohort.step()
            states.append(tap.take()[0])
            logits.append(output.logits[0])
    return torch.stack(states, 1).flatten(0, 1), torch.stack(logits, 1).flatten(0, 1)


def _plain(model: PreTrainedModel, prompt: Tensor, answers: Tensor, indices: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    ids = torch.cat((prompt.expand(len(answers), -1), answers), dim=1)
    output = model(input_ids=ids, use_cache=False, output_hidden_states=True)
    states = torch.stack([output.hidden_states[i].float() for i in indices]).mean(0)
    of_answer = slice(len(prompt), None)
    return states[:, of_answer].flatten(0, 1), output.logits[:, of_answer].flatten(0, 1)
