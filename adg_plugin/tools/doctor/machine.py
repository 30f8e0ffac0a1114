"""This machine: accelerators, processor, memory, disk, network, and whether a tiny selection runs on it."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adg_plugin.config.schema import ADGConfig
from adg_plugin.tools.doctor.checks import Check

_GIB = 1 << 30
_LITTLE_DISK = 2 * _GIB
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
# Of the self-test.
_ROWS, _BUDGET = 12, 5
_END = "<end>"
_REPORT = "report it with the output of adg doctor --json"


def check_devices() -> Iterator[Check]:
    """Yield accelerators, the processor and its memory, and whether the hub may be asked."""
    import torch

    yield from [*_accelerators(torch)] or [_none_seen()]
    yield _processor(torch)
    offline = [f"{name}={os.environ[name]}" for name in _OFFLINE if _is_set(name)]
    if offline:
        yield Check("network", "note", f"{', '.join(offline)}: models and data sets only from folders and the cache")


def is_offline(*, for_data: bool = False) -> bool:
    """Return whether the hub may not be asked for models, or for data sets, which have a switch of their own."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE) or (for_data and _is_set("HF_DATASETS_OFFLINE"))


def check_disk(folder: Path) -> Iterator[Check]:
    """Yield how much room there is where a folder is, or will be."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    text = f"{gib(free)} free for {folder}"
    if not os.access(there, os.W_OK):
        yield Check("disk", "failed", f"{there} cannot be written", "give another folder with --out")
    elif free < _LITTLE_DISK:
        yield Check("disk", "warning", text, "free some, or give another folder with --out; docs/scale.md has sizes")
    else:
        yield Check("disk", "ok", text)


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")


def gib(size_bytes: int) -> str:
    """Return a size for people."""
    return f"{size_bytes / _GIB:.1f} GiB"


def _accelerators(torch: Any) -> Iterator[Check]:
    for kind, bf16_options in (("cuda", {"including_emulation": False}), ("xpu", {})):
        module = getattr(torch, kind)
        for number in range(module.device_count() if module.is_available() else 0):
            free, total = module.mem_get_info(number)
            with module.device(number):  # of all devices alike: torch asks the current one
                bf16 = module.is_bf16_supported(**bf16_options)
            memory = f"{gib(free)} free of {gib(total)}"
            text = f"{module.get_device_name(number)}, {memory}, bf16: {'yes' if bf16 else 'no'}"
            yield Check(f"{kind}:{number}", "ok", text, "" if bf16 else "dtype: float16 or float32")
    if torch.backends.mps.is_available():
        text = f"Apple GPU, {gib(torch.mps.recommended_max_memory())} of the memory for it"
        yield Check("mps", "ok", text)


def _none_seen() -> Check:
    from adg_plugin.engines.models.device import why_no_gpu

    if found := why_no_gpu():
        return Check("accelerator", "warning", *found)
    return Check("accelerator", "note", "none: this build of torch is for CPUs, where a selection is slow")


def _processor(torch: Any) -> Check:
    import psutil

    memory = psutil.virtual_memory()
    # Of newer torch only, and on x86 only: elsewhere nothing is shown.
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    bf16 = [known[name] for name in ("avx512_bf16", "amx_bf16") if name in known]
    instructions = f", bf16 instructions: {'yes' if any(bf16) else 'no'}" if bf16 else ""
    # Without the function, on macOS and Windows, all cores are there for this process.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    text = f"{cores} cores, {gib(memory.available)} free of {gib(memory.total)}{instructions}"
    return Check("CPU", "ok", text)


def check_by_selecting() -> Iterator[Check]:
    """Yield whether a selection runs on the device that `auto` stands for, and runs again without sampling."""
    from adg_plugin.engines.models.loading import pick_device
    from adg_plugin.pipeline import run as pipeline
    from adg_plugin.pipeline.stage import Pool

    began = time.monotonic()
    rows = [{"id": f"row-{n}", "instruction": f"What is {n} times {n + 3}?", "output": str(n)} for n in range(_ROWS)]
    with tempfile.TemporaryDirectory(prefix="adg-doctor-") as folder, _silence():
        model = Path(folder) / "model"
        _save_tiny_model(model)
        settings = {"model": str(model), "budget": _BUDGET, "num_samples": 3, "max_new_tokens": 8, "bins": 2}
        config = ADGConfig.parse(settings)
        first, second = (
            pipeline.run_selection(Pool.of(config, rows), config, Path(folder) / "run", show_progress=False)
            for _ in range(2)
        )
    where = pick_device(config.device)
    counts, problems = first.manifest["rows"], []
    if counts["scored"] != _ROWS:
        problems.append(f"{counts['scored']} of {_ROWS} rows were scored, rejected: {counts['rejected']}")
    if len(set(first.ids)) != _BUDGET:
        problems.append(f"{len(set(first.ids))} rows were chosen, not {_BUDGET}")
    if again := second.manifest["sampling"]["rows"]:
        problems.append(f"the second selection sampled {again} rows that the first had stored")
    if second.ids != first.ids:
        problems.append(f"the second selection chose {', '.join(second.ids)}, the first {', '.join(first.ids)}")
    for problem in problems:
        yield Check("self-test", "failed", f"on {where}: {problem}", _REPORT)
    if not problems:
        text = (
            f"a tiny model on {where}: {_BUDGET} of {_ROWS} rows chosen; again, nothing sampled and the same chosen; "
            f"{time.monotonic() - began:.1f} s"
        )
        yield Check("self-test", "ok", text)


def _save_tiny_model(folder: Path) -> None:
    """Write a random Llama of some thousand weights (safetensors) and a tokenizer with a token for each byte."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokens = [_END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    shape = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(shape)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=_END, pad_token=_END).save_pretrained(folder)


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the notes of a selection, which are on scores that mean nothing here, from the output."""
    from transformers.utils import logging as hf_logging

    log = logging.getLogger("adg_plugin")
    level, bars = log.level, hf_logging.is_progress_bar_enabled()
    log.setLevel(logging.ERROR)
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        log.setLevel(level)
        if bars:
            hf_logging.enable_progress_bar()
