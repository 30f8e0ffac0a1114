"""Whether a model can be run in one pass: asked of the model itself, by comparing with a plain forward pass."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from adg_plugin.engines.forward.decode_group import DecodeGroup
from adg_plugin.engines.forward.flat_batch import (
    Decode,
    Prefill,
    UnsupportedAttention,
    attention_implementation,
    feed,
    shared_prefix_attention,
)
from adg_plugin.engines.forward.hidden_states import HiddenStateRecorder, mean_state
from adg_plugin.engines.forward.memory import is_out_of_memory

_KNOWN_LAYERS = {"full_attention", "sliding_attention"}
_PROMPT, _ANSWER, _ROWS = 6, 3, 2  # tokens, tokens, answers of the probe
_ASKING = "adg_window_question"
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.02}  # of 1 - cosine


@torch.no_grad()
def one_pass_problem(model: PreTrainedModel, indices: tuple[int, ...], longest: int = 0) -> str | None:
    """Return why `model` cannot be sampled in one pass, or None where it can.

    Args:
        indices: entries of HF's `hidden_states` that are averaged.
        longest: tokens that a prompt and its answer may have.

    Runs a few tokens through the shared-prefix attention and through the model's own, and compares states and logits.
    """
    unknown = set(getattr(model.config.get_text_config(), "layer_types", None) or ()) - _KNOWN_LAYERS
    if unknown:
        return f"it has layers of type {', '.join(sorted(unknown))}"
    if (limit := _rotation_change(model)) is not None and longest > limit:
        return f"beyond {limit} tokens its positions depend on the longest row of a batch, and rows may have {longest}"
    vocabulary = model.config.get_text_config().vocab_size
    tokens = torch.arange(_PROMPT + _ROWS * _ANSWER, device=model.device) * 7 % (vocabulary - 1) + 1
    prompt, answers = tokens[:_PROMPT], tokens[_PROMPT:].view(_ROWS, _ANSWER)
    try:
        ours = _one_pass(model, prompt, answers, indices)
    except UnsupportedAttention as err:
        return str(err)
    except Exception as err:  # any architecture may fail here in its own way, and all of them mean: fall back
        if is_out_of_memory(err):
            raise  # says nothing about the model
        return f"{type(err).__name__}: {err}"
    theirs = _plain(model, prompt, answers, indices)
    tolerance = _TOLERANCE.get(model.dtype, 0.02)
    for name, one, other in zip(("hidden states", "logits"), ours, theirs, strict=True):
        gaps = 1 - torch.cosine_similarity(one.float(), other.float(), dim=-1)
        # In half precision a token or two may be sent to another expert, where two nearly tie.
        gap = float(gaps.max() if model.dtype == torch.float32 else gaps.nanmedian())
        if not gap <= tolerance:
            return f"its {name} differ from those of a plain forward pass (1 - cosine {gap:.2g})"
    return _undeclared_window(model, prompt)


def _rotation_change(model: PreTrainedModel) -> int | None:
    """Return the length beyond which rotary positions are computed otherwise, for the whole batch; None: never."""
    text = model.config.get_text_config()
    settings = getattr(text, "rope_parameters", None) or {}
    kinds = settings.values() if all(isinstance(value, dict) for value in settings.values()) else [settings]
    limits = [
        kind.get("original_max_position_embeddings") or text.max_position_embeddings
        for kind in kinds
        if kind.get("rope_type") in ("dynamic", "longrope")
    ]
    return min(limits, default=None)


def _one_pass(
    model: PreTrainedModel, prompt: Tensor, answers: Tensor, indices: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Return states and logits of the answers' tokens, (rows * tokens, H) and (rows * tokens, V)."""
    recorder = HiddenStateRecorder(indices)
    decode_group = DecodeGroup.of([len(prompt)], len(answers), model.device)
    states, logits = [], []
    with shared_prefix_attention(model), recorder.on(model):
        feed(model, Prefill([(len(prompt), [])], decode_group), prompt, 1)
        recorder.take()
        layers = model.config.get_text_config().num_hidden_layers
        if len(decode_group.layers) != layers:
            raise UnsupportedAttention(
                f"{len(decode_group.layers)} of its {layers} layers use the attention they are given"
            )
        for step in range(answers.shape[1]):
            wanted = torch.arange(len(answers), device=model.device)
            logits.append(feed(model, Decode([decode_group]), answers[:, step], wanted))
            decode_group.step()
            states.append(recorder.take()[0, : len(answers)])
    return torch.stack(states, 1).flatten(0, 1), torch.stack(logits, 1).flatten(0, 1)


def _plain(model: PreTrainedModel, prompt: Tensor, answers: Tensor, indices: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    ids = torch.cat((prompt.expand(len(answers), -1), answers), dim=1)
    output = model(input_ids=ids, use_cache=False, output_hidden_states=True)
    states = mean_state([output.hidden_states[i] for i in indices])
    of_answer = slice(len(prompt), None)
    return states[:, of_answer].flatten(0, 1), output.logits[:, of_answer].flatten(0, 1)


def _undeclared_window(model: PreTrainedModel, prompt: Tensor) -> str | None:
    """Return the problem of a model that gives its masks a window, which ours do not use, but not its attention.

    The few tokens of the probe do not fill a window, so the question is put another way: masks that only name their
    window go through the model to an attention that compares.
    """
    reach = getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
    undeclared: list[int] = []

    def named(*_: object, local_size: int | None = None, **__: object) -> Tensor | None:
        return None if local_size is None else torch.tensor(local_size)

    def comparing(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        sliding_window: int | None = None,
        **_: object,
    ) -> tuple[Tensor, None]:
        masked = reach if attention_mask is None else min(reach, int(attention_mask))
        if masked != min(reach, sliding_window or reach):
            undeclared.append(masked)
        return query.transpose(1, 2), None

    AttentionInterface.register(_ASKING, comparing)
    AttentionMaskInterface.register(_ASKING, named)
    with attention_implementation(model, _ASKING):
        model(input_ids=prompt[None], use_cache=False, logits_to_keep=1)
    if undeclared:
        return f"its masks have a window of {undeclared[0]} tokens, of which its attention does not know"
    return None
