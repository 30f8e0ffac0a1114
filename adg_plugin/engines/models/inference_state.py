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
    before = model.config._attn_implementation
    if model.dtype != torch.float32 or before in ("eager", "sdpa"):
        yield
        return
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
