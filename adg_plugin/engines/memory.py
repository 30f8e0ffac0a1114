"""How many rows and tokens an engine holds at once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from adg_plugin.config import ADGConfig
from adg_plugin.engines.attention import Cohort, padded

logger = logging.getLogger(__name__)

# Rows beyond which a step gains nothing: on a CPU the cache leaves the processor's caches
# (benchmarks/bench_engine.py), on an accelerator the logits of a step outgrow what the products gain.
_MAX_ROWS = {"cpu": 160}
_MAX_ROWS_ACCELERATOR = 1024
_PREFILL_TOKENS = {"cpu": 2048}
_PREFILL_TOKENS_ACCELERATOR = 8192
_SHARE = 0.5  # of free memory for the cache; the rest is for activations, logits and growing the cache


@dataclass(slots=True)
class Capacity:
    """The limits of a batch. `tokens` counts what the cache may come to hold: prompts, and answers to their limit."""

    rows: int
    tokens: int
    prefill_tokens: int
    num_samples: int
    max_new_tokens: int

    @classmethod
    def of(cls, model: PreTrainedModel, config: ADGConfig) -> Capacity:
        """Return the limits for a model on its device; `batch_tokens` of the config, or from free memory."""
        kind = model.device.type
        rows = _MAX_ROWS.get(kind, _MAX_ROWS_ACCELERATOR)
        tokens = config.batch_tokens
        if tokens is None:
            tokens = int(_SHARE * _free_bytes(model.device) / cache_bytes_per_token(model.config, model.dtype))
        prefill = _PREFILL_TOKENS.get(kind, _PREFILL_TOKENS_ACCELERATOR)
        return cls(rows, tokens, prefill, config.num_samples, config.max_new_tokens)

    def cost(self, prompt_tokens: int) -> int:
        """Return the cache tokens that a prompt and its answers may come to take."""
        return padded(prompt_tokens) + self.num_samples * self.max_new_tokens

    def admits(self, cohorts: Sequence[Cohort]) -> tuple[int, int]:
        """Return how many further rows and cache tokens fit; zero rows until a quarter of the rows is free."""
        free = self.rows - sum(len(c.live) for c in cohorts)
        if cohorts and free < self.rows / 4:
            return 0, 0
        held = sum(len(c.lengths) * c.columns + c.places * self.max_new_tokens for c in cohorts)
        return free, self.tokens - held

    def halve(self, prompts_in_flight: int) -> None:
        """Go on with half of what just did not fit."""
        self.rows = max(1, min(self.rows, prompts_in_flight * self.num_samples) // 2)
        self.prefill_tokens = max(1, self.prefill_tokens // 2)
        logger.warning("out of memory: going on with %d answers at a time; nothing is lost", self.rows)


def cache_bytes_per_token(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """Return the bytes that one token takes in the cache of all layers."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * int(text.num_hidden_layers) * int(heads) * int(width) * dtype.itemsize


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "xpu":
        return torch.xpu.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def is_out_of_memory(err: BaseException) -> bool:
    """Tell whether an error means that memory ran out, on an accelerator or a CPU."""
    if isinstance(err, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(err, RuntimeError) and "can't allocate memory" in str(err)


def release_memory(device: torch.device) -> None:
    """Give cached memory of an accelerator back, so that the next attempt finds it whole."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "xpu":
        torch.xpu.empty_cache()
