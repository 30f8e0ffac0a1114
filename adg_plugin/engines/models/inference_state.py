"""A model in the middle of something else -> the bare backbone, ready to be asked; afterwards all is as it was."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel


@contextmanager
def inference_state(model: torch.nn.Module) -> Iterator[PreTrainedModel]:
    """Yield the causal language model inside `model`: adapters off, evaluation mode, no gradient checkpointing.

    Afterwards the modules' modes, `requires_grad` of every weight, and the random states of torch, numpy and Python
    are those of before.

    Args:
        model: a model of transformers, or one wrapped by PEFT or by DistributedDataParallel.
    """
    inner: Any = model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model
    with ExitStack() as stack:
        stack.enter_context(_random_states(next(inner.parameters()).device))
        stack.enter_context(_modes(inner))
        base = stack.enter_context(_without_adapters(inner))
        stack.enter_context(_own_forward(base))
        stack.enter_context(_cached(base))
        stack.enter_context(_plain_attention(base))
        yield base


@contextmanager
def _random_states(device: torch.device) -> Iterator[None]:
    numpy_state, python_state = np.random.get_state(), random.getstate()
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


@contextmanager
def _modes(model: torch.nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    checkpointed = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    grads = [(weight, weight.requires_grad) for weight in model.parameters()]
    model.eval()
    for module in checkpointed:
        module.gradient_checkpointing = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in checkpointed:
            module.gradient_checkpointing = True  # type: ignore[assignment]
        for module in training:
            module.training = True
        for weight, requires_grad in grads:  # PEFT thaws an adapter when it is switched on again
            weight.requires_grad_(requires_grad)


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
def _own_forward(model: Any) -> Iterator[None]:
    """Use the model's own forward pass: accelerate puts one with autocast over it when it evaluates or trains."""
    own = vars(model).get("_original_forward")
    if own is None:
        yield
        return
    before = model.forward
    model.forward = own
    try:
        yield
    finally:
        model.forward = before


@contextmanager
def _plain_attention(model: PreTrainedModel) -> Iterator[None]:
    """Use sdpa for weights in float32: flash attention takes half precision, which the trainer's autocast makes."""
    before = model.config._attn_implementation
    if model.dtype != torch.float32 or before in ("eager", "sdpa"):
        yield
        return
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def _cached(model: PreTrainedModel) -> Iterator[None]:
    before = getattr(model.config, "use_cache", None)
    model.config.use_cache = True
    try:
        yield
    finally:
        model.config.use_cache = before
