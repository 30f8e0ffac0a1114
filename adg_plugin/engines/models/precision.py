"""A model whose weights are in float32 -> the same model in half precision, for as long as it is asked."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from adg_plugin.engines.forward.memory import free_bytes, release_memory
from adg_plugin.engines.models.loading import Backbone, Source
from adg_plugin.errors import ModelError

logger = logging.getLogger(__name__)

_ROOM = 1.2  # of the copies' size: the cache of the answers wants some, too


def can_be_cast(model: PreTrainedModel) -> bool:
    """Return whether the model's weights are in float32, so that half precision is a choice; not of quantised ones."""
    return model.dtype == torch.float32 and getattr(model.config, "quantization_config", None) is None


@contextmanager
def cast_when_loaded(source: Source, dtype: torch.dtype) -> Iterator[Source]:
    """Yield `source`, whose model has its weights in `dtype` from when it is loaded to the end of the block.

    Where nothing is sampled the model is not loaded, and nothing is cast.

    Raises:
        ModelError: on loading, there is no room for the copies.
    """
    with ExitStack() as stack:

        @cache
        def load() -> Backbone:
            backbone = source.load()
            stack.enter_context(cast_weights(backbone.model, dtype))
            return backbone

        yield replace(source, load=load)


@contextmanager
def cast_weights(model: PreTrainedModel, dtype: torch.dtype) -> Iterator[None]:
    """Put copies in `dtype` in the places of the float32 weights, as `from_pretrained(dtype=...)` would load them.

    The weights themselves are not touched, only set aside: optimizers, gradients and DistributedDataParallel hold on to
    them. Copies of the model would miss its hooks and adapters, and autocast would cast each weight at each token.

    Raises:
        ModelError: there is no room for the copies.
    """
    places = list(_float_weights(model, dtype))
    weights = {weight: weight.numel() for _, _, weight in places}  # tied ones once
    _check_room(model.device, sum(weights.values()) * dtype.itemsize, dtype)
    logger.info("the model's weights are in float32; answers are sampled in %s", _name(dtype))
    copies: dict[nn.Parameter, nn.Parameter] = {}
    try:
        for weight in weights:
            copies[weight] = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
        for module, name, weight in places:
            module._parameters[name] = copies[weight]
        yield
    finally:
        for module, name, weight in places:
            module._parameters[name] = weight
        copies.clear()
        release_memory(model.device)


def _float_weights(model: PreTrainedModel, dtype: torch.dtype) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Yield the place of each weight to cast; those that transformers keeps in float32, as some norms, are left out."""
    about: Any = model
    kept = set(about._keep_in_fp32_modules_strict or ())
    if dtype == torch.float16:
        kept |= set(about._keep_in_fp32_modules or ())
    for path, module in model.named_modules():
        for name, weight in module._parameters.items():
            if weight is not None and weight.dtype == torch.float32 and not any(k in f"{path}.{name}" for k in kept):
                yield module, name, weight


def _check_room(device: torch.device, needed: int, dtype: torch.dtype) -> None:
    release_memory(device)  # what torch holds in reserve is free, too
    free = free_bytes(device)
    if needed * _ROOM > free:
        raise ModelError(
            f"the model's weights are in float32, and {device} has no room for them in {_name(dtype)} beside that "
            f"({needed / 2**30:.1f} GiB and a fifth more, {free / 2**30:.1f} GiB are free): load the model in "
            f"{_name(dtype)} (a trainer's dtype, or model_init_kwargs={{'dtype': '{_name(dtype)}'}}), select first "
            "with `adg run`, or set the selection's dtype to float32, which is slower"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
