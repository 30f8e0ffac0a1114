"""Tiny random models of the architectures that the engine names, and a byte-level tokenizer for them."""

import copy
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from adg_plugin.store.records import Prompt

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<pad>")
VOCABULARY = len(SPECIALS) + 256  # ids 0 to 3 are special, the others bytes
EOS = 2  # <|im_end|>
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WINDOW = 16  # of the families with sliding windows: shorter than most prompts
LAYERS = 5  # one more than the four that are averaged, so that a state below them can be mistaken for one of them

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    # Large weights, so that attention is sharp and a wrong key shows in every state.
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": EOS,
    "pad_token_id": 3,
}
_ALTERNATING = ["sliding_attention", "full_attention"] * LAYERS
_SLIDING = {"sliding_window": WINDOW, "layer_types": _ALTERNATING[:LAYERS], "head_dim": 12}
_MOE = {"num_experts_per_tok": 2}

FAMILIES: dict[str, dict[str, object]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 12},
    "mistral": {"sliding_window": WINDOW},
    "gemma2": {**_SLIDING, "query_pre_attn_scalar": 20, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 8.0},
    "gemma3_text": {**_SLIDING, "query_pre_attn_scalar": 20},
    "phi3": {"head_dim": 8},
    "gpt2": {"n_embd": 48, "n_head": 6, "n_layer": LAYERS, "n_positions": 1024, "n_inner": 64},
    "mixtral": {**_MOE, "num_local_experts": 4, "sliding_window": WINDOW},
    "qwen2_moe": {**_MOE, "num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
    "gpt_oss": {**_MOE, **_SLIDING, "num_local_experts": 4},  # attention sinks
    # Not to be run in one pass, each for a reason of its own.
    "mamba": {"state_size": 8, "expand": 2},
    "recurrent_gemma": {"lru_width": 48, "attention_window_size": WINDOW},
    "bloom": {"n_layer": LAYERS, "n_head": 6},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 48},
    "openai-gpt": {"n_embd": 48, "n_head": 6, "n_layer": LAYERS, "n_positions": 1024},
    "doge": {},
    "phimoe": {**_MOE, "num_local_experts": 4, "sliding_window": WINDOW},
}
ONE_PASS = ("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "phi3", "gpt2", "mixtral", "qwen2_moe")


@cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per byte, four special tokens and a ChatML template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate((*SPECIALS, *alphabet))}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIALS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=SPECIALS[0], eos_token=SPECIALS[EOS], pad_token=SPECIALS[3]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@cache
def _built(family: str, seed: int, settings: str) -> PreTrainedModel:
    options = {**_COMMON, **FAMILIES[family], **json.loads(settings)}
    torch_state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **options))
    torch.random.set_rng_state(torch_state)
    return model.eval()


def tiny_model(
    family: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32, **settings: object
) -> PreTrainedModel:
    """Return a random causal language model in evaluation mode; the same arguments give the same weights.

    Args:
        family: a key of `FAMILIES`.
        seed: of the weights.
        dtype: of the weights.
        settings: of the model's configuration, in the place of those here.
    """
    return copy.deepcopy(_built(family, seed, json.dumps(settings, sort_keys=True))).to(dtype)


def save_tiny_model(folder: Path, family: str = "llama", **settings: object) -> Path:
    """Write a random model and its tokenizer as transformers reads them, and return the folder."""
    tiny_model(family, **settings).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_prompts(lengths: Sequence[int], *, vocabulary: int = VOCABULARY, seed: int = 0) -> list[Prompt]:
    """Return prompts of random tokens, without special ones, named p0, p1, ...; spans leave both ends out."""
    rng = np.random.default_rng(seed)
    prompts = []
    for number, length in enumerate(lengths):
        ids = rng.integers(min(4, vocabulary - 1), vocabulary, length).astype(np.int32)
        span = (1, max(2, length - 1))
        prompts.append(Prompt(f"p{number}", ids, span, bytes([number % 256]) * 16, f"instruction {number}"))
    return prompts
