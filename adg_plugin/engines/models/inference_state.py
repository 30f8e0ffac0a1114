"""A model in the middle of something else -> the bare backbone, ready to be asked, its float32 weights cast if need be.

Afterwards all is as it was.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from adg_plugin.engines.forward.flat_batch import attention_implementation
from adg_plugin.engines.forward.memory import free_bytes, release_memory
from adg_plugin.engines.models.loading import Backbone, Source
from adg_plugin.errors import ModelError

logger = logging.getLogger(__name__)

_ROOM = 1.2  # of the copies' size: the cache of the answers wants some, too


@contextmanager
def inference_state(model: torch.nn.Module) -> Iterator[PreTrainedModel]:
    """Yield the causal language model inside `model`: adapters off, in `evaluation_state`.

    Args:
        model: a model of transformers, or one wrapped by PEFT or by DistributedDataParallel.
    """
    inner: Any = model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model
    with ExitStack() as stack:
        stack.enter_context(evaluation_state(inner, next(inner.parameters()).device))
        base = stack.enter_context(_without_adapters(inner))
        if own_forward := vars(base).get("_original_forward"):  # under one with autocast, which accelerate puts over it
            stack.enter_context(replaced(base, forward=own_forward))
        stack.enter_context(replaced(base.config, use_cache=True))
        stack.enter_context(_plain_attention(base))
        yield base


@contextmanager
def evaluation_state(
    model: Any = None, device: torch.device | None = None, *, seed: int | None = None
) -> Iterator[None]:
    """Put a model into evaluation mode, without gradient checkpointing, and seed the random states, if asked to.

    Afterwards the modules' modes, `requires_grad` of every weight, and the random states of torch, numpy and Python
    are those of before.

    Args:
        model: None, or what is no module of torch, has no modes.
        device: whose random states are to be kept; None: those of the CPU alone.
        seed: of the random states within; None: they go on.
    """
    modules = list(model.modules()) if isinstance(model, torch.nn.Module) else []
    training = [module for module in modules if module.training]
    checkpointed = [module for module in modules if getattr(module, "gradient_checkpointing", False)]
    grads = [(weight, weight.requires_grad) for weight in model.parameters()] if modules else []
    numpy_state, python_state = np.random.get_state(), random.getstate()
    devices = [device] if device is not None and device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), ExitStack() as stack:
            if seed is not None:
                random.seed(seed)
                np.random.seed(seed)
                torch.manual_seed(seed)
            if modules:
                model.eval()
            for module in checkpointed:
                stack.enter_context(replaced(module, gradient_checkpointing=False))
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        for module in training:
            module.training = True
        for weight, requires_grad in grads:  # PEFT thaws an adapter when it is switched on again
            weight.requires_grad_(requires_grad)


@contextmanager
def replaced(owner: Any, **values: Any) -> Iterator[None]:
    """Give `owner` other values of its attributes; afterwards it has those of before."""
    before = {name: getattr(owner, name, None) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


@contextmanager
def _without_adapters(model: Any) -> Iterator[PreTrainedModel]:
    if hasattr(model, "get_base_model"):  # a PeftModel
        with model.disable_adapter():
            yield model.get_base_model()
    elif getattr(model, "_hf_peft_config_loaded", False):
        model.disable_adapters()
        try:
            yield model
        finally:
            model.enable_adapters()
    else:
        yield model


@contextmanager
def _plain_attention(model: PreTrainedModel) -> Iterator[None]:
    """Use sdpa for weights in float32: flash attention takes half precision, which the trainer's autocast makes."""
    own = model.config._attn_implementation
    is_taken = model.dtype == torch.float32 and own not in ("eager", "sdpa")
    with attention_implementation(model, "sdpa") if is_taken else nullcontext():
        yield


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
    name, needed = str(dtype).removeprefix("torch."), sum(weights.values()) * dtype.itemsize
    release_memory(model.device)  # what torch holds in reserve is free, too
    free = free_bytes(model.device)
    if needed * _ROOM > free:
        raise ModelError(
            f"the model's weights are in float32, and {model.device} has no room for them in {name} beside that "
            f"({needed / 2**30:.1f} GiB and a fifth more, {free / 2**30:.1f} GiB are free): load the model in "
            f"{name} (a trainer's dtype, or model_init_kwargs={{'dtype': '{name}'}}), select first "
            "with `adg run`, or set the selection's dtype to float32, which is slower"
        )
    logger.info("the model's weights are in float32; answers are sampled in %s", name)
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
