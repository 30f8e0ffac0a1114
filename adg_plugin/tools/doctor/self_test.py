"""A whole selection with a tiny random model, made on the spot: whether sampling, scoring and resuming work here."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from adg_plugin.config.schema import ADGConfig
from adg_plugin.tools.doctor.checks import Check

if TYPE_CHECKING:
    from adg_plugin.pipeline.run import Selection

_ROWS, _BUDGET = 12, 5
_END = "<end>"
_REPORT = "report it with the output of adg doctor --json"


def check_by_selecting() -> Iterator[Check]:
    """Yield whether a selection runs on the device that `auto` stands for, and runs again without sampling."""
    from adg_plugin.engines.models.loading import pick_device
    from adg_plugin.pipeline import run as pipeline
    from adg_plugin.pipeline.stage import Pool

    began = time.monotonic()
    rows = [{"id": f"row-{n}", "instruction": f"What is {n} times {n + 3}?", "output": str(n)} for n in range(_ROWS)]
    with tempfile.TemporaryDirectory(prefix="adg-doctor-") as folder, _silence():
        model = Path(folder) / "model"
        save_tiny_model(model)
        settings = {"model": str(model), "budget": _BUDGET, "num_samples": 3, "max_new_tokens": 8, "bins": 2}
        config = ADGConfig.parse(settings)
        first, second = (
            pipeline.run_selection(Pool.of(config, rows), config, Path(folder) / "run", show_progress=False)
            for _ in range(2)
        )
    where = pick_device(config.device)
    text = (
        f"a tiny model on {where}: {_BUDGET} of {_ROWS} rows chosen; again, nothing sampled and the same chosen; "
        f"{time.monotonic() - began:.1f} s"
    )
    failed = [Check("self-test", "failed", f"on {where}: {problem}", _REPORT) for problem in _problems(first, second)]
    yield from failed or [Check("self-test", "ok", text)]


def _problems(first: Selection, second: Selection) -> Iterator[str]:
    counts = first.manifest["rows"]
    if counts["scored"] != _ROWS:
        yield f"{counts['scored']} of {_ROWS} rows were scored, rejected: {counts['rejected']}"
    if len(set(first.ids)) != _BUDGET:
        yield f"{len(set(first.ids))} rows were chosen, not {_BUDGET}"
    if again := second.manifest["sampling"]["rows"]:
        yield f"the second selection sampled {again} rows that the first had stored"
    if second.ids != first.ids:
        yield f"the second selection chose {', '.join(second.ids)}, the first {', '.join(first.ids)}"


def save_tiny_model(folder: Path) -> None:
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
