"""How many rows and tokens an engine holds at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import psutil
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from adg_plugin.config.schema import ADGConfig
from adg_plugin.engines.forward.decode_group import COLUMNS, DecodeGroup, padded

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

# Rows beyond which a step gains nothing: on a CPU the cache leaves the processor's caches
# (benchmarks/bench_engine.py), on an accelerator the logits of a step outgrow what the products gain.
_MAX_ROWS = {"cpu": 160}
_MAX_ROWS_ACCELERATOR = 1024
_PREFILL_TOKENS = {"cpu": 2048}
_PREFILL_TOKENS_ACCELERATOR = 8192
_FEW_ROWS = 8
_OUT_OF_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED")
_SHARE = 0.5  # of free memory for the cache; the rest is for activations, logits and growing the cache


@dataclass(slots=True)
class Capacity:
    """The limits of a batch. `tokens` counts what the cache may come to hold: prompts, and answers to their limit."""

    rows: int
    tokens: int
    prefill_tokens: int
    num_samples: int
    max_new_tokens: int
    first_rows: int = 0
    first_prefill_tokens: int = 0

    def __post_init__(self) -> None:
        self.first_rows, self.first_prefill_tokens = self.rows, self.prefill_tokens

    @classmethod
    def of(cls, model: PreTrainedModel, config: ADGConfig) -> Capacity:
        """Return the limits for a model on its device; `batch_tokens` of the config, or from free memory."""
        kind = model.device.type
        rows = _MAX_ROWS.get(kind, _MAX_ROWS_ACCELERATOR)
        tokens = config.batch_tokens
        if tokens is None:
            release_memory(model.device)  # what torch holds in reserve is free, too
            per_token = cache_bytes_per_token(model.config, model.dtype, model.device)
            tokens = int(_SHARE * free_bytes(model.device) / per_token)
        prefill = _PREFILL_TOKENS.get(kind, _PREFILL_TOKENS_ACCELERATOR)
        fit = tokens // (COLUMNS + config.max_new_tokens)
        if fit < _FEW_ROWS:
            logger.warning(
                "only about %d answers fit at a time, which is slow: free memory, raise batch_tokens (now %d), lower "
                "max_new_tokens, or use load_in_4bit",
                max(1, fit),
                tokens,
            )
        return cls(rows, tokens, prefill, config.num_samples, config.max_new_tokens)

    def cost(self, prompt_tokens: int) -> int:
        """Return the cache tokens that a prompt and its answers may come to take."""
        return padded(prompt_tokens) + self.num_samples * self.max_new_tokens

    def admits(self, decode_groups: Sequence[DecodeGroup]) -> tuple[int, int]:
        """Return how many further rows and cache tokens fit; none until a quarter of both is free.

        Each group is a round of small kernels in every layer: prompts that came in by ones would make many of them.
        """
        rows = self.rows - sum(len(c.live) for c in decode_groups)
        tokens = self.tokens - sum(len(c.lengths) * c.columns + c.places * self.max_new_tokens for c in decode_groups)
        if decode_groups and (rows < self.rows / 4 or tokens < self.tokens / 4):
            return 0, 0
        return rows, tokens

    def halve(self, prompts_in_flight: int) -> None:
        """Go on with half of what just did not fit."""
        self.rows = max(1, min(self.rows, prompts_in_flight * self.num_samples) // 2)
        self.prefill_tokens = max(1, self.prefill_tokens // 2)
        logger.warning("out of memory: going on with %d answers at a time; nothing is lost", self.rows)

    def recover(self) -> None:
        """Go on with half of the first limits: the row that did not fit alone is gone."""
        self.rows, self.prefill_tokens = max(1, self.first_rows // 2), max(1, self.first_prefill_tokens // 2)


def cache_bytes_per_token(config: PreTrainedConfig, dtype: torch.dtype, device: torch.device) -> int:
    """Return the bytes that one token takes in the cache of all layers."""
    key_bytes = 4 if device.type == "cpu" else dtype.itemsize  # see decode_group._key_dtype
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(text.num_hidden_layers) * int(heads) * int(width) * (key_bytes + dtype.itemsize)


def free_bytes(device: torch.device) -> int:
    """Return the bytes of a device's memory, or of the machine's, that nobody uses."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "xpu":
        return torch.xpu.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def is_out_of_memory(err: BaseException) -> bool:
    """Tell whether an error means that memory ran out, on an accelerator or a CPU."""
    if isinstance(err, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(err, RuntimeError) and any(text in str(err) for text in _OUT_OF_MEMORY)


def release_memory(device: torch.device) -> None:
    """Give cached memory of an accelerator back, so that the next attempt finds it whole."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "xpu":
        torch.xpu.empty_cache()


def neighbours(
    items: Sequence[T], sizes: Sequence[int], most: int, total: Callable[[Sequence[int]], int]
) -> Iterator[Sequence[T]]:
    """Yield batches of items that follow one another, as large as `most` allows; at least one item each.

    Args:
        sizes: of the items, ascending.
        total: the sizes of a batch -> what it takes of `most`.
    """
    start = 0
    for end in range(1, len(items) + 1):
        if end == len(items) or total(sizes[start : end + 1]) > most:
            yield items[start:end]
            start = end


def fitting(work: Callable[[T], R], given: T, device: torch.device) -> R | None:
    """Return what `work` makes of something, or None where memory runs out; what it filled is given back then."""
    try:
        return work(given)
    except (RuntimeError, MemoryError) as err:
        if not is_out_of_memory(err):
            raise
    release_memory(device)  # outside the handler: its traceback holds the tensors that did not fit
    return None


def halving(
    batches: Iterable[Sequence[T]], work: Callable[[Sequence[T]], R], device: torch.device
) -> Iterator[tuple[Sequence[T], R | None]]:
    """Yield batches, in order, and what `work` makes of them; halves of those that do not fit.

    Yields:
        Items and their result; None with a single item that does not fit even alone.
    """
    for batch in batches:
        found = fitting(work, batch, device)
        if found is None and len(batch) > 1:
            half = len(batch) // 2
            yield from halving((batch[:half], batch[half:]), work, device)
        else:
            yield batch, found
